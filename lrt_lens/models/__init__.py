"""Models with named residual hook points: loading, capture, intervention, generation, and pairs of
them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
