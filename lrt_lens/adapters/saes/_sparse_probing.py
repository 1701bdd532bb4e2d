"""Sparse probing through SAEs: accuracy of classifiers that read few features.

    result = evaluate_sparse_probes(
        pair, stitch, texts, labels, test_texts=held_out, test_labels=truth, source_sae=sae
    )
    result.table          # one row per arm and k
    result.figure()

Problem: a good reconstruction does not show that single features of a transferred SAE have a
meaning on the target. Mechanism: classifiers that read only k features of a text.

A text is represented by the mean of its features over unmasked tokens. For each k, a logistic
regression reads the k features with the largest class difference of that mean over the training
texts (for several classes: the largest difference of any class to all others). Arms on the target:

- ``native``: features of the SAE that was trained there; ``random``: k random ones of its features
  that are ever active;
- ``transferred_new_probe``: features of the transferred SAE, selected and weighted on the target's
  labelled texts;
- ``transferred``: features of the transferred SAE with the selection *and* the weights of the
  source's own sparse probe: no label of the target is used. Its threshold is recentred on the
  training texts (`ScoreChange`), and ``transferred_raw`` is the same without that;
- ``source``: that probe on the source;
- ``dense_native``, ``dense_transferred``, ``dense_transferred_raw``: probes on the mean of the
  states, as in `evaluate_probe`, the transferred one with and without recentring.

An SAE is any object with SAELens' ``encode(x)``: [token, d_model] → [token, feature]. Intervals are
over test texts, or over ``groups`` of them (`lrt_lens.statistics._classification`); a new draw of
``random`` falls into its interval, and ``transferred_p`` is the share of draws that are as accurate
as the arm ``transferred``.

Source: Stitching (arXiv 2506.06609) §4, figure 3a; the dense and the random arms are ours.

Limits: features are selected one by one, so two features that matter only together are missed.
"""

import logging
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, note, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.probes._labels import class_numbers, classes_of
from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.adapters.probes._logistic import fit_logistic, probabilities
from lrt_lens.adapters.probes._recentring import recentre_probe
from lrt_lens.adapters.probes._split import Labelled, separate_texts
from lrt_lens.adapters.saes._compatibility import refuse_foreign_sae, require_sae, trained_context
from lrt_lens.errors import NonFiniteError
from lrt_lens.figures._probes import sparse_probe_figure
from lrt_lens.figures._template import with_counts
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import ShortTexts, read_tokens, readable, row_rule
from lrt_lens.statistics._classification import ItemScores, clusters_of
from lrt_lens.statistics._draws import prediction_interval, rank_test
from lrt_lens.statistics._recentring import ScoreChange
from lrt_lens.stitching._stitch import Stitch

KS = (1, 2, 5, 10, 20, 50)
"""Default numbers of features (Stitching, figure 3a)."""

logger = logging.getLogger(__name__)


FeatureSets = dict[str, tuple[np.ndarray, np.ndarray]]
"""Features of the training and of the test texts by name of the SAE, both [text, feature]."""


@runtime_checkable
class Encoder(Protocol):
    """SAE, or any object that encodes states as features."""

    def encode(self, x: Tensor) -> Tensor:
        """Features [token, feature] of states [token, d_model]."""
        ...


@dataclass(frozen=True)
class SparseProbeSettings(Settings):
    """Settings of `evaluate_sparse_probes`, which also takes each of them as a keyword."""

    ks: Sequence[int] = KS
    """Numbers of features that a probe reads."""
    n_random: int = 20
    """Number of draws of random features for each k."""
    groups: Sequence[Hashable] | None = None
    """One per text, such as the pair or the story it belongs to: texts of one group share folds."""
    test_groups: Sequence[Hashable] | None = None
    """Group of each test text: a group is one unit of an interval. None is among ``groups``."""
    dense: bool = True
    """True if dense probes are fitted too."""
    task: str = "sparse probe"
    """Name of the classification task, for the table."""
    short_texts: ShortTexts = "drop"
    """Rule for texts that the mask leaves nothing of in one of the models: ``"drop"``,
    ``"refuse"`` or ``"unmasked"``."""
    seed: int = 0
    """Seed of folds, draws and bootstraps."""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks is {list(self.ks)}; expected numbers of features, 1 or more")


