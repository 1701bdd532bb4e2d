"""Accuracy of a transferred probe and of its controls, and the gain from k labels of the target.

    result = evaluate_probe(pair, stitch, texts, labels, test_share=0.3)
    result.summary        # share of native accuracy above chance, with intervals
    result.figure()

Problem: the accuracy of a transferred probe means little alone: the task may be easy, the classes
unequal, or the token identities sufficient. Mechanism: all arms are evaluated on the same test
texts:

- ``source``: the probe on the source model, where it was fitted.
- ``native``: a probe fitted on the target with all training labels.
- ``transferred``: the source's probe, transferred; no label of the target is used.
- ``fine_tuned``: a probe fitted on k labels of the target, shrunk towards the transferred probe.
- ``scratch``: a probe fitted on the same k labels alone.
- ``shuffled``: the probe transferred by the map of shuffled pairs.
- ``permuted``: a probe fitted on permuted labels, transferred by the true map.
- ``token_identity``: the probe transferred to the target's token *embedding*, by the map that
  predicts the source's stream from it. It uses nothing but token identities.
- ``random``: random weights, half of them isotropic and half with the covariance of the target's
  rows, with a bias that splits the training texts evenly.

``fine_tuned`` and ``scratch`` standardise by all training texts of the target, because unlabelled
texts are cheap, and choose their penalty on the k rows.

All arms that are fitted use the method of the probe (`LinearProbe.method`).

Intervals are paired bootstraps over the test texts. For ``random`` and ``permuted`` the interval is
the range of 95% of the draws.

Limits: ``read="every"`` is refused, because tokens of one text are not independent items.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, note, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.adapters.probes._labels import check_labels, class_numbers, classes_of, plain_label
from lrt_lens.adapters.probes._linear_probe import METHODS, LinearProbe, probe_through, read_rows
from lrt_lens.adapters.probes._logistic import Logistic, Scaling, probabilities
from lrt_lens.figures._probes import probe_figure
from lrt_lens.models._hook_points import EMBED
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import Read, Readable, ShortTexts, readable, row_rule
from lrt_lens.models._text_codec import text_list
from lrt_lens.statistics._bootstrap import bootstrap_ratio
from lrt_lens.statistics._classification import ItemScores
from lrt_lens.statistics._draws import prediction_interval
from lrt_lens.statistics._intervals import Interval
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)

DRAWN_ARMS = ("random", "permuted")
"""Controls with many draws; their interval is the range of the draws."""


@dataclass(frozen=True)
class ProbeEvaluationSettings(Settings):
    """Settings of `evaluate_probe`: read position, split, learning curve and controls."""

    read: Read = "mean"
    """Position that is read, for a probe that is fitted here; a probe that is passed has its
    own."""
    short_texts: ShortTexts = "drop"
    """Rule for texts that the mask leaves nothing of in one of the models: ``"drop"``,
    ``"refuse"`` or ``"unmasked"``; a probe that is passed has its own rule."""
    test_share: float = 0.3
    """Share of the texts for the stratified test split, if ``test_texts`` is None."""
    ks: Sequence[int] = (10, 30, 100)
    """Numbers of labels of the target in the learning curve."""
    n_seeds: int = 5
    """Number of draws of each k labels; every class is among them."""
    n_random: int = 20
    """Number of random probes."""
    n_permuted: int = 5
    """Number of probes fitted on permuted labels."""
    task: str = "probe"
    """Name of the classification task."""
    seed: int = 0
    """Seed of splits, draws and bootstraps."""


@dataclass(frozen=True)
class ProbeEvaluation:
    """Accuracies of all arms on the same test texts."""

    table: pd.DataFrame
    """One row per arm and k.

    Columns: task, arm, k (labels of the target that were used, or 0), n_draws, accuracy, low, high,
    auroc, auroc_low, auroc_high.
    """
    summary: pd.DataFrame
    """One row per arm and k.

    Columns: task, arm, k, accuracy, low, high, share_of_native, share_low, share_high. The share is
    (accuracy − chance) / (native − chance); it is undefined if the interval of ``native`` includes
    chance.
    """
    chance: float
    """Share of the largest class among the test texts."""
    n_test: int
    """Number of test texts."""
    probes: dict[str, LinearProbe] = field(repr=False)
    """The probes ``source``, ``native`` and ``transferred``."""
    n_dropped: int = 0
    """Number of texts left out because the mask leaves nothing of them in one of the models."""
    n_cut: int = 0
    """Number of texts that were cut to the context of a model."""

    @property
    def task(self) -> str:
        """Name of the classification task."""
        return str(self.table["task"].iloc[0])

    def figure(self) -> Any:
        """Return a plotly figure of the accuracy of every arm and of the learning curve over k."""
        return probe_figure(self.table, chance=self.chance)

    def _repr_html_(self) -> str:
        dropped = f"; {self.n_dropped} texts were too short" if self.n_dropped else ""
        return card(
            "ProbeEvaluation",
            note(f"{self.task}: {self.n_test} test texts, chance {self.chance:.2f}{dropped}."),
            table(self.summary),
        )


@takes(ProbeEvaluationSettings)
def evaluate_probe(
    pair: ModelPair,
    stitch: Stitch,
    texts: Sequence[str],
    labels: Sequence[Any],
    *,
    probe: LinearProbe | None = None,
    test_texts: Sequence[str] | None = None,
    test_labels: Sequence[Any] | None = None,
    token_map: AffineMap | None = None,
    progress: bool = True,
    settings: ProbeEvaluationSettings | None = None,
    **options: Any,
) -> ProbeEvaluation:
    """Return accuracy and AUROC of a transferred probe and of its controls, with intervals.

    Args:
        pair: both models.
        stitch: a stitch between the probe's hook point and a hook point of the target.
        texts: training texts. Without ``test_texts`` they are split, stratified by label, into
            training and test texts.
        labels: one per text, str or int.
        probe: a probe fitted on the source; None fits one here on the training texts. A probe with
            ``read="every"`` is refused, because tokens of one text are not independent items.
        test_texts: texts to evaluate on.
        test_labels: their labels.
        token_map: map for the arm ``token_identity``, from the target's ``hook_embed`` to the
            source hook point:
            ``token_identity_map(harvest(pair.reversed(), …), stitch.source_hook)``. Without it the
            arm is left out.
        progress: show a progress bar.
        settings: the remaining settings; each field can be passed as a keyword instead.
        **options: fields of `ProbeEvaluationSettings`.

    Raises:
        ValueError: labels of one class, not one label per text, or fewer training texts than the
            largest k.
        MismatchError: models, a probe or a map that do not belong to the stitch.

    Source: Stitching (arXiv 2506.06609), §4, transfers probes in this way. The learning curve and
    the controls are additions.
    """
    settings = resolve(ProbeEvaluationSettings, settings, options)
    task, seed = settings.task, settings.seed
    stitch.check(pair.source, pair.target)
    train, test = _split(texts, labels, test_texts, test_labels, settings)
    n_given = len(train[0]) + len(test[0])
    kept = [_readable(pair, stitch, probe, part, settings) for part in (train, test)]
    train, test = (
        (one.of(part[0]), one.of(part[1])) for one, part in zip(kept, (train, test), strict=True)
    )
    _check(pair, stitch, probe, train, token_map, settings)
    if probe is None:
        probe = LinearProbe.fit(
            pair.source,
            *train,
            at=stitch.source_hook,
            read=settings.read,
            name=task,
            skip_first=stitch.skip_first,
            short_texts=settings.short_texts,
            seed=seed,
        )
    arms = _ProbeArms(pair, stitch, probe, train, test, seed)
    # Arms of several draws appear once per draw and collect their predictions.
    by_arm: dict[tuple[str, int], list[np.ndarray]] = {}
    for arm, k, p in _with_progress(arms, token_map, settings, progress):
        by_arm.setdefault((arm, k), []).append(p)
    scored = {key: ItemScores.of(draws, arms.truth, seed=seed) for key, draws in by_arm.items()}
    # Accuracy of always predicting the most frequent class.
    chance = float(np.bincount(arms.truth).max() / len(arms.truth))
    tidy, summary = _tables(task, scored, chance, seed)
    probes = {"source": probe, "native": arms.native, "transferred": arms.transferred}
    n_dropped = n_given - len(train[0]) - len(test[0])
    n_cut = sum(one.n_cut for one in kept)
    return ProbeEvaluation(tidy, summary, chance, len(arms.truth), probes, n_dropped, n_cut)


Labelled = tuple[list[str], list[Any]]
"""Texts, and one label per text."""


def _split(
    texts: Sequence[str],
    labels: Sequence[Any],
    test_texts: Sequence[str] | None,
    test_labels: Sequence[Any] | None,
    settings: ProbeEvaluationSettings,
) -> tuple[Labelled, Labelled]:
    """Return training and test texts with labels; a stratified split if ``test_texts`` is None."""
    texts, labels = check_labels(texts, labels)
    plain = [plain_label(label) for label in labels]
    if (test_texts is None) != (test_labels is None):
        raise ValueError(
            "test_texts and test_labels come together; give both, or neither and test_share"
        )
    if test_texts is not None and test_labels is not None:
        test_texts, test_labels = check_labels(test_texts, test_labels)
        plain_test = [plain_label(label) for label in test_labels]
        return (text_list(texts), plain), (text_list(test_texts), plain_test)
    from sklearn.model_selection import train_test_split

    classes, share = classes_of(plain), settings.test_share
    # Both sides need at least one text per class.
    n_test = round(share * len(plain))
    if not 0 < share < 1 or min(n_test, len(plain) - n_test) < len(classes):
        raise ValueError(
            f"test_share is {share} of {len(plain)} texts; expected a share between 0 and 1 that "
            f"leaves {len(classes)} classes on both sides"
        )
    listed, numbers = text_list(texts), class_numbers(plain, classes)
    if (fewest := int(np.bincount(numbers).min())) < 2:
        raise ValueError(
            f"a class has {fewest} text; splitting needs 2 of each: give more texts, or test_texts "
            "and test_labels"
        )
    train, test = train_test_split(
        np.arange(len(plain)), test_size=share, random_state=settings.seed, stratify=numbers
    )
    first, second = (
        ([listed[i] for i in part.tolist()], [plain[i] for i in part.tolist()])
        for part in (np.asarray(train), np.asarray(test))
    )
    return first, second


def _readable(
    pair: ModelPair,
    stitch: Stitch,
    probe: LinearProbe | None,
    part: Labelled,
    settings: ProbeEvaluationSettings,
) -> Readable:
    """Return which texts both models have a token of to read."""
    models = (pair.source, pair.target)
    if probe is not None:
        return probe.readable(models, part[0])
    return readable(
        models,
        part[0],
        settings.read,
        skip_first=stitch.skip_first,
        short_texts=settings.short_texts,
    )


def _check(
    pair: ModelPair,
    stitch: Stitch,
    probe: LinearProbe | None,
    train: Labelled,
    token_map: AffineMap | None,
    settings: ProbeEvaluationSettings,
) -> None:
    """Raise for settings that do not fit the texts, and for a probe or map of another stitch."""
    if probe is not None:
        stitch.refuse_foreign(probe.origin)
        if probe.read == "every":
            raise ValueError(
                "the probe reads every token, and tokens of one text are no independent items; "
                "give a probe that is read once per text"
            )
    # Each draw of k labels holds every class, so k is at least the number of classes.
    classes, ks = len(set(train[1])), settings.ks
    if settings.n_seeds < 1 or any(not classes <= k <= len(train[0]) for k in ks):
        raise ValueError(
            f"ks is {list(ks)}, n_seeds {settings.n_seeds}; expected numbers of labels from "
            f"{classes} (one per class) to {len(train[0])} (the training texts), and at least one "
            "seed: give smaller k or more texts"
        )
    if token_map is not None:
        models = (pair.source.identity, pair.target.identity)
        stitch.refuse_other_token_map(token_map, *models)


class _ProbeArms:
    """The predictions of every arm, from training and test texts read once on each model."""

    def __init__(
        self,
        pair: ModelPair,
        stitch: Stitch,
        probe: LinearProbe,
        train: Labelled,
        test: Labelled,
        seed: int,
    ) -> None:
        self.pair, self.stitch, self.probe, self.seed = pair, stitch, probe, seed
        self.train_texts, self.test_texts = train[0], test[0]
        self.classes = probe.classes
        self.y = class_numbers(train[1], self.classes)
        self.truth = class_numbers(test[1], self.classes)
        if missing := set(range(len(self.classes))) - set(self.y.tolist()):
            raise ValueError(
                f"no training text is labelled {[self.classes[i] for i in sorted(missing)]}; give "
                "training texts of all classes of the probe"
            )
        self.transferred: LinearProbe = stitch.transfer(probe)
        # x: rows of the target; z: rows that the transferred probe multiplies. They differ only for
        # read="max", whose rows are maxima of mapped states.
        self.x, self.x_test = (self._read(texts) for texts in (self.train_texts, self.test_texts))
        self.z, self.z_test = self.x, self.x_test
        if self.transferred.before is not None:
            self.z, self.z_test = (
                self.transferred.rows(pair.target, texts)[0].numpy()
                for texts in (self.train_texts, self.test_texts)
            )
        # All arms are fitted by the method of the probe, so that they differ in their data only. A
        # probe that was not fitted here has no method; logistic regression is its reference.
        method = probe.method if probe.method in METHODS else "logistic_regression"
        self.fits = METHODS[method]
        # The reference with all labels of the target.
        fit = self.fits.fit(self.x, self.y, len(self.classes), seed=seed)
        self.native = replace(
            probe,
            weight=torch.from_numpy(fit.weight),
            bias=torch.from_numpy(fit.bias),
            hook=stitch.target_hook,
            model=pair.target.identity,
            method=method,
            penalty=fit.penalty,
            before=None,
        )

    def _read(self, texts: list[str]) -> np.ndarray:
        hook, read, skip_first = self.stitch.target_hook, self.probe.read, self.probe.skip_first
        rows, _ = read_rows(
            self.pair.target,
            texts,
            hook,
            read,
            skip_first,
            short_texts=row_rule(self.probe.short_texts),
            truncation=self.probe.truncation,
        )
        return rows.numpy()

    def single(self, token_map: AffineMap | None) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yield arm, k and probabilities [text, class] of the arms that are measured once."""
        source = self.probe.rows(self.pair.source, self.test_texts)[0]
        yield "source", 0, _predict(self.probe, source)
        yield "native", len(self.y), _predict(self.native, torch.from_numpy(self.x_test))
        yield "transferred", 0, _predict(self.transferred, torch.from_numpy(self.z_test))
        if self.stitch.null is None:
            logger.warning(
                "the stitch has no map of shuffled pairs; the arm 'shuffled' is left out: fit this "
                "pair alone with null='full'"
            )
        else:
            # A probe is transferred by the map target → source, so its control is the null's
            # `down`.
            shuffled = self.stitch.transfer(self.probe, through=self.stitch.null.down)
            yield "shuffled", 0, self._on_target(shuffled)
        if token_map is not None:
            # The map starts at the embedding, so that is where the transferred probe reads.
            tokens = probe_through(self.probe, token_map, EMBED, self.pair.target.identity)
            yield "token_identity", 0, self._on_target(tokens)

    def _on_target(self, probe: LinearProbe) -> np.ndarray:
        return _predict(probe, probe.rows(self.pair.target, self.test_texts)[0])

    def permuted(self, n: int) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yield arm, k and probabilities of probes fitted on permuted labels and transferred."""
        rows = self.probe.rows(self.pair.source, self.train_texts)[0].numpy() if n else np.empty(0)
        # The penalty of the probe is used again: cross-validation on permuted labels would choose
        # the largest candidate.
        options: dict[str, Any] = (
            {} if math.isnan(self.probe.penalty) else {"penalties": (self.probe.penalty,)}
        )
        for draw in range(n):
            y = np.random.default_rng((self.seed, draw)).permutation(self.y)
            fit = self.fits.fit(rows, y, len(self.classes), seed=self.seed, **options)
            weight, bias = torch.from_numpy(fit.weight), torch.from_numpy(fit.bias)
            transferred = self.stitch.transfer(replace(self.probe, weight=weight, bias=bias))
            yield "permuted", 0, _predict(transferred, torch.from_numpy(self.z_test))

    def random(self, n: int) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yield arm, k and probabilities of random weights.

        The second half of them have the rows' covariance.
        """
        generator = np.random.default_rng(self.seed)
        centred = self.x - self.x.mean(0)
        # XᵀX = V Λ Vᵀ, so that V Λ^½ g has this covariance for a standard normal g.
        values, vectors = np.linalg.eigh(centred.T @ centred)
        root = vectors * np.sqrt(np.clip(values, 0, None))
        for draw in range(n):
            weight = generator.standard_normal((self.x.shape[1], len(self.native.bias)))
            weight = weight if draw < n // 2 else root @ weight
            # logits: rows [text, d] times random weights [d, column].
            logits = self.x @ weight
            # Subtracting the median splits the training texts evenly, dividing by the deviation
            # keeps the logits in the range of a sigmoid.
            scale, middle = logits.std(0) + 1e-30, np.median(logits, 0)
            yield "random", 0, probabilities((self.x_test @ weight - middle) / scale)

    def learning_curve(
        self, ks: Sequence[int], n_seeds: int
    ) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yield arm, k and probabilities of the arms that are fitted on k labels, for each draw."""
        start = Logistic(
            self.transferred.weight.double().numpy(), self.transferred.bias.double().numpy()
        )
        # Standardisation needs no labels, so all training texts take part.
        scaling, scaling_z = Scaling.of(self.x), Scaling.of(self.z)
        for k in ks:
            for draw in range(n_seeds):
                rows = _stratified_rows(self.y, k, np.random.default_rng((self.seed, k, draw)))
                y = self.y[rows]
                # Both arms have the same rows and the same seed of folds, so they differ in the
                # shrinkage only.
                fine_tuned = self.fits.fit_towards(
                    self.z[rows], y, start, scaling=scaling_z, seed=draw
                )
                yield "fine_tuned", k, fine_tuned.probabilities(self.z_test)
                scratch = self.fits.fit(
                    self.x[rows], y, len(self.classes), scaling=scaling, seed=draw
                )
                yield "scratch", k, scratch.probabilities(self.x_test)


def _with_progress(
    arms: _ProbeArms, token_map: AffineMap | None, settings: ProbeEvaluationSettings, progress: bool
) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield arm, k and probabilities of all arms and draws, with a progress bar."""
    parts = (
        arms.single(token_map),
        arms.permuted(settings.n_permuted),
        arms.random(settings.n_random),
        arms.learning_curve(settings.ks, settings.n_seeds),
    )
    # Five arms are measured once; the learning curve has two arms.
    n_curve = 2 * len(settings.ks) * settings.n_seeds
    yield from tqdm(
        (prediction for part in parts for prediction in part),
        total=5 + settings.n_random + settings.n_permuted + n_curve,
        desc=f"probe {settings.task}",
        disable=not progress,
        leave=False,
    )


