"""Choice of the hook pair at which an artefact is learnt and transferred."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
