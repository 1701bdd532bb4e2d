"""The tutorials: their form (quick), and that they run and show what their prose says (slow).

`make docs` also runs every notebook; ``LRT_LENS_TUTORIALS_RAN=1`` then skips the slow test here.
"""

import ast
import inspect
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lrt_lens

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
NAMES = (
    "1_first_stitch",
    "2_steering",
    "3_probes",
    "4_saes",
    "5_tokenizers",
    "6_evidence",
    "7_serving",
    "8_updates",
    "9_what_changed",
)
NEEDS_SAE_LENS = ("4_saes",)
QUICK_START = FOLDER.parent / "quick_start.py"
FIGURES = r"\.figure\(|\.plot\(|px\.\w+\("
ABSOLUTE = r"""(?<![\w.])(?:/(?:home|root|tmp|usr|opt|mnt|work|Users|content)/|file:|[A-Za-z]:\\)"""

CLAIMS = {
    "1_first_stitch": """
        first = "blocks.0.hook_resid_post"
        layers = grid.scores[grid.scores["source_hook"] == stitch.source_hook]
        layers = layers.set_index("target_hook")
        assert layers["r2_uniform"].idxmax() == first
        assert abs(layers.loc[first, "r2_uniform"] - layers.loc[first, "r2_uniform_token"]) < 0.03
        assert stitch.target_hook != first and abs(layers["r2_null"]).max() < 0.05
        assert 0.5 < transferred.cosine(native) < 0.8
        assert down.scores["r2_uniform"] > stitch.scores["r2_uniform"]
        assert from_large.cosine(vector) > transferred.cosine(native)
    """,
    "2_steering": """
        arms = result.summary.set_index("arm")
        transferred_arm = arms.loc["transferred"]
        assert 0.55 < transferred_arm["fraction_of_native"] < 0.8
        assert transferred_arm["low"] > 0 > transferred_arm["negated_high"]
        controls = arms.loc[["shuffled", "permuted", "random"]]
        assert (controls["low"] < 0).all() and (controls["high"] > 0).all()
        assert (transferred_arm["effect_mean"] > 2 * controls["typical_size"]).all()
        assert fidelity.random_low < fidelity.value < fidelity.random_high
        assert mood_result.summary.set_index("arm").loc["transferred", "fraction_of_native"] > 0.85
    """,
    "3_probes": """
        arms = register.table[register.table["k"].isin([0, 280])].set_index("arm")
        assert arms.loc["transferred", "accuracy"] > 0.93
        assert arms.loc["native", "accuracy"] - arms.loc["transferred", "accuracy"] < 0.04
        assert arms.loc["transferred", "low"] > arms.loc["shuffled", "high"]
        numbers = arms[["accuracy", "auroc"]]
        ahead = numbers.loc["transferred"] - numbers.loc["token_identity"]
        assert 0 < ahead["accuracy"] < 0.04 and 0 < ahead["auroc"] < 0.03
        assert arms.loc["random", "low"] < 0.15 and arms.loc["random", "high"] > 0.85
        arms = sentiment.table[sentiment.table["k"].isin([0, 280])].set_index("arm")
        assert arms.loc["transferred", "low"] > 0.5
        assert arms.loc["transferred", "accuracy"] > arms.loc["shuffled", "high"]
        assert arms.loc["token_identity", "auroc"] > arms.loc["transferred", "auroc"] + 0.05
        assert abs(arms.loc["token_identity", "auroc"] - arms.loc["native", "auroc"]) < 0.06
        curve = few.pivot(index="k", columns="arm", values="accuracy")
        assert curve.loc[10, "fine_tuned"] > curve.loc[10, "scratch"] + 0.05
        assert abs(curve.loc[100, "fine_tuned"] - curve.loc[100, "scratch"]) < 0.06
    """,
    "4_saes": """
        arms = result.table.set_index("arm")
        assert arms.loc["native", "fvu"] < 0.25
        assert 0.5 < arms.loc["transferred", "fvu"] < arms.loc["random", "fvu"] - 0.1
        assert 0.4 < arms.loc["random", "ce_recovered"] < 0.6
        arms = study.summary.set_index("arm")
        assert arms.loc["transferred", "token_share"] < 0.6
        assert arms.loc["transferred", "final"] > arms.loc["scratch", "final"]
        assert arms.loc["rotated", "final"] < arms.loc["scratch", "final"]
        assert arms.loc["rotated", "initial"] < arms.loc["transferred", "initial"]
        assert error < 1e-4
    """,
    "5_tokenizers": """
        assert two.aligned and 0.8 < second < 0.99 < first
        bits = [bits_per_byte(model, lrt.demo_neutral()[:40]) for model in (pair.target, foreign)]
        assert bits[0] < bits[1]
        r2 = {name: stitch.scores["r2_uniform"] for name, stitch in stitches.items()}
        assert 0 < r2["one tokenizer"] - r2["two tokenizers"] < 0.12
        scores = stitches["two tokenizers"].scores
        assert scores["r2_uniform"] > scores["r2_uniform_token"]
        assert transferred.cosine(native) > 0.4
    """,
    "6_evidence": """
        inside, outside = curve.set_index("n")["in sample"], curve.set_index("n")["held out"]
        assert (inside.loc[:96] > 0.999).all() and (outside < 0).all() and inside.loc[160] < 0.999
        found = interpolation.summary
        few = found[(found["n_over_d"] < 1)]
        assert (few.loc[few["arm"].isin(["own", "noise_source"]), "cosine"] > 0.999).all()
        assert (few.loc[few["arm"] == "other", "cosine"] < 0.8).all()
        assert stitch.target_hook != "blocks.0.hook_resid_post"
        arms = result.summary.set_index("arm")
        effect = arms.loc["transferred", "effect_at_equal_damage"]
        assert effect > 2 * arms.loc["random", "typical_size"]
    """,
    "7_serving": """
        assert (steered - from_file).abs().max() < 1e-4
        assert (steered - states["plain"]).abs().max() > 1
        assert check.passed and check.table["difference"].max() < 1e-4
        assert check.table[["before", "after"]].to_numpy().min() > 0.5
        assert (changes["skipping four"][:4] == 0).all() and (changes["every"] > 1).all()
        assert (served - hooked).abs().max() < 1e-4
        assert (hooked - pair.target.logits([text])).abs().max() > 0.5
        assert abs(classified - read).max() < 1e-6
        assert moved.cosine(stitch.transfer(learnt)) > 0.99999
        own_scores = own.scores.set_index("target_hook")
        assert own_scores["r2_uniform"].min() > own_scores["r2_null"].max() + 0.2
        assert cosine.median() > 0.98
        assert bare.hook == "blocks.3.hook_resid_post" and 0.8 < bare.cosine(there) < 0.99
    """,
    "8_updates": """
        assert (predicted.summary["verdict"] != "keep").all()
        assert (predicted.summary["kept"] < 0.9).all()
        arms = means["value"]
        assert arms["old"] - arms["frozen"] > 0.08
        assert arms["distilled"] - arms["frozen"] > 0.05
        assert abs(arms["distilled"] - arms["relearnt"]) < 0.03
        rows = report.table[report.table["arm"] == "shuffled"]
        assert abs(rows["value"].mean() - 0.5) < 0.1
        alarms = means["false_positives_at_0.05"]
        assert 0.5 < alarms["frozen"] < 0.8 and alarms["mean_shift"] < 0.3
        assert set(rounded.summary["verdict"]) == {"keep"}
        assert rounded.summary["kept"].min() > 0.995
    """,
    "9_what_changed": """
        own = ("gained", "lost", "difference")
        assert [result.n_above_noise(kind) for kind in own] == [10, 10, 10]
        assert not any(itself.n_above_noise(kind) for kind in (*own, "shift"))
        assert itself.n_above_noise("shared") == 10
        assert (first.loc[[*own], "unexplained"] < 0.25).all()
        raised = {word.strip("' ") for word in reading["shift", 1].raises}
        assert len(raised & {"happ", "happy", "joy", "warm", "hearts", "smile"}) >= 2
        assert change["fine-tuned"] > change["base + shift"] > 0.3
        size = effects.groupby("direction")["change"].agg(lambda column: column.abs().max())
        assert size["shift"] > size["random"] + 0.05
        assert max(size["difference"], size["gained"]) < size["random"]
        assert shift.cosine(opposite) > 0.4
        assert solved["negative shift"] < -0.2
        assert solved["their difference"] > 1.5 * solved["shift"]
    """,
}
"""Statements of the text as assertions, which run in the kernel of the notebook, at the end."""


