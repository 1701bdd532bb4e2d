"""Cross-moments of two models: harvest, sums, files, plans, checkpoints and activation caches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
