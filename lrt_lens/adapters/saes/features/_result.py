"""Result of a feature evaluation: a table, figures, and a page for each feature.

    features = evaluate_features(pair, stitch, sae, documents)
    features.summary, features.predictors, features.structural_advantage
    features.page(17).save("feature-17.html")

Problem: thousands of features have a dozen numbers each. Mechanism: one table holds them; summaries
give means with intervals over features, figures show distributions, pages show single features.

Limits: intervals over features say what other features of this SAE would give on the same tokens
and under the same map. Features are dependent, because they share tokens and the map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrt_lens._repr_html import card, note, table
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.saes.features._attention import strongest_heads
from lrt_lens.adapters.saes.features._coder import check_index
from lrt_lens.adapters.saes.features._contexts import TopContexts
from lrt_lens.adapters.saes.features._page import FeaturePage, TokenContext
from lrt_lens.adapters.saes.features._unembedding import Unembedding
from lrt_lens.figures._features import (
    attention_figure,
    attribution_figure,
    entropy_figure,
    fidelity_figure,
)
from lrt_lens.figures._template import count_range, with_counts
from lrt_lens.statistics._bootstrap import FEW, bootstrap_mean
from lrt_lens.statistics._correlations import bootstrap_rank_correlation
from lrt_lens.statistics._intervals import NOTHING, Interval, joined_flags, t_quantile

_AVERAGED = (
    "attribution_r_random",
    "attribution_r_shuffled",
    "attribution_r_other",
    "activation_r",
    "rho_write",
    "rho_read",
    "density_source",
    "density_target",
)
"""Columns of which `FeatureEvaluation.summary` gives the mean."""
_PREDICTORS = ("rho_write", "rho_read", "density_source", "semantic_score")
"""Columns that are known before the attribution is measured."""
_N_NEIGHBOURS = 5
"""Number of semantic features of similar density with which a structural one is compared."""


@dataclass(frozen=True)
class OutputTokens:
    """Tokens that each feature raises and lowers most, [feature, 2n]: the n raised ones first."""

    ids: Tensor
    """Token ids, [feature, 2n]."""
    weights: Tensor
    """Centred logits of one unit of the feature, times the size of the last stream, [feature,
    2n]."""


@dataclass(frozen=True, repr=False)
class FeatureEvaluation(ShortRepr):
    """Measurements of every feature of an SAE, on its own model and transferred to another."""

    table: pd.DataFrame
    """One row per feature; NaN marks undefined values.

    - feature: index.
    - density_source, density_target: share of positions at which it is active.
    - max_activation_source, max_activation_target.
    - rho_write, rho_read: `stitch.fidelity`, from moments alone.
    - activation_r: correlation of activations over positions.
    - attribution_r, with attribution_r_low and attribution_r_high (95% over groups of documents).
    - attribution_groups: groups of documents that the interval rests on, at most 8. Below 3, the
      feature fires in few documents, and the interval may be too short.
    - attribution_r_random (SAE of random directions under the same maps), attribution_r_shuffled
      (maps of shuffled pairs), attribution_r_other (a different feature of the SAE).
    - kind, semantic_score, semantic_score_chance, n_sentences on the source; kind_target and
      semantic_score_target on the target.
    - entropy_share_source, entropy_share_target: share of the decoder row's norm in the directions
      of the smallest 2% of the unembedding's singular values.
    """
    attention: pd.DataFrame
    """One row per measured feature, model and head after the hook point.

    `lrt_lens.adapters.saes.features._attention.attention_effects` lists the columns.
    """
    source: str
    """Name of the source model."""
    target: str
    """Name of the target model."""
    source_hook: str
    """Hook point of the source."""
    target_hook: str
    """Hook point of the target."""
    n_tokens: int
    """Number of positions that were measured."""
    attribution: str
    """Kind of attribution: ``"logits"`` or ``"gradient"``."""
    entropy_share_random: tuple[float, float]
    """Entropy share of a random direction on the source and on the target."""
    contexts: tuple[TopContexts, TopContexts] = field(repr=False)
    """Strongest contexts, ranked by the source and by the target."""
    output_tokens: tuple[OutputTokens, OutputTokens] = field(repr=False)
    """Output tokens on the source and on the target."""
    rewrites: Sequence[Sequence[str]] = field(repr=False, default=())
    """Sentences with their rewrites, the original first."""
    tokenizer: Any = field(repr=False, default=None)
    """Tokenizer of both models, for the pages."""
    seed: int = 0
    """Seed of the bootstraps."""

    @property
    def live(self) -> pd.DataFrame:
        """Rows of the features that are active at some position on both models."""
        # A feature that never fires on one model has no correlation.
        fires = (self.table["density_source"] > 0) & (self.table["density_target"] > 0)
        return self.table.loc[fires]

    @property
    def summary(self) -> pd.DataFrame:
        """Attribution correlation and baselines of all live features and of each kind.

        One row per kind, the first for all: mean with a 95% interval over features, median, share
        above ½, the means of the baselines, fidelities and densities, and ``interval_flag``, which
        says what is doubtful about the interval.
        """
        live = self.live
        kinds = [(str(kind), part) for kind, part in live.groupby("kind") if kind]
        return pd.DataFrame([self._summary_row(*group) for group in [("all", live), *kinds]])

    def _summary_row(self, name: str, part: pd.DataFrame) -> dict[str, Any]:
        known = _known(part["attribution_r"])
        mean = bootstrap_mean(known, seed=self.seed).within(-1.0)
        row: dict[str, Any] = {"features": name, "n": len(part)}
        row |= {"attribution_r": mean.value, "low": mean.low, "high": mean.high}
        row |= {
            "median": float(np.median(known)) if len(known) else np.nan,
            "above_half": float((known > 0.5).mean()) if len(known) else np.nan,
        }
        for column in _AVERAGED:
            values = _known(part[column])
            row[column] = float(values.mean()) if len(values) else np.nan
        return row | {"interval_flag": mean.flag.replace("items", "features")}

    @property
    def predictors(self) -> pd.DataFrame:
        """Rank correlation of each predictor with the attribution correlation over live features.

        One row per predictor that is known before the attribution is measured (ρ_write, ρ_read,
        density, semantic score), with a 95% bootstrap interval over features and its flag.
        """
        live = self.live
        rows = []
        for name in _PREDICTORS:
            known = live[[name, "attribution_r"]].dropna()
            # A rank correlation of three features or fewer is not informative.
            if len(known) > 3:
                rank, _ = bootstrap_rank_correlation(
                    _known(known[name]),
                    _known(known["attribution_r"]),
                    seed=self.seed,
                    n_draws=1000,
                )
                flag = f"{len(known)} features" if len(known) < FEW else ""
                rows.append((name, rank.value, rank.low, rank.high, len(known), flag))
        columns = ["predictor", "rank_correlation", "low", "high", "n", "interval_flag"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def structural_advantage(self) -> Interval:
        """Attribution correlation of structural minus semantic features of the same density.

        Each structural feature is compared with the mean of the five semantic features that are
        closest in log density. Dense features correlate better whatever their kind, so the plain
        difference between kinds is confounded with density. The 95% interval is over features of
        both kinds: structural ones share semantic neighbours, which adds to its variance.

        Source of the variance: Abadie and Imbens (2006), *Large Sample Properties of Matching
        Estimators*, theorem 7, for matching with replacement.
        """
        live = self.live
        structural, semantic = (
            np.asarray(
                live.loc[live["kind"] == kind, ["density_source", "attribution_r"]].dropna(), float
            )
            for kind in ("structural", "semantic")
        )
        if not len(structural) or not len(semantic):
            return NOTHING
        # |log p_structural − log p_semantic|, [structural, semantic]
        distance = np.abs(np.log(structural[:, :1]) - np.log(semantic[:, 0]))
        nearest = np.argsort(distance, axis=1, kind="stable")[:, :_N_NEIGHBOURS]
        gaps = structural[:, 1] - semantic[nearest, 1].mean(1)
        over_structural = bootstrap_mean(gaps, seed=self.seed)
        shared = _shared_neighbours(semantic, nearest)
        reach = t_quantile(max(len(semantic) - 1, 1)) * math.sqrt(shared)
        wider = over_structural.widened(reach)
        flag = over_structural.flag.replace("items", "structural features")
        flags = [flag] + [f"{len(semantic)} semantic features"] * (len(semantic) < FEW)
        return replace(wider, flag=joined_flags(flags))

    @property
    def heads(self) -> pd.DataFrame:
        """Most affected head of each measured feature and model.

        ``effect`` is measured on examples that had no part in the choice of the head.
        """
        return strongest_heads(self.attention)

    def figure(self) -> Any:
        """Figure of attribution correlations (plotly).

        It shows all features against the baselines, and semantic against structural features, as
        Stitching (arXiv 2506.06609), figures 4 and 14.
        """
        return with_counts(attribution_figure(self.table), self._counts(self.table))

    def fidelity_figure(self) -> Any:
        """Figure of attribution correlations against ρ_write and ρ_read, one point per feature."""
        return with_counts(fidelity_figure(self.live), self._counts(self.live))

    def _counts(self, shown: pd.DataFrame) -> dict[str, int]:
        """Return the numbers of features with an attribution correlation, and of positions."""
        return {"features": len(_known(shown["attribution_r"])), "positions": self.n_tokens}

    def entropy_figure(self) -> Any:
        """Figure of largest activations and entropy shares, before and after transfer.

        Source: Stitching, figure 5a.
        """
        figure = entropy_figure(
            self.table, self.entropy_share_random, names=(self.source, self.target)
        )
        n_active = int((np.asarray(self.table["max_activation_source"]) > 0).sum())
        return with_counts(figure, {"features": n_active, "positions": self.n_tokens})

    def attention_figure(self) -> Any:
        """Figure of effects on attention to BOS, head by head, before and after transfer.

        Source: Stitching, figures 5b and 16.
        """
        figure = attention_figure(self.attention, names=(self.source, self.target))
        counts = {
            "features": len(set(self.attention["feature"])),
            "examples of each": count_range(self.attention, "n_examples"),
        }
        return with_counts(figure, counts)

    def page(self, index: int) -> FeaturePage:
        """Page of one feature: scores, strongest contexts in both models, output tokens.

        It is shown in Jupyter, and ``.save(path)`` writes HTML.

        Raises:
            IndexError: the SAE has no such feature.
        """
        check_index(index, len(self.table))
        # A peak of 0 marks an empty slot: the feature fired in fewer windows than there are slots.
        contexts = {
            role: [
                self._context(top, index, slot, swapped=role == "target")
                for slot in range(top.peaks.shape[1])
                if top.peaks[index, slot] > 0
            ]
            for role, top in zip(("source", "target"), self.contexts, strict=True)
        }
        tokens = {
            role: [
                (self._text(int(i)), float(w))
                for i, w in zip(output.ids[index], output.weights[index], strict=True)
            ]
            for role, output in zip(("source", "target"), self.output_tokens, strict=True)
        }
        scores = {str(key): value for key, value in self.table.iloc[index].to_dict().items()}
        heads = self.attention.loc[self.attention["feature"] == index]
        return FeaturePage(
            index=index,
            names=(self.source, self.target),
            hooks=(self.source_hook, self.target_hook),
            scores=scores,
            contexts=contexts,
            output_tokens=tokens,
            heads=heads.reset_index(drop=True),
        )

    def _context(self, top: TopContexts, index: int, slot: int, *, swapped: bool) -> TokenContext:
        """Context of one feature; ``swapped`` if the target ranked the contexts."""
        # −1 marks slots beyond the ends of the window.
        ids = top.tokens[index, slot]
        inside = (ids >= 0).nonzero()[:, 0]
        values = [
            activations[index, slot, inside].tolist() for activations in (top.ranked, top.other)
        ]
        # `ranked` holds the activations of the model that ranked the contexts.
        source, target = reversed(values) if swapped else values
        tokens = [self._text(int(i)) for i in ids[inside]]
        # The peak is slot `reach`; the number of tokens before it is its index in `tokens`.
        return TokenContext(tokens, source, target, int((inside < top.reach).sum()))

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    def _repr_html_(self) -> str:
        subtitle = (
            f"{self.source} {self.source_hook} → {self.target} {self.target_hook}, "
            f"{self.n_tokens:,} positions, attribution by {self.attribution}."
        )
        return card("FeatureEvaluation", note(subtitle), table(self.summary))


def _known(column: Any) -> np.ndarray:
    values = np.asarray(column, dtype=float)
    # A single undefined feature would make every mean NaN.
    return values[~np.isnan(values)]


def _shared_neighbours(semantic: np.ndarray, nearest: np.ndarray) -> float:
    """Return the variance that shared neighbours add to a mean of matched differences.

    ``semantic`` has density and correlation of each feature, [semantic, 2]; ``nearest`` the
    neighbours of each structural one, [structural, neighbour].
    """
    n, m = nearest.shape
    if len(semantic) < 3:
        return math.nan
    # The variance of a correlation at one density: from each feature and its neighbours in density,
    # σ² = k/(k + 1) · (y − mean of k neighbours)².
    distance = np.abs(np.log(semantic[:, :1]) - np.log(semantic[:, 0]))
    np.fill_diagonal(distance, np.inf)
    k = min(m, len(semantic) - 1)
    others = np.argsort(distance, axis=1, kind="stable")[:, :k]
    variances = k / (k + 1) * (semantic[:, 1] - semantic[others, 1].mean(1)) ** 2
    uses = np.bincount(nearest.ravel(), minlength=len(semantic))
    # Σ_j K_j (K_j − 1) σ_j² / (n m)²: neighbours that are used once are in the spread of the gaps.
    return float((uses * (uses - 1) * variances).sum() / (n * m) ** 2)


def output_tokens(unembedding: Unembedding, decoder: Tensor, n: int) -> OutputTokens:
    """The ``n`` tokens that each decoder row raises most, and the ``n`` that it lowers most."""
    ids, weights = unembedding.top_tokens(decoder, n)
    # int32 needs half the memory of int64 and holds every vocabulary.
    return OutputTokens(ids.to(torch.int32), weights)
