"""Families of maps, all fitted from `CrossMoments`; each is a small frozen dataclass that
`moments.fit` and `grid.compare` take.
"""
