"""The page on engines says what the check with the real vLLM measured."""

import json
import re

from tests.docs.conftest import DOCS


def test_the_page_says_what_was_measured() -> None:
    measured = json.loads((DOCS / "results" / "engine_states.json").read_text(encoding="utf-8"))
    page = (DOCS / "how-to" / "states_from_an_engine.md").read_text(encoding="utf-8")
    page = " ".join(page.split("## Measured")[1].split())
    found = re.search(
        r"\(([\d,]+) tokens\): sums differ by at most (\S+) .* and gain by (\S+) \(", page
    )
    assert found is not None
    assert {int(found[1].replace(",", ""))} == {row["tokens"] for row in measured["rows"]}
    for number, name in ((found[2], "moments"), (found[3], "scores")):
        worst = max(row[name] for row in measured["rows"])
        assert worst <= 1.05 * float(number) <= 1.2 * worst
