"""Rows that a user brings: arrays of any library by hook point, with ids of documents and tokens.

Problem: activations that somebody already has are arrays of several libraries and precisions, at
several hook points per model, sometimes larger than memory; and they say nothing of token identity.
Mechanism: `OwnRows` holds the arrays as they are and returns some rows of all hook points as
tensors, so that nothing is copied as a whole. Token identity is the row of an embedding, or 1 in
the column of the token among the most frequent ones and 0 elsewhere.

    rows = OwnRows.of({3: x}, {5: y}, RowIds(documents), (0, 0), Provenance())
    for part, index in rows.by_part(DEFAULT_PARTS): rows.take(index)

**Columns of frequent tokens.** Ridge from them predicts the mean state of each frequent token, and
one mean for all others. Measured on the bundled pair (100,774 tokens, 3,663 different ones, source
of 128 dimensions, R² of the target's layer 0): embedding 0.469, one column for every token 0.826,
for the 512 most frequent 0.486, for 1,024 of them 0.616. In the same order for layer 2: 0.311,
0.579, 0.368, 0.454. Columns for fewer tokens and random codes for the others were worse (layer 0,
768 and 256 codes: 0.585), codes for all much worse (1,024: 0.463). So the baseline is stronger
there than the embedding's, and gains over it are lower.

Limits: ids must be numbers or texts that can be hashed; a wide embedding that generalises over rare
tokens can be a stronger baseline than the columns, which all rare tokens share.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrt_lens.data._parts import Parts
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.models._hook_points import (
    EMBED,
    RESIDUAL,
    SOURCE,
    TARGET,
    HookPair,
    hooks_of,
    residual_post,
)
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.moments._activation_settings import TOKEN_COLUMNS
from lrt_lens.moments._centred_rows import first_shifts, n_non_finite, non_finite
from lrt_lens.moments._own_null import BothSides
from lrt_lens.moments._provenance import Provenance
from lrt_lens.moments._row_keys import document_keys, parts_of

Ids = Sequence[Any] | Tensor | np.ndarray | pd.Series
"""One id per row."""
Activations = Any
"""An array [row, d] (torch, numpy, a mapped file), or arrays by layer or name of a hook point."""
TOKENS = "frequent_tokens"
"""Name of the source hook point with one column per frequent token."""

_ROWS_AT_ONCE = 4096
"""Rows of a product of true pairs, and of one check for NaN."""


@dataclass(frozen=True)
class RowIds:
    """Ids of the rows of one call, of documents, positions and tokens."""

    documents: Ids
    """Id of the document of each row."""
    positions: Ids | None = None
    """Position of each row in its window; None: its rank within its document."""
    tokens: Ids | None = None
    """Id of the source's token at each row; None if unknown."""
    embedding: Any = None
    """Embedding of the source [vocabulary, d]; None: one column per frequent token."""


@dataclass(frozen=True)
class ArrayRows:
    """Rows of one hook point in an array that stays where it is."""

    hook: str
    values: Tensor | np.ndarray
    """States [row, d]."""
    label: str
    """Name of the array in messages, such as ``"x[3]"``."""

    @classmethod
    def of(cls, hook: str, values: Any, label: str) -> "ArrayRows":
        """Return the rows of an array.

        Raises:
            TypeError: it is no array of floating point numbers.
            ValueError: it is not [row, d].
        """
        if isinstance(values, Sequence) or not hasattr(values, "__array__"):
            raise TypeError(
                f"{label} is of type {type(values).__name__}; expected a torch tensor or a numpy "
                "array [row, d], or a mapping of layers or hook points to such arrays: join a list "
                "with torch.cat or numpy.concatenate"
            )
        if not isinstance(values, Tensor):
            values = np.asarray(values)
        if values.ndim != 2:
            raise ValueError(
                f"{label} has the shape {list(values.shape)}; expected [row, d], one row per "
                "token: leave padding out, flatten [text, position, d] to rows, and repeat the id "
                "of the document for each row"
            )
        floating = (
            values.is_floating_point()
            if isinstance(values, Tensor)
            else values.dtype.kind == "f" or values.dtype.name == "bfloat16"
        )
        if not floating:
            raise TypeError(
                f"{label} is of dtype {values.dtype}; expected floating point numbers, such as "
                "float32, float16 or bfloat16"
            )
        return cls(hook, values.detach() if isinstance(values, Tensor) else values, label)

    @property
    def width(self) -> int:
        """Number of dimensions."""
        return self.values.shape[1]

    def __len__(self) -> int:
        return self.values.shape[0]

    def take(self, index: np.ndarray, device: torch.device) -> Tensor:
        """Return some rows [index, d] on a device, in their own precision."""
        if isinstance(self.values, Tensor):
            return self.values[torch.from_numpy(index).to(self.values.device)].to(device)
        # Indexing with an array copies these rows only, also those of a mapped file.
        rows = self.values[index]
        if rows.dtype.name == "bfloat16":
            # numpy has no bfloat16 of its own: the bits are read as those of torch's.
            return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16).to(device)
        wide = np.float64 if rows.dtype.itemsize > 8 else rows.dtype.newbyteorder("=")
        return torch.from_numpy(rows.astype(wide, copy=False)).to(device)


