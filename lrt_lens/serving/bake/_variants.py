"""Classes and configs that compute the same function and have a place for a bias.

Problem: most decoders have no bias behind their MLP. Mechanism: many configs have a switch that
gives their linear layers one (``mlp_bias``, ``attention_bias``, ``use_bias``, ``bias``); Mistral
and Qwen2 compute what a Llama with such switches computes. With biases of zero all of these are the
model itself.

    for variant in variants(hf_model):
        variant.label, variant.config.mlp_bias

Limits: Mistral and Qwen2 without sliding windows; a variant is taken for equal only once its logits
have been compared.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

SWITCHES = ("mlp_bias", "attention_bias", "use_bias", "bias", "enable_bias")
"""Fields of configs that give linear layers a bias."""
_LLAMA_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
    "dtype",
)


@dataclass(frozen=True)
class ModelVariant:
    """A class and a config with more biases than the model has."""

    kind: type
    config: Any
    changes: tuple[tuple[str, str], ...]
    """Config fields that differ, and how."""


def variants(hf_model: Any) -> Iterator[ModelVariant]:
    """Yield classes and configs that compute the same with biases of zero, the nearest first."""
    config = hf_model.config
    if config.get_text_config() is not config:
        return  # what reads images too has a config of several parts
    for fields in _combinations(
        [name for name in SWITCHES if getattr(config, name, None) is False]
    ):
        switched = copy.deepcopy(config)
        for name in fields:
            setattr(switched, name, True)
        yield ModelVariant(type(hf_model), switched, _switched(fields))
    llama = _as_llama(config)
    if llama is None:
        return
    kind, base = llama
    biased = config.model_type == "qwen2"  # its queries, keys and values have biases
    always = ("attention_bias",) if biased else ()
    for fields in (("mlp_bias",), ("attention_bias",), ("mlp_bias", "attention_bias")):
        if not set(always) <= set(fields):
            continue
        switched = copy.deepcopy(base)
        for name in fields:
            setattr(switched, name, True)
        note = ("config.model_type", f"llama instead of {config.model_type}")
        yield ModelVariant(kind, switched, (note, *_switched(fields)))


def _combinations(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield one name, then two, and so on."""
    yield from chain.from_iterable(combinations(names, n) for n in range(1, len(names) + 1))


def _switched(fields: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((f"config.{name}", "true: new biases are zero") for name in fields)


def _as_llama(config: Any) -> tuple[type, Any] | None:
    """Return class and config of the Llama that computes the same, or None if there is none."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if config.model_type not in ("mistral", "qwen2"):
        return None
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config.model_type == "mistral" and (window or 0) > 0:
        return None
    if config.model_type == "qwen2" and kinds != {"full_attention"}:
        return None
    # Deep copies: rope_parameters is a dictionary.
    fields = {name: copy.deepcopy(getattr(config, name)) for name in _LLAMA_FIELDS}
    head_dim = getattr(config, "head_dim", None)
    fields["head_dim"] = head_dim or config.hidden_size // config.num_attention_heads
    made = LlamaConfig(**fields)
    made._attn_implementation = config._attn_implementation
    return LlamaForCausalLM, made
