"""A probe of the old revision, read in the new one by every arm.

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

from lrt_lens.adapters.probes._labels import class_numbers
from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.adapters.probes._logistic import log_probabilities
from lrt_lens.adapters.probes._probe_arms import shuffled_draws
from lrt_lens.adapters.probes._relearning import relearnt_from
from lrt_lens.adapters.probes._split import Labelled, split_texts
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
    settings: UpdateSettings,
    shared: SharedRows,
) -> ArtefactUpdate:
    """Return what became of a probe; without labelled texts only what moments say.

    ``shared`` has the rows of texts that other probes read too.

    Raises:
        ValueError: the probe reads every token, whose labels are those of texts.
        MismatchError: the probe belongs to another model or hook point.
    """
    stitches = revisions.stitches[probe.hook]
    prediction = revisions.prediction_read(probe.hook, probe.weight)
    repaired = stitches["repaired"].transfer(probe)
    update = ArtefactUpdate(probe.name, "probe", probe.hook, prediction, repaired=repaired)
    if labelled is None:
        return update
    if probe.read == "every":
        raise ValueError(
            f"probe {probe.name!r} reads every token; labels of texts measure probes that read one "
            "row per text: give a probe with read='last', 'mean' or 'max'"
        )
    texts = _ProbeTexts(revisions, probe, labelled, settings, shared)
    scores = texts.arms(settings)
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
        repaired=texts.probes["repaired"],
        n=len(truth),
    )


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
        self.pair, self.probe = revisions.pair, probe
        self.stitches = revisions.stitches[probe.hook]
        given = Labelled.of(labelled[0], labelled[1], None)
        given = given.read_by(probe.readable([self.pair.source, self.pair.target], given.texts))
        train, test = split_texts(given, share=settings.test_share, seed=settings.seed)
        self.train, self.test = train.texts, test.texts
        self.y = class_numbers(train.labels, probe.classes)
        self.truth = class_numbers(test.labels, probe.classes)
        parts = (self.train, self.test)
        self.old_train, self.old_test = (
            probe.logits(shared.of(probe, self.pair.source, texts)) for texts in parts
        )
        self.probes = {"frozen": self.stitches["frozen"].transfer(probe)}
        self._rows = [shared.of(self.probes["frozen"], self.pair.target, texts) for texts in parts]

    def arms(self, settings: UpdateSettings) -> dict[str, list[np.ndarray]]:
        """Return the log-probabilities [text, class] of every draw of every arm."""
        probe, repaired = self.probe, self.stitches["repaired"]
        found = {"old": [log_probabilities(self.old_test)]}
        found["frozen"] = [self._scores(self.probes["frozen"])]
        for arm in REPAIRS:
            self.probes[arm] = self._set(self.stitches[arm].transfer(probe), settings)
            found[arm] = [self._scores(self.probes[arm])]
        self.probes["relearnt"] = relearnt_from(
            self.probes["frozen"], self._rows[0].cpu().numpy(), self.y, seed=settings.seed
        )
        found["relearnt"] = [self._scores(self.probes["relearnt"])]
        if repaired.null is not None and settings.n_shuffled > 0:
            through = repaired.null.down
            statistics, n = repaired.source_statistics, settings.n_shuffled
            # Maxima of mapped states need a pass per draw, and one map is one draw.
            n = 1 if probe.read == "max" else n
            found["shuffled"] = [
                self._scores(self._set(repaired.transfer(one, through=through), settings))
                for one in shuffled_draws(statistics, probe, n, settings.seed)
            ]
        return found

    def _read(self, probe: LinearProbe, test: bool) -> np.ndarray:
        """Return the logits of a probe on training or test texts of the new revision."""
        if probe.before is None:
            return probe.logits(self._rows[test])
        return probe.logits(probe.rows(self.pair.target, self.test if test else self.train)[0])

    def _scores(self, probe: LinearProbe) -> np.ndarray:
        return log_probabilities(self._read(probe, test=True))

    def _set(self, probe: LinearProbe, settings: UpdateSettings) -> LinearProbe:
        """Return the probe with the threshold that the training texts set, without labels."""
        if settings.recentre == "none":
            return probe
        return probe.matched(self.old_train, self._read(probe, test=False), self.train)

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


def _log_odds(log_probability: np.ndarray) -> np.ndarray:
    return log_probability[:, 1] - log_probability[:, 0]


def _loss(old: np.ndarray, draws: Sequence[np.ndarray], truth: np.ndarray) -> Interval:
    """Return the loss of AUROC against the old revision: over texts, or where a draw falls."""
    if len(draws) > 1:
        return prediction_interval([auroc(old, truth) - auroc(draw, truth) for draw in draws])
    return auroc_difference(old, draws[0], truth)
