"""The built pages in a real browser.

Figures and drawings are drawn and fit into the window, text has enough contrast in light and dark,
and no page loads anything from another host.
"""

import html.parser
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.conftest import BUILT

pytestmark = pytest.mark.browser
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PAGES = sorted(
    str(path.relative_to(BUILT))
    for path in BUILT.rglob("*.html")
    if "_static" not in path.parts and "_downloads" not in path.parts
)

WIDER_THAN_THE_WINDOW = "() => document.documentElement.scrollWidth - window.innerWidth"
PICTURES_MISSING = """() => [...document.images]
    .filter(i => i.complete && !i.naturalWidth || i.offsetWidth < 5)
    .map(i => i.src)"""
PLOTS_READY = (
    "() => [...document.querySelectorAll('.lrt-plot')].every(p => p.querySelector('.main-svg'))"
)
PLOTS_EMPTY = """() => [...document.querySelectorAll('.lrt-plot')].map((plot, number) => {
    const svg = plot.querySelector('.main-svg'), box = svg && svg.getBoundingClientRect();
    const marks = plot.querySelectorAll(
        '.trace path, .trace text, path.point, .heatmaplayer image, .pielayer path').length;
    const scrolls = getComputedStyle(plot).overflowX === 'auto';
    const fits = box && (box.width <= plot.clientWidth + 1 || scrolls && box.width <= 681);
    const drawn = box && box.width > 100 && box.height > 100 && marks && fits;
    return drawn ? null : {number, marks, width: box && box.width};
}).filter(Boolean)"""
# Titles, legend and notes of a figure that overlap or extend beyond the figure, by more than two
# pixels.
WORDS_COLLIDE = """() =>
[...document.querySelectorAll('.lrt-plot .main-svg:first-child')].flatMap((svg, number) => {
    const plot = svg.closest('.lrt-plot'), canvas = svg.getBoundingClientRect(), hair = 2;
    const titles = '.g-gtitle text, .g-xtitle text, [class^="g-x"] text, [class^="g-y"] text';
    const words = [...plot.querySelectorAll(`${titles}, .annotation-text, .legendtext`)]
        .map(e => [e.textContent, e.getBoundingClientRect()])
        .filter(([_, box]) => box.width && box.height);
    const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > hair
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > hair;
    const cut = words.filter(([_, box]) => box.left < canvas.left - hair
        || box.right > canvas.right + hair || box.bottom > canvas.bottom + hair);
    const pairs = words.flatMap(([one, a], i) => words.slice(i + 1)
        .filter(([_, b]) => over(a, b)).map(([other]) => [number, one, other]));
    return pairs.concat(cut.map(([text]) => [number, 'cut', text]));
})"""
DRAWINGS_EMPTY = """() => [...document.querySelectorAll('svg.drawing')]
    .filter(s => s.getBoundingClientRect().height < 100).length"""
# Text whose contrast (WCAG) with the background of the page is below 4.4: paragraphs, drawings, and
# the axes of figures.
FAINT_TEXT = """() => {
    const channels = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
    const luminance = colour => {
        const [r, g, b] = channels(colour).slice(0, 3).map(v => v / 255)
            .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const back = luminance(getComputedStyle(document.body).backgroundColor);
    const contrast = colour => {
        const own = luminance(colour);
        return (Math.max(own, back) + .05) / (Math.min(own, back) + .05);
    };
    const places = [['article p, article li, article td', 'color'], ['svg.drawing text', 'fill'],
                    ['.lrt-plot .xtick text, .lrt-plot .ytick text, .lrt-plot .gtitle', 'fill']];
    return places.flatMap(([selector, property]) => [...document.querySelectorAll(selector)].map(
        e => [contrast(getComputedStyle(e)[property]), e.textContent.slice(0, 40)]
    )).filter(([value]) => value < 4.4).slice(0, 5);
}"""


