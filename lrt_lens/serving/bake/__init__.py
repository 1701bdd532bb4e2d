"""Steering vectors written into the weights of a model, or into an adapter for it.

This folder is no namespace of its own: `lrt_lens.serving` lists its public names.
"""
