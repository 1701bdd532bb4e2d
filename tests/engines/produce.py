"""Writes what the engines load and what they have to compute, from the bundled pair.

Problem: an engine can be checked only against numbers that our own hook gives. Mechanism: a
transferred and a learnt vector are exported for every engine (`_exported.exported`); prompts and
neutral texts are written as token ids, and next to them the logits of our hook at the exported
block, at the one before it and at the one after it, all in float32.

    python tests/engines/produce.py engines-check

Limits: the bundled model alone, which is a Llama.
"""

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from _exported import baked, exported
from safetensors.torch import save_file

import lrt_lens as lrt

N_TOKENS = 20_000
"""Tokens on which the stitches are fitted."""
DAMAGE = 0.1
"""Damage of the exported scale, in nats per token, with every position steered."""
N_NEUTRAL = 32
"""Neutral texts on which the engines' damage is measured."""
N_NEUTRAL_TOKENS = 64
"""Length to which neutral texts are cut."""
N_PROMPT_TOKENS = 16
"""Largest length of a prompt."""
N_CUT = 6
"""Neutral texts whose beginnings are prompts, too."""
N_DECODED = 4
"""Tokens that are decoded after every prompt."""
ADDING = ("transformers", "repeng", "steering-vectors", "lm-eval", "vllm", "vllm-lens")
"""Engines that add a vector at every position."""


