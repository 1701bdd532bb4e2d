"""Identity of a model: its name, and hashes that tell whether two models are the same.

Problem: a stitch, a vector or a probe may only be used on the model that it was made for, and names
cannot decide that: one checkpoint has many names, and two folders can have one name. Mechanism:
every file contains a `ModelIdentity`. Its hashes of the weights and of the tokenizer are compared;
its name and its revision are only shown.

    identity = HookedModel.load("runs/a/hf").identity
    identity.name                              # 'a/hf'
    identity.refuse_other(other.identity, "the target")     # MismatchError if the weights differ
    names_apart(["runs/a/hf", "runs/b/hf"])    # ['a/hf', 'b/hf']

Limits: a change below the rounding of bfloat16 is not noticed, and a checkpoint in float32 that is
loaded in float16 has another hash.
"""

import hashlib
import json
import os
import re
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lrt_lens.errors import MismatchError

_SAMPLED_TOKENS = 1000
"""Number of vocabulary entries whose tokenization enters a tokenizer's hash."""
_PROBE = "The quick brown fox's 1,234 leaps: naïve café\n\tfoo_bar() 日本語 🙂"
"""Text whose ids already differ between most tokenizers."""

_WORD = (
    "hf|models?|checkpoints?|ckpt|snapshots?|weights|final|best|last|latest|outputs?|export|merged"
    "|global|step|epoch"
)
_GENERIC = re.compile(rf"(?:(?:{_WORD}|\d+)[-_.]?)+|[0-9a-f]{{7,64}}", re.IGNORECASE)
"""Folder names that do not identify a model: 'hf', 'checkpoint-500', 'final_model', a hash."""
_SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/([0-9a-f]{40})$")
"""Path of a snapshot in the cache of the Hugging Face hub."""


