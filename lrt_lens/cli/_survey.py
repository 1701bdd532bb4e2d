"""The command ``lrt-lens survey``: scores of all hook pairs, from one short pass.

    lrt-lens survey --source gpt2 --target gpt2-medium --documents corpus.jsonl

Limits: one process; it resumes from its checkpoints.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lrt_lens._terminal import say
from lrt_lens.cli._outputs import print_best_pairs, start_run, write_run
from lrt_lens.cli._pair_command import PairCommand

_COLUMNS = ["source_hook", "target_hook", "gain_cv", "gain_low", "gain_high", "r2_cv", "r2_null"]
"""Columns that fit into a terminal of 80 columns."""


@dataclass(frozen=True, kw_only=True)
class SurveyPairs(PairCommand):
    """Score all hook pairs of two models on a few tokens, to choose layers.

    Writes survey.safetensors, results.json, report.html and run.toml.

        lrt-lens survey --source gpt2 --target gpt2-medium --documents corpus.jsonl

    Next: `lrt-lens fit … --pairs 5:11,6:12` harvests exact moments of the best, which it names.
    """

    words: ClassVar[str] = "survey"

    out: Path = Path("survey")
    """Folder for the results."""
    n_tokens: int = 20_000
    """Number of tokens to harvest."""
    columns: int = 64
    """Random columns of each target hook point."""
    source_columns: int | None = None
    """Columns through which the source's hook points are seen; by default they are whole."""
    down: bool = False
    """Also survey the maps down, from target to source."""

    def run(self) -> None:
        """Survey, write the results and print the best hook pairs."""
        from lrt_lens._repr_html import names_in_tables
        from lrt_lens.moments._checkpoint_files import remove_checkpoints
        from lrt_lens.moments._harvest_settings import SurveySettings
        from lrt_lens.stitching._survey import survey
        from lrt_lens.stitching._survey_report import survey_report

        self.check()
        columns = {"columns": self.columns, "source_columns": self.source_columns}
        settings = SurveySettings(**self.fields, **columns, down=self.down)
        start_run(self.out, self)
        folder = self.out / "checkpoint"
        if self.restart:
            remove_checkpoints(folder)
        pair = self.load(self.device)
        found = survey(
            pair,
            self.documents,
            solver=self.solver,
            settings=settings,
            checkpoint=folder,
            checkpoint_every=self.checkpoint_every,
            progress=self.progress,
        )
        path = found.save(self.out / "survey.safetensors")
        remove_checkpoints(folder)
        names = names_in_tables(pair.source.name, pair.target.name)
        tables = {"pair": dict(zip(("source", "target"), names, strict=True)), "grid": found.scores}
        report = write_run(self.out, self, tables, survey_report(*names, found))
        print_best_pairs(found.scores, _COLUMNS)
        best = ",".join(f"{s}:{t}" for s, t in found.best(3))
        say(
            f"{found.moments}\nOpen {report}; in Python: lrt.stitching.Survey.load({str(path)!r})\n"
            f"lrt-lens fit … --pairs {best}"
        )
