"""SAEs with decoder rows of length 1 compute the same function."""

from typing import Any

import pytest
import torch
from sae_lens.registry import get_sae_class

from lrt_lens.adapters.saes import unit_norm_decoder


def draw(architecture: str, **options: Any) -> Any:
    kind, config = get_sae_class(architecture)
    sae = kind(config(d_in=6, d_sae=20, **options))
    torch.manual_seed(1)
    for name, parameter in sae.named_parameters():
        parameter.data.copy_(
            torch.rand(parameter.shape) if name == "threshold" else torch.randn(parameter.shape)
        )
    return sae


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk", "abstopk"])
def test_same_reconstruction_and_unit_rows(architecture: str) -> None:
    options = {"k": 3, "rescale_acts_by_decoder_norm": True} if "topk" in architecture else {}
    sae = draw(architecture, **options)
    unit = unit_norm_decoder(sae)
    x = torch.randn(30, 6)
    torch.testing.assert_close(unit(x), sae(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(unit.W_dec.norm(dim=1), torch.ones(20))
    assert torch.equal(unit.encode(x) != 0, sae.encode(x) != 0)


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
def test_rows_of_length_zero_stay(architecture: str) -> None:
    sae = draw(architecture)
    sae.W_dec.data[4] = 0
    unit = unit_norm_decoder(sae)
    x = torch.randn(30, 6)
    torch.testing.assert_close(unit(x), sae(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(unit.encode(x)[:, 4], sae.encode(x)[:, 4])


def test_a_dead_row_of_a_rescaled_topk_is_never_active() -> None:
    sae = draw("topk", k=3, rescale_acts_by_decoder_norm=True)
    sae.W_dec.data[4] = 0
    unit = unit_norm_decoder(sae)
    x = torch.randn(30, 6)
    torch.testing.assert_close(unit.encode(x), sae.encode(x), rtol=1e-4, atol=1e-5)
    assert torch.isfinite(unit(x)).all()


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_refused_where_the_selection_would_change(architecture: str) -> None:
    with pytest.raises(ValueError, match=r"would change the selection"):
        unit_norm_decoder(draw(architecture, k=3))
