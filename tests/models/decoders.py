"""A matrix of small random decoders: the families of transformers, and their unusual options.

`DECODERS` holds causal language models and `NOT_CAUSAL` models in which a position sees later ones.
Each entry is a recipe, so importing this module builds nothing:

    model = build_decoder(DECODERS[0], vocab_size=340)

All models have three layers or the fewest with which the family's kinds of layer all appear, a
hidden size of 16 and two heads, unless an option needs more.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

END = 0
"""The id that every model has for BOS, EOS and padding."""

WIDTH = 0.2
"""Standard deviation of the weights: with the usual 0.02, all layers together change the stream by
less than the rounding of the embedding.
"""


@dataclass(frozen=True)
class Decoder:
    """A recipe for one small model.

    Attributes:
        name: Family, and after a hyphen what is unusual: ``gpt2-unscaled``.
        family: The part of the name before the hyphen, as in ``config.model_type``.
        build: From a vocabulary size to the model with its usual initialisation, see
            `build_decoder`.
        parallel: Whether there is no stream between attention and MLP: both read the same input,
            or a layer is not one attention followed by one MLP.
        notes: What differs from the common layout.
        padding: Id of the padding token.
    """

    name: str
    family: str
    build: Callable[[int], PreTrainedModel]
    parallel: bool
    notes: str = ""
    padding: int = END


def build_decoder(decoder: Decoder, vocab_size: int) -> PreTrainedModel:
    """Return the model of a recipe in evaluation mode, the same weights in every call.

    No parameter keeps a value at which it could be forgotten unnoticed: see `perturb`. Ids 0 to
    ``vocab_size − 1`` exist, and 0 is BOS, EOS and, but for a few recipes, padding.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = decoder.build(vocab_size).float().eval()
        perturb(model)
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.bos_token_id = config.eos_token_id = END
            config.pad_token_id = decoder.padding
    return model


def perturb(model: PreTrainedModel) -> None:
    """Move every parameter away from the values with which it does nothing.

    A norm's weight of one, a bias of zero or a gate of zero would hide that it is forgotten. Noise
    is added to constant parameters, and matrices narrower than half of `WIDTH` are drawn again.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                # Zero until now, and padding is BOS here.
                module.weight[module.padding_idx].normal_(0.0, WIDTH)
        for parameter in model.parameters():
            _perturb_one(parameter)
        saved = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            # Other buffers follow from the config: rotary frequencies, masks, decay rates.
            if name in saved and name.endswith(("bias", "scalar")):
                _perturb_one(buffer)


def _perturb_one(values: Tensor) -> None:
    if values.numel() and values.min() == values.max():
        values.add_(WIDTH * torch.randn_like(values))
    elif values.ndim > 1 and values.std() < WIDTH / 2:
        values.normal_(0.0, WIDTH)


_SIZES: dict[str, Any] = {
    # hidden size, and widths within a layer
    "hidden_size": 16,
    "n_embd": 16,
    "d_model": 16,
    "intermediate_size": 32,
    "ffn_dim": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "d_ff": 32,
    "d_kv": 8,
    "dff": 32,
    "dim_ff": 32,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    # layers
    "num_hidden_layers": 3,
    "n_layer": 3,
    "n_layers": 3,
    "num_layers": 3,
    "encoder_layers": 3,
    "decoder_layers": 3,
    # heads
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_head": 2,
    "n_heads": 2,
    "num_heads": 2,
    "attention_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "head_dim": 8,
    "dim_head": 8,
    "rotary_dim": 4,
    # context
    "max_position_embeddings": 64,
    "n_positions": 64,
    "n_ctx": 64,
    "max_seq_len": 64,
    "max_target_positions": 64,
    "context_length": 64,
    # initialisation
    "initializer_range": WIDTH,
    "init_std": WIDTH,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    # low-rank attention
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "index_topk": 4,
    "index_head_dim": 8,
    "index_n_heads": 16,  # of fewer, many scores are zero, and which of them win is arbitrary
    # linear attention and state spaces
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_head_dim": 8,
    "linear_num_heads": 2,
    "state_size": 4,
    "mamba_d_state": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_chunk_size": 16,
    "chunk_size": 16,
}
"""Sizes by the names that the configs have for them; a config takes those that it knows."""


def _model(
    class_name: str, vocab_size: int, attention: str | None, padding: int, options: dict[str, Any]
) -> PreTrainedModel:
    """Return a model of a class of transformers; ``attention=None`` is the class's default."""
    model_class = getattr(transformers, class_name)
    config_class = model_class.config_class
    fields = {field.name for field in dataclasses.fields(config_class)}
    sizes = {key: value for key, value in _SIZES.items() if key in fields}
    if "vocab_size_per_layer_input" in fields:
        sizes["vocab_size_per_layer_input"] = vocab_size
    config = config_class(
        **{"vocab_size": vocab_size, "architectures": [class_name]} | sizes | options,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=padding,
    )
    if attention is not None:
        config._attn_implementation = attention
    return model_class(config)


