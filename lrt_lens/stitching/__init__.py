"""Moments of two models on one token stream, and everything that follows from them: maps, scores,
grids, stitches.
"""
