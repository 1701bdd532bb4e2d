"""Comparison of a code map with the map between states, as predictors and as steering directions.

Problem: LRT (arXiv 2506.00653, §3.2) prefers its map from SAE codes (*s2l*) to its map between
states (*l2l*) for steering and reports their training losses (5.437 and 5.935), without a baseline.
Mechanism: both are scored on the same tokens of documents that no fit has read:

    s2l               target states from codes, `CodeMap`
    l2l               target states from source states, the stitch's own map
    reconstruction    the stitch's map applied to the SAE's reconstruction: the l2l score that is
                      possible from the codes alone

Per feature, the evaluation reports the cosine of the code map's row to the image of the decoder
row, and the `steering_agreement` of both with the effect of the decoder row on the source, compared
with another feature's row and a random direction.

    report = evaluate_code_map(pair, stitch, sae, codes, documents, texts=lrt.demo_neutral())
    report.table; report.features; report.summary

Limits: the R² of s2l is bounded by what the SAE preserves of the source. All steps have the same
size in standard deviations of the states, so agreement compares directions, not strengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrt_lens._repr_html import card, table
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.saes.codes._code_map import CodeMap, encode_states
from lrt_lens.adapters.saes.codes._moments import encode
from lrt_lens.adapters.saes.codes._passes import CodePasses, check_sae
from lrt_lens.adapters.vectors._agreement import steering_agreement
from lrt_lens.data._documents import Documents
from lrt_lens.data._parts import N_FOLDS, N_TEST_GROUPS
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.figures._code_map import code_map_figure
from lrt_lens.figures._template import count_range, with_counts
from lrt_lens.models._belonging import refuse_other_map
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._scatter import r2_of
from lrt_lens.statistics._bootstrap import bootstrap_mean
from lrt_lens.statistics._draws import typical_size
from lrt_lens.statistics._jackknife import few_groups, jackknife
from lrt_lens.statistics._random_directions import covariance_root
from lrt_lens.stitching._stitch import Stitch

ARMS = ("s2l", "l2l", "reconstruction")
"""Predictors of the target's states, as in the module docstring."""
EFFECTS = ("s2l", "l2l", "other", "random")
"""Directions whose steering effect is compared, per feature."""
_SUMMARY = ("measure", "mean", "low", "high", "n", "typical_size", "interval_flag")
"""Columns of `CodeMapEvaluation.summary`."""


@dataclass(frozen=True, repr=False)
class CodeMapEvaluation(ShortRepr):
    """Scores of the maps on the test fold, and of single features."""

    table: pd.DataFrame
    """One row per arm.

    Columns: arm, r2, r2_low, r2_high, r2_uniform, r2_uniform_low, r2_uniform_high (95% intervals by
    the jackknife over groups of test documents, with their tokens as sizes), fvu, n_tokens and
    n_documents (of the test fold), flag (why the intervals may be too short, or empty).
    """
    features: pd.DataFrame = field(repr=False)
    """One row per feature; empty if no texts were given.

    Columns: feature, firings, cosine (code map's row to the decoder row's image), agreement_s2l,
    agreement_l2l, agreement_other (another feature's row of the code map), agreement_random.
    """
    seed: int = 0
    """Seed of the bootstraps."""

    @property
    def summary(self) -> pd.DataFrame:
        """Mean over features with its 95% bootstrap interval, one row per measure.

        Columns: measure, mean, low, high, n, typical_size (root mean square over features, which
        does not depend on signs: controls such as ``random`` agree with either sign), and
        interval_flag (what is doubtful about the interval). The last row is the paired difference
        of s2l and l2l. All rows have the same features, neutral texts and maps.
        """
        if self.features.empty:
            return pd.DataFrame(columns=list(_SUMMARY))
        difference = self.features["agreement_s2l"] - self.features["agreement_l2l"]
        # With the largest size that there can be: of a cosine or correlation, or of a difference.
        measures = [
            ("cosine s2l to l2l", self.features["cosine"], 1.0),
            *((f"agreement, {arm}", self.features[f"agreement_{arm}"], 1.0) for arm in EFFECTS),
            ("agreement, s2l − l2l", difference, 2.0),
        ]
        rows = []
        for measure, column, most in measures:
            mean = bootstrap_mean(column.to_numpy(), seed=self.seed).within(-most, most)
            flag = mean.flag.replace("items", "features")
            size = typical_size(column.to_numpy())
            rows.append((measure, mean.value, mean.low, mean.high, len(column), size, flag))
        return pd.DataFrame(rows, columns=list(_SUMMARY))

    def figure(self) -> Any:
        """Plotly figure of the R² of the maps and the agreement of features under both maps."""
        counts = {
            "test documents": count_range(self.table, "n_documents"),
            "features": len(self.features),
        }
        return with_counts(code_map_figure(self.table, self.features), counts)

    def _repr_html_(self) -> str:
        return card(
            "CodeMapEvaluation",
            table(self.table),
            table(self.summary) if len(self.features) else "",
        )