@dataclass
class Case:
    """One intervention that engines reproduce."""

    name: str
    vector: lrt.SteeringVector
    scale: float
    mode: str = "add"
    level: float = 0.0
    engines: tuple[str, ...] = ADDING
    files: dict[str, str] = field(default_factory=dict)

    @property
    def block(self) -> int:
        """Block at whose output the vector acts, counted from 0."""
        return int(self.vector.hook.split(".")[1])

    def hooks(self, block: int) -> dict[int | str, Any]:
        """Return our hook, moved to the output of another block."""
        moved = replace(self.vector, hook=f"blocks.{block}.hook_resid_post")
        scale = self.scale if self.mode == "add" else 1.0
        hooks = moved.hooks(scale=scale, mode=self.mode, level=self.level)  # type: ignore[arg-type]
        return dict(hooks)

    def described(self, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        """Return the fields that the consumers and the comparison read."""
        return {
            "name": self.name,
            "block": self.block,
            "mode": self.mode,
            "scale": self.scale,
            "level": self.level,
            "skip_first": self.vector.skip_first,
            "files": self.files,
            "rows": rows,
        }


def cases_of(pair: lrt.ModelPair) -> tuple[list[Case], Any]:
    """Return the cases and a transferred SAE."""
    documents = lrt.demo_documents()
    grid = lrt.fit_stitches(
        pair, documents, n_tokens=N_TOKENS, source_layers=[2], target_layers=[2, 3], progress=False
    )
    contrast = lrt.demo_contrast("sentiment")
    stitch = grid.best(source=2, target=2)
    source = lrt.SteeringVector.mean_difference(pair.source, contrast, at=stitch.source_hook)
    transferred = replace(stitch.transfer(source), skip_first=0)
    learnt = lrt.SteeringVector.mean_difference(
        pair.target, lrt.demo_contrast("mood"), at="blocks.3.hook_resid_post"
    )
    learnt = replace(learnt, skip_first=0)
    neutral = lrt.demo_neutral()

    def case(name: str, vector: lrt.SteeringVector, *engines: str) -> Case:
        strength = lrt.calibrate_scale(pair.target, vector, neutral, damage=DAMAGE)
        return Case(name, vector, strength.scale, engines=engines or ADDING)

    lm_eval = ("lm-eval",)
    adding = case("transferred", transferred, *ADDING, "vllm-baked")
    # The level of the positive texts alone would change almost nothing.
    level = transferred.mean_component(pair.target, contrast.positive)
    level += adding.scale * transferred.norm
    cases = [
        adding,
        case("learnt", learnt),
        case("skipping", replace(transferred, skip_first=4), "transformers", "steering-vectors"),
        Case("ablated", transferred, 1.0, mode="ablate", engines=lm_eval),
        Case("clamped", transferred, 1.0, mode="clamp", level=level, engines=lm_eval),
    ]
    sae = grid.best(source=2, target=3).transfer(lrt.demo_sae("small"))
    return cases, sae


def decoded(model: Any, prompt: list[int], hooks: dict[int | str, Any]) -> list[int]:
    """Return the tokens that greedy decoding adds to a prompt under our hook."""
    row = list(prompt)
    for _ in range(N_DECODED):
        with model.intervene(hooks):
            row.append(int(model.logits(torch.tensor([row]))[0, -1].argmax()))
    return row[len(prompt) :]


def expected(model: Any, case: Case, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Return the logits [position, vocabulary] of each row: unsteered, and at three blocks."""
    logits = {}
    for i, row in enumerate(rows):
        tokens = torch.tensor([row["prompt"] + row["continuation"][:-1]])
        logits[f"{i}.plain"] = model.logits(tokens)[0].float()
        for shift in (-1, 0, 1):
            with model.intervene(case.hooks(case.block + shift)):
                logits[f"{i}.{shift}"] = model.logits(tokens)[0].float()
    return {name: values.contiguous() for name, values in logits.items()}


def log_probabilities(model: Any, rows: list[list[int]]) -> list[float]:
    """Return the log probability of each row behind its first token, in nats."""
    return [-float(model.token_losses([row]).double().sum()) for row in rows]


def main(out: Path) -> None:
    """Write task.json, the exported files and the expected numbers into ``out``."""
    torch.set_num_threads(1)
    shutil.rmtree(out / "exports", ignore_errors=True)
    pair = lrt.demo_pair(dtype="float32")
    model, model_folder = pair.target, lrt.DEMO_FOLDER / "large"
    cases, sae = cases_of(pair)
    texts = [*lrt.demo_prompts(), *lrt.demo_neutral()[:N_CUT]]
    prompts = [row[:N_PROMPT_TOKENS] for row in model.encode(texts)]
    neutral = [row[:N_NEUTRAL_TOKENS] for row in model.encode(lrt.demo_neutral()[:N_NEUTRAL])]
    task: dict[str, Any] = {"model": str(model_folder), "neutral": neutral, "cases": []}
    sums: dict[str, list[float]] = {"plain": log_probabilities(model, neutral)}
    for case in cases:
        for engine in case.engines:
            folder = out / "exports" / case.name / engine
            folder.mkdir(parents=True, exist_ok=True)
            if engine == "vllm-baked":
                path = baked(case.vector, model, folder / "model", case.scale)
            else:
                # Plain vLLM loads what plain transformers loads.
                to = "transformers" if engine == "vllm" else engine
                options = {"mode": case.mode, "level": case.level}
                path = exported(case.vector, folder, to, case.scale, **options)
            case.files[engine] = str(path.resolve())
        hooks = case.hooks(case.block)
        rows = [{"prompt": p, "continuation": decoded(model, p, hooks)} for p in prompts]
        (out / "expected").mkdir(exist_ok=True)
        save_file(expected(model, case, rows), out / "expected" / f"{case.name}.safetensors")
        with model.intervene(hooks):
            sums[case.name] = log_probabilities(model, neutral)
        task["cases"].append(case.described(rows))
    (out / "expected" / "neutral.json").write_text(json.dumps(sums), encoding="utf-8")
    sae.save_model(out / "exports" / "sae")
    task["sae"] = str((out / "exports" / "sae").resolve())
    task["texts"] = list(lrt.demo_neutral())
    task["exports"] = {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((out / "exports").rglob("*"))
        if path.is_file()
    }
    (out / "task.json").write_text(json.dumps(task, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
