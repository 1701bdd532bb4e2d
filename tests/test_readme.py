"""The README's Python does what the README says."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_ten_lines_print_what_stands_below_them() -> None:
    code, expected = re.search(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", README, flags=re.S
    ).groups()  # type: ignore[union-attr]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    printed, promised = out.getvalue().strip().splitlines(), expected.strip().splitlines()
    assert printed[:2] == promised[:2]
    (measured,), (scale,) = (
        re.findall(r"^scale (\d+\.\d+)$", line) for line in (printed[2], promised[2])
    )
    assert float(measured) == pytest.approx(float(scale), abs=0.05)
    assert printed[3].startswith("This film was")


def test_every_file_that_the_readme_names_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (Path(__file__).parent.parent / link).exists()] == []


def test_what_codes_explain_is_what_the_gallery_measured() -> None:
    figures = json.loads((ROOT / "examples" / "gallery.json").read_text(encoding="utf-8"))[
        "figures"
    ]
    (found,) = [figure for figure in figures if figure["name"] == "codes_to_states"]
    codes, states = (row["ours"] for row in found["compared"][:2])
    assert f"R² {codes:.2f} beside {states:.2f} from states".replace("0.", ".") in README


def test_every_ratio_is_explained() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))[
        "benchmarks"
    ]
    explained = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert [one["name"] for one in measured if f"| `{one['name']}` |" not in explained] == []


def test_the_table_of_ratios_is_the_last_run_and_what_it_misses_is_said() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))[
        "benchmarks"
    ]
    rows = {
        name: (value, sign, float(target.replace(",", "")))
        for name, value, sign, target in re.findall(
            r"^\| `(\w+)` \| ([\d.,]+) \| (≤|≥) ([\d.,]+) \|$", README, flags=re.M
        )
    }
    assert set(rows) == {one["name"] for one in measured}
    missed = set()
    for one in measured:
        value, sign, target = rows[one["name"]]
        assert float(value.replace(",", "")) == pytest.approx(one["value"], rel=0.05), one["name"]
        if one["value"] > target if sign == "≤" else one["value"] < target:
            missed.add(one["name"])
    [said] = re.findall(r"targets are missed, .*", README)
    assert set(re.findall(r"`(\w+)`", said)) == missed
