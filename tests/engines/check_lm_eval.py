"""lm-evaluation-harness: ``--model steered``, through its registry and its own scoring of texts."""
# pyright: reportMissingImports=false

from typing import Any

from _consumer import Case, Reading, consume, row_logits
from lm_eval.api.registry import get_model


def scores(model: Any, rows: list[list[int]]) -> list[float]:
    """Return the log probability of each text behind its first token, as tasks are scored."""
    requests = [(("", str(i)), row[:1], row[1:]) for i, row in enumerate(rows)]
    return [log_p for log_p, _ in model._loglikelihood_tokens(requests, disable_tqdm=True)]


def read(case: Case) -> Reading:
    """Return what the steered model class computes."""
    settings = {"batch_size": 4, "device": "cpu"}
    arguments = f"pretrained={case.model},dtype=float32"
    plain = get_model("hf").create_from_arg_string(arguments, settings)
    arguments += f",steer_path={case.file}"
    steered = get_model("steered").create_from_arg_string(arguments, settings)
    return Reading(
        [row_logits(steered.forward, row, cached=True) for row in case.rows],
        scores(steered, case.neutral),
        scores(plain, case.neutral),
    )


if __name__ == "__main__":
    consume(
        "lm-eval",
        read,
        packages=("lm-eval", "transformers", "torch"),
        how="--model steered --model_args pretrained=…,steer_path=vector.pt,dtype=float32",
    )
