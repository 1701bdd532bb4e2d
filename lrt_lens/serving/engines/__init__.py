"""Engines that run exported vectors: plain transformers, and programs that serve.

This folder is no namespace of its own: `lrt_lens.serving` lists its public names.
"""
