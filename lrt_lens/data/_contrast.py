"""Pairs of texts that differ in one concept, and prompts with two continuations to compare."""

import hashlib
import json
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrt_lens.data._document_files import read_records
from lrt_lens.data._document_rows import without_surrogates
from lrt_lens.errors import FileFormatError
from lrt_lens.models._text_codec import column_list


@dataclass(frozen=True)
class ContrastSet:
    """Pairs of texts that differ in one concept.

    ``positive[i]`` shows the concept and ``negative[i]`` its opposite; the rest of both texts is as
    similar as possible.
    """

    positive: Sequence[str]
    negative: Sequence[str]
    name: str = "contrast"

    def __post_init__(self) -> None:
        _as_lists(self, "positive", "negative")
        _check_columns(
            "contrast set", {"positive": self.positive, "negative": self.negative}, minimum=2
        )

    @classmethod
    def from_file(cls, path: str | Path, *, name: str | None = None) -> "ContrastSet":
        """Return the contrast set of a file with the fields positive and negative in each row.

        Files of every kind in `lrt_lens.data._document_files` are read, tables too.

        Raises:
            FileFormatError: there is no such file, it is damaged, or a row lacks a field.
        """
        columns = _columns(path, ("positive", "negative"))
        with refused_rows(path):
            return cls(*columns, name=name or Path(path).name.split(".")[0])

    @classmethod
    def from_jsonl(cls, path: str | Path, *, name: str | None = None) -> "ContrastSet":
        """Return ``from_file(path)``: the earlier name of this method."""
        return cls.from_file(path, name=name)

    def __len__(self) -> int:
        return len(self.positive)

    @property
    def texts(self) -> list[str]:
        """The positive texts, then the negative ones."""
        return [*self.positive, *self.negative]

    @property
    def digest(self) -> str:
        """Hash of the texts; vectors and probes that are learnt from them record it."""
        return hashlib.blake2b(
            json.dumps([list(self.positive), list(self.negative)]).encode(), digest_size=8
        ).hexdigest()

    @staticmethod
    def exchanged_pairs(n: int, seed: int) -> np.ndarray:
        """Return which of n pairs a permutation of labels exchanges, [pair] of bool: half of them.

        Independent coin flips would leave a net difference of order √n pairs.
        """
        swap = np.zeros(n, dtype=bool)
        swap[np.random.default_rng(seed).permutation(n)[: n // 2]] = True
        return swap

    def permuted(self, seed: int = 0) -> "ContrastSet":
        """Return the set with both texts exchanged in a random half of the pairs, as a control.

        Exactly half of the pairs (rounded down) are exchanged, so that the concept cancels out.
        """
        swap = self.exchanged_pairs(len(self), seed)
        rows = [
            (n, p) if exchange else (p, n)
            for p, n, exchange in zip(self.positive, self.negative, swap, strict=True)
        ]
        return ContrastSet(
            [p for p, _ in rows], [n for _, n in rows], name=f"{self.name} (permuted)"
        )

    def split(self, share: float = 0.5, seed: int = 0) -> tuple["ContrastSet", "ContrastSet"]:
        """Return two disjoint sets of pairs, the first with ``share`` of them."""
        first, second = (
            ContrastSet(_select(self.positive, part), _select(self.negative, part), name=self.name)
            for part in _halves(len(self), share, seed)
        )
        return first, second


@dataclass(frozen=True)
class ChoiceItems:
    """Prompts with a positive and a negative continuation, compared by log-probability."""

    prompts: Sequence[str]
    positive: Sequence[str]
    """Continuations that show the concept; they usually start with a space."""
    negative: Sequence[str]
    name: str = "items"
    clusters: Sequence[Hashable] | None = None
    """Label of each item; items of one label are not independent of each other. None: items that
    share a prompt or a continuation are not."""

    def __post_init__(self) -> None:
        _as_lists(self, "prompts", "positive", "negative")
        if self.clusters is not None:
            object.__setattr__(self, "clusters", column_list(self.clusters, "clusters"))
            if len(self.clusters) != len(self.prompts):
                raise ValueError(
                    f"clusters has {len(self.clusters)} labels for {len(self.prompts)} items; give "
                    "one per item"
                )
        _check_columns(
            "choice items",
            {"prompts": self.prompts, "positive": self.positive, "negative": self.negative},
            minimum=1,
        )

    @classmethod
    def from_file(cls, path: str | Path, *, name: str | None = None) -> "ChoiceItems":
        """Return the items of a file with the fields prompt, positive and negative in each row.

        Files of every kind in `lrt_lens.data._document_files` are read, tables too.

        Raises:
            FileFormatError: there is no such file, it is damaged, or a row lacks a field.
        """
        columns = _columns(path, ("prompt", "positive", "negative"))
        with refused_rows(path):
            return cls(*columns, name=name or Path(path).name.split(".")[0])

    @classmethod
    def from_jsonl(cls, path: str | Path, *, name: str | None = None) -> "ChoiceItems":
        """Return ``from_file(path)``: the earlier name of this method."""
        return cls.from_file(path, name=name)

    def __len__(self) -> int:
        return len(self.prompts)

    def split(self, share: float = 0.5, seed: int = 0) -> tuple["ChoiceItems", "ChoiceItems"]:
        """Return two disjoint sets of items, the first with ``share`` of them."""
        first, second = (self.select(part.tolist()) for part in _halves(len(self), share, seed))
        return first, second

    def select(self, index: Sequence[int]) -> "ChoiceItems":
        """Return the items of some numbers, in their order."""
        columns = (
            [texts[i] for i in index] for texts in (self.prompts, self.positive, self.negative)
        )
        clusters = None if self.clusters is None else [self.clusters[i] for i in index]
        return ChoiceItems(*columns, name=self.name, clusters=clusters)


def _as_lists(rows: Any, *names: str) -> None:
    """Replace the columns of a frozen dataclass by lists of texts, in the order of the rows.

    Columns may be pandas Series, whose index says nothing here: `texts[0]` would look it up.
    """
    for name in names:
        column = getattr(rows, name)
        if isinstance(column, str):
            raise ValueError(f"{name} is one text, {column!r}; expected a list of texts")
        object.__setattr__(rows, name, [_plain(text) for text in column_list(column, name)])


def _plain(text: Any) -> Any:
    """Return a text as a plain string that can be encoded; anything else is refused later."""
    return without_surrogates(str(text)) if isinstance(text, str) else text


def _halves(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(n)
    # At least one item on each side, also if the share rounds to 0 or to all.
    cut = min(n - 1, max(1, round(share * n)))
    return order[:cut], order[cut:]


def _select(texts: Sequence[str], index: np.ndarray) -> list[str]:
    return [texts[int(i)] for i in index]


@contextmanager
def refused_rows(path: str | Path) -> Iterator[None]:
    """Name the file in the error for its rows, which is then a `FileFormatError`."""
    try:
        yield
    except ValueError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _columns(path: str | Path, names: tuple[str, ...]) -> list[list[str]]:
    rows = read_records(path)
    for where, row in rows:
        missing = [name for name in names if not isinstance(row.get(name), str)]
        if missing:
            raise FileFormatError(
                f"{where} lacks {missing}; every row needs the texts {list(names)}"
            )
    return [[row[name] for _, row in rows] for name in names]


def _check_columns(what: str, columns: dict[str, Sequence[str]], minimum: int) -> None:
    lengths = {name: len(texts) for name, texts in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{what} does not pair up: {lengths}; give lists of one length")
    if next(iter(lengths.values())) < minimum:
        n_rows = next(iter(lengths.values()))
        raise ValueError(f"{what} holds {n_rows} row(s); give at least {minimum}")
    for name, texts in columns.items():
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{name}[{index}] of the {what} is {text!r}; expected a text")