@pytest.fixture(
    params=[(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"], scope="module"
)
def page(request: pytest.FixtureRequest, browser: Any, site: str) -> Iterator[Any]:
    """Yield a tab of one width and colour scheme.

    `page.complaints` lists its errors and warnings, and its requests to other hosts.
    """
    viewport, scheme = request.param
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    tab, complaints = context.new_page(), []
    tab.on(
        "console",
        lambda message: (
            complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    # Requests that are open when the next page is opened are aborted.
    tab.on(
        "requestfailed",
        lambda asked: (
            None
            if asked.failure == "net::ERR_ABORTED"
            else complaints.append(f"failed: {asked.url}")
        ),
    )
    tab.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith((site, "data:", "blob:"))
            else complaints.append(f"asked elsewhere: {asked.url}")
        ),
    )
    tab.complaints, tab.first_scheme = complaints, scheme
    yield tab
    context.close()


@pytest.mark.parametrize("path", PAGES)
def test_a_page_renders(path: str, page: Any, site: str) -> None:
    page.complaints.clear()
    page.emulate_media(color_scheme=page.first_scheme)
    answer = page.goto(f"{site}/{path}", wait_until="load")
    assert answer.status == 200
    for scheme in (page.first_scheme, {"light": "dark", "dark": "light"}[page.first_scheme]):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(PLOTS_READY, timeout=20_000)
        page.wait_for_timeout(150 if page.query_selector(".lrt-plot") else 0)
        assert page.evaluate(WIDER_THAN_THE_WINDOW) <= 0
        assert page.evaluate(PICTURES_MISSING) == []
        assert page.evaluate(PLOTS_EMPTY) == []
        assert page.evaluate(WORDS_COLLIDE) == []
        assert page.evaluate(DRAWINGS_EMPTY) == 0
        assert page.evaluate(FAINT_TEXT) == []
    assert page.complaints == []


def test_the_button_for_dark_repaints_text_and_figures(page: Any, site: str) -> None:
    with_figures = [
        path for path in PAGES if 'class="lrt-plot"' in (BUILT / path).read_text(encoding="utf-8")
    ]
    page.goto(f"{site}/{(with_figures or PAGES)[0]}", wait_until="load")
    page.wait_for_function(PLOTS_READY)
    for theme in ("light", "dark"):
        page.evaluate("theme => { document.body.dataset.theme = theme; }", theme)
        page.wait_for_timeout(300)
        assert page.evaluate(FAINT_TEXT) == []


@pytest.mark.parametrize("words", ["fit_stitches", "calibrate_scale", "damage"])
def test_search_finds(words: str, page: Any, site: str) -> None:
    page.complaints.clear()
    page.goto(f"{site}/search.html?q={words}", wait_until="load")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    found = page.eval_on_selector_all(
        "#search-results li a",
        "links => links.map(link => [link.textContent, link.getAttribute('href')])",
    )
    if words != "damage":
        assert any(words in text and "reference/" in href for text, href in found)
    page.wait_for_load_state("networkidle")  # the excerpts
    assert page.complaints == []
    assert page.goto(f"{site}/{urlsplit(found[0][1]).path}").status == 200


def test_search_finds_without_a_server(browser: Any, built: Path) -> None:
    tab = browser.new_page()
    tab.goto(f"{(built / 'search.html').resolve().as_uri()}?q=fit_stitches", wait_until="load")
    tab.wait_for_selector("#search-results li a", timeout=20_000)
    assert "fit_stitches" in tab.inner_text("#search-results")
    tab.close()


class Links(html.parser.HTMLParser):
    """Parser that collects link targets and anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.add(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def test_every_internal_link_leads_to_a_place(built: Path) -> None:
    pages = {path: Links((built / path).read_text(encoding="utf-8")) for path in PAGES}
    broken, outside = [], 0
    for path, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                outside += 1
                continue
            file = (built / path).parent / unquote(parts.path) if parts.path else built / path
            place = str(file.resolve().relative_to(built.resolve()))
            anchor = unquote(parts.fragment)
            if not file.exists() or (place in pages and anchor not in pages[place].anchors):
                broken.append(f"{path} → {target}")
    assert broken == []
    assert outside
