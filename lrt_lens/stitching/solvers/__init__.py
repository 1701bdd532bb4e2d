"""Families of maps, all fitted from `CrossMoments`.

Each is a small frozen dataclass that `fit_grid` and `compare_solvers` take.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
