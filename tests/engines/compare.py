"""Compares what the engines computed with what our own hook computes, and prints a table.

Problem: a file that is loaded without an error may still steer another block, other positions or
not at all. Mechanism: log probabilities of the whole vocabulary, position by position. At the
exported block N they must agree with our hook to `TOLERANCE`; our hook at N−1, at N+1 and no hook
must be at least `FACTOR` times farther away, at every steered position; the rise of the loss on
neutral texts must agree within `SHARE`.

    python tests/engines/compare.py engines-check         # exit status 1 if a check fails

Limits: float32 on the CPU; agreement in lower precisions is not checked.
"""

import hashlib
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-4
"""Largest difference of a log probability at the exported block."""
FACTOR = 10.0
"""Ratio by which every other block must differ more."""
SHARE = 0.1
"""Largest difference of the damages, as a share of ours."""
METRIC_TOLERANCE = 2e-3
"""Largest relative difference of a metric of the SAE."""
Logits = dict[str, Tensor]


def by_position(one: list[Tensor], other: list[Tensor], *, smallest: bool = False) -> list[float]:
    """Return max |Δ log p| over the vocabulary at each position.

    It is the largest over the rows that have the position, or the smallest.
    """
    differences = [
        (a.log_softmax(-1) - b.log_softmax(-1)).abs().amax(-1)
        for a, b in zip(one, other, strict=True)
    ]
    longest = max(len(row) for row in differences)
    choose: Callable[[list[float]], float] = min if smallest else max
    return [
        choose([float(row[position]) for row in differences if len(row) > position])
        for position in range(longest)
    ]


def rows_of(logits: Logits, kind: str | None = None) -> list[Tensor]:
    """Return the tensors of one kind, ``"0.plain"``, ``"1.plain"`` …, in the order of the rows."""
    names = [name for name in logits if kind is None or name.split(".", 1)[1] == kind]
    return [
        logits[name].float() for name in sorted(names, key=lambda name: int(name.split(".")[0]))
    ]


def compared(
    case: dict[str, Any], reading: dict[str, Any], engine: list[Tensor], ours: Logits
) -> dict[str, Any]:
    """Return the differences of one engine and case, and the faults among them."""
    at_block = by_position(engine, rows_of(ours, "0"))
    others = {
        name: by_position(engine, rows_of(ours, kind), smallest=True)
        for name, kind in {"before": "-1", "after": "1", "unsteered": "plain"}.items()
    }
    first = case["skip_first"]
    faults = []
    if not max(at_block) <= TOLERANCE:
        faults.append(f"differs by {max(at_block):.2g} at block {case['block']}")
    for name, differences in others.items():
        near = [
            position
            for position in range(first, len(at_block))
            if not differences[position] >= FACTOR * max(at_block[position], TOLERANCE / FACTOR)
        ]
        if near:
            nearest = min(differences[position] for position in near)
            faults.append(
                f"{len(near)} of {len(at_block) - first} positions are not {FACTOR:g} times"
                f" farther from {name} than from ours; the nearest differs by {nearest:.2g}"
            )
    untouched = by_position(engine, rows_of(ours, "plain"))[:first]
    if untouched and not max(untouched) <= TOLERANCE:
        faults.append(f"changes the first {first} positions by {max(untouched):.2g}")
    expected = [row["continuation"] for row in case["rows"]]
    if reading["continuations"] not in (None, expected):
        faults.append("decodes other tokens")
    return {
        "prompts": len(engine),
        "positions": len(at_block),
        "at_block": max(at_block),
        "at_first_position": at_block[0],
        **{name: min(differences[first:]) for name, differences in others.items()},
        "before_max": max(by_position(engine, rows_of(ours, "-1"))),
        "after_max": max(by_position(engine, rows_of(ours, "1"))),
        "at_block_by_position": at_block,
        "faults": faults,
    }


def damages(
    case: str, reading: dict[str, Any], sums: dict[str, list[float]], n_tokens: int
) -> tuple[float, float]:
    """Return the rise of the loss in nats per token, of our hook and in the engine."""
    plain = sum(sums["plain"])
    ours = (plain - sum(sums[case])) / n_tokens
    unsteered = plain if reading["plain"] is None else sum(reading["plain"])
    return ours, (unsteered - sum(reading["steered"])) / n_tokens


def reading_of(work: Path, about: Path) -> dict[str, Any] | None:
    """Return a reading of the task as it is now, or None if there is none."""
    if not about.exists():
        return None
    reading = json.loads(about.read_text(encoding="utf-8"))
    task = hashlib.sha256((work / "task.json").read_bytes()).hexdigest()
    return reading if reading["task"] == task else None


def checked(work: Path, case: dict[str, Any], engine: str, n_tokens: int) -> dict[str, Any]:
    """Return the row of one engine and case."""
    about = work / "readings" / engine / f"{case['name']}.json"
    row: dict[str, Any] = {"engine": engine, "case": case["name"], "block": case["block"]}
    row["operation"] = {"ablate": "ablate (clamp to 0)"}.get(case["mode"], case["mode"])
    row["steered_from"] = case["skip_first"]
    reading = reading_of(work, about)
    if reading is None:
        return row | {"faults": ["no reading of this task: the engine did not run"]}
    row |= {name: reading[name] for name in ("versions", "how", "seconds")}
    ours = load_file(work / "expected" / f"{case['name']}.safetensors")
    row |= compared(case, reading, rows_of(load_file(about.with_suffix(".safetensors"))), ours)
    sums = json.loads((work / "expected" / "neutral.json").read_text(encoding="utf-8"))
    row["damage_ours"], row["damage_engine"] = damages(case["name"], reading, sums, n_tokens)
    if not abs(row["damage_engine"] - row["damage_ours"]) <= SHARE * abs(row["damage_ours"]):
        row["faults"].append(
            f"damage {row['damage_engine']:.4f}, expected {row['damage_ours']:.4f} nats per token"
        )
    return row


