"""Maps that cross model families without paired tokens: anchors, shared vocabularies, no pairs at
all. Each comes out as a `Stitch`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
