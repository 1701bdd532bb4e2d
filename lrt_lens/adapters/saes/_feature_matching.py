"""Which feature of one SAE is which of another? By correlation of their activations on the same
tokens.

Two SAEs that were trained apart number their features at random, so their decoders cannot be
compared row by row before features are matched. A source and a target feature are *matched* where
each is the other's best by Pearson correlation on the fitting folds (mutual best: every feature at
most once). The test fold, which chose nothing, then says what the correlation really is.

Source of the rule: Lan et al. (arXiv 2410.06981), who pair every feature with its best; mutual best
leaves out what merely shares a partner.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lrt_lens._byte_sizes import human_bytes
from lrt_lens._repr_html import card, note, table
from lrt_lens.adapters.saes.codes._moments import CodePasses, check_sae, encode
from lrt_lens.data._documents import Documents
from lrt_lens.data._parts import N_FOLDS, N_PARTS
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._plan import available_memory
from lrt_lens.stitching._stitch import Stitch


@dataclass(frozen=True)
class FeatureMatches:
    """Pairs of features, one a row."""

    table: pd.DataFrame
    """source, target (feature indices), correlation (on the documents that matched),
    correlation_test (on others), firings_source, firings_target (tokens of the documents that
    matched)."""
    n_source: int
    """Live features of the source's SAE."""
    n_target: int
    n_tokens: int
    """Tokens that matched."""
    n_test: int
    """Tokens that scored."""

    def __repr__(self) -> str:
        return (
            f"FeatureMatches({len(self.table)} pairs of {self.n_source} and {self.n_target} live features; median correlation "
            f"{self.table['correlation'].median():.2f} where matched, {self.table['correlation_test'].median():.2f} on other documents)"
        )

    def figure(self) -> Any:
        """Correlation on other documents against that where features were matched (plotly)."""
        from lrt_lens.figures._single_features import matches_figure

        return matches_figure(self.table)

    def _repr_html_(self) -> str:
        pairs = f"{len(self.table)} pairs of {self.n_source} and {self.n_target} live features."
        spread = (
            self.table.drop(columns=["source", "target"])
            .describe()
            .loc[["mean", "min", "50%", "max"]]
            .rename(index={"50%": "median"})
        )
        return card("FeatureMatches", note(pairs), table(spread.rename_axis("over pairs")))


class _Sums:
    """n, Σa, Σb, Σa², Σb², Σabᵀ of two codes."""

    def __init__(self, n_source: int, n_target: int) -> None:
        self.n = 0
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64)  # noqa: E731
        self.a, self.aa, self.b, self.bb = (
            zeros(n_source),
            zeros(n_source),
            zeros(n_target),
            zeros(n_target),
        )
        self.ab = zeros(n_source, n_target)
        self.fired = (zeros(n_source), zeros(n_target))

    def add(self, a: Tensor, b: Tensor) -> None:
        a, b = a.cpu(), b.cpu()
        # The product in float32 (a third of the time), the sum of blocks in float64.
        self.ab += (a.T @ b).double()
        a, b = a.double(), b.double()
        self.n += len(a)
        for total, square, fired, rows in (
            (self.a, self.aa, self.fired[0], a),
            (self.b, self.bb, self.fired[1], b),
        ):
            total += rows.sum(0)
            square += (rows * rows).sum(0)
            fired += (rows != 0).sum(0)

    def correlations(self) -> Tensor:
        """[source, target]; 0 where a feature never varies."""
        deviations = [
            (square - total**2 / self.n).clamp_min(0).sqrt()
            for total, square in ((self.a, self.aa), (self.b, self.bb))
        ]
        inverse = [
            torch.where(deviation > 0, 1 / deviation, torch.zeros_like(deviation))
            for deviation in deviations
        ]
        return (self.ab - torch.outer(self.a, self.b) / self.n) * inverse[0][:, None] * inverse[1]


def match_features(
    pair: ModelPair,
    stitch: Stitch,
    source_sae: Any,
    target_sae: Any,
    documents: Documents,
    *,
    n_tokens: int | None = 200_000,
    min_firings: int = 10,
    min_correlation: float = 0.0,
    context_length: int = 256,
    progress: bool = True,
) -> FeatureMatches:
    """Features of two SAEs that are each other's best by activation correlation, strongest first.

    Args: pair: the models of the stitch. stitch: says at which hook points, and which documents
        score instead of matching (its test fold). Its maps are not used. source_sae: at the
        stitch's source hook; anything with ``encode`` and ``W_dec``. target_sae: at its target
        hook. documents: see `lrt_lens.data._documents`. n_tokens: unmasked tokens of both; None
        takes all documents. min_firings: a feature active on fewer tokens of the fitting folds is
        matched with none. min_correlation: pairs below it on the fitting folds are left out.
        context_length: tokens a window. progress: show a bar.

    Raises:
        MismatchError: an SAE of another width or hook point.
        ValueError: the correlations of all pairs do not fit into memory; nothing matches.
    """
    check_sae(source_sae, pair.source, stitch.source_hook)
    check_sae(target_sae, pair.target, stitch.target_hook)
    widths = (source_sae.W_dec.shape[0], target_sae.W_dec.shape[0])
    needed, free = 4 * 8 * widths[0] * widths[1], available_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"correlations of {widths[0]} with {widths[1]} features take {human_bytes(needed)}, and {human_bytes(free)} are free; "
            "give narrower SAEs"
        )
    fit, test = _Sums(*widths), _Sums(*widths)
    passes = CodePasses(pair, stitch, documents, n_tokens, context_length, progress)
    for block in passes.blocks(range(N_PARTS), "matching"):
        codes = (
            encode(source_sae, passes.source_rows(block)),
            encode(target_sae, passes.target_rows(block)),
        )
        (fit if block.part < N_FOLDS else test).add(*codes)
    return _matches(fit, test, min_firings, min_correlation)


def _matches(fit: _Sums, test: _Sums, min_firings: int, min_correlation: float) -> FeatureMatches:
    correlations = fit.correlations()
    live = [fired >= min_firings for fired in fit.fired]
    correlations[~live[0]] = -2.0
    correlations[:, ~live[1]] = -2.0
    best_target, best_source = correlations.argmax(1), correlations.argmax(0)
    source = torch.arange(len(correlations))
    found = correlations[source, best_target]
    kept = (best_source[best_target] == source) & (found > max(min_correlation, 0.0))
    source = source[kept]
    target = best_target[kept]
    if not len(source):
        raise ValueError(
            f"no feature of {int(live[0].sum())} and {int(live[1].sum())} live ones is each other's best above a correlation of "
            f"{min_correlation}; lower min_correlation or min_firings, or give more text"
        )
    table = pd.DataFrame(
        {
            "source": source.numpy(),
            "target": target.numpy(),
            "correlation": found[kept].numpy(),
            "correlation_test": test.correlations()[source, target].numpy(),
            "firings_source": fit.fired[0][source].long().numpy(),
            "firings_target": fit.fired[1][target].long().numpy(),
        }
    )
    table = table.sort_values("correlation", ascending=False, ignore_index=True)
    return FeatureMatches(table, int(live[0].sum()), int(live[1].sum()), fit.n, test.n)
