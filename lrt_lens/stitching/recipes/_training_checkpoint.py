"""Checkpoints of a training run.

Problem: training can take hours and be interrupted. Mechanism: weights, optimiser state, best
weights and history are written to one safetensors file, under a temporary name that is then
renamed, so that the file is always complete.

    checkpoint = TrainingCheckpoint(folder, learners, arguments, every=120.0)
    progress = checkpoint.resume()
    checkpoint.write_if_due(progress)            # between two steps

Limits: one run per folder; the file is the latest state only.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import TypedDict

from lrt_lens._numbers import checked_seconds
from lrt_lens._stored_fields import as_damage, json_object, stored_fields
from lrt_lens._tensor_files import read_tensor_file, refuse_values, write_tensors
from lrt_lens.errors import MismatchError
from lrt_lens.stitching.recipes._learner import Learner, Progress

TRAINING_SCHEMA = "lrt_lens.training/1"
CHECKPOINT_NAME = "training.safetensors"
_WRITING_SHARE = 0.05
"""Largest share of the run time that writing may take."""


class _LearnerState(TypedDict):
    """Fields of a learner that a file stores as JSON."""

    best_loss: float | None
    looks_since: int
    is_stopped: bool
    loss_sum: float
    loss_rows: int
    steps: int


class _State(TypedDict):
    """Content of a file besides its tensors."""

    arguments: dict[str, Any]
    learners: dict[str, _LearnerState]
    progress: Progress


class TrainingCheckpoint:
    """The checkpoint of one run, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        learners: Mapping[str, Learner],
        arguments: Mapping[str, Any],
        *,
        every: float = 120.0,
    ) -> None:
        self.path, self.learners = folder / CHECKPOINT_NAME, learners
        self.every = checked_seconds(every)
        # Through JSON, which makes lists of tuples, so that they are equal to those of a file.
        self.arguments: dict[str, Any] = json.loads(json.dumps(arguments))
        self._due = time.monotonic() + every

    def resume(self) -> Progress:
        """Load the state of the last run into the learners and return its progress.

        Without a file, the progress is that of a new run.

        Raises:
            MismatchError: the file is of a run with other settings or rows.
            FileFormatError: the file is truncated.
        """
        if not self.path.is_file():
            return Progress()
        file = read_tensor_file(self.path, TRAINING_SCHEMA)
        content = json_object(self.path, file.metadata.get("state"), "'state'")
        state = stored_fields(self.path, _State, content)
        with as_damage(self.path):
            for key, tensor in file.tensors.items():
                if tensor.is_floating_point():
                    refuse_values(self.path, key, tensor)
            file.verify()
        for name, value in self.arguments.items():
            if state["arguments"].get(name) != value:
                raise MismatchError(
                    f"{str(self.path)!r} was begun with {name} {state['arguments'].get(name)!r}, "
                    f"but now it is {value!r}; give the same settings and rows, or "
                    "another folder"
                )
        with as_damage(self.path):
            for name, learner in self.learners.items():
                _put_back(
                    learner,
                    {
                        key.removeprefix(f"{name}/"): t
                        for key, t in file.tensors.items()
                        if key.startswith(f"{name}/")
                    },
                )
                # JSON has no infinity: a `best_loss` that was never set is stored as None.
                for field, value in state["learners"][name].items():
                    is_unset = field == "best_loss" and value is None
                    setattr(learner, field, math.inf if is_unset else value)
        return state["progress"]

    def write_if_due(self, done: Progress) -> None:
        """Write the checkpoint if ``every`` seconds have passed since the last one."""
        if time.monotonic() >= self._due:
            self.write(done)

    def write(self, done: Progress) -> None:
        """Write the checkpoint; call it between two steps."""
        started = time.monotonic()
        tensors = {
            f"{name}/{key}": t
            for name, learner in self.learners.items()
            for key, t in _tensors_of(learner).items()
        }
        fields = {
            name: {f: getattr(learner, f) for f in _LearnerState.__annotations__}
            for name, learner in self.learners.items()
        }
        for of_learner in fields.values():
            of_learner["best_loss"] = (
                of_learner["best_loss"] if math.isfinite(of_learner["best_loss"]) else None
            )
        state = {"arguments": self.arguments, "learners": fields, "progress": asdict(done)}
        write_tensors(
            self.path, tensors, {"schema_version": TRAINING_SCHEMA, "state": json.dumps(state)}
        )
        # If writing takes long, the next one waits longer, to keep its share of the time. Who asks
        # for an interval below a second gets it without this limit.
        took = time.monotonic() - started
        self._due = time.monotonic() + max(
            self.every, took / _WRITING_SHARE if self.every >= 1 else 0.0
        )


def _tensors_of(learner: Learner) -> dict[str, Tensor]:
    """Return weights, best weights and optimiser state under ``weights/``, ``best/``, …."""
    tensors = {f"weights/{name}": value for name, value in learner.module.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in learner.best.items()}
    # torch numbers the optimiser's state by parameter; safetensors needs flat names.
    for index, state in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in state.items()}
    return tensors


def _put_back(learner: Learner, tensors: dict[str, Tensor]) -> None:
    """Load tensors with the names of `_tensors_of` into a learner."""

    def below(prefix: str) -> dict[str, Tensor]:
        # Copies, because tensors of safetensors can be views of the mapped file, and weights and
        # optimiser state are changed in place.
        return {
            name.removeprefix(prefix): t.clone()
            for name, t in tensors.items()
            if name.startswith(prefix)
        }

    learner.module.load_state_dict(below("weights/"))
    device = next(learner.module.parameters()).device
    learner.best = {name: t.to(device) for name, t in below("best/").items()}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in below("optimizer/").items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    # load_state_dict also moves the optimiser's state to the device of the parameters.
    whole = learner.optimizer.state_dict()
    learner.optimizer.load_state_dict(
        {"state": dict(sorted(state.items())), "param_groups": whole["param_groups"]}
    )
