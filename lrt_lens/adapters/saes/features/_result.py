"""What was found out about each feature: a table, figures, and a page for any one of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrt_lens._repr_html import card, note, table
from lrt_lens.adapters.saes.features._attention import strongest_heads
from lrt_lens.adapters.saes.features._coder import check_index
from lrt_lens.adapters.saes.features._contexts import TopContexts
from lrt_lens.statistics._correlations import bootstrap_rank_correlation
from lrt_lens.statistics._intervals import NOTHING, Interval, bootstrap_mean

if TYPE_CHECKING:
    from lrt_lens.adapters.saes.features._page import FeaturePage

_CORRELATIONS = (
    "attribution_r",
    "attribution_r_random",
    "attribution_r_shuffled",
    "attribution_r_other",
    "activation_r",
)


@dataclass(frozen=True)
class OutputTokens:
    """The tokens that features raise and lower most, [feature, 2n]: the n raised ones first."""

    ids: Tensor
    weights: Tensor
    """Centred logits of one unit of the feature, times the size of the last stream."""


@dataclass(frozen=True)
class FeatureEvaluation:
    """Every feature of an SAE on its own model and carried to another."""

    table: pd.DataFrame
    """A row per feature, NaN where something is undefined: feature; density_source, density_target
    (share of positions where it is active); max_activation_source, max_activation_target;
    rho_write, rho_read (`stitch.fidelity`, from moments alone); activation_r (correlation of
    activations over positions), attribution_r with attribution_r_low and _high (95% over groups of
    documents), attribution_r_random (an SAE of random directions under the same maps),
    attribution_r_shuffled (the maps of shuffled pairs), attribution_r_other (another feature of the
    SAE); kind, semantic_score, semantic_score_chance, n_sentences and kind_target (the same on the
    target); entropy_share_source, entropy_share_target (share of the decoder row's norm in the
    bottom 2% of the unembedding)."""
    attention: pd.DataFrame
    """A row per chosen feature, model and head behind the hook point; see
    `lrt_lens.adapters.saes.features._attention`.
    """
    source: str
    """Name of the model that the features come from."""
    target: str
    source_hook: str
    target_hook: str
    n_tokens: int
    """Positions measured at."""
    attribution: str
    """``"logits"`` or ``"gradient"``."""
    entropy_share_random: tuple[float, float]
    """What a random direction has on the source and on the target."""
    contexts: tuple[TopContexts, TopContexts] = field(repr=False)
    """Strongest places, ranked by the source and by the target."""
    output_tokens: tuple[OutputTokens, OutputTokens] = field(repr=False)
    rewrites: Sequence[Sequence[str]] = field(repr=False, default=())
    """Sentences with their rewrites, the original first."""
    tokenizer: Any = field(repr=False, default=None)
    seed: int = 0

    @property
    def live(self) -> pd.DataFrame:
        """Rows of features that both models' streams fire at all."""
        fires = (self.table["density_source"] > 0) & (self.table["density_target"] > 0)
        return self.table.loc[fires]

    @property
    def summary(self) -> pd.DataFrame:
        """Attribution correlation of all live features and of each kind, beside its baselines: mean
        with 95% over features, median, share above ½.
        """
        live = self.live
        rows = []
        for name, part in [
            ("all", live),
            *((str(kind), group) for kind, group in live.groupby("kind") if kind),
        ]:
            row: dict[str, Any] = {"features": name, "n": len(part)}
            known = _known(part["attribution_r"])
            mean = bootstrap_mean(known, seed=self.seed)
            row |= {"attribution_r": mean.value, "low": mean.low, "high": mean.high}
            row |= {
                "median": float(np.median(known)) if len(known) else np.nan,
                "above_half": float((known > 0.5).mean()) if len(known) else np.nan,
            }
            columns = (
                *_CORRELATIONS[1:],
                "rho_write",
                "rho_read",
                "density_source",
                "density_target",
            )
            means = {
                column: bootstrap_mean(_known(part[column]), seed=self.seed).value
                for column in columns
            }
            rows.append(row | means)
        return pd.DataFrame(rows)

    @property
    def predictors(self) -> pd.DataFrame:
        """Rank correlation over live features of what is known beforehand with the attribution
        correlation, 95% by bootstrap over features.
        """
        live = self.live
        rows = []
        for name in ("rho_write", "rho_read", "density_source", "semantic_score"):
            known = live[[name, "attribution_r"]].dropna()
            if len(known) > 3:
                found, _ = bootstrap_rank_correlation(
                    _known(known[name]),
                    _known(known["attribution_r"]),
                    seed=self.seed,
                    n_draws=1000,
                )
                rows.append(
                    {
                        "predictor": name,
                        "rank_correlation": found.value,
                        "low": found.low,
                        "high": found.high,
                        "n": len(known),
                    }
                )
        return pd.DataFrame(rows, columns=["predictor", "rank_correlation", "low", "high", "n"])

    @property
    def structural_advantage(self) -> Interval:
        """By how much structural features' attribution correlation is above that of semantic ones
        of the same density (95% over the former).

        Each is compared with the mean of the five semantic features closest in log density: dense
        features correlate better whatever they mean, so the difference between the kinds alone says
        little.
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
        distance = np.abs(np.log(structural[:, :1]) - np.log(semantic[:, 0]))
        nearest = np.argsort(distance, axis=1, kind="stable")[:, :5]
        return bootstrap_mean(structural[:, 1] - semantic[nearest, 1].mean(1), seed=self.seed)

    @property
    def heads(self) -> pd.DataFrame:
        """For each chosen feature and model the head it moves most, with the effect on examples
        that had no part in the choice.
        """
        return strongest_heads(self.attention)

    def figure(self) -> Any:
        """Attribution correlations: all features against the baselines, and semantic against
        structural ones (Stitching, figures 4 and 14).
        """
        from lrt_lens.figures._features import attribution_figure

        return attribution_figure(self.table)

    def fidelity_figure(self) -> Any:
        """What the moments foretold against what was measured, a point a feature."""
        from lrt_lens.figures._features import fidelity_figure

        return fidelity_figure(self.live)

    def entropy_figure(self) -> Any:
        """Largest activation and share of the decoder in the unembedding's null space, before and
        after (Stitching, figure 5a).
        """
        from lrt_lens.figures._features import entropy_figure

        return entropy_figure(
            self.table, self.entropy_share_random, names=(self.source, self.target)
        )

    def attention_figure(self) -> Any:
        """Attention to BOS that rests on a feature, head by head, before and after (Stitching,
        figures 5b and 16).
        """
        from lrt_lens.figures._features import attention_figure

        return attention_figure(self.attention, names=(self.source, self.target))

    def page(self, index: int) -> "FeaturePage":
        """One feature: its scores, its strongest places in both models, its output tokens. Shows
        itself in Jupyter; ``.save(path)`` writes HTML.

        IndexError where there is no such feature.
        """
        from lrt_lens.adapters.saes.features._page import FeaturePage, TokenContext

        check_index(index, len(self.table))
        places = {
            role: [
                TokenContext(*self._context(kept, index, place, swapped=role == "target"))
                for place in range(kept.peaks.shape[1])
                if kept.peaks[index, place] > 0
            ]
            for role, kept in zip(("source", "target"), self.contexts, strict=True)
        }
        tokens = {
            role: [
                (self._text(int(i)), float(w))
                for i, w in zip(found.ids[index], found.weights[index], strict=True)
            ]
            for role, found in zip(("source", "target"), self.output_tokens, strict=True)
        }
        scores = {str(key): value for key, value in self.table.iloc[index].to_dict().items()}
        heads = self.attention.loc[self.attention["feature"] == index]
        return FeaturePage(
            index=index,
            names=(self.source, self.target),
            hooks=(self.source_hook, self.target_hook),
            scores=scores,
            contexts=places,
            output_tokens=tokens,
            heads=heads.reset_index(drop=True),
        )

    def _context(
        self, kept: TopContexts, index: int, place: int, *, swapped: bool
    ) -> tuple[list[str], list[float], list[float], int]:
        """(tokens, activations on the source, on the target, which token is the place)."""
        ids = kept.tokens[index, place]
        inside = (ids >= 0).nonzero()[:, 0]
        values = [
            activations[index, place, inside].tolist() for activations in (kept.ranked, kept.other)
        ]
        source, target = reversed(values) if swapped else values
        return (
            [self._text(int(i)) for i in ids[inside]],
            source,
            target,
            int((inside < kept.reach).sum()),
        )

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    def _repr_html_(self) -> str:
        hooks = f"{self.source} {self.source_hook} → {self.target} {self.target_hook}, {self.n_tokens:,} positions, attribution by {self.attribution}."
        return card("FeatureEvaluation", note(hooks), table(self.summary))


def _known(column: Any) -> np.ndarray:
    values = np.asarray(column, dtype=float)
    return values[~np.isnan(values)]


def output_tokens(unembedding: Any, decoder: Tensor, n: int) -> OutputTokens:
    """The ``n`` tokens that each decoder row raises and lowers most."""
    ids, weights = unembedding.top_tokens(decoder, n)
    return OutputTokens(ids.to(torch.int32), weights)
