"""The result of the demo, as `run_demo` returns it and as the report reads it."""

from dataclasses import dataclass
from typing import Any

from lrt_lens.adapters.probes._evaluation import ProbeEvaluation
from lrt_lens.adapters.saes._evaluation_result import SAEEvaluation
from lrt_lens.adapters.vectors._steering_result import SteeringEvaluation
from lrt_lens.models._pair import ModelPair
from lrt_lens.serving import ExportCheck
from lrt_lens.stitching._grid import StitchGrid
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching._stitch_loss import StitchLoss


@dataclass(frozen=True)
class DemoResult:
    """Stitch, evaluations and continuations of one run of the demo."""

    pair: ModelPair
    """The bundled models."""
    grid: StitchGrid
    """Scores of all hook pairs."""
    stitch: Stitch
    """Best stitch from the source layer of the demo."""
    evaluations: dict[str, SteeringEvaluation]
    """Evaluation of the steering vector of each concept."""
    continuations: dict[str, list[dict[str, str]]]
    """Generated texts per concept: rows of prompt, arm and text."""
    loss: StitchLoss
    """Loss of the stitched pass, in both directions."""
    probes: dict[str, ProbeEvaluation]
    """Evaluation of the probe of each task."""
    sae: SAEEvaluation | None
    """Evaluation of the SAE; None if the stitch has other hook points than the bundled SAEs."""
    exports: dict[str, ExportCheck]
    """Certificate of each exported file of the transferred vector, by the name of the file."""
    arguments: dict[str, Any]
    """Arguments of the run, as they are written into ``results.json``."""
    seconds: float
    """Duration of the run in seconds."""
