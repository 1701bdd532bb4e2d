r"""A block of the model's own kind that adds a constant to the stream.

Problem: Qwen3, Gemma and others have no bias behind the MLP, and no switch for one. Mechanism: a
copy of a block is inserted whose attention writes zero and whose gated MLP returns a constant. Its
norm has weights of one, so that its output z has Σ zᵢ² = d (up to the norm's ε). A gate with
a(z) − a(−z) = z (SiLU, GELU, ReLU) makes a square of two units:

    a(z)·z + a(−z)·(−z) = z·(a(z) − a(−z)) = z²

so 2·d units sum to d, and a down-projection of δ/d returns δ (ε is allowed for at the mean square
of the stream on a short row). If a norm follows the MLP (Gemma 2
and 3, OLMo 2), the down-projection returns a multiple of some u with Σ uᵢ² = d, which that norm
makes u, times its weight: δ = u·w. A vector at ``hook_resid_mid`` splits its block: attention
with the constant MLP, then the MLP behind an attention that writes zero.

    insert_block(checkpoint, probe, 3, delta, middle=False)     # behind block 3

Limits: decoders with a gated MLP of at least 2·d units, ``gate_proj``, ``up_proj``, ``down_proj``
or ``gate_up_proj``. The model has one block more, of which it also keeps a key-value cache; an
engine that takes the kinds of attention layers from their number instead of ``layer_types`` in the
config would mix them up.
"""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrt_lens.serving.bake._checkpoint import BakedCheckpoint
from lrt_lens.serving.bake._probe import StreamProbe

_BEHIND_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_norm2")


class NoConstantBlock(ValueError):  # noqa: N818 (a reason within another message)
    """The blocks of a model cannot be made to return a constant; the message says why."""


def insert_block(
    checkpoint: BakedCheckpoint,
    probe: StreamProbe,
    layer: int,
    delta: Float[Tensor, " d_model"],
    *,
    middle: bool,
) -> None:
    """Insert a block that adds ``delta`` to the stream.

    Args:
        checkpoint: the checkpoint that is changed; its blocks up to ``layer`` are still the model's
            own, so blocks are inserted from the last one to the first.
        probe: the model.
        layer: number of the block behind which the constant is added.
        delta: what is added, [d_model].
        middle: add it between attention and MLP of ``layer`` instead.

    Raises:
        NoConstantBlock: the blocks are of another kind.
    """
    at = layer + 1
    block, prefix = probe.decoder.blocks[layer], f"{probe.block_path(layer)}."
    attention, mlp = _parts(block)
    own = {
        name.removeprefix(prefix): value
        for name, value in checkpoint.state.items()
        if name.startswith(prefix)
    }
    constant = dict(own)
    before = _before_mlp(block)
    behind = next((name for name in _BEHIND_MLP if _has(block, name)), None)
    # In the middle of a block the attention keeps its own norms.
    norms = [before] if middle else [n for n, part in block.named_children() if _is_norm(part)]
    for name in norms:
        if name not in (None, behind):
            _make_neutral(constant, name, block.get_submodule(name))
    if behind is None:
        # down(z) = column · Σ zᵢ²
        stream = probe.stream(f"blocks.{layer}.hook_resid_{'mid' if middle else 'post'}")
        column = delta.double().cpu() / _sum_of_squares(block, before, stream)
    else:
        weight, offset = constant[f"{behind}.weight"], 1 - _one(block.get_submodule(behind))
        through = _through_norm(delta.double().cpu(), weight, offset)
        column, constant[f"{behind}.weight"] = through
    _make_constant(constant, mlp, block.get_submodule(mlp), column)
    # Of a block that is split, the second half has no attention; else the new block has none.
    silent = own if middle else constant
    for name in [name for name in silent if name.startswith(f"{attention}.o_proj.")]:
        silent[name] = torch.zeros_like(silent[name])
    _insert(checkpoint, probe.blocks_path, at, own if middle else constant)
    if middle:
        checkpoint.state |= {f"{prefix}{name}": value for name, value in constant.items()}
    what = f"block {layer} was split into attention and MLP" if middle else "adds a constant"
    checkpoint.changes[f"{probe.blocks_path}.{at}"] = f"new block: {what}"
    checkpoint.changes["config.num_hidden_layers"] = str(checkpoint.config.num_hidden_layers)


