"""Does a feature make a later head look at BOS, or away from it? Path ablation of the head's input.

At a position t where feature i fires, its contribution ``f_i(t) d_i`` is taken out of what enters
one later attention layer, at t alone; every other position, and everything that the feature does on
the way, stays. The effect on a head is

    p(BOS) − p(BOS without the contribution)        at query t

positive where the feature *deactivates* the head (attention rests on BOS), negative where it
activates it. Stitching, §5 and figures 5b, 16; Gurnee et al., *Universal Neurons in GPT2 Language
Models*, arXiv 2401.12181. There a score from weights picks the head; here one pass over a layer
gives all of its heads, so all are measured: the head is picked on one half of the examples
(``effect_choosing``) and reported on the other (``effect``). The control takes out random
directions of the same length at the same places.

Limits: without a BOS the first token stands in its place. Layers that start behind the hook point;
the direct path to each of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrt_lens.adapters.saes.features._coder import FeatureCoder
from lrt_lens.adapters.saes.features._text import TokenBatch
from lrt_lens.models._hook_points import depth, place, residual_post
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.statistics._intervals import bootstrap_mean

N_RANDOM = 4
"""Random directions a feature."""
MINIMUM_EXAMPLES = 4
"""Half of them choose, half report: with fewer nothing is said."""
_AT_ONCE = 32


class _PatternRead(Exception):  # noqa: N818 (control flow, no error)
    """Ends a forward pass once the attention pattern has been seen."""


@dataclass(frozen=True)
class Example:
    """A text that ends where a feature fires."""

    ids: list[int]


class ExampleFinder:
    """For chosen features, windows that fire them, cut behind a random place where they do: one
    place a window.
    """

    def __init__(self, features: Sequence[int], n_examples: int, seed: int) -> None:
        self.n_examples, self.rng = n_examples, np.random.default_rng([seed, 6])
        self.found: dict[int, list[Example]] = {feature: [] for feature in features}

    @property
    def is_full(self) -> bool:
        """Whether every feature has its examples."""
        return all(len(examples) >= self.n_examples for examples in self.found.values())

    def add(self, batch: TokenBatch, activations: Tensor) -> None:
        """Activations at all positions, [window, position, feature]."""
        for feature, examples in self.found.items():
            fires = (activations[..., feature].cpu() > 0) & batch.counted
            for window in fires.any(1).nonzero()[:, 0].tolist():
                if len(examples) >= self.n_examples:
                    break
                at = int(self.rng.choice(fires[window].nonzero()[:, 0].numpy()))
                examples.append(Example(batch.tokens[window, : at + 1].tolist()))


def attention_effects(
    model: HookedModel,
    hook: str,
    coder: FeatureCoder,
    examples: dict[int, list[Example]],
    *,
    role: str,
    seed: int,
) -> pd.DataFrame:
    """A row per feature and head behind the hook point; see the module docstring.

    Columns: feature, model (``role``), layer, head, effect, low, high (bootstrap over the examples
    that report), effect_choosing (the other half), effect_random (mean size of the effect of random
    directions), n_examples.
    """
    rows: list[dict[str, Any]] = []
    decoder = coder.decoder
    for feature, texts in examples.items():
        if len(texts) < MINIMUM_EXAMPLES:
            continue
        directions = _with_random(decoder[feature], seed + feature)
        for layer in range(max(1, ceil(depth(hook))), model.n_layers):
            effects = (
                torch.cat(
                    [
                        _layer_effects(
                            model,
                            hook,
                            coder,
                            feature,
                            directions,
                            texts[start : start + _AT_ONCE],
                            layer,
                        )
                        for start in range(0, len(texts), _AT_ONCE)
                    ],
                    dim=1,
                )
                .double()
                .numpy()
            )
            rows += [
                {"feature": feature, "model": role, "layer": layer}
                | _row(effects[:, :, head], head)
                for head in range(effects.shape[2])
            ]
    columns = [
        "feature",
        "model",
        "layer",
        "head",
        "effect",
        "low",
        "high",
        "effect_choosing",
        "effect_random",
        "n_examples",
    ]
    return pd.DataFrame(rows, columns=columns)


def strongest_heads(effects: pd.DataFrame) -> pd.DataFrame:
    """For each feature and model the head of the largest effect on the half that chooses; its row
    of the table.
    """
    if effects.empty:
        return effects
    size = effects["effect_choosing"].abs()
    return effects.loc[size.groupby([effects["feature"], effects["model"]]).idxmax()].reset_index(
        drop=True
    )


def _row(effects: np.ndarray, head: int) -> dict[str, Any]:
    """``effects``: [direction, example] of one head, the feature's own direction first."""
    reporting = bootstrap_mean(effects[0, 1::2])
    return {
        "head": head,
        "effect": reporting.value,
        "low": reporting.low,
        "high": reporting.high,
        "effect_choosing": float(effects[0, ::2].mean()),
        "effect_random": float(np.abs(effects[1:, 1::2].mean(1)).mean()),
        "n_examples": effects.shape[1],
    }


