"""Solvers: families of maps, all fitted from `CrossMoments`.

Each solver is a small frozen dataclass, an argument of `fit_grid` and `compare_solvers`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
