"""Sparse probing through SAEs: how few features tell two classes apart, natively and through a
transferred SAE (Stitching §4, figure 3a)?

    result = evaluate_sparse_probes(pair, stitch, texts, labels, source_sae=sae, native_sae=other)
    result.table          # a row per arm and k
    result.figure()

A text is the mean of its features over unmasked tokens. The k features with the largest class
difference of that mean, over the training texts, are what a logistic regression may read (several
classes: the largest difference of any class to the rest). Arms on the target:

- ``native``: features of the SAE trained there; ``random``: k random ones of those that are ever
  active;
- ``transferred_refit``: the transferred SAE, features chosen and regression learnt from the
  target's labelled texts;
- ``transferred``: the transferred SAE with the features *and* the weights of the source's own
  sparse probe: no label of the target;
- ``source``: that probe where it was learnt;
- ``dense_native``, ``dense_transferred``: probes on the mean of the stream itself, as
  `evaluate_probe` has them.

An SAE is any object with SAELens' ``encode(x)``: [token, d_model] → [token, feature]. Intervals are
paired bootstraps over test texts, for ``random`` where 95% of the draws fall.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, note, table
from lrt_lens.adapters.probes._linear_probe import (
    LinearProbe,
    check_labels,
    class_numbers,
    classes_of,
    plain_label,
)
from lrt_lens.adapters.probes._logistic import Logistic, fit_logistic, probabilities
from lrt_lens.errors import MismatchError, NonFiniteError
from lrt_lens.figures._probes import sparse_probe_figure
from lrt_lens.models._hook_points import same_place
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import read_tokens
from lrt_lens.statistics._classification import Verdict
from lrt_lens.statistics._intervals import spread
from lrt_lens.stitching._stitch import Stitch

KS = (1, 2, 5, 10, 20, 50)
"""Numbers of features (Stitching, figure 3a)."""

logger = logging.getLogger(__name__)


@runtime_checkable
class Encoder(Protocol):
    """Interface of an SAE's encoder."""

    def encode(self, x: Tensor) -> Tensor:
        """[token, d_model] → [token, feature]."""
        ...