def sae_metrics(task: dict[str, Any], tokens: Tensor, n_batches: int) -> dict[str, float]:
    """Return the metrics of the SAE on the tokens that sae-bench drew, by our own model.

    The first ``n_batches`` of [batch, row, position] are those of the losses, the others those of
    the codes; special tokens do not count.
    """
    from sae_lens import SAE

    import lrt_lens as lrt

    model = lrt.demo_pair(dtype="float32").target
    sae = SAE.load_from_disk(task["sae"], device="cpu")
    hook = str(sae.cfg.metadata.hook_name)
    special = torch.tensor(sorted(model.special_ids))
    losses, reconstructed, divergences, n_active, cosines = [], [], [], [], []
    with torch.no_grad():
        for batch in tokens[:n_batches]:
            counts = ~torch.isin(batch, special)
            plain = model.logits(batch).log_softmax(-1)
            with model.intervene({hook: lambda stream, hook: sae.decode(sae.encode(stream))}):
                replaced = model.logits(batch).log_softmax(-1)
            target, counted = batch[:, 1:, None], counts[:, :-1]
            losses.append(-plain[:, :-1].gather(-1, target)[..., 0][counted])
            reconstructed.append(-replaced[:, :-1].gather(-1, target)[..., 0][counted])
            divergences.append((plain.exp() * (plain - replaced)).sum(-1)[counts])
        for batch in tokens[n_batches:]:
            stream = model.capture(batch, hook)[~torch.isin(batch, special)]  # type: ignore[index]
            codes = sae.encode(stream)
            n_active.append((codes != 0).float().sum(-1))
            cosines.append(torch.cosine_similarity(stream, sae.decode(codes), dim=-1))
    measured = {
        "ce_loss_without_sae": losses,
        "ce_loss_with_sae": reconstructed,
        "kl_div_with_sae": divergences,
        "l0": n_active,
        "cossim": cosines,
    }
    return {name: float(torch.cat(values).mean()) for name, values in measured.items()}


def checked_sae(work: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Return sae-bench's metrics of the transferred SAE next to ours."""
    about = work / "readings" / "sae-bench" / "core.json"
    reading = reading_of(work, about)
    if reading is None:
        return {"engine": "sae-bench", "faults": ["no reading of this task: it did not run"]}
    tokens = load_file(about.with_suffix(".safetensors"))["tokens"]
    theirs = {k: v for group in reading["metrics"].values() for k, v in group.items()}
    ours = sae_metrics(task, tokens, reading["n_batches"])
    faults = [
        f"{name} is {theirs[name]:.5g}, ours {value:.5g}"
        for name, value in ours.items()
        if not abs(theirs[name] - value) <= METRIC_TOLERANCE * abs(value)
    ]
    kept = {name: reading[name] for name in ("engine", "versions", "how", "seconds", "metrics")}
    return kept | {"tokens": tokens.numel(), "ours": ours, "faults": faults}


def printed(rows: list[dict[str, Any]], sae: dict[str, Any]) -> None:
    """Print one line per engine and case, the metrics of the SAE, and the faults."""
    print(
        f"{'engine':17} {'version':9} {'case':12} {'operation':20} {'n':>3}"
        f" {'|Δ| at N':>9} {'at N−1':>7} {'at N+1':>7} {'none':>7} {'damage':>8} {'ours':>8}"
    )
    for row in rows:
        if "versions" in row:
            print(
                f"{row['engine']:17} {next(iter(row['versions'].values())):9} {row['case']:12}"
                f" {row['operation']:20} {row['prompts']:3} {row['at_block']:9.1e}"
                f" {row['before']:7.2g} {row['after']:7.2g} {row['unsteered']:7.2g}"
                f" {row['damage_engine']:8.4f} {row['damage_ours']:8.4f}"
            )
    for name, value in sae.get("ours", {}).items():
        theirs = next(group[name] for group in sae["metrics"].values() if name in group)
        print(
            f"sae-bench {next(iter(sae['versions'].values()))} {name} {theirs:.5f} ours {value:.5f}"
        )
    for row in [*rows, sae]:
        for fault in row["faults"]:
            print(f"FAILED: {row['engine']} {row.get('case', '')}: {fault}", file=sys.stderr)


def main(work: Path) -> int:
    """Write results.json into ``work`` and return the exit status."""
    torch.set_num_threads(1)
    task = json.loads((work / "task.json").read_text(encoding="utf-8"))
    n_tokens = sum(len(row) - 1 for row in task["neutral"])
    rows = [
        checked(work, case, engine, n_tokens) for case in task["cases"] for engine in case["files"]
    ]
    sae = checked_sae(work, task)
    passed = not any(row["faults"] for row in [*rows, sae])
    results = {
        "passed": passed,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "tolerance": TOLERANCE,
        "neutral_texts": len(task["neutral"]),
        "neutral_tokens": n_tokens,
        "steering": rows,
        "sae": sae,
    }
    (work / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    printed(rows, sae)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