def _decoder(
    name: str,
    class_name: str,
    *,
    parallel: bool = False,
    notes: str = "",
    attention: str | None = None,
    padding: int = END,
    **options: Any,
) -> Decoder:
    return Decoder(
        name=name,
        family=name.partition("-")[0],
        build=lambda vocab_size: _model(class_name, vocab_size, attention, padding, options),
        parallel=parallel,
        notes=notes,
        padding=padding,
    )


def _rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **options}


FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"

_GPT = (
    _decoder("gpt2", "GPT2LMHeadModel"),
    _decoder("gpt2-unscaled", "GPT2LMHeadModel", scale_attn_weights=False),
    _decoder("gpt2-inverse_layer", "GPT2LMHeadModel", scale_attn_by_inverse_layer_idx=True),
    _decoder(
        "gpt2-upcast",
        "GPT2LMHeadModel",
        attention="eager",
        reorder_and_upcast_attn=True,
        scale_attn_by_inverse_layer_idx=True,
        notes="the option acts in eager attention only",
    ),
    _decoder("gpt2-untied", "GPT2LMHeadModel", tie_word_embeddings=False),
    _decoder("gpt2-relu", "GPT2LMHeadModel", activation_function="relu"),
    _decoder("gpt2-inner", "GPT2LMHeadModel", n_inner=24),
    _decoder("gpt2-eager", "GPT2LMHeadModel", attention="eager"),
    _decoder("openai_gpt", "OpenAIGPTLMHeadModel"),
    _decoder("gpt_neo", "GPTNeoForCausalLM", attention_types=[[["global"], 3]]),
    _decoder(
        "gpt_neo-local",
        "GPTNeoForCausalLM",
        num_layers=4,
        attention_types=[[["global", "local"], 2]],
        window_size=5,
    ),
    _decoder("gptj", "GPTJForCausalLM", parallel=True),
    _decoder("gptj-full_rotary", "GPTJForCausalLM", parallel=True, rotary_dim=8),
    _decoder("codegen", "CodeGenForCausalLM", parallel=True, n_head=4, n_embd=32),
    _decoder("gpt_neox", "GPTNeoXForCausalLM", parallel=True),
    _decoder("gpt_neox-sequential", "GPTNeoXForCausalLM", use_parallel_residual=False),
    _decoder(
        "gpt_neox-rotary",
        "GPTNeoXForCausalLM",
        parallel=True,
        rope_parameters=_rope("default", partial_rotary_factor=1.0),
    ),
    _decoder(
        "gpt_neox-unbiased",
        "GPTNeoXForCausalLM",
        parallel=True,
        attention_bias=False,
        tie_word_embeddings=True,
    ),
    _decoder("gpt_bigcode", "GPTBigCodeForCausalLM"),
    _decoder("gpt_bigcode-multihead", "GPTBigCodeForCausalLM", multi_query=False),
    _decoder("gpt_bigcode-unscaled", "GPTBigCodeForCausalLM", scale_attn_weights=False),
    _decoder("gpt_neox_japanese", "GPTNeoXJapaneseForCausalLM"),
    _decoder("ctrl", "CTRLLMHeadModel"),
    _decoder("biogpt", "BioGptForCausalLM"),
    _decoder("xglm", "XGLMForCausalLM"),
    _decoder("xglm-unscaled", "XGLMForCausalLM", scale_embedding=False),
    _decoder("opt", "OPTForCausalLM"),
    _decoder("opt-post_norm", "OPTForCausalLM", do_layer_norm_before=False),
    _decoder(
        "opt-projected",
        "OPTForCausalLM",
        word_embed_proj_dim=8,
        notes="hidden_states[-1] has the width of the embedding, 8",
    ),
    _decoder(
        "opt-projected_post_norm",
        "OPTForCausalLM",
        word_embed_proj_dim=8,
        do_layer_norm_before=False,
        notes="OPT-350m's layout; hidden_states[-1] has the width of the embedding, 8",
    ),
    _decoder("opt-unbiased", "OPTForCausalLM", enable_bias=False),
    _decoder("opt-fixed_norm", "OPTForCausalLM", layer_norm_elementwise_affine=False),
    _decoder("opt-no_final_norm", "OPTForCausalLM", _remove_final_layer_norm=True),
    _decoder("bloom", "BloomForCausalLM"),
    _decoder(
        "bloom-residual_post_norm",
        "BloomForCausalLM",
        apply_residual_connection_post_layernorm=True,
    ),
    _decoder("mpt", "MptForCausalLM"),
    _decoder("mpt-clipped", "MptForCausalLM", attn_config={"clip_qkv": 0.5}),
    _decoder("mpt-softmax_scale", "MptForCausalLM", attn_config={"softmax_scale": 0.9}),
    _decoder("mpt-expansion", "MptForCausalLM", expansion_ratio=2, tie_word_embeddings=False),
    _decoder("falcon", "FalconForCausalLM", parallel=True),
    _decoder(
        "falcon-new",
        "FalconForCausalLM",
        parallel=True,
        new_decoder_architecture=True,
        num_attention_heads=4,
        num_kv_heads=2,
    ),
    _decoder(
        "falcon-new_one_norm",
        "FalconForCausalLM",
        parallel=True,
        new_decoder_architecture=True,
        num_attention_heads=4,
        num_kv_heads=2,
        num_ln_in_parallel_attn=1,
    ),
    _decoder("falcon-multihead", "FalconForCausalLM", parallel=True, multi_query=False),
    _decoder("falcon-sequential", "FalconForCausalLM", parallel_attn=False, bias=True),
    _decoder(
        "falcon-alibi",
        "FalconForCausalLM",
        alibi=True,
        multi_query=False,
        parallel_attn=False,
        bias=True,
    ),
    _decoder("falcon-alibi_parallel", "FalconForCausalLM", parallel=True, alibi=True, bias=True),
)

