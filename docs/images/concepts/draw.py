"""Draw the pictures of docs/concepts.

`python docs/images/concepts/draw.py` writes the .svg files into its own folder.

The pages include the SVG elements inline, so that lines and text have the colour of the page's text
(`currentColor`), light or dark. docs/_static/site.css sets the colours of source and target. The
drawings are 420 units wide, so that text can be read on a phone.
"""

from collections.abc import Callable
from html import escape
from pathlib import Path

WIDTH = 420
ARROW = (
    '<defs><marker id="{id}-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
    'markerHeight="7" orient="auto-start-reverse">'
    '<path d="M0 0 8 4 0 8z" fill="context-stroke"/></marker></defs>'
)
Part = str
"""SVG elements, as text. Coordinates grow to the right and downwards."""


def text(
    x: float, y: float, words: str, *, kind: str = "", anchor: str = "middle", size: int = 13
) -> Part:
    """Return one line of text with its baseline at y.

    `kind` is a class of site.css: source, target, soft, code, strong.
    """
    return (
        f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}" '
        f'font-size="{size}">{escape(words)}</text>'
    )


def box(
    x: float,
    y: float,
    width: float,
    height: float,
    words: str = "",
    *,
    kind: str = "plain",
    size: int = 13,
) -> Part:
    """Return a rounded box with text in its centre."""
    shape = (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" '
        f'class="box {kind}"/>'
    )
    # Capital letters are about 0.7 font sizes high: a baseline 0.35 below the centre centres them.
    return shape + (
        text(x + width / 2, y + height / 2 + size * 0.35, words, kind=kind, size=size)
        if words
        else ""
    )


def line(
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    *,
    kind: str = "plain",
    name: str = "",
    dashed: bool = False,
) -> Part:
    """Return a line; it ends in an arrow head if `name`, the name of the drawing, is passed."""
    head = f' marker-end="url(#{name}-head)"' if name else ""
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="line {kind}"{dash}{head}/>'
    )


def dot(x: float, y: float, *, kind: str = "plain", radius: float = 5) -> Part:
    """Return a filled circle."""
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" class="dot {kind}"/>'


def cloud(x: float, y: float, rx: float, ry: float, turn: float, *, kind: str) -> Part:
    """Return an ellipse that stands for the distribution of states, turned by `turn` degrees."""
    return (
        f'<ellipse cx="{x:g}" cy="{y:g}" rx="{rx:g}" ry="{ry:g}" '
        f'transform="rotate({turn:g} {x:g} {y:g})" class="cloud {kind}"/>'
    )


