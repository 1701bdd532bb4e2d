"""Domains of text: maps fitted on one, scored on another, and what that does to artefacts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