@dataclass(frozen=True)
class TokenRows:
    """Rows that stand for the tokens: rows of an embedding, or one column per frequent token."""

    hook: str
    tokens: np.ndarray
    """Token id of each row [row]."""
    embedding: ArrayRows | None
    """Embedding [vocabulary, d]; None: a row is 1 in the column of its token and 0 elsewhere."""
    columns: np.ndarray
    """Ids of the tokens that have a column, ascending."""
    label: str = "tokens"

    @classmethod
    def of(cls, tokens: Ids, embedding: Any) -> "TokenRows":
        """Return the rows of these tokens, without columns.

        Raises:
            TypeError: the ids are no whole numbers.
            ValueError: an id is negative, or not a row of the embedding.
        """
        ids, none = whole_numbers(tokens, "tokens"), np.zeros(0, np.int64)
        if embedding is None:
            return cls(TOKENS, ids, None, none)
        matrix = ArrayRows.of(EMBED, embedding, "embedding")
        if len(ids) and int(ids.max()) >= len(matrix):
            raise ValueError(
                f"tokens has the id {int(ids.max())}, and embedding {len(matrix)} rows; expected "
                "the embedding of the tokenizer whose ids these are, [token, d]"
            )
        return cls(EMBED, ids, matrix, none)

    def with_columns(self, fits: np.ndarray, most: int) -> "TokenRows":
        """Return these rows with a column for each of the most frequent tokens of some rows.

        Args:
            fits: whether a row is counted [row].
            most: largest number of columns.
        """
        ids, counts = np.unique(self.tokens[fits], return_counts=True)
        frequent = ids[np.argsort(-counts, kind="stable")[:most]]
        return replace(self, columns=np.sort(frequent))

    @property
    def width(self) -> int:
        """Number of dimensions."""
        return len(self.columns) if self.embedding is None else self.embedding.width

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, index: np.ndarray, device: torch.device) -> Tensor:
        """Return some rows [index, d] on a device."""
        tokens = self.tokens[index]
        if self.embedding is not None:
            return self.embedding.take(tokens, device)
        column = np.searchsorted(self.columns, tokens).clip(max=len(self.columns) - 1)
        known = np.flatnonzero(self.columns[column] == tokens)
        rows = torch.zeros(len(tokens), len(self.columns))
        rows[torch.from_numpy(known), torch.from_numpy(column[known])] = 1
        return rows.to(device)


def _tokens_of(ids: RowIds, sources: Mapping[str, Any]) -> TokenRows | None:
    """Return the rows of the tokens, without columns; None if no tokens are given.

    Raises:
        ValueError: there are both tokens and states of an embedding, or an embedding alone.
    """
    if ids.tokens is None:
        if ids.embedding is not None:
            raise ValueError("embedding is given without tokens; give the token id of each row too")
        return None
    if EMBED in sources:
        raise ValueError(
            f"x has {EMBED!r}, and tokens are given too; both stand for token identity: give one "
            "of them"
        )
    return TokenRows.of(ids.tokens, ids.embedding)


def whole_numbers(ids: Ids, name: str) -> np.ndarray:
    """Return ids as an array of whole numbers [row].

    Raises:
        TypeError: they are no whole numbers.
        ValueError: one is negative, or they are not one per row.
    """
    numbers = np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids)
    if numbers.dtype.kind not in "iu" and numbers.size:
        raise TypeError(f"{name} is of dtype {numbers.dtype}; expected whole numbers, one per row")
    if numbers.ndim != 1 or (numbers.size and int(numbers.min()) < 0):
        raise ValueError(
            f"{name} has the shape {list(numbers.shape)} and the smallest number "
            f"{numbers.min(initial=0)}; expected one number of at least 0 per row"
        )
    return numbers.astype(np.int64)


