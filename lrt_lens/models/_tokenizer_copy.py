"""Copies of a tokenizer with settings of their own, made without copying its vocabulary.

Problem: `copy.deepcopy` writes a fast tokenizer to JSON and reads it again, which takes seconds
with a vocabulary of 262,144 tokens. Mechanism: a new tokenizer of the tokenizers library around
the same model, which holds vocabulary and merges and which no setting changes.

    copied = tokenizer_copy(tokenizer)
    copied.backend_tokenizer.post_processor = None      # `tokenizer` stays as it was

Limits: training one of both trains the other too, as they share one model.
"""

import copy
from typing import Any

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def tokenizer_copy(tokenizer: Any) -> Any:
    """Return a copy of a tokenizer of the Hugging Face interface; slow ones are copied whole."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    shared = None if backend is None else _around_the_same_model(backend)
    # `deepcopy` takes what is in the memo as already copied.
    return copy.deepcopy(tokenizer, {} if shared is None else {id(backend): shared})


def _around_the_same_model(backend: Any) -> Any:
    """Return a tokenizers.Tokenizer with the parts of another; None if its tokens would differ."""
    made = type(backend)(backend.model)
    for part in _PARTS:
        value = getattr(backend, part)
        if value is not None:
            setattr(made, part, value)
    # An added token that is not in the model's vocabulary gets the next free id, so the order of
    # ids gives each its own again, unless the file has a gap between them.
    added = backend.get_added_tokens_decoder()
    made.add_tokens([added[number] for number in sorted(added)])
    return made if _shown(made.get_added_tokens_decoder()) == _shown(added) else None


def _shown(added: dict[int, Any]) -> dict[int, str]:
    """Return the added tokens with all their settings, which their equality leaves out."""
    return {number: repr(token) for number, token in added.items()}
