"""Effect of SAE features on the attention that later heads pay to BOS, by path ablation.

Problem: a feature can act on later attention without changing the next token. Mechanism: path
ablation. At a position t where feature i fires, its contribution ``f_i(t) d_i`` is subtracted from
the input of one later attention layer, at position t only. All other positions and all other
effects of the feature stay as they are. The effect on a head is

    p(BOS) − p(BOS without the contribution)        at query t

It is positive if the feature *deactivates* the head (attention rests on BOS), and negative if the
feature activates it. Source: Stitching (arXiv 2506.06609), §5 and figures 5b and 16; Gurnee et al.,
*Universal Neurons in GPT2 Language Models*, arXiv 2401.12181. They choose the head by a score from
the weights. Here one pass over a layer measures all of its heads, so the head is chosen on one half
of the documents (``effect_choosing``) and its effect is reported on the other half (``effect``).
The control subtracts random directions of the same length at the same positions; ``p`` is the share
of them whose mean effect on that head is as large in size. Intervals are over documents.

Limits: for a model without BOS the first token is used instead. Only layers after the hook point
are measured, and only the direct path to each of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import einsum, rearrange
from torch import Tensor

from lrt_lens.adapters.saes.features._coder import FeatureCoder
from lrt_lens.adapters.saes.features._text import TokenBatch
from lrt_lens.models._hook_points import depth, place, residual_post
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._ownership import entering, registered, while_any
from lrt_lens.models._passes import Handle
from lrt_lens.statistics._bootstrap import Clusters, bootstrap_mean
from lrt_lens.statistics._draws import rank_test

N_RANDOM = 20
"""Number of random directions per feature."""
MINIMUM_EXAMPLES = 4
"""Number of examples that a feature needs: one half chooses the head, the other measures
the effect."""
_EXAMPLES_PER_PASS = 32
"""Number of texts per forward pass."""
# Columns of `attention_effects`, which an empty table has too.
_COLUMNS = [
    "feature",
    "model",
    "layer",
    "head",
    "effect",
    "low",
    "high",
    "effect_choosing",
    "effect_random",
    "p",
    "p_floor",
    "n_examples",
    "n_documents",
    "interval_flag",
]


class _PatternRead(Exception):  # noqa: N818 (control flow, no error)
    """Signal that ends a forward pass as soon as the attention pattern has been read."""


@dataclass(frozen=True)
class Example:
    """Token ids of a text whose last token activates a feature."""

    ids: list[int]
    """Token ids up to and including the position at which the feature fires."""
    document: int | None = None
    """Number of the document; None if it has no other example."""


class ExampleFinder:
    """Collects examples of some features: windows cut after a position where the feature fires.

    Each window gives at most one example per feature, at a position drawn at random.
    """

    def __init__(self, features: Sequence[int], n_examples: int, seed: int) -> None:
        # The second number makes this stream independent of other draws from the same seed.
        self.n_examples, self.rng = n_examples, np.random.default_rng([seed, 6])
        self.examples: dict[int, list[Example]] = {feature: [] for feature in features}

    @property
    def is_full(self) -> bool:
        """True if every feature has ``n_examples`` examples."""
        return all(len(examples) >= self.n_examples for examples in self.examples.values())

    def add(self, batch: TokenBatch, activations: Tensor) -> None:
        """Add examples from one batch; ``activations`` is [window, position, feature]."""
        for feature, examples in self.examples.items():
            fires = (activations[..., feature].cpu() > 0) & batch.counted
            for window in fires.any(1).nonzero()[:, 0].tolist():
                if len(examples) >= self.n_examples:
                    break
                # Several positions of one window would share most of their tokens.
                at = int(self.rng.choice(fires[window].nonzero()[:, 0].numpy()))
                ids = batch.tokens[window, : at + 1].tolist()
                examples.append(Example(ids, batch.documents[window]))


def attention_effects(
    model: HookedModel,
    hook: str,
    coder: FeatureCoder,
    examples: dict[int, list[Example]],
    *,
    role: str,
    seed: int,
) -> pd.DataFrame:
    """Table of effects on attention to BOS, one row per feature and head after the hook point.

    Columns: feature, model (``role``), layer, head, effect, low, high (over the documents of the
    reporting half), effect_choosing (mean over the other half), effect_random (mean absolute effect
    of random directions), p and p_floor (two-sided, among the random directions), n_examples,
    n_documents (of the reporting half), interval_flag (what is doubtful about the interval).
    Features with fewer than ``MINIMUM_EXAMPLES`` examples have no rows. See the module docstring
    for the definition of the effect.
    """
    rows: list[dict[str, Any]] = []
    decoder = coder.decoder
    for feature, texts in examples.items():
        if len(texts) < MINIMUM_EXAMPLES:
            continue
        directions = _with_random(decoder[feature], seed + feature)
        starts = range(0, len(texts), _EXAMPLES_PER_PASS)
        chunks = [texts[start : start + _EXAMPLES_PER_PASS] for start in starts]
        # Layers before the hook point cannot read the feature; layer 0 has no layer before it, from
        # which a pass could resume.
        for layer in range(max(1, ceil(depth(hook))), model.n_layers):
            effects = torch.cat(
                [
                    _layer_effects(model, hook, coder, feature, directions, chunk, layer)
                    for chunk in chunks
                ],
                dim=1,
            )
            identity = {"feature": feature, "model": role, "layer": layer}
            by_head = effects.double().numpy()
            halves = Halves.of(texts)
            rows += [
                identity | _head_row(by_head[:, :, head], head, halves)
                for head in range(by_head.shape[2])
            ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def strongest_heads(effects: pd.DataFrame) -> pd.DataFrame:
    """Rows of the head with the largest ``effect_choosing``, one per feature and model."""
    if effects.empty:
        return effects
    size = effects["effect_choosing"].abs()
    strongest = size.groupby([effects["feature"], effects["model"]]).idxmax()
    return effects.loc[strongest].reset_index(drop=True)


@dataclass(frozen=True)
class Halves:
    """Examples that choose a head, and those that report its effect."""

    reporting: np.ndarray
    """True for examples that report, [example]."""
    documents: np.ndarray
    """Number of the document of each example, [example]."""
    flag: str
    """Doubts about the halves; empty if there are none."""

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "Halves":
        """Return the halves of some examples; those of one document are in one half.

        Even documents choose, odd ones report. Examples of a single document alternate.
        """
        numbers: dict[Any, int] = {}
        # An example without a document is a document of its own.
        keys = [("own", i) if e.document is None else e.document for i, e in enumerate(examples)]
        documents = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
        if len(numbers) > 1:
            return cls(documents % 2 == 1, documents, "")
        return cls(np.arange(len(examples)) % 2 == 1, documents, "1 document chooses and reports")


def _head_row(effects: np.ndarray, head: int, halves: Halves) -> dict[str, Any]:
    """Columns of one head from its effects [direction, example]; direction 0 is the feature's."""
    own, drawn = effects[0, halves.reporting], effects[1:, halves.reporting].mean(1)
    documents = halves.documents[halves.reporting]
    # Numbers of the documents from 0 without gaps
    numbers = np.unique(documents, return_inverse=True)[1]
    # A difference of two probabilities
    reporting = bootstrap_mean(own, clusters=Clusters((numbers,))).within(-1.0)
    test = rank_test(reporting.value, drawn)
    flags = [halves.flag, reporting.flag.replace("items", "documents")]
    return {
        "head": head,
        "effect": reporting.value,
        "low": reporting.low,
        "high": reporting.high,
        # Random directions have no sign of their own, so their absolute mean effect is compared.
        "effect_choosing": float(effects[0, ~halves.reporting].mean()),
        "effect_random": float(np.abs(drawn).mean()),
        "p": test.p,
        "p_floor": test.floor,
        "n_examples": effects.shape[1],
        "n_documents": len(np.unique(documents)),
        "interval_flag": "; ".join(flag for flag in flags if flag),
    }


