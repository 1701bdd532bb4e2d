"""Refits in closed form of an SAE's weights to the states of another model or hook point.

This folder is no namespace of its own: `lrt_lens.adapters.saes` lists its public names.
"""
