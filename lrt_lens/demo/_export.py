"""Export of the demo's vector to other programs, with a certificate for each file.

Problem: a vector that is transferred is used in other programs, which steer other positions.
Mechanism: the vector is calibrated by the rule of each program, exported, and `check_export`
compares the file with our hook on a few prompts and on the neutral texts of the calibration.

    export_checked(model, vector, texts, 0.1, "sentiment", Path("demo-report/vectors"))

Limits: files are run by the rule of their format in plain transformers; llama.cpp itself is no
dependency of the demo.
"""

import logging
from pathlib import Path

from lrt_lens.adapters.vectors._calibration import calibrate_scale
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.serving import ExportCheck, check_export, export_vectors

logger = logging.getLogger(__name__)

_FILES: dict[str, tuple[str, Positions]] = {
    ".gguf": ("llama.cpp", "every"),
    "-transformers": ("transformers", "all"),
}
"""Format of each file and positions that its program steers, by the end of the file's name."""


def export_checked(
    model: HookedModel,
    vector: SteeringVector,
    neutral: list[str],
    damage: float,
    name: str,
    folder: Path,
) -> dict[str, ExportCheck]:
    """Return the certificate of each exported file, by the name of the file or folder.

    A file is left out, with a warning, if no scale costs ``damage`` at the positions of its
    program, or if its format cannot express the hook point.

    Args:
        model: the model that is steered.
        vector: the transferred vector.
        neutral: neutral texts of the calibration.
        damage: damage in nats per token.
        name: beginning of the names of the files.
        folder: folder of the files.
    """
    checks = {}
    for ending, (to, positions) in _FILES.items():
        calibration = calibrate_scale(model, vector, neutral, damage, positions=positions)
        try:
            path = export_vectors(calibration.vector, folder / f"{name}{ending}", to)
        except ValueError as error:
            logger.warning("no file for %s: %s", to, error)
            continue
        checks[path.name] = check_export(path, model, neutral=neutral)
    return checks