_PADDED = "position ids skip padding, so a BOS within the text shifts all later positions"

_LLAMA = (
    _decoder("llama", "LlamaForCausalLM"),
    _decoder("llama-biased", "LlamaForCausalLM", attention_bias=True, mlp_bias=True),
    _decoder("llama-tied", "LlamaForCausalLM", tie_word_embeddings=True),
    _decoder("llama-grouped", "LlamaForCausalLM", num_attention_heads=4, head_dim=4),
    _decoder("llama-wide_heads", "LlamaForCausalLM", head_dim=12, num_key_value_heads=1),
    _decoder("llama-gelu", "LlamaForCausalLM", hidden_act="gelu"),
    _decoder("llama-eager", "LlamaForCausalLM", attention="eager"),
    _decoder("llama-linear", "LlamaForCausalLM", rope_parameters=_rope("linear", factor=4.0)),
    _decoder(
        "llama-dynamic",
        "LlamaForCausalLM",
        max_position_embeddings=16,
        rope_parameters=_rope("dynamic", factor=2.0),
        notes="the rotary frequencies depend on the text's length past the context of 16",
    ),
    _decoder(
        "llama-yarn",
        "LlamaForCausalLM",
        rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    _decoder(
        "llama-llama3",
        "LlamaForCausalLM",
        rope_parameters=_rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    _decoder("mistral", "MistralForCausalLM", sliding_window=None, num_key_value_heads=1),
    _decoder("mistral-window", "MistralForCausalLM", sliding_window=5),
    _decoder("ministral", "MinistralForCausalLM", layer_types=[SLIDING, FULL, SLIDING]),
    _decoder(
        "ministral-window",
        "MinistralForCausalLM",
        layer_types=[SLIDING, FULL, SLIDING],
        sliding_window=5,
    ),
    _decoder("ministral3", "Ministral3ForCausalLM"),
    _decoder("mixtral", "MixtralForCausalLM"),
    _decoder("mixtral-window", "MixtralForCausalLM", sliding_window=5),
    _decoder("qwen2", "Qwen2ForCausalLM", num_key_value_heads=1),
    _decoder(
        "qwen2-window",
        "Qwen2ForCausalLM",
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=1,
    ),
    _decoder("qwen2_moe", "Qwen2MoeForCausalLM"),
    _decoder(
        "qwen2_moe-sparse_step",
        "Qwen2MoeForCausalLM",
        decoder_sparse_step=2,
        mlp_only_layers=[0],
        norm_topk_prob=True,
    ),
    _decoder("qwen3", "Qwen3ForCausalLM", num_key_value_heads=1),
    _decoder(
        "qwen3-window",
        "Qwen3ForCausalLM",
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=1,
        attention_bias=True,
    ),
    _decoder("qwen3_moe", "Qwen3MoeForCausalLM"),
    _decoder(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        layer_types=[LINEAR, FULL, LINEAR],
        num_hidden_layers=3,
    ),
    _decoder("qwen3_5_text", "Qwen3_5ForCausalLM", layer_types=[LINEAR, FULL, LINEAR]),
    _decoder("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", layer_types=[LINEAR, FULL, LINEAR]),
    _decoder("gemma", "GemmaForCausalLM", num_key_value_heads=1),
    _decoder("gemma2", "Gemma2ForCausalLM", query_pre_attn_scalar=8),
    _decoder(
        "gemma2-softcap",
        "Gemma2ForCausalLM",
        attention="eager",
        attn_logit_softcapping=0.5,
        final_logit_softcapping=1.0,
        query_pre_attn_scalar=3,
    ),
    _decoder("gemma2-window", "Gemma2ForCausalLM", sliding_window=5, query_pre_attn_scalar=3),
    _decoder(
        "gemma3_text",
        "Gemma3ForCausalLM",
        layer_types=[SLIDING, FULL, SLIDING],
        query_pre_attn_scalar=8,
    ),
    _decoder(
        "gemma3_text-window",
        "Gemma3ForCausalLM",
        layer_types=[SLIDING, FULL, SLIDING],
        sliding_window=5,
        query_pre_attn_scalar=3,
        final_logit_softcapping=1.0,
    ),
    _decoder(
        "gemma3n_text",
        "Gemma3nForCausalLM",
        parallel=True,
        notes="four streams: layers take and return (4, batch, seq, d)",
        num_hidden_layers=4,
        layer_types=[SLIDING, FULL, SLIDING, FULL],
        sliding_window=5,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
    ),
    _decoder(
        "gemma4_text",
        "Gemma4ForCausalLM",
        layer_types=[SLIDING, FULL, SLIDING, FULL],
        num_hidden_layers=4,
        sliding_window=5,
        hidden_size_per_layer_input=8,
    ),
    _decoder(
        "gemma4_text-shared",
        "Gemma4ForCausalLM",
        layer_types=[SLIDING, FULL, SLIDING, FULL],
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        notes="given logits_to_keep, as in generate, the last two layers see only those positions",
    ),
    _decoder(
        "gemma4_text-experts",
        "Gemma4ForCausalLM",
        layer_types=[SLIDING, FULL],
        num_hidden_layers=2,
        enable_moe_block=True,
        top_k_experts=2,
        hidden_size_per_layer_input=0,
    ),
    _decoder(
        "gemma4_unified_text", "Gemma4UnifiedForCausalLM", layer_types=[SLIDING, SLIDING, FULL]
    ),
    _decoder(
        "vaultgemma",
        "VaultGemmaForCausalLM",
        sliding_window=5,
        query_pre_attn_scalar=3,
        attn_logit_softcapping=1.0,
    ),
    _decoder("arcee", "ArceeForCausalLM", attention_bias=True, mlp_bias=True),
    _decoder("apertus", "ApertusForCausalLM"),
    _decoder("bitnet", "BitNetForCausalLM"),
    _decoder("cwm", "CwmForCausalLM", sliding_window=5, layer_types=[FULL, SLIDING, SLIDING]),
    _decoder("diffllama", "DiffLlamaForCausalLM"),
    _decoder("ernie4_5", "Ernie4_5ForCausalLM", use_bias=True),
    _decoder("ernie4_5_moe", "Ernie4_5_MoeForCausalLM"),
    _decoder(
        "exaone4", "Exaone4ForCausalLM", sliding_window=5, layer_types=[SLIDING, SLIDING, FULL]
    ),
    _decoder("glm", "GlmForCausalLM"),
    _decoder("glm4", "Glm4ForCausalLM"),
    _decoder("helium", "HeliumForCausalLM"),
    _decoder("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM"),
    _decoder("hyperclovax", "HyperCLOVAXForCausalLM", residual_multiplier=0.5),
    _decoder("jais2", "Jais2ForCausalLM"),
    _decoder("mellum", "MellumForCausalLM", layer_types=[SLIDING, FULL, SLIDING], sliding_window=5),
    _decoder("nanochat", "NanoChatForCausalLM"),
    _decoder("nemotron", "NemotronForCausalLM"),
    _decoder("nemotron-biased", "NemotronForCausalLM", attention_bias=True, mlp_bias=True),
    _decoder("persimmon", "PersimmonForCausalLM"),
    _decoder("seed_oss", "SeedOssForCausalLM"),
    _decoder("smollm3", "SmolLM3ForCausalLM", no_rope_layers=[1, 0, 1]),
    _decoder("starcoder2", "Starcoder2ForCausalLM"),
    _decoder("starcoder2-window", "Starcoder2ForCausalLM", sliding_window=5, use_bias=False),
    _decoder("granite", "GraniteForCausalLM"),
    _decoder(
        "granite-multipliers",
        "GraniteForCausalLM",
        residual_multiplier=0.4,
        embedding_multiplier=6.0,
        attention_multiplier=0.1,
        logits_scaling=3.0,
        attention_bias=True,
    ),
    _decoder("granite_swa", "GraniteSWAForCausalLM", sliding_window=5),
    _decoder("olmo", "OlmoForCausalLM"),
    _decoder("olmo-clipped", "OlmoForCausalLM", clip_qkv=0.5),
    _decoder("olmo2", "Olmo2ForCausalLM"),
    _decoder("olmo3", "Olmo3ForCausalLM", sliding_window=5, layer_types=[SLIDING, SLIDING, FULL]),
    _decoder("phi", "PhiForCausalLM", parallel=True),
    _decoder(
        "phi-qk_norm",
        "PhiForCausalLM",
        parallel=True,
        qk_layernorm=True,
        rope_parameters=_rope("default", partial_rotary_factor=0.25),
    ),
    _decoder("phi3", "Phi3ForCausalLM"),
    _decoder(
        "phi3-longrope",
        "Phi3ForCausalLM",
        sliding_window=5,
        original_max_position_embeddings=16,
        rope_parameters=_rope(
            "longrope",
            short_factor=[1.0, 1.2, 1.5, 2.0],
            long_factor=[1.0, 2.0, 3.0, 4.0],
            original_max_position_embeddings=16,
        ),
        notes="the rotary frequencies change past 16 tokens",
    ),
    _decoder("stablelm", "StableLmForCausalLM"),
    _decoder("stablelm-parallel", "StableLmForCausalLM", parallel=True, use_parallel_residual=True),
    _decoder("stablelm-qk_norm", "StableLmForCausalLM", qk_layernorm=True, use_qkv_bias=True),
    _decoder("cohere", "CohereForCausalLM", parallel=True),
    _decoder(
        "cohere-qk_norm", "CohereForCausalLM", parallel=True, use_qk_norm=True, logit_scale=0.7
    ),
    _decoder(
        "cohere2",
        "Cohere2ForCausalLM",
        parallel=True,
        sliding_window=5,
        layer_types=[SLIDING, SLIDING, FULL],
    ),
    _decoder(
        "modernbert_decoder",
        "ModernBertDecoderForCausalLM",
        local_attention=6,
        layer_types=[FULL, SLIDING, SLIDING],
    ),
    _decoder("doge", "DogeForCausalLM"),
    _decoder("bert", "BertLMHeadModel", is_decoder=True),
    _decoder(
        "roberta", "RobertaForCausalLM", is_decoder=True, max_position_embeddings=66, notes=_PADDED
    ),
    _decoder(
        "bart",
        "BartForCausalLM",
        is_decoder=True,
        is_encoder_decoder=False,
        forced_eos_token_id=None,
    ),
    _decoder(
        "mbart",
        "MBartForCausalLM",
        is_decoder=True,
        is_encoder_decoder=False,
        forced_eos_token_id=None,
    ),
    _decoder("electra", "ElectraForCausalLM", is_decoder=True, embedding_size=8),
    _decoder("megatron_bert", "MegatronBertForCausalLM", is_decoder=True),
    _decoder(
        "xlm_roberta",
        "XLMRobertaForCausalLM",
        is_decoder=True,
        max_position_embeddings=66,
        notes=_PADDED,
    ),
    _decoder("rembert", "RemBertForCausalLM", is_decoder=True, input_embedding_size=8),
    _decoder(
        "reformer",
        "ReformerModelWithLMHead",
        parallel=True,
        notes="two streams; layers take keywords and return a named tuple; pads to whole chunks",
        is_decoder=True,
        attn_layers=["local", "local", "local"],
        axial_pos_embds=False,
        attention_head_size=8,
        feed_forward_size=32,
        local_attn_chunk_length=8,
        lsh_attn_chunk_length=8,
        num_buckets=4,
        hash_seed=0,
    ),
    _decoder(
        "cohere_compass_text",
        "CohereCompassForCausalLM",
        parallel=True,
        rope_parameters={SLIDING: _rope("default"), FULL: _rope("default")},
        layer_types=[SLIDING, FULL, SLIDING],
    ),
)

_EXPERTS = (
    _decoder("afmoe", "AfmoeForCausalLM"),
    _decoder(
        "dbrx",
        "DbrxForCausalLM",
        attn_config={"kv_n_heads": 1, "clip_qkv": 0.5, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    _decoder("cohere2_moe", "Cohere2MoeForCausalLM", parallel=True),
    _decoder("aria_text", "AriaTextForCausalLM", moe_topk=2),
    _decoder("axk1", "AXK1ForCausalLM"),
    _decoder("beam", "BeamForCausalLM", sliding_window=5),
    _decoder("flint", "FlintForCausalLM", sliding_window=5),
    _decoder("granitemoe_swa", "GraniteMoeSWAForCausalLM", sliding_window=5),
    _decoder("hy_v3", "HYV3ForCausalLM"),
    _decoder(
        "hy_v4",
        "HYV4ForCausalLM",
        parallel=True,
        notes="four streams: layers return (batch, seq, 4, d) and the indices attended to",
    ),
    _decoder("kolibri1", "Kolibri1ForCausalLM", sliding_window=5),
    _decoder(
        "mimo_v2_flash",
        "MiMoV2FlashForCausalLM",
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=12,
        layer_types=[FULL, SLIDING, SLIDING],
        sliding_window=5,
    ),
    _decoder("inkling_text", "InklingForCausalLM"),
    _decoder("deepseek_v2", "DeepseekV2ForCausalLM", first_k_dense_replace=1),
    _decoder("deepseek_v2-full_query", "DeepseekV2ForCausalLM", q_lora_rank=None),
    _decoder("deepseek_v3", "DeepseekV3ForCausalLM", first_k_dense_replace=1),
    _decoder(
        "deepseek_v3-groups",
        "DeepseekV3ForCausalLM",
        first_k_dense_replace=1,
        n_group=2,
        topk_group=1,
        q_lora_rank=None,
        rope_interleave=False,
    ),
    _decoder("deepseek_v32", "DeepseekV32ForCausalLM"),
    _decoder(
        "deepseek_v4",
        "DeepseekV4ForCausalLM",
        parallel=True,
        notes="four streams: layers return (batch, seq, 4, d)",
    ),
    _decoder("dots1", "Dots1ForCausalLM", first_k_dense_replace=1),
    _decoder("exaone_moe", "ExaoneMoeForCausalLM"),
    _decoder("flex_olmo", "FlexOlmoForCausalLM"),
    _decoder("glm4_moe", "Glm4MoeForCausalLM"),
    _decoder("glm4_moe-qk_norm", "Glm4MoeForCausalLM", use_qk_norm=True, attention_bias=True),
    _decoder("glm4_moe_lite", "Glm4MoeLiteForCausalLM"),
    _decoder("glm_moe_dsa", "GlmMoeDsaForCausalLM"),
    _decoder("gpt_oss", "GptOssForCausalLM", sliding_window=5),
    _decoder("granitemoe", "GraniteMoeForCausalLM"),
    _decoder(
        "granitemoe-multipliers",
        "GraniteMoeForCausalLM",
        residual_multiplier=0.4,
        embedding_multiplier=6.0,
        attention_multiplier=0.1,
        logits_scaling=3.0,
    ),
    _decoder("granitemoeshared", "GraniteMoeSharedForCausalLM", shared_intermediate_size=16),
    _decoder("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", moe_topk=2),
    _decoder("jetmoe", "JetMoeForCausalLM"),
    _decoder("laguna", "LagunaForCausalLM"),
    _decoder(
        "lfm2_moe", "Lfm2MoeForCausalLM", layer_types=["conv", FULL, "conv"], num_dense_layers=1
    ),
    _decoder("llama4_text", "Llama4ForCausalLM"),
    _decoder(
        "llama4_text-chunks",
        "Llama4ForCausalLM",
        attention_chunk_size=5,
        no_rope_layers=[1, 0, 1],
        floor_scale=4,
        interleave_moe_layer_step=2,
        intermediate_size_mlp=24,
    ),
    _decoder(
        "longcat_flash",
        "LongcatFlashForCausalLM",
        notes="a layer has two attentions and two MLPs: num_hidden_layers is twice the layers",
        parallel=True,
        head_dim=4,
        ffn_hidden_size=32,
        expert_ffn_hidden_size=16,
        moe_topk=2,
        zero_expert_num=2,
    ),
    _decoder("minicpm3", "MiniCPM3ForCausalLM", dim_model_base=8),
    _decoder("minimax", "MiniMaxForCausalLM"),
    _decoder("minimax_m2", "MiniMaxM2ForCausalLM"),
    _decoder("olmoe", "OlmoeForCausalLM"),
    _decoder("olmoe-clipped", "OlmoeForCausalLM", clip_qkv=0.5, norm_topk_prob=True),
    _decoder(
        "phimoe",
        "PhimoeForCausalLM",
        architectures=["PhiMoEForCausalLM"],
        notes="architectures as in the published checkpoints",
    ),
    _decoder(
        "phimoe-biased",
        "PhimoeForCausalLM",
        architectures=["PhiMoEForCausalLM"],
        attention_bias=True,
        lm_head_bias=True,
    ),
    _decoder("solar_open", "SolarOpenForCausalLM"),
    _decoder("youtu", "YoutuForCausalLM"),
    _decoder("zaya", "ZayaForCausalLM", num_experts_per_tok=1),
)

_SHIFTED = "hidden_states[i] is the output of layer i, and the last one is normed: no embedding"

_RECURRENT = (
    _decoder("bamba", "BambaForCausalLM", attn_layer_indices=[1]),
    _decoder("falcon_h1", "FalconH1ForCausalLM", mamba_d_ssm=32),
    _decoder("falcon_mamba", "FalconMambaForCausalLM", parallel=True, notes=_SHIFTED),
    _decoder(
        "granitemoehybrid-rope",
        "GraniteMoeHybridForCausalLM",
        layer_types=[LINEAR, FULL, LINEAR],
        shared_intermediate_size=16,
        position_embedding_type="rope",
    ),
    _decoder(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        layer_types=[LINEAR, FULL, LINEAR],
        shared_intermediate_size=16,
    ),
    _decoder(
        "hrm_text",
        "HrmTextForCausalLM",
        parallel=True,
        H_cycles=1,
        L_cycles=2,
        notes="two stacks of three layers, each applied several times per forward pass",
    ),
    _decoder("jamba", "JambaForCausalLM", attn_layer_period=2, attn_layer_offset=1),
    _decoder("kimi_linear", "KimiLinearForCausalLM", layer_types=[LINEAR, FULL, LINEAR]),
    _decoder("lfm2", "Lfm2ForCausalLM", full_attn_idxs=[1]),
    _decoder("lfm3", "Lfm3ForCausalLM"),
    _decoder("mamba", "MambaForCausalLM", parallel=True, notes=_SHIFTED),
    _decoder(
        "mamba-biased",
        "MambaForCausalLM",
        parallel=True,
        use_bias=True,
        tie_word_embeddings=False,
        notes=_SHIFTED,
    ),
    _decoder("mamba2", "Mamba2ForCausalLM", parallel=True, num_heads=4, n_groups=2, notes=_SHIFTED),
    _decoder("nemotron_h", "NemotronHForCausalLM", parallel=True),
    _decoder("olmo_hybrid", "OlmoHybridForCausalLM", layer_types=[LINEAR, FULL, LINEAR]),
    _decoder("recurrent_gemma", "RecurrentGemmaForCausalLM", attention_window_size=5),
    _decoder("rwkv", "RwkvForCausalLM", notes=_SHIFTED),
    _decoder(
        "rwkv-rescaled",
        "RwkvForCausalLM",
        rescale_every=1,
        notes="the stream is halved after every layer; " + _SHIFTED,
    ),
    _decoder("xlstm", "xLSTMForCausalLM", hidden_size=64, qk_dim_factor=1.0),
    _decoder(
        "zamba",
        "ZambaForCausalLM",
        notes="hybrid layers share one transformer block, which also reads the embedding",
        parallel=True,
        num_hidden_layers=4,
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
    ),
    _decoder(
        "zamba2",
        "Zamba2ForCausalLM",
        notes="hybrid layers share one transformer block, which also reads the embedding",
        parallel=True,
        num_hidden_layers=4,
        layers_block_type=[LINEAR, "hybrid", LINEAR, "hybrid"],
    ),
)

_POSITIONS = (
    *(
        _decoder(
            f"{name}-pad{padding}",
            class_name,
            padding=padding,
            is_decoder=True,
            max_position_embeddings=66 + padding,
            notes=_PADDED,
            **({"languages": ("en_XX",), "default_language": "en_XX"} if name == "xmod" else {}),
        )
        for name, class_name, padding in (
            ("roberta", "RobertaForCausalLM", 1),
            ("roberta", "RobertaForCausalLM", 2),
            ("roberta_prelayernorm", "RobertaPreLayerNormForCausalLM", 1),
            ("camembert", "CamembertForCausalLM", 1),
            ("xlm_roberta", "XLMRobertaForCausalLM", 1),
            ("xlm_roberta_xl", "XLMRobertaXLForCausalLM", 1),
            ("data2vec_text", "Data2VecTextForCausalLM", 1),
            ("xmod", "XmodForCausalLM", 1),
        )
    ),
    _decoder("xlm-causal", "XLMWithLMHeadModel", emb_dim=16, causal=True, padding=2),
    _decoder("whisper", "WhisperForCausalLM", is_encoder_decoder=False),
    _decoder("blenderbot", "BlenderbotForCausalLM", is_encoder_decoder=False),
    _decoder("trocr", "TrOCRForCausalLM", padding=1),
)
"""Decoders whose positions depend on the padding token, or whose table of positions has a name of
its own.
"""

DECODERS: tuple[Decoder, ...] = (*_GPT, *_LLAMA, *_EXPERTS, *_RECURRENT, *_POSITIONS)
"""Causal language models, by family."""

NOT_CAUSAL: tuple[Decoder, ...] = (
    _decoder("bert-masked", "BertForMaskedLM"),
    _decoder("bert-bidirectional", "BertLMHeadModel", is_decoder=False),
    _decoder("roberta-masked", "RobertaForMaskedLM"),
    _decoder("modernbert", "ModernBertForMaskedLM"),
    _decoder("gemma3_text-bidirectional", "Gemma3ForCausalLM", use_bidirectional_attention=True),
    _decoder("gemma-bidirectional", "GemmaForCausalLM", use_bidirectional_attention=True),
    _decoder("t5", "T5ForConditionalGeneration"),
    _decoder("xlnet", "XLNetLMHeadModel"),
    _decoder(
        "gemma4_text-bidirectional",
        "Gemma4ForCausalLM",
        hidden_size_per_layer_input=0,
        use_bidirectional_attention="all",
    ),
    _decoder("llama-bidirectional", "LlamaForCausalLM", is_causal=False),
    _decoder(
        "reformer-lsh",
        "ReformerModelWithLMHead",
        parallel=True,
        is_decoder=True,
        attn_layers=["local", "lsh", "local"],
        axial_pos_embds=False,
        attention_head_size=8,
        feed_forward_size=32,
        local_attn_chunk_length=8,
        lsh_attn_chunk_length=8,
        num_buckets=4,
        hash_seed=0,
        notes="which earlier positions are attended to depends on the hashes of all positions",
    ),
    _decoder("eurobert", "EuroBertForMaskedLM"),
    _decoder("electra-masked", "ElectraForMaskedLM", embedding_size=8),
    _decoder("bart-encoder_decoder", "BartForConditionalGeneration"),
    _decoder("xlm", "XLMWithLMHeadModel", emb_dim=16),
)
"""Models in which a position sees later ones, and which must be refused."""
