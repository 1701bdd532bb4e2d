"""Does a transferred vector steer other programs as it steers here, and at which scale?

    python examples/serve_vector.py                                 # bundled pair and texts
    python examples/serve_vector.py --gguf large.gguf               # llama.cpp too
    python examples/serve_vector.py --source HuggingFaceTB/SmolLM2-135M-Instruct \
        --target google/gemma-3-270m --moments moments.safetensors

A vector is learnt in the source, transferred, and exported to every format of
`lrt_lens.serving.FORMATS`. `check_export` compares the logits of each file with those of our hook,
at the block of the file and at the blocks next to it: in plain transformers by the rule of the
format, and with ``--gguf`` (the target in a GGUF file) in llama.cpp itself. The vector is also
baked into the weights and into a LoRA adapter, which transformers and PEFT load without any hook.

Our `apply` leaves the first positions of a text as they are, and programs steer all of them. So the
scale of a damage is calibrated by both rules, and the damage of our scale at all positions is
measured: it is what a scale costs that is copied into such a program.

None of the three papers says how a vector leaves the program that transferred it.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

import lrt_lens as lrt
from lrt_lens.figures import served_figure
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, first_pairs, run
from lrt_lens.serving import FORMATS, ExportCheck, LlamaCpp, RuleEngine, bake_vector, check_export

LIMIT = 1e-4
"""Largest difference of logits at the block of the file, from float32 in another order."""
APART = 10.0
"""Factor by which the difference one block away must exceed that at the block."""
OF_LLAMA_CPP = ("llama.cpp", "repeng", "glp")
"""Formats whose files llama.cpp reads."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """The vector, its damage, and a GGUF file of the target."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "target_layer": 3,
        "n_pairs": 20,
        "n_neutral": 3,
    }
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 100_000
    """Tokens of the harvest."""
    source_layer: int | None = None
    """Layer of the source; by default its middle layer."""
    target_layer: int | None = None
    """Layer of the target; by default chosen by cross-validation."""
    moments: Path | None = None
    """File of moments of these models (`CrossMoments.save`), instead of a harvest."""
    concept: Literal["sentiment", "mood"] = "sentiment"
    """Bundled contrast set from which the vector is learnt."""
    n_pairs: int = 200
    """Number of contrast pairs at most."""
    damage: float = 0.1
    """Rise of the loss on neutral text, nats per token."""
    n_neutral: int = 12
    """Number of neutral texts."""
    gguf: Path | None = None
    """GGUF file of the target in float32, with which files are run in llama.cpp (xllamacpp)."""


@dataclass(frozen=True)
class Scales:
    """The vector, calibrated at the positions of our hook and at those of other programs."""

    ours: lrt.SteeringVector
    every: lrt.SteeringVector


class Baked:
    """A baked folder in plain transformers or PEFT, as an engine of `check_export`."""

    def __init__(self, model: lrt.HookedModel, folder: Path, form: str) -> None:
        from transformers import AutoModelForCausalLM

        self._plain = RuleEngine(model)
        hf: Any = model.engine.model
        if form == "lora":
            from peft import PeftModel

            # PEFT changes the model that it is given.
            self._baked: Any = PeftModel.from_pretrained(deepcopy(hf), str(folder))
        else:
            self._baked = AutoModelForCausalLM.from_pretrained(folder, dtype=hf.dtype)
        self._baked.eval().to(hf.device)
        self.name = f"{'PEFT' if form == 'lora' else 'plain transformers'}, baked folder"
        self.version = self._plain.version

    def logits(self, rows: Sequence[Sequence[int]], path: Path | None) -> list[np.ndarray]:
        """Logits of the baked model; of the model itself without a path."""
        if path is None:
            return self._plain.logits(rows, None)
        found = []
        with torch.inference_mode():
            for row in rows:
                tokens = torch.tensor([list(row)], device=self._baked.device)
                scores = self._baked(input_ids=tokens, use_cache=False).logits[0]
                found.append(scores.float().cpu().numpy())
        return found


