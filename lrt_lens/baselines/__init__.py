"""Maps between model families without paired tokens; each method returns a `Stitch`.

Methods: anchors (texts that both models read), shared vocabularies, and no pairs at all.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
