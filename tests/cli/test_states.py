"""The commands for hidden states of an engine."""

import json
from pathlib import Path

import pytest

import lrt_lens as lrt
from lrt_lens.bundled import DEMO_FOLDER
from lrt_lens.cli import main
from tests.moments.states.layouts import largest_difference, write_sequence

WINDOWS = ["--documents", "documents.jsonl", "--n-tokens", "4000", "--context-length", "48"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    texts = list(lrt.data.iterate_documents(lrt.demo_documents()))[:150]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "documents.jsonl").write_text("\n".join(lines))
    for name in ("small", "large"):
        (tmp_path / name).symlink_to(DEMO_FOLDER / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_states_of_an_engine_give_the_stitches_of_fit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["states", "--model", "large", "--layers", "2,3", *WINDOWS])
    shown = capsys.readouterr().out
    assert "run_vllm.py" in shown
    assert f"next: lrt-lens fit-states --source MODEL --target states {' '.join(WINDOWS)}" in shown
    model = lrt.demo_pair().target
    layer_ids = json.loads((folder / "states" / "states.json").read_text())["layer_ids"]
    for number, line in enumerate((folder / "states" / "windows.jsonl").read_text().splitlines()):
        path = folder / "states" / f"{number}.safetensors"
        write_sequence(path, model, json.loads(line), layer_ids)
    main(["inspect", "states"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "kind hidden states" in shown
    assert "blocks.2.hook_resid_post" in shown
    options = ["--source", "small", "--source-layers", "2", "--no-progress", *WINDOWS]
    kept = ["--target", "states", "--verify-target", "large", "--out", "kept"]
    main(["fit-states", *options, *kept])
    main(["fit", *options, "--target", "large", "--target-layers", "2,3", "--out", "fitted"])
    moments = [
        lrt.CrossMoments.load(folder / name / "moments.safetensors") for name in ("fitted", "kept")
    ]
    assert largest_difference(*moments) < 1e-4
    assert moments[0].provenance.target == moments[1].provenance.target
    assert (folder / "kept" / "report.html").exists()
    assert not (folder / "kept" / "checkpoint").exists()
    main(["fit-states", "--config", "kept/run.toml", "--out", "again"])
    again = lrt.CrossMoments.load(folder / "again" / "moments.safetensors")
    assert largest_difference(moments[1], again) == 0


def test_wrong_states_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = (
        (["states", "--model", "nowhere/at/all", *WINDOWS], "no config at 'nowhere/at/all'"),
        (["states", "--model", "large", "--layers", "9", *WINDOWS], "has 5 blocks"),
        (["fit-states", "--source", "small", "--target", "large"], "give documents"),
    )
    for words, message in cases:
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 1
        assert message in capsys.readouterr().err