@dataclass(frozen=True)
class ModelIdentity:
    """Identity of a model, as every file made for it records it."""

    name: str
    """Name given when loading, hub id, or the end of the folder's path; shown, not compared."""
    revision: str
    """Hub revision that was asked for, or ``"unknown"``; shown, not compared."""
    config_hash: str
    """Hash of all weights, see
    `lrt_lens.models._weights.weights_hash`.
    """
    tokenizer_hash: str
    """Hash of the tokenizer's vocabulary and of the tokens of some fixed texts."""
    d_model: int
    n_layers: int
    basis: str
    """Basis of the residual stream: ``"centred"`` if it has mean 0 over its dimensions (as after
    ``center_writing_weights``), otherwise ``"raw"``.
    """
    prepend_bos: bool
    context_length: int | None = field(default=None, compare=False)
    """Longest text in tokens that the model reads; None in files from before this field. Not
    compared.
    """
    ignores_mean: bool | None = field(default=None, compare=False)
    """True if its norms subtract the mean of the stream over its dimensions (LayerNorm), False if
    not (RMSNorm); None if no norm is known, and in files from before this field. Not compared.
    """
    model_type: str = field(default="", compare=False)
    """``model_type`` of the config of Hugging Face, such as ``"llama"``; empty if unknown. Not
    compared.
    """
    blocks: str = field(default="", compare=False)
    """Name of the list of blocks in the model of Hugging Face, such as ``"model.layers"``; empty if
    unknown. Not compared.
    """
    prefix: Sequence[int] | None = None
    """Ids of the special tokens before every text; None in files from before this field."""

    def __post_init__(self) -> None:
        # Files hold it as a list. A tuple can be compared and hashed.
        if self.prefix is not None:
            object.__setattr__(self, "prefix", tuple(self.prefix))

    def reads_as(self, other: "ModelIdentity") -> bool:
        """Return whether both models split a text into the same tokens, whatever is before it."""
        return self.tokenizer_hash == other.tokenizer_hash

    def same_prefix(self, other: "ModelIdentity") -> bool:
        """Return whether both models may read a text behind the same special tokens."""
        if None in (self.prefix, other.prefix):
            return self.prepend_bos == other.prepend_bos
        return self.prefix == other.prefix

    def refuse_other(self, other: "ModelIdentity", role: str, *, tokens: bool = True) -> None:
        """Raise `MismatchError` if ``other`` is another model than this one.

        Names and revisions are not compared. With ``tokens`` the tokenizer, the BOS policy and the
        prefix must agree too. ``role`` is the subject of the message, such as ``"the target"``.
        """
        compared = ["config_hash", "d_model", "n_layers", "basis"]
        if tokens:
            compared += ["tokenizer_hash", "prepend_bos"]
            # Files from before this field do not tell it.
            compared += ["prefix"] if None not in (self.prefix, other.prefix) else []
        for name in compared:
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise MismatchError(
                    f"{role} is {other.name!r} (revision {other.revision}) with {name} {theirs!r};"
                    f" expected {self.name!r} (revision {self.revision}) with {name} {ours!r}:"
                    " load that model, or fit again on this one"
                )


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash that is equal for tokenizers that split texts into the same ids.

    It covers the vocabulary, and the ids of one fixed text and of a sample of the tokens.
    """
    vocabulary = tokenizer.get_vocab()
    # Sorted, because the order of `get_vocab` can change between processes.
    tokens = sorted(vocabulary)
    entries = list(zip(tokens, map(vocabulary.__getitem__, tokens), strict=True))
    content = json.dumps([entries, _ids(tokenizer, [_PROBE, *_sample(entries)])])
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def same_tokens(first: Any, second: Any) -> bool:
    """Return whether two tokenizers split texts into the same ids, as `tokenizer_hash` tells.

    The answer for two objects is remembered until one of them has other tokens.
    """
    if first is second:
        return True
    # Most tokenizers already differ here, and then no vocabulary is read.
    states = _ids(first, [_PROBE]), _ids(second, [_PROBE])
    if states[0] != states[1]:
        return False
    try:
        references = weakref.ref(first), weakref.ref(second)
        sizes = len(first), len(second)
    except TypeError:  # a wrapper without __len__, or one that allows no weak reference
        return _same_content(first, second)
    return _remembered_same_content(*references, (*sizes, *states[0][0]))


@lru_cache(maxsize=64)
def _remembered_same_content(
    first: "weakref.ref[Any]",
    second: "weakref.ref[Any]",
    state: tuple[int, ...],  # noqa: ARG001 (part of the key: it changes with the tokenizers)
) -> bool:
    """Return `_same_content` of two tokenizers, anew when the sizes and ids in ``state`` change.

    Weak references keep no tokenizer in memory.
    """
    return _same_content(first(), second())


def _same_content(first: Any, second: Any) -> bool:
    """Return whether the vocabularies of two tokenizers and the ids of sampled tokens are equal."""
    vocabulary = first.get_vocab()
    if vocabulary != second.get_vocab():
        return False
    texts = _sample(list(vocabulary.items()))
    return _ids(first, texts) == _ids(second, texts)


def _sample(entries: Sequence[tuple[Any, int]]) -> list[str]:
    """Return texts made of tokens whose ids are evenly spaced.

    Two tokenizers can share a vocabulary and differ in a few merges, which a single sentence would
    not show.
    """
    order = np.argsort(np.fromiter((number for _, number in entries), np.int64), kind="stable")
    tokens = (str(entries[i][0]) for i in order[:: max(1, len(order) // _SAMPLED_TOKENS)])
    return [f"a{token.replace('Ġ', ' ').replace('▁', ' ')}" for token in tokens]


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def model_name(path_or_id: str, n_parts: int = 1) -> str:
    """Return a hub id as it is, or the last ``n_parts`` parts of a local folder's path.

    A part that says nothing about the model ('hf', 'checkpoint-500') is preceded by its parent
    folder. A snapshot in the hub's cache has its hub id as name; from two parts on, also the start
    of its commit hash.
    """
    if not Path(path_or_id).exists():
        return path_or_id
    # Absolute, because "." has no name; links are not followed, because users choose their names.
    path = Path(os.path.abspath(path_or_id))
    if snapshot := _SNAPSHOT.search(path.as_posix()):
        hub_id = snapshot[1].replace("--", "/")
        return hub_id if n_parts == 1 else f"{hub_id}@{snapshot[2][:7]}"
    parts = path.relative_to(path.anchor).parts
    while n_parts < len(parts) and _GENERIC.fullmatch(parts[-n_parts]):
        n_parts += 1
    return "/".join(parts[-n_parts:])


def names_apart(
    paths_or_ids: Sequence[str], names: Iterable[str | None] = (None, None)
) -> list[str]:
    """Return a name per model, with as many parts of the paths as make the names distinct.

    Names in ``names`` are used unchanged. Two equal paths get the same short name.
    """
    fixed = list(names)
    longest = max(len(Path(os.path.abspath(path)).parts) for path in paths_or_ids)
    for n_parts in range(1, longest + 1):
        labels = [
            name or model_name(path, n_parts)
            for path, name in zip(paths_or_ids, fixed, strict=True)
        ]
        if len(set(labels)) == len(labels):
            return labels
    return [name or model_name(path) for path, name in zip(paths_or_ids, fixed, strict=True)]
