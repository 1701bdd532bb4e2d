"""A second tokenization for the same model: a control that measures the cost of alignment itself.

    finer = with_fewer_merges(model.tokenizer, keep=0.5)
    pair = ModelPair(model, HookedModel.load(folder, tokenizer=finer))

Both models of this pair are the same, and read the same texts in different tokens. The vocabulary
does not change, so the model knows every token; only the later, longer merges of its BPE are left
out. The tokenizations differ as those of two tokenizers do: in their boundaries, and in how
frequent their tokens are.
"""

import json
from typing import Any

from lrt_lens.models._tokenizer_copy import tokenizer_copy


def with_fewer_merges(tokenizer: Any, keep: float = 0.5) -> Any:
    """Return a copy of a fast BPE tokenizer with only the first share ``keep`` of its merges.

    Raises:
        ValueError: ``keep`` is outside 0 to 1, or the tokenizer is no fast BPE tokenizer.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is {keep}; expected a share of merges from 0 to 1")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = (
        {"model": {"type": "a slow tokenizer"}} if backend is None else json.loads(backend.to_str())
    )
    if backend is None or content["model"]["type"] != "BPE":
        raise ValueError(
            f"{type(tokenizer).__name__} holds {content['model']['type']};"
            " expected a fast tokenizer with a BPE model, whose merges can be left out"
        )
    # BPE makes its merges in the order of this list, the most frequent pairs of characters first.
    merges = content["model"]["merges"]
    content["model"]["merges"] = merges[: round(keep * len(merges))]
    # With `ignore_merges`, a word that is in the vocabulary becomes one token without any merge.
    content["model"]["ignore_merges"] = False
    finer = tokenizer_copy(tokenizer)
    finer._tokenizer = type(backend).from_str(json.dumps(content))
    return finer
