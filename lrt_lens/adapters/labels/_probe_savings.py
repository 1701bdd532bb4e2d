"""How many labelled texts of the target a transferred probe saves.

    texts, labels = lrt.demo_texts("sentiment")
    result = lrt.evaluate_probe_labels(pair, stitch, texts, labels)
    result.summary

Problem and arms are those of `lrt_lens.adapters.labels._savings`. Mechanism: all texts are read
once on both models; probes of every draw are fitted on the stored rows. ``native`` is logistic
regression on k labels, ``combined`` that of `lrt_lens.adapters.labels._probe`. ``native``
standardises by all texts of the pool, because unlabelled texts are cheap.

Limits: texts are taken as independent of each other. ``read="max"`` and ``"every"`` are refused.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from lrt_lens._progress import tqdm
from lrt_lens._settings import resolve, takes
from lrt_lens.adapters.labels._probe import plain_classifier, whitening
from lrt_lens.adapters.labels._savings import (
    LabelSavings,
    LabelSavingsSettings,
    label_counts,
    pool_size,
)
from lrt_lens.adapters.probes._labels import Label, class_numbers, classes_of
from lrt_lens.adapters.probes._linear_probe import LinearProbe, read_rows
from lrt_lens.adapters.probes._logistic import (
    Logistic,
    Scaling,
    Whitening,
    fit_logistic,
    fit_towards,
)
from lrt_lens.adapters.probes._split import Labelled
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import ShortTexts, readable, row_rule
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)


@takes(LabelSavingsSettings)
def evaluate_probe_labels(
    pair: ModelPair,
    stitch: Stitch,
    texts: Sequence[str],
    labels: Sequence[Any],
    *,
    read: Literal["mean", "last"] | int = "mean",
    short_texts: ShortTexts = "drop",
    progress: bool = True,
    settings: LabelSavingsSettings | None = None,
    **options: Any,
) -> LabelSavings:
    """Return accuracy and AUROC of probes from k labels of the target, with and without transfer.

    Args:
        pair: both models.
        stitch: a stitch of these models; its null gives the control.
        texts: texts that are labelled on both models.
        labels: one per text, str or int.
        read: token of a text that is read, or ``"mean"`` over its tokens.
        short_texts: rule for texts that the mask leaves nothing of in one of the models.
        progress: show a progress bar.
        settings: the remaining settings; each field can be passed as a keyword instead. Every draw
            of k texts has each class, so k is 0 or at least the number of classes.
        **options: fields of `LabelSavingsSettings`.

    Raises:
        MismatchError: models that are not the stitch's.
        ValueError: labels of one class, not one label per text, a k that is larger than the number
            of texts that are not held out, or a ``read`` that is not supported.
    """
    settings = resolve(LabelSavingsSettings, settings, options)
    stitch.check(pair.source, pair.target)
    if read in ("max", "every"):
        raise ValueError(f"read is {read!r}; expected 'last', 'mean' or a position")
    given = Labelled.of(texts, labels, None)
    models = [pair.source, pair.target]
    kept = readable(
        models, given.texts, read, skip_first=stitch.skip_first, short_texts=short_texts
    )
    given = given.read_by(kept)
    classes = classes_of(given.labels)
    y = class_numbers(given.labels, classes)
    n_pool = pool_size(len(y), settings.held_out_share, 2 * len(classes))
    label_counts(settings, n_pool, len(classes))
    x, z = (
        read_rows(
            model, given.texts, hook, read, stitch.skip_first, short_texts=row_rule(short_texts)
        )[0]
        .cpu()
        .numpy()
        for model, hook in zip(models, (stitch.source_hook, stitch.target_hook), strict=True)
    )
    arms = _ProbeDraws(
        stitch, x, z, y, classes, settings, n_pool, whitening(stitch.target_statistics)
    )
    bar = tqdm(range(settings.n_draws), desc="label draws", disable=not progress, leave=False)
    rows = [
        {"task": settings.task, "unit": "texts"} | row for draw in bar for row in arms.draw(draw)
    ]
    chance = {"accuracy": float(np.bincount(y).max() / len(y)), "auroc": 0.5}
    return LabelSavings(pd.DataFrame(rows), chance, n_pool, len(y) - n_pool)


@dataclass(frozen=True)
class _ProbeDraws:
    """Rows of all texts on both models, from which every draw is computed."""

    stitch: Stitch
    source: np.ndarray
    """Rows of the source, [text, d_source]."""
    target: np.ndarray
    """Rows of the target, [text, d_target]."""
    y: np.ndarray
    """Class numbers, [text]."""
    classes: tuple[Label, ...]
    settings: LabelSavingsSettings
    n_pool: int
    """Number of texts that are not held out."""
    metric: Whitening
    """Whitening of the target's stream."""

    def draw(self, draw: int) -> Iterator[dict[str, Any]]:
        """Rows of the table for one division of the texts."""
        pool, held_out = self._divided(draw)
        n_classes, y = len(self.classes), self.y
        fit = fit_logistic(self.source[pool], y[pool], n_classes, seed=draw)
        probe = LinearProbe(
            torch.from_numpy(fit.weight),
            torch.from_numpy(fit.bias),
            self.classes,
            self.stitch.source_hook,
            model=self.stitch.source,
        )
        scaling = Scaling.of(self.target[pool])
        # Unlike the numbers of the settings, those of native are many, to interpolate between.
        for k in label_counts(self.settings, self.n_pool, n_classes):
            x, labels = self.target[pool[:k]], y[pool[:k]]
            native = fit_logistic(x, labels, n_classes, scaling=scaling, seed=draw)
            yield from self._rows("native", k, draw, native, held_out)
        for name, start in self._starts(probe):
            for k in self.settings.ks:
                if not k:
                    yield from self._rows(name[1:] or "transferred", 0, draw, start, held_out)
                    continue
                x, labels = self.target[pool[:k]], y[pool[:k]]
                combined = fit_towards(x, labels, start, scaling=self.metric, seed=draw)
                yield from self._rows(f"combined{name}", k, draw, combined, held_out)

    def _divided(self, draw: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the pool, whose first texts are of each class, and the held-out texts."""
        from sklearn.model_selection import train_test_split

        held_out = len(self.y) - self.n_pool
        seed = int(np.random.default_rng((self.settings.seed, draw)).integers(2**31))
        texts = np.arange(len(self.y))
        parts = train_test_split(texts, test_size=held_out, random_state=seed, stratify=self.y)
        pool, test = (np.asarray(part) for part in parts)
        # The order of the pool is random. One text of each class comes first, so that the first k
        # texts, which are a draw, have every class.
        first = [int(np.flatnonzero(self.y[pool] == number)[0]) for number in np.unique(self.y)]
        others = np.setdiff1d(np.arange(len(pool)), first)
        return pool[[*first, *others]], test

    def _starts(self, probe: LinearProbe) -> Iterator[tuple[str, Logistic]]:
        """Yield the ending of the arm's name and the transferred classifier."""
        yield "", plain_classifier(self.stitch.transfer(probe))
        if self.stitch.null is None:
            logger.warning(
                "the stitch has no map of shuffled pairs; the arm 'shuffled' is left out: fit this "
                "pair alone with null='full'"
            )
            return
        shuffled = self.stitch.transfer(probe, through=self.stitch.null.down)
        yield "_shuffled", plain_classifier(shuffled)

    def _rows(
        self, arm: str, k: int, draw: int, fit: Logistic, held_out: np.ndarray
    ) -> Iterator[dict[str, Any]]:
        """Rows of the table for one classifier."""
        from sklearn.metrics import roc_auc_score

        p, truth = fit.probabilities(self.target[held_out]), self.y[held_out]
        # Of several classes, the mean AUROC of each class against the others.
        aurocs = [roc_auc_score(truth == i, p[:, i]) for i in range(p.shape[1])]
        values = {"accuracy": float((p.argmax(1) == truth).mean()), "auroc": float(np.mean(aurocs))}
        for measure, value in values.items():
            yield {
                "measure": measure,
                "arm": arm,
                "k": k,
                "draw": draw,
                "value": value,
                "weight": fit.penalty if arm.startswith("combined") else float("nan"),
            }