@dataclass(frozen=True, repr=False)
class SparseProbeEvaluation(ShortRepr):
    """Accuracy over the number of features, for all arms on the same test texts."""

    table: pd.DataFrame
    """One row per arm and k.

    Columns: task, arm, k (NaN for dense probes), n_draws, accuracy, low, high, auroc, auroc_low,
    auroc_high, contains (what varies in the interval), interval_flag (what is doubtful about it);
    for random features transferred_p and p_floor, the smallest p of so many draws.
    """
    chance: float
    """Share of the largest class among the test texts."""
    n_test: int
    """Number of test texts."""
    features: dict[str, list[int]]
    """Indices of the features that the largest k reads, by descending class difference.

    Keys: ``native``, ``transferred_new_probe`` and ``source``.
    """
    n_dropped: int = 0
    """Number of texts left out because the mask leaves nothing of them in one of the models."""

    @property
    def summary(self) -> pd.DataFrame:
        """Accuracies, one row per arm and one column per k."""
        return self._upright("accuracy").reset_index()

    def _upright(self, value: str) -> pd.DataFrame:
        """One column of the table as [arm, k], dense probes last."""
        named = self.table.assign(
            k=self.table["k"].map(lambda k: "dense" if math.isnan(k) else int(k))
        )
        order = list(dict.fromkeys(named["k"]))
        # A stable sort: numbers stay in their order, "dense" goes to the end.
        order.sort(key=lambda k: k == "dense")
        pivot = named.pivot_table(index="arm", columns="k", values=value, sort=False)
        return pivot.reindex(columns=order)

    def figure(self) -> Any:
        """Plotly figure of accuracy over k, one line per arm."""
        figure = sparse_probe_figure(self.table, chance=self.chance)
        return with_counts(figure, {"test texts": self.n_test})

    def _repr_html_(self) -> str:
        parts = {
            end: self._upright(name)
            for name, end in (("accuracy", ""), ("low", "_low"), ("high", "_high"))
        }
        shown = pd.DataFrame(
            {f"k = {k}{end}": part.get(k) for k in parts[""] for end, part in parts.items()}
        )
        caption = (
            f"{self.n_test} test texts, chance {self.chance:.2f}; accuracy over the number of "
            "features k."
        )
        return card("SparseProbeEvaluation", note(caption), table(shown))


@takes(SparseProbeSettings)
def evaluate_sparse_probes(
    pair: ModelPair,
    stitch: Stitch,
    texts: Sequence[str],
    labels: Sequence[Any],
    *,
    test_texts: Sequence[str],
    test_labels: Sequence[Any],
    source_sae: Encoder,
    native_sae: Encoder | None = None,
    transferred_sae: Encoder | None = None,
    progress: bool = True,
    settings: SparseProbeSettings | None = None,
    **options: Any,
) -> SparseProbeEvaluation:
    """Accuracy of sparse probes through a transferred SAE, compared with the native one.

    The arms are listed in the module docstring.

    Args:
        pair: the models of the stitch.
        stitch: a stitch between the hook points of both SAEs.
        texts: training texts.
        labels: one label per text, str or int.
        test_texts: texts on which accuracy is measured.
        test_labels: their labels.
        source_sae: an SAE of the source model at the stitch's source hook point.
        native_sae: an SAE of the target model at its target hook point, for the arms ``native`` and
            ``random``; without it ``random`` draws from the transferred SAE.
        transferred_sae: ``stitch.transfer(source_sae)`` by default.
        progress: show a bar.
        settings: all settings, see `SparseProbeSettings`.
        options: single fields of the settings, such as ``ks=(1, 5)``.

    Raises:
        ValueError: labels of one class, or not one per text; k above the number of features.
        MismatchError: an SAE belongs to another width, hook point, model, basis or tokenizer; the
            models are not the stitch's.
    """
    run = resolve(SparseProbeSettings, settings, options)
    stitch.check(pair.source, pair.target)
    train, test = separate_texts(
        (texts, labels, run.groups), (test_texts, test_labels, run.test_groups), share=0.5, seed=0
    )
    n_given = len(train) + len(test)
    train, test = (_readable(pair, stitch, part, run) for part in (train, test))
    classes = classes_of(train.labels)
    y, truth = (class_numbers(part.labels, classes) for part in (train, test))
    saes = _saes(pair, stitch, source_sae, native_sae, transferred_sae)
    features: FeatureSets = {}
    for name, sae in tqdm(saes.items(), desc="encode", disable=not progress, leave=False):
        model, hook = _end(pair, stitch, name)
        both = [
            _features(model, part.texts, hook, sae, stitch.skip_first, run.short_texts)
            for part in (train, test)
        ]
        features[name] = (both[0], both[1])
    arms: dict[tuple[str, int | float], list[np.ndarray]] = {}
    for arm, k, chances in _sparse(features, y, len(classes), run, train.groups):
        arms.setdefault((arm, k), []).append(chances)
    if run.dense:
        for arm, chances in _dense(pair, stitch, train, test, run):
            arms[arm, math.nan] = [chances]
    ranked = {
        name: by_class_difference(rows, y)[: max(run.ks)].tolist()
        for name, (rows, _) in features.items()
    }
    # The selection on the target's own labels is that of the arm "transferred_new_probe".
    ranked["transferred_new_probe"] = ranked.pop("transferred")
    chance = float(np.bincount(truth).max() / len(truth))
    table = _table(run.task, arms, truth, test)
    n_dropped = n_given - len(train) - len(test)
    return SparseProbeEvaluation(table, chance, len(truth), ranked, n_dropped)


