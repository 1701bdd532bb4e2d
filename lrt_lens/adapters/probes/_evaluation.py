"""Accuracy of a transferred probe and of its controls, and the gain from k labels of the target.

    result = evaluate_probe(pair, stitch, texts, labels, test_share=0.3)
    result.summary        # share of native accuracy above chance, with intervals
    result.figure()

Problem: the accuracy of a transferred probe means little alone: the task may be easy, the classes
unequal, or the token identities sufficient. Mechanism: all arms are evaluated on the same test
texts:

- ``source``: the probe on the source model, where it was fitted.
- ``native``: a probe fitted on the target with all training labels.
- ``transferred``: the source's probe, transferred, with its threshold set on the unlabelled
  training texts (`recentre_probe`); no label of the target is used.
- ``transferred_raw``: the same with the threshold that the map gives.
- ``fine_tuned``: a probe fitted on k labels of the target, shrunk towards the transferred probe.
- ``scratch``: a probe fitted on the same k labels alone.
- ``shuffled``: the probe transferred by the map of shuffled pairs.
- ``permuted``: a probe fitted on permuted labels, transferred by the true map.
- ``token_identity``: the probe transferred to the target's token *embedding*, by the map that
  predicts the source's stream from it. It uses nothing but token identities.
- ``random``: random weights, half of them isotropic and half with the covariance of the target's
  rows, recentred like the others (with ``recentre="none"``: with a bias that splits the training
  texts evenly).

``fine_tuned`` and ``scratch`` standardise by all training texts of the target, because unlabelled
texts are cheap, and choose their penalty on the k rows.

**Thresholds.** A threshold may be lost where the direction arrives, so accuracy and AUROC stand
together, and ``accuracy_best_threshold`` is what the best threshold on the test texts would give, a
diagnostic. ``threshold_flag`` names a large gap between the two and its remedy. All transferred
arms, ``token_identity``, ``shuffled`` and ``permuted`` among them, are recentred on the same texts,
each to the scores of its own source probe, so that none is better for its threshold alone;
``recentre="none"`` leaves all of them as the maps give them.

All arms that are fitted use the method of the probe (`LinearProbe.method`).

Intervals of single probes are over test texts, or over ``groups`` of them, such as a true and a
false line of one pair; those of the learning curve contain the draws of labels too
(`lrt_lens.statistics._classification`). For ``random``, ``permuted`` and ``shuffled`` the interval
is the one that a new draw falls into.

**Sign.** A direction without meaning is as often right as wrong, and with its sign turned it is
right as often as it was wrong: on true and false statements, single random probes reach .75. The
controls are therefore read without their sign. ``typical_size`` is the mean accuracy of a draw *or
its negative, whichever is larger*, and ``transferred_p`` the share of draws that reach the accuracy
of the transferred probe in this way. ``auroc_p`` compares the distance of the AUROC from
½, which does not depend on the threshold: use it if classes are unequal, or if the logits of a
shuffled map hardly vary.

Limits: ``read="every"`` is refused, because tokens of one text are not independent items. The
training texts count as fixed.
"""

import logging
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, note, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.probes._linear_probe import RECENTRE, LinearProbe
from lrt_lens.adapters.probes._probe_arms import Prediction, ProbeArms
from lrt_lens.adapters.probes._recentring import refuse_few
from lrt_lens.adapters.probes._split import Labelled, separate_texts
from lrt_lens.figures._probes import probe_figure
from lrt_lens.figures._template import with_counts
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import Read, Readable, ShortTexts, readable
from lrt_lens.models._text_codec import text_list
from lrt_lens.statistics._classification import ItemScores, clusters_of
from lrt_lens.statistics._draws import prediction_interval, rank_test
from lrt_lens.statistics._intervals import NOTHING, Interval, joined_flags
from lrt_lens.statistics._thresholds import threshold_flag
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)

DRAWN_ARMS = ("random", "permuted", "shuffled")
"""Controls with many draws; a new draw falls into their interval."""


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
    n_permuted: int = 20
    """Number of probes fitted on permuted labels."""
    n_shuffled: int = 20
    """Number of draws of the map of shuffled pairs; the first is that of the stitch."""
    groups: Sequence[Hashable] | None = None
    """One per text, such as the number of the pair or the story that it belongs to: texts of one
    group are all for training or all for testing, share folds, and are one unit of an interval."""
    test_groups: Sequence[Hashable] | None = None
    """Group of each text of ``test_texts``; none of them may be among ``groups``."""
    recentre: Literal["train", "none"] | Sequence[str] = "train"
    """Unlabelled texts on which the thresholds of transferred probes are set: ``"train"`` for the
    training texts, ``"none"``, or other texts, none of which may be tested."""
    task: str = "probe"
    """Name of the classification task."""
    seed: int = 0
    """Seed of splits and draws."""


