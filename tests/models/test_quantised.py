"""Models whose weights are no parameters, as HQQ, torchao, bitsandbytes and torch.ao keep them."""

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.models import HookedModel
from lrt_lens.models._weights import weights_hash


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


def dynamically_quantised(model: nn.Module) -> nn.Module:
    """Return a copy whose linear layers keep their weights packed in objects of C++."""
    return torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_packed_weights_count_for_the_identity(build_hf: Any, tokenizer: Any) -> None:
    hf = build_hf("qwen2")
    model = HookedModel.load(dynamically_quantised(hf), tokenizer=tokenizer)
    assert model.identity.config_hash == weights_hash(dynamically_quantised(hf))
    assert model.identity.config_hash != weights_hash(hf)
    for layer in (hf.model.layers[2].mlp.down_proj, hf.model.layers[0].self_attn.q_proj):
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                kept = tensor.detach().clone()
                tensor[..., -1] += 1
                assert weights_hash(dynamically_quantised(hf)) != model.identity.config_hash
                tensor.copy_(kept)
    tokens = torch.arange(3, 13)[None]
    other = HookedModel.load(dynamically_quantised(build_hf("qwen2", seed=1)), tokenizer=tokenizer)
    assert not torch.allclose(other.logits(tokens), model.logits(tokens), atol=0.1)
    assert other.identity != model.identity


class Holder(nn.Module):
    """A module with a weight in a place of its own."""

    def __init__(self, place: str, weight: Tensor) -> None:
        super().__init__()
        self.place, self._kept = place, weight
        if place == "attribute":
            self.qweight = weight
        elif place == "attribute of a parameter":
            self.weight = nn.Parameter(torch.ones(3))
            self.weight.scale = weight  # type: ignore[attr-defined]
        elif place == "packed":
            quantised = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
            self.content = torch.ops.quantized.linear_prepack(quantised, None)
        elif place == "quantised parameter":
            quantised = torch.quantize_per_channel(
                weight, weight.abs().amax(1) / 127, torch.zeros(4), 0, torch.qint8
            )
            self.register_buffer("content", quantised)

    def get_extra_state(self) -> Any:
        return {"rows": [self._kept]} if self.place == "extra state" else None

    def set_extra_state(self, state: Any) -> None: ...


@pytest.mark.parametrize(
    "place",
    ["attribute", "attribute of a parameter", "packed", "quantised parameter", "extra state"],
)
def test_a_weight_counts_wherever_a_module_keeps_it(place: str) -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    other = weight.clone()
    other[3, 5] += 1
    assert weights_hash(Holder(place, weight)) == weights_hash(Holder(place, weight.clone()))
    assert weights_hash(Holder(place, weight)) != weights_hash(Holder(place, other))


def test_what_cannot_be_read_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Foreign(nn.Module):
        def get_extra_state(self) -> Any:
            return object()

        def set_extra_state(self, state: Any) -> None: ...

    with caplog.at_level(logging.WARNING):
        weights_hash(nn.Sequential(Foreign()))
    assert (
        "'0.extra_state' holds weights in an object of class object, which cannot be read"
        in caplog.text
    )


def test_a_tensor_made_of_tensors_counts_whole() -> None:
    """As torchao keeps quantised weights: integers and scales in a class of tensors."""
    two_tensor = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor

    def hashed(values: Tensor, scales: Tensor) -> str:
        module = nn.Module()
        module.weight = nn.Parameter(two_tensor(values, scales), requires_grad=False)
        return weights_hash(module)

    values, scales = torch.arange(6.0).reshape(2, 3), torch.ones(2, 3)
    other = values.clone()
    other[1, 2] = 9
    assert hashed(values, scales) == hashed(values.clone(), scales.clone())
    assert len({hashed(values, scales), hashed(other, scales), hashed(values, other)}) == 3
