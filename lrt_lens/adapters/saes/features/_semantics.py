"""Does a feature follow the structure of a sentence or what it is about?

Stitching, §5: a sentence and k = 5 rewrites that keep function words, punctuation and syntax but
replace content words. A feature that fires on any token of *all* versions is structural there, one
that fires in some only is semantic. Over many sentences, counted where the original fires it:

    semantic score = 1 − (sentences where all versions fire it) / (sentences where the original
    fires it)

and a feature is called semantic above one half, structural otherwise, undecided below
``MINIMUM_SENTENCES`` sentences. A feature that is active everywhere survives any rewrite: beside
the score stands what chance would give, ``1 − p^k`` with p the share of all versions that fire it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrt_lens.adapters.saes.features._coder import FeatureCoder
from lrt_lens.models._hook_points import place
from lrt_lens.models._hooked_model import HookedModel

MINIMUM_SENTENCES = 5
"""Sentences that must fire a feature before it is called anything."""
SEMANTIC, STRUCTURAL, UNDECIDED = "semantic", "structural", "undecided"
_BATCH_VERSIONS = 48


@dataclass(frozen=True)
class SemanticScores:
    """By feature, all [feature]."""

    n_sentences: np.ndarray
    """Sentences whose original fires the feature."""
    score: np.ndarray
    """1 − share of them in which all versions fire it; NaN where there is none."""
    chance: np.ndarray
    """What the score would be if versions of a sentence had nothing in common."""

    @property
    def kind(self) -> list[str]:
        """``"semantic"``, ``"structural"`` or ``"undecided"``."""
        return [
            UNDECIDED if n < MINIMUM_SENTENCES else SEMANTIC if score > 0.5 else STRUCTURAL
            for n, score in zip(self.n_sentences, self.score, strict=True)
        ]


def semantic_scores(
    model: HookedModel,
    hook: str,
    coder: FeatureCoder,
    rewrites: Sequence[Sequence[str]],
    skip_first: int,
) -> SemanticScores:
    """Scores of all features on sentences with their rewrites; the first version is the original.

    Args:
        model: the model that reads.
        hook: where the features sit.
        coder: the features as this model reads them.
        rewrites: [sentence][version], the same number of versions for every sentence.
        skip_first: masked positions at the start of a sentence.
    """
    n_versions = check_rewrites(rewrites)
    at_once = max(1, _BATCH_VERSIONS // n_versions)
    originals = torch.zeros(coder.n_features, dtype=torch.float64)
    all_versions, fired_anywhere = originals.clone(), originals.clone()
    for start in range(0, len(rewrites), at_once):
        sentences = rewrites[start : start + at_once]
        fired = _fires(
            model,
            hook,
            coder,
            [version for versions in sentences for version in versions],
            skip_first,
        )
        fired = fired.view(len(sentences), n_versions, -1)
        originals += fired[:, 0].sum(0)
        all_versions += fired.all(1).sum(0)
        fired_anywhere += fired.sum((0, 1))
    share = (fired_anywhere / (len(rewrites) * n_versions)).numpy()
    score = torch.where(originals > 0, 1 - all_versions / originals.clamp_min(1), torch.nan).numpy()
    return SemanticScores(originals.numpy().astype(int), score, 1 - share ** (n_versions - 1))


def check_rewrites(rewrites: Sequence[Sequence[str]]) -> int:
    """Versions a sentence; ValueError where there are none or sentences have different numbers of
    them.
    """
    counts = {0 if isinstance(versions, str) else len(versions) for versions in rewrites}
    if len(counts) != 1 or min(counts) < 2:
        raise ValueError(
            f"rewrites hold {sorted(counts) or 'no'} version(s) of a sentence; expected lists of equal length, at least two each: "
            "[[sentence, rewrite, …], …]"
        )
    return counts.pop()


def _fires(
    model: HookedModel, hook: str, coder: FeatureCoder, texts: Sequence[str], skip_first: int
) -> Tensor:
    """[text, feature]: whether a feature is active on any unmasked token."""
    rows = model.encode(texts)
    name = place(hook)
    stream = model.engine.capture(model.pad(rows), [name])[name]
    counted = model.read_mask(rows, skip_first).to(stream.device)
    fired = torch.zeros(len(rows), coder.n_features, dtype=torch.bool)
    # One text at a time: all positions × features of a batch would be the largest thing in memory.
    for place_in_batch in range(len(rows)):
        kept = stream[place_in_batch][counted[place_in_batch]]
        if len(kept):
            fired[place_in_batch] = (coder.encode(kept) != 0).any(0).cpu()
    return fired
