"""The command ``lrt-lens report``: one page out of the results of several runs.

    lrt-lens report stitches evaluation-vector evaluation-probe --out report

Limits: figures are drawn for the tables that this version writes; other tables are shown alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from lrt_lens._terminal import print_table, say
from lrt_lens.cli._command import Command
from lrt_lens.cli._outputs import RESULTS, start_run, write_run


@dataclass(frozen=True, kw_only=True)
class ReportRuns(Command):
    """Write one self-contained page out of the results of several runs.

    Every run of a command wrote results.json into its folder; the page needs nothing else, and
    works without a network.

        lrt-lens report stitches vector-evaluation probe-evaluation --out report

    Writes report.html, results.json (a list of the runs) and run.toml.
    """

    words: ClassVar[str] = "report"
    results: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RESULTS")]
    """Folders of runs, or their files results.json, in the order of the page."""
    out: Path = Path("report")
    """Folder for the page."""
    title: str = "Report of several runs"
    """Title of the page."""

    def run(self) -> None:
        """Read the results and write the page."""
        import pandas as pd

        from lrt_lens.cli._sections import sections_of
        from lrt_lens.report import render_html
        from lrt_lens.report._html import Section, Table

        if not self.results:
            raise ValueError("no results are given; name the folders of runs, such as stitches")
        runs = {_name(path, self.results): _read(path) for path in self.results}
        start_run(self.out, self)
        rows = [_row(name, content) for name, content in runs.items()]
        frame = pd.DataFrame(rows)
        sections = [Section("Runs", [Table(frame, caption="Runs on this page")])]
        for name, content in runs.items():
            sections += sections_of(content, prefix=f"{name}: ")
        page = render_html(self.title, sections)
        report = write_run(self.out, self, {"runs": frame}, page)
        print_table("Runs on the page", frame.loc[:, ["run", "command", "tables"]])
        say(f"Open {report}")


def _read(path: Path) -> dict[str, Any]:
    """Return the content of the results of a run.

    Raises:
        ValueError: there are none, or they are of another program.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"no results at {str(file)!r}; give the folder of a run of lrt-lens, or its {RESULTS}"
        )
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        if file.name == RESULTS:
            raise ValueError(
                f"{str(file)!r} is damaged ({error}); run the command again"
            ) from error
        raise ValueError(
            f"{str(file)!r} holds no results of a run (it is no JSON); give the folder of the run, "
            f"such as {str(file.parent)!r}, or its {RESULTS}"
        ) from error
    schema = content.get("schema_version") if isinstance(content, dict) else None
    if not str(schema).startswith("lrt_lens.results/"):
        raise ValueError(
            f"{str(file)!r} has the schema {schema!r}; expected 'lrt_lens.results/1': give the "
            "results of a run of lrt-lens"
        )
    return content


def _name(path: Path, others: tuple[Path, ...]) -> str:
    """Return the name of a run: that of its folder, or its whole path if two are called alike."""
    folders = {one: one.parent if one.name == RESULTS else one for one in others}
    name = folders[path].resolve().name
    alike = [one for one in folders.values() if one.resolve().name == name]
    return name if len(alike) == 1 else str(folders[path])


def _row(name: str, content: dict[str, Any]) -> dict[str, Any]:
    pair, versions = content.get("pair") or {}, content.get("versions") or {}
    apart = ("schema_version", "versions", "arguments", "command", "pair")
    return {
        "run": name,
        "command": content.get("command", ""),
        "source": pair.get("source", ""),
        "target": pair.get("target", ""),
        "tables": ", ".join(one for one in content if one not in apart),
        "version": versions.get("lrt-lens", ""),
    }
