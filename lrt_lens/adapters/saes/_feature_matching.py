"""Pairs of features of two SAEs, matched by the correlation of their activations.

Problem: two SAEs that were trained separately number their features at random, so their decoders
cannot be compared row by row. Mechanism: a source and a target feature are *matched* if each is the
other's best by Pearson correlation over the same tokens of the fitting folds (mutual best: each
feature at most once). The test fold, which is not used for matching, then estimates the correlation
without selection bias.

    matches = match_features(pair, stitch, source_sae, target_sae, documents)
    matches.table                      # source, target, correlation, correlation_test, firings

Source: Lan et al. (arXiv 2410.06981) pair each feature with its best; mutual best leaves out
features that share a partner.

Limits: all correlations are held at once, 8 bytes per pair.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from torch import Tensor

from lrt_lens._byte_sizes import human_bytes
from lrt_lens._repr_html import card, note, table
from lrt_lens.adapters.saes.codes._moments import encode
from lrt_lens.adapters.saes.codes._passes import CodePasses, check_sae
from lrt_lens.data._documents import Documents
from lrt_lens.data._parts import N_FOLDS, N_PARTS
from lrt_lens.errors import MismatchError
from lrt_lens.figures._single_features import matches_figure
from lrt_lens.figures._template import with_counts
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._placement import available_memory
from lrt_lens.stitching._stitch import Stitch


@dataclass(frozen=True)
class FeatureMatches:
    """Matched features of two SAEs."""

    table: pd.DataFrame
    """One row per match.

    Columns: source, target (feature indices), correlation (on the fitting folds), correlation_test
    (on the test fold), firings_source, firings_target (tokens of the fitting folds on which each
    feature is active).
    """
    n_source: int
    """Number of live features of the source's SAE."""
    n_target: int
    """Number of live features of the target's SAE."""
    n_tokens: int
    """Number of tokens of the fitting folds, on which features were matched."""
    n_test: int
    """Number of tokens of the test fold, on which matches were scored."""
    decoders: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    """Signatures of both decoders (`decoder_signature`), by which their SAEs are recognised; None
    if they are not known."""

    def __repr__(self) -> str:
        return (
            f"FeatureMatches({len(self.table)} pairs of {self.n_source} and {self.n_target} live "
            f"features; median correlation {self.table['correlation'].median():.2f} where matched, "
            f"{self.table['correlation_test'].median():.2f} on other documents)"
        )

    def refuse_other_decoders(self, source: Tensor, target: Tensor) -> None:
        """Raise `MismatchError` unless these are the decoders of the matched SAEs.

        Args:
            source: decoder [feature, d_source]; its rows may have any length.
            target: decoder [feature, d_target].
        """
        for role, decoder in (("source", source), ("target", target)):
            last = int(self.table[role].to_numpy().max())
            if last >= len(decoder):
                raise MismatchError(
                    f"these matches name feature {last} of the {role}'s SAE, and its decoder has "
                    f"{len(decoder)} features; give the matches of these two SAEs"
                )
        if self.decoders is None:
            return
        for role, own, decoder in zip(
            ("source", "target"), self.decoders, (source, target), strict=True
        ):
            theirs = decoder_signature(decoder)
            # 0.01: a decoder in bfloat16 has relative rounding errors of 0.004.
            if own.shape != theirs.shape or not torch.allclose(own, theirs, rtol=0, atol=0.01):
                raise MismatchError(
                    f"these matches are of another {role} SAE: its decoder has {len(own)} features,"
                    f" the one given {len(theirs)}, and their directions differ; give the matches "
                    "of these two SAEs, match_features(...)"
                )

    def figure(self) -> Any:
        """Plotly figure of the correlation on test documents against that on the matching ones."""
        counts = {"pairs of features": len(self.table), "test tokens": self.n_test}
        return with_counts(matches_figure(self.table), counts)

    def _repr_html_(self) -> str:
        pairs = f"{len(self.table)} pairs of {self.n_source} and {self.n_target} live features."
        spread = (
            self.table.drop(columns=["source", "target"])
            .describe()
            .loc[["mean", "min", "50%", "max"]]
            .rename(index={"50%": "median"})
        )
        return card("FeatureMatches", note(pairs), table(spread.rename_axis("over pairs")))


def decoder_signature(decoder: Tensor) -> Tensor:
    """Return some coordinates of each feature's unit direction, [feature, at most 4].

    They tell two SAEs apart, whatever the precision and the length of the rows.
    """
    rows = decoder.detach().float().cpu()
    # Evenly spaced dimensions, because a few may be the same in all rows.
    columns = torch.linspace(0, rows.shape[1] - 1, min(4, rows.shape[1])).long()
    return torch.nn.functional.normalize(rows, dim=1)[:, columns]


