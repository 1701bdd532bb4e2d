"""Features that fire on function words are structural, those on content words semantic."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.adapters.saes.features._coder import FeatureCoder
from lrt_lens.adapters.saes.features._semantics import check_rewrites, semantic_scores

HOOK = "blocks.0.hook_resid_post"
SENTENCES = [
    [
        f"in the old garden the {a} and the {b} slept",
        f"in the old garden the {c} and the {d} sang",
        f"in the old garden the {d} and the {c} ran",
    ]
    for a, b, c, d in (
        ("cat", "dog", "boy", "girl"),
        ("cat", "king", "bird", "boy"),
        ("tree", "cat", "stone", "bird"),
        ("queen", "cat", "dog", "king"),
        ("cat", "stone", "river", "tree"),
        ("bird", "cat", "queen", "river"),
    )
]


def _word_detectors(model: Any, words: list[str]) -> FeatureCoder:
    """Coder with one feature per word, which fires at the embedding of that word."""
    ids = [model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][-1] for word in words]
    embeddings = model.capture(torch.tensor([ids]), "hook_embed")[0].float()

    def encode(rows: torch.Tensor) -> torch.Tensor:
        distance = torch.cdist(rows.reshape(-1, rows.shape[-1]).float(), embeddings)
        return (distance < 1e-3).float().reshape(*rows.shape[:-1], -1)

    return FeatureCoder(SimpleNamespace(W_dec=embeddings, encode=encode))


def test_function_words_are_structural_and_content_words_semantic(model: Any) -> None:
    coder = _word_detectors(model, ["and", "cat", "happy"])
    scores = semantic_scores(model, "hook_embed", coder, SENTENCES, skip_first=1)
    assert scores.kind == ["structural", "semantic", "undecided"]
    assert scores.n_sentences.tolist() == [6, 6, 0]
    np.testing.assert_allclose(scores.score[:2], [0, 1])
    assert np.isnan(scores.score[2])
    # "and" fires in all versions of all sentences, so chance alone makes it structural; "cat" fires
    # in a third of them.
    np.testing.assert_allclose(scores.chance, [0, 1 - (6 / 18) ** 2, 1])


def test_scores_are_those_of_sentence_by_sentence(pair: Any, sae: Any) -> None:
    coder = FeatureCoder(sae)
    scores = semantic_scores(pair.source, HOOK, coder, SENTENCES, skip_first=4)
    fires = np.array(
        [
            [
                (coder.encode(pair.source.capture([version], HOOK)[0, 4:]) != 0).any(0).numpy()
                for version in versions
            ]
            for versions in SENTENCES
        ]
    )
    originals = fires[:, 0].sum(0)
    np.testing.assert_array_equal(scores.n_sentences, originals)
    expected = np.where(originals > 0, 1 - fires.all(1).sum(0) / np.maximum(originals, 1), np.nan)
    np.testing.assert_allclose(scores.score, expected)
    np.testing.assert_allclose(scores.chance, 1 - fires.mean((0, 1)) ** 2)


@pytest.mark.parametrize("rewrites", [[["a b", "c d"], ["a b"]], [], [["a"]], ["a b", "c d"]])
def test_sentences_need_equally_many_versions(rewrites: Any) -> None:
    with pytest.raises(ValueError, match="expected lists of equal length, at least two each"):
        check_rewrites(rewrites)
