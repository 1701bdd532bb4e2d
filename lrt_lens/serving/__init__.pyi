from .bake._bake import bake_vector as bake_vector
