"""A Llama model of Hugging Face as a GGUF file in float32, for the real llama.cpp.

Without a tokenizer: token ids go in, logits come out.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch


def write_gguf(model: Any, path: Path) -> Path:
    """Write a ``LlamaForCausalLM`` and return the path."""
    config, weights = model.config, model.state_dict()
    n_heads, n_kv = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    rope = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_kv)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(0)
    # llama.cpp accepts this one: the model then has token ids and no texts.
    writer.add_tokenizer_model("none")

    def put(name: str, tensor: torch.Tensor) -> None:
        writer.add_tensor(name, np.ascontiguousarray(tensor.detach().float().numpy()))

    put("token_embd.weight", weights["model.embed_tokens.weight"])
    put("output_norm.weight", weights["model.norm.weight"])
    if not config.tie_word_embeddings:
        put("output.weight", weights["lm_head.weight"])
    for i in range(config.num_hidden_layers):
        theirs, ours = f"model.layers.{i}", f"blk.{i}"
        for name, n in (("q", n_heads), ("k", n_kv)):
            weight = weights[f"{theirs}.self_attn.{name}_proj.weight"]
            put(f"{ours}.attn_{name}.weight", _interleaved(weight, n))
        for name, other in (
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ):
            put(f"{ours}.{name}.weight", weights[f"{theirs}.{other}.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Return the rows of a query or key in the order of llama.cpp's rotation.

    Hugging Face rotates the halves of a head, llama.cpp neighbouring pairs.
    """
    d_head = weight.shape[0] // n_heads
    halves = weight.reshape(n_heads, 2, d_head // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)
