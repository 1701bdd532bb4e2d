"""The gallery of `examples/`: a page and its thumbnails from the JSON files that the scripts wrote,
so that no number is typed by hand.

    python -m lrt_lens.reproduction._gallery figures                     # into examples/README.md, examples/gallery.json, docs/images/gallery/

``gallery.json`` keeps what the page shows; the page is a function of it alone. A figure that is not
in the folder keeps its earlier entry. Runs with ``--quick`` are refused: their numbers mean
nothing.
"""

import argparse
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrt_lens._files import make_folder, write_atomically
from lrt_lens.errors import FileFormatError
from lrt_lens.reproduction._picture import THUMBNAIL_BYTES
from lrt_lens.reproduction._result import PAPERS, VERDICTS, Compared

logger = logging.getLogger(__name__)

GALLERY_SCHEMA = "lrt_lens.gallery/1"
_KEPT = ("name", "title", "paper", "claim", "verdict", "because", "says", "compared", "seconds")
_SHOWN = 3
"""Compared numbers of a figure on the page."""
HEAD = """# Gallery: the papers' figures, made again

Each script makes one figure or table of a paper on the bundled models, offline, and on models of yours by `--source` and `--target`, with `--sae` and
`--documents` where it reads any. It writes `NAME.html` (interactive), `NAME.png` and `NAME.json` into `--out` (`figures/`). `--quick` shows that it
runs. `make figures` runs them all and writes this page from their JSON files: every number below was measured by the command
beside it.

The verdicts are rules in the scripts, on the bundled models of 1.5 and 5 million parameters: *holds*: the claim shows, beyond its controls;
*holds with a caveat*: it shows, and a control or the setting limits what it means; *does not survive its null*: a control that knows nothing of
the claim does as well, or the effect is not there. The papers' models are thousands of times larger: a verdict here is about the claim on these models.
"""


def entry(record: dict[str, Any], path: str) -> dict[str, Any]:
    """What the gallery keeps of a NAME.json; FileFormatError where it is none, or of a quick run."""
    missing = [key for key in (*_KEPT, "quick") if key not in record]
    if missing:
        raise FileFormatError(
            f"{path} lacks {missing}; give a folder with the JSON files of the scripts in examples/ alone"
        )
    if record["quick"]:
        raise FileFormatError(
            f"{path} is of a run with --quick, whose numbers mean nothing; run examples/{record['name']}.py without it"
        )
    return {key: record[key] for key in _KEPT} | {"thumbnail": False}


def collect(figures: Path) -> list[dict[str, Any]]:
    """The entries of all JSON files in a folder; with a thumbnail where there is one."""
    files = sorted(figures.glob("*.json"))
    if not files:
        raise FileFormatError(
            f"no .json file in {str(figures)!r}; run the scripts in examples/ with --out {figures} first"
        )
    found = []
    for file in files:
        one = entry(json.loads(file.read_text(encoding="utf-8")), str(file))
        picture = file.with_name(f"{file.stem}.thumbnail.png")
        found.append(
            one | {"thumbnail": picture.is_file() and picture.stat().st_size <= THUMBNAIL_BYTES}
        )
    return found


def merged(
    earlier: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Entries by paper, then by figure; new ones replace earlier ones of their name."""
    by_name = {one["name"]: one for one in [*earlier, *new]}
    return sorted(
        by_name.values(),
        key=lambda one: (list(PAPERS).index(one["paper"].split(",")[0]), one["paper"], one["name"]),
    )


def page(entries: Sequence[dict[str, Any]], images: str) -> str:
    """The gallery in Markdown; ``images`` is the thumbnails' folder as seen from it."""
    counts = ", ".join(
        f"{sum(one['verdict'] == verdict for one in entries)} *{verdict}*" for verdict in VERDICTS
    )
    parts = [HEAD, f"{len(entries)} figures: {counts}.\n"]
    for short, paper in PAPERS.items():
        group = [one for one in entries if one["paper"].split(",")[0] == short]
        if group:
            parts.append(f"## {paper if short == 'lrt_lens' else f'{short}: {paper}'}\n")
            parts += [_section(one, images) for one in group]
    return "\n".join(parts)


def _section(one: dict[str, Any], images: str) -> str:
    compared = [
        Compared(**{**row, "ours": float("nan") if row["ours"] is None else row["ours"]})
        for row in one["compared"][:_SHOWN]
    ]
    picture = [f"![{one['title']}]({images}/{one['name']}.png)\n"] if one["thumbnail"] else []
    rows = [
        f"| {_cell(c.quantity)} | {_cell(c.paper_text)} | {_cell(c.ours_text)} | {_cell(c.control_text)} |"
        for c in compared
    ]
    lines = [
        f"### {one['title']}\n",
        f"{one['paper']} · `python examples/{one['name']}.py` · **{one['verdict']}**\n",
        *picture,
        f"*Claim.* {one['claim']}\n",
        "| | paper | ours | control |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        f"*{one['verdict'].capitalize()}*: {one['because']} {one['says']}\n",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write_gallery(figures: Path, readme: Path, images: Path) -> list[dict[str, Any]]:
    """Write gallery.json, the page and the thumbnails from a folder of figures; returns the
    entries.
    """
    summary = readme.with_name("gallery.json")
    earlier = read_summary(summary) if summary.is_file() else []
    entries = merged(earlier, collect(figures))
    make_folder(images)
    for one in entries:
        if (thumbnail := figures / f"{one['name']}.thumbnail.png").is_file() and one["thumbnail"]:
            shutil.copyfile(thumbnail, images / f"{one['name']}.png")
    text = (
        json.dumps(
            {"schema_version": GALLERY_SCHEMA, "figures": entries}, indent=1, ensure_ascii=False
        )
        + "\n"
    )
    content = page(entries, Path(os.path.relpath(images, readme.parent)).as_posix())
    write_atomically(summary, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    write_atomically(readme, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    return entries


def read_summary(path: Path) -> list[dict[str, Any]]:
    """The entries of a gallery.json."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("schema_version") != GALLERY_SCHEMA:
        raise FileFormatError(
            f"{path} has schema {content.get('schema_version')!r}; expected {GALLERY_SCHEMA!r}: remove it and run again"
        )
    return content["figures"]


def main(arguments: list[str] | None = None) -> None:
    """Command line of the module."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("figures", type=Path, help="folder that the scripts wrote to")
    parser.add_argument(
        "--readme",
        type=Path,
        default=Path("examples/README.md"),
        help="the page; gallery.json stands beside it",
    )
    parser.add_argument(
        "--images", type=Path, default=Path("docs/images/gallery"), help="folder of the thumbnails"
    )
    chosen = parser.parse_args(arguments)
    try:
        entries = write_gallery(chosen.figures, chosen.readme, chosen.images)
    except FileFormatError as error:
        parser.exit(2, f"error: {error}\n")
    logger.info("%d figures in %s", len(entries), chosen.readme)


if __name__ == "__main__":
    main()
