"""Another tokenization for the same model: its own tokens, cut finer. A control of what alignment
itself costs.

    finer = with_fewer_merges(model.tokenizer, keep=0.5)
    pair = ModelPair(model, HookedModel.load(folder, tokenizer=finer))       # one model, two tokenizations of equal content

The vocabulary stays, so the model knows every token; only the later, longer merges of its BPE are
not made. The two readings differ as those of two tokenizers do, in boundaries and in how usual the
tokens are, while the model is the same.
"""

import copy
import json
from typing import Any


def with_fewer_merges(tokenizer: Any, keep: float = 0.5) -> Any:
    """A copy of a fast BPE tokenizer that makes only the first ``keep`` of its merges.

    ValueError for a share outside 0 to 1, and for a tokenizer that is no fast BPE.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is {keep}; expected a share of merges from 0 to 1")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = (
        {"model": {"type": "a slow tokenizer"}} if backend is None else json.loads(backend.to_str())
    )
    if backend is None or content["model"]["type"] != "BPE":
        raise ValueError(
            f"{type(tokenizer).__name__} holds {content['model']['type']}; expected a fast tokenizer with a BPE model, whose merges can be left out"
        )
    merges = content["model"]["merges"]
    content["model"]["merges"] = merges[: round(keep * len(merges))]
    # Words of the vocabulary would otherwise be found whole, merges or not.
    content["model"]["ignore_merges"] = False
    finer = copy.deepcopy(tokenizer)
    finer._tokenizer = type(backend).from_str(json.dumps(content))
    return finer
