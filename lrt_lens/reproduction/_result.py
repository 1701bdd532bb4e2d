"""What a figure script found: our numbers beside the paper's, a verdict with its reason, tables and
figures; written whole or not at all.

``save`` writes NAME.html (interactive, loads nothing), NAME.png and a thumbnail (by kaleido and a
Chrome or Chromium; without one a warning, and the rest), and NAME.json. They are made in a
temporary folder beside their places and moved there in one go, the JSON last: a folder with
NAME.json holds the other files of the same run, and a script that is interrupted leaves what was
there before.
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
import plotly.graph_objects as go

from lrt_lens._files import make_folder
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

Verdict = Literal["holds", "holds with a caveat", "does not survive its null"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
PAPERS = {
    "LRT": "Linear Representation Transferability Hypothesis (arXiv 2506.00653)",
    "Stitching": "Transferring (Linear) Features Across Language Models With Model Stitching (arXiv 2506.06609)",
    "L-Cross": "Cross-model Transferability among Large Language Models on the Platonic Representations of Concepts (arXiv 2501.02009)",
    "lrt_lens": "A question of our own",
}
"""What the first word of a reference stands for."""


@dataclass(frozen=True)
class Compared:
    """One quantity: ours, the paper's beside it, and the control that it has to beat."""

    quantity: str
    """What it is, with its unit."""
    ours: float | str
    paper: float | str | None = None
    """None where the paper has no such number; a string where it says so in words or as a plot."""
    low: float | None = None
    """Ends of our 95% interval."""
    high: float | None = None
    control: float | str | None = None
    """The same quantity under the control."""
    control_name: str = ""

    @property
    def ours_text(self) -> str:
        """Our number with its interval."""
        if (
            self.low is None
            or self.high is None
            or not (math.isfinite(self.low) and math.isfinite(self.high))
        ):
            return format_value(self.ours)
        return f"{format_value(self.ours)} ({format_value(self.low)} to {format_value(self.high)})"

    @property
    def paper_text(self) -> str:
        """The paper's number, or that there is none."""
        return "none" if self.paper is None else format_value(self.paper)

    @property
    def control_text(self) -> str:
        """The control's number and name; empty without one."""
        return (
            ""
            if self.control is None
            else f"{self.control_name or 'control'} {format_value(self.control)}"
        )


