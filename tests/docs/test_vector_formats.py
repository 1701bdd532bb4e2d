"""The tables of formats and engines on the pages are those of the code and the measurements."""

import json

from lrt_lens.serving import FORMATS
from tests.docs.conftest import DOCS
from tests.docs.test_build_steps import extension


def test_every_format_has_a_row() -> None:
    table = extension("vector_formats").formats_table()
    assert table.count("\n- `") == len(FORMATS)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(FORMATS)
    [row] = [line for line in lines if line.startswith("| `llama.cpp`")]
    assert "`direction.13`" in row
    assert "from block 1 on" in row
    [row] = [line for line in lines if line.startswith("| `neuronpedia`")]
    assert "layerNumber 14, hook_resid_pre" in row
    assert "not the last block" in row
    assert all(line.count(" | ") == lines[0].count(" | ") for line in lines[2:])


def test_every_check_of_an_engine_has_a_row() -> None:
    results = json.loads((DOCS / "results" / "engines.json").read_text(encoding="utf-8"))
    lines = extension("vector_formats").engines_table(results).splitlines()
    assert results["passed"]
    assert len(lines) == 2 + len(results["steering"])
    assert any("vllm-lens" in line for line in lines)
