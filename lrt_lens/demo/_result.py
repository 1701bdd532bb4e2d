"""The result of the demo, as `run_demo` returns it and as the report reads it."""

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
    """Stitch, evaluations and continuations of one run of the demo."""

    pair: ModelPair
    grid: StitchGrid
    stitch: Stitch
    evaluations: dict[str, SteeringEvaluation]
    """Evaluation of the steering vector of each concept."""
    continuations: dict[str, list[dict[str, str]]]
    """Generated texts per concept: rows of prompt, arm and text."""
    loss: StitchLoss
    probes: dict[str, ProbeEvaluation]
    """Evaluation of the probe of each task."""
    sae: SAEEvaluation | None
    """Evaluation of the SAE; None if the stitch has other hook points than the bundled SAEs."""
    arguments: dict[str, Any]
    """Arguments of the run, for ``results.json``."""
    seconds: float
    """Duration of the run."""
