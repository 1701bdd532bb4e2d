"""Maps that cross families, side by side: what each explains of held-out text, and whether vectors
and probes still work behind it.

    texts = fitting_texts(documents, moments)                       # none of the test fold: what anchors may be taken from
    stitches = {"ridge": grid[2, 3], "procrustes": anchor_stitch(pair, texts[:400], source_hook=2,
    target_hook=3)} found = evaluate_family_baselines(pair, stitches, moments=grid.moments,
    contrast=contrast, items=items, …)
    found.summary            # a row a method, beside native, token identity and random
    found.figure()

Three questions, for all methods on the same data:

- *Prediction*: R² and cosine of ``stitch.up`` on the test fold of the moments, every token of it,
  intervals by the delete-a-group jackknife.
- *Steering*: the change of propensity by the carried vector at equal damage (see
  `lrt_lens.adapters.vectors._evaluation`), as a share of the native vector's.
- *Reading*: the AUROC of the carried probe on test texts, above chance, as a share of the native
  probe's.

Controls: every stitch's own ``null`` (the same method on shuffled or random pairs), random
directions and probes, native ones, and ``token_identity``, which is defined where moments hold the
source's embedding: it predicts states, and reads by ``token_map``, but there is no vector to carry.

Limits. The methods see different amounts of data, which is the point of some of them: a map of
anchors has hundreds of rows, ridge has all tokens. ``anchor_ridge`` has the anchors' data without
the method. Maps of texts' means are judged on tokens here. R² punishes a wrong length of the
prediction, the cosine does not; nor do equal damage and AUROC.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, note, table
from lrt_lens.adapters.concepts._concept_map import contrast_sets
from lrt_lens.adapters.probes._linear_probe import LinearProbe, class_numbers, read_rows
from lrt_lens.adapters.probes._logistic import probabilities
from lrt_lens.adapters.vectors._arms import VectorArm, drawn_arms
from lrt_lens.adapters.vectors._calibration import NeutralText, calibrate_on
from lrt_lens.adapters.vectors._evaluation import Curve
from lrt_lens.adapters.vectors._preferences import PreferenceText
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.baselines._text_rows import RowRead
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.data._documents import document_key
from lrt_lens.data._parts import N_FOLDS, part_of
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.models._hook_points import EMBED, same_place
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._cross_moments import TEST_PARTS, CrossMoments
from lrt_lens.moments._hook_pairs import HookPair as Pair
from lrt_lens.moments._scatter import score_map
from lrt_lens.statistics._classification import auroc, bootstrap_auroc
from lrt_lens.statistics._intervals import (
    Interval,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_statistic,
    spread,
)
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching._diagnostics import score_intervals
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching._stitch_loss import token_identity_map

CONTROLS = ("native", "token_identity", "random")
"""Rows of the summary that are no stitch."""
_AROUND = (0.85, 1.2)
"""Multiples of the calibrated strength between which effects at equal damage are interpolated."""


@dataclass(frozen=True)
class FamilyBaselines:
    """Every method on the same three questions."""

    summary: pd.DataFrame
    """A row a method, best prediction first, controls last: r2, r2_uniform and cosine with low and
    high, r2_down, r2_uniform_down, r2_null; effect (nats at equal damage) and fraction_of_native
    with low and high, effect_null; auroc and share_of_native with low and high, auroc_null; flag.
    """
    budget: float
    """Nats per token at which vectors are compared."""
    source_hook: str
    target_hook: str
    n_items: int
    n_test: int
    """Test texts of the probes."""

    def figure(self) -> Any:
        """Prediction, steering and reading of every method (plotly)."""
        from lrt_lens.figures._family_baselines import family_figure

        return family_figure(self.summary)

    def _repr_html_(self) -> str:
        about = (
            f"{self.source_hook} → {self.target_hook}: R² on held-out tokens, effects in nats at a damage of {self.budget:g} nats per token "
            f"({self.n_items} items), AUROC on {self.n_test} texts."
        )
        return card("FamilyBaselines", note(about), table(self.summary))


def evaluate_family_baselines(
    pair: ModelPair,
    stitches: Mapping[str, Stitch],
    *,
    moments: CrossMoments,
    contrast: ContrastSet,
    items: ChoiceItems,
    neutral: Sequence[str],
    texts: Sequence[str],
    labels: Sequence[Any],
    test_texts: Sequence[str],
    test_labels: Sequence[Any],
    token_map: AffineMap | None = None,
    damage: float = 0.1,
    read: RowRead = "mean",
    n_random: int = 6,
    seed: int = 0,
    progress: bool = True,
) -> FamilyBaselines:
    """Ask every stitch the three questions of the module docstring.

    Args: pair: both models; tokenizers may differ. stitches: by the name of the method; all between
        the same two hook points. moments: hold that pair of hook points; their test fold judges, so
        that no anchor may come from it (`fitting_texts`). contrast: texts that the vectors are
        learnt from. items: prompts with continuations. neutral: texts on which damage is measured.
        texts: that probes are learnt from. labels: two classes. test_texts: that probes are judged
        on. test_labels: theirs. token_map: from the target's embedding to the source hook, for
        reading by token identity: ``token_identity_map`` of a harvest of
            ``pair.reversed()``.
        damage: nats per token.
        read: where texts are read for probes, ``"mean"`` or ``"last"``.
        n_random: random directions, and random probes.
        seed: of draws and bootstraps.
        progress: show a bar.

    Raises: ValueError: no stitch, a stitch that is called as a control, one class, or fewer than 4
        items. MismatchError: stitches of several pairs of hook points or other models, or a token
        map that leads elsewhere. HookPointError: moments without that pair.
    """
    first = _checked(pair, stitches, moments, contrast, items, read, token_map)
    hooks = (first.source_hook, first.target_hook)
    questions = (
        _prediction(stitches, moments, hooks),
        _Steering(pair, first, contrast, items, neutral, damage, seed).rows(
            stitches, n_random, progress
        ),
        _Reading(pair, hooks, (texts, labels), (test_texts, test_labels), read, seed).rows(
            stitches, token_map, n_random
        ),
    )
    order = [*sorted(stitches, key=lambda name: -questions[0][name]["r2_uniform"]), *CONTROLS]
    rows = [
        {"method": name}
        | {key: value for found in questions for key, value in found.get(name, {}).items()}
        for name in order
    ]
    return FamilyBaselines(
        pd.DataFrame(rows).dropna(axis="columns", how="all"),
        damage,
        *hooks,
        len(items),
        len(test_texts),
    )


def fitting_texts(documents: Sequence[str], moments: CrossMoments) -> list[str]:
    """The documents that are not of the test fold of these moments, each once: anchors and unpaired
    texts may be taken from them.
    """
    seed = moments.provenance.seed
    return [
        text for text in dict.fromkeys(documents) if part_of(document_key(text, seed)) < N_FOLDS
    ]


def _checked(
    pair: ModelPair,
    stitches: Mapping[str, Stitch],
    moments: CrossMoments,
    contrast: ContrastSet,
    items: ChoiceItems,
    read: str,
    token_map: AffineMap | None,
) -> Stitch:
    if not stitches or set(stitches) & set(CONTROLS):
        raise ValueError(
            f"stitches is {sorted(stitches)}; expected at least one, none of them called {list(CONTROLS)}"
        )
    first = next(iter(stitches.values()))
    for name, stitch in stitches.items():
        stitch.check(pair.source, pair.target)
        if not (
            same_place(stitch.source_hook, first.source_hook)
            and same_place(stitch.target_hook, first.target_hook)
        ):
            raise MismatchError(
                f"stitch {name!r} leads {stitch.source_hook!r} → {stitch.target_hook!r}, the first {first.source_hook!r} → {first.target_hook!r}; compare "
                "maps of one pair of hook points"
            )
    if (first.source_hook, first.target_hook) not in moments.pairs:
        raise HookPointError(
            f"these moments hold no pair {first.source_hook!r} → {first.target_hook!r}; they hold {len(moments.pairs)}, such as {moments.pairs[0]}"
        )
    contrast_sets(contrast)
    if len(items) < 4:
        raise ValueError(f"{len(items)} item(s) given; an interval over items needs at least 4")
    if read not in ("mean", "last"):
        raise ValueError(f"read is {read!r}; expected 'mean' or 'last'")
    if token_map is not None and not (
        token_map.source_hook == EMBED and same_place(token_map.target_hook, first.source_hook)
    ):
        raise MismatchError(
            f"token_map goes {token_map.source_hook!r} → {token_map.target_hook!r}; expected {EMBED!r} (of the target) → {first.source_hook!r}"
        )
    return first


# --------------------------------------------------------------------------------------- prediction


def _prediction(
    stitches: Mapping[str, Stitch], moments: CrossMoments, hooks: Pair
) -> dict[str, dict[str, float]]:
    test = moments.scatter(hooks, TEST_PARTS)
    found = {}
    for name, stitch in stitches.items():
        down = score_map(stitch.down.weight.double(), stitch.down.bias.double(), test.swapped())
        found[name] = _scores(stitch.up, moments, hooks) | {
            "r2_down": down.r2,
            "r2_uniform_down": down.r2_uniform,
        }
        if stitch.null is not None:
            found[name]["r2_null"] = score_map(
                stitch.null.up.weight.double(), stitch.null.up.bias.double(), test
            ).r2
    if moments.token_hook is not None:
        found["token_identity"] = _scores(
            token_identity_map(moments, hooks[1]), moments, (moments.token_hook, hooks[1])
        )
    return found


def _scores(affine: AffineMap, moments: CrossMoments, pair: Pair) -> dict[str, float]:
    rows = score_intervals(affine, moments, pair).to_dict("records")
    return {
        key: float(row[part])
        for row in rows
        for key, part in (
            (row["score"], "value"),
            (f"{row['score']}_low", "low"),
            (f"{row['score']}_high", "high"),
        )
    }


# ----------------------------------------------------------------------------------------- steering


class _Steering:
    """Items and neutral texts made ready once at the target's hook point."""

    def __init__(
        self,
        pair: ModelPair,
        first: Stitch,
        contrast: ContrastSet,
        items: ChoiceItems,
        neutral: Sequence[str],
        budget: float,
        seed: int,
    ) -> None:
        self.first, self.budget, self.seed = first, budget, seed
        self.items = PreferenceText(pair.target, items, first.target_hook)
        self.neutral = NeutralText(pair.target, neutral, first.target_hook)
        self.unsteered = self.items.propensity()
        self.vector = SteeringVector.mean_difference(pair.source, contrast, at=first.source_hook)
        self.native = SteeringVector.mean_difference(pair.target, contrast, at=first.target_hook)

    def rows(
        self, stitches: Mapping[str, Stitch], n_random: int, progress: bool
    ) -> dict[str, dict[str, Any]]:
        """Effects at equal damage by method."""
        native = self._effect(VectorArm("native", self.native))
        found = {"native": self._row(native, native)}
        for name, stitch in tqdm(stitches.items(), desc="steer", disable=not progress, leave=False):
            found[name] = self._row(
                self._effect(VectorArm(name, stitch.transfer(self.vector))), native
            )
            if stitch.null is not None:
                null = self._effect(
                    VectorArm(name, stitch.transfer(self.vector, through=stitch.null.up))
                )
                found[name]["effect_null"] = float(null.mean())
        drawn = [
            float(self._effect(arm).mean())
            for arm in drawn_arms(self.first, self.native, n_random, self.seed)
        ]
        found["random"] = _named("effect", spread(drawn)) if drawn else {}
        return found

    def _effect(self, arm: VectorArm) -> np.ndarray:
        """[item], NaN where the budget is not bracketed."""
        searched = calibrate_on(self.neutral, arm.vector, self.budget, tolerance=0.05)
        if not searched.reached:
            return np.full_like(self.unsteered, np.nan)
        scales = [searched.scale * share for share in _AROUND]
        hooks = [arm.vector.hook_at(scale) for scale in scales]
        damage = [0.0, *(self.neutral.damage(hook) for hook in hooks)]
        values = [self.unsteered, *(self.items.propensity(hook) for hook in hooks)]
        return Curve(arm, np.array([0.0, *scales]), np.array(damage), np.array(values)).effect_at(
            self.budget
        )

    def _row(self, effect: np.ndarray, native: np.ndarray) -> dict[str, Any]:
        row: dict[str, Any] = _named("effect", bootstrap_mean(effect, seed=self.seed))
        row |= _named(
            "fraction_of_native", bootstrap_ratio(effect, native, seed=self.seed), "fraction"
        )
        return row | {"flag": "damage not bracketed" if np.isnan(effect).any() else ""}


