"""Coverage: how far the states of a text lie outside of what a map was fitted on.

    covers = fit_coverage(stitch, pair.target, known, folds="all")   # texts that the probe knows
    covers.score(pair.target, texts)          # distance, share of far tokens and p of each text
    transferred.predict_proba(pair.target, texts, abstain=covers.at(0.05))     # NaN outside

Problem: a transferred probe answers for every text, also where its map has seen nothing like it.
Mechanism: the moments of the fit give the squared Mahalanobis distance of each state y, per
dimension,

    D(y) = (y − μ)ᵀ (Σ + λ·tr(Σ)/d·I)⁻¹ (y − μ) / d

which is 1 on average over the text of the fit. The distance of a text is its mean over unmasked
tokens. Which distance is unusual is measured on documents that the fit did not see: p is the share
of them whose first n tokens are at least as far, with n the number of tokens of the text, (1 + #) /
(1 + number of documents). If the text is one more document of that kind, p ≤ level happens with
probability level at most (conformal prediction, Vovk et al. 2005), whatever the distribution of the
states. The quantile of χ² would hold for normal states only: streams have heavier tails, and
``chi2_share`` says how much heavier.

Reference documents of one kind tell strange texts apart better than those of several kinds, whose
distances differ: for a probe, the unlabelled texts that it was learnt from.

Limits: it measures states and not concepts: a text may be near and still be of a kind on which a
probe is wrong. States of the first positions lie farther out than later ones, which equal numbers
of tokens make fair, so text and reference should both begin where a text begins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens._repr_html import card, facts
from lrt_lens.data._documents import DocumentReader, Documents
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models._belonging import Origin, refuse_other_reader
from lrt_lens.models._hooked_model import HookedModel, load_model
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._reading import read_tokens, readable
from lrt_lens.models._text_codec import text_list
from lrt_lens.stitching._held_out import fold_filter
from lrt_lens.stitching._stitch import Stitch

RIDGE = 1e-4
"""Penalty λ of the inverse covariance, relative to the mean variance."""
FEWEST = 20
"""Smallest number of reference documents: with n of them no p is below 1 / (n + 1)."""
TOKEN_QUANTILE = 0.99
"""Share of the tokens of reference documents that are not far."""
COVERAGE_COLUMNS = ("text", "n_tokens", "distance", "share_beyond", "p", "covered")
"""Columns of `TextCoverage.score`."""


@dataclass(frozen=True, eq=False)
class TextCoverage:
    """Distances of texts in the moments that a stitch was fitted on, with their usual size."""

    mean: Float[Tensor, " d"]
    """Mean μ of the stream over the fitting folds, [d]."""
    root: Float[Tensor, "d d"] = field(repr=False)
    """Matrix R with R Rᵀ the regularised inverse covariance, over d, [d, d]."""
    origin: Origin
    """Hook point, model and width whose states are measured."""
    skip_first: int
    """First positions of a text that are not measured."""
    reference: tuple[np.ndarray, ...] = field(repr=False)
    """Distances of the tokens of each reference document, [token] each."""
    token_limit: float
    """Distance that 99% of the tokens of reference documents do not exceed."""
    level: float = 0.05
    """Share of reference documents that count as not covered."""

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"level is {self.level}; expected a share between 0 and 1")

    @property
    def chi2_share(self) -> float:
        """Share of tokens of reference documents beyond the 99% quantile of χ² over d.

        It would be .01 if states were normal.
        """
        from scipy.stats import chi2

        d = len(self.mean)
        return float((np.concatenate(self.reference) > chi2.ppf(TOKEN_QUANTILE, d) / d).mean())

    def at(self, level: float) -> "TextCoverage":
        """Return the same rule at another level, such as .01 to abstain less often."""
        return replace(self, level=level)

    def distances(self, states: Float[Tensor, "token d"]) -> np.ndarray:
        """Return the squared Mahalanobis distance per dimension of states, [token]."""
        from_mean = states.double().cpu() - self.mean
        # D(y) = ‖(y − μ) R‖², R Rᵀ = (Σ + λ·tr(Σ)/d·I)⁻¹ / d
        return (from_mean @ self.root).square().sum(1).numpy()

    def score(self, model: ModelLike, texts: Sequence[str]) -> pd.DataFrame:
        """Return one row per text.

        Columns: ``text`` (its number), ``n_tokens`` (unmasked tokens), ``distance`` (mean over
        them, about 1 for text like that of the fit), ``share_beyond`` (share of tokens that are
        farther than 99% of the tokens of reference documents), ``p`` and ``covered`` (p above
        ``level``).

        Raises:
            MismatchError: another model.
            ValueError: a text has no unmasked token.
        """
        hooked = load_model(model)
        refuse_other_reader(self.origin, hooked.identity, "measure")
        tokens = _distances_of(self, hooked, text_list(texts))
        means = lru_cache(maxsize=None)(self._reference_means)
        rows = []
        for number, distances in enumerate(tokens):
            far = means(len(distances)) >= distances.mean()
            p = float(1 + far.sum()) / (1 + len(far))
            rows.append(
                {
                    "text": number,
                    "n_tokens": len(distances),
                    "distance": float(distances.mean()),
                    "share_beyond": float((distances > self.token_limit).mean()),
                    "p": p,
                    "covered": p > self.level,
                }
            )
        return pd.DataFrame(rows, columns=list(COVERAGE_COLUMNS))

    def covered(self, model: ModelLike, texts: Sequence[str]) -> np.ndarray:
        """Return which texts are covered at this level, [text]; the errors are those of `score`."""
        return self.score(model, texts)["covered"].to_numpy(dtype=bool)

    def _reference_means(self, n: int) -> np.ndarray:
        """Return the mean distance of the first n tokens of each reference document."""
        return np.array([tokens[:n].mean() for tokens in self.reference])

    def __repr__(self) -> str:
        return (
            f"TextCoverage(at {self.origin.place}, {len(self.reference)} reference documents, "
            f"level {self.level:g})"
        )

    def _repr_html_(self) -> str:
        about = {
            "hook point": self.origin.hook,
            "model": self.origin.model.name if self.origin.model else None,
            "reference documents": len(self.reference),
            "their mean distance": float(np.concatenate(self.reference).mean()),
            "99% of their tokens are nearer than": self.token_limit,
            "share of tokens beyond 99% of χ²": self.chi2_share,
            "level": self.level,
        }
        return card("TextCoverage", facts(about))


def fit_coverage(
    stitch: Stitch,
    model: ModelLike,
    documents: Documents,
    *,
    side: Literal["target", "source"] = "target",
    folds: Literal["test", "all"] = "test",
    n_documents: int = 500,
    level: float = 0.05,
    ridge: float = RIDGE,
) -> TextCoverage:
    """Return the rule that says which texts are like those of the fit.

    Args:
        stitch: a stitch, whose moments measure distances.
        model: the model of that side.
        documents: documents whose distances are usual: those of the harvest, of which the test fold
            is read, or texts that a probe was learnt from.
        side: ``"target"`` for states that transferred probes read, ``"source"`` for those of the
            source.
        folds: ``"test"`` reads documents of the test fold only, which took no part in the fit;
            ``"all"`` reads every document, if none had a part in the fit.
        n_documents: largest number of documents that are read.
        level: share of such documents that count as not covered.
        ridge: penalty λ of the inverse covariance, relative to the mean variance.

    Raises:
        TooFewDocumentsError: fewer than 20 documents can be read.
        MismatchError: another model, or folds that were decided by another rule.
        ValueError: an unknown side, or a level or a ridge outside of its range.
    """
    if side not in ("target", "source") or not 0 < ridge < math.inf:
        raise ValueError(
            f"side is {side!r} and ridge {ridge}; expected 'target' or 'source', and a positive"
            " number"
        )
    hooked = load_model(model)
    if side == "target":
        stitch.check(target=hooked)
        statistics, origin = stitch.target_statistics, stitch.end
    else:
        stitch.check(source=hooked)
        statistics, origin = stitch.source_statistics, stitch.start
    covariance, d = statistics.covariance.double().cpu(), len(statistics.mean)
    values, vectors = torch.linalg.eigh(covariance)
    # Σ = V Λ Vᵀ, R = V (Λ + λ·tr(Σ)/d)^-½ / √d
    floor = ridge * float(covariance.diagonal().mean())
    root = vectors * (values.clamp_min(0) + floor).rsqrt() / math.sqrt(d)
    origin = replace(origin, model=hooked.identity, what="this coverage", made="was fitted")
    rule = TextCoverage(
        statistics.mean.double().cpu(), root, origin, stitch.skip_first, (), math.nan, level
    )
    texts = _reference_texts(stitch, hooked, documents, folds, n_documents)
    reference = tuple(_distances_of(rule, hooked, texts))
    limit = float(np.quantile(np.concatenate(reference), TOKEN_QUANTILE))
    return replace(rule, reference=reference, token_limit=limit)


def _reference_texts(
    stitch: Stitch, model: HookedModel, documents: Documents, folds: str, n_documents: int
) -> list[str]:
    """Return the texts of the documents that are read.

    Raises:
        TooFewDocumentsError: there are fewer than `FEWEST`.
    """
    is_read = fold_filter(documents, stitch.provenance, folds)
    texts: list[str] = []
    n_given = 0
    for document in DocumentReader(documents, model.tokenizer):
        if len(texts) >= n_documents:
            break
        n_given += 1
        if is_read(document):
            texts.append(document.text)
    rules: dict[str, Any] = {"skip_first": stitch.skip_first}
    kept = readable([model], texts, "every", **rules).of(texts) if texts else []
    if len(kept) < FEWEST:
        where = " are in the test fold and" if folds == "test" else ""
        raise TooFewDocumentsError(
            f"{len(kept)} of {n_given} documents{where} can be read; expected at least {FEWEST},"
            " because no text can be more unusual than all of them: give more documents"
        )
    return kept


def _distances_of(rule: TextCoverage, model: HookedModel, texts: Sequence[str]) -> list[np.ndarray]:
    """Return the distances of the unmasked tokens of each text."""
    hook = str(rule.origin.hook)
    tokens = dict(read_tokens(model, list(texts), hook, skip_first=rule.skip_first))
    return [rule.distances(tokens[number]) for number in range(len(texts))]
