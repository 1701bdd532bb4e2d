"""Vectors in the formats of other programs, and as weights of ordinary models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