def _parts(block: nn.Module) -> tuple[str, str]:
    """Return the names of attention and MLP in a block."""
    attention = [n for n, part in block.named_children() if hasattr(part, "o_proj")]
    mlp = [
        name
        for name, part in block.named_children()
        if isinstance(getattr(part, "down_proj", None), nn.Linear)
        and (hasattr(part, "gate_up_proj") or hasattr(part, "gate_proj"))
    ]
    if len(attention) != 1 or len(mlp) != 1:
        raise NoConstantBlock(
            f"its {type(block).__name__} is not one attention with o_proj and one gated MLP with"
            " gate_proj, up_proj and down_proj"
        )
    return attention[0], mlp[0]


def _sum_of_squares(
    block: nn.Module, before: str | None, stream: Float[Tensor, "position d_model"]
) -> float:
    """Return Σ zᵢ² behind a norm with weights of one, at most positions of a short row.

    It is d·m/(m + ε) for a stream with the mean square m.
    """
    # Parallel blocks have one norm, of attention and MLP.
    name = before or next((n for n, part in block.named_children() if _is_norm(part)), None)
    if name is None:
        raise NoConstantBlock("no norm is before its MLP")
    with torch.no_grad():
        normed = _neutral(block.get_submodule(name))(stream.float())
    return float(normed.double().square().sum(-1).median())


def _before_mlp(block: nn.Module) -> str | None:
    """Return the name of the norm before the MLP of a block; None if there is none."""
    if _has(block, "pre_feedforward_layernorm"):
        return "pre_feedforward_layernorm"
    # Where norms follow attention and MLP (OLMo 2), this one follows the attention.
    is_behind = any(_has(block, name) for name in _BEHIND_MLP)
    has_it = _has(block, "post_attention_layernorm") and not is_behind
    return "post_attention_layernorm" if has_it else None


def _has(block: nn.Module, name: str) -> bool:
    # Parallel blocks of StableLM have None in its place.
    return isinstance(getattr(block, name, None), nn.Module)


def _is_norm(part: nn.Module) -> bool:
    return not any(part.children()) and "norm" in type(part).__name__.lower()


def _one(norm: nn.Module) -> float:
    """Return the weight with which a norm multiplies by one: 1, or 0 for Gemma's."""
    twin = copy.deepcopy(norm).float()
    weight: Any = twin.weight
    with torch.no_grad():
        weight.zero_()
        bias: Any = getattr(twin, "bias", None)
        if bias is not None:
            bias.zero_()
        row = torch.randn(1, weight.shape[0], generator=torch.Generator().manual_seed(0))
        return 0.0 if bool(twin(row.to(weight.device)).any()) else 1.0


def _neutral(norm: nn.Module) -> Any:
    """Return a copy of a norm, in float32, that multiplies by one and adds nothing."""
    twin = copy.deepcopy(norm).float()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.fill_(_one(norm) if name == "weight" else 0.0)
    return twin


def _make_neutral(state: dict[str, Tensor], name: str, norm: nn.Module) -> None:
    """Let a norm multiply by one and add nothing; some have no weights at all."""
    for key, value in _neutral(norm).state_dict().items():
        state[f"{name}.{key}"] = value.to(state[f"{name}.{key}"])


