"""The command line and the lazy surface."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lrt_lens
from lrt_lens.cli import main


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_and_asking_for_help_load_no_torch() -> None:
    assert run("import lrt_lens, sys; dir(lrt_lens); print('torch' in sys.modules, 'transformer_lens' in sys.modules)") == "False False"
    code = "import sys\nfrom lrt_lens.cli import main\ntry:\n    main(['fit', '--help'])\nexcept SystemExit:\n    print('torch' in sys.modules)"
    assert run(code).endswith("False")


def test_every_public_name_loads_and_a_wrong_one_is_an_attribute_error() -> None:
    for name in lrt_lens.__all__:
        assert getattr(lrt_lens, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'stich'"):
        _ = lrt_lens.stich  # type: ignore[attr-defined]


def test_fit_writes_moments_results_report_and_a_stitch(model_folder: Path, corpus: list[str], tmp_path: Path, capsys: Any) -> None:
    import json

    import lrt_lens as lrt

    documents = tmp_path / "corpus.txt"
    documents.write_text("\n\n".join(corpus))
    out = tmp_path / "out"
    options = ["--n-tokens", "3000", "--context-length", "32", "--target-layers", "0,-1", "--no-progress", "--out", str(out)]
    main(["fit", "--source", str(model_folder), "--target", str(model_folder), "--documents", str(documents), *options])
    results = json.loads((out / "results.json").read_text())
    assert results["schema_version"] == "lrt_lens.results/1"
    assert {row["target_hook"] for row in results["grid"]} == {"blocks.0.hook_resid_post", "blocks.2.hook_resid_post"}
    assert len(results["grid"]) == 6
    assert (out / "report.html").read_text().lower().startswith("<!doctype html>")
    assert lrt.CrossMoments.load(out / "moments.safetensors").n_tokens >= 2900
    assert lrt.Stitch.from_pretrained(out / "stitch").source_hook.startswith("blocks.")
    assert "Layer pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--documents", "nowhere.jsonl"], "no file at 'nowhere.jsonl'"),
        (["--source-layers", "9"], "layer 9 is not on 'tiny-llama'; it has 3 blocks"),
        (["--device", "cpu", "--device-map", "auto"], "exclude each other"),
    ],
)
def test_errors_are_one_line_and_exit_with_one(
    model_folder: Path, corpus: list[str], tmp_path: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    documents = tmp_path / "corpus.txt"
    documents.write_text("\n\n".join(corpus))
    given = ["--source", str(model_folder), "--target", str(model_folder), "--documents", str(documents), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *given, *arguments, "--no-progress"])
    assert stopped.value.code == 1
    assert message in capsys.readouterr().out


def test_an_out_folder_that_cannot_be_written_stops_before_any_work(tmp_path: Path, capsys: Any) -> None:
    blocker = tmp_path / "a-file"
    blocker.write_text("")
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--out", str(blocker / "report")])
    assert stopped.value.code == 1
    assert "cannot write to" in capsys.readouterr().out


def test_ctrl_c_says_so_and_leaves_nothing_half_written(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lrt_lens.demo.run_demo", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 130
    assert list((tmp_path / "out").iterdir()) == []
