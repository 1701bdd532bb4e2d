"""Helpers of the scripts that run in the environment of an engine.

Problem: an engine must be checked as its users run it, so lrt_lens must not take part. Mechanism:
a script gives `consume` a function that loads a case's file with the engine's own loader and
returns a `Reading`; `consume` reads ``task.json``, calls the function for every case of the engine
and writes the readings. A reading that was made from the same task, script and versions is kept.

    consume("repeng", read, packages=("repeng", "numpy"), how="ControlVector.import_gguf")

Limits: `model_reading` needs a model of transformers; other engines make their readings themselves.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One intervention, and the file in which the engine finds it."""

    name: str
    file: Path
    """File that the engine loads, or the folder."""
    skip_first: int
    model: str
    rows: list[dict[str, list[int]]]
    """Token ids of the prompts, and of what is decoded after them."""
    neutral: list[list[int]]
    """Token ids of the neutral texts."""


@dataclass(frozen=True)
class Reading:
    """Numbers that an engine computed for a case."""

    logits: list[Tensor]
    """Logits or log probabilities of each row with its decoded tokens, [position, vocabulary]."""
    steered: list[float]
    """Log probability of each neutral text behind its first token, steered."""
    plain: list[float] | None = None
    """Log probability of each neutral text, unsteered; None if the engine cannot run so."""
    continuations: list[list[int]] | None = None
    """Tokens that the engine decoded; None if it was given the expected ones."""


Forward = Callable[..., Any]
"""A model of transformers, or what steers one: token ids [1, position] to an output."""


@dataclass(frozen=True)
class Run:
    """A run of one script on the current task."""

    engine: str
    versions: dict[str, str]
    """Versions of the packages that took part, the engine's first."""
    folder: Path
    """Folder of the engine's readings."""
    task: dict[str, Any]
    task_hash: str
    key: str
    """Hash of the task, the script and the versions: a reading with this key is up to date."""

    @classmethod
    def begun(cls, engine: str, packages: Sequence[str]) -> "Run":
        """Return the run of the script that is running, on the folder that its argument names.

        Raises:
            RuntimeError: lrt_lens can be imported, so that the engine would not be alone.
        """
        if importlib.util.find_spec("lrt_lens") is not None:
            raise RuntimeError(
                "lrt_lens can be imported in the engine's environment; unset PYTHONPATH, so that"
                " only the engine's own code takes part"
            )
        torch.set_num_threads(1)
        work = Path(sys.argv[1])
        text = (work / "task.json").read_text(encoding="utf-8")
        versions = {name: importlib.metadata.version(name) for name in packages}
        scripts = [*Path(__file__).parent.glob("_*.py"), Path(sys.argv[0])]
        parts = [text, json.dumps(versions)]
        parts += [path.read_text(encoding="utf-8") for path in sorted(scripts)]
        folder = work / "readings" / engine
        folder.mkdir(parents=True, exist_ok=True)
        return cls(
            engine=engine,
            versions=versions,
            folder=folder,
            task=json.loads(text),
            task_hash=hashlib.sha256(text.encode()).hexdigest(),
            key=hashlib.sha256("\0".join(parts).encode()).hexdigest(),
        )

    def has(self, name: str) -> bool:
        """Return True if the reading of this name is up to date."""
        path = self.folder / f"{name}.json"
        return path.exists() and json.loads(path.read_text(encoding="utf-8"))["key"] == self.key

    def write(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write a reading: tensors first, so that no JSON describes missing tensors."""
        path = self.folder / f"{name}.json"
        path.unlink(missing_ok=True)
        tensors = {key: values.contiguous() for key, values in tensors.items()}
        save_file(tensors, path.with_suffix(".safetensors"))
        about = {"key": self.key, "task": self.task_hash, "engine": self.engine}
        facts = about | {"versions": self.versions} | facts
        path.write_text(json.dumps(facts), encoding="utf-8")


def consume(
    engine: str, read: Callable[[Case], Reading], *, packages: Sequence[str], how: str
) -> None:
    """Write a reading of every case that has a file for this engine.

    Args:
        engine: name of the engine in ``task.json``.
        read: returns the reading of a case.
        packages: distributions whose versions are recorded, the engine's first.
        how: calls with which the engine loaded and applied the file.
    """
    run = Run.begun(engine, packages)
    for fields in run.task["cases"]:
        if engine not in fields["files"] or run.has(fields["name"]):
            continue
        case = Case(
            name=fields["name"],
            file=Path(fields["files"][engine]),
            skip_first=fields["skip_first"],
            model=run.task["model"],
            rows=fields["rows"],
            neutral=run.task["neutral"],
        )
        start = time.perf_counter()
        reading = read(case)
        facts = {
            "how": how,
            "seconds": round(time.perf_counter() - start, 1),
            "steered": reading.steered,
            "plain": reading.plain,
            "continuations": reading.continuations,
        }
        logits = {str(i): values.float() for i, values in enumerate(reading.logits)}
        run.write(case.name, logits, facts)


def script_of(case: Case) -> Any:
    """Return the module ``steer.py`` of an exported folder."""
    place = importlib.util.spec_from_file_location("steer", case.file / "steer.py")
    if place is None or place.loader is None:
        raise FileNotFoundError(f"{case.file} has no steer.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


@cache
def hugging_face(folder: str) -> Any:
    """Return the model of a folder in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def row_logits(forward: Forward, row: dict[str, list[int]], *, cached: bool) -> Tensor:
    """Return the logits of a prompt and its continuation, [position, vocabulary].

    With ``cached`` the prompt is one call and each further token another one, as in decoding.
    """
    prompt, decoded = row["prompt"], row["continuation"][:-1]
    with torch.inference_mode():
        if not cached:
            return forward(input_ids=torch.tensor([prompt + decoded])).logits[0]
        out = forward(input_ids=torch.tensor([prompt]), use_cache=True)
        logits = [out.logits[0]]
        for token in decoded:
            memory = out.past_key_values
            ids = torch.tensor([[token]])
            out = forward(input_ids=ids, past_key_values=memory, use_cache=True)
            logits.append(out.logits[0])
    return torch.cat(logits)


def log_probability(forward: Forward, tokens: list[int]) -> float:
    """Return the log probability of a text behind its first token, in nats."""
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        log_p = forward(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    return float(log_p.gather(1, ids[0, 1:, None]).double().sum())


def steered_reading(
    forward: Forward, case: Case, plain: list[float] | None, *, cached: bool = True
) -> Reading:
    """Return the reading of a model that is already steered."""
    return Reading(
        [row_logits(forward, row, cached=cached) for row in case.rows],
        [log_probability(forward, tokens) for tokens in case.neutral],
        plain,
    )


def plain_log_probabilities(case: Case) -> list[float]:
    """Return the log probability of each neutral text without steering."""
    model = hugging_face(case.model)
    return [log_probability(model, tokens) for tokens in case.neutral]
