"""The report is one file: complete, escaped, without requests, and written whole or not at all."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from lrt_lens.report import render_html, write_html
from lrt_lens.report._html import (
    ContinuationCards,
    KeyNumbers,
    Paragraph,
    Plot,
    ReportWriteError,
    Section,
    Table,
    format_value,
    render_block,
)

ATTACK = '<script>alert("x")</script>&<img src=x onerror=alert(1)>'
VOID = {"meta", "link", "br", "img", "hr", "input"}


class _Elements(HTMLParser):
    """Parser that collects elements and attributes, and refuses tags that close out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _elements(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Elements()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser.found


def _continuations(text: str = "a film") -> ContinuationCards:
    return ContinuationCards(
        [
            {"prompt": "This film was", "arm": "none", "text": "long."},
            {"prompt": "This film was", "arm": "transferred", "text": text},
            {"prompt": "Once", "arm": "none", "text": "upon a time."},
        ]
    )


def _page() -> str:
    figure = go.Figure(
        go.Scatter(x=[1, 2], y=[3, 4], name="</script><script>alert(1)</script>"),
        layout={"title": {"text": "Curve"}},
    )
    table = Table(pd.DataFrame({"arm": ["native"], "effect": [0.5]}), "Effects")
    numbers = KeyNumbers([("R²", 0.6213, "null 0.00")])
    sections = [
        Section(
            "First & last", [Paragraph("Hello."), numbers, Plot(figure, "A caption"), Plot(figure)]
        ),
        Section("Texts", [table, _continuations()]),
    ]
    return render_html("A <report>", sections, subtitle="made-up numbers", footer="seed 0")


def test_the_page_is_well_formed_and_has_one_heading_and_landmarks() -> None:
    elements = _elements(_page())
    tags = [tag for tag, _ in elements]
    assert tags.count("h1") == tags.count("main") == tags.count("nav") == 1
    assert tags.count("section") == 2
    assert (
        "meta",
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
    ) in elements


def test_the_contents_lead_to_every_section() -> None:
    elements = _elements(_page())
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["href"] for tag, attributes in elements if tag == "a"]
    assert all(str(target).startswith("#") and str(target)[1:] in ids for target in targets)
    assert {"section-1-first-last", "section-2-texts"} <= set(ids)


def test_plotly_is_embedded_once_and_only_where_there_is_a_figure() -> None:
    assert _page().count(get_plotlyjs()) == 1
    assert len(render_html("t", [Section("s", [Paragraph("p")])])) < 20_000


def test_nothing_is_loaded_from_the_network() -> None:
    page = _page().replace(get_plotlyjs(), "")
    assert not re.search(r"https?://|//cdn|@import|url\(", page)
    for tag, attributes in _elements(page):
        assert tag not in {"link", "iframe", "object", "embed", "img"}
        assert "src" not in attributes
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    assert "showSendToCloud: false" in page  # plotly.js offers to upload figures unless told not to


def test_texts_of_models_and_users_are_escaped_everywhere() -> None:
    frame = pd.DataFrame({ATTACK: [ATTACK]}, index=pd.Index([ATTACK], name=ATTACK))
    plot = Plot(go.Figure(layout={"title": {"text": ATTACK}}), ATTACK)
    blocks = [Paragraph(ATTACK), Table(frame, ATTACK), KeyNumbers([(ATTACK, ATTACK, ATTACK)]), plot]
    blocks += [ContinuationCards([{"prompt": ATTACK, "arm": ATTACK, "text": ATTACK}])]
    page = render_html(
        ATTACK, [Section(ATTACK, blocks)] * 2, subtitle=ATTACK, footer=ATTACK
    ).replace(get_plotlyjs(), "")
    assert ATTACK not in page
    elements = _elements(page)
    assert [attributes.get("type") for tag, attributes in elements if tag == "script"] == [
        "application/json"
    ] * 2 + [None, None]
    assert "img" not in [tag for tag, _ in elements]


def test_a_script_in_a_continuation_is_shown_as_text() -> None:
    html = render_block(_continuations("<script>alert(1)</script>"))
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_figures_travel_as_json_that_reads_back_the_same() -> None:
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, None], name="</script><!-- <b>"))
    html = render_block(Plot(figure))
    (source,) = re.findall(r'<script type="application/json">(.*?)</script>', html, flags=re.DOTALL)
    assert "<" not in source
    assert json.loads(source) == json.loads(str(figure.to_json()))


