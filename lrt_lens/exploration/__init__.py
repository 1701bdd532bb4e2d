"""Steering by hand in a notebook: the arms to compare (`_state`) and a widget (`_widget`)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
