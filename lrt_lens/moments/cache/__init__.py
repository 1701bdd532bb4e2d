"""Activations on disk: `ActivationCache`, for maps and scores that need more than moments.

This folder is no namespace of its own: `lrt_lens.moments` lists its public names.
"""