@dataclass(frozen=True)
class SparseProbeEvaluation:
    """Accuracy over the number of features, for all arms on the same test texts."""

    table: pd.DataFrame
    """A row per arm and k: task, arm, k (NaN for dense probes), n_draws, accuracy, low, high,
    auroc, auroc_low, auroc_high.
    """
    chance: float
    """Share of the largest class among the test texts."""
    n_test: int
    features: dict[str, list[int]]
    """The features of the largest k, most telling first, of ``native``, ``transferred_refit`` and
    ``source``.
    """

    @property
    def summary(self) -> pd.DataFrame:
        """Accuracies upright: a row per arm, a column per k."""
        return self._upright("accuracy").reset_index()

    def _upright(self, value: str) -> pd.DataFrame:
        """[arm, k] of one column of the table, dense probes last."""
        kept = self.table.assign(
            k=self.table["k"].map(lambda k: "dense" if math.isnan(k) else int(k))
        )
        order = [k for k in dict.fromkeys(kept["k"]) if k != "dense"] + ["dense"] * (
            "dense" in set(kept["k"])
        )
        return kept.pivot_table(index="arm", columns="k", values=value, sort=False).reindex(
            columns=order
        )

    def figure(self) -> Any:
        """Accuracy over k, a line an arm (plotly)."""
        return sparse_probe_figure(self.table, chance=self.chance)

    def _repr_html_(self) -> str:
        parts = {
            end: self._upright(name)
            for name, end in (("accuracy", ""), ("low", "_low"), ("high", "_high"))
        }
        shown = pd.DataFrame(
            {f"k = {k}{end}": part.get(k) for k in parts[""] for end, part in parts.items()}
        )
        places = f"{self.n_test} test texts, chance {self.chance:.2f}; accuracy over the number of features k."
        return card("SparseProbeEvaluation", note(places), table(shown))


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
    ks: Sequence[int] = KS,
    n_random: int = 10,
    dense: bool = True,
    task: str = "sparse probe",
    seed: int = 0,
    progress: bool = True,
) -> SparseProbeEvaluation:
    """Measure sparse probes through a transferred SAE beside the native one; see the module
    docstring.

    Args: pair: both models. stitch: between the hook points of both SAEs. texts: training texts.
        labels: one a text, str or int. test_texts: texts to judge on. test_labels: their labels.
        source_sae: of the source model at the stitch's source hook. native_sae: of the target at
        its target hook; the arms ``native`` and ``random`` need it (without it ``random`` draws
        from the transferred). transferred_sae: ``stitch.transfer(source_sae)`` without it. ks:
        numbers of features. n_random: draws of random features at each k. dense: whether to learn
        the dense probes too. task: name of what is classified. seed: of folds, draws and
        bootstraps. progress: show a bar.

    Raises: ValueError: labels of one class, or as many as there are texts they are not; k beyond
        the number of features. MismatchError: an SAE of another width or hook point, or models that
        are not the stitch's.
    """
    stitch.check(pair.source, pair.target)
    for given_texts, given in ((texts, labels), (test_texts, test_labels)):
        check_labels(given_texts, given)
    plain, judged = ([plain_label(label) for label in given] for given in (labels, test_labels))
    classes = classes_of(plain)
    y, truth = class_numbers(plain, classes), class_numbers(judged, classes)
    moved: Encoder = stitch.transfer(source_sae) if transferred_sae is None else transferred_sae
    saes = {"source": source_sae, "transferred": moved} | (
        {"native": native_sae} if native_sae is not None else {}
    )
    _check(pair, stitch, saes, ks)
    features: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, sae in tqdm(saes.items(), desc="encode", disable=not progress, leave=False):
        model, hook = (
            (pair.source, stitch.source_hook)
            if name == "source"
            else (pair.target, stitch.target_hook)
        )
        features[name] = (
            _features(model, texts, hook, sae, stitch.skip_first),
            _features(model, test_texts, hook, sae, stitch.skip_first),
        )
    arms: dict[tuple[str, int | float], list[np.ndarray]] = {}
    for arm, k, chances in _sparse(features, y, len(classes), ks, n_random, seed):
        arms.setdefault((arm, k), []).append(chances)
    if dense:
        for arm, chances in _dense(pair, stitch, texts, plain, test_texts, seed):
            arms[arm, math.nan] = [chances]
    ranked = {
        name: by_class_difference(found[0], y)[: max(ks)].tolist()
        for name, found in features.items()
    }
    if "transferred" in ranked:
        ranked["transferred_refit"] = ranked.pop("transferred")
    chance = float(np.bincount(truth).max() / len(truth))
    return SparseProbeEvaluation(_table(task, arms, truth, seed), chance, len(truth), ranked)


