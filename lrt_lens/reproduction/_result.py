"""The result of a script in `examples/`: numbers compared with the paper's, verdict, figures.

    Reproduction("name", title=…, paper="Stitching, table 1", claim=…, compared=[…], …).save("out")

Problem: an interrupted script must not leave files of two runs next to each other. Mechanism:
``save`` writes NAME.html (interactive, loads nothing), NAME.png and a thumbnail (by kaleido and a
Chrome or Chromium; without one there is a warning and no picture), and NAME.json. All are written
to a temporary folder next to their final location and moved at once, the JSON last: a folder with
NAME.json holds the other files of the same run, and an interrupted script leaves the earlier files.

Limits: two scripts of one name that write into one folder at the same time overwrite each other.
"""

import logging
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from lrt_lens._files import make_folder
from lrt_lens.figures._plotly import graph_objects
from lrt_lens.moments._interrupts import Interrupts
from lrt_lens.report._html import (
    KeyNumbers,
    Paragraph,
    Plot,
    Section,
    Table,
    format_value,
    render_html,
)
from lrt_lens.report._results import write_results
from lrt_lens.reproduction._picture import write_pictures

logger = logging.getLogger(__name__)

_PICTURES = (".png", ".thumbnail.png")
"""Endings of the pictures."""
Verdict = Literal["holds", "holds with a caveat", "does not survive its null"]
"""Result of a comparison with the paper, by a rule in the script."""
VERDICTS: tuple[str, ...] = get_args(Verdict)
"""All verdicts, from the best to the worst."""
PAPERS = {
    "LRT": "Linear Representation Transferability Hypothesis (arXiv 2506.00653)",
    "Stitching": "Transferring (Linear) Features Across Language Models With Model Stitching "
    "(arXiv 2506.06609)",
    "L-Cross": "Cross-model Transferability among Large Language Models on the Platonic "
    "Representations of Concepts (arXiv 2501.02009)",
    "lrt_lens": "A question of our own",
}
"""Title of each paper, by the short name with which a reference begins."""


@dataclass(frozen=True)
class Compared:
    """One quantity: our value, the paper's, and the control that it must exceed."""

    quantity: str
    """Name of the quantity, with its unit."""
    ours: float | str
    """Our value; a string if it is not a number."""
    paper: float | str | None = None
    """The paper's value; a string if the paper gives words or a plot, None if it gives nothing."""
    low: float | None = None
    """Lower end of our 95% interval."""
    high: float | None = None
    """Upper end of our 95% interval."""
    control: float | str | None = None
    """Value of the quantity under the control; None if there is no control."""
    control_name: str = ""
    """Name of the control, such as "shuffled pairs"."""

    @property
    def ours_text(self) -> str:
        """Our value with its interval."""
        low, high, text = self.low, self.high, format_value(self.ours)
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
            return text
        return f"{text} ({format_value(low)} to {format_value(high)})"

    @property
    def paper_text(self) -> str:
        """The paper's value, or "none"."""
        return "none" if self.paper is None else format_value(self.paper)

    @property
    def control_text(self) -> str:
        """Name and value of the control; empty if there is none."""
        if self.control is None:
            return ""
        return f"{self.control_name or 'control'} {format_value(self.control)}"


