"""Settings of a harvest, written once for `harvest`, `plan_harvest`, `fit_stitches` and `survey`.

    settings = HarvestSettings(target_layers="proportional", n_tokens=1_000_000)
    small, large = ModelShape.of_pretrained("gpt2"), ModelShape.of_pretrained("gpt2-xl")
    plan_harvest(small, large, settings=settings)
    harvest(pair, documents, settings=settings)

Each field may also be passed as a keyword.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lrt_lens._numbers import checked_whole, shown_number
from lrt_lens._settings import Settings
from lrt_lens.data._parts import DEFAULT_PARTS, N_FOLDS, N_TEST_GROUPS, Parts
from lrt_lens.data._windows import MINIMUM_ROWS, Share, refuse_short_windows
from lrt_lens.models._hook_points import Layers
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.moments._placement import PLACES, Place, checked_folder
from lrt_lens.moments._survey_sums import Sketch

LEAST_SOURCE_COLUMNS = 2 * (N_FOLDS + 1)
"""Fewest columns of a predicting stream: two per fold, and for the test fold."""
NULL_COLUMNS = 32
"""Columns of the shuffled pairs of a survey, or all if there are fewer."""
MOST_FILE_SHARES = 1_000_000
"""Largest number of shares of the files."""
Null = bool | Literal["full", "sketch", "none"]
"""Values of ``null=``; see `HarvestSettings`."""


@dataclass(frozen=True)
class HarvestSettings(Settings):
    """Settings that decide the numbers of a harvest, and ``batch_tokens``.

    Raises:
        ValueError: a value is out of its range.
    """

    source_layers: Layers = "all"
    """Hook points of the source; ``"all"`` is every ``hook_resid_post``."""
    target_layers: Layers = "all"
    """Hook points of the target; ``"proportional"`` pairs equal relative depths."""
    pairs: Sequence[tuple[int | str, int | str]] | None = None
    """Hook pairs (source, target) instead of all of these layers, such as ``survey.best(8)``."""
    n_tokens: int | None = 200_000
    """Unmasked tokens after which no further document is read; None reads all documents. The
    test fold gives a sixth of them and the fitting folds equal shares of the others, as far as
    their documents last.
    """
    max_document_tokens: int | Literal["auto"] | None = "auto"
    """Largest number of unmasked tokens per document. ``"auto"``: a 200th of ``n_tokens``, at least
    one window, also per group and for all copies of a text, and more only if the documents end
    before ``n_tokens``; None: no limit.
    """
    text_field: str | None = None
    """Column of the texts in files and tables; None: ``text``, else ``messages`` (chats), else the
    only column with texts.
    """
    group: Any = None
    """Documents that share a fold (one book, one conversation): a column, one value per document,
    or a function of a row; None: each document is on its own.
    """
    context_length: int = 256
    """Tokens per window, BOS included; cut to the length that both models can read."""
    seed: int = 0
    """Seed of the folds and of the shuffled pairs."""
    n_folds: int = N_FOLDS
    """Cross-validation folds, 2 to 20. Moments hold one set of sums per fold and per test group,
    and take memory in proportion. The test fold has the same documents for any number.
    """
    n_test_groups: int = N_TEST_GROUPS
    """Groups of documents inside the test fold, 1 to 64, for intervals of its scores. With one
    group these are NaN.
    """
    null: Null = True
    """Cross-moments of shuffled pairs. True: whole for small grids and sketched for large ones;
    ``"full"`` or ``"sketch"`` in either case; False or ``"none"``: no null.
    """
    skip_first: int = SKIP_FIRST
    """Masked positions at the start of each window."""
    lag: int = 0
    """Control: pair each source position with the target's position this many rows later. The
    score that remains does not come from the pairing of positions.
    """
    batch_tokens: int = 4096
    """Padded tokens per forward pass; changes speed and memory only."""
    block_rows: int | Literal["auto"] = "auto"
    """Unmasked tokens per block, the unit of products, shuffled pairs, checkpoints, ranks and
    shards. ``"auto"``: 4096, and fewer where the rows of all hook points would take more than 4 GB.
    """
    moment_dtype: str | torch.dtype = "float32"
    """Precision of products, ``"float32"`` or ``"float64"``; sums are always float64."""
    placement: Place = "auto"
    """Place of the exact moments: ``"device"`` with the models, ``"host"`` in (pinned) memory, to
    which products are copied while the device goes on, ``"disk"`` in a mapped file; ``"auto"``: the
    device if they fit there beside a block, else the host. It does not change the numbers.
    """
    placement_folder: str | Path | None = None
    """Folder of the mapped file; None: the system's folder for temporary files."""
    joint: bool = False
    """Concatenate all source layers into one hook point, for `ManyToOne`."""
    shard: tuple[int, int] | None = None
    """Shard as (i, N), i from 0: harvest every Nth block only, beginning with block i;
    `merge_shards` adds the moments of all N jobs. With ``file_shares`` it is every Nth share.
    """
    file_shares: int | None = None
    """Shares into which the files of the documents, or the shards of a data set, are divided. Each
    has its own blocks and an equal part of ``n_tokens``, and each rank or shard reads whole shares
    only; give a multiple of the number of processes. The sums do not depend on that number. None:
    all documents are one stream, which every process reads.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_tokens", checked_n_tokens(self.n_tokens))
        if self.lag < 0:
            raise ValueError(
                f"lag is {shown_number(self.lag)}; expected 0, or the number of rows by which "
                "the target is read later"
            )
        for name, least in _LEAST.items():
            if name == "block_rows" and self.block_rows == "auto":
                continue
            number = checked_whole(name, getattr(self, name), least=least)
            object.__setattr__(self, name, number)
        parts = self.parts
        object.__setattr__(self, "n_folds", parts.n_folds)
        object.__setattr__(self, "n_test_groups", parts.n_test_groups)
        refuse_short_windows(self.context_length, self.skip_first)
        cap = checked_cap(self.max_document_tokens)
        object.__setattr__(self, "max_document_tokens", cap)
        if self.shard is not None:
            Share(shard=(checked_whole("shard[0]", self.shard[0], least=0), self.shard[1]))
        if self.file_shares is not None:
            most = self.n_tokens or MOST_FILE_SHARES
            most = min(most, MOST_FILE_SHARES)
            number = checked_whole("file_shares", self.file_shares, least=1, most=most)
            object.__setattr__(self, "file_shares", number)
        if self.placement not in PLACES:
            raise ValueError(f"placement is {self.placement!r}; expected one of {list(PLACES)}")
        if self.placement_folder is not None:
            folder = checked_folder(self.placement, self.placement_folder)
            object.__setattr__(self, "placement_folder", folder)
        if isinstance(self.null, str) and self.null not in ("full", "sketch", "none"):
            raise ValueError(
                f"null is {self.null!r}; expected True, False, 'full', 'sketch' or 'none'"
            )

    @property
    def parts(self) -> Parts:
        """Parts of the documents that these numbers of folds and groups make."""
        return Parts(self.n_folds, self.n_test_groups)


@dataclass(frozen=True)
class SurveySettings(HarvestSettings):
    """Settings of a survey: those of a harvest, and the numbers of random columns.

    A survey always has the default folds, and one part for the whole test fold.

    Raises:
        ValueError: a value is out of its range.
    """

    n_tokens: int | None = 20_000
    """Unmasked tokens after which no further document is read."""
    columns: int = 64
    """Random columns of each predicted hook point; the error of a score falls with their root."""
    source_columns: int | None = None
    """Columns of a randomised transform through which predicting hook points are seen, if they are
    too wide for the memory; None: the whole streams.
    """
    down: bool = False
    """Also survey the maps down, which predict the source from the target."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts != DEFAULT_PARTS:
            raise ValueError(
                f"n_folds is {self.n_folds} and n_test_groups {self.n_test_groups}; a survey "
                f"always has {N_FOLDS} folds and the whole test fold: leave both out, and give "
                "them to the harvest that follows (its test fold has the same documents)"
            )
        if self.placement != "auto":
            raise ValueError(
                f"placement is {self.placement!r}; the sums of a survey are small and live with "
                "the models: leave it out, and give it to the harvest that follows"
            )
        object.__setattr__(self, "columns", checked_whole("columns", self.columns, least=2))
        if self.source_columns is not None:
            number = checked_whole("source_columns", self.source_columns, least=1)
            if number < LEAST_SOURCE_COLUMNS:
                raise ValueError(
                    f"source_columns is {number}; {N_FOLDS} folds with a penalty each need at least"
                    f" {LEAST_SOURCE_COLUMNS}: give more, or None for the whole stream"
                )
            object.__setattr__(self, "source_columns", number)

    @property
    def sketch(self) -> Sketch:
        """Numbers of random columns in the sums."""
        wants_null = self.null not in (False, "none")
        null_columns = min(NULL_COLUMNS, self.columns) if wants_null else 0
        return Sketch(self.columns, null_columns, self.source_columns, self.down)


