"""Single SAE features before and after transfer; the entry point is in `_evaluate`.

This folder is no namespace of its own: `lrt_lens.adapters.saes` lists its public names.
"""
