"""The folded unembedding gives the logits of the model, for every kind of final norm."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lrt_lens.adapters.saes import Unembedding
from lrt_lens.adapters.saes.features._unembedding import measure_norm
from lrt_lens.models import residual_post


class _GemmaNorm(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.pow(2).mean(-1, keepdim=True).sqrt() * (1 + self.weight)


@pytest.mark.parametrize("d", [8, 11])
@pytest.mark.parametrize(
    ("build", "centres"), [(nn.LayerNorm, True), (nn.RMSNorm, False), (_GemmaNorm, False)]
)
def test_gain_and_centring_are_measured_on_the_norm_itself(
    build: Any, centres: bool, d: int
) -> None:
    norm = build(d)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(d))
    gain, found = measure_norm(norm, d)
    expected = 1 + norm.weight if build is _GemmaNorm else norm.weight
    torch.testing.assert_close(gain, expected.detach(), rtol=1e-4, atol=1e-4)
    assert found is centres


def test_logits_of_every_architecture_are_the_last_stream_through_it_over_its_size(
    models: dict[str, Any], architecture: str
) -> None:
    model = models[architecture]
    text = "the little cat saw a big river and then she slept"
    last = residual_post(model.n_layers - 1)
    # Behind BOS: where it is the padding token too, its embedding is 0 and so is its stream.
    x = model.capture([text], last)[0, 1:].double()
    size = (
        (x - x.mean(-1, keepdim=True) if architecture in ("gpt2", "neox") else x)
        .pow(2)
        .mean(-1, keepdim=True)
        .sqrt()
    )
    logits = model.logits([text])[0, 1:].double()
    found = x.float() @ Unembedding.of(model).weight
    torch.testing.assert_close(
        found.double() / size, logits - logits.mean(-1, keepdim=True), rtol=2e-3, atol=2e-3
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_null_share_is_that_of_numpys_singular_vectors(
    models: dict[str, Any], architecture: str
) -> None:
    unembedding = Unembedding.of(models[architecture])
    rows = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    left, _, _ = np.linalg.svd(unembedding.weight.double().numpy(), full_matrices=False)
    v = rows.double().numpy()
    if architecture == "gpt2":
        v = v - v.mean(1, keepdims=True)
        # Under a LayerNorm the mean over dimensions has singular value 0 for any unembedding.
        left = left[:, :-1]
    expected = np.linalg.norm(v @ left[:, -2:], axis=1) / np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(unembedding.null_share(rows, 0.125), expected, atol=1e-4)
    assert unembedding.random_share(0.125) == pytest.approx(
        np.sqrt(2 / (16 - (architecture == "gpt2")))
    )


def test_a_direction_of_the_null_space_has_share_one_and_changes_the_logits_least(
    model: Any,
) -> None:
    unembedding = Unembedding.of(model)
    null = unembedding.null_directions(0.125)
    assert unembedding.null_share(null, 0.125).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    random = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    random /= random.norm(dim=1, keepdim=True)
    assert (
        unembedding.logit_weights(null).norm(dim=1).max()
        < unembedding.logit_weights(random).norm(dim=1).min()
    )


def test_top_tokens_are_the_largest_and_the_smallest_logits(model: Any) -> None:
    unembedding = Unembedding.of(model)
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    ids, weights = unembedding.top_tokens(rows, 4)
    logits = (rows @ unembedding.weight).numpy()
    for row in range(3):
        order = np.argsort(-logits[row])
        assert ids[row].tolist() == [*order[:4], *order[::-1][:4]]
        np.testing.assert_allclose(weights[row], logits[row][ids[row]], rtol=1e-6)
