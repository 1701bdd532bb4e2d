"""A vector as a LoRA of rank 1, in the format of PEFT.

Problem: a LoRA adds B·A·x, which is linear in x, and a constant is not. Mechanism: what is exact.

    add, behind a block       B.bias = δ with A = B = 0      PEFT's ``lora_bias=True``
    add, at the embedding     row A = (1, …, 1), column B = δ: every token's row gains δ
    ablate                    B = −v̂, A = v̂ᵀ W: W + B A = W − v̂ v̂ᵀ W, for each matrix

    write_adapter(StreamProbe(model), adapter, folder)

Limits: PEFT has no bias for tables, so that vectors behind a block and before the first one are two
adapters, and a model whose writers have biases cannot be ablated in this form. Where only a norm or
an added block could hold the constant there is no adapter.
"""

import copy
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrt_lens.errors import HookPointError
from lrt_lens.models._hook_points import EMBED
from lrt_lens.serving.bake._ablated import stream_writers
from lrt_lens.serving.bake._probe import FIRST, StreamProbe, StreamWriter, unit
from lrt_lens.serving.bake._shifts import Shift
from lrt_lens.typing import Direction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankOne:
    """Term x ↦ down (up · x) + bias that an adapter adds to one module."""

    path: str
    up: Tensor
    """Row of A: [in], or [token] for a table."""
    down: Tensor
    """Column of B, [out]."""
    bias: Tensor | None = None
    """Bias of B, [out]."""


def adapter_of_shifts(probe: StreamProbe, shifts: Sequence[Shift]) -> list[RankOne]:
    """Return what adds constants at hook points.

    Raises:
        HookPointError: no matrix or table writes to one of them.
        ValueError: some are before the first block and some are not.
    """
    at_table = [shift.hook in (EMBED, FIRST) for shift in shifts]
    if any(at_table) and not all(at_table):
        raise ValueError(
            f"form 'lora' with vectors at {[shift.hook for shift in shifts]}; expected all before"
            " the first block or all behind: PEFT's option lora_bias, which the latter need, does"
            " not go with tables. Bake two adapters, or form='weights'"
        )
    return [
        _table_shift(probe, shift) if table else _bias_shift(probe, shift)
        for shift, table in zip(shifts, at_table, strict=True)
    ]


def _bias_shift(probe: StreamProbe, shift: Shift) -> RankOne:
    writers = [w for w in probe.writers_of(shift.hook) if w.has_linear_map]
    if not writers:
        raise _no_adapter(probe, shift.hook)
    writer = writers[-1]
    n_in, n_out = _widths(writer)
    bias = shift.delta / writer.factor
    return RankOne(writer.path, torch.zeros(n_in), torch.zeros(n_out), bias)


def _table_shift(probe: StreamProbe, shift: Shift) -> RankOne:
    onward = probe.factor(EMBED, FIRST) if shift.hook == EMBED else 1.0
    writers = probe.writers_of(FIRST)
    tables = [w for w in writers if w.module is probe.decoder.embedding]
    if onward is None or not tables:
        raise _no_adapter(probe, shift.hook)
    [table] = tables
    module: Any = table.module
    # PEFT multiplies what it adds by the scale of the table.
    factor = table.factor * probe.embedding_scale(module)
    ones = torch.ones(module.weight.shape[0])
    return RankOne(table.path, ones, shift.delta * onward / factor)


def _no_adapter(probe: StreamProbe, hook: str) -> HookPointError:
    return HookPointError(
        f"no adapter adds a vector at {hook!r} of {probe.model.name!r} ({type(probe.hf).__name__}):"
        " what writes to the stream there is no matrix but a norm; bake form='weights', or export"
        " the vector for an engine that adds it itself (vector.export(path, to=...))"
    )


def adapter_of_ablation(probe: StreamProbe, direction: Direction) -> list[RankOne]:
    """Return what projects a direction out of every matrix that writes to the stream.

    Raises:
        ValueError: a bias writes along the direction.
    """
    along = unit(direction)
    parts = []
    for writer in stream_writers(probe):
        weight = writer.module.weight.detach().double().cpu()  # type: ignore[union-attr]
        bias = writer.bias
        if bias is not None and bool(bias.any()):
            raise ValueError(
                f"{writer.path!r} of {probe.model.name!r} has a bias, which a LoRA does not project"
                " (PEFT's option lora_bias does not go with the tables, which are projected too);"
                " bake form='weights'"
            )
        if isinstance(writer.module, nn.Embedding):
            parts.append(RankOne(writer.path, weight @ along, -along))  # E − (E v̂) v̂ᵀ
        elif writer.has_linear_map:
            stored = weight.T if writer.is_transposed else weight
            parts.append(RankOne(writer.path, along @ stored, -along))  # W − v̂ (v̂ᵀ W)
    return parts


def _widths(writer: StreamWriter) -> tuple[int, int]:
    weight: Any = writer.module.weight
    n_out, n_in = weight.shape[::-1] if writer.is_transposed else weight.shape
    return int(n_in), int(n_out)


def require_peft(alternative: str = "bake form='weights'") -> Any:
    """Return the module ``peft``; ``alternative`` says what works without it.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "LoRA adapters need PEFT, which is not installed: pip install 'lrt-lens[peft]'; or"
            f" {alternative}"
        ) from error
    return peft


def write_adapter(probe: StreamProbe, parts: Sequence[RankOne], folder: Path) -> dict[str, str]:
    """Write an adapter in PEFT's format and return what it adds to each module."""
    peft = require_peft()
    with_bias = any(part.bias is not None for part in parts)
    config = peft.LoraConfig(
        r=1,
        lora_alpha=1,
        target_modules=[part.path for part in parts],
        lora_bias=with_bias,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # That it cannot be merged into matrices without a bias; and fan_in_fan_out of GPT-2.
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(twin_of(probe.hf), config)
    modules = dict(adapted.base_model.model.named_modules())
    with torch.no_grad():
        for part in parts:
            _fill(modules[part.path], part)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    # PEFT writes a card of its own, which the caller replaces.
    return {part.path: _change(part) for part in parts}


def _fill(layer: Any, part: RankOne) -> None:
    name = "default"  # of PEFT
    if name in layer.lora_embedding_A:
        layer.lora_embedding_A[name].copy_(part.up[None])
        layer.lora_embedding_B[name].copy_(part.down[:, None])
        return
    layer.lora_A[name].weight.copy_(part.up[None])
    layer.lora_B[name].weight.copy_(part.down[:, None])
    if layer.lora_B[name].bias is not None:
        bias = torch.zeros_like(part.down) if part.bias is None else part.bias
        layer.lora_B[name].bias.copy_(bias)


def _change(part: RankOne) -> str:
    return "rank 1" if part.bias is None else "bias of B, with A = B = 0"


def twin_of(hf_model: Any) -> Any:
    """Return a model with modules of its own that shares its weights with another."""
    tensors = [*hf_model.parameters(), *hf_model.buffers()]
    # `deepcopy` takes what is in the memo as already copied.
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    return copy.deepcopy(hf_model, memo)
