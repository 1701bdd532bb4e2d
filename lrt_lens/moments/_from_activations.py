"""Moments to which a user adds activations that are already there.

Problem: people have states of nnsight, nnterp, vLLM or a file, at several layers and with the ids
of documents and perhaps of tokens, and want what a harvest gives: one grid of all hook pairs with
shuffled pairs, token identity and the gain over it. Mechanism: `TakesActivations` adds the rows of
each part to the sums, and pairs rows of different documents in blocks for the null
(`lrt_lens.moments._own_null`). Token identity is predicted from the source's embedding, or from one
column per frequent token.

    moments = CrossMoments.from_activations({3: x}, {5: y}, documents=ids, tokens=tokens)
    moments.update({3: more_x}, {5: more_y}, documents=more_ids, tokens=more_tokens)
    grid = moments.fit()

Limits: what is not given is unknown. Documents are counted by their ids, and one that continues
after the moments were saved and loaded, or in moments that are merged, counts twice.
"""

from abc import abstractmethod
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from lrt_lens._settings import resolve, takes
from lrt_lens.models._hook_points import SOURCE, TARGET, HookPair, hooks_of
from lrt_lens.moments._accumulator import Accumulator
from lrt_lens.moments._activation_settings import ActivationSettings
from lrt_lens.moments._centred_rows import refuse_other_width
from lrt_lens.moments._heavy_rows import RowName, document_row
from lrt_lens.moments._own_null import NullBlock, NullPlan, OpenNull
from lrt_lens.moments._own_rows import Activations, BothSides, Ids, OwnRows, RowIds
from lrt_lens.moments._plan import null_kind, rows_of_block
from lrt_lens.moments._provenance import Provenance

Kind = TypeVar("Kind", bound="TakesActivations")
"""A class of moments."""


