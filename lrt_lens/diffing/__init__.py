"""Comparison of two models: directions that no linear map of the other model explains."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