def _through_norm(
    delta: Float[Tensor, " d_model"], weight: Tensor, offset: float
) -> tuple[Float[Tensor, " d_model"], Tensor]:
    """Return a column u with Σ uᵢ² = d, and a norm's weight w, with uᵢ·(wᵢ + offset) = δᵢ.

    RMSNorm returns u·(w + offset) for every multiple of u. Of Gemma's norms, where the offset is
    one, few weights near −1 can be written in bfloat16; so wᵢ is one of two neighbours that can,
    as many of each as Σ uᵢ² = d needs, and u takes up the difference.

    Raises:
        NoConstantBlock: δ is smaller than what these weights can write.
    """
    width = len(delta)
    # w = ‖δ‖/√d − offset, and the numbers of this dtype on both sides of it
    wanted = float(delta.norm()) / width**0.5
    nearest = torch.tensor(wanted - offset, dtype=weight.dtype)
    up = float(nearest) + offset < wanted
    other = torch.nextafter(nearest, torch.tensor(float("inf" if up else "-inf")).to(nearest))
    low, high = sorted(float(value) + offset for value in (nearest, other))
    if low <= 0:
        raise NoConstantBlock(
            f"a vector of norm {float(delta.norm()):.3g} is too short for its norms' weights in"
            f" {weight.dtype}"
        )
    # With the low factor everywhere, Σ uᵢ² exceeds d; the high one in some places takes that away.
    taken = (delta.square() * (low**-2 - high**-2)).cumsum(0)
    is_high = taken <= delta.square().sum() * low**-2 - width
    factor = torch.where(is_high, high, low)
    return delta / factor, (factor - offset).to(weight)


def _make_constant(
    state: dict[str, Tensor], name: str, mlp: nn.Module, column: Float[Tensor, " d_model"]
) -> None:
    """Let an MLP return ``column`` times the sum of squares of what it gets."""
    _refuse_other_gate(mlp)
    width, n_units = len(column), int(mlp.down_proj.weight.shape[1])  # type: ignore[union-attr]
    if n_units < 2 * width:
        raise NoConstantBlock(f"its MLPs have {n_units} units; a constant needs {2 * width}")
    signs = torch.cat([torch.eye(width), -torch.eye(width)])
    rows = torch.cat([signs, torch.zeros(n_units - 2 * width, width)])
    for part in ("gate_proj", "up_proj", "gate_up_proj"):
        if (key := f"{name}.{part}.weight") in state:
            both = torch.cat([rows, rows]) if part == "gate_up_proj" else rows
            state[key] = both.to(state[key], copy=True)
        if (key := f"{name}.{part}.bias") in state:
            state[key] = torch.zeros_like(state[key])
    down = torch.zeros(width, n_units, dtype=torch.float64)
    down[:, : 2 * width] = column[:, None]
    state[f"{name}.down_proj.weight"] = down.to(state[f"{name}.down_proj.weight"])
    if (key := f"{name}.down_proj.bias") in state:
        state[key] = torch.zeros_like(state[key])


def _refuse_other_gate(mlp: nn.Module) -> None:
    gate: Any = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
    values = torch.linspace(-6, 6, 49)
    # a(z) − a(−z) = z
    if gate is None or not torch.allclose(gate(values) - gate(-values), values, atol=1e-5):
        raise NoConstantBlock(f"a(z) − a(−z) is not z for the gate {type(gate).__name__}")


def _insert(checkpoint: BakedCheckpoint, path: str, at: int, block: dict[str, Tensor]) -> None:
    """Insert the tensors of a block at an index, and its entry in every list of the config."""
    state = dict[str, Tensor]()
    for name, value in checkpoint.state.items():
        number, _, rest = name.removeprefix(f"{path}.").partition(".")
        if name.startswith(f"{path}.") and int(number) >= at:
            name = f"{path}.{int(number) + 1}.{rest}"
        state[name] = value
    # Copies, because files of safetensors hold no tensor twice.
    new = {f"{path}.{at}.{name}": value.clone() for name, value in block.items()}
    checkpoint.state = state | new
    config = checkpoint.config
    n_layers = config.num_hidden_layers
    for name, value in vars(config).items():
        # layer_types, no_rope_layers, …: one entry per block
        if isinstance(value, list) and len(value) == n_layers:
            setattr(config, name, [*value[:at], value[at - 1], *value[at:]])
    config.num_hidden_layers = n_layers + 1
