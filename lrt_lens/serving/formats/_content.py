"""Content of a file of steering vectors of any program, in the terms of this package.

Problem: programs store the same intervention under other names, with other numbers of layers and
with or without the scale in the numbers. Mechanism: every reader returns a `ServedVectors`, every
writer takes one, and blocks are counted as everywhere here: the direction of block ``L`` is added
to the output of block ``L``, which is ``blocks.L.hook_resid_post``.

    ServedVectors({14: direction[None]}, mode="add", scale=2.3)

Limits: the outputs of blocks only, because no format can express another place in the stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lrt_lens.adapters.vectors._steering_hook import Mode


@dataclass(frozen=True, eq=False)
class ServedVectors:
    """Directions behind the blocks of a model, and what a program does with them."""

    layers: Mapping[int, Float[Tensor, "rank d_model"]]
    """Directions by the number of the block whose output they change; one row unless a subspace."""
    mode: Mode = "add"
    """Change of the stream along the directions."""
    scale: float = 1.0
    """Number that the program multiplies the directions by; the share of the change otherwise."""
    level: float | None = None
    """Component along the unit vector that a clamp sets; None for the other modes."""
    skip_first: int = 0
    """First positions of a text that the program leaves as they are."""
    model_type: str = ""
    """``model_type`` of the config of Hugging Face; empty if the file does not say it."""
    blocks: str = ""
    """Name of the list of blocks in the model of Hugging Face; empty if it is not known."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Facts that we wrote about the vectors; empty for a file of another program."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Values of the format that none of the fields above holds, which are written again."""
    is_changed: bool = False
    """True if the file is not what was exported any more; ``record`` is then empty."""

    @property
    def width(self) -> int:
        """Number of dimensions of the stream."""
        return next(iter(self.layers.values())).shape[-1]
