"""Sparse autoencoders: transferred, trained, evaluated."""
