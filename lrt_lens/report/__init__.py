"""Figures and the self-contained HTML report.

`template` holds the looks (one plotly template, one style an arm), `figures` turns tidy tables into
plotly figures and computes no statistics, `html` writes figures, tables and continuations as one
page that loads nothing from the network.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
