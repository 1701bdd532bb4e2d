"""Stitches from anchors: texts that both models read, one row per text, for any two tokenizers.

    anchors = Anchors.read(pair, texts, source_hook=2, target_hook=3)  # or (source, target)
    stitch = anchors.stitch(AnchorProcrustes())  # methods: `ANCHOR_METHODS`
    stitch.transfer(vector), stitch.transfer(probe), stitch.transfer(sae)
    stitch = anchor_stitch(pair, texts, source_hook=2, target_hook=3)  # both in one call

Problem: a map between models of two families needs pairs of states, and their tokens do not
correspond. Mechanism: the row of a text is the mean over its tokens (or the last one), which every
model has; both directions are fitted on the same anchors, each by itself. ``scores`` are those of
anchors held out in turn (``r2`` and ``r2_cv`` are one number: no method here chooses by it),
``refits`` are the maps fitted without them, ``null`` is the same method on shuffled pairs of
anchors.

Limits: anchors number hundreds, dimensions too: with n < d a linear map interpolates, and
directions outside the span of the anchors are lost. Means over texts vary less than tokens and
along other directions, so a map of texts may be a poor map of tokens: see
`evaluate_family_baselines`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrt_lens.baselines._anchor_methods import AnchorMethod, AnchorProcrustes
from lrt_lens.baselines._text_rows import RowRead, TextRows, read_text_rows
from lrt_lens.data._parts import exact_key
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._pair import ModelPair, model_sides, paired_hooks
from lrt_lens.models._reading import ShortTexts, readable, row_rule
from lrt_lens.models._text_codec import text_list
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.moments._provenance import Provenance, package_versions
from lrt_lens.moments._scatter import r2_of
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)

N_FOLDS = 5
"""Number of folds of anchors that are held out in turn."""
Models = ModelPair | tuple[ModelLike, ModelLike]
"""A `ModelPair`, or (source, target) of any two tokenizers."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """Anchors: texts whose rows are known in both models."""

    source: TextRows
    """Rows of the texts in the source model."""
    target: TextRows
    """Rows of the same texts in the target model."""
    source_hook: str
    """Hook point of the source."""
    target_hook: str
    """Hook point of the target."""
    provenance: Provenance
    """Models, texts, mask and seed."""
    n_dropped: int = 0
    """Number of texts left out because the mask leaves nothing of them in one of the models."""

    @classmethod
    def read(
        cls,
        models: Models,
        texts: Sequence[str],
        *,
        source_hook: int | str,
        target_hook: int | str,
        read: RowRead = "mean",
        skip_first: int = SKIP_FIRST,
        short_texts: ShortTexts = "drop",
        seed: int = 0,
    ) -> "Anchors":
        """Return the rows of the texts in both models.

        Args:
            models: a `ModelPair`, or (source, target) of any two tokenizers.
            texts: the anchors, all different.
            source_hook: hook point of the source.
            target_hook: hook point of the target.
            read: ``"mean"`` over a text's unmasked tokens, or the ``"last"`` one.
            skip_first: number of masked tokens at the beginning of a text.
            short_texts: what happens to texts that the mask leaves nothing of in one of the models:
                ``"drop"``, ``"refuse"`` or ``"unmasked"``.
            seed: seed of folds and shuffled pairs.

        Raises:
            ValueError: fewer than two texts with an unmasked token, equal texts, or
                ``read="every"``: tokens of two models do not correspond.
            HookPointError: a hook point that the model does not have.
            NonFiniteError: activations are NaN or infinite.
        """
        if read not in ("mean", "last"):
            raise ValueError(
                f"read is {read!r}; expected 'mean' or 'last': anchors pair by text, "
                "and tokens of two models do not correspond"
            )
        refuse_bad_texts(texts)
        source, target = model_sides(models)
        [(source_hook, target_hook)] = paired_hooks(source, target, source_hook, target_hook)
        # Each model reads the texts with its own tokenizer; only the texts correspond.
        rules: dict[str, Any] = {"skip_first": skip_first, "short_texts": short_texts}
        kept = readable([source, target], texts, read, **rules)
        texts = kept.of(text_list(texts))
        rules["short_texts"] = row_rule(short_texts)
        ours, theirs = (
            read_text_rows(model, texts, hook, read, **rules)
            for model, hook in ((source, source_hook), (target, target_hook))
        )
        provenance = text_provenance(source, target, texts, skip_first, seed)
        anchors = cls(ours, theirs, source_hook, target_hook, provenance, kept.n_dropped)
        anchors._warn_of_few()
        return anchors

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice | Tensor) -> "Anchors":
        """Return some of the anchors."""
        return replace(self, source=self.source[index], target=self.target[index])

    def stitch(self, method: AnchorMethod | None = None, *, n_folds: int = N_FOLDS) -> Stitch:
        """Return the stitch of one method; see the module docstring.

        Args:
            method: `AnchorProcrustes` by default.
            n_folds: folds of the cross-validation.

        Raises:
            ValueError: there are fewer than two anchors, or their rows do not differ.
        """
        method = AnchorProcrustes() if method is None else method
        x, y = self.source.rows, self.target.rows
        if len(x) < 2 or not all(float((rows - rows.mean(0)).abs().max()) > 0 for rows in (x, y)):
            raise ValueError(
                f"{len(x)} anchor(s) whose rows do not differ on both sides; "
                "a map needs at least two different ones"
            )
        # One generator: folds are drawn first, shuffled pairs second.
        generator = torch.Generator().manual_seed(self.provenance.seed)
        refits, scores = self._cross_validated(method, n_folds, generator)
        about: dict[str, Any] = {
            "source_hook": self.source_hook,
            "target_hook": self.target_hook,
            "solver": method.name,
            "n_anchors": len(x),
        }
        return Stitch(
            maps=self._maps(method, x, y),
            source_statistics=self.source.statistics,
            target_statistics=self.target.statistics,
            scores=about | scores,
            provenance=self.provenance,
            null=self._maps(method, x, y[other_rows(len(y), generator)]),
            # The null refits the same method after each anchor got the target row of another one.
            refits=tuple(refits),
        )

    def _maps(self, method: AnchorMethod, x: Tensor, y: Tensor) -> MapPair:
        up, down = (_affine(method, *sides) for sides in ((x, y), (y, x)))
        hooks = (self.source_hook, self.target_hook)
        return MapPair(AffineMap(*up, *hooks), AffineMap(*down, *hooks[::-1]))

    def _cross_validated(
        self, method: AnchorMethod, n_folds: int, generator: torch.Generator
    ) -> tuple[list[MapPair], dict[str, float]]:
        """Return maps fitted without one fold of anchors, and the R² of their predictions.

        Both are empty if there are too few anchors for two folds.
        """
        x, y = self.source.rows, self.target.rows
        # At most half as many folds as anchors, so that each fold holds at least two.
        folds = torch.randperm(len(x), generator=generator).tensor_split(min(n_folds, len(x) // 2))
        if len(folds) < 2:
            return [], {}
        # Every anchor is in one fold, so that every row of both arrays is filled.
        refits, up, down = [], torch.empty_like(y), torch.empty_like(x)
        for number, held_out in enumerate(folds):
            fitted = torch.cat([fold for other, fold in enumerate(folds) if other != number])
            maps = self._maps(method, x[fitted], y[fitted])
            refits.append(maps)
            up[held_out] = maps.up.points(x[held_out])
            down[held_out] = maps.down.points(y[held_out])
        scores: dict[str, float] = {}
        for suffix, rows, predicted in (("", y, up), ("_down", x, down)):
            # R² = 1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖², each row predicted by the map of the other folds
            residual, total = (rows - predicted).square().sum(0), (rows - rows.mean(0)).square()
            r2, uniform, _ = r2_of(residual, total.sum(0))
            # No method here chooses by cross-validation, so both names hold the same number.
            for ending in ("", "_cv"):
                scores |= {f"r2{suffix}{ending}": r2, f"r2_uniform{suffix}{ending}": uniform}
        return refits, scores

    def _warn_of_few(self) -> None:
        widest = max(self.source.width, self.target.width)
        if len(self) <= widest:
            logger.warning(
                "%d anchors for %d dimensions: a linear map interpolates them, and directions "
                "outside of their span are lost; give more texts, and read held-out scores only",
                len(self),
                widest,
            )


def anchor_stitch(
    models: Models,
    texts: Sequence[str],
    *,
    source_hook: int | str,
    target_hook: int | str,
    method: AnchorMethod | None = None,
    read: RowRead = "mean",
    skip_first: int = SKIP_FIRST,
    short_texts: ShortTexts = "drop",
    seed: int = 0,
) -> Stitch:
    """Return a stitch fitted on texts that both models read.

    Arguments and errors are those of `Anchors.read` and `Anchors.stitch`.
    """
    options: dict[str, Any] = {
        "source_hook": source_hook,
        "target_hook": target_hook,
        "read": read,
        "skip_first": skip_first,
        "short_texts": short_texts,
        "seed": seed,
    }
    return Anchors.read(models, texts, **options).stitch(method)


def refuse_bad_texts(texts: Sequence[str]) -> None:
    """Check that there are at least two texts and that all differ.

    Raises:
        ValueError: there are fewer, or two are equal.
    """
    if isinstance(texts, str) or len(texts) < 2:
        raise ValueError(
            f"{1 if isinstance(texts, str) else len(texts)} text(s) given; "
            "anchors need a list of at least two, better hundreds"
        )
    if len(set(texts)) < len(texts):
        first = next(text for i, text in enumerate(texts) if text in texts[:i])
        raise ValueError(
            f"{len(texts) - len(set(texts))} of {len(texts)} anchors repeat another, "
            f"such as {first[:60]!r}; give each text once"
        )


def other_rows(n: int, generator: torch.Generator) -> Tensor:
    """Return a permutation [n] without fixed points, so that no row is paired with itself."""
    # Each row of a random order gets the row before it: one cycle through all rows.
    order = torch.randperm(n, generator=generator)
    return torch.empty_like(order).scatter(0, order, order.roll(1))


def text_provenance(
    source: HookedModel, target: HookedModel, texts: Sequence[str], skip_first: int, seed: int
) -> Provenance:
    """Return the provenance of a map fitted on texts: models, texts, mask, seed and versions."""
    # A sum does not depend on the order of the texts; 2⁶⁴ keeps it an unsigned integer of 64 bits.
    digest = sum(exact_key(text, 0) for text in texts) % 2**64
    return Provenance(
        source.identity,
        target.identity,
        skip_first=skip_first,
        seed=seed,
        versions=package_versions(),
    ).with_documents(len(texts), digest)


def _affine(method: AnchorMethod, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return (weight, bias) of a map that maps the mean of x to the mean of y."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    weight = method.weight(x - mean_x, y - mean_y)
    # b = ȳ − x̄ W
    return weight, mean_y - mean_x @ weight
