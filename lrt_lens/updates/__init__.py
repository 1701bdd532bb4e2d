"""Updates of a model: whether probes, vectors and SAEs of the old revision serve in the new one."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
