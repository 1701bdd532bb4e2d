"""The page of a feature escapes tokens, shows scores and contexts, and loads nothing."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd

from lrt_lens.adapters.saes.features._page import FeaturePage, TokenContext

NASTY = "<script>alert('x')</script>"


def _page(contexts: list[TokenContext] | None = None) -> FeaturePage:
    context = TokenContext(
        [" the", NASTY, "\n", '"&', "\u202eevil"],
        [0.0, 2.0, 0.5, 0.0, 1.0],
        [0.0, 1.0, 0.0, 0.0, 4.0],
        1,
    )
    return FeaturePage(
        index=17,
        names=("small <b>", "large"),
        hooks=("blocks.2.hook_resid_post", "blocks.3.hook_resid_post"),
        scores={
            "attribution_r": 0.9,
            "attribution_r_low": 0.8,
            "attribution_r_high": math.nan,
            "kind": "semantic",
            "density_source": 0.01,
        },
        contexts={"source": [context] if contexts is None else contexts, "target": []},
        output_tokens={
            role: [(NASTY, 1.5), (" cat", 1.0), ("\n", -1.0), (" dog", -2.0)]
            for role in ("source", "target")
        },
        heads=pd.DataFrame(
            {"feature": [17], "model": ["source"], "layer": [3], "head": [1], "effect": [0.02]}
        ),
    )


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_tokens_are_escaped_in_the_page_and_in_the_notebook() -> None:
    page = _page()
    for html in (page.html, page._repr_html_()):
        assert NASTY not in html
        assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in html
        assert "<b>" not in html
        parsed = _Tags()
        parsed.feed(html)
        assert not parsed.open
        assert "script" not in parsed.seen
        assert not re.search(r'(?:src|href)="(?!#)', html)


def test_shades_are_shares_of_the_strongest_activation_and_its_token_is_framed() -> None:
    tokens = re.findall(
        r'<bdi style="([^"]*)" title="([^"]*)">([^<]*)</bdi>', _page()._repr_html_()
    )
    assert [text for _, _, text in tokens[:5]] == [
        " the",
        "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;",
        "↵",
        "&quot;&amp;",
        "\u202eevil",
    ]
    alphas = [re.search(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", style) for style, _, _ in tokens]
    found = [float(match[1]) if match else 0.0 for match in alphas]
    assert found == [0, 0.55, 0.138, 0, 0.275, 0, 0.138, 0, 0, 0.55]
    assert [title for _, title, _ in tokens[:3]] == ["0", "2", "0.5"]
    assert ["outline" in style for style, _, _ in tokens] == [False, True, False, False, False] * 2


def test_undefined_scores_and_features_that_never_fire_are_reported() -> None:
    html = _page([]).html
    assert "Never active on large." in html
    assert "95% 0.80 to n/a" in html
    assert "semantic" in html
    assert "Attention heads" in html
    assert "&#x27; cat&#x27;" in html


def test_the_page_is_a_file_of_its_own(tmp_path: Path) -> None:
    path = _page().save(tmp_path / "deep" / "feature.html")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in text
