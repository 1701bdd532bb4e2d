"""Figures and the self-contained HTML report.

`template` holds the looks (one plotly template, one style an arm), `figures` turns tidy tables into
plotly figures and computes no statistics, `html` writes figures, tables and continuations as one
page that loads nothing from the network.
"""
