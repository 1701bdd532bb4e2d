"""Demo models, texts and SAEs that ship with the package, and the functions that load them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