def _predict(probe: LinearProbe, rows: Tensor) -> np.ndarray:
    return probabilities(probe.logits(rows))


def _stratified_rows(y: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    """Indices of k random rows, at least one of each class, [k]."""
    order = generator.permutation(len(y))
    # A classifier needs at least one row of each class.
    first = [int(np.flatnonzero(y[order] == label)[0]) for label in np.unique(y)]
    others = [index for index in range(len(y)) if index not in set(first)]
    return order[[*first, *others[: k - len(first)]]]


def _tables(
    task: str, scored: dict[tuple[str, int], ItemScores], chance: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return table and summary of a `ProbeEvaluation`."""
    native = next(scores for (arm, _), scores in scored.items() if arm == "native")
    rows, summary = [], []
    for (arm, k), scores in scored.items():
        accuracy, auroc = scores.accuracy(seed=seed), scores.auroc
        # Draws of a control are random, so their spread matters, not that of the texts.
        if arm in DRAWN_ARMS:
            accuracy, auroc = (
                prediction_interval(list(scores.accuracies)),
                prediction_interval(list(scores.aurocs)),
            )
        # share = (accuracy − chance) / (native − chance), bootstrapped over the same texts
        share = bootstrap_ratio(scores.correct - chance, native.correct - chance, seed=seed)
        key = {"task": task, "arm": arm, "k": k}
        shown = _columns("accuracy", "", accuracy)
        n_draws = {"n_draws": len(scores.accuracies)}
        rows.append(key | n_draws | shown | _columns("auroc", "auroc_", auroc))
        summary.append(key | shown | _columns("share_of_native", "share_", share))
    return pd.DataFrame(rows), pd.DataFrame(summary)


def _columns(name: str, prefix: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{prefix}low": interval.low, f"{prefix}high": interval.high}
