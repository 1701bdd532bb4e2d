"""The writer of self-contained HTML reports, and of ``results.json``.

Reports are sections of paragraphs, tables, figures, key numbers and continuations; the page loads
nothing from the network.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
