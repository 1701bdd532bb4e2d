"""Models whose weights lie in buffers, as HQQ, torchao and bitsandbytes keep quantised weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.models import HookedModel


class Int8Linear(nn.Module):
    """A linear layer of int8 rows in buffers, with one scale per row."""

    def __init__(self, linear: nn.Linear, *, bias_in_buffer: bool) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("qweight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.to(torch.float16))
        if bias_in_buffer and linear.bias is not None:
            self.register_buffer("bias", linear.bias.detach())
        else:
            self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.qweight.to(x) * self.scale.to(x)  # type: ignore[operator]
        return nn.functional.linear(x, weight, self.bias)  # type: ignore[arg-type]


class Packed(nn.Module):
    """A linear layer whose weight is no buffer but an int8 parameter with attributes.

    bitsandbytes keeps its weights in this way.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = weight.abs().max() / 127
        quantised = (weight / scale).round().to(torch.int8)
        self.weight = nn.Parameter(quantised, requires_grad=False)
        self.weight.scale = scale  # type: ignore[attr-defined]
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x) * self.weight.scale, self.bias)  # type: ignore[attr-defined]


KINDS = {
    "buffers": lambda linear: Int8Linear(linear, bias_in_buffer=False),
    "bias in a buffer": lambda linear: Int8Linear(linear, bias_in_buffer=True),
    "packed parameter": Packed,
}


def quantise(model: nn.Module, kind: str) -> nn.Module:
    """Replace every linear layer of the blocks."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name != "lm_head":
                setattr(parent, name, KINDS[kind](child))
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "neox", "qwen2"])
@torch.no_grad()
def test_a_quantised_model_is_read_and_steered(
    build_hf: Any, tokenizer: Any, architecture: str, kind: str
) -> None:
    hf = quantise(build_hf(architecture), kind)
    model, tokens = HookedModel.load(hf, tokenizer=tokenizer), torch.arange(3, 13)[None]
    expected = hf(tokens, output_hidden_states=True)
    torch.testing.assert_close(model.capture(tokens, 1), expected.hidden_states[2])
    torch.testing.assert_close(model.logits(tokens), expected.logits)
    vector = SteeringVector(5 * torch.linspace(-1, 1, 16), "blocks.1.hook_resid_post")
    with vector.apply(model):
        assert (model.logits(tokens) - expected.logits).abs().max() > 0.01
        assert model.generate("the cat", max_new_tokens=3)
    torch.testing.assert_close(hf(tokens).logits, expected.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantised_weight_counts_for_the_identity(
    build_hf: Any, tokenizer: Any, kind: str
) -> None:
    def identity() -> str:
        return HookedModel.load(hf, tokenizer=tokenizer).identity.config_hash

    hf = quantise(build_hf("qwen2"), kind)
    before = identity()
    assert before != HookedModel.load(build_hf("qwen2"), tokenizer=tokenizer).identity.config_hash
    layer: Any = hf.model.layers[1].mlp.down_proj  # type: ignore[union-attr]
    attention: Any = hf.model.layers[1].self_attn.q_proj  # type: ignore[union-attr]
    tensors = [layer.weight] if kind == "packed parameter" else [layer.qweight, layer.scale]
    for tensor in [*tensors, attention.bias]:
        kept = tensor.detach().clone()
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
        assert identity() != before
        with torch.no_grad():
            tensor.copy_(kept)
        assert identity() == before
