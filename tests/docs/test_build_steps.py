"""The extensions of Sphinx in docs/_ext: pages from data, local inventories, clear errors."""

import importlib.util
import json
import re
import subprocess
import sys
import zlib
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from lrt_lens.cli import COMMANDS
from tests.docs.conftest import DOCS, ROOT


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def extension(name: str) -> ModuleType:
    pytest.importorskip("sphinx", reason="sphinx is not installed: `make docs-check` brings it")
    return load(DOCS / "_ext" / f"{name}.py")


def test_drawings_are_what_their_script_draws() -> None:
    draw = load(DOCS / "images" / "concepts" / "draw.py")
    for stem, drawing in draw.DRAWINGS.items():
        assert (DOCS / "images" / "concepts" / f"{stem}.svg").read_text(
            encoding="utf-8"
        ) == drawing(), "run docs/images/concepts/draw.py"


def test_relative_links_of_all_pages_lead_to_files() -> None:
    pages = [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md"]
    broken = []
    for page in pages:
        prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", prose):
            generated = target.endswith(("reference/index.md", "reference/command_line.md"))
            if "://" not in target and not generated and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} → {target}")
    assert broken == []


def test_every_public_name_is_on_one_page_of_the_reference() -> None:
    reference = extension("reference")
    pages = "\n".join(reference.pages().values())
    shown = re.findall(r"^\.\. auto(?:class|function|exception|data):: (\w+)$", pages, flags=re.M)
    listed = [name for names in reference.public_names().values() for name in names]
    assert sorted(shown) == sorted(listed)
    assert {"fit_stitches", "Stitch", "SAERows", "HookPointError"} <= set(shown)


def test_the_reference_has_every_command_with_all_options_described() -> None:
    page = extension("command_line").command_line_page()
    for kind in COMMANDS:
        start = page.index(f"\n## lrt-lens {kind.words}\n")
        section = page[start + 1 :].partition("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        assert len(rows) == len(fields(kind)), kind.words
        assert all(re.search(r" \| \S[^|]* \|$", row.replace("\\|", "")) for row in rows)
        assert f"```bash\nlrt-lens {kind.words}" in section
    assert "| `--damage` | a number | `0.1` |" in page


def test_array_annotations_lose_their_module() -> None:
    assert (
        extension("reference").shorten("(x: ~jaxtyping.Float[Tensor, 'token d'])")
        == "(x: Float[Tensor, 'token d'])"
    )


def test_the_performance_table_has_every_measured_ratio() -> None:
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    rows = extension("performance").table(results).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [entry["name"] for entry in results["benchmarks"]]
    missed = [entry["name"] for entry in results["benchmarks"] if not entry["met"]]
    assert [row.split("`")[1] for row in rows if "**no**" in row] == missed


def test_figures_cannot_end_their_script() -> None:
    html = extension("plotly_figures").figure_html('{"title": "</script><b>"}')
    assert html.count("</script>") == 1
    assert json.loads(re.search(r"json\">(.*?)</script>", html)[1]) == {"title": "</script><b>"}  # type: ignore[index]


def test_links_of_an_included_page_point_where_they_pointed() -> None:
    moved = extension("gallery").moved
    unchanged = "[d](https://e.org) [f](#g)"
    text = f'[a](x.py) ![b](../docs/images/b.png) <img src="../docs/images/c.png"> {unchanged}'
    expected = (
        f'[a](../../examples/x.py) ![b](../images/b.png) <img src="../images/c.png"> {unchanged}'
    )
    assert moved(text, ROOT / "examples", DOCS / "results") == expected


def test_the_gallery_opens_with_what_its_verdicts_mean() -> None:
    parts = extension("gallery").parts(
        "# Gallery\n\nHow to read it.\n\n## LRT\n\n### Figure\n\n## Stitching\n"
    )
    assert parts == {
        "opening": "\nHow to read it.\n",
        "figures": "\n## LRT\n\n### Figure\n\n## Stitching\n",
    }
    page = (DOCS / "results" / "gallery.md").read_text(encoding="utf-8")
    assert re.findall(r"^:part: (\w+)$", page, flags=re.M) == ["opening", "figures"]


def test_no_inventory_is_fetched_unless_asked_for() -> None:
    inventories = extension("inventories").external_inventories
    assert inventories({}) == {}
    assert inventories({"LRT_LENS_DOCS_ONLINE": "1"})["torch"] == (
        "https://docs.pytorch.org/docs/stable/",
        None,
    )


def test_a_folder_without_inventories_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"holds none of torch\.inv"):
        extension("inventories").external_inventories({"LRT_LENS_DOCS_INVENTORIES": str(tmp_path)})


def test_names_of_other_projects_become_links_where_their_inventory_is_at_hand(
    tmp_path: Path,
) -> None:
    inventories = extension("inventories")
    header = (
        "# Sphinx inventory version 2\n# Project: torch\n# Version: 2\n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    (tmp_path / "torch.inv").write_bytes(
        header.encode() + zlib.compress(b"torch.Tensor py:class 1 tensors.html#$ -\n")
    )
    mapping = inventories.external_inventories({"LRT_LENS_DOCS_INVENTORIES": str(tmp_path)})
    (tmp_path / "conf.py").write_text(
        f"extensions = ['sphinx.ext.intersphinx']\nintersphinx_mapping = {mapping!r}\n"
    )
    (tmp_path / "index.rst").write_text("Title\n=====\n\n:py:class:`torch.Tensor`\n")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "-n", tmp_path, tmp_path / "out"], check=True
    )
    assert (
        'href="https://docs.pytorch.org/docs/stable/tensors.html#torch.Tensor"'
        in (tmp_path / "out" / "index.html").read_text()
    )


def test_a_build_without_the_extra_says_what_is_missing(tmp_path: Path) -> None:
    extension("inventories")
    # None in sys.modules makes an import fail.
    code = (
        "import sys; sys.modules['furo'] = None; from sphinx.cmd.build import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(DOCS), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "the documentation needs furo, but this Python" in done.stderr
    assert "pip install -e '.[dev,examples,docs]'" in done.stderr
