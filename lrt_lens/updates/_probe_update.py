"""A probe of the old revision, read in the new one by every arm.

The repaired probe goes through a map that was fitted on documents; the distilled one is corrected
on unlabelled texts of the probe's own kind (`lrt_lens.adapters.probes._distilling`), which are the
training texts, whose labels only the arm ``relearnt`` sees, and what ``unlabelled`` adds.

Scores are log-odds. The loss is a difference of AUROC on the same texts, with the interval of
`auroc_difference`. ``recall_at_…`` uses the threshold that had this rate of false positives on the
old revision (on the negative training texts), which is how a monitor is deployed, and
``false_positives_at_…`` is what the rate has become.

Limits: recalls are for probes of two classes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lrt_lens.adapters.probes._distilling import FEWEST_TEXTS, distilled_from
from lrt_lens.adapters.probes._labels import class_numbers
from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.adapters.probes._logistic import log_probabilities
from lrt_lens.adapters.probes._probe_arms import shuffled_draws
from lrt_lens.adapters.probes._relearning import relearnt_from
from lrt_lens.adapters.probes._split import Labelled, split_texts
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._classification import auroc, auroc_difference, auroc_interval
from lrt_lens.statistics._draws import prediction_interval
from lrt_lens.statistics._intervals import Interval
from lrt_lens.updates._revisions import REPAIRS, Revisions
from lrt_lens.updates._shared_rows import SharedRows
from lrt_lens.updates._update_settings import UpdateSettings
from lrt_lens.updates._verdicts import ArtefactUpdate


def update_probe(
    revisions: Revisions,
    probe: LinearProbe,
    labelled: tuple[Sequence[str], Sequence[Any]] | None,
    unlabelled: Sequence[str] | None,
    settings: UpdateSettings,
    shared: SharedRows,
) -> ArtefactUpdate:
    """Return what became of a probe; without labelled texts only what moments say.

    ``unlabelled`` are texts that correct the repair, and ``shared`` has the rows of texts that
    other probes read too.

    Raises:
        ValueError: the probe reads every token, whose labels are those of texts.
        MismatchError: the probe belongs to another model or hook point.
    """
    prediction = revisions.prediction_read(probe.hook, probe.weight)
    update = ArtefactUpdate(probe.name, "probe", probe.hook, prediction)
    if labelled is None:
        repairs = _Repairs(revisions, probe, [], unlabelled, settings, shared)
        return replace(update, repaired=repairs.best, kept_texts=repairs.kept)
    if probe.read == "every":
        raise ValueError(
            f"probe {probe.name!r} reads every token; labels of texts measure probes that read one "
            "row per text: give a probe with read='last', 'mean' or 'max'"
        )
    texts = _ProbeTexts(revisions, probe, labelled, settings, shared)
    repairs = _Repairs(revisions, probe, texts.train, unlabelled, settings, shared)
    scores = texts.arms(repairs, settings)
    old, truth = scores["old"][0], texts.truth
    losses = {arm: _loss(old, draws, truth) for arm, draws in scores.items() if arm != "old"}
    rows = []
    for arm, draws in scores.items():
        interval = auroc_interval(draws, truth)
        rows.append(
            {"arm": arm, "measure": "auroc", "n_draws": len(draws)}
            | {"value": interval.value, "low": interval.low, "high": interval.high}
            | texts.at_thresholds(draws, settings.false_positive_rates)
        )
    return replace(
        update,
        measure="auroc",
        rows=rows,
        losses=losses,
        repaired=repairs.best,
        kept_texts=repairs.kept,
        n=len(truth),
    )


class _Repairs:
    """The probe as it is and repaired without labels, with the help of unlabelled texts."""

    def __init__(
        self,
        revisions: Revisions,
        probe: LinearProbe,
        readable: list[str],
        unlabelled: Sequence[str] | None,
        settings: UpdateSettings,
        shared: SharedRows,
    ) -> None:
        """Repair the probe; ``readable`` are texts of which its position is known to exist."""
        self.pair, self.stitches = revisions.pair, revisions.stitches[probe.hook]
        self._shared, self._texts = shared, list[str]()
        if probe.read != "every" and settings.recentre != "none":
            self._texts = [*readable, *_readable(probe, self.pair, unlabelled)]
        if self._texts:
            self._old = probe.logits(shared.of(probe, self.pair.source, self._texts))
        self.probes = {"frozen": self.stitches["frozen"].transfer(probe)}
        for arm in REPAIRS:
            self.probes[arm] = self.set(self.stitches[arm].transfer(probe))
        repaired = self.probes["repaired"]
        if self._texts and repaired.before is None:
            rows = shared.of(repaired, self.pair.target, self._texts)
            self.probes["distilled"] = distilled_from(repaired, rows, self._old, self._texts)

    @property
    def best(self) -> LinearProbe:
        """The repaired probe, corrected where texts allow it."""
        return self.probes.get("distilled", self.probes["repaired"])

    @property
    def kept(self) -> float:
        """Correlation of the frozen scores in both revisions, mean over columns; NaN if unread."""
        if len(self._texts) < FEWEST_TEXTS:
            return float("nan")
        frozen = self.probes["frozen"]
        new = frozen.logits(self._shared.of(frozen, self.pair.target, self._texts))
        # Some probes of two classes have a column of zeros.
        columns = [c for c in range(new.shape[1]) if self._old[:, c].any()]
        return float(np.mean([np.corrcoef(self._old[:, c], new[:, c])[0, 1] for c in columns]))

    def set(self, probe: LinearProbe) -> LinearProbe:
        """Return a probe of the new revision with the threshold that the texts set."""
        if not self._texts:
            return probe
        rows = self._shared.of(probe, self.pair.target, self._texts)
        return probe.matched(self._old, probe.logits(rows), self._texts)


class _ProbeTexts:
    """Labelled texts, read once on both revisions."""

    def __init__(
        self,
        revisions: Revisions,
        probe: LinearProbe,
        labelled: tuple[Sequence[str], Sequence[Any]],
        settings: UpdateSettings,
        shared: SharedRows,
    ) -> None:
        self.pair, self.probe, self._shared = revisions.pair, probe, shared
        given = Labelled.of(labelled[0], labelled[1], None)
        given = given.read_by(probe.readable([self.pair.source, self.pair.target], given.texts))
        train, test = split_texts(given, share=settings.test_share, seed=settings.seed)
        self.train, self.test = train.texts, test.texts
        self.y = class_numbers(train.labels, probe.classes)
        self.truth = class_numbers(test.labels, probe.classes)
        self.old_train, self.old_test = (
            probe.logits(shared.of(probe, self.pair.source, texts))
            for texts in (self.train, self.test)
        )

    def arms(self, repairs: _Repairs, settings: UpdateSettings) -> dict[str, list[np.ndarray]]:
        """Return the log-probabilities [text, class] of every draw of every arm."""
        found = {"old": [log_probabilities(self.old_test)]}
        found |= {arm: [self._scores(probe)] for arm, probe in repairs.probes.items()}
        frozen = repairs.probes["frozen"]
        rows = self._shared.of(frozen, self.pair.target, self.train).cpu().numpy()
        relearnt = relearnt_from(frozen, rows, self.y, seed=settings.seed)
        found["relearnt"] = [self._scores(relearnt)]
        repaired = repairs.stitches["repaired"]
        if repaired.null is not None and settings.n_shuffled > 0:
            through = repaired.null.down
            # Maxima of mapped states need a pass per draw, and one map is one draw.
            n = 1 if self.probe.read == "max" else settings.n_shuffled
            found["shuffled"] = [
                self._scores(repairs.set(repaired.transfer(one, through=through)))
                for one in shuffled_draws(repaired.source_statistics, self.probe, n, settings.seed)
            ]
        return found

    def _scores(self, probe: LinearProbe) -> np.ndarray:
        """Return the log-probabilities [text, class] of a probe of the new revision."""
        rows = self._shared.of(probe, self.pair.target, self.test)
        return log_probabilities(probe.logits(rows))

    def at_thresholds(
        self, draws: Sequence[np.ndarray], rates: Sequence[float]
    ) -> dict[str, float]:
        """Return recall and false positives at the thresholds of the old revision."""
        if len(self.probe.classes) != 2:
            return {}
        negatives = _log_odds(log_probabilities(self.old_train))[self.y == 0]
        columns: dict[str, float] = {}
        for rate in rates:
            threshold = np.quantile(negatives, 1 - rate)
            above = np.mean([_log_odds(draw) > threshold for draw in draws], 0)
            columns[f"recall_at_{rate:g}"] = float(above[self.truth == 1].mean())
            columns[f"false_positives_at_{rate:g}"] = float(above[self.truth == 0].mean())
        return columns


def _readable(probe: LinearProbe, pair: ModelPair, texts: Sequence[str] | None) -> list[str]:
    """Return the texts of which both revisions have a token to read."""
    if not texts:
        return []
    return probe.readable([pair.source, pair.target], texts).of(texts)


def _log_odds(log_probability: np.ndarray) -> np.ndarray:
    return log_probability[:, 1] - log_probability[:, 0]


def _loss(old: np.ndarray, draws: Sequence[np.ndarray], truth: np.ndarray) -> Interval:
    """Return the loss of AUROC against the old revision: over texts, or where a draw falls."""
    if len(draws) > 1:
        return prediction_interval([auroc(old, truth) - auroc(draw, truth) for draw in draws])
    return auroc_difference(old, draws[0], truth)
