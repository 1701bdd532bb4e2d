"""EXPERIMENTAL: a stitch without any pairs, in the manner of mini-vec2vec; the two models read
different texts.

    stitch = unpaired_stitch(pair, some_texts, other_texts, source_hook=2, target_hook=3)
    stitch.scores["match_cosine"], stitch.scores["match_cosine_null"]      # what can be known without pairs

Problem: nothing is shared by the two models, no token and no text. Mechanism (mini-vec2vec, arXiv
2510.02348), on rows about their mean and of length 1:

1. *Anchors.* k-means in each space; the centroids are matched by their similarities alone, ``max_P
   Σ_ij (K_x)_ij (P K_y Pᵀ)_ij`` (quadratic assignment, by FAQ from random starts and 2-opt);
   repeated, and a row is described by its cosines to all matched centroids. A row's partner is the
   mean of the rows of the other space that are described most alike; Procrustes on these pairs is
   the first map.
2. *Matching refinement.* A row's partner is the mean of the rows nearest to its image; Procrustes;
  ``Q ← (1 − a) Q + a Q_new``.
3. *Clustering refinement.* Many centroids of the source, carried over, start k-means in the target;
   Procrustes on centroids and what became of them.

The map is ``y ≈ ȳ + s·(x − x̄)Q`` with s the ratio of the rows' spreads, and back ``Qᵀ/s``.
``null`` is a random rotation of the same spread.

Limits. Both text sets must be of one distribution. Widths differ, so Q is semi-orthogonal. The
assignment of centroids is a gamble: residual streams of a few thousand rows often have too little
structure to match, and the result is then no better than the null. ``match_cosine``, the mean
cosine between images and the rows nearest to them, says how well the clouds lie on each other, not
whether the right rows do. Judge it on paired rows before use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens.baselines._anchor_methods import rotation
from lrt_lens.baselines._anchors import Models, refuse_bad_texts, text_provenance
from lrt_lens.baselines._text_rows import RowRead, TextRows, read_text_rows
from lrt_lens.models._hooked_model import SKIP_FIRST
from lrt_lens.models._pair import model_sides, paired_hooks
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching._stitch import Stitch

_STARTS = 8
"""Random starts of each assignment."""

SourceRows = Float[Tensor, "row_source d_source"]
TargetRows = Float[Tensor, "row_target d_target"]
Rotation = Float[Tensor, "d_source d_target"]


@dataclass(frozen=True)
class MiniVec2Vec:
    """Settings of the alignment; defaults are those of a reimplementation by others, not of the
    authors' code.
    """

    n_clusters: int = 20
    """Centroids of one round of anchors."""
    n_rounds: int = 30
    n_neighbours: int = 50
    """Rows that a partner is the mean of, fewer where there are fewer than ten times as many."""
    n_matching: int = 75
    """Steps of the matching refinement."""
    n_sampled: int = 10_000
    """Rows in each of them."""
    n_fine: int = 500
    """Centroids of the clustering refinement, at most one in four rows."""
    smoothing: float = 0.5
    """a, the share of the new map in each step."""

    def __post_init__(self) -> None:
        counts = {
            name: getattr(self, name)
            for name in ("n_rounds", "n_neighbours", "n_sampled", "n_fine")
        }
        if (
            min(counts.values()) < 1
            or self.n_clusters < 3
            or self.n_matching < 0
            or not 0 < self.smoothing <= 1
        ):
            raise ValueError(
                f"n_clusters {self.n_clusters}, n_matching {self.n_matching}, smoothing {self.smoothing}, {counts}; expected at least 3 clusters, "
                "matching steps from 0, a smoothing in (0, 1], and positive numbers"
            )

    def align(self, x: SourceRows, y: TargetRows, *, seed: int = 0) -> Rotation:
        """Q, nearly semi-orthogonal, of ``y ≈ x Q`` for rows about their mean and of length 1; rows
        of x and y are not paired.

        Raises:
            ValueError: fewer rows than four a cluster on either side.
        """
        if min(len(x), len(y)) < 4 * self.n_clusters:
            raise ValueError(
                f"{len(x)} and {len(y)} rows for {self.n_clusters} clusters; give at least {4 * self.n_clusters} rows a side, or read='every'"
            )
        generator = np.random.default_rng(seed)
        q = self._first(x, y, generator)
        for _ in range(self.n_matching):
            chosen = torch.from_numpy(generator.permutation(len(x))[: self.n_sampled])
            q = self._moved(q, rotation(x[chosen].T @ self._partners(x[chosen] @ q, y, y)))
        return self._moved(q, self._clustered(x, y, q, generator))

    def _first(self, x: Tensor, y: Tensor, generator: np.random.Generator) -> Tensor:
        described: tuple[list[Tensor], list[Tensor]] = ([], [])
        for _ in range(self.n_rounds):
            a, b = (_unit(_centroids(rows, self.n_clusters, generator)) for rows in (x, y))
            b = b[matched(a @ a.T, b @ b.T, generator)]
            described[0].append(x @ a.T)
            described[1].append(y @ b.T)
        return rotation(
            x.T @ self._partners(torch.cat(described[0], 1), torch.cat(described[1], 1), y)
        )

    def _partners(self, from_rows: Tensor, among: Tensor, y: Tensor) -> Tensor:
        """[row, d_target]: means of the rows of y whose description in ``among`` is nearest by
        cosine.
        """
        count = min(self.n_neighbours, max(1, len(y) // 10))
        among = _unit(among).T
        # In parts: all cosines of ten thousand rows to as many are a gigabyte.
        return torch.cat(
            [
                y[(_unit(part) @ among).topk(count, dim=1).indices].mean(1)
                for part in from_rows.split(1024)
            ]
        )

    def _clustered(self, x: Tensor, y: Tensor, q: Tensor, generator: np.random.Generator) -> Tensor:
        count = min(self.n_fine, len(x) // 4, len(y) // 4)
        ours = _centroids(x, count, generator)
        theirs = _centroids(y, count, generator, start=ours @ q)
        return rotation(ours.T @ theirs)

    def _moved(self, q: Tensor, new: Tensor) -> Tensor:
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
    """A stitch from texts of which each model reads its own; EXPERIMENTAL, see the module
    docstring.

    Args:
        models: a `ModelPair`, or (source, target) of any two tokenizers.
        source_texts: what the source reads.
        target_texts: what the target reads, none of them the same.
        source_hook: hook point of the source.
        target_hook: hook point of the target.
        method: settings.
        read: a row a token, or one a text (its mean, its last token).
        max_rows: rows of each side, drawn at random.
        skip_first: first positions that are masked.
        seed: of everything that is drawn.

    Raises:
        ValueError: fewer than two texts on a side, texts that are on both, or too few rows.
        HookPointError, NonFiniteError: as `Anchors.read`.
    """
    method = method or MiniVec2Vec()
    refuse_bad_texts(source_texts)
    refuse_bad_texts(target_texts)
    if both := set(source_texts) & set(target_texts):
        raise ValueError(
            f"{len(both)} text(s) are on both sides; they are pairs: use anchor_stitch, or give each model texts of its own"
        )
    source, target = model_sides(models)
    [hooks] = paired_hooks(source, target, source_hook, target_hook)
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (
        _drawn(read_text_rows(model, texts, hook, read, skip_first=skip_first), max_rows, generator)
        for model, texts, hook in (
            (source, source_texts, hooks[0]),
            (target, target_texts, hooks[1]),
        )
    )
    x, y = (rows.rows - rows.rows.mean(0) for rows in (ours, theirs))
    q = method.align(_unit(x).float(), _unit(y).float(), seed=seed).double()
    random = rotation(torch.randn(q.shape, generator=generator, dtype=torch.float64))
    spread = float((y.square().sum() / len(y)).sqrt() / (x.square().sum() / len(x)).sqrt())
    about: dict[str, Any] = {
        "source_hook": hooks[0],
        "target_hook": hooks[1],
        "solver": "unpaired",
        "n_source": len(x),
        "n_target": len(y),
    }
    about |= {
        "match_cosine": match_cosine(x @ q, y),
        "match_cosine_null": match_cosine(x @ random, y),
    }
    return Stitch(
        maps=_maps(q, spread, ours, theirs, hooks),
        source_statistics=ours.statistics,
        target_statistics=theirs.statistics,
        scores=about,
        provenance=text_provenance(
            source, target, [*source_texts, *target_texts], skip_first, seed
        ),
        null=_maps(random, spread, ours, theirs, hooks),
    )


def matched(ours: Tensor, theirs: Tensor, generator: np.random.Generator) -> Tensor:
    """[k], for each of our centroids the number of theirs, so that similarities [k, k] agree best:
    the best of several starts.
    """
    from scipy.optimize import quadratic_assignment

    a, b = ours.double().numpy(), theirs.double().numpy()
    best, most = np.arange(len(a)), -np.inf
    for _ in range(_STARTS):
        found = quadratic_assignment(
            a, b, method="faq", options={"maximize": True, "P0": "randomized", "rng": generator}
        )
        guess = np.stack([np.arange(len(a)), found.col_ind], 1)
        found = quadratic_assignment(
            a,
            b,
            method="2opt",
            options={"maximize": True, "partial_guess": guess, "rng": generator},
        )
        if found.fun > most:
            best, most = found.col_ind, found.fun
    return torch.from_numpy(best)


def match_cosine(images: Tensor, y: Tensor) -> float:
    """Mean cosine between images [row, d] and the row of y [row, d] nearest to each."""
    among = _unit(y).T
    return float(torch.cat([(_unit(part) @ among).amax(1) for part in images.split(1024)]).mean())


def _maps(
    q: Tensor, spread: float, ours: TextRows, theirs: TextRows, hooks: tuple[str, str]
) -> MapPair:
    up, down = spread * q, q.T / spread
    mean_x, mean_y = ours.rows.mean(0), theirs.rows.mean(0)
    return MapPair(
        AffineMap(up, mean_y - mean_x @ up, *hooks),
        AffineMap(down, mean_x - mean_y @ down, *hooks[::-1]),
    )


def _drawn(rows: TextRows, most: int, generator: torch.Generator) -> TextRows:
    return (
        rows if len(rows) <= most else rows[torch.randperm(len(rows), generator=generator)[:most]]
    )


def _centroids(
    rows: Tensor, count: int, generator: np.random.Generator, start: Tensor | None = None
) -> Tensor:
    from sklearn.cluster import KMeans

    options: dict[str, Any] = {"init": "k-means++" if start is None else start.numpy(), "n_init": 1}
    found = KMeans(count, random_state=int(generator.integers(2**31)), **options).fit(rows.numpy())
    return torch.from_numpy(found.cluster_centers_).to(rows)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
