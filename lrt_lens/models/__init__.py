"""Models with named residual hook points, and pairs of them.

Loading, names and identities, capture, intervention, generation, and reading states from texts.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
