"""Files of steering vectors of other programs: one module for each way of writing them.

This folder is no namespace of its own: `lrt_lens.serving` lists its public names.
"""