@dataclass(frozen=True)
class Reproduction:
    """A figure or table of a paper, reproduced."""

    name: str
    """Name of the script and of its files, such as `stitched_loss`."""
    title: str
    """Heading of the page and of the entry in the gallery."""
    paper: str
    """Short name of the paper and the part of it, such as `Stitching, table 1`."""
    claim: str
    """The paper's claim, in one sentence."""
    compared: Sequence[Compared]
    """The main quantities, the most informative one first; the gallery shows the first three."""
    says: str
    """Conclusions that the comparison supports and does not support."""
    verdict: Verdict
    """Result of the comparison, by a rule in the script."""
    because: str
    """The numbers behind the verdict, in one sentence that the script fills in."""
    figures: Mapping[str, "graph_objects.Figure"]
    """Figures by caption; the first one is the picture."""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """All measurements, by caption."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further values for the JSON file, such as the stitch's `repr`."""
    pages: Mapping[str, str] = field(default_factory=dict)
    """HTML of further pages by suffix, written as NAME-SUFFIX.html."""
    options: Any = None
    """Options of the script."""
    seconds: float | None = None
    """Duration of the run in seconds."""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"unknown verdict {self.verdict!r}; choose from {list(VERDICTS)}")
        if not self.figures or not self.compared:
            raise ValueError(
                f"{self.name!r} has {len(self.figures)} figures and "
                f"{len(self.compared)} compared numbers; it needs one of each"
            )
        if self.paper.split(",")[0] not in PAPERS:
            raise ValueError(
                f"paper {self.paper!r} begins with no known short name; choose from {list(PAPERS)}"
            )

    @property
    def quick(self) -> bool:
        """True if this was a run with ``--quick``, whose numbers mean nothing."""
        return bool(getattr(self.options, "quick", False))

    @property
    def beside_the_paper(self) -> pd.DataFrame:
        """The compared quantities as a table of texts."""
        columns = ["quantity", "paper", "ours", "control"]
        rows = [(c.quantity, c.paper_text, c.ours_text, c.control_text) for c in self.compared]
        return pd.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        quick = " (quick: the numbers mean nothing)" if self.quick else ""
        table = self.beside_the_paper.to_string(index=False)
        conclusion = f"{self.verdict}: {self.because}\n{self.says}"
        return f"{self.title} [{self.paper}]{quick}\n{table}\n{conclusion}"

    def record(self) -> dict[str, Any]:
        """Return the content of NAME.json except versions and arguments."""
        return {
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "claim": self.claim,
            "verdict": self.verdict,
            "because": self.because,
            "says": self.says,
            "quick": self.quick,
            "seconds": self.seconds,
            "compared": [asdict(one) for one in self.compared],
            "details": dict(self.details),
            "tables": dict(self.tables),
        }

    def html(self) -> str:
        """Return the page: verdict, compared quantities, figures, tables."""
        quick = " (quick run: means nothing)" if self.quick else ""
        # Tiles show the verdict and the first four quantities; the table below has all of them.
        tiles: list[Any] = [("verdict", self.verdict + quick, self.paper)]
        for one in self.compared[:4]:
            control = f"; {one.control_text}" if one.control is not None else ""
            tiles.append((one.quantity, one.ours_text, f"paper: {one.paper_text}{control}"))
        text = f"Claim: {self.claim}\n\nMeasured here: {self.because}\n\n{self.says}"
        tables = {"Our values and the paper's": self.beside_the_paper} | dict(self.tables)
        sections = [
            Section("Result", [KeyNumbers(tiles), Paragraph(text)]),
            Section("Figures", [Plot(one, caption) for caption, one in self.figures.items()]),
            Section("Numbers", [Table(frame, caption) for caption, frame in tables.items()]),
        ]
        return render_html(self.title, sections, subtitle=PAPERS[self.paper.split(",")[0]])

    def save(self, out: str | Path) -> dict[str, Path]:
        """Write NAME.html, NAME.png, NAME.thumbnail.png and NAME.json into ``out``, all or none.

        Returns:
            Path of each written file, by its ending.

        Raises:
            OSError: the folder cannot be created or written.
        """
        pages = {f"{self.name}.html": self.html()}
        pages |= {f"{self.name}-{suffix}.html": page for suffix, page in self.pages.items()}
        # Scripts pass a dataclass; a result without options has no arguments to record.
        options = self.options
        arguments: dict[str, Any] = {}
        if is_dataclass(options) and not isinstance(options, type):
            arguments = _plain(asdict(options))
        folder = make_folder(Path(out))
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f".{self.name}."))
        try:
            for file, page in pages.items():
                (temporary / file).write_text(page, encoding="utf-8", errors="replace")
            picture, thumbnail = (temporary / f"{self.name}{ending}" for ending in _PICTURES)
            # The first figure is the picture, because a gallery has one per entry.
            write_pictures(next(iter(self.figures.values())), picture, thumbnail)
            write_results(temporary / f"{self.name}.json", arguments, self.record())
            return _moved(temporary, folder, self.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _moved(temporary: Path, folder: Path, name: str) -> dict[str, Path]:
    """Replace the files of an earlier run by the new ones, and return these by their ending.

    An interrupt waits until that is done; a failure restores the old files.
    """
    # Remove the old JSON first and move the new one last: it never describes missing files.
    new = sorted(
        (path for path in temporary.iterdir() if path.is_file()),
        key=lambda path: path.suffix == ".json",
    )
    # A second folder inside the temporary one, so that every move is a rename in one file system.
    old = [folder / f"{name}{ending}" for ending in (".json", ".html", *_PICTURES)]
    old += sorted(folder.glob(f"{name}-*.html"))
    backup, written = temporary / "before", {}
    backup.mkdir()
    interrupts = Interrupts()
    interrupts.install()
    try:
        with interrupts.held():
            try:
                for path in old:
                    if path.exists():
                        path.replace(backup / path.name)
                for path in new:
                    written[path.name.removeprefix(name)] = path.replace(folder / path.name)
            # BaseException, because KeyboardInterrupt must restore the old files too.
            except BaseException:
                for path in written.values():
                    path.unlink(missing_ok=True)
                for path in backup.iterdir():
                    path.replace(folder / path.name)
                raise
    finally:
        interrupts.uninstall()
    return written


def _plain(value: Any) -> Any:
    """Return options as JSON values: paths become text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