def evaluate_code_map(
    pair: ModelPair,
    stitch: Stitch,
    sae: Any,
    codes: CodeMap,
    documents: Documents,
    *,
    texts: Sequence[str] | None = None,
    features: Sequence[int] | None = None,
    n_features: int = 32,
    n_tokens: int | None = 200_000,
    context_length: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> CodeMapEvaluation:
    """Scores of a code map and of the stitch on the test fold, and of single features.

    Args:
        pair: the models of the stitch.
        stitch: the l2l map.
        sae: the SAE on which the code map was fitted.
        codes: the s2l map.
        documents: only those of the stitch's test fold are read.
        texts: neutral texts on which steering is compared, for models of one tokenizer; None skips
            the comparison of features.
        features: indices of the features to compare; None draws ``n_features`` live ones, from
            frequent to rare.
        n_features: number of features to draw.
        n_tokens: unmasked tokens after which no further document is read, those of other folds
            included, as for the fit.
        context_length: tokens per window.
        seed: seed of the draw of features and of the random directions.
        progress: show bars.

    Raises:
        MismatchError: the SAE or the code map belongs to other hook points, models or sizes;
            ``texts`` for models of two tokenizers.
        TooFewDocumentsError: fewer than two groups of the test fold hold a document.
    """
    if texts is not None:
        # Asked before the passes, whose scores an error would discard.
        pair.refuse_two_tokenizers(
            "texts= of evaluate_code_map",
            "leave texts out: the table needs no comparison of tokens",
        )
    check_sae(sae, pair.source, stitch.source_hook, context_length)
    codes.check(sae)
    stitch.check(pair.source, pair.target)
    refuse_other_map(
        "the code map",
        codes.ends,
        stitch.ends_in(pair.source.identity, pair.target.identity),
        remedy="fit both between the same hook points",
    )
    passes = CodePasses(pair, stitch, documents, n_tokens, context_length, progress)
    table = _score(passes, sae, codes)
    if texts is None:
        return CodeMapEvaluation(table, pd.DataFrame(), seed)
    indices = _draw(codes, n_features, seed) if features is None else list(features)
    images = _images(stitch, sae, codes, indices, seed)
    # Lengths of the directions do not matter: every step has the same number of deviations.
    decoder = sae.W_dec.detach().double().cpu()[indices].float()
    agreement = {
        f"agreement_{arm}": steering_agreement(
            pair, stitch, decoder, texts, images=image.float(), progress=progress
        ).numpy()
        for arm, image in images.items()
    }
    cosine = torch.nn.functional.cosine_similarity(images["s2l"], images["l2l"], dim=1)
    firings = codes.firings[indices].numpy()
    columns = {"feature": indices, "firings": firings, "cosine": cosine.numpy()}
    return CodeMapEvaluation(table, pd.DataFrame(columns | agreement), seed)


def _score(passes: CodePasses, sae: Any, codes: CodeMap) -> pd.DataFrame:
    """Table of `CodeMapEvaluation` from one pass over the documents of the test fold."""
    shape = (N_TEST_GROUPS, len(codes.bias))
    errors = {arm: torch.zeros(shape, dtype=torch.float64) for arm in ARMS}
    counts, documents = np.zeros(N_TEST_GROUPS), [0] * N_TEST_GROUPS
    total, square = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    up = passes.stitch.up
    shift = passes.stitch.target_statistics.mean.double().cpu()
    for block in passes.blocks(range(N_FOLDS, N_FOLDS + N_TEST_GROUPS), "test fold"):
        group = block.part - N_FOLDS
        x, y = passes.source_rows(block), passes.target_rows(block).double().cpu()
        predicted = {
            "s2l": encode_states(codes, sae, x),
            "l2l": up.points(x.double().cpu()),
            "reconstruction": up.points(_reconstruction(sae, x).double().cpu()),
        }
        for arm, guess in predicted.items():
            errors[arm][group] += ((y - guess.cpu()) ** 2).sum(0)
        # Sums about the mean of the fit: Σy² − (Σy)²/n of raw states would cancel digits.
        y = y - shift
        counts[group] += len(y)
        documents[group] += block.n_documents
        total[group] += y.sum(0)
        square[group] += (y * y).sum(0)
    return _table(errors, counts, documents, total, square)


def _reconstruction(sae: Any, x: Tensor) -> Tensor:
    """Reconstruction of source states by the SAE, [token, d_source], float32."""
    parameter = sae.W_dec
    with torch.no_grad():
        if hasattr(sae, "decode"):
            return sae.decode(sae.encode(x.to(parameter.device, parameter.dtype))).float()
        # An object without decode: x̂ = f W_dec + b_dec.
        b_dec = getattr(sae, "b_dec", torch.zeros(1)).detach().float()
        return encode(sae, x) @ parameter.detach().float() + b_dec


def _table(
    errors: dict[str, Tensor],
    counts: np.ndarray,
    documents: Sequence[int],
    total: Tensor,
    square: Tensor,
) -> pd.DataFrame:
    """R² of each arm with its jackknife interval, from sums per group of test documents.

    ``counts`` are tokens, ``documents`` numbers of documents per group.
    """
    groups = [group for group in range(N_TEST_GROUPS) if counts[group] > 0]
    if len(groups) < 2:
        raise TooFewDocumentsError(
            f"{len(groups)} of {N_TEST_GROUPS} groups of the test fold hold a document; an "
            "interval needs 2: give more text"
        )

    def scores(arm: str, used: list[int]) -> np.ndarray:
        # Σ(y − ȳ)² = Σy² − (Σy)² / n over the groups that are used.
        variance = square[used].sum(0) - total[used].sum(0) ** 2 / counts[used].sum()
        return np.array(r2_of(errors[arm][used].sum(0), variance)[:2])

    flag = few_groups(counts[groups], documents)
    rows = []
    for arm in ARMS:
        full = scores(arm, groups)
        interval = jackknife(
            full,
            [scores(arm, [g for g in groups if g != left_out]) for left_out in groups],
            sizes=counts[groups],
        )
        row: dict[str, Any] = {"arm": arm}
        # r2_of returns both means of R² = 1 − error / variance; the third result is not needed
        # here.
        for index, name in enumerate(("r2", "r2_uniform")):
            row |= {
                name: float(full[index]),
                f"{name}_low": float(interval.low[index]),
                f"{name}_high": float(interval.high[index]),
            }
        sizes = {"n_tokens": int(counts.sum()), "n_documents": sum(documents)}
        rows.append(row | {"fvu": 1 - row["r2"]} | sizes | {"flag": flag})
    return pd.DataFrame(rows)


def _draw(codes: CodeMap, n: int, seed: int) -> list[int]:
    """Indices of ``n`` live features, one drawn from each of ``n`` bins of frequency."""
    order = codes.live[codes.firings[codes.live].argsort(descending=True)].numpy()
    # Bins of equal numbers of features, sorted by frequency, so that rare features are drawn too.
    bins = np.array_split(order, min(n, len(order)))
    rng = np.random.default_rng(seed)
    return [int(rng.choice(bin_)) for bin_ in bins]


def _images(
    stitch: Stitch, sae: Any, codes: CodeMap, indices: list[int], seed: int
) -> dict[str, Tensor]:
    """Directions on the target per effect of `EFFECTS`, each [feature, d_target], float64."""
    rows = torch.stack([codes.row(feature) for feature in indices]).double()
    decoder = sae.W_dec.detach().double().cpu()[indices]
    transferred = stitch.up.directions(decoder.to(stitch.up.weight.device)).cpu().double()
    generator = torch.Generator().manual_seed(seed)
    # A random direction with the target's covariance Σ = R Rᵀ is R g for a standard normal g.
    root = covariance_root(stitch.target_statistics.covariance)
    noise = torch.randn(len(indices), len(root), generator=generator, dtype=torch.float64)
    return {
        "s2l": rows,
        "l2l": transferred,
        # Each feature is paired with the row of the feature before it.
        "other": rows.roll(1, 0),
        "random": noise @ root.T,
    }
