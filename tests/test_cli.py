"""The command line and the lazy surface."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lrt_lens
from lrt_lens.cli import _OPTIONS_BY_PYTHON, main


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_the_package_and_asking_for_help_load_no_torch() -> None:
    assert (
        run(
            "import lrt_lens, sys; dir(lrt_lens); "
            "print('torch' in sys.modules, 'transformer_lens' in sys.modules)"
        )
        == "False False"
    )
    code = (
        "import sys\nfrom lrt_lens.cli import main\ntry:\n    main(['fit', '--help'])\n"
        "except SystemExit:\n    print('torch' in sys.modules)"
    )
    assert run(code).endswith("False")


def test_every_public_name_loads_and_a_wrong_one_is_an_attribute_error() -> None:
    for name in lrt_lens.__all__:
        assert getattr(lrt_lens, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'stich'"):
        _ = lrt_lens.stich  # type: ignore[attr-defined]


def test_fit_writes_moments_results_report_and_a_stitch(
    model_folder: Path, corpus: list[str], tmp_path: Path, capsys: Any
) -> None:
    import json

    import lrt_lens as lrt

    documents = tmp_path / "corpus.txt"
    documents.write_text("\n\n".join(corpus))
    out = tmp_path / "out"
    options = [
        "--n-tokens",
        "3000",
        "--context-length",
        "32",
        "--target-layers",
        "0,-1",
        "--no-progress",
        "--source-name",
        "small",
        "--target-name",
        "large",
        "--out",
        str(out),
    ]
    main(
        [
            "fit",
            "--source",
            str(model_folder),
            "--target",
            str(model_folder),
            "--documents",
            str(documents),
            *options,
        ]
    )
    results = json.loads((out / "results.json").read_text())
    assert results["schema_version"] == "lrt_lens.results/1"
    assert {row["target_hook"] for row in results["grid"]} == {
        "blocks.0.hook_resid_post",
        "blocks.2.hook_resid_post",
    }
    assert len(results["grid"]) == 6
    assert results["pair"] == {"source": "small", "target": "large"}
    assert (out / "report.html").read_text().lower().startswith("<!doctype html>")
    assert lrt.CrossMoments.load(out / "moments.safetensors").n_tokens >= 2900
    assert lrt.Stitch.from_pretrained(out / "stitch").source_hook.startswith("blocks.")
    shown = capsys.readouterr().out
    table = shown[shown.index("Hook pairs") : shown.index("Stitch(")].splitlines()
    assert max(len(line) for line in table) <= 80, "a terminal's width"
    assert sum("0.post" in line for line in table) >= 3, "a line a pair: names are not folded"
    assert sorted(path.name for path in out.iterdir()) == [
        "moments.safetensors",
        "report.html",
        "results.json",
        "run.toml",
        "stitch",
    ], "no checkpoint is left"
    arguments = results["arguments"]
    assert (arguments["n_tokens"], arguments["alpha"], arguments["standardize"]) == (
        3000,
        None,
        False,
    ), "JSON values"
    assert (arguments["out"], arguments["target_layers"]) == (str(out), "0,-1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--documents", "nowhere.jsonl"], "no file at 'nowhere.jsonl'"),
        (["--source", "/no/where"], "--source is '/no/where', and no such folder exists; give a"),
        (["--target", "./nowhere"], "--target is './nowhere', and no such folder exists; give a"),
        (["--source-layers", "9"], "layer 9 is not on 'tiny-llama'; it has 3 blocks"),
        (["--device", "cpu", "--device-map", "auto"], "exclude each other"),
    ],
)
def test_errors_are_one_line_and_exit_with_one(
    model_folder: Path,
    corpus: list[str],
    tmp_path: Path,
    capsys: Any,
    arguments: list[str],
    message: str,
) -> None:
    documents = tmp_path / "corpus.txt"
    documents.write_text("\n\n".join(corpus))
    options = [
        "--source",
        str(model_folder),
        "--target",
        str(model_folder),
        "--documents",
        str(documents),
        "--out",
        str(tmp_path / "out"),
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *options, *arguments, "--no-progress"])
    assert stopped.value.code == 1
    assert message in capsys.readouterr().err


def test_an_out_folder_that_cannot_be_written_stops_before_any_work(
    tmp_path: Path, capsys: Any
) -> None:
    blocker = tmp_path / "a-file"
    blocker.write_text("")
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--out", str(blocker / "report")])
    assert stopped.value.code == 1
    assert "cannot write to" in capsys.readouterr().err


def test_ctrl_c_says_so_and_leaves_nothing_half_written(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lrt_lens.demo.run_demo", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 130
    assert list((tmp_path / "out").iterdir()) == []


# -------------------------------------------------------------------------------------------- scale


def test_a_chat_template_that_fails_is_one_line_with_the_row(
    model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('Roles must alternate') }}")
    documents = tmp_path / "chats.jsonl"
    documents.write_text(json.dumps({"messages": [{"role": "user", "content": "hello"}]}))
    models = ["--source", str(folder), "--target", str(folder), "--no-progress"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *models, "--documents", str(documents), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "chats.jsonl, line 1 is a chat with the roles ['user'], and the tokenizer's" in line
    assert "(TemplateError: Roles must alternate); give turns" in line


@pytest.fixture
def fit(model_folder: Path, corpus: list[str], tmp_path: Path) -> Callable[..., Path]:
    """``fit("--seed", "1", out="b")``: ``lrt-lens fit`` of a model to itself; returns --out."""
    documents = tmp_path / "corpus.txt"
    documents.write_text("\n\n".join(corpus))

    def run_fit(*more: str, out: str = "out") -> Path:
        options = [
            "--source",
            str(model_folder),
            "--target",
            str(model_folder),
            "--documents",
            str(documents),
            "--out",
            str(tmp_path / out),
        ]
        main(["fit", *options, "--context-length", "32", "--no-progress", *more])
        return tmp_path / out

    return run_fit


def failure(capsys: Any, call: Callable[..., Any], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        call(*arguments)
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_a_dry_run_says_what_it_would_take_and_loads_and_writes_nothing(
    fit: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lrt_lens.models._pair.ModelPair.load", lambda *_, **__: pytest.fail("a model was loaded")
    )
    out = fit("--dry-run")
    assert not out.exists()
    shown = capsys.readouterr().out
    for item in (
        "moments, largest pass",
        "weights",
        "disk",
        "time per million tokens",
        "12 kept",
        "memory, per process",
    ):
        assert item.replace("12 kept", "12 pairs") in " ".join(shown.split()), item


def test_folds_and_test_groups_are_options_of_a_fit(fit: Any, capsys: Any) -> None:
    import lrt_lens as lrt
    from lrt_lens.data import Parts

    numbers = ["--n-folds", "3", "--n-test-groups", "2"]
    fit("--dry-run", *numbers)
    # Nine pairs, and token identity with each of three targets.
    assert "12 pairs × 5 parts ×" in " ".join(capsys.readouterr().out.split())
    out = fit(*numbers, "--n-tokens", "3000")
    moments = lrt.CrossMoments.load(out / "moments.safetensors")
    assert moments.parts == Parts(n_folds=3, n_test_groups=2)
    [folder] = [path.parent for path in out.rglob("stitch_config.json")]
    assert len(lrt.Stitch.from_pretrained(folder).refits) == 3
    arguments = json.loads((out / "results.json").read_text())["arguments"]
    assert (arguments["n_folds"], arguments["n_test_groups"]) == (3, 2)
    refused = failure(capsys, fit, "--n-folds", "1")
    assert "--n-folds is 1; expected a whole number from 2 to 20" in " ".join(refused.split())


def test_a_survey_writes_scores_of_all_pairs_and_names_the_best(
    model_folder: Path, corpus: list[str], tmp_path: Path, capsys: Any
) -> None:
    import json

    import lrt_lens as lrt

    documents = tmp_path / "corpus.txt"
    documents.write_text("\n\n".join(corpus))
    models = ["--source", str(model_folder), "--target", str(model_folder)]
    options = ["--documents", str(documents), "--context-length", "32", "--no-progress"]
    out = tmp_path / "survey"
    main(["survey", *models, *options, "--out", str(out), "--n-tokens", "3000"])
    assert sorted(path.name for path in out.iterdir()) == [
        "report.html",
        "results.json",
        "run.toml",
        "survey.safetensors",
    ]
    survey = lrt.stitching.Survey.load(out / "survey.safetensors")
    assert len(survey) == 9
    results = json.loads((out / "results.json").read_text())
    assert [row["gain_cv"] for row in results["grid"]] == pytest.approx(
        survey.scores["gain_cv"].tolist()
    )
    shown = capsys.readouterr().out
    source, target = survey.best()[0]
    assert f"--pairs {source}:{target}" in " ".join(shown.split())
    assert "Survey of every layer pair" in (out / "report.html").read_text()
    # Its best pairs can be given to a fit.
    fitted = tmp_path / "fitted"
    pairs = ["--pairs", f"{source}:{target},0:-1"]
    main(["fit", *models, *options, "--out", str(fitted), *pairs])
    grid = json.loads((fitted / "results.json").read_text())["grid"]
    wanted = {(source, target), ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")}
    assert {(row["source_hook"], row["target_hook"]) for row in grid} == wanted


def test_pairs_that_do_not_fit_a_quarter_of_the_memory_are_surveyed_first(
    fit: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import json

    # All nine pairs take 1.1 MB.
    free = "lrt_lens.moments._placement.available_memory"
    monkeypatch.setattr(free, lambda *_: 2_000_000)
    shown = fit("--dry-run") or ""
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("survey of 9 pairs: at least")
    assert "The moments live in memory." in shown
    assert "then exact moments of the best" in shown
    assert "moments, largest pass" in shown
    fit("--dry-run", "--placement", "disk", "--placement-folder", str(tmp_path / "scratch"))
    shown = " ".join(capsys.readouterr().out.split())
    assert "The moments live in a mapped file in" in shown
    assert "moments, their mapped files, and checkpoints" in shown
    out = fit()
    shown = " ".join(capsys.readouterr().out.split())
    assert "all were surveyed on" in shown
    rows = json.loads((out / "results.json").read_text())["grid"]
    exact = [row for row in rows if row["exact"]]
    assert len(rows) == 9
    assert 1 <= len(exact) < 9
    assert {row["solver"] for row in rows if not row["exact"]} == {"ridge, surveyed"}
    assert sorted(path.name for path in out.iterdir()) == [
        "moments.safetensors",
        "report.html",
        "results.json",
        "run.toml",
        "stitch",
        "survey.safetensors",
    ]
    never = fit("--survey", "never", out="never")
    assert all(row["exact"] for row in json.loads((never / "results.json").read_text())["grid"])


def test_a_fit_needs_no_plan(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # A model that transformers cannot build from its config has no plan, and can be fitted.
    plan = "lrt_lens.moments._plan.ModelShape.of_pretrained"
    monkeypatch.setattr(plan, lambda *_: pytest.fail("a plan was made"))
    assert (fit() / "results.json").exists()


def test_a_survey_of_ranks_or_shards_says_how_to_choose_pairs_for_them(
    fit: Any, capsys: Any
) -> None:
    message = "survey first (lrt-lens survey …), and give the best hook pairs as --pairs"
    assert message in failure(capsys, fit, "--survey", "always", "--shard", "0/2")
    assert message in failure(capsys, fit, "--survey", "always", "--pairs", "0:1")
    assert "expected SOURCE:TARGET" in failure(capsys, fit, "--pairs", "0:1,2")


def test_a_memory_budget_makes_passes_that_give_what_one_gives(fit: Any, capsys: Any) -> None:
    import json

    whole = json.loads((fit(out="whole") / "results.json").read_text())
    capsys.readouterr()
    out = fit("--memory-budget", "400KB", out="passes")
    shown = " ".join(capsys.readouterr().out.split())
    assert "pass 1: 3 pairs to blocks.0.hook_resid_post" in shown
    assert "pass 3: 3 pairs to blocks.2.hook_resid_post" in shown
    found = json.loads((out / "results.json").read_text())
    assert [row["target_hook"] for row in found["grid"]] == [
        row["target_hook"] for row in whole["grid"]
    ]
    for ours, theirs in zip(
        [*found["grid"], found["stitch"]], [*whole["grid"], whole["stitch"]], strict=True
    ):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == (
                pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value
            ), name
    names = [f"moments-pass-{k}-of-3.safetensors" for k in (1, 2, 3)]
    assert sorted(path.name for path in out.iterdir()) == [
        *names,
        "report.html",
        "results.json",
        "run.toml",
        "stitch",
    ]


def test_a_budget_that_nothing_fits_is_refused_before_a_model_is_loaded(
    fit: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lrt_lens.models._pair.ModelPair.load", lambda *_, **__: pytest.fail("a model was loaded")
    )
    assert "more than the memory budget of 1 KB; choose 'proportional' layers" in failure(
        capsys, fit, "--memory-budget", "1KB"
    )
    assert "is no amount of memory" in failure(capsys, fit, "--memory-budget", "lots")
    assert "the memory budget needs 3 passes, and --shard takes one" in _last_line(
        capsys, fit, "--memory-budget", "400KB", "--shard", "0/2"
    )


def _last_line(capsys: Any, call: Callable[..., Any], *arguments: str) -> str:
    with pytest.raises(SystemExit):
        call(*arguments)
    return capsys.readouterr().err


def test_an_interrupted_fit_goes_on_and_refuses_other_arguments(
    fit: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrt_lens.moments import CrossMoments

    add_block, calls = CrossMoments.add_block, []

    def add(self: CrossMoments, *arguments: Any, **names: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        add_block(self, *arguments, **names)

    with monkeypatch.context() as patch:
        patch.setattr(CrossMoments, "add_block", add)
        with pytest.raises(SystemExit) as stopped:
            fit()
    assert stopped.value.code == 130
    assert "start the same command again and it resumes" in capsys.readouterr().err
    message = failure(capsys, fit, "--seed", "1")
    assert "seed was 0 and is 1" in message
    assert "another --out, or --restart to begin again" in message
    calls.clear()
    monkeypatch.setattr(
        CrossMoments,
        "add_block",
        lambda self, *rows, **names: (calls.append(1), add_block(self, *rows, **names))[1],
    )
    out = fit()
    resumed = len(calls)
    calls.clear()
    fit(out="again")
    assert resumed == len(calls) - 4
    assert (out / "moments.safetensors").exists()
    assert not (out / "checkpoint").exists()


def test_restart_throws_away_what_was_begun(
    fit: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrt_lens.moments import CrossMoments

    with monkeypatch.context() as patch:
        patch.setattr(
            CrossMoments, "save", lambda *_: (_ for _ in ()).throw(OSError("the disk is full"))
        )
        assert "error: the disk is full" in failure(capsys, fit)
    assert "seed was 0" in failure(capsys, fit, "--seed", "1")
    assert (fit("--seed", "1", "--restart") / "moments.safetensors").exists()


def test_restart_with_several_ranks_is_refused(
    fit: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--restart with 2 ranks" in failure(capsys, fit, "--restart")


def test_a_shard_that_is_none_is_refused(fit: Any, capsys: Any) -> None:
    assert "shard is '2/2'; expected i/N with i from 0 to N - 1" in failure(
        capsys, fit, "--shard", "2/2"
    )


def test_every_remedy_that_the_command_line_translates_is_in_a_message_of_the_package() -> None:
    package = Path(lrt_lens.__file__).parent
    trees = [
        ast.parse(path.read_text()) for path in package.rglob("*.py") if path.parent.name != "cli"
    ]
    # Adjacent literals are one constant; in an f-string, `{…}` stands for what is filled in.
    texts = [
        "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{…}" for part in node.values
        )
        if isinstance(node, ast.JoinedStr)
        else str(node.value)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr | ast.Constant)
    ]
    missing = [remedy for remedy in _OPTIONS_BY_PYTHON if not any(remedy in text for text in texts)]
    assert not missing


def test_export_writes_a_file_for_another_program_and_checks_it(
    model_folder: Path, corpus: list[str], tmp_path: Path, capsys: Any
) -> None:
    import torch

    import lrt_lens as lrt

    model = lrt.HookedModel.load(model_folder)
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    vector = lrt.SteeringVector(direction, "blocks.1.hook_resid_post", model.identity)
    path = str(vector.save(tmp_path / "vector.safetensors"))
    (tmp_path / "neutral.txt").write_text("\n\n".join(corpus[:6]))
    out = tmp_path / "vector.gguf"
    options = ["--model", str(model_folder), "--neutral", str(tmp_path / "neutral.txt")]
    main(["export", path, str(out), "--to", "llama.cpp", "--damage", "0.005", *options, "--check"])
    printed = capsys.readouterr().out
    assert f"llama-server -m model.gguf --control-vector {out}" in printed
    assert "steers as our hook" in printed
    record = json.loads((tmp_path / "vector.gguf.export.json").read_text())
    assert record["strength"]["budget"] == 0.005
    assert record["checks"][0]["passed"]
    for arguments, match in (
        (["--to", "neuronpedia", "--mode", "ablate"], "cannot express mode 'ablate'"),
        (["--to", "llama.cpp", "--check"], "--check needs --model"),
        (["--to", "llama.cpp", "--scale", "nan"], "expected a finite number"),
        (["--to", "llama.cpp", "--damage", "0.1"], "model or neutral is missing"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["export", path, str(tmp_path / "other"), *arguments])
        assert ended.value.code == 1
        assert match in capsys.readouterr().err
    assert not (tmp_path / "other.gguf").exists()


def test_the_formats_of_the_command_are_those_of_the_table() -> None:
    from typing import get_args

    from lrt_lens.cli._export import Format
    from lrt_lens.serving import FORMATS

    assert list(get_args(Format)) == list(FORMATS)
