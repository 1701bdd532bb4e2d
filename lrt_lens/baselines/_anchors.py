"""Stitches from anchors: texts that both models have read, one vector a text, whatever their
tokenizers.

    anchors = Anchors.read(pair, texts, source_hook=2, target_hook=3)     # or (source_model, target_model)
    stitch = anchors.stitch(AnchorProcrustes())                           # methods: lrt_lens.baselines._anchor_methods
    stitch.transfer(vector), stitch.transfer(probe), stitch.transfer(sae)
    stitch = anchor_stitch(pair, texts, source_hook=2, target_hook=3)     # both in one

Problem: a map between models of two families needs pairs of states, and their tokens do not pair.
Mechanism: the row of a text is the mean over its tokens (or the last), which every model has; both
ways are fitted on the same anchors, each by itself. ``scores`` are those of anchors held out in
turn (``r2`` and ``r2_cv`` are one number: no method here chooses by it), ``refits`` the maps
without them, ``null`` the same method on anchors dealt out to other texts.

Limits. Anchors number hundreds, dimensions too: with n < d a linear map interpolates and what the
anchors do not span is lost. Means over texts vary less than tokens and along other directions, so
that a map of texts may be a poor map of tokens: see `lrt_lens.baselines._evaluation`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrt_lens.baselines._anchor_methods import AnchorMethod, AnchorProcrustes
from lrt_lens.baselines._text_rows import RowRead, TextRows, read_text_rows
from lrt_lens.data._documents import document_key
from lrt_lens.models._hooked_model import SKIP_FIRST, HookedModel
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._pair import ModelPair, model_sides, paired_hooks
from lrt_lens.moments._provenance import Provenance, package_versions
from lrt_lens.moments._scatter import r2_of
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)

N_FOLDS = 5
Models = ModelPair | tuple[ModelLike, ModelLike]
"""A `ModelPair`, or (source, target) of any two tokenizers."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """The same texts as rows of both models."""

    source: TextRows
    target: TextRows
    source_hook: str
    target_hook: str
    provenance: Provenance

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
        seed: int = 0,
    ) -> "Anchors":
        """Both models' rows of the texts.

        Args:
            models: a `ModelPair`, or (source, target) of any two tokenizers.
            texts: the anchors, all different.
            source_hook: hook point of the source.
            target_hook: hook point of the target.
            read: ``"mean"`` over a text's unmasked tokens, or the ``"last"`` one.
            skip_first: first positions that are masked.
            seed: of folds and shuffled pairs.

        Raises: ValueError: fewer than two texts, texts that are equal, a text without an unmasked
            token, or ``read="every"``: tokens of two
                models do not pair.
            HookPointError: a hook point that the model does not have.
            NonFiniteError: activations are NaN or infinite.
        """
        if read not in ("mean", "last"):
            raise ValueError(
                f"read is {read!r}; expected 'mean' or 'last': anchors pair by text, and tokens of two models do not"
            )
        refuse_bad_texts(texts)
        source, target = model_sides(models)
        [(at, to)] = paired_hooks(source, target, source_hook, target_hook)
        ours = read_text_rows(source, texts, at, read, skip_first=skip_first)
        theirs = read_text_rows(target, texts, to, read, skip_first=skip_first)
        found = cls(ours, theirs, at, to, text_provenance(source, target, texts, skip_first, seed))
        found._warn_of_few()
        return found

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice | Tensor) -> "Anchors":
        """Some of the anchors."""
        return replace(self, source=self.source[index], target=self.target[index])

    def stitch(self, method: AnchorMethod | None = None, *, n_folds: int = N_FOLDS) -> Stitch:
        """The stitch of one method (`AnchorProcrustes` unless given); see the module docstring.

        Raises:
            ValueError: fewer than two anchors are left, or their rows do not differ.
        """
        method = AnchorProcrustes() if method is None else method
        x, y = self.source.rows, self.target.rows
        if len(x) < 2 or not all(float((rows - rows.mean(0)).abs().max()) > 0 for rows in (x, y)):
            raise ValueError(
                f"{len(x)} anchor(s) whose rows do not differ on both sides; a map needs at least two different ones"
            )
        generator = torch.Generator().manual_seed(self.provenance.seed)
        refits, scores = self._cross_validated(method, n_folds, generator)
        dealt = torch.randperm(len(y), generator=generator)
        # Every anchor meets the one behind it in a random order: none keeps its own.
        other = torch.empty_like(dealt).scatter(0, dealt, dealt.roll(1))
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
            null=self._maps(method, x, y[other]),
            refits=tuple(refits),
        )

    def _maps(self, method: AnchorMethod, x: Tensor, y: Tensor) -> MapPair:
        up, down = (_affine(method, *sides) for sides in ((x, y), (y, x)))
        hooks = (self.source_hook, self.target_hook)
        return MapPair(AffineMap(*up, *hooks), AffineMap(*down, *hooks[::-1]))

    def _cross_validated(
        self, method: AnchorMethod, n_folds: int, generator: torch.Generator
    ) -> tuple[list[MapPair], dict[str, float]]:
        """Maps that leave a fold of anchors out, and how well they predict it; nothing where so few
        are left that none fits.
        """
        x, y = self.source.rows, self.target.rows
        folds = torch.randperm(len(x), generator=generator).tensor_split(min(n_folds, len(x) // 2))
        if len(folds) < 2:
            return [], {}
        refits, up, down = [], torch.empty_like(y), torch.empty_like(x)
        for number, rows in enumerate(folds):
            kept = torch.cat([fold for other, fold in enumerate(folds) if other != number])
            maps = self._maps(method, x[kept], y[kept])
            refits.append(maps)
            up[rows], down[rows] = maps.up.points(x[rows]), maps.down.points(y[rows])
        scores: dict[str, float] = {}
        for suffix, rows, predicted in (("", y, up), ("_down", x, down)):
            r2, uniform, _ = r2_of(
                (rows - predicted).square().sum(0), (rows - rows.mean(0)).square().sum(0)
            )
            scores |= {
                f"r2{suffix}": r2,
                f"r2{suffix}_cv": r2,
                f"r2_uniform{suffix}": uniform,
                f"r2_uniform{suffix}_cv": uniform,
            }
        return refits, scores

    def _warn_of_few(self) -> None:
        widest = max(self.source.width, self.target.width)
        if len(self) <= widest:
            logger.warning(
                "%d anchors for %d dimensions: a linear map interpolates them, and directions outside of their span are lost; give more "
                "texts, and read held-out scores only",
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
    seed: int = 0,
) -> Stitch:
    """A stitch from texts that both models read; arguments as `Anchors.read` and `Anchors.stitch`
    have them.
    """
    options: dict[str, Any] = {
        "source_hook": source_hook,
        "target_hook": target_hook,
        "read": read,
        "skip_first": skip_first,
        "seed": seed,
    }
    return Anchors.read(models, texts, **options).stitch(method)


def refuse_bad_texts(texts: Sequence[str]) -> None:
    """ValueError for fewer than two texts, or for texts of which two are equal."""
    if isinstance(texts, str) or len(texts) < 2:
        raise ValueError(
            f"{1 if isinstance(texts, str) else len(texts)} text(s) given; anchors need a list of at least two, better hundreds"
        )
    if len(set(texts)) < len(texts):
        first = next(text for i, text in enumerate(texts) if text in texts[:i])
        raise ValueError(
            f"{len(texts) - len(set(texts))} of {len(texts)} anchors repeat another, such as {first[:60]!r}; give each text once"
        )


def text_provenance(
    source: HookedModel, target: HookedModel, texts: Sequence[str], skip_first: int, seed: int
) -> Provenance:
    """Which models and texts."""
    digest = sum(document_key(text, 0) for text in texts) % 2**64
    return Provenance(
        source.identity,
        target.identity,
        skip_first=skip_first,
        seed=seed,
        versions=package_versions(),
    ).with_documents(len(texts), digest)


def _affine(method: AnchorMethod, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(weight, bias) that send the mean of x to the mean of y."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    weight = method.weight(x - mean_x, y - mean_y)
    return weight, mean_y - mean_x @ weight