def _notebook(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def _cells(name: str, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in _notebook(name)["cells"] if cell["cell_type"] == kind]


def _text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# --------------------------------------------------------------------------------------------- form


def test_the_folder_holds_these_notebooks() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


def test_a_notebook_is_committed_without_what_running_it_leaves(name: str) -> None:
    notebook = _notebook(name)
    for cell in _cells(name, "code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None), (
            f"{cell['id']}: clear the outputs before you commit"
        )
        assert cell["metadata"].keys() <= {"jupyter", "tags"}
    assert notebook["metadata"] == {
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert text == json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n", (
        "keys sorted, indented by one: small diffs"
    )


def test_cells_have_names_that_say_what_they_are(name: str) -> None:
    ids = [cell["id"] for cell in _notebook(name)["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*", one) for one in ids)


def test_a_notebook_is_valid(name: str) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))


def test_no_path_of_anybodys_machine(name: str) -> None:
    found = [
        match for cell in _notebook(name)["cells"] for match in re.findall(ABSOLUTE, _text(cell))
    ]
    assert not found


def test_links_between_notebooks_lead_somewhere(name: str) -> None:
    links = [
        link
        for cell in _cells(name, "markdown")
        for link in re.findall(r"\]\(([^)#\s]+)", _text(cell))
        if "://" not in link
    ]
    assert all((FOLDER / link).resolve().is_file() for link in links), links


