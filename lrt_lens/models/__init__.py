"""Models with named residual hook points: loading, capture, intervention, generation, and pairs of
them.
"""
