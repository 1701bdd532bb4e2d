"""Moments from the hidden states of a real vLLM, compared with those of a harvest.

    python tests/engines/states_of_vllm.py request engines-check     # writes what vLLM has to run
    python engines-check/states/target/run_vllm.py --dtype float32   # in vLLM's environment, twice
    python tests/engines/states_of_vllm.py compare engines-check     # exit status 1 if they differ

Limits: the bundled pair, in float32 on the CPU.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import lrt_lens as lrt
from lrt_lens.moments.states import harvest_states, request_states

TOLERANCE = 1e-4
"""Largest difference of a sum, relative to the largest number of its tensor."""
SCORE_TOLERANCE = 1e-5
"""Largest difference of a score."""
SETTINGS: dict[str, Any] = {"n_tokens": 6_000, "context_length": 64}
LAYERS: dict[str, Any] = {"source": [1, 2], "target": [1, 3]}
N_DOCUMENTS = 300
RESULT = Path("docs/results/engine_states.json")


def documents() -> list[str]:
    """Return the texts of the check."""
    texts = lrt.data.iterate_documents(lrt.demo_documents())
    return [text for text, _ in zip(texts, range(N_DOCUMENTS), strict=False)]


def request(work: Path) -> None:
    """Write the requests of both models."""
    shutil.rmtree(work / "states", ignore_errors=True)
    pair = lrt.demo_pair()
    for role, other in (("source", pair.target), ("target", pair.source)):
        request_states(
            work / "states" / role,
            getattr(pair, role),
            documents(),
            other=other,
            role=role,
            layers=LAYERS[role],
            **SETTINGS,
        )


def compare(work: Path) -> int:
    """Compare the moments of both kinds of sides, and return 1 if they differ."""
    pair, folders = lrt.demo_pair(), {role: work / "states" / role for role in LAYERS}
    options = SETTINGS | {f"{role}_layers": LAYERS[role] for role in LAYERS} | {"progress": False}
    expected = lrt.harvest(pair, documents(), **options)
    rows = []
    for kept in (("target",), ("source", "target")):
        sides = {role: folders[role] if role in kept else getattr(pair, role) for role in LAYERS}
        verify = {role: getattr(pair, role) for role in kept}
        found = harvest_states(
            sides["source"], sides["target"], documents(), verify=verify, **options
        )
        rows.append(
            {
                "from_vllm": list(kept),
                "moments": difference(expected, found),
                "scores": score_difference(expected, found),
                "tokens": found.n_tokens,
            }
        )
        print(rows[-1])
    windows = [len((folders[role] / "numbers.txt").read_text().split()) for role in LAYERS]
    is_fine = all(row["moments"] <= TOLERANCE and row["scores"] <= SCORE_TOLERANCE for row in rows)
    RESULT.write_text(json.dumps({"windows": windows, "rows": rows}, indent=1) + "\n")
    return 0 if is_fine else 1


def difference(one: Any, other: Any) -> float:
    """Return the largest difference of two moments, relative to the numbers of its tensor."""
    a, b = one.tensors(), other.tensors()
    worst = 0.0
    for name, tensor in a.items():
        # Sums about the first mean are nearly 0; squares give their scale.
        part, is_sum, rest = name.partition("/sum/")
        scale = tensor.abs().max()
        if is_sum:
            scale = (a[f"{part}/second/{rest}"].diagonal() * one.n.max()).sqrt().max()
        worst = max(worst, float((tensor - b[name]).abs().max() / scale.clamp(min=1e-300)))
    return worst


def score_difference(one: Any, other: Any) -> float:
    """Return the largest difference of R² and gain of the fitted maps."""
    a, b = (moments.fit().scores[["r2", "r2_token", "gain_cv"]] for moments in (one, other))
    return float((a - b).abs().max().max())


if __name__ == "__main__":
    torch.set_num_threads(1)
    action, folder = sys.argv[1], Path(sys.argv[2])
    sys.exit(request(folder) if action == "request" else compare(folder))
