"""The command `lrt-lens diff`: from moments, from two folders, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import lrt_lens as lrt
from lrt_lens.cli import main


@pytest.fixture
def moments(pair: Any, corpus: list[str], tmp_path: Path) -> Path:
    """Return a folder with the moments of two hook pairs."""
    harvested = lrt.harvest(
        pair, corpus, pairs=[(1, 2), (1, 1)], n_tokens=2000, progress=False, null=False
    )
    harvested.save(tmp_path / "stitches" / "moments.safetensors")
    return tmp_path / "stitches"


def test_directions_from_the_moments_of_a_fit(
    moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "diff"
    main(["diff", str(moments), "--hooks", "1,2", "--kind", "gained", "--out", str(out)])
    expected = lrt.diff(
        lrt.CrossMoments.load(moments / "moments.safetensors"), (1, 2), kinds=["gained"]
    )
    table = pd.read_csv(out / "diff.csv")
    pd.testing.assert_frame_equal(table, expected.table, check_dtype=False)
    results = json.loads((out / "results.json").read_text())
    assert len(results["diff"]) == len(table)
    files = sorted((out / "directions").glob("*.safetensors"))
    assert len(files) == expected.n_above_noise("gained") > 0
    vector = lrt.SteeringVector.load(out / "directions" / "gained-1.safetensors")
    assert vector.norm == pytest.approx(expected.vector("gained", 1).norm)
    assert "What two models do not share" in (out / "report.html").read_text()
    assert f"{len(files)} directions above the noise" in capsys.readouterr().out


def test_directions_between_two_folders(
    build_hf: Any, tokenizer: Any, tmp_path: Path, corpus: list[str]
) -> None:
    model = build_hf("llama", d=16, layers=2, seed=3)
    for name in ("base", "tuned"):
        model.model.embed_tokens.weight.data += 0.3 * (name == "tuned")
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    texts = "\n".join(json.dumps({"text": text}) for text in corpus)
    (tmp_path / "documents.jsonl").write_text(texts)
    words = ["diff", str(tmp_path / "base"), str(tmp_path / "tuned")]
    words += ["--documents", str(tmp_path / "documents.jsonl"), "--n-tokens", "2000"]
    words += ["--context-length", "48", "--no-progress", "--out", str(tmp_path / "diff")]
    main(words)
    table = pd.read_csv(tmp_path / "diff" / "diff.csv")
    assert set(table["kind"]) == {"gained", "lost", "difference", "shift", "shared"}
    results = json.loads((tmp_path / "diff" / "results.json").read_text())
    # The middle of two layers.
    assert results["hooks"]["source"] == "blocks.1.hook_resid_post"
    main(["report", str(tmp_path / "diff"), "--out", str(tmp_path / "page")])
    assert "What two models do not share" in (tmp_path / "page" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no moments at 'nowhere'"),
        (["a", "b"], "--documents is missing"),
        (["a", "b", "c"], "3 paths were given"),
        (["{moments}"], "2 hook pairs"),
        (["{moments}", "--hooks", "1,2,3"], "expected one layer or hook point"),
        (["{moments}", "--hooks", "0"], "no hook pair"),
        (["{moments}", "--hooks", "1,2", "--kind", "shift"], "equal widths"),
        (["{moments}", "--hooks", "1,2", "--n-directions", "0"], "n_directions"),
        (["{moments}", "--documents", "texts.jsonl"], "moments, which need no text"),
    ],
)
def test_what_cannot_be_compared_ends_with_one_line(
    words: list[str],
    message: str,
    moments: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    given = [word.replace("{moments}", str(moments)) for word in words]
    with pytest.raises(SystemExit) as ended:
        main(["diff", *given, "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert message.replace("n_directions", "n-directions") in printed[0]