class TakesActivations(Accumulator):
    """Moments to which a user adds rows; base of `CrossMoments`."""

    _open_null: OpenNull
    """Documents of the rows that were added, and rows that wait for their shuffled pairs."""

    @classmethod
    @abstractmethod
    def _empty(
        cls: type[Kind],
        pairs: tuple[HookPair, ...],
        token_hook: str | None,
        moment_dtype: torch.dtype,
        null: str,
        provenance: Provenance,
    ) -> Kind:
        """Return moments without rows."""

    @abstractmethod
    def _widths(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the dimensions of each hook point that has sums, of both sides."""

    @abstractmethod
    def _add_rows(self, part: int, rows: BothSides, name: RowName) -> None:
        """Add true pairs of one part, which were checked."""

    @abstractmethod
    def _add_null(self, block: NullBlock) -> None:
        """Add shuffled pairs."""

    @abstractmethod
    def start_at(self, x: dict[str, Tensor], y: dict[str, Tensor]) -> None:
        """Allocate empty sums about these shifts, ``{hook point: [d]}`` per side."""

    @classmethod
    @takes(ActivationSettings)
    def from_activations(
        cls: type[Kind],
        x: Activations,
        y: Activations,
        *,
        documents: Ids,
        positions: Ids | None = None,
        tokens: Ids | None = None,
        embedding: Any = None,
        settings: ActivationSettings | None = None,
        **options: Any,
    ) -> Kind:
        """Return the moments of activations from any library, row by row paired.

        Rows of one document are always in one part. The null pairs each row with a row of another
        document, at the same position if there is one. Arrays are read in blocks and never copied
        as a whole.

        Args:
            x: [token, d_source], of torch or numpy, in memory or in a mapped file; or such arrays
                by layer or hook point. A layer l is ``blocks.{l}.hook_resid_post``, the states
                after block l. ``"hook_embed"`` next to other hook points stands for token identity.
            y: [token, d_target], or arrays by layer or hook point.
            documents: an id of the document of each row.
            positions: position of each row in its window; None: its rank within its document.
            tokens: id of the source's token at each row, for scores of token identity and the gain
                over it; None if unknown.
            embedding: the source's embedding [vocabulary, d], from which token identity is
                predicted as in a harvest; None: from one column per frequent token.
            settings: an `ActivationSettings`, whose fields are described there.
            **options: fields of `ActivationSettings` as keywords; they replace those of
                ``settings``.

        Raises:
            ValueError: there are no rows, or arrays and ids differ in length.
            TypeError: an array is none, or holds no floating point numbers.
            HookPointError: a layer is not on the model, or negative and the model is unknown.
            MismatchError: an array has another width than its model.
            NonFiniteError: an activation is NaN or infinite.
        """
        chosen = resolve(ActivationSettings, settings, options).with_identities()
        hooks, provenance = (chosen.source_hook, chosen.target_hook), chosen.provenance
        ids = RowIds(documents, positions, tokens, embedding)
        columns = chosen.token_columns
        rows = OwnRows.of(x, y, ids, hooks, provenance, token_columns=columns)
        pairs, token_hook = chosen.chosen_pairs(rows.x, rows.y)
        widths = (max(one.width for one in side.values()) for side in (rows.x, rows.y))
        null = null_kind(chosen.null, pairs, *widths)
        moments = cls._empty(pairs, token_hook, chosen.dtype, null, provenance)
        moments._add_own(rows)
        moments.warn_of_heavy_rows()
        return moments

    def update(
        self,
        x: Activations,
        y: Activations,
        *,
        documents: Ids,
        positions: Ids | None = None,
        tokens: Ids | None = None,
        embedding: Any = None,
    ) -> None:
        """Add rows; the rows of a document may come in several calls.

        The sums of true pairs do not depend on how rows are divided into calls. Shuffled pairs are
        made among the rows of a call and rows that wait from earlier ones, about 4096 at a time;
        the last ones when the null is read, or the moments are saved or merged. Give rows of many
        documents per call if documents are long.

        The arguments are those of `from_activations`, with the same hook points, and with tokens if
        the first rows had them.

        Raises:
            ValueError: there are no rows of a hook point, or arrays and ids differ in length.
            NonFiniteError: an activation is NaN or infinite.
            MismatchError: an array has another width than before.
        """
        if tokens is not None and self.token_hook is None:
            raise ValueError(
                "tokens are given, and these moments have no token identity: give tokens with the "
                "first rows, to from_activations"
            )
        if not self.pairs:
            raise ValueError("these moments have no hook pair; expected at least one")
        ids = RowIds(documents, positions, tokens, embedding)
        self._add_own(OwnRows.of(x, y, ids, self.pairs[0], self.provenance))

    def _add_own(self, rows: OwnRows) -> None:
        rows = rows.of_hooks(*(hooks_of(self.kept_pairs, side) for side in (SOURCE, TARGET)))
        # All checks come before the first sum, so that a bad call leaves the moments as they were.
        before = self.n_tokens
        rows.refuse_non_finite(before)
        if not self.is_begun:
            self.start_at(*rows.shifts(self.moment_dtype))
        for side, widths in zip((rows.x, rows.y), self._widths(), strict=True):
            for hook, one in side.items():
                refuse_other_width(hook, one.width, widths[hook])
        for part, index in rows.by_part(self.parts):
            name = partial(document_row, index, before, rows.documents)
            self._add_rows(part, rows.take(index), name)
        positions, new = self._open_null.count(rows, self.parts)
        if self.null != "none":
            for block in self._open_null.add(rows, positions, self._null_plan):
                self._add_null(block)
        self.provenance = replace(
            self.provenance.with_documents(sum(new), part_documents=new),
            frequent_tokens=rows.frequent_tokens,
        )

    def _close_null(self) -> None:
        """Add the shuffled pairs of the rows that wait; warn if too many are of one document."""
        if self._open_null.is_waiting:
            for block in self._open_null.close(self._null_plan):
                self._add_null(block)
            self.warn_once(self._open_null.warning())

    @property
    def _null_plan(self) -> NullPlan:
        """Settings of the blocks of shuffled pairs."""
        widths = (max(side.values()) for side in self._widths())
        block_rows = rows_of_block("auto", self.pairs, self.token_hook, *widths)
        return NullPlan(self.parts, self.pairs, block_rows, self.provenance.seed)