class _CodeSums:
    """Sums n, Σa, Σb, Σa², Σb², Σabᵀ over tokens of two codes a and b, in float64."""

    def __init__(self, n_source: int, n_target: int) -> None:
        shapes = ((n_source,), (n_source,), (n_source,), (n_target,), (n_target,), (n_target,))
        zeros = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        self.n = 0
        self.a, self.aa, fired_a, self.b, self.bb, fired_b = zeros
        self.ab = torch.zeros(n_source, n_target, dtype=torch.float64)
        self.fired = (fired_a, fired_b)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add codes of the same tokens, [token, source] and [token, target]."""
        a, b = a.cpu(), b.cpu()
        # The product of one block in float32 takes a third of the time; blocks add up in float64.
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
        """Pearson correlations [source, target]; 0 for a feature that never varies."""
        # n var(a) = Σa² − (Σa)²/n and n cov(a, b) = Σab − ΣaΣb/n; rounding can make a variance
        # negative.
        deviations = [
            (square - total**2 / self.n).clamp_min(0).sqrt()
            for total, square in ((self.a, self.aa), (self.b, self.bb))
        ]
        inverse = [
            torch.where(deviation > 0, 1 / deviation, torch.zeros_like(deviation))
            for deviation in deviations
        ]
        covariance = self.ab - torch.outer(self.a, self.b) / self.n
        return covariance * rearrange(inverse[0], "source -> source 1") * inverse[1]


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
    """Pairs of features that are each other's best by activation correlation, strongest first.

    Args:
        pair: the models of the stitch.
        stitch: names the hook points and the test fold, which scores; its maps are not used.
        source_sae: an SAE of the stitch's source hook point, with ``encode`` and ``W_dec``.
        target_sae: an SAE of its target hook point.
        documents: text in any form that `fit_stitches` accepts.
        n_tokens: unmasked tokens of all folds; None reads all documents.
        min_firings: features that are active on fewer tokens of the fitting folds have no match.
        min_correlation: matches with a smaller correlation on the fitting folds are left out.
        context_length: tokens per window.
        progress: show a bar.

    Raises:
        MismatchError: an SAE belongs to another width, hook point, model, basis or tokenizer.
        ValueError: the correlations of all pairs do not fit into memory; nothing matches.
    """
    check_sae(source_sae, pair.source, stitch.source_hook, context_length)
    check_sae(target_sae, pair.target, stitch.target_hook, context_length)
    widths = (source_sae.W_dec.shape[0], target_sae.W_dec.shape[0])
    # Four float64 arrays [source, target]: Σab of both parts, and two temporaries of a correlation.
    needed, free = 4 * 8 * widths[0] * widths[1], available_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"correlations of {widths[0]} with {widths[1]} features take {human_bytes(needed)}, "
            f"and {human_bytes(free)} are free; give SAEs with fewer features"
        )
    fit, test = _CodeSums(*widths), _CodeSums(*widths)
    passes = CodePasses(pair, stitch, documents, n_tokens, context_length, progress)
    for block in passes.blocks(range(N_PARTS), "matching"):
        codes = (
            encode(source_sae, passes.source_rows(block)),
            encode(target_sae, passes.target_rows(block)),
        )
        (fit if block.part < N_FOLDS else test).add(*codes)
    matches = _matches(fit, test, min_firings, min_correlation)
    signatures = (decoder_signature(source_sae.W_dec), decoder_signature(target_sae.W_dec))
    return replace(matches, decoders=signatures)


def _matches(
    fit: _CodeSums, test: _CodeSums, min_firings: int, min_correlation: float
) -> FeatureMatches:
    """Mutual best features of the fitting folds, with their correlation on the test fold."""
    correlations = fit.correlations()
    live = [fired >= min_firings for fired in fit.fired]
    # Below every correlation, so that a feature that is not live is the best of none.
    correlations[~live[0]] = -2.0
    correlations[:, ~live[1]] = -2.0
    best_target, best_source = correlations.argmax(1), correlations.argmax(0)
    source = torch.arange(len(correlations))
    strongest = correlations[source, best_target]
    # Mutual best: i is the best of its own best.
    mutual = (best_source[best_target] == source) & (strongest > max(min_correlation, 0.0))
    source, target = source[mutual], best_target[mutual]
    if not len(source):
        raise ValueError(
            f"no two of {int(live[0].sum())} and {int(live[1].sum())} live features are each "
            f"other's best above a correlation of {min_correlation}; lower min_correlation or "
            "min_firings, or give more text"
        )
    table = pd.DataFrame(
        {
            "source": source.numpy(),
            "target": target.numpy(),
            "correlation": strongest[mutual].numpy(),
            "correlation_test": test.correlations()[source, target].numpy(),
            "firings_source": fit.fired[0][source].long().numpy(),
            "firings_target": fit.fired[1][target].long().numpy(),
        }
    )
    table = table.sort_values("correlation", ascending=False, ignore_index=True)
    return FeatureMatches(table, int(live[0].sum()), int(live[1].sum()), fit.n, test.n)
