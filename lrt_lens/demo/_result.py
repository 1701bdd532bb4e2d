"""TODO."""

from dataclasses import dataclass
from typing import Any

from lrt_lens.adapters.probes._evaluation import ProbeEvaluation
from lrt_lens.adapters.saes._evaluation import SAEEvaluation
from lrt_lens.adapters.vectors._evaluation import SteeringEvaluation
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._grid import StitchGrid
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching._stitch_loss import StitchLoss


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo found."""

    pair: ModelPair
    grid: StitchGrid
    stitch: Stitch
    evaluations: dict[str, SteeringEvaluation]
    """By concept."""
    continuations: dict[str, list[dict[str, str]]]
    """By concept: rows prompt, arm, text."""
    loss: StitchLoss
    probes: dict[str, ProbeEvaluation]
    """By task."""
    sae: SAEEvaluation | None
    """None where the stitch does not join the hook points that the bundled SAEs read."""
    arguments: dict[str, Any]
    seconds: float
