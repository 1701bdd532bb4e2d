"""Hidden states that were computed elsewhere, as sides of a harvest.

Problem: large models run in engines, on other machines, and leave hidden states in files; their
layers, positions and tokens are numbered in other ways. Mechanism: `harvest_states` takes a folder
or an iterator in place of a model. Folders hold

    *.safetensors    hidden_states [token, layer, d] and token_ids [token], one sequence per file
                     (vLLM), or one tensor [token, d] per hook point and token_ids
    *.parquet        one sequence per row, the same names as columns
    *.npy            one entry per token, named by ``states.json``

and ``states.json`` (`StateManifest`) says what they are.

    moments = harvest_states(small, StateFolder("states", layer_ids=[3, 6], n_layers=12), documents)

Limits: see `lrt_lens.moments.states._harvest_states`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