def _with_random(direction: Tensor, seed: int) -> Tensor:
    """Return the direction and random directions of its length, as [1 + random, d]."""
    # The seed depends on the feature, so its draws do not change with the list of features.
    draws = torch.randn(N_RANDOM, len(direction), generator=torch.Generator().manual_seed(seed))
    unit = draws / rearrange(draws.norm(dim=1), "draw -> draw 1")
    return torch.cat([rearrange(direction, "d -> 1 d"), unit * direction.norm()])


def _layer_effects(
    model: HookedModel,
    hook: str,
    coder: FeatureCoder,
    feature: int,
    directions: Tensor,
    examples: Sequence[Example],
    layer: int,
) -> Tensor:
    """Return the drop of p(first token) without the contribution, as [direction, example, head]."""
    tokens = model.pad([example.ids for example in examples])
    last = torch.tensor([len(example.ids) - 1 for example in examples])
    rows = torch.arange(len(examples))
    start, before = place(hook), residual_post(layer - 1)
    # Both names may mean one hook point; `capture` takes each name once.
    streams = model.engine.capture(tokens, list(dict.fromkeys([start, before])))
    strength = coder.encode(streams[start][rows, last])[:, feature]
    own = first_token_attention(model, layer, tokens, streams[before], last)
    effects = []
    for direction in directions:
        # x(t) − f_i(t) d_i at the last position of each example
        contribution = einsum(strength.to(direction), direction, "example, d -> example d")
        ablated = streams[before].clone()
        ablated[rows, last] -= contribution.to(ablated)
        effects.append(own - first_token_attention(model, layer, tokens, ablated, last))
    return torch.stack(effects)