def _readable(
    pair: ModelPair, stitch: Stitch, part: Labelled, run: SparseProbeSettings
) -> Labelled:
    """Return the texts of which both models have a token to read."""
    models, rule = (pair.source, pair.target), run.short_texts
    kept = readable(models, part.texts, "every", skip_first=stitch.skip_first, short_texts=rule)
    return part.read_by(kept)


def by_class_difference(features: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of features [text, feature], by descending class difference of their means.

    Features with equal differences stay in their order.
    """
    # max over classes c of |mean of class c − mean of all others|
    gaps = [
        np.abs(features[y == label].mean(0) - features[y != label].mean(0))
        for label in np.unique(y)
    ]
    return np.argsort(-np.max(gaps, 0), kind="stable")


def _end(pair: ModelPair, stitch: Stitch, name: str) -> tuple[HookedModel, str]:
    """Model and hook point at which an SAE of `_saes` reads."""
    if name == "source":
        return pair.source, stitch.source_hook
    return pair.target, stitch.target_hook


def _saes(
    pair: ModelPair,
    stitch: Stitch,
    source_sae: Encoder,
    native_sae: Encoder | None,
    transferred_sae: Encoder | None,
) -> dict[str, Encoder]:
    """SAEs by name, each checked against the model and the hook point at which it reads."""
    saes = {"source": source_sae, "transferred": transferred_sae, "native": native_sae}
    for name, sae in saes.items():
        if sae is not None:
            model, hook = _end(pair, stitch, name)
            require_sae(sae, "encode")
            # Texts are read in windows as long as those of the SAE's training.
            length = min(trained_context(sae) or model.context_length, model.context_length)
            # In shorter windows every token is masked, and no feature is read.
            length = max(length, stitch.skip_first + 1, 2)
            refuse_foreign_sae(sae, hook, model.identity, context_length=length)
    # A transfer made here needs no check: it has passed those of `transfer_sae`.
    if transferred_sae is None:
        saes["transferred"] = stitch.transfer(source_sae)
    return {name: sae for name, sae in saes.items() if sae is not None}


@torch.no_grad()
def _features(
    model: HookedModel,
    texts: Sequence[str],
    hook: str,
    sae: Encoder,
    skip_first: int,
    short_texts: ShortTexts,
) -> np.ndarray:
    """Mean features of each text over its unmasked tokens, [text, feature], float64."""
    means: dict[int, np.ndarray] = {}
    rules: dict[str, Any] = {"skip_first": skip_first, "short_texts": row_rule(short_texts)}
    # Texts arrive from the shortest to the longest, in windows that the SAE was trained on.
    context_length = trained_context(sae)
    for index, rows in read_tokens(model, texts, hook, context_length=context_length, **rules):
        means[index] = sae.encode(rows).double().mean(0).cpu().numpy()
    features = np.stack([means[i] for i in range(len(texts))])
    if not np.isfinite(features).all():
        raise NonFiniteError(
            f"the SAE returns NaN or infinity at {hook!r} of {model.name!r}; expected finite "
            "features: check its weights and dtype"
        )
    return features


def _sparse(
    features: FeatureSets,
    y: np.ndarray,
    n_classes: int,
    run: SparseProbeSettings,
    groups: list[int] | None,
) -> Iterator[tuple[str, int, np.ndarray]]:
    """Arm, k, and probabilities [test text, class] of each sparse probe."""
    ks, seed = run.ks, run.seed
    narrowest = min(train.shape[1] for train, _ in features.values())
    if max(ks) > narrowest:
        raise ValueError(
            f"ks goes up to {max(ks)}, an SAE has {narrowest} features; give smaller k"
        )

    folds: dict[str, Any] = {"seed": seed, "groups": None if groups is None else np.array(groups)}

    def fitted(some: tuple[np.ndarray, np.ndarray], columns: np.ndarray) -> np.ndarray:
        probe = fit_logistic(some[0][:, columns], y, n_classes, **folds)
        return probe.probabilities(some[1][:, columns])

    order = {name: by_class_difference(train, y) for name, (train, _) in features.items()}
    source, transferred = features["source"], features["transferred"]
    pool = features.get("native", transferred)
    # Features that never fire on the training texts would make the baseline too weak.
    alive = np.flatnonzero(pool[0].any(0))
    generator = np.random.default_rng(seed)
    for k in ks:
        columns = order["source"][:k]
        # One probe on the source; its columns and weights are then used on the target unchanged.
        own = fit_logistic(source[0][:, columns], y, n_classes, **folds)
        yield "source", k, own.probabilities(source[1][:, columns])
        logits = [own.logits(transferred[part][:, columns]) for part in (0, 1)]
        yield "transferred_raw", k, probabilities(logits[1])
        # Mean and deviation of the source's scores on the same texts; no label is read.
        change = ScoreChange.matching(own.logits(source[0][:, columns]), logits[0])
        yield "transferred", k, probabilities(change.of(logits[1]))
        yield "transferred_new_probe", k, fitted(transferred, order["transferred"][:k])
        if "native" in features:
            yield "native", k, fitted(features["native"], order["native"][:k])
        if len(alive) < k:
            logger.warning(
                "only %d features are ever active on the training texts; random features are left "
                "out at k = %d",
                len(alive),
                k,
            )
            continue
        for _ in range(run.n_random):
            yield "random", k, fitted(pool, generator.choice(alive, k, replace=False))


def _dense(
    pair: ModelPair, stitch: Stitch, train: Labelled, test: Labelled, run: SparseProbeSettings
) -> Iterator[tuple[str, np.ndarray]]:
    """Arm and probabilities [test text, class] of the dense probes, both read on the target."""
    options: dict[str, Any] = {
        "read": "mean",
        "skip_first": stitch.skip_first,
        "short_texts": run.short_texts,
        "seed": run.seed,
        "groups": train.groups,
    }
    labelled = (train.texts, train.labels)
    native = LinearProbe.fit(pair.target, *labelled, at=stitch.target_hook, **options)
    own = LinearProbe.fit(pair.source, *labelled, at=stitch.source_hook, **options)
    raw: LinearProbe = stitch.transfer(own)
    probes = {
        "dense_native": native,
        "dense_transferred": recentre_probe(own, raw, pair, train.texts),
        "dense_transferred_raw": raw,
    }
    # All probes read the target at one hook point, so its states are read once.
    rows = native.rows(pair.target, test.texts)[0]
    for arm, probe in probes.items():
        yield arm, probabilities(probe.logits(rows))


def _table(
    task: str,
    arms: dict[tuple[str, int | float], list[np.ndarray]],
    truth: np.ndarray,
    test: Labelled,
) -> pd.DataFrame:
    """Table of `SparseProbeEvaluation` from the probabilities of each arm's draws."""
    clusters, fixed = clusters_of(test.groups, len(truth))
    scores = {key: ItemScores.of(p, truth, clusters=clusters) for key, p in arms.items()}
    units = "test texts" if test.groups is None else "groups of test texts"
    rows = []
    for (arm, k), score in scores.items():
        is_drawn = arm == "random"
        intervals = {"accuracy": score.accuracy(), "auroc": score.auroc}
        row: dict[str, Any] = {"task": task, "arm": arm, "k": float(k)}
        row["n_draws"] = len(score.accuracies)
        # A new draw of random features falls into the interval of the draws.
        if is_drawn:
            drawn = {"accuracy": score.accuracies, "auroc": score.aurocs}
            intervals = {name: prediction_interval(values) for name, values in drawn.items()}
        for name, prefix in (("accuracy", ""), ("auroc", "auroc_")):
            one = intervals[name].within()
            row |= {name: one.value, f"{prefix}low": one.low, f"{prefix}high": one.high}
        flags = dict.fromkeys(one.flag for one in intervals.values())
        flags = flags if is_drawn else {fixed: None} | flags
        row["contains"] = "draws" if is_drawn else units
        row["interval_flag"] = "; ".join(flag for flag in flags if flag)
        if is_drawn:
            # Random features are weighted by labels, so their accuracy has a sign of its own.
            ours = float(scores["transferred", k].accuracies[0])
            test_of = rank_test(ours, score.accuracies)
            row |= {"transferred_p": test_of.p, "p_floor": test_of.floor}
        rows.append(row)
    return pd.DataFrame(rows)