# ------------------------------------------------------------------------------------------ reading


class _Reading:
    """A probe of the source and one of the target, learnt from the same texts; test texts read
    once.
    """

    def __init__(
        self,
        pair: ModelPair,
        hooks: Pair,
        train: tuple[Sequence[str], Sequence[Any]],
        test: tuple[Sequence[str], Sequence[Any]],
        read: RowRead,
        seed: int,
    ) -> None:
        self.pair, self.seed, self.texts = pair, seed, test[0]
        self.probe = LinearProbe.fit(pair.source, *train, at=hooks[0], read=read, seed=seed)
        self.native = LinearProbe.fit(pair.target, *train, at=hooks[1], read=read, seed=seed)
        if len(self.probe.classes) != 2:
            raise ValueError(
                f"labels are {list(self.probe.classes)}; this comparison takes two classes"
            )
        self.truth = class_numbers(list(test[1]), self.probe.classes)
        if len(set(self.truth.tolist())) != 2:
            raise ValueError(
                f"all {len(self.truth)} test labels are {test[1][0]!r}; an AUROC needs texts of both classes"
            )
        self.x = self._rows(hooks[1])

    def _rows(self, hook: str) -> Tensor:
        return read_rows(
            self.pair.target, self.texts, hook, self.probe.read, self.probe.skip_first
        )[0]

    def rows(
        self, stitches: Mapping[str, Stitch], token_map: AffineMap | None, n_random: int
    ) -> dict[str, dict[str, float]]:
        """AUROCs by method."""
        native = self._said(self.native)
        found = {"native": self._row(native, native)}
        for name, stitch in stitches.items():
            found[name] = self._row(self._said(stitch.transfer(self.probe)), native)
            if stitch.null is not None:
                found[name]["auroc_null"] = auroc(
                    self._said(stitch.transfer(self.probe, through=stitch.null.down)), self.truth
                )
        if token_map is not None:
            one = next(iter(stitches.values()))
            tokens = replace(one.transfer(self.probe, through=token_map), hook=EMBED)
            found["token_identity"] = self._row(
                probabilities(tokens.logits(self._rows(EMBED))), native
            )
        found["random"] = _named("auroc", spread(self._random(n_random))) if n_random else {}
        return found

    def _said(self, probe: LinearProbe) -> np.ndarray:
        return probabilities(probe.logits(self.x))

    def _row(self, chances: np.ndarray, native: np.ndarray) -> dict[str, float]:
        row = _named("auroc", bootstrap_auroc([chances], self.truth, seed=self.seed))
        columns = np.stack([chances[:, 1], native[:, 1], self.truth])
        return row | _named(
            "share_of_native",
            bootstrap_statistic(_share_above_chance, columns, seed=self.seed),
            "share",
        )

    def _random(self, n: int) -> list[float]:
        generator = torch.Generator().manual_seed(self.seed)
        weights = torch.randn(self.x.shape[1], n, generator=generator, dtype=torch.float64)
        return [
            auroc(np.stack([-score, score], 1), self.truth)
            for score in (self.x @ weights).T.numpy()
        ]


def _share_above_chance(columns: np.ndarray) -> float:
    """(AUROC − ½) over native's, from [score | native's score | class] by text; 0 where a resample
    holds one class or native is at chance.
    """
    truth = columns[2].astype(int)
    ours, native = (auroc(np.stack([-score, score], 1), truth) for score in columns[:2])
    return float((ours - 0.5) / (native - 0.5)) if native > 0.5 else 0.0


def _named(name: str, interval: Interval, short: str | None = None) -> dict[str, float]:
    return {
        name: interval.value,
        f"{short or name}_low": interval.low,
        f"{short or name}_high": interval.high,
    }
