"""Sparse autoencoders carried from one model to another."""
