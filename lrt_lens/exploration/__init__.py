"""Turning a vector up and down by hand, in a notebook: what is compared (`state`) and the widget
over it (`widget`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