def test_continuations_have_a_row_a_prompt_and_a_card_an_arm() -> None:
    html = render_block(_continuations())
    assert re.findall(r"<h3[^>]*>(.*?)</h3>", html) == ["This film was", "Once"]
    assert re.findall(r"<h4>(.*?)</h4>", html) == ["no steering", "transferred"] * 2
    assert html.count("not generated") == 1


def test_two_texts_of_one_arm_share_its_card() -> None:
    html = render_block(
        ContinuationCards([{"prompt": "p", "arm": "none", "text": text} for text in ("one", "two")])
    )
    assert html.count("<article") == 1
    assert html.index("one") < html.index("two")


def test_tables_have_header_cells_a_scrolling_box_and_formatted_numbers() -> None:
    frame = pd.DataFrame(
        {"arm": ["native", "random"], "effect": [1.23456, np.nan], "tokens": [200000, 5]}
    )
    html = render_block(Table(frame, "Effects"))
    assert html.count('scope="col"') == 3
    assert 'class="scroll" role="region" aria-label="Effects" tabindex="0"' in html
    assert re.findall(r"<td[^>]*>(.*?)</td>", html) == [
        "native",
        "1.23",
        "200,000",
        "random",
        "n/a",
        "5",
    ]
    assert "<details" not in html


def test_a_named_index_becomes_row_headers() -> None:
    frame = pd.DataFrame({"effect": [1.0]}, index=pd.Index(["native"], name="arm"))
    assert '<th scope="row">native</th>' in render_block(Table(frame))
    assert 'scope="row"' not in render_block(Table(frame.reset_index(drop=True)))


def test_long_tables_are_folded_away_under_their_caption() -> None:
    frame = pd.DataFrame({"x": range(13)})
    assert "<details><summary>All pairs (13 rows)</summary>" in render_block(
        Table(frame, "All pairs")
    )
    assert "<details" not in render_block(Table(frame, open_rows=20))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.62134, "0.621"),
        (0.5, "0.500"),
        (-12.345, "-12.3"),
        (123.4, "123"),
        (1234.5, "1234"),
        (99999.0, "99999"),
        (1e-6, "1e-06"),
        (3e7, "3e+07"),
        (0.0, "0"),
        (np.float32(0.25), "0.250"),
        (np.int64(1234567), "1,234,567"),
        (True, "True"),
        (None, "n/a"),
        (float("nan"), "n/a"),
        (float("inf"), "inf"),
        (pd.NA, "n/a"),
        ("text", "text"),
    ],
)
def test_values_are_short_and_exact_enough(value: object, text: str) -> None:
    assert format_value(value) == text


def test_an_unknown_block_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match="cannot render a int in a report; give a Paragraph"):
        render_block(3)


def test_a_page_is_written_whole_with_missing_folders_made(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "report.html"
    assert (
        write_html(target, "<p>ü → \ud800</p>") == target
    )  # a model can emit half a surrogate pair
    assert target.read_text(encoding="utf-8") == "<p>ü → ?</p>"
    assert os.listdir(target.parent) == ["report.html"]


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "results"
    blocked.write_text("a file", encoding="utf-8")
    with pytest.raises(ReportWriteError, match="choose a folder") as caught:
        write_html(blocked / "report.html", "page")
    assert isinstance(caught.value, OSError)
    assert str(blocked) in str(caught.value)
    assert os.listdir(tmp_path) == ["results"]


def test_a_target_that_is_a_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ReportWriteError, match="choose a folder"):
        write_html(tmp_path / "report.html", "page")
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_a_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ReportWriteError, match="Permission denied"):
        write_html(tmp_path / "report.html", "page")
    tmp_path.chmod(0o700)
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_earlier_report_and_no_half_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_html(tmp_path / "report.html", "earlier")

    def fail(source: Path, destination: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ReportWriteError, match="Permission denied"):
        write_html(target, "later")
    assert target.read_text(encoding="utf-8") == "earlier"
    assert os.listdir(tmp_path) == ["report.html"]