def hook_name(hook: Any, model: ModelIdentity | None, label: str) -> str:
    """Return the name of a hook point: a whole number l is ``blocks.{l}.hook_resid_post``.

    Raises:
        HookPointError: a layer is counted from the end and the model is unknown, or it does not
            have the layer.
        TypeError: it is neither a whole number nor a text.
    """
    if isinstance(hook, bool) or not isinstance(hook, int | np.integer | str):
        raise TypeError(
            f"{label} has the key {hook!r}; expected a layer (a whole number) or the name of a "
            "hook point, such as 'blocks.3.hook_resid_post'"
        )
    if isinstance(hook, str):
        block = RESIDUAL.fullmatch(hook)
        layer = None if block is None else int(block[1])
    else:
        layer = int(hook)
    if layer is None:
        return str(hook)
    n_layers = None if model is None else model.n_layers
    if n_layers is None and layer < 0:
        raise HookPointError(
            f"{label} has the layer {layer}, and the number of layers is unknown: give the layer "
            "as a number from 0, or the model as source_model=… or target_model=…"
        )
    if n_layers is not None and not -n_layers <= layer < n_layers:
        raise HookPointError(
            f"{label} has the layer {layer}, and {model and model.name!r} has {n_layers} blocks: "
            f"use 0 to {n_layers - 1}, or -1 for the last"
        )
    if isinstance(hook, str):
        return hook
    return residual_post(layer if n_layers is None else layer % n_layers)


def arrays_of(
    values: Activations, label: str, only: int | str, model: ModelIdentity | None
) -> dict[str, ArrayRows]:
    """Return the arrays of one side by the name of their hook point.

    Args:
        values: an array [row, d], or a mapping of layers or hook points to arrays.
        label: ``"x"`` or ``"y"``.
        only: layer or hook point of a single array.
        model: model of this side; None if it is unknown.

    Raises:
        ValueError: the mapping is empty, or names a hook point twice, or an array has the wrong
            shape.
        MismatchError: an array has another width than the model.
    """
    if not isinstance(values, Mapping):
        name = hook_name(only, model, label)
        arrays = {name: ArrayRows.of(name, values, label)}
    else:
        named = [(hook_name(hook, model, label), hook) for hook in values]
        arrays = {
            name: ArrayRows.of(name, values[hook], f"{label}[{hook!r}]") for name, hook in named
        }
        if not arrays or len(arrays) < len(named):
            raise ValueError(
                f"{label} has the hook points {[hook for _, hook in named]}; expected at least "
                "one, each once"
            )
    for name, rows in arrays.items():
        if model is not None and RESIDUAL.fullmatch(name) and rows.width != model.d_model:
            raise MismatchError(
                f"{rows.label} has {rows.width} dimensions, and {model.name!r} has "
                f"{model.d_model}: give the states of that model, or another model"
            )
    return arrays


