"""The whole job from the command line, on the bundled models, and again from its options."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import lrt_lens as lrt
from lrt_lens.bundled import DEMO_FOLDER
from lrt_lens.cli import main

SMALL = ["--n-random", "2", "--n-permuted", "2", "--n-shuffled", "2"]
"""Few draws of each control, to be quick."""
MODELS = ["--source", "small", "--target", "large", "--no-progress"]
CHAIN: tuple[list[str], ...] = (
    [
        *("fit", *MODELS, "--documents", "documents.jsonl", "--out", "stitches"),
        *("--n-tokens", "12000", "--source-layers", "2", "--target-layers", "3"),
    ],
    ["inspect", "stitches"],
    [
        *("learn", "vector", "contrast.jsonl", "--model", "small", "--at", "2"),
        *("--out", "learnt-vector"),
    ],
    ["transfer", "stitches", "learnt-vector", "--out", "transferred-vector"],
    [
        *("calibrate", "transferred-vector", "--model", "large", "--neutral", "neutral.jsonl"),
        *("--damage", "0.05", "--out", "calibrated"),
    ],
    [
        *("evaluate", "vector", "stitches", "learnt-vector", *MODELS, "--items", "items.jsonl"),
        *("--neutral", "neutral.jsonl", "--contrast", "contrast.jsonl", "--damage", "0.05"),
        *("--n-contrast-groups", "0", "--no-both-signs", *SMALL, "--out", "evaluated-vector"),
    ],
    ["export", "calibrated/vector.safetensors", "mood.gguf", "--to", "llama.cpp"],
    ["import", "mood.gguf", "--model", "large", "--out", "imported"],
    [
        *("learn", "probe", "labelled.csv", "--model", "small", "--at", "2", "--read", "mean"),
        *("--out", "learnt-probe"),
    ],
    [
        *("transfer", "stitches", "learnt-probe", "--recentre", "labelled.csv"),
        *(*MODELS, "--out", "transferred-probe"),
    ],
    [
        *("evaluate", "probe", "stitches", "labelled.csv", *MODELS, "--ks", "10"),
        *("--n-seeds", "1", *SMALL, "--out", "evaluated-probe"),
    ],
    ["transfer", "stitches", "saes/small", "--out", "transferred-sae"],
    [
        *("evaluate", "sae", "stitches", "saes/small", *MODELS, "--documents", "documents.jsonl"),
        *("--native", "saes/large", "--n-random", "1", "--n-tokens", "1500"),
        *("--out", "evaluated-sae"),
    ],
    [
        *("evaluate", "stitch", "stitches", *MODELS, "--documents", "documents.jsonl"),
        *("--n-tokens", "1500", "--routes", "A->B", "--out", "evaluated-stitch"),
    ],
    [
        *("report", "stitches", "calibrated", "evaluated-vector", "evaluated-probe"),
        *("evaluated-sae", "evaluated-stitch", "--out", "report"),
    ],
)
"""Commands of the job, in order."""
RUNS = [words[words.index("--out") + 1] for words in CHAIN if "--out" in words]
"""Folders that the job writes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh folder with the bundled models and a few of their texts."""
    folder = tmp_path_factory.mktemp("job")
    for name in ("small", "large", "saes"):
        (folder / name).symlink_to(DEMO_FOLDER / name)
    rows = {
        "documents": [{"text": text} for text in lrt.demo_documents()[:600]],
        "neutral": [{"text": text} for text in lrt.demo_neutral()[:8]],
        "contrast": _pairs(lrt.demo_contrast("sentiment"), 40),
        "items": [
            {"prompt": prompt, "positive": positive, "negative": negative}
            for prompt, positive, negative in list(
                zip(*_columns(lrt.demo_items("sentiment")), strict=True)
            )[:12]
        ],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    texts, labels = lrt.demo_texts("sentiment", 80)
    labelled = pd.DataFrame({"text": texts, "label": labels})
    labelled.to_csv(folder / "labelled.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def _pairs(contrast: lrt.ContrastSet, n: int) -> list[dict[str, str]]:
    pairs = zip(contrast.positive[:n], contrast.negative[:n], strict=True)
    return [{"positive": positive, "negative": negative} for positive, negative in pairs]


def _columns(items: lrt.ChoiceItems) -> tuple[Any, Any, Any]:
    return items.prompts, items.positive, items.negative


def _numbers(run: Path) -> Any:
    """Return the results of a run without its options."""
    content = json.loads((run / "results.json").read_text())
    return {key: value for key, value in content.items() if key not in ("arguments", "runs")}


@pytest.mark.slow
def test_the_whole_job_runs_and_is_repeated_from_its_options(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in CHAIN:
        main(words)
        shown = capsys.readouterr().out
        if words[0] == "inspect":
            assert "--at blocks.2.hook_resid_post" in " ".join(shown.split())
            assert "12," in shown, "the number of tokens"
    for run in RUNS:
        names = {path.name for path in (folder / run).iterdir()}
        assert {"results.json", "report.html", "run.toml"} <= names, run
        page = (folder / run / "report.html").read_text()
        assert page.lower().startswith("<!doctype html>")
    # Figures: 3 of steering, 1 each of the others, and all of them on the common page.
    figures = {"evaluated-vector": 3, "evaluated-probe": 1, "evaluated-sae": 1, "calibrated": 1}
    figures |= {"evaluated-stitch": 1, "stitches": 1, "report": 8}
    for run, n_figures in figures.items():
        page = (folder / run / "report.html").read_text()
        assert page.count('<div class="plot"') == n_figures, run
    page = (folder / "report" / "report.html").read_text()
    for title in ("evaluated-vector: Steering at equal damage", "evaluated-sae: SAE"):
        assert title in page
    strength = lrt.SteeringVector.load(folder / "calibrated" / "vector.safetensors").strength
    assert strength is not None
    assert strength.damage == pytest.approx(0.05, rel=0.05)
    arms = {row["arm"] for row in _numbers(folder / "evaluated-vector")["steering_summary"]}
    assert {"transferred", "native", "native_best", "random", "shuffled", "permuted"} <= arms
    arms = {row["arm"] for row in _numbers(folder / "evaluated-stitch")["stitched_loss_arms"]}
    assert {"own", "stitched", "token", "shuffled", "mean", "zero"} == arms
    # Each run is repeated from a copy of its options, into another folder.
    written = [words for words in CHAIN if "--out" in words]
    for number, (words, run) in enumerate(zip(written, RUNS, strict=True)):
        copied = folder / f"copied-{number}.toml"
        copied.write_text((folder / run / "run.toml").read_text())
        command = words[:2] if words[0] in ("learn", "evaluate") else words[:1]
        main([*command, "--config", str(copied), "--out", f"again/{run}"])
        assert _numbers(folder / "again" / run) == _numbers(folder / run), run
