"""Maps from weights alone: shared embedding rows are the paired data."""

from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.data._token_spelling import token_strings
from lrt_lens.stitching.solvers import LeastSquares, shared_embedding_maps


@pytest.mark.parametrize("matrix", ["embed", "unembed"])
def test_the_map_is_least_squares_on_the_rows_of_tokens_that_both_know(
    pair: Any, matrix: str
) -> None:
    maps = shared_embedding_maps(pair, matrix, solver=LeastSquares())
    found = []
    for model in (pair.source, pair.target):
        original = model.bridge.original_model
        module = (
            original.get_input_embeddings()
            if matrix == "embed"
            else original.get_output_embeddings()
        )
        found.append(module.weight.detach().double().numpy())
    vocabulary = token_strings(pair.source.tokenizer)
    from lrt_lens.data import N_FOLDS, document_key, part_of

    ids = [
        i
        for token, i in vocabulary.items()
        if part_of(document_key(token, 0)) < N_FOLDS and i < min(map(len, found))
    ]
    x, y = found[0][ids], found[1][ids]
    expected = np.linalg.pinv(x - x.mean(0), rcond=1e-9) @ (y - y.mean(0))
    np.testing.assert_allclose(
        maps.maps.up.weight.numpy(), expected, atol=1e-3 * np.abs(expected).max()
    )
    assert maps.name == ("shared_embeddings" if matrix == "embed" else "shared_unembeddings")


def test_it_is_scored_between_any_hook_points_of_those_widths(pair: Any) -> None:
    from lrt_lens.moments import CrossMoments

    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(400, pair.source.d_model, generator=generator),
        torch.randn(400, pair.target.d_model, generator=generator),
    )
    moments = CrossMoments.from_activations(x, y, documents=[i // 4 for i in range(400)])
    scores = moments.fit(shared_embedding_maps(pair)).scores.iloc[0]
    assert scores["solver"] == "shared_unembeddings"
    assert scores["r2"] < 0.1
