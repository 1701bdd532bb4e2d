"""The gallery of `examples/`: a page and its thumbnails, from the JSON files of the scripts.

    python -m lrt_lens.reproduction figures

Problem: numbers typed into a page become wrong when a script changes. Mechanism: the page is a
function of the scripts' JSON files alone.

It writes examples/README.md, examples/gallery.json and docs/images/gallery/. ``gallery.json`` holds
what the page shows, and the page is a function of it alone, so no number is typed by hand. A figure
that is not in the folder keeps its earlier entry. Runs with ``--quick`` are refused: their numbers
mean nothing.

Limits: a thumbnail larger than `THUMBNAIL_BYTES` is left out.
"""

import argparse
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrt_lens._files import make_folder, write_atomically
from lrt_lens._messages import one_line
from lrt_lens._refusals import is_refusal
from lrt_lens._stored_fields import read_json_file
from lrt_lens.errors import FileFormatError
from lrt_lens.reproduction._picture import THUMBNAIL_BYTES
from lrt_lens.reproduction._result import PAPERS, VERDICTS, Compared

logger = logging.getLogger(__name__)

GALLERY_SCHEMA = "lrt_lens.gallery/1"
"""Schema version of gallery.json."""
_KEPT = ("name", "title", "paper", "claim", "verdict", "because", "says", "compared", "seconds")
"""Keys of a script's JSON file that the gallery repeats."""
_SHOWN = 3
"""Number of compared quantities that the page shows per figure."""
HEAD = """# Gallery: the papers' figures, reproduced

Each script reproduces one figure or table of a paper on the bundled models, offline, or on your
models by `--source` and `--target`, with `--sae` and `--documents` if it reads any. It writes
`NAME.html` (interactive), `NAME.png` and `NAME.json` into `--out` (`figures/`). `--quick` shows
that it runs. `make figures` runs them all and writes this page from their JSON files: every number
below was measured by the command next to it.

The verdicts are rules in the scripts, on the bundled models of 1.5 and 5 million parameters:
*holds*: the claim is visible, beyond its controls; *holds with a caveat*: it is visible, and a
control or the setting limits its meaning; *does not survive its null*: a control that knows nothing
of the claim does as well, or there is no effect. The papers' models are thousands of times larger:
a verdict here is about the claim on these models.
"""