def first_token_attention(
    model: HookedModel, layer: int, tokens: Tensor, residual: Tensor, last: Tensor
) -> Tensor:
    """Return attention from position ``last`` to the first token of each head, as [row, head].

    Args:
        model: the model that computes the attention.
        layer: index of the block.
        tokens: [row, position].
        residual: [row, position, d], the residual stream that enters the block.
        last: [row], query position of each row.
    """
    pattern: list[Tensor] = []

    def read_and_stop(weights: Tensor) -> None:
        pattern.append(weights[torch.arange(len(last)), :, last, 0].float().cpu())
        raise _PatternRead

    # `_reading_pattern` comes first because it looks the layer up: while a pass resumes, the
    # bridge's own components may be detached from the model.
    with (
        torch.inference_mode(),
        _reading_pattern(model, layer, read_and_stop),
        model.engine.resuming(residual_post(layer - 1), residual),
    ):
        try:
            model.engine.logits(tokens)
        except _PatternRead:
            return pattern[0]
    raise RuntimeError(
        f"no attention pattern was read from layer {layer} of {model.name!r}, although the layer "
        "ran; pass attention_features=0 to leave attention out"
    )


@contextmanager
def _reading_pattern(
    model: HookedModel, layer: int, receive: Callable[[Tensor], None]
) -> Iterator[None]:
    """Pass the pattern [row, head, query, key] of one layer to ``receive`` while this is open.

    Fused attention returns no pattern, so a Hugging Face model uses its eager implementation
    during that time.
    """
    bare = model.engine.model
    if not hasattr(bare, "set_attn_implementation"):  # a HookedTransformer
        with entering():
            remove = model.engine.add_hook(
                f"blocks.{layer}.attn.hook_pattern", lambda weights, hook: receive(weights)
            )
            with Handle([remove]):
                yield
        return
    # Only the eager implementation returns attention weights. Other threads run it meanwhile.
    component = model.bridge.blocks[layer].attn
    # A bridge around a tree of modules of its own knows which module of the model it stands for.
    original = getattr(model.engine, "original_module", lambda part: part.original_component)
    module = original(component)

    def read(_module: Any, _args: tuple, output: Any) -> None:
        receive(_attention_weights(output, model, layer))

    def change() -> Callable[[], None]:
        before = bare.config._attn_implementation
        bare.set_attn_implementation("eager")
        return lambda: bare.set_attn_implementation(before)

    with entering() as entry, while_any(("attention", id(bare)), change):
        remove = registered(module.register_forward_hook, entry.only_here(read))
        with Handle([remove]):
            yield


def _attention_weights(output: Any, model: HookedModel, layer: int) -> Tensor:
    # transformers' attention modules return (output, weights, …).
    weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    if weights is None:
        architecture = model.bridge.cfg.architecture or "unknown architecture"
        raise TypeError(
            f"attention of layer {layer} of {model.name!r} ({architecture}) returns no pattern; "
            "pass attention_features=0 to leave attention out"
        )
    return weights
