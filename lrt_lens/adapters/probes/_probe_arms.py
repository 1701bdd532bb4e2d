"""Predictions of every arm of a probe evaluation, from texts that are read once on each model.

Problem: twenty draws of each control must not read the texts twenty times. Mechanism: the rows of
training and test texts are read once; draws differ in their weights only.

**Shuffled pairs.** A stitch has the map of one derangement, and one derangement is one draw. The
ridge map of shuffled pairs is, with target states y, source states x and a permutation π,

    W_down = (Syy + λI)⁻¹ Σᵢ y_π(i) xᵢᵀ  ≈  P Z Sxx^½,       P = (Syy + λI)⁻¹ Syy^½ / √n

with Z of independent standard normal entries (the permutation central limit theorem). The weights
``W_down w`` of another derangement therefore have the distribution of ``W_down u``, for source
weights

    u = Sxx^-½ Q Sxx^½ w,         Q a random rotation,

because Z Q is distributed like Z. Probes ``u`` have the logits' covariance of the probe on the
source, but a random direction, and pass through the same shuffled map. The constant of their logits
is that of the probe through that map. Such a draw needs no further pass, and no solver is assumed
beyond its control.

**Recentring.** The threshold of every transferred probe, controls included, is set on the same
unlabelled texts (`lrt_lens.adapters.probes._recentring`): its scores there get the mean and the
spread that the scores of its own source probe have. Random probes have no source probe and get
those of the probe.

    arms = ProbeArms(pair, stitch, probe, train, test, seed=0, recentring=train.texts)
    for arm, k, scores in arms.random(20): ...

Scores are logarithms of probabilities, which do not round to 1 as probabilities do.

Limits: draws of one shuffled map lie in the image of that map, whose rank is the source's width.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens.adapters.probes._labels import class_numbers
from lrt_lens.adapters.probes._linear_probe import LinearProbe, probe_through
from lrt_lens.adapters.probes._logistic import Logistic, Scaling, log_probabilities
from lrt_lens.adapters.probes._probe_rows import read_rows
from lrt_lens.adapters.probes._relearning import fits_of, relearnt_from
from lrt_lens.adapters.probes._split import Labelled
from lrt_lens.models._hook_points import EMBED
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import row_rule
from lrt_lens.statistics._recentring import ScoreChange
from lrt_lens.stitching._affine import AffineMap, StreamStatistics
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)

Prediction = tuple[str, int, np.ndarray]
"""Arm, number of labels of the target that it used, and log-probabilities [text, class]."""


class ProbeArms:
    """The predictions of every arm, from training and test texts read once on each model."""

    def __init__(
        self,
        pair: ModelPair,
        stitch: Stitch,
        probe: LinearProbe,
        train: Labelled,
        test: Labelled,
        seed: int,
        *,
        recentring: list[str] | None = None,
    ) -> None:
        """Read the texts; ``recentring`` are unlabelled ones that set thresholds, None for none."""
        self.pair, self.stitch, self.probe, self.seed = pair, stitch, probe, seed
        self.train_texts, self.test_texts = train.texts, test.texts
        self.classes = probe.classes
        self.y = class_numbers(train.labels, self.classes)
        self.truth = class_numbers(test.labels, self.classes)
        self.groups = None if train.groups is None else np.array(train.groups)
        if missing := set(range(len(self.classes))) - set(self.y.tolist()):
            raise ValueError(
                f"no training text is labelled {[self.classes[i] for i in sorted(missing)]}; give "
                "training texts of all classes of the probe"
            )
        self.raw: LinearProbe = stitch.transfer(probe)
        # x: rows of the target; z: rows that the transferred probe multiplies. They differ only for
        # read="max", whose rows are maxima of mapped states.
        self.x, self.x_test = (self._read(texts) for texts in (self.train_texts, self.test_texts))
        self.z, self.z_test = self.x, self.x_test
        if self.raw.before is not None:
            self.z, self.z_test = (
                self.raw.rows(pair.target, texts)[0].numpy()
                for texts in (self.train_texts, self.test_texts)
            )
        self.recentring = recentring
        if recentring is not None:
            # The same rows on the texts that set thresholds, in the source and in the target.
            self.s_set = probe.rows(pair.source, recentring)[0]
            self.x_set, self.z_set = self.x, self.z
            if recentring != self.train_texts:
                self.x_set = self._read(recentring)
                self.z_set = self.raw.rows(pair.target, recentring)[0].numpy()
        self.transferred = self._recentred(probe, self.raw)
        # All arms are fitted by the method of the probe, so that they differ in their data only.
        self.fits = fits_of(probe)
        # The reference with all labels of the target.
        on_target = replace(probe, hook=stitch.target_hook, model=pair.target.identity)
        self.native = relearnt_from(on_target, self.x, self.y, groups=self.groups, seed=seed)

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

    def _recentred(
        self, probe: LinearProbe, transferred: LinearProbe, rows: Tensor | None = None
    ) -> LinearProbe:
        """Return a transferred probe with the threshold that the unlabelled texts set.

        ``probe`` is its source probe, and ``rows`` those that it multiplies on these texts, if they
        are not those of the transferred probe.
        """
        if self.recentring is None:
            return transferred
        rows = torch.from_numpy(self.z_set) if rows is None else rows
        scores = probe.logits(self.s_set), transferred.logits(rows)
        return transferred.matched(*scores, self.recentring)

    def single(self, token_map: AffineMap | None) -> Iterator[Prediction]:
        """Yield arm, k and scores [text, class] of the arms that are measured once."""
        source = self.probe.rows(self.pair.source, self.test_texts)[0]
        yield "source", 0, _predict(self.probe, source)
        yield "native", len(self.y), _predict(self.native, torch.from_numpy(self.x_test))
        yield "transferred", 0, _predict(self.transferred, torch.from_numpy(self.z_test))
        if self.recentring is not None:
            yield "transferred_raw", 0, _predict(self.raw, torch.from_numpy(self.z_test))
        if token_map is not None:
            # The map starts at the embedding, so that is where the transferred probe reads.
            tokens = probe_through(self.probe, token_map, EMBED, self.pair.target.identity)
            rows = tokens.rows(self.pair.target, self.test_texts)[0]
            yield "token_identity", 0, _predict(self._set_by_own_rows(self.probe, tokens), rows)

    def _set_by_own_rows(self, probe: LinearProbe, transferred: LinearProbe) -> LinearProbe:
        """Return a recentred probe that reads other rows of the target than the true map's."""
        if self.recentring is None:
            return transferred
        rows = transferred.rows(self.pair.target, self.recentring)[0]
        return self._recentred(probe, transferred, rows)

    def shuffled(self, n: int) -> Iterator[Prediction]:
        """Yield arm, k and scores of the probe through maps of shuffled pairs.

        The first is that of the stitch, the others have the distribution of other derangements; see
        the description of this module. None without a null.
        """
        if n < 1:
            return
        if self.stitch.null is None:
            logger.warning(
                "the stitch has no map of shuffled pairs; the arm 'shuffled' is left out: fit this "
                "pair alone with null='full'"
            )
            return
        # A probe is transferred by the map target → source, so its control is the null's `down`.
        through = self.stitch.null.down
        own = self.stitch.transfer(self.probe, through=through)
        rows = own.rows(self.pair.target, self.test_texts)[0]
        # Maxima of states mapped by another map are other rows; otherwise rows are the states.
        is_mapped = own.before is not None and self.recentring is not None
        rows_set = own.rows(self.pair.target, self.recentring)[0] if is_mapped else None
        statistics = self.stitch.source_statistics
        for draw, probe in enumerate(shuffled_draws(statistics, self.probe, n, self.seed)):
            transferred = own if draw == 0 else self.stitch.transfer(probe, through=through)
            yield "shuffled", 0, _predict(self._recentred(probe, transferred, rows_set), rows)

    def permuted(self, n: int) -> Iterator[Prediction]:
        """Yield arm, k and scores of probes fitted on permuted labels and transferred."""
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
            probe = replace(self.probe, weight=weight, bias=bias)
            transferred = self._recentred(probe, self.stitch.transfer(probe))
            yield "permuted", 0, _predict(transferred, torch.from_numpy(self.z_test))

    def random(self, n: int) -> Iterator[Prediction]:
        """Yield arm, k and scores of random weights.

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
            if self.recentring is not None:
                scores = self.probe.logits(self.s_set), self.x_set @ weight
                change = ScoreChange.matching(*scores)
                yield "random", 0, log_probabilities(change.of(self.x_test @ weight))
                continue
            # logits: rows [text, d] times random weights [d, column].
            logits = self.x @ weight
            # Subtracting the median splits the training texts evenly, dividing by the deviation
            # keeps the logits in the range of a sigmoid.
            scale, middle = logits.std(0) + 1e-30, np.median(logits, 0)
            yield "random", 0, log_probabilities((self.x_test @ weight - middle) / scale)

    def learning_curve(self, ks: Sequence[int], n_seeds: int) -> Iterator[Prediction]:
        """Yield arm, k and scores of the arms that are fitted on k labels, for each draw."""
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
                folds: dict[str, Any] = {"seed": draw}
                if self.groups is not None:
                    folds["groups"] = self.groups[rows]
                fine_tuned = self.fits.fit_towards(
                    self.z[rows], y, start, scaling=scaling_z, **folds
                )
                yield "fine_tuned", k, log_probabilities(fine_tuned.logits(self.z_test))
                scratch = self.fits.fit(
                    self.x[rows], y, len(self.classes), scaling=scaling, **folds
                )
                yield "scratch", k, log_probabilities(scratch.logits(self.x_test))


def shuffled_draws(
    statistics: StreamStatistics, probe: LinearProbe, n: int, seed: int
) -> Iterator[LinearProbe]:
    """Yield the probe and n − 1 source probes whose images under a shuffled map are like its own.

    Each has the weights ``Sxx^-½ Q Sxx^½ w`` for a random rotation Q, and the mean logits of the
    probe on the source's stream, whose ``statistics`` are taken.
    """
    yield probe
    values, vectors = torch.linalg.eigh(statistics.covariance.double().cpu())
    # Directions in which the stream does not vary have no say in the logits.
    deviations = values.clamp_min(1e-12 * float(values.max())).sqrt()
    weight, mean = probe.weight.double().cpu(), statistics.mean.double().cpu()
    scores = deviations[:, None] * (vectors.T @ weight)
    # A stream of its own: the random weights come from `seed` too.
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    for _ in range(1, n):
        noise = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(noise)
        # With the signs of R's diagonal, Q is uniform over all rotations (Mezzadri 2007).
        drawn = vectors @ ((q * r.diagonal().sign()) @ scores / deviations[:, None])
        bias = probe.bias.double().cpu() + mean @ (weight - drawn)
        yield replace(probe, weight=drawn, bias=bias)


def _predict(probe: LinearProbe, rows: Tensor) -> np.ndarray:
    return log_probabilities(probe.logits(rows))


def _stratified_rows(y: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    """Indices of k random rows, at least one of each class, [k]."""
    order = generator.permutation(len(y))
    # A classifier needs at least one row of each class.
    first = [int(np.flatnonzero(y[order] == label)[0]) for label in np.unique(y)]
    others = [index for index in range(len(y)) if index not in set(first)]
    return order[[*first, *others[: k - len(first)]]]
