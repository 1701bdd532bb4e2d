"""Every command: its help, its defaults, what it refuses, and what it recognises."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.probes import ProbeEvaluationSettings, ProbeSettings
from lrt_lens.adapters.saes import RefitSettings, SAEEvaluationSettings
from lrt_lens.adapters.vectors import SteeringSettings
from lrt_lens.bundled import DEMO_FOLDER
from lrt_lens.cli import COMMANDS, main
from lrt_lens.cli._evaluate_stitch import EvaluateStitch
from lrt_lens.stitching import StitchLossSettings

BY_WORDS = {kind.words: kind for kind in COMMANDS}
SETTINGS = {
    "learn probe": ProbeSettings,
    "transfer": RefitSettings,
    "evaluate vector": SteeringSettings,
    "evaluate probe": ProbeEvaluationSettings,
    "evaluate sae": SAEEvaluationSettings,
    "evaluate stitch": StitchLossSettings,
}
"""Settings whose fields the options of a command are."""


# --------------------------------------------------------------------------------------------- help


def test_help_of_every_command_teaches_and_loads_no_torch() -> None:
    code = (
        "import sys\nfrom lrt_lens.cli import COMMANDS, main\n"
        "for kind in COMMANDS:\n    try:\n        main([*kind.words.split(), '--help'])\n"
        "    except SystemExit as ended:\n        assert ended.code == 0\n    print('=====')\n"
        "print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    *pages, last = done.split("=====\n")
    assert last.strip() == "False False"
    for kind, page in zip(COMMANDS, pages, strict=True):
        assert re.search(rf"^    lrt-lens {kind.words} ", page, flags=re.M), kind.words
        assert "--config run.toml" in page
        options = [field.name.replace("_", "-") for field in fields(kind)]
        missing = [name for name in options if name not in page and name.upper() not in page]
        assert not missing, kind.words


def test_help_lists_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for kind in COMMANDS:
        assert f"• {kind.words.split()[0]} " in shown
    for status in ("130 after Ctrl-C", "143 after SIGTERM", "129 if the terminal was closed"):
        assert status in " ".join(shown.split())


@pytest.mark.parametrize("words", SETTINGS)
def test_defaults_are_those_of_the_python_function(words: str) -> None:
    ours = {one.name: one.default for one in fields(BY_WORDS[words])}
    theirs = {one.name: one.default for one in fields(SETTINGS[words])}
    shared = ours.keys() & theirs.keys() - {"name", "task", "routes"}
    assert shared
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    others = [name for name, default in ours.items() if default is MISSING]
    assert not set(others) & theirs.keys()


def test_routes_are_those_of_python_with_another_arrow() -> None:
    ours = [route.replace("->", "→") for route in EvaluateStitch.routes]
    assert ours == list(StitchLossSettings().routes)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_has_every_command(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["completion", shell])
    script = capsys.readouterr().out
    for kind in COMMANDS:
        assert all(re.search(rf"\b{word}\b", script) for word in kind.words.split())
    assert "n-tokens" in script
    program = shutil.which(shell)
    if program is not None:
        (tmp_path / "script").write_text(script)
        subprocess.run([program, "-n", str(tmp_path / "script")], check=True)


# ----------------------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def work(
    model_folder: Path, corpus: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Paths of a stitch of a small model to itself, of artefacts of that model, and of texts."""
    folder = tmp_path_factory.mktemp("work")
    model = lrt.HookedModel.load(model_folder)
    pair = lrt.ModelPair(model, model)
    options = {"source_layers": [1], "target_layers": [1], "n_tokens": 3000, "context_length": 32}
    grid = lrt.fit_stitches(pair, corpus, progress=False, **options)
    grid.best().save_pretrained(folder / "stitch")
    grid.moments.save(folder / "moments.safetensors")
    contrast = lrt.ContrastSet(corpus[:12], corpus[12:24])
    vector = lrt.SteeringVector.mean_difference(model, contrast, at=1, read="mean")
    vector.save(folder / "vector.safetensors")
    vector.export(folder / "foreign.gguf", "llama.cpp", scale=1.0)
    np.save(folder / "direction.npy", vector.direction.numpy())
    np.save(folder / "matrix.npy", np.zeros((3, 4)))
    labels = ["a", "b"] * 12
    probe = lrt.LinearProbe.fit(model, corpus[:24], labels, at=1, read="mean")
    probe.save(folder / "probe.safetensors")
    probe.export(folder / "exported-probe")
    rows = {
        "contrast": [
            {"positive": p, "negative": n} for p, n in zip(corpus[:6], corpus[6:12], strict=True)
        ],
        "labelled": [{"text": t, "label": one} for t, one in zip(corpus[:24], labels, strict=True)],
        "neutral": [{"text": text} for text in corpus[:4]],
        "items": [{"prompt": "the", "positive": " cat", "negative": " dog"}] * 6,
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    (folder / "unlabelled.csv").write_text("sentence,class\nthe cat,a\nthe dog,b\n")
    (folder / "notes.xyz").write_text("nothing")
    (folder / "foreign.json").write_text('{"schema_version": "other/1", "rows": 3}')
    (folder / "newer.json").write_text('{"schema_version": "lrt_lens.unheard/1"}')
    (folder / "config.toml").write_text("n_tokens = 3\n")
    paths = {path.stem if path.is_file() else path.name: str(path) for path in folder.iterdir()}
    exported = {"record": str(folder / "foreign.gguf.export.json")}
    return (
        paths
        | exported
        | {
            "folder": str(folder),
            "stitch": str(folder / "stitch"),
            "foreign": str(folder / "foreign.gguf"),
            "json": str(folder / "foreign.json"),
            "model": str(model_folder),
            "small": str(DEMO_FOLDER / "small"),
            "sae": str(DEMO_FOLDER / "saes" / "small"),
        }
    )


MODELS = "--source {model} --target {model} --no-progress"
REFUSED = [
    ("learn vector nowhere.jsonl --model {model} --at 1", "no file at 'nowhere.jsonl'"),
    ("learn vector {labelled} --model {model} --at 1", "lacks ['positive', 'negative']"),
    ("learn vector {contrast} --model ./nowhere --at 1", "--model is './nowhere', and no such"),
    ("learn vector {contrast} --model {model} --at 9", "it has 3 blocks"),
    ("learn probe {neutral} --model {model} --at 1", "has no labelled row: its columns are"),
    ("learn probe {unlabelled} --label-field class --model {model} --at 1", "lacks ['text']"),
    ("transfer {stitch} nowhere.safetensors", "nowhere.safetensors"),
    ("transfer {vector} {vector}", "is a vector; expected a stitch"),
    ("transfer {stitch} {labelled}", "is documents; expected a steering vector"),
    ("transfer {stitch} {moments}", "is moments; expected a steering vector"),
    ("transfer {stitch} {notes}", "is a file of no known kind"),
    ("transfer {stitch} {direction}", "which does not say where it acts; give --at, such as --at"),
    ("import {direction} --at -1", "counts from the last block; give --model too"),
    ("transfer {stitch} {sae}", "this SAE has width 128; expected 16 dimensions"),
    ("transfer {stitch} {vector} --recentre {neutral}", "needs both models; give --source and"),
    ("transfer {stitch} {vector} --refit {neutral} " + MODELS, "--refit is for an SAE"),
    ("calibrate {probe} --model {model} --neutral {neutral}", "is a probe; expected a steering"),
    ("calibrate {vector} --model {model} --neutral nowhere.txt", "nowhere.txt"),
    ("calibrate {vector} --model {small} --neutral {neutral}", "with config_hash"),
    ("calibrate {vector} --model {model} --neutral {neutral} --damage 0", "--damage is 0.0"),
    (
        "evaluate vector {stitch} {vector} --items {contrast} --neutral {neutral} " + MODELS,
        "lacks ['prompt']",
    ),
    (
        "evaluate vector {stitch} {vector} --items {items} --neutral {neutral} --source {small} "
        "--target {small} --no-progress",
        "the source model is 'small'",
    ),
    ("evaluate probe {stitch} {labelled} --probe {vector} " + MODELS, "expected a linear probe"),
    ("evaluate probe {stitch} {contrast} --recentre nowhere " + MODELS, "nowhere"),
    ("evaluate sae {stitch} {vector} --documents {neutral} " + MODELS, "expected an SAE"),
    ("evaluate stitch {stitch} --documents nowhere.txt " + MODELS, "no file at 'nowhere.txt'"),
    ("evaluate stitch {model} --documents {neutral} " + MODELS, "is a model; expected a stitch"),
    ("import {neutral}", "is of the kind 'documents', which is no vector or probe"),
    ("import {direction}", "holds a tensor alone"),
    ("import {matrix} --at 1 --model {model}", "matrix.npy"),
    ("import {foreign} --model {small}", "small"),
    ("report {folder}", "no results at"),
    ("report {json}", "has the schema 'other/1'; expected 'lrt_lens.results/1'"),
    ("report", "no results are given"),
    ("export {probe} mood.gguf --to llama.cpp", "is a probe; expected a steering vector"),
    ("inspect nowhere", "no file or folder at 'nowhere'"),
    ("inspect {notes}", "is a file of no known kind"),
    ("inspect {newer}", "is a file of the schema 'lrt_lens.unheard/1'"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=lambda text: str(text)[:50])
def test_wrong_input_is_one_line_with_status_one_and_writes_nothing(
    line: str,
    message: str,
    work: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(line.format(**work).split())
    assert stopped.value.code == 1
    shown = capsys.readouterr()
    [last] = [row for row in shown.err.splitlines() if row.startswith("error: ")]
    assert message in last
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


NUMBERS = [
    (kind.words, field.name)
    for kind in COMMANDS
    for field in fields(kind)
    if kind.words in ("learn vector", "learn probe", "transfer", "calibrate")
    or kind.words.startswith("evaluate")
    if field.type in (int, float, float | None) and field.name != "level"
]
LINES = {
    "learn vector": "{contrast} --model {model} --at 1",
    "learn probe": "{labelled} --model {model} --at 1",
    "transfer": "{stitch} {vector}",
    "calibrate": "{vector} --model {model} --neutral {neutral}",
    "evaluate vector": "{stitch} {vector} --items {items} --neutral {neutral} " + MODELS,
    "evaluate probe": "{stitch} {labelled} " + MODELS,
    "evaluate sae": "{stitch} {sae} --documents {neutral} " + MODELS,
    "evaluate stitch": "{stitch} --documents {neutral} " + MODELS,
}
"""Command lines whose options are good."""


@pytest.mark.parametrize(("words", "name"), NUMBERS)
def test_a_bad_number_is_refused_before_a_model_is_loaded(
    words: str,
    name: str,
    work: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr("lrt_lens.models._hooked_model.HookedModel.load", load)
    monkeypatch.chdir(tmp_path)
    for value in ("-1", "nan", "inf", "x", "", "9" * 400):
        option = f"--{name.replace('_', '-')}={value}"
        with pytest.raises(SystemExit) as stopped:
            main([*words.split(), *LINES[words].format(**work).split(), option])
        assert stopped.value.code in (1, 2), value
        shown = capsys.readouterr().err
        if stopped.value.code == 1:
            assert shown.startswith(f"error: --{name.replace('_', '-')} is ")
    assert list(tmp_path.iterdir()) == []


def test_every_option_that_is_a_number_is_tried() -> None:
    tried = set(NUMBERS)
    assert len(tried) >= 28
    assert {("calibrate", "tolerance"), ("evaluate vector", "n_random")} <= tried
    assert {("evaluate probe", "test_share"), ("calibrate", "first_guess")} <= tried


def test_a_vector_of_somebody_else_is_not_replaced(
    work: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vector.safetensors").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        main(["transfer", work["stitch"], work["vector"], "--out", str(tmp_path)])
    assert "vector.safetensors' was not written by lrt-lens" in capsys.readouterr().err
    assert (tmp_path / "vector.safetensors").read_bytes() == b"mine"


def test_a_run_may_be_repeated_into_its_own_folder(
    work: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["transfer", work["stitch"], work["vector"], "--out", str(tmp_path)]
    main(words)
    main(words)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["report.html", "results.json", "run.toml", "vector.safetensors"]


def test_the_results_of_another_command_are_not_replaced(
    work: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    main(["transfer", work["stitch"], work["vector"], "--out", str(out)])
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for words in (
        ["report", str(out)],
        ["learn", "vector", work["contrast"], "--model", work["model"], "--at", "1"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--out", str(out)])
        assert ended.value.code == 1
        assert "holds the results of lrt-lens transfer, and" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_four_evaluations_have_folders_of_their_own() -> None:
    folders = [
        next(field.default for field in fields(kind) if field.name == "out")
        for kind in COMMANDS
        if kind.words.startswith("evaluate ")
    ]
    assert len(folders) == len(set(folders)) == 4


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"lrt-lens {lrt.__version__}\n"


def test_a_page_shows_facts_in_few_digits() -> None:
    from lrt_lens.cli._sections import run_page

    facts = {"solver": "ridge", "n_tokens": 17222.0, "r2": 0.46219165232211246, "shape": [2, 3]}
    page = run_page("A fit", {"stitch": facts})
    for shown in ("ridge", "17,222", "0.462", "[2, 3]"):
        assert f">{shown}</td>" in page


def test_a_report_of_something_else_names_the_folder_of_its_run(
    work: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["report", work["vector"]])
    assert "holds no results of a run (it is no JSON); give the folder" in capsys.readouterr().err


# ------------------------------------------------------------------------------ what they recognise


@pytest.fixture
def inspected(work: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``inspected("stitch")``: what `lrt-lens inspect` says, in one line."""

    def inspect(name: str) -> str:
        main(["inspect", work.get(name, name)])
        return " ".join(capsys.readouterr().out.split())

    return inspect


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stitch", "kind stitch source tiny-llama (3 blocks, 16 dimensions)"),
        ("stitch", "next: lrt-lens learn vector CONTRAST --model tiny-llama --at blocks.1"),
        ("moments", "kind moments"),
        ("moments", "hook points 1.post → 1.post n tokens"),
        ("vector", "kind steering vector name contrast hook point blocks.1.hook_resid_post"),
        ("vector", "shape [16]"),
        ("probe", "kind linear probe"),
        ("exported-probe", "classes a, b"),
        ("foreign", "format llama.cpp hook points blocks.1.hook_resid_post vectors 1"),
        ("direction", "kind tensor alone, which does not say where it acts"),
        ("record", "kind record of an exported file format llama.cpp"),
        ("sae", "kind SAE of SAELens hook point blocks.2.hook_resid_post model small"),
        ("model", "kind Hugging Face model architecture LlamaForCausalLM blocks 3"),
        ("contrast", "kind contrast set columns positive, negative"),
        ("labelled", "kind labelled texts"),
        ("items", "kind choice items"),
        ("neutral", "kind documents columns text"),
    ],
)
def test_inspect_says_what_a_path_is(name: str, words: str, inspected: Callable[..., str]) -> None:
    assert words in inspected(name)


def test_inspect_knows_a_run_its_options_and_its_results(
    work: dict[str, str], tmp_path: Path, inspected: Callable[..., str]
) -> None:
    main(["transfer", work["stitch"], work["vector"], "--out", str(tmp_path / "run")])
    shown = inspected(str(tmp_path / "run"))
    assert "kind folder of a run command lrt-lens transfer" in shown
    assert "transferred from tiny-llama, blocks.1.hook_resid_post, fitted on" in shown
    assert "next: lrt-lens calibrate" in shown
    assert "kind options of a run command lrt-lens transfer" in inspected(
        str(tmp_path / "run" / "run.toml")
    )
    assert "kind results of a run" in inspected(str(tmp_path / "run" / "results.json"))


def test_inspect_knows_what_a_harvest_writes(
    pair: lrt.ModelPair, corpus: list[str], tmp_path: Path, inspected: Callable[..., str]
) -> None:
    options = {"source_layers": [1], "target_layers": [1, 2], "n_tokens": 2000}
    options |= {"context_length": 32, "progress": False}
    lrt.harvest(pair, corpus, checkpoint=tmp_path / "checkpoint", **options)
    assert "kind checkpoint of a harvest" in inspected(str(tmp_path / "checkpoint"))
    lrt.survey(pair, corpus, **options).save(tmp_path / "survey.safetensors")
    shown = inspected(str(tmp_path / "survey.safetensors"))
    assert re.search(r"kind survey .* hook pairs 2 .* n tokens [12],", shown)
    assert "next: lrt-lens fit … --pairs" in shown
    rows = np.random.default_rng(0).normal(size=(2, 40, 6)).astype("float32")
    cache = lrt.moments.ActivationCache.create(tmp_path / "cache", dtype="float32")
    cache.add(torch.from_numpy(rows[0]), torch.from_numpy(rows[1]), documents=range(40))
    cache.close()
    assert "kind activation cache" in inspected(str(tmp_path / "cache"))


def test_transfer_recognises_a_vector_a_probe_and_a_file_of_another_program(
    work: dict[str, str], tmp_path: Path
) -> None:
    expected = lrt.Stitch.from_pretrained(work["stitch"]).transfer(
        lrt.SteeringVector.load(work["vector"])
    )
    for name in ("vector", "foreign", "probe", "exported-probe"):
        main(["transfer", work["stitch"], work[name], "--out", str(tmp_path / name)])
    for name in ("vector", "foreign"):
        vector = lrt.SteeringVector.load(tmp_path / name / "vector.safetensors")
        assert np.allclose(vector.direction, expected.direction, atol=1e-6)
    for name in ("probe", "exported-probe"):
        assert lrt.LinearProbe.load(tmp_path / name / "probe.safetensors").transferred


def test_import_writes_one_file_per_vector(work: dict[str, str], tmp_path: Path) -> None:
    vector = lrt.SteeringVector.load(work["vector"])
    other = lrt.SteeringVector(vector.direction, "blocks.2.hook_resid_post", vector.model)
    lrt.serving.export_vectors([vector, other], tmp_path / "two.gguf", "llama.cpp", scale=1.0)
    main(["import", str(tmp_path / "two.gguf"), "--out", str(tmp_path / "two")])
    files = sorted((tmp_path / "two").glob("*.safetensors"))
    hooks = [lrt.SteeringVector.load(path).hook for path in files]
    assert hooks == ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
    options = ["--at", "2", "--out", str(tmp_path / "one")]
    main(["import", str(tmp_path / "two.gguf"), *options])
    assert lrt.SteeringVector.load(tmp_path / "one" / "vector.safetensors").hook == hooks[1]


def test_a_damage_that_no_scale_reaches_is_reported_and_writes_no_vector(
    work: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--neutral", work["neutral"], "--damage", "500", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", work["vector"], "--model", work["model"], *options])
    assert stopped.value.code == 1
    assert "no scale costs 500 nats per token" in capsys.readouterr().err
    assert not (tmp_path / "vector.safetensors").exists()
    assert json.loads((tmp_path / "results.json").read_text())["calibration_curve"]


def test_a_report_names_runs_of_equal_folders_by_their_paths(
    work: dict[str, str], tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        out = str(tmp_path / folder / "run")
        main(["transfer", work["stitch"], work["vector"], "--out", out])
    runs = [str(tmp_path / folder / "run") for folder in ("a", "b")]
    main(["report", runs[0], f"{runs[1]}/results.json", "--out", str(tmp_path / "page")])
    page = (tmp_path / "page" / "report.html").read_text()
    assert f"{runs[0]}: What was written" in page
    assert f"{runs[1]}: What was written" in page


def test_transfer_goes_back_through_the_reversed_stitch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 4))
    y = np.hstack([x, x[:, :2] ** 2]) + 0.1 * rng.normal(size=(900, 6))
    documents = [number // 5 for number in range(900)]
    moments = lrt.CrossMoments.from_activations({0: x}, {1: y}, documents=documents)
    stitch = moments.fit().best()
    stitch.save_pretrained(tmp_path / "stitch")
    np.save(tmp_path / "direction.npy", rng.normal(size=6))
    words = ["transfer", str(tmp_path / "stitch"), str(tmp_path / "direction.npy"), "--at", "1"]
    with pytest.raises(SystemExit):
        main([*words, "--out", str(tmp_path / "back")])
    assert "lrt-lens transfer --reverse goes the other way" in capsys.readouterr().err
    main([*words, "--reverse", "--out", str(tmp_path / "back")])
    back = lrt.SteeringVector.load(tmp_path / "back" / "vector.safetensors")
    given = lrt.SteeringVector.load(tmp_path / "direction.npy", at=1)
    assert back.hook == stitch.source_hook
    assert np.allclose(back.direction, stitch.reversed().transfer(given).direction)


def test_an_sae_is_named_by_its_release_or_by_a_folder_of_several(
    work: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens import SAE

    from lrt_lens.cli._artefacts import load_artefact

    folder = Path(work["sae"])
    own = load_artefact(str(folder))
    assert load_artefact(str(folder.parent), sae_id=folder.name).W_dec.equal(own.W_dec)
    asked = []

    def from_pretrained(release: str, sae_id: str, device: str) -> Any:
        asked.append((release, sae_id, device))
        return SAE.load_from_disk(folder, device=device)

    monkeypatch.setattr(SAE, "from_pretrained", from_pretrained)
    loaded = load_artefact("some-release", sae_id="blocks.2.hook_resid_post")
    assert asked == [("some-release", "blocks.2.hook_resid_post", "cpu")]
    assert loaded.W_dec.equal(own.W_dec)
    assert not loaded.W_dec.requires_grad


def test_a_release_that_cannot_be_had_is_one_line_with_a_remedy(
    work: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sae_lens import SAE

    for raised, expected in (
        (
            FileNotFoundError("No connection. Try again."),
            "cannot be reached (No connection); check",
        ),
        (ValueError("Release x not found"), "SAELens has no SAE 'b' of 'x' (Release x not found)"),
    ):

        def refuse(*_: Any, raised: Exception = raised, **__: Any) -> None:
            raise raised

        monkeypatch.setattr(SAE, "from_pretrained", refuse)
        with pytest.raises(SystemExit) as ended:
            main(["transfer", work["stitch"], "x", "--sae-id", "b", "--out", str(tmp_path / "run")])
        assert ended.value.code == 1
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("is_run", [False, True], ids=["file", "folder of a run"])
def test_export_takes_a_vector_that_was_only_learnt(
    is_run: bool, work: dict[str, str], tmp_path: Path
) -> None:
    path, out = work["vector"], tmp_path / "vector.gguf"
    if is_run:
        path = str(tmp_path / "learnt")
        main(["transfer", work["stitch"], work["vector"], "--out", path])
    main(["export", path, str(out), "--to", "llama.cpp"])
    [read] = lrt.serving.import_vectors(out)
    file = Path(path) / "vector.safetensors" if is_run else Path(path)
    assert np.allclose(read.direction, lrt.SteeringVector.load(file).direction, atol=1e-5)


def test_inspect_knows_folders_that_are_not_complete(
    work: dict[str, str],
    corpus: list[str],
    tmp_path: Path,
    inspected: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text("\n".join(json.dumps({"text": text}) for text in corpus))
    options = ["--source", work["model"], "--target", work["model"], "--no-progress"]
    options += ["--documents", str(documents), "--n-tokens", "1500", "--context-length", "16"]
    main(["fit", *options, "--shard", "0/2", "--out", str(tmp_path / "shards")])
    capsys.readouterr()
    shown = inspected(str(tmp_path / "shards"))
    assert "kind shards of a fit" in shown
    assert f"next: lrt-lens merge OUT {tmp_path}/shards/moments-*.safetensors" in shown
    (tmp_path / "stopped" / "checkpoint").mkdir(parents=True)
    (tmp_path / "stopped" / "checkpoint" / "run.safetensors").touch()
    assert "kind folder of a run that is not complete" in inspected(str(tmp_path / "stopped"))


def test_inspect_takes_no_mixture_and_no_part_for_documents(
    work: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed" / "model").mkdir(parents=True)
    (tmp_path / "mixed" / "notes.txt").write_text("a note")
    (tmp_path / "short.gguf").write_bytes(b"GGUF")
    for path, expected in (
        (tmp_path / "empty", "is an empty folder"),
        (tmp_path / "mixed", "(it holds model, notes.txt)"),
        (tmp_path / "short.gguf", "is a truncated GGUF file"),
        (Path(work["sae"]) / "cfg.json", f"lrt-lens inspect {work['sae']} describes it"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["inspect", str(path)])
        assert ended.value.code == 1
        assert expected in capsys.readouterr().err
