"""The command ``lrt-lens calibrate``: the scale of a vector at a damage.

    lrt-lens calibrate transferred --model gpt2-medium --neutral neutral.txt --damage 0.1

Limits: one vector; `lrt_lens.calibrate_scale` takes several at different hook points.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from lrt_lens._terminal import print_table, say
from lrt_lens.cli._artefacts import load_vector
from lrt_lens.cli._models import ModelOptions
from lrt_lens.cli._outputs import start_run, write_run
from lrt_lens.cli._texts import read_texts


@dataclass(frozen=True, kw_only=True)
class Calibrate(ModelOptions):
    """Find the scale at which a vector costs a given damage on neutral text, and keep it.

    Damage is the rise of the loss in nats per token. Writes vector.safetensors, which remembers
    scale, damage and positions, with results.json, report.html and run.toml.

        lrt-lens calibrate transferred --model gpt2-medium --neutral neutral.txt --damage 0.1

    Programs that serve models steer from the first token on: --positions every calibrates for them.
    Next: `lrt-lens export` writes the vector for such a program.
    """

    words: ClassVar[str] = "calibrate"
    vector: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VECTOR")]
    """File of a vector, of ours or of another program, or the folder of the run that wrote it."""
    model: str
    """Model of the vector: hub id or local folder."""
    neutral: str
    """File or folder of texts without the concept."""
    out: Path = Path("calibrated")
    """Folder for the results."""
    damage: float = 0.1
    """Damage to reach, in nats per token."""
    unit: Literal["loss", "kl"] = "loss"
    """Measure of damage: rise of the loss, or KL divergence from the unsteered model."""
    mode: Literal["add", "clamp", "ablate"] = "add"
    """Change of the stream: add the vector, set the component along it, or remove it."""
    level: float | None = None
    """Component along the vector that a clamp sets."""
    positions: Literal["all", "last", "generated", "every"] = "all"
    """Steered positions: all after the first ones, the last of the prompt, generated tokens, or
    every one from the first token on."""
    at: int | str | None = None
    """Hook point, or number of a block, of a file that has several vectors or is a tensor alone."""
    first_guess: float | None = None
    """First scale that is tried; by default predicted from the norms of vector and stream."""
    tolerance: float = 0.02
    """Difference from the damage, as a share of it, at which the search stops."""

    def run(self) -> None:
        """Calibrate, write the vector with its strength, and say what it costs."""
        from lrt_lens.adapters.vectors import calibrate_scale

        self.check_numbers()
        neutral, vector = read_texts(self.neutral), load_vector(self.vector, at=self.at)
        self.check_model(self.model)
        start_run(self.out, self, ["vector.safetensors"])
        calibration = calibrate_scale(
            self.load_model(self.model),
            vector,
            neutral,
            self.damage,
            unit=self.unit,
            mode=self.mode,
            level=self.level,
            positions=self.positions,
            first_guess=self.first_guess,
            tolerance=self.tolerance,
        )
        if calibration.reached:
            calibration.vector.save(self.out / "vector.safetensors")
        names = ("scale", "damage", "budget", "unit", "at_limit", "n_texts", "flag")
        found = {name: getattr(calibration, name) for name in names}
        tables = {"calibration": found, "calibration_curve": calibration.curve}
        report = write_run(self.out, self, tables, title="Calibrated strength")
        print_table("Scales that were tried", calibration.curve)
        if not calibration.reached:
            raise ValueError(
                f"no scale costs {self.damage:g} nats per token ({calibration.flag}), so no vector "
                f"was written; see {report}, and give another --damage"
            )
        path = self.out / "vector.safetensors"
        say(
            f"scale {calibration.scale:.4g} costs {calibration.damage:.4g} nats per token\n"
            f"Open {report}; next: lrt-lens export {path} OUT.gguf --to llama.cpp"
        )
