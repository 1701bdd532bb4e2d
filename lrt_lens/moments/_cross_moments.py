"""Cross-moments: the currency of the package.

A linear map and its held-out error depend on the data only through second moments, so one pass over
two models is enough for every map, every penalty, every layer pair and every held-out score.
`CrossMoments` holds, for each *part* of the documents (five folds that fit, eight groups that test;
see `lrt_lens.data._blocks`):

    n, Σx, Σy, Σxxᵀ, Σyyᵀ, Σxyᵀ          about a fixed shift, products in float32 or float64, sums in float64

They add: shards, ranks and folds merge exactly. They do not grow with the number of tokens. And
they need no model:

    moments = CrossMoments.from_activations(x, y, documents=ids)     # rows of your own, from any library
    grid = moments.fit(Ridge())                                      # a StitchGrid
    moments.save("moments.safetensors"); CrossMoments.load("moments.safetensors").merge(other)

Limits: second moments say nothing about a per-token mean of cosines, nor about maps that are not
linear.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens._byte_sizes import human_bytes
from lrt_lens._files import write_tensors
from lrt_lens._late import implementation
from lrt_lens._repr_html import card, facts
from lrt_lens.data._blocks import N_FOLDS, N_PARTS, N_TEST_GROUPS, part_of
from lrt_lens.data._documents import document_key
from lrt_lens.errors import MismatchError, NonFiniteError, TooFewDocumentsError
from lrt_lens.moments._layout import MOMENTS_SCHEMA, MomentFile, Sums, to_metadata, to_tensors
from lrt_lens.moments._provenance import Provenance
from lrt_lens.moments._scatter import Scatter, SecondMoment, part_sum
from lrt_lens.moments._side_moments import SideMoments, full_precision

Pair = tuple[str, str]
FIT_PARTS = tuple(range(N_FOLDS))
TEST_PARTS = tuple(range(N_FOLDS, N_PARTS))
NULL_FIT, NULL_TEST = 0, 1
SKETCH_WIDTH = 64
"""Dimensions that the sketched null keeps of a target hook: ridge is separable over outputs, so its
R² is an unbiased sample.
"""
_ROWS_AT_ONCE = 4096


@dataclass
class CrossMoments:
    """Moments of source and target hook points on the same tokens; see the module docstring."""

    pairs: tuple[Pair, ...]
    """(source hook, target hook) whose cross-moments are kept."""
    token_hook: str | None = None
    """Source hook point that stands for token identity: every target is also predicted from it
    (``r2_token``).
    """
    moment_dtype: torch.dtype = torch.float32
    """Precision of products; never below float32, sums are float64."""
    null: str = "none"
    """``"full"``: cross-moments of shuffled pairs are kept whole; ``"sketch"``: 64 random
    dimensions of each target; ``"none"``.
    """
    provenance: Provenance = field(default_factory=Provenance)
    """Which models, tokens and rules."""
    n: Tensor = field(default_factory=lambda: torch.zeros(N_PARTS, dtype=torch.float64))
    """[part], rows."""
    source: dict[str, SideMoments] = field(default_factory=dict)
    target: dict[str, SideMoments] = field(default_factory=dict)
    cross: dict[Pair, Tensor] = field(default_factory=dict)
    """[part, d_source, d_target]."""
    cross_null: dict[Pair, Tensor] = field(default_factory=dict)
    """[fit | test, d_source, d_target or sketch width]."""

    def __post_init__(self) -> None:
        if self.moment_dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"moment_dtype is {self.moment_dtype}; products need torch.float32 or torch.float64"
            )
        if self.null not in ("none", "sketch", "full"):
            raise ValueError(f"null is {self.null!r}; expected 'none', 'sketch' or 'full'")

    # --------------------------------------------------------------------------------- accumulation

    @classmethod
    def from_activations(
        cls,
        x: Tensor,
        y: Tensor,
        *,
        documents: Sequence[Any] | Tensor | np.ndarray,
        source_hook: str = "source",
        target_hook: str = "target",
        moment_dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> "CrossMoments":
        """Moments of rows of your own: ``x`` [token, d_source] and ``y`` [token, d_target],
        ``documents`` an id for every row.

        Rows of one document always share a fold. No shuffled null: rows say nothing of window
        positions.
        """
        moments = cls(
            pairs=((source_hook, target_hook),),
            moment_dtype=moment_dtype,
            provenance=Provenance(seed=seed),
        )
        moments.update(x, y, documents=documents)
        return moments

    def update(
        self, x: Tensor, y: Tensor, *, documents: Sequence[Any] | Tensor | np.ndarray
    ) -> None:
        """Add rows of the only pair; may be called any number of times (a document may come in
        pieces).
        """
        if len(self.pairs) != 1:
            raise ValueError(
                f"update takes moments of one pair; these hold {len(self.pairs)}: use add_block"
            )
        if not len(x) == len(y) == len(documents):
            raise ValueError(
                f"rows do not pair: x has {len(x)}, y {len(y)}, documents {len(documents)}"
            )
        if not len(x):
            raise ValueError("no rows given; x and y need a row per token")
        ids = (
            list(documents.tolist())
            if isinstance(documents, Tensor | np.ndarray)
            else list(documents)
        )
        part_by_id = {
            identifier: part_of(document_key(str(identifier), self.provenance.seed))
            for identifier in set(ids)
        }
        parts = torch.tensor([part_by_id[identifier] for identifier in ids])
        (source_hook, target_hook) = self.pairs[0]
        self._make_ready({source_hook: x}, {target_hook: y})
        for part in parts.unique().tolist():
            chosen = (parts == part).nonzero()[:, 0]
            for rows in chosen.split(_ROWS_AT_ONCE):
                self._add(part, {source_hook: x[rows]}, {target_hook: y[rows]})

    def add_block(
        self,
        part: int,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        pairing: Tensor | None = None,
    ) -> None:
        """Add paired rows of one part, ``{hook: [row, d]}`` a side; ``pairing[i]`` is the row of
        ``y`` that row ``i`` meets under the null.
        """
        self._make_ready(x, y)
        self._add(part, x, y, pairing)

    def _make_ready(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        """Refuse rows that do not belong here before any is added, and begin with the first."""
        self._refuse_non_finite(x, y)
        if not self.source:
            self._start_with_mean_of(x, y)
        self._refuse_other_widths(x, y)

    def _add(
        self,
        part: int,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        pairing: Tensor | None = None,
    ) -> None:
        centred_x = {
            hook: rows.to(self.moment_dtype) - self.source[hook].shift.to(self.moment_dtype)
            for hook, rows in x.items()
        }
        centred_y = {
            hook: rows.to(self.moment_dtype) - self.target[hook].shift.to(self.moment_dtype)
            for hook, rows in y.items()
        }
        for side, centred, raw in ((self.source, centred_x, x), (self.target, centred_y, y)):
            for hook, rows in centred.items():
                side[hook].add(part, rows, raw[hook])
        self.n[part] += len(next(iter(x.values())))
        for pair, product in _products(self.kept_pairs, centred_x, centred_y):
            self.cross[pair][part] += product
        if pairing is not None and self.null != "none":
            shuffled = {
                hook: self._sketched(hook, rows)[pairing] for hook, rows in centred_y.items()
            }
            for pair, product in _products(self.pairs, centred_x, shuffled):
                self.cross_null[pair][NULL_FIT if part < N_FOLDS else NULL_TEST] += product

    def _refuse_non_finite(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        """Before anything is added, so that a bad batch leaves the moments as they were."""
        for hook, rows in [*x.items(), *y.items()]:
            # The sum in float32: a float16 sum of finite numbers may overflow.
            if not torch.isfinite(rows.sum(dtype=torch.promote_types(rows.dtype, torch.float32))):
                raise NonFiniteError(_non_finite(hook, rows, int(self.n.sum())))

    def _refuse_other_widths(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        for side, given in ((self.source, x), (self.target, y)):
            for hook, rows in given.items():
                if rows.shape[1] != len(side[hook].shift):
                    raise MismatchError(
                        f"{hook!r} has {rows.shape[1]} dimensions; these moments were begun with {len(side[hook].shift)}"
                    )

    def start(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        """Allocate on the device of the first rows, shifted by their mean."""
        if not self.source:
            self._refuse_non_finite(x, y)
            self._start_with_mean_of(x, y)

    def _start_with_mean_of(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        # Rounded to the products' precision, so that what is subtracted from the rows is exactly
        # what is kept.
        shift = lambda rows: rows[:_ROWS_AT_ONCE].double().mean(0).to(self.moment_dtype)  # noqa: E731
        self.start_at(
            {hook: shift(rows) for hook, rows in x.items()},
            {hook: shift(rows) for hook, rows in y.items()},
        )

    def start_at(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        """Allocate empty moments about given shifts, ``{hook: [d]}`` a side, on their device:
        shards of one run share theirs.
        """
        self.source = {hook: SideMoments.zeros(shift) for hook, shift in x.items()}
        self.target = {hook: SideMoments.zeros(shift) for hook, shift in y.items()}
        device = next(iter(self.source.values())).shift.device
        self.n = self.n.to(device)
        zeros = {"dtype": torch.float64, "device": device}
        for s, t in self.kept_pairs:
            d_s, d_t = len(self.source[s].shift), len(self.target[t].shift)
            self.cross[s, t] = torch.zeros(N_PARTS, d_s, d_t, **zeros)
            if self.null != "none" and (s, t) in self.pairs:
                self.cross_null[s, t] = torch.zeros(2, d_s, self._null_width(d_t), **zeros)

    def _null_width(self, d_target: int) -> int:
        return min(SKETCH_WIDTH, d_target) if self.null == "sketch" else d_target

    def sketch(self, hook: str) -> Tensor | None:
        """[d_target, 64] orthonormal columns that the sketched null looks through; None where the
        null is whole.
        """
        if self.null != "sketch":
            return None
        d = len(self.target[hook].shift)
        generator = torch.Generator().manual_seed(self.provenance.seed + d)
        basis, _ = torch.linalg.qr(
            torch.randn(d, self._null_width(d), generator=generator, dtype=torch.float64)
        )
        return basis.to(self.target[hook].shift.device)

    def _sketched(self, hook: str, rows: Tensor) -> Tensor:
        basis = self.sketch(hook)
        return rows if basis is None else rows @ basis.to(rows.dtype)

    # -------------------------------------------------------------------------------------- reading

    @property
    def kept_pairs(self) -> tuple[Pair, ...]:
        """The pairs, and those of token identity with every target."""
        if self.token_hook is None:
            return self.pairs
        return tuple(
            dict.fromkeys([*self.pairs, *((self.token_hook, t) for t in self.target_hooks)])
        )

    @property
    def source_hooks(self) -> tuple[str, ...]:
        """Source hook points in the order of the pairs."""
        return tuple(dict.fromkeys(s for s, _ in self.pairs))

    @property
    def target_hooks(self) -> tuple[str, ...]:
        """Target hook points in the order of the pairs."""
        return tuple(dict.fromkeys(t for _, t in self.pairs))

    @property
    def n_tokens(self) -> int:
        """Rows over all parts."""
        return int(self.n.sum())

    @property
    def n_fit(self) -> int:
        """Rows that fit."""
        return int(self.n[list(FIT_PARTS)].sum())

    @property
    def n_bytes(self) -> int:
        """Bytes of all sums: what they take in memory, and nearly what they take in a file."""
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

    def scatter(self, pair: Pair, parts: Sequence[int]) -> Scatter:
        """Centred scatter sums of one pair over some parts, seen from the source;
        TooFewDocumentsError where those hold no row.
        """
        index = list(parts)
        n = float(self.n[index].sum())
        if n < 2:
            raise TooFewDocumentsError(
                f"parts {index} hold {int(n)} rows of {pair}; every fold and the test fold need documents: give more"
            )
        x, y = self.source[pair[0]], self.target[pair[1]]
        total_x, total_y = x.total[index].sum(0), y.total[index].sum(0)
        return Scatter(
            n=n,
            mean_x=x.shift + total_x / n,
            mean_y=y.shift + total_y / n,
            xy=part_sum(self.cross[pair], index) - torch.outer(total_x, total_y) / n,
            second_x=SecondMoment(x.second, total_x, n, index),
            second_y=SecondMoment(y.second, total_y, n, index),
        )

    def null_scatter(self, pair: Pair, test: bool) -> Scatter:
        """The same of shuffled pairs (all fitting folds, or the test fold), the target side seen
        through the sketch if there is one.
        """
        if not self.cross_null:
            raise ValueError(
                "these moments hold no shuffled pairs; harvest with null=True (activations of your own have none)"
            )
        truth = self.scatter(pair, TEST_PARTS if test else FIT_PARTS)
        index = list(TEST_PARTS if test else FIT_PARTS)
        x, y, basis = self.source[pair[0]], self.target[pair[1]], self.sketch(pair[1])
        total_y = y.total[index].sum(0)
        total_y = total_y if basis is None else total_y @ basis
        cross = (
            self.cross_null[pair][int(test)] - torch.outer(x.total[index].sum(0), total_y) / truth.n
        )
        return truth.with_target(cross, basis)

    def fit(
        self, solver: Any = None, *, pairs: Sequence[Pair] | None = None, progress: bool = False
    ) -> Any:
        """Return the `StitchGrid` of all (or the given) hook pairs; needs no model.

        The same as ``lrt_lens.fit_grid(moments, solver)``; ``solver`` is `Ridge` if None.
        """
        return implementation("CrossMoments.fit")(self, solver, pairs=pairs, progress=progress)

    def merge(self, other: "CrossMoments") -> "CrossMoments":
        """The moments of both; `MismatchError` names the first thing in which they are not shards
        of one harvest.
        """
        if (
            self.kept_pairs != other.kept_pairs
            or self.null != other.null
            or self.moment_dtype != other.moment_dtype
        ):
            raise MismatchError(
                f"moments of other pairs or precision: {len(self.pairs)} pairs, null {self.null!r}, {self.moment_dtype} and "
                f"{len(other.pairs)} pairs, null {other.null!r}, {other.moment_dtype}; harvest every shard with the same arguments"
            )
        if not self.source or not other.source:
            begun = self if self.source else other
            return replace(begun, provenance=self.provenance.merged(other.provenance))
        self._refuse_other_widths(
            *({hook: m.total for hook, m in side.items()} for side in (other.source, other.target))
        )
        merged = CrossMoments(
            self.pairs,
            self.token_hook,
            self.moment_dtype,
            self.null,
            self.provenance.merged(other.provenance),
            self.n + other.n,
        )
        merged.source = {
            hook: self.source[hook].merged(other.source[hook], other.n) for hook in self.source
        }
        merged.target = {
            hook: self.target[hook].merged(other.target[hook], other.n) for hook in self.target
        }
        merged.cross = {
            pair: self.cross[pair]
            + self._reshifted(other, pair, other.cross[pair], other.n, range(N_PARTS))
            for pair in self.kept_pairs
        }
        for pair in self.cross_null:
            n = torch.stack([other.n[list(FIT_PARTS)].sum(), other.n[list(TEST_PARTS)].sum()])
            merged.cross_null[pair] = self.cross_null[pair] + self._reshifted(
                other, pair, other.cross_null[pair], n, (FIT_PARTS, TEST_PARTS), sketch=True
            )
        return merged

    def _reshifted(
        self,
        other: "CrossMoments",
        pair: Pair,
        cross: Tensor,
        n: Tensor,
        parts: Any,
        sketch: bool = False,
    ) -> Tensor:
        """``other``'s cross-moments about our shifts."""
        x, y = other.source[pair[0]], other.target[pair[1]]
        move_x, move_y = x.shift - self.source[pair[0]].shift, y.shift - self.target[pair[1]].shift
        total_x = torch.stack(
            [x.total[[p] if isinstance(p, int) else list(p)].sum(0) for p in parts]
        )
        total_y = torch.stack(
            [y.total[[p] if isinstance(p, int) else list(p)].sum(0) for p in parts]
        )
        basis = self.sketch(pair[1]) if sketch else None
        if basis is not None:
            move_y, total_y = move_y @ basis, total_y @ basis
        return (
            cross
            + total_x[:, :, None] * move_y
            + move_x[None, :, None] * total_y[:, None, :]
            + n[:, None, None] * torch.outer(move_x, move_y)
        )

    # ---------------------------------------------------------------------------------------- files

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums by their names in a file, as views of these moments' own storage."""
        return to_tensors(Sums(self.n, self.source, self.target, self.cross, self.cross_null))

    def metadata(self) -> dict[str, str]:
        """Return the metadata of these moments in a file."""
        return to_metadata(
            self.pairs, self.token_hook, self.moment_dtype, self.null, self.provenance
        )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file (to a temporary name, then renamed); returns its path."""
        return write_tensors(
            Path(path), self.tensors(), {"schema_version": MOMENTS_SCHEMA, **self.metadata()}
        )

    @classmethod
    def load(cls, path: str | Path) -> "CrossMoments":
        """Return the moments that `save` wrote.

        Raises:
            FileFormatError: the file is truncated, of another kind or of another schema.
        """
        file = MomentFile.read(Path(path))
        moments = cls(**file.settings)
        sums = file.sums(moments.kept_pairs)
        moments.n, moments.source, moments.target = sums.n, sums.source, sums.target
        moments.cross, moments.cross_null = sums.cross, sums.cross_null
        return moments

    def __repr__(self) -> str:
        null = f", null {self.null!r}" if self.cross_null else ""
        return f"CrossMoments({self.n_tokens:,} tokens, {len(self.pairs)} pairs, {N_FOLDS} folds + test in {N_TEST_GROUPS} groups{null})"

    def _repr_html_(self) -> str:
        origin = self.provenance
        sides = {"source": (origin.source, self.source), "target": (origin.target, self.target)}
        models = {
            role: f"{model.name if model else 'unknown model'}, {len(hooks)} hook points of {max(len(m.shift) for m in hooks.values())} dimensions"
            for role, (model, hooks) in sides.items()
            if hooks
        }
        rest = {
            "tokens": self.n_tokens,
            "documents": origin.n_documents or None,
            "pairs": len(self.pairs),
            "folds": f"{N_FOLDS} that fit ({self.n_fit:,} tokens), {N_TEST_GROUPS} groups that test ({self.n_tokens - self.n_fit:,})",
            "shuffled pairs": self.null,
            "size": human_bytes(self.n_bytes),
            "corpus": origin.corpus or None,
        }
        return card("CrossMoments", facts(models | rest))


def _products(pairs: Sequence[Pair], x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> Any:
    """(pair, XᵀY): one stacked product for the full grid, else one a source hook."""
    targets: dict[str, list[str]] = {}
    for s, t in pairs:
        targets.setdefault(s, []).append(t)
    by_targets: dict[tuple[str, ...], list[str]] = {}
    for s, hooks in targets.items():
        by_targets.setdefault(tuple(hooks), []).append(s)
    for target_hooks, source_hooks in by_targets.items():
        with full_precision():
            product = torch.cat([x[s] for s in source_hooks], 1).T @ torch.cat(
                [y[t] for t in target_hooks], 1
            )
        rows = product.split([x[s].shape[1] for s in source_hooks], 0)
        for s, block in zip(source_hooks, rows, strict=True):
            columns = block.split([y[t].shape[1] for t in target_hooks], 1)
            yield from (((s, t), part) for t, part in zip(target_hooks, columns, strict=True))


def _non_finite(hook: str, rows: Tensor, rows_before: int) -> str:
    bad = int((~torch.isfinite(rows)).any(1).sum())
    return (
        f"{bad} of {len(rows)} activations at {hook!r} are NaN or infinite, in the batch that starts at token {rows_before:,}; "
        "nothing of this batch was added: load the model in float32 or bfloat16 instead of float16, or drop the text"
    )