def entry(record: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the part of a NAME.json that the gallery repeats.

    Raises:
        FileFormatError: the file is no such record, or comes from a quick run.
    """
    missing = [key for key in (*_KEPT, "quick") if key not in record]
    if missing:
        raise FileFormatError(
            f"{path} lacks {missing}; "
            "give a folder that holds only the JSON files of the scripts in examples/"
        )
    if record["quick"]:
        raise FileFormatError(
            f"{path} is of a run with --quick, whose numbers mean nothing; "
            f"run examples/{record['name']}.py without it"
        )
    return {key: record[key] for key in _KEPT} | {"thumbnail": False}


def collect(figures: Path) -> list[dict[str, Any]]:
    """Return the entries of all JSON files in a folder, and whether each has a thumbnail.

    Raises:
        FileFormatError: the folder holds no JSON file, or one that is no record.
    """
    files = sorted(figures.glob("*.json"))
    if not files:
        raise FileFormatError(
            f"no .json file in {str(figures)!r}; "
            f"run the scripts in examples/ with --out {figures} first"
        )
    entries = []
    for file in files:
        record = read_json_file(file)
        picture = file.with_name(f"{file.stem}.thumbnail.png")
        # A large picture would slow down the page of the repository.
        has_picture = picture.is_file() and picture.stat().st_size <= THUMBNAIL_BYTES
        entries.append(entry(record, str(file)) | {"thumbnail": has_picture})
    return entries


def merged(
    earlier: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the entries by paper and figure; new ones replace earlier ones of the same name."""
    # Later entries win: new ones replace earlier ones of the same name.
    by_name = {one["name"]: one for one in [*earlier, *new]}
    papers = list(PAPERS)

    def position(one: dict[str, Any]) -> tuple[int, str, str]:
        # Papers in the order of PAPERS, then by figure or table, then by name.
        return papers.index(one["paper"].split(",")[0]), one["paper"], one["name"]

    return sorted(by_name.values(), key=position)


def page(entries: Sequence[dict[str, Any]], images: str) -> str:
    """Return the gallery in Markdown.

    Args:
        entries: entries of the figures, in the order of the page.
        images: folder of the thumbnails, relative to the page.
    """
    counts = ", ".join(
        f"{sum(one['verdict'] == verdict for one in entries)} *{verdict}*" for verdict in VERDICTS
    )
    parts = [HEAD, f"{len(entries)} figures: {counts}.\n"]
    for short, paper in PAPERS.items():
        # A reference such as "Stitching, table 1" begins with the short name of its paper.
        group = [one for one in entries if one["paper"].split(",")[0] == short]
        if group:
            parts.append(f"## {paper if short == 'lrt_lens' else f'{short}: {paper}'}\n")
            parts += [_section(one, images) for one in group]
    return "\n".join(parts)


def _section(one: dict[str, Any], images: str) -> str:
    # JSON has no NaN: it is stored as null.
    compared = [
        Compared(**{**row, "ours": float("nan") if row["ours"] is None else row["ours"]})
        for row in one["compared"][:_SHOWN]
    ]
    picture = [f"![{one['title']}]({images}/{one['name']}.png)\n"] if one["thumbnail"] else []
    texts = [(c.quantity, c.paper_text, c.ours_text, c.control_text) for c in compared]
    lines = [
        f"### {_text(one['title'])}\n",
        f"{one['paper']} · `python examples/{one['name']}.py` · **{one['verdict']}**\n",
        *picture,
        f"*Claim.* {_text(one['claim'])}\n",
        "| | paper | ours | control |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(_cell(text) for text in row)} |" for row in texts),
        "",
        f"*{one['verdict'].capitalize()}*: {_text(one['because'])} {_text(one['says'])}\n",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    # A bar or a line end would break the row of a Markdown table.
    return _text(text).replace("|", "\\|")


def _text(text: str) -> str:
    """Return a text on one line, in which Markdown reads no HTML."""
    # A tag begins with a letter, a slash or an exclamation mark: "n < d" is none.
    return re.sub("<(?=[A-Za-z/!])", "&lt;", one_line(text))


def write_gallery(figures: Path, readme: Path, images: Path) -> list[dict[str, Any]]:
    """Write gallery.json, the page and the thumbnails; return the entries.

    Args:
        figures: folder that the scripts wrote to.
        readme: the page; gallery.json is written next to it.
        images: folder of the thumbnails.

    Raises:
        FileFormatError: as in `collect`, or an earlier gallery.json has another schema.
    """
    summary = readme.with_name("gallery.json")
    earlier = read_summary(summary) if summary.is_file() else []
    # A run of some scripts must not remove the others from the page.
    entries = merged(earlier, collect(figures))
    make_folder(images)
    # Thumbnails before the page: the page never shows a picture that is not there.
    for one in entries:
        if (thumbnail := figures / f"{one['name']}.thumbnail.png").is_file() and one["thumbnail"]:
            shutil.copyfile(thumbnail, images / f"{one['name']}.png")
    gallery = {"schema_version": GALLERY_SCHEMA, "figures": entries}
    text = json.dumps(gallery, indent=1, ensure_ascii=False) + "\n"
    # Links in the page are relative to the folder of the page.
    content = page(entries, Path(os.path.relpath(images, readme.parent)).as_posix())
    write_atomically(summary, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    write_atomically(readme, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    return entries


def read_summary(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a gallery.json.

    Raises:
        FileFormatError: the file is damaged or has another schema.
    """
    content = read_json_file(path, GALLERY_SCHEMA)
    figures = content.get("figures")
    if not isinstance(figures, list) or not all(isinstance(one, dict) for one in figures):
        raise FileFormatError(f"{path} has no list of figures; remove it and run again")
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Run the command ``python -m lrt_lens.reproduction``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m lrt_lens.reproduction", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("figures", type=Path, help="folder that the scripts wrote to")
    parser.add_argument(
        "--readme",
        type=Path,
        default=Path("examples/README.md"),
        help="the page; gallery.json is written next to it",
    )
    parser.add_argument(
        "--images", type=Path, default=Path("docs/images/gallery"), help="folder of the thumbnails"
    )
    options = parser.parse_args(arguments)
    try:
        entries = write_gallery(options.figures, options.readme, options.images)
    except Exception as error:
        if not is_refusal(error):
            raise
        parser.exit(2, f"error: {one_line(error)}\n")
    logger.info("%d figures in %s", len(entries), options.readme)
