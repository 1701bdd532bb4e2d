"""Does a transferred probe still classify, next to its controls, and what do k labels of the target
add?

    result = evaluate_probe(pair, stitch, texts, labels, test_share=0.3)
    result.summary        # share of native accuracy above chance, with intervals
    result.figure()

Arms, all judged on the same test texts:

- ``source``: the probe where it was learnt, on the source model; ``native``: learnt on the target
  from all training labels;
- ``transferred``: the source's probe carried over; no label of the target is used;
- ``refit``: the transferred probe shrunk-to and refitted on k labels of the target; ``scratch``:
  learnt from the same k labels alone. Both standardise by all training texts of the target (text is
  cheap, labels are not) and choose their penalty on the k rows;
- ``shuffled``: the probe carried by the map of shuffled pairs; ``permuted``: a probe learnt from
  permuted labels, carried by the true map;
- ``token_identity``: the probe carried to the target's token *embedding*, by the map that predicts
  the source's stream from it: what a probe that sees nothing but tokens would say;
- ``random``: random weights, half isotropic, half with the target rows' own covariance, biased to
  split the training texts evenly.

Intervals are paired bootstraps over the test texts. For ``random`` and ``permuted`` the interval is
where 95% of the draws fall.
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
from lrt_lens.adapters.probes._linear_probe import (
    LinearProbe,
    check_labels,
    class_numbers,
    classes_of,
    plain_label,
    read_rows,
)
from lrt_lens.adapters.probes._logistic import (
    Logistic,
    Scaling,
    fit_logistic,
    fit_towards,
    probabilities,
)
from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import EMBED, same_place
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import Read
from lrt_lens.statistics._classification import Verdict
from lrt_lens.statistics._intervals import Interval, bootstrap_ratio, spread
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)

DRAWN_ARMS = ("random", "permuted")
"""Controls drawn many times: their interval is the range of the draws."""


@dataclass(frozen=True)
class ProbeEvaluation:
    """Accuracies of all arms on the same test texts."""

    table: pd.DataFrame
    """A row per arm and k: task, arm, k (labels of the target used; 0 for none), n_draws, accuracy,
    low, high, auroc, auroc_low, auroc_high."""
    summary: pd.DataFrame
    """A row per arm and k: task, arm, k, accuracy, low, high, share_of_native, share_low,
    share_high ((accuracy − chance) / (native − chance); undefined where native's interval includes
    chance)."""
    chance: float
    """Share of the largest class among the test texts."""
    n_test: int
    probes: dict[str, LinearProbe] = field(repr=False)
    """The probes ``source``, ``native`` and ``transferred``."""

    @property
    def task(self) -> str:
        """What was classified."""
        return str(self.table["task"].iloc[0])

    def figure(self) -> Any:
        """Accuracy of every arm, and the learning curve over k (plotly)."""
        from lrt_lens.figures._probes import probe_figure

        return probe_figure(self.table, chance=self.chance)

    def _repr_html_(self) -> str:
        return card(
            "ProbeEvaluation",
            note(f"{self.task}: {self.n_test} test texts, chance {self.chance:.2f}."),
            table(self.summary),
        )


def evaluate_probe(
    pair: ModelPair,
    stitch: Stitch,
    texts: Sequence[str],
    labels: Sequence[Any],
    *,
    probe: LinearProbe | None = None,
    read: Read = "mean",
    test_texts: Sequence[str] | None = None,
    test_labels: Sequence[Any] | None = None,
    test_share: float = 0.3,
    ks: Sequence[int] = (10, 30, 100),
    n_seeds: int = 5,
    n_random: int = 20,
    n_permuted: int = 5,
    token_map: AffineMap | None = None,
    task: str = "probe",
    seed: int = 0,
    progress: bool = True,
) -> ProbeEvaluation:
    """Measure a transferred probe and its controls on the target; see the module docstring.

    Args: pair: both models. stitch: between the probe's hook point and one of the target. texts:
        training texts; also the test texts, a stratified ``test_share`` of them, where no
        ``test_texts`` are given. labels: one a text, str or int. probe: learnt on the source;
        learnt here from the training texts without it. read: where texts are read; a given probe
        brings its own. Probes on every token are refused: tokens of one text are no independent
        items. test_texts: texts to judge on. test_labels: their labels. test_share: see ``texts``.
        ks: labels of the target in the learning curve. n_seeds: draws of each k labels; every class
        is among them. n_random: random probes. n_permuted: probes learnt from permuted labels.
        token_map: for the arm ``token_identity``: from the target's ``hook_embed`` to the source
        hook, that is
            ``token_identity_map(harvest(pair.reversed(), …), stitch.source_hook)``. Left out
            without it.
        task: name of what is classified.
        seed: of splits, draws and bootstraps.
        progress: show a bar.

    Raises: ValueError: labels of one class, as many as there are texts they are not, or fewer
        training texts than the largest k. MismatchError: models, a probe or a map that are not the
        stitch's.

    Source: Stitching (arXiv 2506.06609) §4 carries probes so; the learning curve and the controls
    are ours.
    """
    stitch.check(pair.source, pair.target)
    train, test = _split(texts, labels, test_texts, test_labels, test_share, seed)
    _check(stitch, probe, train, ks, token_map, n_seeds)
    if probe is None:
        probe = LinearProbe.fit(
            pair.source,
            *train,
            at=stitch.source_hook,
            read=read,
            name=task,
            skip_first=stitch.skip_first,
            seed=seed,
        )
    bench = _Bench(pair, stitch, probe, train, test, seed)
    arms: dict[tuple[str, int], list[np.ndarray]] = {}
    found = bench.learnt(token_map, n_random, n_permuted), bench.refitted(ks, n_seeds)
    total = 5 + n_random + n_permuted + 2 * len(ks) * n_seeds
    for arm, k, chances in tqdm(
        (one for part in found for one in part),
        total=total,
        desc=f"probe {task}",
        disable=not progress,
        leave=False,
    ):
        arms.setdefault((arm, k), []).append(chances)
    verdicts = {key: Verdict.of(chances, bench.truth, seed=seed) for key, chances in arms.items()}
    chance = float(np.bincount(bench.truth).max() / len(bench.truth))
    table, summary = _tables(task, verdicts, chance, seed)
    probes = {"source": probe, "native": bench.native, "transferred": bench.moved}
    return ProbeEvaluation(table, summary, chance, len(bench.truth), probes)


Labelled = tuple[list[str], list[Any]]


def _split(
    texts: Sequence[str],
    labels: Sequence[Any],
    test_texts: Sequence[str] | None,
    test_labels: Sequence[Any] | None,
    share: float,
    seed: int,
) -> tuple[Labelled, Labelled]:
    """(training, test) texts with labels; stratified where one has to be cut from the other."""
    check_labels(texts, labels)
    plain = [plain_label(label) for label in labels]
    if (test_texts is None) != (test_labels is None):
        raise ValueError(
            "test_texts and test_labels come together; give both, or neither and test_share"
        )
    if test_texts is not None and test_labels is not None:
        check_labels(test_texts, test_labels)
        return (list(texts), plain), (
            list(test_texts),
            [plain_label(label) for label in test_labels],
        )
    from sklearn.model_selection import train_test_split

    classes = classes_of(plain)
    if not 0 < share < 1 or min(
        round(share * len(plain)), len(plain) - round(share * len(plain))
    ) < len(classes):
        raise ValueError(
            f"test_share is {share} of {len(plain)} texts; expected a share between 0 and 1 that leaves {len(classes)} classes on both sides"
        )
    numbers = class_numbers(plain, classes)
    if (fewest := int(np.bincount(numbers).min())) < 2:
        raise ValueError(
            f"a class has {fewest} text; splitting needs 2 of each: give more texts, or test_texts and test_labels"
        )
    train, test = train_test_split(
        np.arange(len(plain)), test_size=share, random_state=seed, stratify=numbers
    )
    first, second = _taken(texts, plain, np.asarray(train)), _taken(texts, plain, np.asarray(test))
    return first, second


def _taken(texts: Sequence[str], labels: Sequence[Any], part: np.ndarray) -> Labelled:
    return [str(texts[i]) for i in part.tolist()], [labels[i] for i in part.tolist()]


def _check(
    stitch: Stitch,
    probe: LinearProbe | None,
    train: Labelled,
    ks: Sequence[int],
    token_map: AffineMap | None,
    n_seeds: int,
) -> None:
    if probe is not None:
        stitch.refuse_foreign(probe.hook, probe.model)
        if probe.read == "every":
            raise ValueError(
                "the probe reads every token, and tokens of one text are no independent items; give one that is read once a text"
            )
    classes = len(set(train[1]))
    if n_seeds < 1 or any(not classes <= k <= len(train[0]) for k in ks):
        raise ValueError(
            f"ks is {list(ks)}, n_seeds {n_seeds}; expected numbers of labels from {classes} (one a class) to {len(train[0])} (the training "
            "texts), and at least one seed: give smaller k or more texts"
        )
    if token_map is not None and not (
        token_map.source_hook == EMBED and same_place(token_map.target_hook, stitch.source_hook)
    ):
        raise MismatchError(
            f"token_map goes {token_map.source_hook!r} → {token_map.target_hook!r}; expected {EMBED!r} (of the target) → {stitch.source_hook!r}: "
            "take token_identity_map of a harvest of pair.reversed()"
        )


class _Bench:
    """Training and test texts read once on each model."""

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
        self.labels = train[1]
        self.classes = probe.classes
        self.y, self.truth = (
            class_numbers(train[1], self.classes),
            class_numbers(test[1], self.classes),
        )
        if missing := set(range(len(self.classes))) - set(self.y.tolist()):
            raise ValueError(
                f"no training text is labelled {[self.classes[i] for i in sorted(missing)]}; the probe's classes all need some"
            )
        self.moved: LinearProbe = stitch.transfer(probe)
        self.x, self.x_test = (self._read(texts) for texts in (self.train_texts, self.test_texts))
        # A probe of maxima reads mapped states, any other the target's own rows.
        carried = self.moved.before is not None
        self.z = self.moved.rows(pair.target, self.train_texts)[0].numpy() if carried else self.x
        self.z_test = (
            self.moved.rows(pair.target, self.test_texts)[0].numpy() if carried else self.x_test
        )
        found = fit_logistic(self.x, self.y, len(self.classes), seed=seed)
        self.native = replace(
            probe,
            weight=torch.from_numpy(found.weight),
            bias=torch.from_numpy(found.bias),
            hook=stitch.target_hook,
            model=pair.target.identity,
            method="logistic_regression",
            penalty=found.penalty,
            before=None,
        )

    def _read(self, texts: list[str]) -> np.ndarray:
        return read_rows(
            self.pair.target, texts, self.stitch.target_hook, self.probe.read, self.probe.skip_first
        )[0].numpy()

    def learnt(
        self, token_map: AffineMap | None, n_random: int, n_permuted: int
    ) -> Iterator[tuple[str, int, np.ndarray]]:
        """(arm, k, probabilities [text, class]) of the arms that use no label of the target, or all
        of them.
        """
        source = self.probe.rows(self.pair.source, self.test_texts)[0]
        yield "source", 0, self._said(self.probe, source)
        yield "native", len(self.y), self._said(self.native, torch.from_numpy(self.x_test))
        yield "transferred", 0, self._said(self.moved, torch.from_numpy(self.z_test))
        if self.stitch.null is None:
            logger.warning(
                "the stitch has no map of shuffled pairs; the arm 'shuffled' is left out: fit this pair alone with null='full'"
            )
        else:
            shuffled: LinearProbe = self.stitch.transfer(self.probe, through=self.stitch.null.down)
            yield (
                "shuffled",
                0,
                self._said(shuffled, shuffled.rows(self.pair.target, self.test_texts)[0]),
            )
        if token_map is not None:
            tokens = replace(self.stitch.transfer(self.probe, through=token_map), hook=EMBED)
            yield (
                "token_identity",
                0,
                self._said(tokens, tokens.rows(self.pair.target, self.test_texts)[0]),
            )
        yield from (("permuted", 0, chances) for chances in self._permuted(n_permuted))
        yield from (("random", 0, chances) for chances in self._random(n_random))

    @staticmethod
    def _said(probe: LinearProbe, rows: Tensor) -> np.ndarray:
        return probabilities(probe.logits(rows))

    def _permuted(self, n: int) -> Iterator[np.ndarray]:
        rows = self.probe.rows(self.pair.source, self.train_texts)[0].numpy() if n else np.empty(0)
        for draw in range(n):
            y = np.random.default_rng((self.seed, draw)).permutation(self.y)
            # The penalty is the probe's own: chosen on permuted labels it would only be as large as
            # there is.
            options: dict[str, Any] = (
                {} if math.isnan(self.probe.penalty) else {"penalties": (self.probe.penalty,)}
            )
            found = fit_logistic(rows, y, len(self.classes), seed=self.seed, **options)
            one = replace(
                self.probe, weight=torch.from_numpy(found.weight), bias=torch.from_numpy(found.bias)
            )
            yield self._said(self.stitch.transfer(one), torch.from_numpy(self.z_test))

    def _random(self, n: int) -> Iterator[np.ndarray]:
        generator = np.random.default_rng(self.seed)
        centred = self.x - self.x.mean(0)
        values, vectors = np.linalg.eigh(centred.T @ centred)
        root = vectors * np.sqrt(np.clip(values, 0, None))
        for draw in range(n):
            weight = generator.standard_normal((self.x.shape[1], len(self.native.bias)))
            weight = weight if draw < n // 2 else root @ weight
            logits = self.x @ weight
            scale, middle = logits.std(0) + 1e-30, np.median(logits, 0)
            yield probabilities((self.x_test @ weight - middle) / scale)

    def refitted(self, ks: Sequence[int], n_seeds: int) -> Iterator[tuple[str, int, np.ndarray]]:
        """(arm, k, probabilities) of probes learnt from k labels of the target, with the
        transferred probe to lean on and without.
        """
        start = Logistic(self.moved.weight.double().numpy(), self.moved.bias.double().numpy())
        scaling, scaling_z = Scaling.of(self.x), Scaling.of(self.z)
        for k in ks:
            for draw in range(n_seeds):
                chosen = _labelled(self.y, k, np.random.default_rng((self.seed, k, draw)))
                refit = fit_towards(
                    self.z[chosen], self.y[chosen], start, scaling=scaling_z, seed=draw
                )
                yield "refit", k, refit.probabilities(self.z_test)
                scratch = fit_logistic(
                    self.x[chosen], self.y[chosen], len(self.classes), scaling=scaling, seed=draw
                )
                yield "scratch", k, scratch.probabilities(self.x_test)


def _labelled(y: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    """So many rows at random, at least one of each class."""
    order = generator.permutation(len(y))
    first = [int(np.flatnonzero(y[order] == label)[0]) for label in np.unique(y)]
    rest = [place for place in range(len(y)) if place not in set(first)]
    return order[[*first, *rest[: k - len(first)]]]


def _tables(
    task: str, verdicts: dict[tuple[str, int], Verdict], chance: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    native = next(verdict for (arm, _), verdict in verdicts.items() if arm == "native")
    table, summary = [], []
    for (arm, k), verdict in verdicts.items():
        accuracy, auroc = verdict.accuracy(seed=seed), verdict.auroc
        if arm in DRAWN_ARMS:
            accuracy, auroc = spread(list(verdict.accuracies)), spread(list(verdict.aurocs))
        share = bootstrap_ratio(verdict.correct - chance, native.correct - chance, seed=seed)
        head = {"task": task, "arm": arm, "k": k}
        table.append(
            head
            | {"n_draws": len(verdict.accuracies)}
            | _columns("accuracy", "", accuracy)
            | _columns("auroc", "auroc_", auroc)
        )
        summary.append(
            head | _columns("accuracy", "", accuracy) | _columns("share_of_native", "share_", share)
        )
    return pd.DataFrame(table), pd.DataFrame(summary)


def _columns(name: str, prefix: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{prefix}low": interval.low, f"{prefix}high": interval.high}
