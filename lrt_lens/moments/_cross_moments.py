"""Cross-moments: the sums (n, Σx, Σy, Σxxᵀ, Σyyᵀ, Σxyᵀ) that give every map and every score.

Problem: fitting and scoring many maps on the activations of two models would need all rows for each
map. Mechanism: a linear map and its held-out error depend on the data only through second moments,
so one pass over both models is enough for all maps, penalties, hook pairs and held-out scores.
`CrossMoments` holds, for each *part* of the documents (by default five folds that fit and eight
groups that test; see `lrt_lens.data._parts`) and about a fixed shift of each hook point:

    n, Σx, Σy, Σxxᵀ, Σyyᵀ, Σxyᵀ     products in float32 or float64, sums in float64

Products of rows far from the shift, and of single huge rows, keep their precision
(`lrt_lens.moments._centred_rows`). A row that holds more than half of a hook point's variance is
named in a warning.

Sums of shards, ranks and folds can be added exactly, their size does not depend on the number of
tokens, and no model is needed to use them:

    moments = CrossMoments.from_activations(x, y, documents=ids)
    grid = moments.fit(Ridge())
    moments.save("moments.safetensors")
    moments = CrossMoments.load("moments.safetensors").merge(other)

Limits: second moments give neither the mean of the cosines of single tokens nor maps that are not
linear.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from torch import Tensor

from lrt_lens._byte_sizes import human_bytes
from lrt_lens._late import implementation
from lrt_lens._repr_html import card, facts, table
from lrt_lens._settings import resolve, takes
from lrt_lens._tensor_files import mapped_tensors
from lrt_lens.data._fold_counts import fold_table
from lrt_lens.data._parts import DEFAULT_PARTS
from lrt_lens.errors import MismatchError, TooFewDocumentsError
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._accumulator import Accumulator, add_whole, by_role, start_stored
from lrt_lens.moments._activation_settings import ActivationSettings
from lrt_lens.moments._centred_rows import (
    CentredRows,
    first_shifts,
    pair_products,
    refuse_non_finite,
    refuse_other_widths,
)
from lrt_lens.moments._heavy_rows import RowName, trace_about_mean
from lrt_lens.moments._layout import (
    MOMENTS_SCHEMA,
    MomentFile,
    Sums,
    stored_settings,
    to_metadata,
    to_tensors,
)
from lrt_lens.moments._own_null import NullBlock, OpenNull
from lrt_lens.moments._own_rows import Activations, Ids, RowIds
from lrt_lens.moments._placement import Placement, placed
from lrt_lens.moments._provenance import Provenance
from lrt_lens.moments._scatter import Scatter, SecondMoment, SideMoments, cross_at, part_sum
from lrt_lens.moments._sketches import SKETCH_WIDTH, orthonormal_columns

logger = logging.getLogger(__name__)

TEST_PARTS = DEFAULT_PARTS.test
"""Default parts of the documents that are only scored."""
NULL_FIT, NULL_TEST = 0, 1


@dataclass
class CrossMoments(Accumulator):
    """Moments of source and target hook points on the same tokens, per part of the documents.

    Raises:
        ValueError: ``moment_dtype`` is neither float32 nor float64, or ``null`` is unknown.
    """

    pairs: tuple[HookPair, ...]
    """Hook pairs as (source hook point, target hook point)."""
    token_hook: str | None = None
    """Source hook point that stands for token identity; each target is also predicted from it
    (``r2_token``).
    """
    moment_dtype: torch.dtype = torch.float32
    """Precision of products, float32 or float64; sums are float64."""
    null: str = "none"
    """Cross-moments of shuffled pairs: ``"full"``, ``"sketch"`` (64 random dimensions of each
    target) or ``"none"``.
    """
    provenance: Provenance = field(default_factory=Provenance)
    """Models, texts and settings."""
    n: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    """Number of rows [part]; zeros if none are given."""
    source: dict[str, SideMoments] = field(default_factory=dict)
    """Moments of each source hook point; empty before the first row."""
    target: dict[str, SideMoments] = field(default_factory=dict)
    """Moments of each target hook point; empty before the first row."""
    cross: dict[HookPair, Tensor] = field(default_factory=dict)
    """Σ(x − cₓ)(y − c_y)ᵀ of each hook pair [part, d_source, d_target]."""
    cross_null: dict[HookPair, Tensor] = field(default_factory=dict)
    """Sums ``cross`` of shuffled pairs: fitting folds, test fold [2, d_source, d_target or 64]."""
    placement: Placement = field(default_factory=Placement, repr=False, compare=False)
    """Place of the sums."""
    _logged: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    open_null: OpenNull = field(default_factory=OpenNull, init=False, repr=False, compare=False)
    """Documents of rows that a user gave, and rows that wait for their shuffled pairs."""

    schema: ClassVar[str] = MOMENTS_SCHEMA

    def __post_init__(self) -> None:
        self.refuse_other_precision()
        if self.null not in ("none", "sketch", "full"):
            raise ValueError(f"null is {self.null!r}; expected 'none', 'sketch' or 'full'")
        if not len(self.n):
            self.n = self.n.new_zeros(self.parts.n_parts)

    # --------------------------------------------------------------------------------- accumulation

    @classmethod
    @takes(ActivationSettings)
    def from_activations(
        cls,
        x: Activations,
        y: Activations,
        *,
        documents: Ids,
        positions: Ids | None = None,
        tokens: Ids | None = None,
        embedding: Any = None,
        settings: ActivationSettings | None = None,
        **options: Any,
    ) -> "CrossMoments":
        """Return the moments of activations from any library, row by row paired.

        Rows of one document are in one part. The null pairs each row with a row of another
        document, at the same position if there is one. Arrays are never copied as a whole.

        Args:
            x: [token, d_source], of torch or numpy, in memory or in a mapped file; or such arrays
                by layer or hook point. A layer l is ``blocks.{l}.hook_resid_post``, the states
                after block l. ``"hook_embed"`` next to other hook points stands for token identity.
            y: [token, d_target], or arrays by layer or hook point.
            documents: an id of the document of each row.
            positions: position of each row in its window; None: its rank within its document.
            tokens: id of the source's token at each row, for the gain over token identity.
            embedding: the source's embedding [vocabulary, d], from which token identity is
                predicted as in a harvest; None: from one column per frequent token.
            settings: an `ActivationSettings`, whose fields may also be keywords.

        Raises:
            ValueError: there are no rows, or arrays and ids differ in length.
            TypeError: an array is none, or holds no floating point numbers.
            HookPointError: a layer is not on the model, or negative and the model is unknown.
            MismatchError: an array has another width than its model.
            NonFiniteError: an activation is NaN or infinite.
        """
        ids = RowIds(documents, positions, tokens, embedding)
        chosen = resolve(ActivationSettings, settings, options)
        return implementation("CrossMoments.from_activations")(x, y, ids, chosen)

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

        Arguments and errors are those of `from_activations`. The hook points, their widths and the
        kind of token identity stay as they were for the first rows.
        """
        ids = RowIds(documents, positions, tokens, embedding)
        implementation("CrossMoments.update")(self, x, y, ids)

    def add_shuffled(self, block: NullBlock) -> None:
        """Add a block of shuffled pairs to the null, and nothing to the sums of true pairs."""
        x, y = (
            {
                hook: CentredRows.of(
                    rows, side[hook].shift.to(rows.device), self.moment_dtype, second=False
                )
                for hook, rows in streams.items()
            }
            for side, streams in ((self.source, block.x), (self.target, block.y))
        )
        self._add_shuffled(NULL_TEST if block.is_test else NULL_FIT, x, y, block.pairing)

    def add_block(
        self,
        part: int,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        pairing: Tensor | None = None,
        *,
        name: RowName | None = None,
    ) -> None:
        """Add paired rows ``{hook point: [row, d]}`` of one part.

        `Accumulator.add_block` has arguments and errors.
        """
        self._make_ready(x, y)
        self._add(part, x, y, pairing, name)

    def _make_ready(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        """Refuse unfit rows, and allocate the sums if these rows are the first."""
        # All checks come before the first sum, so that a bad batch leaves the moments as they were.
        refuse_non_finite([*x.items(), *y.items()], self.n)
        if not self.source:
            self._start_with_mean_of(x, y)
        for streams, side in ((x, self.source), (y, self.target)):
            refuse_other_widths(streams, {hook: len(m.shift) for hook, m in side.items()})

    def _add(
        self,
        part: int,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        pairing: Tensor | None = None,
        name: RowName | None = None,
    ) -> None:
        dtype, add = self.moment_dtype, self.placement.add
        rows_x, rows_y = (
            {
                hook: CentredRows.of(rows, side[hook].shift.to(rows.device), dtype)
                for hook, rows in streams.items()
            }
            for side, streams in ((self.source, x), (self.target, y))
        )
        self._add_sides(part, {"source": rows_x, "target": rows_y}, name)
        for hook_pair, product in pair_products(self.kept_pairs, rows_x, rows_y):
            add(self.cross[hook_pair][part], product)
        if pairing is not None and self.null != "none":
            half = NULL_FIT if part in self.parts.fit else NULL_TEST
            self._add_shuffled(half, rows_x, rows_y, pairing)

    def _add_shuffled(
        self,
        half: int,
        rows_x: Mapping[str, CentredRows],
        rows_y: Mapping[str, CentredRows],
        pairing: Tensor,
    ) -> None:
        """Add products of shuffled pairs to one half of the null, fitting or test fold."""
        # Null: Σ(x_i − cₓ)(y_π(i) − c_y)ᵀ, or with Q [d_target, 64] of `sketch`
        #       Σ(x_i − cₓ)(y_π(i) − c_y)ᵀQ, whose size does not grow with d_target
        bases = {hook: self.sketch(hook) for hook in self.target_hooks}
        products = pair_products(self.pairs, rows_x, rows_y, pairing, bases)
        for hook_pair, product in products:
            self.placement.add(self.cross_null[hook_pair][half], product)

    def _add_sides(
        self, part: int, blocks: Mapping[str, Mapping[str, CentredRows]], name: RowName | None
    ) -> None:
        """Add the sums of each hook point, and record rows that are much longer than others."""
        longest, n_rows = {}, 0
        for role, side in (("source", self.source), ("target", self.target)):
            for hook, block in blocks[role].items():
                raw = block.raw if part in self.parts.fit else None
                side[hook].add(part, block.sums(), raw, self.placement.add)
                n_rows = len(block.raw)
                longest[f"{role} {hook}"] = block.heaviest()
        self.record_heaviest(longest, name)
        self.n[part] += n_rows

    def finish(self) -> None:
        """Add the shuffled pairs of rows that wait for them, and products on their way."""
        if self.open_null.is_waiting:
            for block in self.open_null.close():
                self.add_shuffled(block)
            self.warn_once(self.open_null.warning())
        self.placement.finish()

    def trace(self, role: str, hook: str) -> float | None:
        """Return the trace of the scatter of all rows at a hook point; None without sums of it."""
        self.placement.finish()
        side = (self.source if role == "source" else self.target).get(hook)
        return side and trace_about_mean(side.total, side.squares, self.n)

    def start(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        """Allocate the sums on the device of the first rows, with their mean as shift."""
        if not self.source:
            refuse_non_finite([*x.items(), *y.items()], self.n)
            self._start_with_mean_of(x, y)

    def _start_with_mean_of(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        self.start_at(*(first_shifts(side, self.moment_dtype) for side in (x, y)))

    def start_from(self, origin: Mapping[str, Tensor]) -> None:
        """Allocate empty sums about the shifts of an origin, ``{"shift/ROLE/HOOK": [d]}``."""
        self.start_at(*by_role(origin, "shift").values())

    def start_at(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        """Allocate empty sums about these shifts, ``{hook point: [d]}`` per side.

        They live where ``placement`` says, by default on the device of the shifts. All shards
        and ranks of one run use the same shifts.
        """
        # Sums about another origin are given up first, because both may not fit.
        self.placement.finish()
        self.source, self.target, self.cross, self.cross_null = {}, {}, {}, {}
        self.open_null = OpenNull()
        first, n_parts = next(iter(x.values())), self.parts.n_parts
        device = self.placement.sums_device or first.device
        zeros = partial(self.placement.zeros, like=first)
        # The shift is rounded to the precision of products, so float64 holds it exactly.
        self.source, self.target = (
            {
                hook: SideMoments.zeros(shift.to(device), zeros, n_parts)
                for hook, shift in side.items()
            }
            for side in (x, y)
        )
        self.n = self.n.to(device)
        for s, t in self.kept_pairs:
            d_s, d_t = len(self.source[s].shift), len(self.target[t].shift)
            self.cross[s, t] = zeros((n_parts, d_s, d_t))
            if self.null != "none" and (s, t) in self.pairs:
                self.cross_null[s, t] = zeros((2, d_s, self._null_width(d_t)))

    def _null_width(self, d_target: int) -> int:
        return min(SKETCH_WIDTH, d_target) if self.null == "sketch" else d_target

    def sketch(self, hook: str) -> Tensor | None:
        """Return the orthonormal columns [d_target, 64] of the sketched null; None if not sketched.

        They depend on the seed and the width only, so that shards of one run can be added.
        """
        if self.null != "sketch":
            return None
        side = self.target[hook]
        d = len(side.shift)
        basis = orthonormal_columns(d, self._null_width(d), self.provenance.seed)
        return basis.to(side.shift.device)

    # -------------------------------------------------------------------------------------- reading

    @property
    def is_begun(self) -> bool:
        """True if the sums are allocated; before the first row there are none."""
        return bool(self.source)

    @property
    def folds(self) -> pd.DataFrame:
        """Number of documents (NA if unknown), tokens and share of tokens of each fold."""
        tokens = [int(n) for n in self.n]
        return fold_table(self.provenance.part_documents, tokens, self.parts)

    @property
    def n_bytes(self) -> int:
        """Size of all sums in memory, in bytes; a file is slightly larger."""
        sides = [
            tensor
            for side in (self.source, self.target)
            for m in side.values()
            for tensor in (m.shift, m.total, m.second, m.norms)
        ]
        return sum(
            tensor.nbytes
            for tensor in (self.n, *sides, *self.cross.values(), *self.cross_null.values())
        )

    def scatter(self, hook_pair: HookPair, parts: Sequence[int]) -> Scatter:
        """Return the centred scatter sums of one hook pair over some parts.

        Raises:
            TooFewDocumentsError: the parts hold fewer than two rows.
        """
        self.placement.finish()
        index = list(parts)
        n = float(self.n[index].sum())
        if n < 2:
            raise TooFewDocumentsError(
                f"parts {index} hold {int(n)} rows of {hook_pair}; "
                "every fold and the test fold need documents: give more"
            )
        x, y = self.source[hook_pair[0]], self.target[hook_pair[1]]
        total_x, total_y = x.total[index].sum(0), y.total[index].sum(0)
        # With sₓ = Σ(x − cₓ):  x̄ = cₓ + sₓ/n,  Sxy = Σ(x − cₓ)(y − c_y)ᵀ − sₓ·s_yᵀ/n
        return Scatter(
            n=n,
            mean_x=x.shift + total_x / n,
            mean_y=y.shift + total_y / n,
            xy=torch.addr(part_sum(self.cross[hook_pair], index), total_x, total_y, alpha=-1 / n),
            second_x=SecondMoment(x.second, total_x, n, index),
            second_y=SecondMoment(y.second, total_y, n, index),
        )

    def null_scatter(self, hook_pair: HookPair, test: bool) -> Scatter:
        """Return the scatter of shuffled pairs: of the test fold if ``test``, else of all folds.

        If the null is sketched, the target side is projected onto the columns of `sketch`.

        Raises:
            ValueError: these moments have no null.
        """
        if not self.cross_null:
            raise ValueError(
                "these moments hold no shuffled pairs; harvest, or give activations, with null=True"
            )
        self.finish()
        parts = self.parts.test if test else self.parts.fit
        truth, index = self.scatter(hook_pair, parts), list(parts)
        source, target = hook_pair
        x, y, basis = self.source[source], self.target[target], self.sketch(target)
        total_y = y.total[index].sum(0)
        total_y = total_y if basis is None else total_y @ basis
        # Sxy = Σ(x_i − cₓ)(y_π(i) − c_y)ᵀQ − sₓ·(s_yᵀQ)/n. Every row is paired once, so Sxx, Syy
        # and the means are those of the true pairs.
        cross = (
            self.cross_null[hook_pair][int(test)]
            - torch.outer(x.total[index].sum(0), total_y) / truth.n
        )
        return truth.with_target(cross, basis)

    def fit(
        self, solver: Any = None, *, pairs: Sequence[HookPair] | None = None, progress: bool = False
    ) -> Any:
        """Return the `StitchGrid` of all hook pairs, or of ``pairs``; needs no model.

        Equal to ``lrt_lens.fit_grid(moments, solver)``; ``solver`` is `Ridge` if None.
        """
        return implementation("CrossMoments.fit")(self, solver, pairs=pairs, progress=progress)

    def merge(self, other: "CrossMoments") -> "CrossMoments":
        """Return the moments of the rows of both, about the shifts of this one.

        Raises:
            MismatchError: they are not parts of one harvest; the message names what differs.
        """
        self._refuse_other_settings(other)
        for one in (self, other):
            one.finish()
        provenance = self.provenance.merged(other.provenance)
        if not self.source or not other.source:
            return replace(self if self.source else other, provenance=provenance)
        for theirs, side in ((other.source, self.source), (other.target, self.target)):
            totals = {hook: m.total for hook, m in theirs.items()}
            refuse_other_widths(totals, {hook: len(m.shift) for hook, m in side.items()})
        source, target = (
            {hook: side[hook].merged(others[hook], other.n) for hook in side}
            for side, others in ((self.source, other.source), (self.target, other.target))
        )
        # `cross` has one slice per part; the null has two: the fitting folds and the test fold.
        single_parts = [(part,) for part in range(self.parts.n_parts)]
        cross = {
            hook_pair: self.cross[hook_pair]
            + self._reshifted(other, hook_pair, other.cross[hook_pair], other.n, single_parts)
            for hook_pair in self.kept_pairs
        }
        theirs, groups = other.cross_null, (self.parts.fit, self.parts.test)
        n_null = torch.stack([other.n[list(parts)].sum() for parts in groups])
        cross_null = {
            hook_pair: null
            + self._reshifted(
                other, hook_pair, theirs[hook_pair], n_null, groups, self.sketch(hook_pair[1])
            )
            for hook_pair, null in self.cross_null.items()
        }
        return replace(
            self,
            provenance=provenance,
            n=self.n + other.n,
            source=source,
            target=target,
            cross=cross,
            cross_null=cross_null,
            # These sums are new tensors.
            placement=Placement(),
        )

    def _refuse_other_settings(self, other: "CrossMoments") -> None:
        if (self.kept_pairs, self.null, self.moment_dtype) != (
            other.kept_pairs,
            other.null,
            other.moment_dtype,
        ):
            ours, theirs = (
                f"{len(one.pairs)} pairs, null {one.null!r}, {one.moment_dtype}"
                for one in (self, other)
            )
            raise MismatchError(
                f"moments of other pairs or precision: {ours} and {theirs}; "
                "harvest every shard with the same arguments"
            )

    def _reshifted(self, other: "CrossMoments", hook_pair: HookPair, *sums: Any) -> Tensor:
        """Return cross-moments of ``other`` about our shifts; ``sums`` are those of `cross_at`."""
        source, target = hook_pair
        sides = (other.source[source], other.target[target])
        return cross_at((self.source[source].shift, self.target[target].shift), sides, *sums)

    # ---------------------------------------------------------------------------------------- files

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums by their names in a file, as views of these moments' own storage."""
        self.finish()
        sums = Sums(self.n, self.source, self.target, self.cross, self.cross_null)
        return to_tensors(sums, self.parts)

    def metadata(self) -> dict[str, str]:
        """Return the metadata of these moments in a file."""
        return to_metadata(
            self.pairs, self.token_hook, self.moment_dtype, self.null, self.provenance
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        placement: Literal["device", "disk"] = "device",
        placement_folder: str | Path | None = None,
    ) -> "CrossMoments":
        """Return the moments that `save` wrote.

        Args:
            path: the file.
            placement: ``"device"``: the sums are in memory; ``"disk"``: in a mapped file.
            placement_folder: folder of the mapped file, see `HarvestSettings`.

        Raises:
            FileFormatError: the file is truncated, of another kind or of another schema.
            ValueError: the disk has no room for a mapped file.
        """
        path = Path(path)
        if placement == "disk":
            return cls._load_mapped(path, placement_folder)
        file = MomentFile.read(path)
        moments = cls(**file.settings)
        sums = file.sums(moments.kept_pairs)
        moments.n, moments.source, moments.target = sums.n, sums.source, sums.target
        moments.cross, moments.cross_null = sums.cross, sums.cross_null
        return moments

    @classmethod
    def _load_mapped(cls, path: Path, folder: str | Path | None) -> "CrossMoments":
        """Return the moments of a file in a mapped file, one tensor at a time."""
        opened = mapped_tensors(path, MOMENTS_SCHEMA)
        place = placed("disk", "cpu", path.stat().st_size, folder=folder)
        moments = cls(**stored_settings(path, opened.metadata), placement=place)
        start_stored(moments, opened)
        # Moments of joint hook points have no null, whatever the harvest had.
        moments.cross_null = {
            (s, t): null
            for (s, t), null in moments.cross_null.items()
            if f"null/{s}/{t}" in opened.names
        }
        add_whole(moments, path)
        return moments

    def __repr__(self) -> str:
        null = f", null {self.null!r}" if self.cross_null else ""
        return (
            f"CrossMoments({self.n_tokens:,} tokens, {len(self.pairs)} pairs, "
            f"{self.parts.n_folds} folds + test in {self.parts.n_test_groups} groups{null})"
        )

    def _repr_html_(self) -> str:
        origin = self.provenance
        sides = {"source": (origin.source, self.source), "target": (origin.target, self.target)}
        models = {
            role: f"{model.name if model else 'unknown model'}, {len(hooks)} hook points "
            f"of {max(len(m.shift) for m in hooks.values())} dimensions"
            for role, (model, hooks) in sides.items()
            if hooks
        }
        sums = {
            "tokens": self.n_tokens,
            "documents": origin.n_documents or "unknown",
            "longer than the cap": origin.n_capped or None,
            "pairs": len(self.pairs),
            "folds": f"{self.parts.n_folds} that fit ({self.n_fit:,} tokens), "
            f"{self.parts.n_test_groups} groups that test ({self.n_tokens - self.n_fit:,})",
            "shuffled pairs": self.null,
            "size": human_bytes(self.n_bytes),
            "corpus": origin.corpus or None,
        }
        folds = self.folds.rename(columns={"share": "share of tokens"}).reset_index()
        return card("CrossMoments", facts(models | sums), table(folds))
