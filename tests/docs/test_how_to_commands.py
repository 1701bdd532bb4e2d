"""The commands on the how-to pages run, each page after those of the page on the command line."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lrt_lens as lrt
from lrt_lens.bundled import DEMO_FOLDER
from lrt_lens.cli import main
from tests.docs.conftest import DOCS

BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```bash\n(.*?)^```$", flags=re.S | re.M)
FIRST = DOCS / "how-to" / "command_line.md"


def commands(page: Path) -> list[list[str]]:
    """Return the words of each command of ours in the blocks of a page that are run."""
    text = page.read_text(encoding="utf-8")
    blocks = "".join(code for skip, code in BLOCK.findall(text) if not skip)
    lines = blocks.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("lrt-lens ")]


PAGES = [page for page in sorted((DOCS / "how-to").glob("*.md")) if commands(page)]


@pytest.fixture(scope="session")
def first_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages name, after the commands of the first page."""
    folder = tmp_path_factory.mktemp("commands")
    for name, place in {"small": "small", "large": "large", "sae-small": "saes/small"}.items():
        (folder / name).symlink_to(DEMO_FOLDER / place)
    contrast, items = lrt.demo_contrast("sentiment"), lrt.demo_items("sentiment")
    sides = {"positive": contrast.positive, "negative": contrast.negative}
    columns = {"prompt": items.prompts, "positive": items.positive, "negative": items.negative}
    files = {
        "documents": pd.DataFrame({"text": lrt.demo_documents()[:150]}),
        "neutral": pd.DataFrame({"text": lrt.demo_neutral()[:12]}),
        "contrast": pd.DataFrame(sides),
        "items": pd.DataFrame(columns).head(12),
    }
    for name, frame in files.items():
        rows = map(json.dumps, frame.to_dict("records"))
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    texts, labels = lrt.demo_texts("register", n=120)
    pd.DataFrame({"text": texts, "label": labels}).to_csv(folder / "labelled.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in commands(FIRST):
            main([*words, "--no-progress"] if words[0] == "fit" else words)
        vector = lrt.SteeringVector.load("learnt/vector.safetensors")
        np.save("direction.npy", vector.direction.numpy())
    return folder


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.xdist_group("commands of the pages")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(
    page: Path, first_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page == FIRST:
        assert (first_folder / "report" / "report.html").exists()
        return
    folder = shutil.copytree(first_folder, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(folder)
    for words in commands(page):
        main(words)


def test_the_file_of_options_on_the_page_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", FIRST.read_text(encoding="utf-8"), re.S | re.M)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(text)
    for name in ("small", "large"):
        (tmp_path / name).symlink_to(DEMO_FOLDER / name)
    main(["fit", "--config", "run.toml", "--dry-run"])
    assert "small → large" in capsys.readouterr().out
    # A path of a file that is not there is the first thing that the command looks at.
    with pytest.raises(SystemExit) as stopped:
        main(["learn", "vector", "nowhere.jsonl", "--config", "run.toml"])
    assert stopped.value.code == 1
    assert "no file at 'nowhere.jsonl'" in capsys.readouterr().err


def test_the_pages_that_show_an_artefact_show_its_commands() -> None:
    shown = {page.stem: {" ".join(words[:2]) for words in commands(page)} for page in PAGES}
    assert {"learn vector", "transfer stitches"} <= shown["move_a_vector"]
    assert {"learn probe", "evaluate probe"} <= shown["move_a_probe"]
    assert {"evaluate sae", "transfer stitches"} <= shown["move_an_sae"]
    assert {"pick_the_strength", "serve_a_vector", "bring_a_vector", "choose_layers"} <= set(shown)
