"""Test of whether features follow the structure of a sentence or its content (semantic).

Problem: features of syntax and of topics may transfer differently. Mechanism: a test that tells
both kinds apart.

The test is that of Stitching (arXiv 2506.06609), §5: a sentence and k = 5 rewrites that leave
function words, punctuation and syntax as they are and replace content words. A feature that fires
on any token of *all* versions is structural there, and one that fires in some versions only is
semantic. Over the sentences whose original fires the feature:

    semantic score = 1 − (sentences in which all versions fire it) / (sentences)

A feature is called semantic above one half and structural otherwise, and undecided below
``MINIMUM_SENTENCES`` sentences. A feature that is active everywhere fires in any rewrite, so the
score is compared with its expectation by chance, ``1 − p^k``, where p is the share of all versions
that fire the feature.

    semantic_scores(model, hook, coder, [["The cat sat.", "The dog ran."]], skip_first=4).kind

Limits: the score depends on the rewrites; those of `_substitution` change single words only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor

from lrt_lens.adapters.saes.features._coder import FeatureCoder
from lrt_lens.models._hook_points import place
from lrt_lens.models._hooked_model import HookedModel

MINIMUM_SENTENCES = 5
"""Number of sentences that must fire a feature before its kind is decided."""
SEMANTIC, STRUCTURAL, UNDECIDED = "semantic", "structural", "undecided"
"""Kinds of a feature."""
_BATCH_VERSIONS = 48
"""Number of versions of sentences per forward pass."""


@dataclass(frozen=True)
class SemanticScores:
    """Semantic scores of all features; every array is [feature]."""

    n_sentences: np.ndarray
    """Number of sentences whose original fires the feature."""
    score: np.ndarray
    """Semantic score: 1 − share of these sentences in which all versions fire the feature; NaN
    without such a sentence."""
    chance: np.ndarray
    """Expected score if the versions of a sentence had nothing in common."""

    @property
    def kind(self) -> list[str]:
        """Kind of each feature, ``"semantic"``, ``"structural"`` or ``"undecided"``."""
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
    """Semantic scores of all features on sentences with their rewrites.

    Args:
        model: the model that reads the sentences.
        hook: hook point of the features.
        coder: coder of the features on this model.
        rewrites: [sentence][version], the original first, with the same number of versions for
            every sentence.
        skip_first: number of masked positions at the start of a sentence.
    """
    n_versions = check_rewrites(rewrites)
    # All versions of a sentence go into the same batch.
    at_once = max(1, _BATCH_VERSIONS // n_versions)
    originals = torch.zeros(coder.n_features, dtype=torch.float64)
    all_versions, any_version = originals.clone(), originals.clone()
    for start in range(0, len(rewrites), at_once):
        sentences = rewrites[start : start + at_once]
        texts = [version for versions in sentences for version in versions]
        fired = rearrange(
            _fires(model, hook, coder, texts, skip_first),
            "(sentence version) feature -> sentence version feature",
            version=n_versions,
        )
        # The first version is the original sentence.
        originals += reduce(fired[:, 0], "sentence feature -> feature", "sum")
        all_versions += reduce(fired.all(dim=1), "sentence feature -> feature", "sum")
        any_version += reduce(fired, "sentence version feature -> feature", "sum")
    # score = 1 − (all versions fire) / (original fires);  chance = 1 − p^k
    score = torch.where(originals > 0, 1 - all_versions / originals.clamp_min(1), torch.nan).numpy()
    share = (any_version / (len(rewrites) * n_versions)).numpy()
    return SemanticScores(originals.numpy().astype(int), score, 1 - share ** (n_versions - 1))


def check_rewrites(rewrites: Sequence[Sequence[str]]) -> int:
    """Number of versions per sentence.

    Raises:
        ValueError: there is no sentence, a sentence has fewer than two versions, or sentences have
            different numbers of versions.
    """
    # A bare string would be read as a list of its characters; it counts as no version.
    counts = {0 if isinstance(versions, str) else len(versions) for versions in rewrites}
    if len(counts) != 1 or min(counts) < 2:
        raise ValueError(
            f"rewrites hold {sorted(counts) or 'no'} version(s) of a sentence; expected lists of "
            "equal length, at least two each: [[sentence, rewrite, …], …]"
        )
    return counts.pop()


def _fires(
    model: HookedModel, hook: str, coder: FeatureCoder, texts: Sequence[str], skip_first: int
) -> Tensor:
    """Return whether each feature is active on any unmasked token of each text, [text, feature]."""
    rows = model.encode(texts)
    name = place(hook)
    stream = model.engine.capture(model.pad(rows), [name])[name]
    counted = model.read_mask(rows, skip_first).to(stream.device)
    fired = torch.zeros(len(rows), coder.n_features, dtype=torch.bool)
    # One text at a time: all positions × features of a batch would be the largest tensor in memory.
    for text in range(len(rows)):
        states = stream[text][counted[text]]
        if len(states):
            fired[text] = (coder.encode(states) != 0).any(0).cpu()
    return fired
