"""The quick start is the same on every page and prints the output that is shown.

The numbers in README and benchmarks are the measured ones.
"""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

import lrt_lens

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
QUICK_START = (ROOT / "docs" / "quick_start.py").read_text(encoding="utf-8")
PRINTED = (ROOT / "docs" / "quick_start.txt").read_text(encoding="utf-8")


def test_the_readme_shows_the_quick_start_and_its_output() -> None:
    assert re.findall(r"```python\n(.*?)```", README, flags=re.S) == [QUICK_START]
    assert re.findall(r"```text\n(.*?)```", README, flags=re.S) == [PRINTED]


def test_the_guide_includes_the_quick_start_and_its_output() -> None:
    page = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    included = re.findall(r"^```\{literalinclude\} (\S+)$", page, flags=re.M)
    assert included == ["quick_start.py", "quick_start.txt"]
    assert "```python" not in page


def test_the_package_docstring_shows_the_quick_start() -> None:
    assert textwrap.indent(QUICK_START, "    ") in (lrt_lens.__doc__ or "")


def test_every_file_that_the_readme_names_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_what_codes_explain_is_what_the_gallery_measured() -> None:
    figures = json.loads((ROOT / "examples" / "gallery.json").read_text(encoding="utf-8"))[
        "figures"
    ]
    (figure,) = [figure for figure in figures if figure["name"] == "codes_to_states"]
    codes, states = (row["ours"] for row in figure["compared"][:2])
    assert f"R² {codes:.2f} against {states:.2f} from states".replace("0.", ".") in README


def measured() -> list[dict[str, Any]]:
    """Return the entries of the last benchmark run."""
    path = ROOT / "benchmarks" / "results.json"
    return json.loads(path.read_text(encoding="utf-8"))["benchmarks"]


def test_every_ratio_is_explained() -> None:
    explanations = BENCHMARKS[BENCHMARKS.index("## How it is measured") :]
    missing = [one["name"] for one in measured() if f"| `{one['name']}` |" not in explanations]
    assert missing == []


def test_the_table_of_ratios_is_the_last_run_and_missed_targets_are_named() -> None:
    rows = {
        name: (value, sign, float(target.replace(",", "")))
        for name, value, sign, target in re.findall(
            r"^\| `(\w+)` \| ([\d.,]+) \| (≤|≥) ([\d.,]+) \|$", BENCHMARKS, flags=re.M
        )
    }
    assert set(rows) == {one["name"] for one in measured()}
    missed = set()
    for one in measured():
        value, sign, target = rows[one["name"]]
        assert float(value.replace(",", "")) == pytest.approx(one["value"], rel=0.05), one["name"]
        if one["value"] > target if sign == "≤" else one["value"] < target:
            missed.add(one["name"])
    [named] = re.findall(r"targets are missed: (.*?\.)(?= |\n)", BENCHMARKS, flags=re.S)
    assert set(re.findall(r"`(\w+)`", named)) == missed
    reasons = BENCHMARKS[BENCHMARKS.index("## Missed targets") :]
    assert set(re.findall(r"^- `(\w+)`:", reasons, flags=re.M)) == missed


def test_the_comparison_quotes_the_measured_speed() -> None:
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    [quoted] = re.findall(r"(\d+) times faster than Adam", page)
    [entry] = [one for one in measured() if one["name"] == "fit_speedup_over_adam"]
    assert float(quoted) == pytest.approx(entry["value"], rel=0.05)


def test_the_engines_of_the_readme_are_those_that_were_measured() -> None:
    path = ROOT / "docs" / "results" / "engines.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["steering"]
    largest: dict[str, float] = {}
    for row in rows:
        largest[row["engine"]] = max(largest.get(row["engine"], 0.0), row["at_block"])
    names = {
        "vllm": "vLLM {}, forward hook",
        "vllm-baked": "vLLM {}, baked model",
        "vllm-lens": "vllm-lens {}",
        "transformers": "transformers {}, exported script",
        "repeng": "repeng {}",
        "steering-vectors": "steering-vectors {}",
        "lm-eval": "lm-eval {}",
    }
    assert names.keys() == largest.keys()
    for engine, name in names.items():
        version = next(iter(next(r for r in rows if r["engine"] == engine)["versions"].values()))
        [line] = [x for x in README.splitlines() if x.startswith(f"| {name.format(version)} |")]
        assert line.endswith(f"| {largest[engine]:.1e} |"), engine
    apart = min(min(row["before"], row["after"]) for row in rows)
    assert f"differ by {apart:.2f} at least".replace("0.", ".") in README