@dataclass(frozen=True)
class OwnRows:
    """Rows of both sides at several hook points, with the keys of their documents."""

    x: Mapping[str, ArrayRows | TokenRows]
    """Source rows by hook point, those of token identity among them."""
    y: Mapping[str, ArrayRows]
    """Target rows by hook point."""
    documents: Ids
    """Ids of the documents as they were given, for the names of rows."""
    keys: np.ndarray
    """Key of the document of each row [row]."""
    positions: np.ndarray | None
    """Position of each row in its window [row]; None if unknown."""

    @classmethod
    def of(
        cls,
        x: Activations,
        y: Activations,
        ids: RowIds,
        hooks: tuple[int | str, int | str],
        provenance: Provenance,
        *,
        token_columns: int = TOKEN_COLUMNS,
    ) -> "OwnRows":
        """Return rows whose arrays and ids have one length.

        Args:
            x: source rows, an array or arrays by hook point.
            y: target rows.
            ids: ids of the rows.
            hooks: hook points of single arrays.
            provenance: models, seed, parts, and the tokens that have columns.
            token_columns: largest number of frequent tokens, if they are not known yet.

        Raises:
            ValueError: arrays and ids differ in length, or there are no rows, or there are both
                tokens and states of an embedding.
            TypeError: an array is none, or holds no floating point numbers.
        """
        targets = arrays_of(y, "y", hooks[1], provenance.target)
        sources: dict[str, ArrayRows | TokenRows] = {
            **arrays_of(x, "x", hooks[0], provenance.source)
        }
        tokens = _tokens_of(ids, sources)
        positions = None if ids.positions is None else whole_numbers(ids.positions, "positions")
        lengths = {rows.label: len(rows) for rows in (*sources.values(), *targets.values())}
        lengths |= {"documents": len(ids.documents)}
        lengths |= {} if tokens is None else {"tokens": len(tokens)}
        if positions is not None:
            lengths["positions"] = len(positions)
        if len(set(lengths.values())) > 1:
            (first, n), *others = lengths.items()
            counts = "".join(f", {label} {length}" for label, length in others)
            raise ValueError(
                f"rows do not pair: {first} has {n}{counts}; "
                "give one row of x, one of y and one document id per token"
            )
        if not len(ids.documents):
            raise ValueError("x and y have no rows; expected one row per token")
        documents: Any = ids.documents
        # A column of pandas is indexed by its labels, which need not be the numbers of the rows.
        documents = documents.to_numpy() if hasattr(documents, "to_numpy") else documents
        keys = document_keys(documents, provenance.seed)
        if tokens is not None:
            if provenance.frequent_tokens is not None:
                tokens = replace(tokens, columns=np.array(provenance.frequent_tokens))
            elif tokens.embedding is None:
                parts = provenance.parts
                tokens = tokens.with_columns(
                    np.isin(parts_of(keys, parts), parts.fit), token_columns
                )
            sources[tokens.hook] = tokens
        return cls(sources, targets, documents, keys, positions)

    @property
    def frequent_tokens(self) -> tuple[int, ...] | None:
        """Ids of the tokens that have a column; None if token identity is no such columns."""
        tokens = self.x.get(TOKENS)
        return tuple(tokens.columns.tolist()) if isinstance(tokens, TokenRows) else None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def device(self) -> torch.device:
        """Device of the products, that of the first tensor that is not in host memory."""
        for rows in (*self.x.values(), *self.y.values()):
            values = rows.values if isinstance(rows, ArrayRows) else None
            if isinstance(values, Tensor) and values.device.type != "cpu":
                return values.device
        return torch.device("cpu")

    def of_hooks(self, source: Sequence[str], target: Sequence[str]) -> "OwnRows":
        """Return these rows at some hook points only.

        Raises:
            ValueError: there are no rows of one of them.
        """
        for label, arrays, wanted in (("x", self.x, source), ("y", self.y, target)):
            if missing := [hook for hook in wanted if hook not in arrays]:
                raise ValueError(
                    f"{label} has the hook points {list(arrays)}; these moments need {missing} too:"
                    " give rows of all hook points of the first call"
                )
        return replace(
            self,
            x={hook: self.x[hook] for hook in source},
            y={hook: self.y[hook] for hook in target},
        )

    def take(self, index: np.ndarray, pairs: Sequence[HookPair] | None = None) -> BothSides:
        """Return some rows by hook point, of both sides; of ``pairs`` only if they are given."""
        device = self.device
        x, y = (
            {
                hook: rows.take(index, device)
                for hook, rows in side.items()
                if pairs is None or hook in hooks_of(pairs, axis)
            }
            for axis, side in ((SOURCE, self.x), (TARGET, self.y))
        )
        return x, y

    def by_part(self, parts: Parts) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (part, indices of some of its rows), at most 4096 at a time."""
        part_of_row = parts_of(self.keys, parts)
        for part in np.unique(part_of_row):
            index = np.flatnonzero(part_of_row == part)
            for start in range(0, len(index), _ROWS_AT_ONCE):
                yield int(part), index[start : start + _ROWS_AT_ONCE]

    def refuse_non_finite(self, n_before: int) -> None:
        """Raise `NonFiniteError` if a row is NaN or infinite; ``n_before`` rows came earlier."""
        device = self.device
        for hook, rows in (*self.x.items(), *self.y.items()):
            bad = sum(
                n_non_finite(rows.take(index, device))
                for start in range(0, len(self), _ROWS_AT_ONCE)
                for index in [np.arange(start, min(start + _ROWS_AT_ONCE, len(self)))]
            )
            if bad:
                raise non_finite(hook, bad, len(self), n_before)

    def shifts(self, dtype: torch.dtype) -> BothSides:
        """Return the shift of each hook point [d], per side: the mean of the first rows."""
        x, y = self.take(np.arange(min(_ROWS_AT_ONCE, len(self))))
        return first_shifts(x, dtype), first_shifts(y, dtype)
