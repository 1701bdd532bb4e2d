"""Directional ablation as weights that cannot write along a direction.

Problem: a hook removes the component along v̂ at one hook point; weights cannot know where in the
stream they are read. Mechanism: every matrix that writes to the stream is projected, as Arditi et
al. do (arXiv 2406.11717, §4.1): the tables of tokens and positions, the output projections of
attention and MLP in every block, and their biases.

    W' = W − v̂ v̂ᵀ W        b' = b − v̂ v̂ᵀ b

That is the ablation at every hook point of the model, all positions included
(`lrt_lens.adapters.vectors.ablation_hooks` with ``where="everywhere"`` and ``skip_first=0``), and
not the ablation at the vector's own hook point. A tied unembedding keeps the unchanged table.

    ablate(checkpoint, StreamProbe(model), vector.direction)

Limits: models whose writers are tables and matrices. Behind a norm (Gemma 2 and 3, OLMo 2, BLOOM's
embedding) or within experts, a projected matrix still writes along v̂, and such models are refused.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lrt_lens.errors import MismatchError
from lrt_lens.serving.bake._checkpoint import BakedCheckpoint
from lrt_lens.serving.bake._probe import FIRST, StreamProbe, StreamWriter, unit
from lrt_lens.typing import Direction

_MOST = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Largest component along v̂, as a share of the stream's norm, that rounding may leave; 2e-2 in
other dtypes."""


def stream_writers(probe: StreamProbe) -> Iterator[StreamWriter]:
    """Yield the modules that write to the stream, before the blocks and in each of them."""
    yield from probe.writers_of(FIRST)
    by_kind: dict[tuple[str, ...], list[str]] = {}
    for layer, block in enumerate(probe.decoder.blocks):
        # Blocks with the same parts have the same writers.
        parts = tuple(f"{name} {type(part).__name__}" for name, part in block.named_modules())
        prefix = probe.block_path(layer)
        if parts not in by_kind:
            writers = probe.writers_of_block(layer)
            by_kind[parts] = [writer.path.removeprefix(f"{prefix}.") for writer in writers]
        for name in by_kind[parts]:
            yield StreamWriter(f"{prefix}.{name}", block.get_submodule(name), 1.0)


def ablate(checkpoint: BakedCheckpoint, probe: StreamProbe, direction: Direction) -> None:
    """Project a direction out of every matrix of a checkpoint that writes to the stream."""
    along = unit(direction)
    checkpoint.untie(probe.hf)
    for writer in stream_writers(probe):
        weight = checkpoint.state[f"{writer.path}.weight"]
        columns = isinstance(writer.module, nn.Embedding) or writer.is_transposed
        if weight.ndim == 2:
            projected = projected_out(weight, along, rows=columns)
            checkpoint.replace(f"{writer.path}.weight", projected, "projected: W − v̂ v̂ᵀ W")
        if writer.bias is not None:
            bias = checkpoint.state[f"{writer.path}.bias"]
            projected = projected_out(bias[None], along, rows=True)[0]
            checkpoint.replace(f"{writer.path}.bias", projected, "projected: b − v̂ v̂ᵀ b")


def projected_out(matrix: Tensor, along: Tensor, *, rows: bool) -> Tensor:
    """Return a matrix in float64 without the component along a unit vector.

    ``rows`` tells whether each row is a direction of the stream, or each column.
    """
    wide = matrix.double()
    along = along.to(wide.device)
    if rows:
        return wide - torch.outer(wide @ along, along)  # E − (E v̂) v̂ᵀ
    return wide - torch.outer(along, along @ wide)  # W − v̂ (v̂ᵀ W)


def refuse_component(name: str, component: float, dtype: torch.dtype) -> None:
    """Raise an error if a stream still has a component along the ablated direction.

    Raises:
        MismatchError: something that no matrix holds writes along the direction.
    """
    most = _MOST.get(dtype, 2e-2)
    if not component <= most:
        raise MismatchError(
            f"with projected weights the stream of {name!r} keeps a component of {component:.2g} of"
            f" its norm along the vector; expected at most {most:g}. A norm or experts write to it,"
            " which projected matrices do not reach; ablate with vector.apply(model,"
            " mode='ablate'), or export the vector for an engine that does it"
        )
