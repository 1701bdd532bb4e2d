"""Maps trained by steps over rows, as papers train them, for comparison with closed forms.

This folder is no namespace of its own: `lrt_lens.stitching` lists its public names.
"""
