"""Moments of two models on one token stream, and everything that follows from them: maps, scores,
grids, stitches.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
