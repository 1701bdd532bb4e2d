"""``reset_hooks`` of TransformerLens while hooks of ours are registered."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.models import HookedModel
from lrt_lens.models._loading import boot_bridge

HOOK = "blocks.1.hook_resid_post"
KINDS = ["hugging face", "bridge", "hooked transformer"]


@pytest.fixture(params=KINDS)
def loaded(request: Any, build_hf: Any, tokenizer: Any) -> HookedModel:
    if request.param == "hugging face":
        return HookedModel.load(build_hf("gpt2"), tokenizer=tokenizer)
    if request.param == "bridge":
        bridge = boot_bridge(build_hf("gpt2"), tokenizer, "mine")
        return HookedModel.load(bridge, tokenizer=tokenizer)
    # Skips itself on TransformerLens 4, which has no HookedTransformer.
    from_gpt2 = request.getfixturevalue("from_gpt2")
    return HookedModel.load(from_gpt2(), tokenizer=tokenizer)


def expected(build_hf: Any, tokens: Tensor, *changes: Any) -> Tensor:
    """Return logits of transformers alone, with hooks of PyTorch on the second block."""
    hf = build_hf("gpt2")
    for change in changes:

        def hook(_module: Any, _args: Any, output: Any, change: Any = change) -> Any:
            if isinstance(output, tuple):
                return (change(output[0]), *output[1:])
            return change(output)

        hf.transformer.h[1].register_forward_hook(hook)
    with torch.inference_mode():
        return hf(tokens).logits


@pytest.mark.parametrize("including_permanent", [False, True])
def test_a_vector_stays_and_hooks_of_the_user_act_after_a_reset(
    loaded: HookedModel, build_hf: Any, including_permanent: bool
) -> None:
    tokens, bridge = torch.arange(3, 13)[None], loaded.bridge
    direction = torch.linspace(-1, 1, 16)
    vector = SteeringVector(direction, HOOK)

    def half(x: Tensor, hook: Any = None) -> Tensor:
        return torch.cat([x[..., :8] * 0.5, x[..., 8:]], dim=-1)

    def steer(x: Tensor) -> Tensor:
        # The first four positions are never steered.
        mask = (torch.arange(x.shape[1]) >= 4)[:, None]
        return x + 3 * direction * mask

    def close(logits: Tensor, right: Tensor) -> None:
        torch.testing.assert_close(logits, right, atol=1e-4, rtol=1e-4)

    plain, steered = expected(build_hf, tokens), expected(build_hf, tokens, steer)
    both = [expected(build_hf, tokens, *one) for one in ((steer, half), (half, steer))]
    assert (steered - plain).norm() > 0.1
    with vector.apply(loaded, scale=3.0):
        close(loaded.logits(tokens), steered)
        bridge.run_with_hooks(tokens, fwd_hooks=[(HOOK, half)])
        close(loaded.logits(tokens), steered)
        bridge.reset_hooks(including_permanent=including_permanent)
        close(loaded.logits(tokens), steered)
        bridge.reset_hooks(including_permanent=including_permanent)
        bridge.add_hook(HOOK, half)
        logits = loaded.logits(tokens)
        # A hook that was registered again comes after those of the user.
        assert min(float((logits - one).abs().max()) for one in both) < 1e-3
        bridge.add_hook("blocks.0.hook_resid_post", lambda x, hook: x)
        torch.testing.assert_close(loaded.logits(tokens), logits)
    close(loaded.logits(tokens), expected(build_hf, tokens, half))
    bridge.reset_hooks()
    close(loaded.logits(tokens), plain)
