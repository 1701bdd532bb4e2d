"""EXPERIMENTAL: a stitch without pairs, after mini-vec2vec; the models read different texts.

    stitch = unpaired_stitch(pair, some_texts, other_texts, source_hook=2, target_hook=3)
    stitch.scores["match_cosine"], stitch.scores["match_cosine_random"]  # known without pairs

Problem: the two models share nothing, no token and no text. Mechanism (mini-vec2vec, arXiv
2510.02348), on centred rows of length 1:

1. *Anchors.* k-means in each space; the centroids are matched by their similarities alone, ``max_P
   Σ_ij (K_x)_ij (P K_y Pᵀ)_ij`` (quadratic assignment, by FAQ from random starts and 2-opt); this
   is repeated, and a row is described by its cosines to all matched centroids. The partner of a row
   is the mean of the rows of the other space with the most similar description; Procrustes on these
   pairs is the first map.
2. *Matching refinement.* The partner of a row is the mean of the rows nearest to its image;
   Procrustes; ``Q ← (1 − a) Q + a Q_new``.
3. *Clustering refinement.* Many centroids of the source are mapped to the target and start k-means
   there; Procrustes on the centroids before and after.

The map is ``y ≈ ȳ + s·(x − x̄)Q`` with s the ratio of the rows' spreads, and back ``Qᵀ/s``.
In place of maps of shuffled pairs, ``stitch.null`` holds a random rotation of the same spread.

Limits: both sets of texts must have one distribution. Widths differ, so Q is semi-orthogonal. The
assignment of centroids often fails: residual streams of a few thousand rows often have too little
structure to match, and the result is then no better than the random rotation. ``match_cosine``, the
mean cosine between images and the rows nearest to them, measures how well the sets of rows overlap,
not whether corresponding rows do. Evaluate the stitch on paired rows before use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from lrt_lens.baselines._anchor_methods import rotation
from lrt_lens.baselines._anchors import Models, refuse_bad_texts, text_provenance
from lrt_lens.baselines._text_rows import RowRead, TextRows, read_text_rows
from lrt_lens.models._pair import model_sides, paired_hooks
from lrt_lens.models._reading import readable
from lrt_lens.models._text_codec import text_list
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching._stitch import Stitch

_STARTS = 8
"""Number of random starts of each assignment."""

SourceRows = Float[Tensor, "row_source d_source"]
"""Rows of the source model, not paired with those of the target."""
TargetRows = Float[Tensor, "row_target d_target"]
"""Rows of the target model."""
Rotation = Float[Tensor, "d_source d_target"]
"""Semi-orthogonal map from the source's space to the target's."""


@dataclass(frozen=True)
class MiniVec2Vec:
    """Settings of the alignment.

    The defaults are those of a reimplementation by others, not of the authors' code.
    """

    n_clusters: int = 20
    """Number of centroids in one round of anchors."""
    n_rounds: int = 30
    """Number of rounds of anchors, each with new centroids."""
    n_neighbours: int = 50
    """Number of rows whose mean is a partner, at most a tenth of all rows."""
    n_matching: int = 75
    """Number of steps of the matching refinement."""
    n_sampled: int = 10_000
    """Number of rows in each of these steps."""
    n_fine: int = 500
    """Number of centroids of the clustering refinement, at most one per four rows."""
    smoothing: float = 0.5
    """Share a of the new map in each step."""

    def __post_init__(self) -> None:
        names = ("n_rounds", "n_neighbours", "n_sampled", "n_fine")
        counts = {name: getattr(self, name) for name in names}
        is_valid = (
            min(counts.values()) >= 1
            and self.n_clusters >= 3
            and self.n_matching >= 0
            and 0 < self.smoothing <= 1
        )
        if not is_valid:
            raise ValueError(
                f"n_clusters {self.n_clusters}, n_matching {self.n_matching}, smoothing "
                f"{self.smoothing}, {counts}; expected at least 3 clusters, matching steps from 0, "
                "a smoothing in (0, 1], and positive numbers"
            )

    def align(self, x: SourceRows, y: TargetRows, *, seed: int = 0) -> Rotation:
        """Return the nearly semi-orthogonal Q of ``y ≈ x Q``.

        Args:
            x: centred rows of length 1; they are not paired with those of y.
            y: centred rows of length 1.
            seed: seed of all draws.

        Raises:
            ValueError: fewer rows than four per cluster in either model.
        """
        if min(len(x), len(y)) < 4 * self.n_clusters:
            raise ValueError(
                f"{len(x)} and {len(y)} rows for {self.n_clusters} clusters; "
                f"give at least {4 * self.n_clusters} rows per side, or read='every'"
            )
        generator = np.random.default_rng(seed)
        q = self._first(x, y, generator)
        for _ in range(self.n_matching):
            # Each step uses another random part of the rows.
            rows = x[torch.from_numpy(generator.permutation(len(x))[: self.n_sampled])]
            q = self._smoothed(q, rotation(rows.T @ self._partners(rows @ q, y, y)))
        return self._smoothed(q, self._clustered(x, y, q, generator))

    def _first(self, x: Tensor, y: Tensor, generator: np.random.Generator) -> Tensor:
        descriptions: tuple[list[Tensor], list[Tensor]] = ([], [])
        for _ in range(self.n_rounds):
            # Of length 1, so that a @ a.T are the cosines between centroids, which the matching
            # compares.
            a, b = (_unit(_centroids(rows, self.n_clusters, generator)) for rows in (x, y))
            # Row i of b is now the partner of row i of a.
            b = b[matched(a @ a.T, b @ b.T, generator)]
            descriptions[0].append(x @ a.T)
            descriptions[1].append(y @ b.T)
        of_x, of_y = (torch.cat(parts, 1) for parts in descriptions)
        return rotation(x.T @ self._partners(of_x, of_y, y))

    def _partners(self, from_rows: Tensor, among: Tensor, y: Tensor) -> Tensor:
        """Return [row, d_target]: means of the rows of y with the most similar rows of ``among``.

        Similarity is the cosine between a row of ``from_rows`` and one of ``among``.
        """
        # At most a tenth of the rows: a mean over more of them would be nearly the mean of all.
        count = min(self.n_neighbours, max(1, len(y) // 10))
        among = _unit(among).T
        # In parts: all cosines of ten thousand rows to as many are a gigabyte.
        nearest = (
            (_unit(part) @ among).topk(count, dim=1).indices for part in from_rows.split(1024)
        )
        partners = [
            reduce(y[index], "row neighbour d_target -> row d_target", "mean") for index in nearest
        ]
        return torch.cat(partners)

    def _clustered(self, x: Tensor, y: Tensor, q: Tensor, generator: np.random.Generator) -> Tensor:
        count = min(self.n_fine, len(x) // 4, len(y) // 4)
        ours = _centroids(x, count, generator)
        # k-means starts at the images of our centroids, so that centroid i remains the partner of
        # i.
        theirs = _centroids(y, count, generator, start=ours @ q)
        return rotation(ours.T @ theirs)

    def _smoothed(self, q: Tensor, new: Tensor) -> Tensor:
        # Q ← (1 − a) Q + a Q_new
        return (1 - self.smoothing) * q + self.smoothing * new


def unpaired_stitch(
    models: Models,
    source_texts: Sequence[str],
    target_texts: Sequence[str],
    *,
    source_hook: int | str,
    target_hook: int | str,
    method: MiniVec2Vec | None = None,
    read: RowRead = "every",
    max_rows: int = 10_000,
    skip_first: int = SKIP_FIRST,
    seed: int = 0,
) -> Stitch:
    """Return a stitch fitted on different texts per model; EXPERIMENTAL, see the module docstring.

    Args:
        models: a `ModelPair`, or (source, target) of any two tokenizers.
        source_texts: texts that the source reads.
        target_texts: texts that the target reads, all different from the source's.
        source_hook: hook point of the source.
        target_hook: hook point of the target.
        method: settings of the alignment.
        read: one row per token, or one per text (its mean, its last token).
        max_rows: number of rows per model, drawn at random.
        skip_first: number of masked tokens at the beginning of a text.
        seed: seed of all draws.

    Raises:
        ValueError: fewer than two texts per model, a text that both read, or too few rows.
        HookPointError: a hook point that the model does not have.
        NonFiniteError: activations are NaN or infinite.
    """
    method = method or MiniVec2Vec()
    refuse_bad_texts(source_texts)
    refuse_bad_texts(target_texts)
    if both := set(source_texts) & set(target_texts):
        raise ValueError(
            f"{len(both)} text(s) are on both sides; they are pairs: use anchor_stitch, "
            "or give each model texts of its own"
        )
    source, target = model_sides(models)
    [hooks] = paired_hooks(source, target, source_hook, target_hook)
    generator = torch.Generator().manual_seed(seed)
    source_texts, target_texts = (
        readable([model], texts, read, skip_first=skip_first).of(text_list(texts))
        for model, texts in ((source, source_texts), (target, target_texts))
    )
    sides = ((source, source_texts, hooks[0]), (target, target_texts, hooks[1]))
    ours, theirs = (
        _drawn(read_text_rows(model, texts, hook, read, skip_first=skip_first), max_rows, generator)
        for model, texts, hook in sides
    )
    x, y = (rows.rows - rows.rows.mean(0) for rows in (ours, theirs))
    q = method.align(_unit(x).float(), _unit(y).float(), seed=seed).double()
    # The control has the right means and spreads, but a random rotation.
    random = rotation(torch.randn(q.shape, generator=generator, dtype=torch.float64))
    # s = √(mean ‖y‖² / mean ‖x‖²)
    spread = float((y.square().sum() / len(y)).sqrt() / (x.square().sum() / len(x)).sqrt())
    about: dict[str, Any] = {
        "source_hook": hooks[0],
        "target_hook": hooks[1],
        "solver": "unpaired",
        "n_source": len(x),
        "n_target": len(y),
        "match_cosine": match_cosine(x @ q, y),
        "match_cosine_random": match_cosine(x @ random, y),
    }
    texts = [*source_texts, *target_texts]
    return Stitch(
        maps=_maps(q, spread, ours, theirs, hooks),
        source_statistics=ours.statistics,
        target_statistics=theirs.statistics,
        scores=about,
        provenance=text_provenance(source, target, texts, skip_first, seed),
        null=_maps(random, spread, ours, theirs, hooks),
    )


def matched(ours: Tensor, theirs: Tensor, generator: np.random.Generator) -> Tensor:
    """Return, for each of our centroids, the number of theirs that corresponds to it.

    The assignment makes the similarities [k, k] of both sets agree; it is the best of several
    random starts.
    """
    from scipy.optimize import quadratic_assignment

    a, b = ours.double().numpy(), theirs.double().numpy()
    options: dict[str, Any] = {"maximize": True, "rng": generator}
    best, most = np.arange(len(a)), -np.inf
    for _ in range(_STARTS):
        start = options | {"P0": "randomized"}
        faq = quadratic_assignment(a, b, method="faq", options=start)
        # 2-opt swaps pairs of the FAQ solution while that helps.
        guess = np.stack([np.arange(len(a)), faq.col_ind], 1)
        swapped = quadratic_assignment(
            a, b, method="2opt", options=options | {"partial_guess": guess}
        )
        if swapped.fun > most:
            best, most = swapped.col_ind, swapped.fun
    return torch.from_numpy(best)


def match_cosine(images: Tensor, y: Tensor) -> float:
    """Return the mean cosine between images [row, d] and the row of y [row, d] nearest to each."""
    among = _unit(y).T
    return float(torch.cat([(_unit(part) @ among).amax(1) for part in images.split(1024)]).mean())


def _maps(
    q: Tensor, spread: float, ours: TextRows, theirs: TextRows, hooks: tuple[str, str]
) -> MapPair:
    # y ≈ ȳ + s·(x − x̄)Q, and back x ≈ x̄ + (y − ȳ)Qᵀ/s
    up, down = spread * q, q.T / spread
    mean_x, mean_y = ours.rows.mean(0), theirs.rows.mean(0)
    return MapPair(
        AffineMap(up, mean_y - mean_x @ up, *hooks),
        AffineMap(down, mean_x - mean_y @ down, *hooks[::-1]),
    )


def _drawn(rows: TextRows, most: int, generator: torch.Generator) -> TextRows:
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:most]]


def _centroids(
    rows: Tensor, count: int, generator: np.random.Generator, start: Tensor | None = None
) -> Tensor:
    from sklearn.cluster import KMeans

    # Given starts need one run; random ones are drawn anew in each round of anchors.
    options: dict[str, Any] = {"init": "k-means++" if start is None else start.numpy(), "n_init": 1}
    seed = int(generator.integers(2**31))
    clusters = KMeans(count, random_state=seed, **options).fit(rows.numpy())
    return torch.from_numpy(clusters.cluster_centers_).to(rows)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