@dataclass(frozen=True)
class Reproduction:
    """A figure or table of a paper, made again."""

    name: str
    """Of the files and of the script: `stitched_loss`."""
    title: str
    paper: str
    """Short name of the paper and what of it: `Stitching, table 1`."""
    claim: str
    """What the paper says, in a sentence."""
    compared: Sequence[Compared]
    """The numbers that count, the most telling one first: the gallery shows the first three."""
    says: str
    """What the comparison does and does not show."""
    verdict: Verdict
    because: str
    """The numbers behind the verdict, in a sentence that the script fills in."""
    figures: Mapping[str, go.Figure]
    """Caption → figure; the first one is the picture."""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """Caption → table, all that was measured."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further values for the JSON, such as the stitch's `repr`."""
    pages: Mapping[str, str] = field(default_factory=dict)
    """Further pages, suffix → HTML: written as NAME-SUFFIX.html."""
    options: Any = None
    """The script's options."""
    seconds: float | None = None
    """How long it took."""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict {self.verdict!r} is none; choose from {list(VERDICTS)}")
        if not self.figures or not self.compared:
            raise ValueError(
                f"{self.name!r} has {len(self.figures)} figures and {len(self.compared)} compared numbers; it needs one of each"
            )
        if self.paper.split(",")[0] not in PAPERS:
            raise ValueError(
                f"paper {self.paper!r} begins with no known short name; choose from {list(PAPERS)}"
            )

    @property
    def quick(self) -> bool:
        """Whether this was a run with ``--quick``, whose numbers mean nothing."""
        return bool(getattr(self.options, "quick", False))

    @property
    def beside_the_paper(self) -> pd.DataFrame:
        """The compared numbers as a table of texts."""
        rows = [
            {
                "quantity": c.quantity,
                "paper": c.paper_text,
                "ours": c.ours_text,
                "control": c.control_text,
            }
            for c in self.compared
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        quick = " (quick: the numbers mean nothing)" if self.quick else ""
        table = self.beside_the_paper.to_string(index=False)
        return f"{self.title} [{self.paper}]{quick}\n{table}\n{self.verdict}: {self.because}\n{self.says}"

    def record(self) -> dict[str, Any]:
        """All that NAME.json holds beside versions and arguments."""
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
        """The page: verdict, numbers beside the paper's, figures, tables."""
        found = [
            (
                c.quantity,
                c.ours_text,
                f"paper: {c.paper_text}" + (f"; {c.control_text}" if c.control is not None else ""),
            )
            for c in self.compared[:4]
        ]
        body = [
            KeyNumbers(
                [
                    (
                        "verdict",
                        self.verdict + (" (quick run: means nothing)" if self.quick else ""),
                        self.paper,
                    ),
                    *found,
                ]
            ),
            Paragraph(f"The claim: {self.claim}\n\nHere: {self.because}\n\n{self.says}"),
        ]
        plots: list[Any] = [Plot(figure, caption) for caption, figure in self.figures.items()]
        tables: list[Any] = [
            Table(self.beside_the_paper, "Ours beside the paper's"),
            *(Table(frame, caption) for caption, frame in self.tables.items()),
        ]
        sections = [
            Section("What was found", body),
            Section("Figures", plots),
            Section("Numbers", tables),
        ]
        return render_html(self.title, sections, subtitle=PAPERS[self.paper.split(",")[0]])

    def save(self, out: str | Path) -> dict[str, Path]:
        """Write NAME.html, NAME.png, NAME.thumbnail.png and NAME.json into ``out``, all or none;
        returns ending → path of those written.
        """
        folder = make_folder(Path(out))
        making = Path(tempfile.mkdtemp(dir=folder, prefix=f".{self.name}."))
        try:
            (making / f"{self.name}.html").write_text(
                self.html(), encoding="utf-8", errors="replace"
            )
            for suffix, page in self.pages.items():
                (making / f"{self.name}-{suffix}.html").write_text(
                    page, encoding="utf-8", errors="replace"
                )
            write_pictures(
                next(iter(self.figures.values())),
                making / f"{self.name}.png",
                making / f"{self.name}.thumbnail.png",
            )
            arguments = (
                _plain(asdict(self.options))
                if is_dataclass(self.options) and not isinstance(self.options, type)
                else {}
            )
            write_results(making / f"{self.name}.json", arguments, self.record())
            return _moved(making, folder, self.name)
        finally:
            shutil.rmtree(making, ignore_errors=True)


def _moved(making: Path, folder: Path, name: str) -> dict[str, Path]:
    """Replace the files of an earlier run by the new ones; an interrupt waits until that is done, a
    failure brings the old ones back.
    """
    # The JSON goes first and comes last.
    made = sorted(
        (path for path in making.iterdir() if path.is_file()),
        key=lambda path: path.suffix == ".json",
    )
    old = [
        folder / f"{name}{ending}" for ending in (".json", ".html", ".png", ".thumbnail.png")
    ] + sorted(folder.glob(f"{name}-*.html"))
    before, written = making / "before", {}
    before.mkdir()
    interrupts = Interrupts()
    interrupts.install()
    try:
        with interrupts.held():
            try:
                for place in old:
                    if place.exists():
                        place.replace(before / place.name)
                for path in made:
                    written[path.name.removeprefix(name)] = path.replace(folder / path.name)
            except BaseException:
                for path in written.values():
                    path.unlink(missing_ok=True)
                for path in before.iterdir():
                    path.replace(folder / path.name)
                raise
    finally:
        interrupts.uninstall()
    return written


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