@dataclass(frozen=True, repr=False)
class ProbeEvaluation(ShortRepr):
    """Accuracies of all arms on the same test texts."""

    table: pd.DataFrame
    """One row per arm and k.

    Columns: task, arm, k (labels of the target that were used, or 0), n_draws, accuracy, low, high,
    auroc, auroc_low, auroc_high, accuracy_best_threshold (at the best threshold on the test texts,
    mean over draws, a diagnostic), threshold_flag (a large gap between the two, with its remedy),
    contains (what varies in the interval), interval_flag (what is doubtful about it). For controls
    of several draws: typical_size and auroc_typical_size (mean of a draw or its negative, whichever
    is larger), transferred_p and auroc_p (share of draws that are as large in this sense as the
    transferred probe) and p_floor, the smallest p of so many draws.
    """
    summary: pd.DataFrame
    """One row per arm and k.

    Columns: task, arm, k, accuracy, low, high, auroc, accuracy_best_threshold, threshold_flag,
    share_of_native, share_low, share_high. The share is (accuracy − chance) / (native − chance); it
    is undefined if the interval of ``native`` includes chance. Also typical_size, transferred_p,
    p_floor, interval_flag, and note, which says if the transferred probe is better than its own
    source probe or than the native one, and by how much.
    """
    chance: float
    """Share of the largest class among the test texts."""
    n_test: int
    """Number of test texts."""
    probes: dict[str, LinearProbe] = field(repr=False)
    """The probes ``source``, ``native`` and ``transferred``, and ``transferred_raw`` if the
    transferred one is recentred."""
    n_dropped: int = 0
    """Number of texts left out because the mask leaves nothing of them in one of the models."""
    n_cut: int = 0
    """Number of texts that were cut to the context of a model."""
    n_test_groups: int | None = None
    """Number of groups of test texts; None if they are independent of each other."""

    @property
    def task(self) -> str:
        """Name of the classification task."""
        return str(self.table["task"].iloc[0])

    def figure(self) -> Any:
        """Return a plotly figure of the accuracy of every arm and of the learning curve over k."""
        figure = probe_figure(self.table, chance=self.chance)
        return with_counts(figure, {"test texts": self.n_test})

    def _repr_html_(self) -> str:
        dropped = f"; {self.n_dropped} texts were too short" if self.n_dropped else ""
        groups = "" if self.n_test_groups is None else f" in {self.n_test_groups} groups"
        tested = f"{self.n_test} test texts{groups}, chance {self.chance:.2f}{dropped}"
        return card("ProbeEvaluation", note(f"{self.task}: {tested}."), table(self.summary))


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
        test_labels: their labels. Both sides of a split have whole ``groups``, see
            `ProbeEvaluationSettings`.
        token_map: map for the arm ``token_identity``, from the target's ``hook_embed`` to the
            source hook point:
            ``token_identity_map(harvest(pair.reversed(), …), stitch.source_hook)``. Without it the
            arm is left out.
        progress: show a progress bar.
        settings: the remaining settings; each field can be passed as a keyword instead.
        **options: fields of `ProbeEvaluationSettings`.

    Raises:
        ValueError: labels of one class, not one label or group per text, a group on both sides,
            fewer training texts than the largest k, or texts to recentre on that are tested.
        MismatchError: models, a probe or a map that do not belong to the stitch.

    Source: Stitching (arXiv 2506.06609), §4, transfers probes in this way. The learning curve and
    the controls are additions.
    """
    settings = resolve(ProbeEvaluationSettings, settings, options)
    task, seed = settings.task, settings.seed
    stitch.check(pair.source, pair.target)
    train, test = separate_texts(
        (texts, labels, settings.groups),
        (test_texts, test_labels, settings.test_groups),
        share=settings.test_share,
        seed=seed,
    )
    n_given = len(train) + len(test)
    kept = [_readable(pair, stitch, probe, part, settings) for part in (train, test)]
    train, test = (part.read_by(one) for one, part in zip(kept, (train, test), strict=True))
    _check(pair, stitch, probe, train, token_map, settings)
    if probe is None:
        probe = _fitted(pair, stitch, train, settings)
    recentring = _recentring_texts(pair, probe, train, test, settings)
    arms = ProbeArms(pair, stitch, probe, train, test, seed, recentring=recentring)
    # Arms of several draws appear once per draw and collect their predictions.
    by_arm: dict[tuple[str, int], list[np.ndarray]] = {}
    for arm, k, p in _with_progress(arms, token_map, settings, progress):
        by_arm.setdefault((arm, k), []).append(p)
    tidy, summary, chance = _tables(task, by_arm, arms.truth, test)
    probes = {"source": probe, "native": arms.native, "transferred": arms.transferred}
    if recentring is not None:
        probes["transferred_raw"] = arms.raw
    return ProbeEvaluation(
        tidy,
        summary,
        chance,
        len(arms.truth),
        probes,
        n_dropped=n_given - len(train) - len(test),
        n_cut=sum(one.n_cut for one in kept),
        n_test_groups=None if test.groups is None else len(set(test.groups)),
    )


def _fitted(
    pair: ModelPair, stitch: Stitch, train: Labelled, settings: ProbeEvaluationSettings
) -> LinearProbe:
    """Return a probe of the source that is fitted on the training texts."""
    return LinearProbe.fit(
        pair.source,
        train.texts,
        train.labels,
        groups=train.groups,
        at=stitch.source_hook,
        read=settings.read,
        name=settings.task,
        skip_first=stitch.skip_first,
        short_texts=settings.short_texts,
        seed=settings.seed,
    )


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
        return probe.readable(models, part.texts)
    return readable(
        models,
        part.texts,
        settings.read,
        skip_first=stitch.skip_first,
        short_texts=settings.short_texts,
    )


def _recentring_texts(
    pair: ModelPair,
    probe: LinearProbe,
    train: Labelled,
    test: Labelled,
    settings: ProbeEvaluationSettings,
) -> list[str] | None:
    """Return the unlabelled texts that set thresholds, or None for none.

    Raises:
        ValueError: an unknown rule, too few texts, or texts that are tested.
    """
    if settings.recentre == "train":
        return train.texts
    if settings.recentre == "none":
        return None
    if isinstance(settings.recentre, str):
        raise ValueError(
            f"recentre is {settings.recentre!r}; expected 'train', 'none' or a list of texts"
        )
    texts = text_list(settings.recentre)
    if tested := set(texts) & set(test.texts):
        raise ValueError(
            f"{len(tested)} of {len(texts)} texts in recentre= are tested, such as "
            f"{min(tested)[:60]!r}; a threshold may not depend on test texts: leave them out"
        )
    kept = probe.readable((pair.source, pair.target), texts).of(texts)
    refuse_few(len(kept))
    return kept


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
    classes, ks = len(set(train.labels)), settings.ks
    if settings.n_seeds < 1 or any(not classes <= k <= len(train) for k in ks):
        raise ValueError(
            f"ks is {list(ks)}, n_seeds {settings.n_seeds}; expected numbers of labels from "
            f"{classes} (one per class) to {len(train)} (the training texts), and at least one "
            "seed: give smaller k or more texts"
        )
    if token_map is not None:
        models = (pair.source.identity, pair.target.identity)
        stitch.refuse_other_token_map(token_map, *models)


def _with_progress(
    arms: ProbeArms, token_map: AffineMap | None, settings: ProbeEvaluationSettings, progress: bool
) -> Iterator[Prediction]:
    """Yield arm, k and scores of all arms and draws, with a progress bar."""
    parts = (
        arms.single(token_map),
        arms.shuffled(settings.n_shuffled),
        arms.permuted(settings.n_permuted),
        arms.random(settings.n_random),
        arms.learning_curve(settings.ks, settings.n_seeds),
    )
    # Five arms are measured once at most; the learning curve has two arms.
    n_drawn = settings.n_random + settings.n_permuted + settings.n_shuffled
    yield from tqdm(
        (prediction for part in parts for prediction in part),
        total=5 + n_drawn + 2 * len(settings.ks) * settings.n_seeds,
        desc=f"probe {settings.task}",
        disable=not progress,
        leave=False,
    )


# ------------------------------------------------------------------------------------------- tables


def _tables(
    task: str, by_arm: dict[tuple[str, int], list[np.ndarray]], truth: np.ndarray, test: Labelled
) -> tuple[pd.DataFrame, pd.DataFrame, float]:
    """Return table and summary of a `ProbeEvaluation`, and the share of the largest class."""
    clusters, fixed = clusters_of(test.groups, len(truth))
    scored = {key: ItemScores.of(p, truth, clusters=clusters) for key, p in by_arm.items()}
    singles = {arm: scores for (arm, k), scores in scored.items() if len(scores.accuracies) == 1}
    native, transferred = singles["native"], singles["transferred"]
    # Accuracy of always predicting the most frequent class.
    chance = float(np.bincount(truth).max() / len(truth))
    units = "test texts" if test.groups is None else "groups of test texts"
    rows, summary = [], []
    for (arm, k), scores in scored.items():
        key = {"task": task, "arm": arm, "k": k}
        is_drawn, n_draws = arm in DRAWN_ARMS, len(scores.accuracies)
        columns = (
            _drawn(scores, transferred, native, chance)
            if is_drawn
            else _measured(arm, scores, native, chance, fixed)
        )
        contains = "draws" if is_drawn else units + (", draws of labels" if n_draws > 1 else "")
        shares = {name: columns.pop(name) for name in _SHARE}
        rows.append(key | {"n_draws": n_draws} | columns | {"contains": contains})
        # The summary has the AUROC beside the accuracy, but not all columns about it.
        shown = {name: columns[name] for name in columns if not name.startswith("auroc_")}
        remark = _remark(task, transferred, singles) if arm == "transferred" else ""
        summary.append(key | shown | shares | {"note": remark})
    order = ["task", "arm", "k", "accuracy", "low", "high", *_THRESHOLD, *_SHARE]
    frame = pd.DataFrame(summary)
    others = [name for name in frame if name not in order]
    return pd.DataFrame(rows), pd.DataFrame(frame, columns=[*order, *others]), chance


_THRESHOLD = ("auroc", "accuracy_best_threshold", "threshold_flag")
"""Columns that say if a threshold is misplaced."""
_SHARE = ("share_of_native", "share_low", "share_high")
"""Columns of the share of native, which only the summary has."""


_REMEDIES = {
    "transferred": "the texts that set the threshold are not like the test texts; give unlabelled "
    "texts of their domain, recentre=texts",
    "transferred_raw": RECENTRE,
}
"""Remedies for a misplaced threshold, by arm."""


def _remedy(arm: str) -> str:
    return _REMEDIES.get(arm, "its threshold is misplaced; compare its AUROC")


def _measured(
    arm: str, scores: ItemScores, native: ItemScores, chance: float, fixed: str
) -> dict[str, Any]:
    """Return the columns of an arm whose interval is over test texts."""
    accuracy, share = scores.accuracy(), scores.share_of(native, chance)
    flags = [fixed, accuracy.flag, scores.auroc.flag]
    columns = _intervals(accuracy, scores.auroc, share)
    best = float(scores.best_accuracies.mean())
    columns |= {"accuracy_best_threshold": best}
    columns |= {"threshold_flag": threshold_flag(accuracy, best, remedy=_remedy(arm))}
    return columns | {"interval_flag": joined_flags(flags)}


def _drawn(
    scores: ItemScores, transferred: ItemScores, native: ItemScores, chance: float
) -> dict[str, Any]:
    """Return the columns of a control of several draws."""
    accuracy = prediction_interval(scores.accuracies).within()
    auroc = prediction_interval(scores.aurocs).within()
    share = NOTHING
    if native.accuracy().excludes(chance):
        above = float(native.accuracies[0]) - chance
        share = prediction_interval((scores.accuracies - chance) / above)
    ours = float(transferred.accuracies[0]), float(transferred.aurocs[0])
    test = rank_test(ours[0], scores.either_sign)
    sizes = np.abs(scores.aurocs - 0.5)
    n = len(sizes)
    # An accuracy of one class is no reading of a direction, and no transferred probe has it.
    constant = f"{scores.n_constant} of {n} draws predict one class: read auroc_p"
    flags = [accuracy.flag, constant if scores.n_constant else ""]
    return _intervals(accuracy, auroc, share) | {
        "accuracy_best_threshold": float(scores.best_accuracies.mean()),
        # The best threshold of a draw without meaning is better by chance.
        "threshold_flag": "",
        "interval_flag": joined_flags(flags),
        "typical_size": float(scores.either_sign.mean()),
        "transferred_p": test.p,
        "auroc_typical_size": 0.5 + float(sizes.mean()),
        # An AUROC below ½ is one of the negative: sizes have no sign, so p is two-sided.
        "auroc_p": rank_test(ours[1] - 0.5, sizes).p,
        "p_floor": test.floor,
    }


def _intervals(accuracy: Interval, auroc: Interval, share: Interval) -> dict[str, Any]:
    return (
        _columns("accuracy", "", accuracy)
        | _columns("auroc", "auroc_", auroc)
        | _columns("share_of_native", "share_", share)
    )


def _remark(task: str, transferred: ItemScores, singles: dict[str, ItemScores]) -> str:
    """Return by how much the transferred probe is better than its source probe or the native one.

    Both are what it can be expected to reach, so a better one is logged.
    """
    remarks = []
    for arm, name in (("source", "its source probe"), ("native", "the native probe")):
        gain = transferred.above(singles[arm])
        if gain.value > 0:
            ends = f"{gain.low:+.3f} to {gain.high:+.3f}"
            remarks.append(f"better than {name} by {gain.value:.3f} ({ends})")
    if remarks:
        logger.warning(
            "%s: the transferred probe is %s; check that no test text was used to fit a probe, and "
            "that texts which belong together are in one group (groups=)",
            task,
            " and ".join(remarks),
        )
    return "; ".join(remarks)


def _columns(name: str, prefix: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{prefix}low": interval.low, f"{prefix}high": interval.high}
