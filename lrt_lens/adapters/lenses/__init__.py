"""Lenses that read the vocabulary out of inner states, and states for readers of activations."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
