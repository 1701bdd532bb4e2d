"""Affine maps between two residual streams, fitted from cross-moments.

The package has the solvers, the scores of every hook pair, the choice among hook pairs, and the
`Stitch` that transfers artefacts.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
