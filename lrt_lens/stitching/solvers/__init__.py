"""Families of maps, all fitted from `CrossMoments`; each is a small frozen dataclass that
`moments.fit` and `grid.compare` take.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