def test_the_first_cell_imports_and_sets_the_seed(name: str) -> None:
    first, second, *_ = [ast.parse(_text(cell)).body for cell in _cells(name, "code")]
    assert isinstance(first[0], ast.Import | ast.ImportFrom)
    kinds = [isinstance(statement, ast.Import | ast.ImportFrom) for statement in first]
    assert kinds == sorted(kinds, reverse=True), "imports come first"
    assert "import lrt_lens as lrt" in [ast.unparse(statement) for statement in first]
    seeded = second if name == "1_first_stitch" else first  # its first cell is the quick start
    assert "SEED = 0" in [ast.unparse(statement) for statement in seeded]


def test_the_first_notebook_begins_with_the_quick_start() -> None:
    first = _text(_cells("1_first_stitch", "code")[0])
    assert first == QUICK_START.read_text(encoding="utf-8").rstrip("\n")


def test_whatever_takes_a_seed_gets_it(name: str) -> None:
    quick_start = QUICK_START.read_text(encoding="utf-8").rstrip("\n")
    for cell in _cells(name, "code"):
        if _text(cell) == quick_start:
            continue  # it uses the default seed, as it does in the README
        for call in _calls(ast.parse(_text(cell))):
            keywords = {keyword.arg for keyword in call.keywords}
            called = ast.unparse(call.func)
            if re.fullmatch(r"torch\.rand\w*", called):
                assert "generator" in keywords, f"{cell['id']}: {called} without a generator"
            elif called.startswith("lrt.") and "seed" in _parameters(called):
                assert "seed" in keywords or None in keywords, (
                    f"{cell['id']}: {called} without seed=SEED"
                )
        if "options = {" in _text(cell):
            assert '"seed": SEED' in _text(cell)


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _parameters(called: str) -> set[str]:
    found: Any = lrt_lens
    for part in called.split(".")[1:]:
        found = getattr(found, part)
    return set(inspect.signature(found).parameters)


def test_a_cell_makes_one_claim(name: str) -> None:
    long = {
        cell["id"]: len(_text(cell).splitlines())
        for cell in _cells(name, "code")
        if len(_text(cell).splitlines()) > 20
    }
    assert not long
    wordy = {
        cell["id"]: len(_text(cell).split())
        for cell in _cells(name, "markdown")
        if len(_text(cell).split()) > 130
    }
    assert not wordy
    assert sum(bool(re.search(FIGURES, _text(cell))) for cell in _cells(name, "code")) >= 2, (
        "a figure after the number"
    )


def test_a_notebook_ends_with_an_exercise_whose_solution_is_folded(name: str) -> None:
    *_, exercise, solution = _notebook(name)["cells"]
    assert [exercise["cell_type"], solution["cell_type"]] == ["markdown", "code"]
    assert _text(exercise).startswith("## Exercise\n")
    assert solution["metadata"] == {"jupyter": {"source_hidden": True}, "tags": ["hide-cell"]}


# ------------------------------------------------------------------------------------------ running


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("LRT_LENS_TUTORIALS_RAN") == "1",
    reason="the documentation's build has run the tutorials",
)
def test_a_notebook_runs_and_shows_what_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    if name in NEEDS_SAE_LENS:
        pytest.importorskip("sae_lens", exc_type=ImportError)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(inspect.cleandoc(CLAIMS[name])))
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [key for output in outputs for key in output.get("data", {})]
    assert shown.count("application/vnd.plotly.v1+json") >= 2
    assert "application/vnd.jupyter.widget-view+json" not in shown, (
        "a progress bar stays in the page: progress=False"
    )
    assert not list(tmp_path.iterdir()), "a tutorial leaves no file behind"