def _with_random(direction: Tensor, seed: int) -> Tensor:
    """[1 + random, d]: the direction, and random ones of its length."""
    draws = torch.randn(N_RANDOM, len(direction), generator=torch.Generator().manual_seed(seed))
    return torch.cat([direction[None], draws / draws.norm(dim=1, keepdim=True) * direction.norm()])


def _layer_effects(
    model: HookedModel,
    hook: str,
    coder: FeatureCoder,
    feature: int,
    directions: Tensor,
    examples: Sequence[Example],
    layer: int,
) -> Tensor:
    """[direction, example, head]: p(first token) minus what is left of it without the contribution."""
    tokens = model.pad([example.ids for example in examples])
    last = torch.tensor([len(example.ids) - 1 for example in examples])
    rows = torch.arange(len(examples))
    start, before = place(hook), residual_post(layer - 1)
    seen = model.engine.capture(tokens, list(dict.fromkeys([start, before])))
    strength = coder.encode(seen[start][rows, last])[:, feature]
    own = first_token_attention(model, layer, tokens, seen[before], last)
    effects = []
    for direction in directions:
        changed = seen[before].clone()
        changed[rows, last] -= (strength[:, None].to(direction) * direction).to(changed)
        effects.append(own - first_token_attention(model, layer, tokens, changed, last))
    return torch.stack(effects)


def first_token_attention(
    model: HookedModel, layer: int, tokens: Tensor, residual: Tensor, last: Tensor
) -> Tensor:
    """[row, head]: what each head of a layer pays the first token from position ``last``, where
    ``residual`` enters the layer.
    """
    pattern: list[Tensor] = []

    def keep(weights: Tensor) -> None:
        pattern.append(weights[torch.arange(len(last)), :, last, 0].float().cpu())
        raise _PatternRead

    # The layer is looked up first: while a pass resumes, the bridge's own components may be out of
    # the model.
    with (
        torch.inference_mode(),
        _reading_pattern(model, layer, keep),
        model.engine.resuming(residual_post(layer - 1), residual),
    ):
        try:
            model.engine.logits(tokens)
        except _PatternRead:
            return pattern[0]
    raise RuntimeError(
        f"attention of layer {layer} of {model.name!r} ran without a pattern that can be read"
    )


@contextmanager
def _reading_pattern(
    model: HookedModel, layer: int, keep: Callable[[Tensor], None]
) -> Iterator[None]:
    """While open, ``keep`` gets the pattern [row, head, query, key] of one layer.

    Fused attention has no pattern: a Hugging Face model computes it by its plain implementation
    meanwhile.
    """
    bare = getattr(model.bridge, "original_model", None)
    if bare is None:
        remove = model.engine.add_hook(
            f"blocks.{layer}.attn.hook_pattern", lambda weights, hook: keep(weights)
        )
        try:
            yield
        finally:
            remove()
        return
    before = bare.config._attn_implementation
    module = model.bridge.blocks[layer].attn.original_component
    handle = module.register_forward_hook(
        lambda _module, _args, output: keep(_weights(output, model, layer))
    )
    try:
        bare.set_attn_implementation("eager")
        yield
    finally:
        handle.remove()
        bare.set_attn_implementation(before)


def _weights(output: Any, model: HookedModel, layer: int) -> Tensor:
    weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    if weights is None:
        raise TypeError(
            f"attention of layer {layer} of {model.name!r} ({model.bridge.cfg.architecture or 'unknown architecture'}) returns no pattern; "
            "pass attention_features=0 to leave attention out"
        )
    return weights
