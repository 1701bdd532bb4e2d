"""Models with named residual hook points, and pairs of them.

Loading, names and identities, capture, intervention, generation, and reading states from texts.
"""