def reproduce(options: Options) -> Reproduction:
    """Calibrate by both rules, export, bake, and compare all of it with our hook."""
    pair = options.pair()
    engine = None if options.gguf is None else LlamaCpp(options.gguf)
    stitch = fitted(pair, options)
    contrast = first_pairs(lrt.demo_contrast(options.concept), options.n_pairs)
    vector = lrt.SteeringVector.mean_difference(pair.source, contrast, at=stitch.source_hook)
    transferred = stitch.transfer(vector)
    neutral = lrt.demo_neutral()[: options.n_neutral]
    scales = Scales(
        lrt.calibrate_scale(pair.target, transferred, neutral, options.damage).vector,
        lrt.calibrate_scale(
            pair.target, transferred, neutral, options.damage, positions="every"
        ).vector,
    )
    with tempfile.TemporaryDirectory() as folder:
        table = pd.DataFrame(measured(pair.target, scales, neutral, engine, Path(folder)))
        rules = rules_of(pair.target, scales, neutral, Path(folder))
    difference, away = max(table["difference"].to_list()), min(table["one_block_away"].to_list())
    passed, n = sum(table["passed"].to_list()), len(table)
    ours, every, _ = rules["scale"].to_list()
    damage, _, copied = rules["damage"].to_list()
    first = transferred.skip_first
    return Reproduction(
        name="serve_vector",
        title="A transferred vector in other programs",
        paper="lrt_lens, serving",
        claim="Exported to any format, or baked into the weights, a transferred vector changes the "
        "logits as our hook does, at the same block and positions.",
        compared=[
            Compared(
                "largest max |Δ logits| against our hook",
                difference,
                control=away,
                control_name="smallest one block away",
            ),
            Compared(
                f"damage of the scale of `apply` at all positions, nats per token (asked for "
                f"{options.damage:g})",
                copied,
                control=damage,
                control_name=f"without the first {first}",
            ),
            Compared("scale for this damage at all positions ÷ without the first", every / ours),
            Compared("files and baked folders that pass the check", f"{passed} of {n}"),
        ],
        says="Plain transformers follow the documented rule of a format; only where the engine is "
        "named as the program itself did that program run. The check says that a vector is served "
        "as it was calibrated, not that its effect is the wanted one.",
        verdict=verdict_of(table),
        because=f"{passed} of {n} files and baked folders pass; the largest difference at the "
        f"block is {difference:.1e}, the smallest one block away {away:.2g}. {options.damage:g} "
        f"nats per token take the scale {every:.3g} at all positions and {ours:.3g} without the "
        f"first {first} ({every / ours - 1:+.1%}); the latter used at all positions costs "
        f"{copied:.3g}.",
        figures={"Logits of each program against our hook": figure(table)},
        tables={"Files and baked folders": table, "Scales by the steered positions": rules},
        details={"stitch": repr(stitch), "vector": repr(transferred)},
    )


def fitted(pair: lrt.ModelPair, options: Options) -> lrt.Stitch:
    """The stitch of a file of moments, or of a harvest."""
    if options.moments is not None:
        stitch = lrt.CrossMoments.load(options.moments).fit().best()
    else:
        layer = options.source_layer
        source = pair.source.n_layers // 2 if layer is None else layer
        grid = options.grid(pair, options.texts(), source, options.target_layer, null="none")
        stitch = grid.best()
    stitch.check(pair.source, pair.target)
    return stitch


def measured(
    model: lrt.HookedModel,
    scales: Scales,
    neutral: list[str],
    engine: LlamaCpp | None,
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """One row per file and engine, and per baked folder."""
    for name, row in FORMATS.items():
        vector = scales.ours if row.leaves_first else scales.every
        path = vector.export(folder / name, name)
        # The layer is read from the file that was written.
        (block,) = row.read(path).layers
        about = {"format": name, "place": row.key(block), "positions": row.positions}
        yield about | row_of(check_export(path, model, neutral=neutral))
        if engine is not None and name in OF_LLAMA_CPP:
            yield about | row_of(check_export(path, model, engine=engine, neutral=neutral))
    # A bake has no file of its own that names the block: the check takes it from this one.
    names_block = scales.every.export(folder / "baked.json", "vllm-lens")
    for form in ("weights", "lora") if find_spec("peft") else ("weights",):
        scale = scales.every.strength.scale if scales.every.strength else 1.0
        baked = bake_vector(scales.every, model, folder / form, scale=scale, form=form)
        record = json.loads((baked / "lrt_lens_bake.json").read_text(encoding="utf-8"))
        about = {
            "format": f"baked, {form}",
            "place": ", ".join(record["changes"]),
            "positions": record["positions"]["bake"],
        }
        check = check_export(names_block, model, engine=Baked(model, baked, form), neutral=neutral)
        yield about | row_of(check)


def row_of(check: ExportCheck) -> dict[str, Any]:
    """The row of a check: its engine, and what it measured."""
    return {
        "engine": check.engine,
        "version": check.version,
        "difference": check.difference,
        "one_block_away": float(np.nanmin([check.difference_before, check.difference_after])),
        "effect": check.effect,
        "first_position": check.first_position,
        "damage": check.damage,
        "budget": check.budget,
        "passed": check.passed,
    }


def rules_of(
    model: lrt.HookedModel, scales: Scales, neutral: list[str], folder: Path
) -> pd.DataFrame:
    """Scale and damage by both rules, and the damage of our scale at all positions."""
    rows = [
        {"scale_of": rule, "used_at": strength.where, "scale": strength.scale}
        | {"damage": strength.damage, "budget": strength.budget}
        for rule, strength in (("apply", scales.ours.strength), ("programs", scales.every.strength))
        if strength is not None
    ]
    # As a user would copy the scale into a program that steers all positions.
    path = scales.ours.export(folder / "copied.json", "vllm-lens", scale=rows[0]["scale"])
    damage = check_export(path, model, neutral=neutral).damage
    copied = {"used_at": rows[1]["used_at"], "damage": damage}
    return pd.DataFrame([*rows, rows[0] | copied])


def verdict_of(table: pd.DataFrame) -> Verdict:
    """Rule: every check passes, and every difference is small and far below that of a neighbour."""
    rows = table.to_dict("records")
    if not all(
        row["passed"] and row["one_block_away"] >= APART * row["difference"] for row in rows
    ):
        return "does not survive its null"
    return "holds" if all(row["difference"] <= LIMIT for row in rows) else "holds with a caveat"


def figure(table: pd.DataFrame) -> go.Figure:
    """Differences at the block and one block away, one line per file, engine and baked folder."""
    names = table["format"].where(
        table["engine"] != "llama.cpp", table["format"] + ", in llama.cpp"
    )
    return served_figure(table.assign(name=names), limit=LIMIT)


if __name__ == "__main__":
    run(reproduce)