def drawing(name: str, height: float, title: str, parts: list[Part]) -> str:
    """Return the text of an .svg file; screen readers read the title aloud."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" '
        f'viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
    )
    # Ids are global in a page with several inline drawings, so the marker has the drawing's name.
    return "\n".join([head, ARROW.format(id=name), *parts, "</svg>"]) + "\n"


def hook_points() -> str:
    """Draw one model: the stream, the blocks that add to it, and the names of hook points."""
    name, stream, parts = "hook_points", 120, []
    parts += [box(70, 392, 100, 30, "tokens"), line(stream, 392, stream, 22, name=name)]
    parts += [dot(stream, 368), text(142, 372, "hook_embed", kind="code", anchor="start")]
    for block in range(3):
        bottom = 330 - 100 * block
        parts += [
            box(6, bottom - 50, 82, 44, f"block {block}"),
            line(stream, bottom + 8, 88, bottom - 14, name=name),
        ]
        parts += [
            line(88, bottom - 42, stream - 2, bottom - 58, name=name),
            dot(stream, bottom - 72, kind="target" if block == 1 else "plain"),
        ]
        parts += [
            text(142, bottom - 68, f"blocks.{block}.hook_resid_post", kind="code", anchor="start")
        ]
    parts += [
        text(142, 178, "or 1; the same hook point as", kind="soft", anchor="start", size=12),
        text(142, 194, "blocks.2.hook_resid_pre", kind="code soft", anchor="start", size=12),
        text(142, 40, "next token", anchor="start"),
        text(142, 324, "each block reads the stream", kind="soft", anchor="start", size=12),
        text(142, 340, "and adds to it", kind="soft", anchor="start", size=12),
    ]
    return drawing(
        name,
        430,
        "The residual stream of a model with three blocks, and the names of its hook points",
        parts,
    )


def moments() -> str:
    """Draw how tokens become moments, and what is computed from the moments."""
    name, parts = "moments", []
    parts += [
        box(8 + 41 * k, 8, 35, 26, word, size=11)
        for k, word in enumerate(
            ["The", "film", "was", "a", "de", "light", "from", "the", "first", "…"]
        )
    ]
    parts += [line(110, 40, 110, 62, name=name), line(310, 40, 310, 62, name=name)]
    parts += [
        box(40, 66, 140, 34, "small model", kind="source"),
        box(240, 66, 140, 34, "large model", kind="target"),
    ]
    parts += [
        line(110, 102, 110, 128, name=name, kind="source"),
        line(310, 102, 310, 128, name=name, kind="target"),
    ]
    parts += [
        text(110, 146, "x: one row per token", kind="source"),
        text(310, 146, "y: one row per token", kind="target"),
    ]
    parts += [
        line(110, 154, 110, 178, name=name, kind="source"),
        line(310, 154, 310, 178, name=name, kind="target"),
    ]
    parts += [text(8, 176, "add, discard", kind="soft", anchor="start", size=12)]
    parts += [
        box(60, 184, 64, 64, "Σ xxᵀ", kind="source"),
        box(140, 184, 120, 64, "Σ xyᵀ"),
        box(276, 184, 120, 120, "Σ yyᵀ", kind="target"),
    ]
    parts += [
        text(92, 266, "d × d", kind="soft", size=12),
        text(200, 266, "d × D", kind="soft", size=12),
        text(336, 322, "D × D", kind="soft", size=12),
    ]
    parts += [
        text(8, 300, "one set of sums per fold of documents:", anchor="start", kind="soft", size=12)
    ]
    parts += [box(8 + 52 * k, 310, 46, 24, f"fold {k}", size=11) for k in range(5)]
    parts += [
        box(276, 334, 120, 28, "test fold", kind="target", size=12),
        text(8, 352, "fit and choose", anchor="start", kind="soft", size=12),
    ]
    parts += [
        text(336, 378, "takes part in no choice", kind="soft", size=12),
        line(210, 372, 210, 396, name=name),
    ]
    parts += [box(30, 402, 360, 34, "every map · every penalty · every held-out score")]
    return drawing(
        name,
        446,
        "Both models read the same tokens; sums over tokens are stored per fold, and every map and "
        "score is computed from them",
        parts,
    )


def up_and_down() -> str:
    """Draw two streams, the two maps between them, and which artefact uses which map."""
    name, parts = "up_and_down", []
    parts += [box(10, 40, 90, 200, kind="source"), box(290, 40, 120, 200, kind="target")]
    parts += [
        text(55, 22, "small, layer 2", kind="source"),
        text(350, 22, "large, layer 3", kind="target"),
    ]
    parts += [
        line(102, 90, 286, 90, name=name, kind="target"),
        text(195, 80, "up: x W + b", kind="strong"),
    ]
    parts += [text(195, 108, "states, steering vectors", kind="soft", size=12)]
    parts += [
        line(288, 190, 104, 190, name=name, kind="source"),
        text(195, 180, "down", kind="strong"),
    ]
    parts += [text(195, 208, "states that a probe reads", kind="soft", size=12)]
    parts += [
        text(55, 95, "v", size=15),
        text(350, 95, "v W", size=15),
        text(55, 195, "w · x", size=15),
        text(350, 195, "(W↓ w) · y", size=15),
    ]
    parts += [text(210, 280, "An SAE uses both maps:", kind="strong")]
    steps = [
        ("y", "target", 10, 44),
        ("down", "plain", 76, 60),
        ("SAE", "source", 158, 104),
        ("up", "plain", 284, 50),
        ("ŷ", "target", 364, 46),
    ]
    parts += [box(x, 296, width, 40, words, kind=kind) for words, kind, x, width in steps]
    parts += [
        line(x1, 316, x2, 316, name=name)
        for x1, x2 in ((54, 74), (136, 156), (262, 282), (334, 362))
    ]
    parts += [text(210, 356, "together: one SAE of the target's width", kind="soft", size=12)]
    return drawing(
        name,
        366,
        "A stitch: the map up transfers states and steering vectors, the map down the states that "
        "a probe reads, and an SAE uses both",
        parts,
    )


def directions() -> str:
    """Draw two distributions of states, and how the map treats points and differences."""
    name, parts = "directions", []
    parts += [text(105, 20, "source", kind="source"), text(315, 20, "target", kind="target")]
    parts += [
        cloud(105, 130, 84, 44, -24, kind="source"),
        cloud(318, 118, 92, 56, 38, kind="target"),
    ]
    parts += [
        dot(74, 150, kind="source"),
        dot(138, 104, kind="source"),
        line(74, 150, 134, 107, name=name, kind="source"),
    ]
    parts += [
        text(58, 170, "blame", size=12),
        text(148, 94, "praise", size=12),
        text(96, 118, "v", kind="strong", size=15),
    ]
    parts += [
        dot(288, 82, kind="target"),
        dot(352, 152, kind="target"),
        line(288, 82, 348, 148, name=name, kind="target"),
    ]
    parts += [
        text(282, 70, "blame", size=12),
        text(364, 172, "praise", size=12),
        text(334, 112, "v W", kind="strong", size=15),
    ]
    parts += [line(190, 206, 232, 206, name=name), text(210, 196, "x W + b", size=12)]
    parts += [
        text(210, 228, "points are mapped with the bias, differences without", kind="soft", size=12)
    ]
    parts += [
        line(20, 252, 400, 252, kind="faint"),
        text(210, 274, "The same length, in standard deviations:", kind="strong"),
    ]
    for x, kind, label in ((30, "source", "1.5 σ along v"), (230, "target", "1.5 σ along v W")):
        wide = 120 if kind == "source" else 160
        middle, left, right = x + wide / 2, x + wide * 0.35, x + wide * 0.65
        # A bell curve from two cubic Bézier curves that meet at the top.
        curve = f"M{x} 340 C{left:g} 340 {left:g} 290 {middle:g} 290 S{right:g} 340 {x + wide} 340"
        parts += [f'<path d="{curve}" class="line {kind}"/>']
        parts += [
            line(x + wide / 2, 352, x + wide * 0.75, 352, name=name, kind=kind),
            text(x + wide / 2, 372, label, size=12, kind=kind),
        ]
    return drawing(
        name,
        382,
        "A steering vector is mapped without the bias; its length is matched in "
        "standard deviations",
        parts,
    )


def evidence() -> str:
    """Draw arms at equal damage, without numbers: it shows how to read such a figure."""
    rows = [
        ("native", 330, 28, "target", "the ceiling"),
        ("transferred", 280, 26, "source", "the claim"),
        ("shuffled map", 178, 24, "plain", "are statistics enough?"),
        ("permuted labels", 154, 28, "plain", "is the map enough?"),
        ("random", 148, 44, "plain", "is any direction enough?"),
        ("none", 150, 0, "plain", "is it there anyway?"),
    ]
    parts = [
        text(250, 18, "effect, all arms at equal damage →", kind="soft", size=12),
        line(150, 30, 150, 290, kind="faint"),
    ]
    for number, (arm, x, half, kind, question) in enumerate(rows):
        y = 50 + 42 * number
        parts += [
            text(8, y + 1, arm, anchor="start", kind="strong"),
            text(8, y + 16, question, anchor="start", kind="soft", size=10),
        ]
        parts += [line(x - half, y, x + half, y, kind=kind)] if half else []
        parts += [dot(x, y, kind=kind)]
    parts += [
        text(150, 304, "no effect", kind="soft", size=12),
        text(8, 326, "schematic", anchor="start", kind="soft", size=11),
    ]
    parts += [text(412, 326, "bars: 95% intervals", anchor="end", kind="soft", size=11)]
    return drawing(
        "evidence",
        334,
        "Schematic: the transferred arm is near native and far from the controls, at equal damage",
        parts,
    )


DRAWINGS: dict[str, Callable[[], str]] = {
    "hook_points": hook_points,
    "moments": moments,
    "up_and_down": up_and_down,
    "directions": directions,
    "evidence": evidence,
}

if __name__ == "__main__":
    for stem, draw in DRAWINGS.items():
        Path(__file__).with_name(f"{stem}.svg").write_text(draw(), encoding="utf-8")
