"""Maps from the codes of an SAE on the source model to states of the target model.

This folder is no namespace of its own: `lrt_lens.adapters.saes` lists its public names.
"""