def by_class_difference(features: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Features of [text, feature], those of the largest class difference of their means first
    (stable).
    """
    gaps = [
        np.abs(features[y == label].mean(0) - features[y != label].mean(0))
        for label in np.unique(y)
    ]
    return np.argsort(-np.max(gaps, 0), kind="stable")


def _check(pair: ModelPair, stitch: Stitch, saes: dict[str, Encoder], ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        raise ValueError(f"ks is {list(ks)}; expected numbers of features, 1 or more")
    for name, sae in saes.items():
        d_model = pair.source.d_model if name == "source" else pair.target.d_model
        config = getattr(sae, "cfg", None)
        width = getattr(config, "d_in", d_model)
        if width != d_model:
            raise MismatchError(
                f"the {name} SAE reads {width} dimensions, its model has {d_model}; give the SAE of the stitch's own hook point"
            )
        hook = getattr(getattr(config, "metadata", None), "hook_name", None)
        expected = stitch.source_hook if name == "source" else stitch.target_hook
        if isinstance(hook, str) and not same_place(hook, expected):
            raise MismatchError(
                f"the {name} SAE is at {hook!r}; expected {expected!r}: give the SAE of the stitch's own hook point"
            )


@torch.no_grad()
def _features(
    model: HookedModel, texts: Sequence[str], hook: str, sae: Encoder, skip_first: int
) -> np.ndarray:
    """[text, feature], each text's mean over its unmasked tokens."""
    out: dict[int, np.ndarray] = {}
    for index, rows in read_tokens(model, texts, hook, skip_first=skip_first):
        out[index] = sae.encode(rows).double().mean(0).cpu().numpy()
    found = np.stack([out[i] for i in range(len(texts))])
    if not np.isfinite(found).all():
        raise NonFiniteError(
            f"the SAE gives NaN or infinity at {hook!r} of {model.name!r}; check its weights and dtype"
        )
    return found


def _sparse(
    features: dict[str, tuple[np.ndarray, np.ndarray]],
    y: np.ndarray,
    n_classes: int,
    ks: Sequence[int],
    n_random: int,
    seed: int,
) -> Iterator[tuple[str, float, np.ndarray]]:
    """(arm, k, probabilities [test text, class])."""
    narrowest = min(found[0].shape[1] for found in features.values())
    if max(ks) > narrowest:
        raise ValueError(
            f"ks goes up to {max(ks)}, an SAE has {narrowest} features; give smaller k"
        )
    order = {name: by_class_difference(found[0], y) for name, found in features.items()}
    pool = features.get("native", features["transferred"])
    alive = np.flatnonzero(pool[0].any(0))
    generator = np.random.default_rng(seed)
    for k in ks:
        chosen = order["source"][:k]
        own = fit_logistic(features["source"][0][:, chosen], y, n_classes, seed=seed)
        yield "source", k, own.probabilities(features["source"][1][:, chosen])
        yield "transferred", k, own.probabilities(features["transferred"][1][:, chosen])
        yield (
            "transferred_refit",
            k,
            _fitted(features["transferred"], order["transferred"][:k], y, n_classes, seed),
        )
        if "native" in features:
            yield "native", k, _fitted(features["native"], order["native"][:k], y, n_classes, seed)
        if len(alive) < k:
            logger.warning(
                "only %d features are ever active on the training texts; random features are left out at k = %d",
                len(alive),
                k,
            )
            continue
        for _ in range(n_random):
            yield (
                "random",
                k,
                _fitted(pool, generator.choice(alive, k, replace=False), y, n_classes, seed),
            )


def _fitted(
    features: tuple[np.ndarray, np.ndarray],
    chosen: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    seed: int,
) -> np.ndarray:
    found: Logistic = fit_logistic(features[0][:, chosen], y, n_classes, seed=seed)
    return found.probabilities(features[1][:, chosen])


def _dense(
    pair: ModelPair,
    stitch: Stitch,
    texts: Sequence[str],
    labels: Sequence[Any],
    test_texts: Sequence[str],
    seed: int,
) -> Iterator[tuple[str, np.ndarray]]:
    options: dict[str, Any] = {"read": "mean", "skip_first": stitch.skip_first, "seed": seed}
    native = LinearProbe.fit(pair.target, texts, labels, at=stitch.target_hook, **options)
    carried: LinearProbe = stitch.transfer(
        LinearProbe.fit(pair.source, texts, labels, at=stitch.source_hook, **options)
    )
    rows = native.rows(pair.target, test_texts)[0]
    for arm, probe in (("dense_native", native), ("dense_transferred", carried)):
        yield arm, probabilities(probe.logits(rows))


def _table(
    task: str, arms: dict[tuple[str, int | float], list[np.ndarray]], truth: np.ndarray, seed: int
) -> pd.DataFrame:
    rows = []
    for (arm, k), chances in arms.items():
        verdict = Verdict.of(chances, truth, seed=seed)
        accuracy, auroc = verdict.accuracy(seed=seed), verdict.auroc
        if arm == "random":
            accuracy, auroc = spread(list(verdict.accuracies)), spread(list(verdict.aurocs))
        rows.append(
            {
                "task": task,
                "arm": arm,
                "k": float(k),
                "n_draws": len(chances),
                "accuracy": accuracy.value,
                "low": accuracy.low,
                "high": accuracy.high,
                "auroc": auroc.value,
                "auroc_low": auroc.low,
                "auroc_high": auroc.high,
            }
        )
    return pd.DataFrame(rows)