_LEAST = {
    "context_length": 1,
    "seed": 0,
    "skip_first": 0,
    "lag": 0,
    "batch_tokens": 1,
    "block_rows": 1,
}
"""Smallest value of each whole number."""


def checked_n_tokens(n_tokens: Any) -> int | None:
    """Return a number of tokens as an int (1e6 is one), or None.

    Raises:
        ValueError: it is no positive whole number.
    """
    if n_tokens is None or _is_whole(n_tokens, minimum=1):
        return n_tokens if n_tokens is None else int(n_tokens)
    raise ValueError(
        f"n_tokens is {shown_number(n_tokens)}; expected a positive number, or None to read all"
        " documents"
    )


def checked_cap(max_document_tokens: Any) -> int | Literal["auto"] | None:
    """Return the largest number of tokens per document as an int, or "auto" or None.

    Raises:
        ValueError: it is something else, or fewer tokens than a window needs.
    """
    if max_document_tokens is None or isinstance(max_document_tokens, str):
        if max_document_tokens in (None, "auto"):
            return max_document_tokens
    elif _is_whole(max_document_tokens, minimum=MINIMUM_ROWS):
        return int(max_document_tokens)
    raise ValueError(
        f"max_document_tokens is {shown_number(max_document_tokens)}; expected 'auto', None, or at"
        f" least {MINIMUM_ROWS} tokens"
    )


def _is_whole(value: Any, minimum: int) -> bool:
    """Return whether a value is a whole number, of whatever type, and not below ``minimum``."""
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(
        value, bool
    )
    return bool(is_number and minimum <= value < 2**63 and value == value // 1)
