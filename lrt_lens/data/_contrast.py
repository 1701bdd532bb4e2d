"""Texts that differ in one concept, and prompts with two continuations to compare.

    ContrastSet(["I love it"] * 2, ["I hate it"] * 2)          # pairs
    ContrastSet(praise, complaints, paired=False)              # two lists that share no order

Problem: a direction can be learnt from texts that differ in nothing but a concept, pair by pair, or
from two piles of texts of any size. Mechanism: the texts of a `ContrastSet` are pairs if both lists
have one length, unless it is said that they are not. What needs no pairs (mean difference, LDA,
permuted labels, groups for intervals, `choose_layers`) takes both kinds; what needs them refuses
the other kind with the reason: the first principal component of differences within pairs, concept
maps, and labels of the target combined with a vector.

Limits: files with one row per pair are read as pairs.
"""

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
    """Texts that differ in one concept: pairs, or two lists of any lengths.

    ``positive[i]`` shows the concept and ``negative[i]`` its opposite; the rest of both texts is as
    similar as possible.
    """

    positive: Sequence[str]
    negative: Sequence[str]
    name: str = "contrast"
    paired: bool | None = None
    """True if ``positive[i]`` belongs to ``negative[i]``. None: lists of one length are pairs."""

    def __post_init__(self) -> None:
        _as_lists(self, "positive", "negative")
        if self.paired is None:
            object.__setattr__(self, "paired", len(self.positive) == len(self.negative))
        columns = {"positive": self.positive, "negative": self.negative}
        _check_columns("contrast set", columns, minimum=2, paired=bool(self.paired))

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
        """Return the number of pairs; of texts that are not paired, that of the shorter list."""
        return min(len(self.positive), len(self.negative))

    def refuse_unpaired(self, use: str) -> None:
        """Raise ValueError if the texts are not pairs; ``use`` says what needs pairs, and why."""
        if not self.paired:
            raise ValueError(
                f"contrast set {self.name!r} has {len(self.positive)} positive and "
                f"{len(self.negative)} negative texts that are not pairs; {use}: give two lists of "
                "one length in which positive[i] belongs to negative[i]"
            )

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

    @staticmethod
    def exchanged_texts(
        n_positive: int, n_negative: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return which texts a permutation of labels exchanges if they are not paired, as bool.

        As many of each side, so that the sides keep their lengths and the concept cancels out.
        """
        # With k exchanged, positive texts are (n₊ − k)/n₊ of the new positive side and k/n₋ of the
        # new negative one: equal shares for k = n₊ n₋/(n₊ + n₋), half of the pairs for n₊ = n₋.
        k = round(n_positive * n_negative / (n_positive + n_negative))
        generator = np.random.default_rng(seed)
        positive, negative = (np.zeros(n, dtype=bool) for n in (n_positive, n_negative))
        for swap in (positive, negative):
            swap[generator.permutation(len(swap))[:k]] = True
        return positive, negative

    def permuted(self, seed: int = 0) -> "ContrastSet":
        """Return the set with both texts exchanged in a random half of the pairs, as a control.

        Exactly half of the pairs (rounded down) are exchanged, so that the concept cancels out. Of
        texts that are not paired, as many of each side change sides (`exchanged_texts`).
        """
        if self.paired:
            swaps = (self.exchanged_pairs(len(self), seed),) * 2
        else:
            swaps = self.exchanged_texts(len(self.positive), len(self.negative), seed)
        sides = exchanged(self.positive, self.negative, *swaps)
        return ContrastSet(*sides, name=f"{self.name} (permuted)", paired=self.paired)

    def split(self, share: float = 0.5, seed: int = 0) -> tuple["ContrastSet", "ContrastSet"]:
        """Return two disjoint sets of pairs (of texts per side), the first with ``share`` of them.

        Raises:
            ValueError: a part would have fewer than two pairs, or texts of a side.
        """
        columns = (self.positive, self.negative)
        first, second = (
            ContrastSet(
                *(_select(column, part) for column, part in zip(columns, parts, strict=True)),
                name=self.name,
                paired=self.paired,
            )
            # Lists of one length are divided alike, so that pairs stay together.
            for parts in zip(*(_halves(len(one), share, seed) for one in columns), strict=True)
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


def exchanged(
    positive: Sequence[Any],
    negative: Sequence[Any],
    from_positive: np.ndarray,
    from_negative: np.ndarray,
) -> tuple[list[Any], list[Any]]:
    """Return both sides after equally many entries have changed sides.

    The i-th entry that leaves a side takes the place of the i-th that leaves the other, so that
    entries of pairs that are exchanged stay pairs. ``from_positive`` and ``from_negative`` are
    masks [entry] of bool.
    """
    new = (list(positive), list(negative))
    places = (np.flatnonzero(from_positive).tolist(), np.flatnonzero(from_negative).tolist())
    for i, j in zip(*places, strict=True):
        new[0][i], new[1][j] = negative[j], positive[i]
    return new


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


def _check_columns(
    what: str, columns: dict[str, Sequence[str]], minimum: int, *, paired: bool = True
) -> None:
    lengths = {name: len(texts) for name, texts in columns.items()}
    if paired and len(set(lengths.values())) > 1:
        raise ValueError(f"{what} does not pair up: {lengths}; give lists of one length")
    if min(lengths.values()) < minimum:
        n_rows = min(lengths.values()) if paired else lengths
        raise ValueError(f"{what} holds {n_rows} row(s); give at least {minimum}")
    for name, texts in columns.items():
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{name}[{index}] of the {what} is {text!r}; expected a text")
