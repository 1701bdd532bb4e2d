"""Codes or states: which predicts the target better, and which of their directions does on the
target what the feature does on the source?

LRT (arXiv 2506.00653, §3.2) prefers its map from SAE codes (*s2l*) to the one between states
(*l2l*) for steering and reports training losses (5.437 and 5.935), without a baseline. Here both
are scored on the same tokens of documents that neither saw:

    s2l              target states from codes, `CodeMap`
    l2l              the stitch's own map, from the states themselves
    reconstruction   the stitch's map on the SAE's reconstruction: what l2l could know from the codes alone

and feature by feature: the cosine of the code map's row to the image of the decoder row, and
`steering_agreement` of either with what the decoder row does on the source, beside another
feature's row and a random direction of the stream.

    found = evaluate_code_map(pair, stitch, sae, codes, documents, texts=lrt.demo_neutral())
    found.table; found.features; found.summary

Limits: the R² of s2l is bounded by what the SAE keeps of the source; steps are of equal size in
standard deviations of the stream, so agreement compares directions, not strengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrt_lens._repr_html import card, table
from lrt_lens.adapters.saes.codes._code_map import CodeMap, encode_states
from lrt_lens.adapters.saes.codes._moments import CodePasses, check_sae, encode
from lrt_lens.adapters.vectors._agreement import steering_agreement
from lrt_lens.data._documents import Documents
from lrt_lens.data._parts import N_FOLDS, N_TEST_GROUPS
from lrt_lens.errors import MismatchError, TooFewDocumentsError
from lrt_lens.models._hook_points import same_place
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._scatter import r2_of
from lrt_lens.statistics._intervals import bootstrap_mean
from lrt_lens.statistics._jackknife import jackknife
from lrt_lens.stitching._stitch import Stitch

ARMS = ("s2l", "l2l", "reconstruction")
EFFECTS = ("s2l", "l2l", "other", "random")


@dataclass(frozen=True)
class CodeMapEvaluation:
    """Maps on the test fold, and features one by one."""

    table: pd.DataFrame
    """A row per arm: arm, r2, r2_low, r2_high, r2_uniform, r2_uniform_low, r2_uniform_high (95% by
    the jackknife over groups of test documents), fvu, n_tokens."""
    features: pd.DataFrame = field(repr=False)
    """A row per feature: feature, firings, cosine (code map's row to the decoder row's image),
    agreement_s2l, agreement_l2l, agreement_other (another feature's row of the code map),
    agreement_random. Empty where no texts were given."""
    seed: int = 0

    @property
    def summary(self) -> pd.DataFrame:
        """Mean over features with its 95% interval by bootstrap, a row a measure; paired difference
        of s2l and l2l at the end.
        """
        if self.features.empty:
            return pd.DataFrame(columns=["measure", "mean", "low", "high", "n"])
        values = {"cosine s2l to l2l": self.features["cosine"]}
        values |= {f"agreement, {arm}": self.features[f"agreement_{arm}"] for arm in EFFECTS}
        values["agreement, s2l − l2l"] = (
            self.features["agreement_s2l"] - self.features["agreement_l2l"]
        )
        rows = []
        for measure, column in values.items():
            found = bootstrap_mean(column.to_numpy(), seed=self.seed)
            rows.append(
                {
                    "measure": measure,
                    "mean": found.value,
                    "low": found.low,
                    "high": found.high,
                    "n": len(column),
                }
            )
        return pd.DataFrame(rows)

    def figure(self) -> Any:
        """R² of the maps, and the agreement of features under either map."""
        from lrt_lens.figures._code_map import code_map_figure

        return code_map_figure(self.table, self.features)

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
    """The code map beside the stitch on the test fold, and features by what they do.

    Args: pair: the models of the stitch. stitch: the l2l map. sae: the one that the code map was
        fitted on. codes: the s2l map. documents: only those of the stitch's test fold are read.
        texts: neutral texts on which steering is compared, by models of one tokenizer; None leaves
        features out. features: which; None draws ``n_features`` live ones, frequent and rare alike.
        n_features: how many to draw. n_tokens: unmasked tokens after which no further document is
        taken, those of other folds included; as for the fit. context_length: tokens a window. seed:
        of the draw. progress: show bars.

    Raises: MismatchError: an SAE or a code map of another place or size; ``texts`` for models of
        two tokenizers. TooFewDocumentsError: fewer than two groups of the test fold hold a
        document.
    """
    if texts is not None:
        # Before the passes, whose scores it would throw away.
        pair.refuse_two_tokenizers(
            "texts= of evaluate_code_map",
            "leave texts out: the table needs no comparison of tokens",
        )
    check_sae(sae, pair.source, stitch.source_hook)
    codes.check(sae)
    if not (
        same_place(codes.source_hook, stitch.source_hook)
        and same_place(codes.target_hook, stitch.target_hook)
    ):
        raise MismatchError(
            f"the code map goes {codes.source_hook!r} → {codes.target_hook!r}, the stitch {stitch.source_hook!r} → {stitch.target_hook!r}; "
            "fit both between the same hook points"
        )
    passes = CodePasses(pair, stitch, documents, n_tokens, context_length, progress)
    table = _score(passes, sae, codes)
    if texts is None:
        return CodeMapEvaluation(table, pd.DataFrame(), seed)
    chosen = _draw(codes, n_features, seed) if features is None else list(features)
    return CodeMapEvaluation(
        table, _compare_features(pair, stitch, sae, codes, chosen, texts, seed, progress), seed
    )


def _score(passes: CodePasses, sae: Any, codes: CodeMap) -> pd.DataFrame:
    """Sums of squares by arm and group of test documents."""
    d = len(codes.bias)
    errors = {arm: torch.zeros(N_TEST_GROUPS, d, dtype=torch.float64) for arm in ARMS}
    counts, total, square = (
        np.zeros(N_TEST_GROUPS),
        torch.zeros(N_TEST_GROUPS, d, dtype=torch.float64),
        torch.zeros(N_TEST_GROUPS, d, dtype=torch.float64),
    )
    shift = passes.stitch.target_statistics.mean.double().cpu()
    for block in passes.blocks(range(N_FOLDS, N_FOLDS + N_TEST_GROUPS), "test fold"):
        group = block.part - N_FOLDS
        x, y = passes.source_rows(block), passes.target_rows(block).double().cpu()
        guesses = {
            "s2l": encode_states(codes, sae, x),
            "l2l": passes.stitch.up.points(x.double().cpu()),
        }
        guesses["reconstruction"] = passes.stitch.up.points(_reconstruction(sae, x).double().cpu())
        for arm, guess in guesses.items():
            errors[arm][group] += ((y - guess.cpu()) ** 2).sum(0)
        y = y - shift
        counts[group] += len(y)
        total[group] += y.sum(0)
        square[group] += (y * y).sum(0)
    return _table(errors, counts, total, square)


def _reconstruction(sae: Any, x: Tensor) -> Tensor:
    parameter = sae.W_dec
    with torch.no_grad():
        if hasattr(sae, "decode"):
            return sae.decode(sae.encode(x.to(parameter.device, parameter.dtype))).float()
        return (
            encode(sae, x) @ parameter.detach().float()
            + getattr(sae, "b_dec", torch.zeros(1)).detach().float()
        )


def _table(
    errors: dict[str, Tensor], counts: np.ndarray, total: Tensor, square: Tensor
) -> pd.DataFrame:
    groups = [group for group in range(N_TEST_GROUPS) if counts[group] > 0]
    if len(groups) < 2:
        raise TooFewDocumentsError(
            f"{len(groups)} of {N_TEST_GROUPS} groups of the test fold hold a document; an interval needs 2: give more text"
        )

    def scores(arm: str, kept: list[int]) -> np.ndarray:
        variance = square[kept].sum(0) - total[kept].sum(0) ** 2 / counts[kept].sum()
        return np.array(r2_of(errors[arm][kept].sum(0), variance)[:2])

    rows = []
    for arm in ARMS:
        full = scores(arm, groups)
        found = jackknife(
            full, [scores(arm, [g for g in groups if g != left_out]) for left_out in groups]
        )
        row: dict[str, Any] = {"arm": arm}
        for place, name in enumerate(("r2", "r2_uniform")):
            row |= {
                name: float(full[place]),
                f"{name}_low": float(found.low[place]),
                f"{name}_high": float(found.high[place]),
            }
        rows.append(row | {"fvu": 1 - row["r2"], "n_tokens": int(counts.sum())})
    return pd.DataFrame(rows)


def _draw(codes: CodeMap, n: int, seed: int) -> list[int]:
    """Live features at even steps of their frequency, which features at each step the seed decides."""
    order = codes.live[codes.firings[codes.live].argsort(descending=True)].numpy()
    bins = np.array_split(order, min(n, len(order)))
    rng = np.random.default_rng(seed)
    return [int(rng.choice(bin_)) for bin_ in bins]


def _compare_features(
    pair: ModelPair,
    stitch: Stitch,
    sae: Any,
    codes: CodeMap,
    chosen: list[int],
    texts: Sequence[str],
    seed: int,
    progress: bool,
) -> pd.DataFrame:
    rows = torch.stack([codes.row(feature) for feature in chosen]).double()
    decoder = sae.W_dec.detach().double().cpu()[chosen]
    images = stitch.up.directions(decoder.to(stitch.up.weight.device)).cpu().double()
    generator = torch.Generator().manual_seed(seed)
    values, vectors = torch.linalg.eigh(stitch.target_statistics.covariance.double().cpu())
    noise = torch.randn(len(chosen), len(values), generator=generator, dtype=torch.float64)
    others = {
        "s2l": rows,
        "l2l": images,
        "other": rows.roll(1, 0),
        "random": (noise * values.clamp_min(0).sqrt()) @ vectors.T,
    }
    found = {
        f"agreement_{arm}": steering_agreement(
            pair, stitch, decoder.float(), texts, images=image.float(), progress=progress
        ).numpy()
        for arm, image in others.items()
    }
    cosine = torch.nn.functional.cosine_similarity(rows, images, dim=1)
    return pd.DataFrame(
        {"feature": chosen, "firings": codes.firings[chosen].numpy(), "cosine": cosine.numpy()}
        | found
    )
