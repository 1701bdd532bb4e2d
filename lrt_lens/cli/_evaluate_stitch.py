"""The command ``lrt-lens evaluate stitch``: the loss of a pass through a stitch.

    lrt-lens evaluate stitch stitches --source S --target T --documents corpus.jsonl

Limits: the arm token needs the moments of the fit, which its folder has.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from lrt_lens._terminal import print_table, say
from lrt_lens.cli._artefacts import load_stitch
from lrt_lens.cli._kinds import stitch_at
from lrt_lens.cli._models import PairOptions
from lrt_lens.cli._outputs import start_run, write_run

if TYPE_CHECKING:
    from lrt_lens.stitching._stitch import Stitch

Route = Literal["A->B", "B->A", "A->B->A", "B->A->B"]
"""Routes of `StitchLossSettings`, with an arrow that every keyboard has."""


@dataclass(frozen=True, kw_only=True)
class EvaluateStitch(PairOptions):
    r"""Measure the next-token loss of a pass that one model begins and the other finishes.

    A is the source, B the target; A->B runs A to its hook point, maps the states, and B finishes.
    Controls: the untouched models, ablation by the mean and by zero, the map of shuffled pairs, and
    token identity. Writes results.json, report.html and run.toml. Documents are those of the fit:
    only those of its test fold are read.

        lrt-lens evaluate stitch stitches --source gpt2 --target gpt2-medium \
            --documents corpus.jsonl

    Next: `lrt-lens report` joins several runs on one page.
    """

    words: ClassVar[str] = "evaluate stitch"
    stitch: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STITCH")]
    """Folder of a stitch, folder of a run of `lrt-lens fit`, or hub id."""
    documents: str
    """A file, a folder of files, or the name of a data set."""
    moments: Path | None = None
    """Moments of the fit, for the arm token; by default moments.safetensors beside the stitch."""
    out: Path = Path("stitch-evaluation")
    """Folder for the results."""
    routes: tuple[Route, ...] = ("A->B", "B->A", "A->B->A", "B->A->B")
    """Routes to measure."""
    controls: tuple[Literal["zero", "shuffled"], ...] = ("zero", "shuffled")
    """Controls to measure, besides own and mean."""
    n_tokens: int = 20_000
    """Counted positions after which no further document is read."""
    context_length: int = 256
    """Tokens per window, BOS included."""
    keep: Literal["bos", "masked"] = "bos"
    """Positions at which the finishing model keeps its own state."""
    folds: Literal["test", "all"] = "test"
    """Documents of the test fold of the fit, or all."""
    text_field: str | None = None
    """Column of the texts; by default 'text', 'messages', or the only column with texts."""
    group: str | None = None
    """Column of what belongs together and shares a fold, as in the fit."""
    seed: int = 0
    """Seed of the bootstraps."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        """Evaluate, write the results and print the routes."""
        from lrt_lens.stitching import StitchLossSettings, evaluate_stitch_loss

        self.check_numbers()
        stitch = load_stitch(self.stitch)
        settings = StitchLossSettings(
            routes=[route.replace("->", "→") for route in self.routes],
            controls=self.controls,
            n_tokens=self.n_tokens,
            context_length=self.context_length,
            keep=self.keep,
            folds=self.folds,
            text_field=self.text_field,
            group=self.group,
            seed=self.seed,
        )
        token_maps = self._token_map(stitch)
        self.check_models()
        start_run(self.out, self)
        pair = self.load()
        result = evaluate_stitch_loss(
            pair,
            stitch,
            self.documents,
            token_maps=token_maps,
            settings=settings,
            progress=self.progress,
        )
        tables = {
            "pair": {"source": pair.source.name, "target": pair.target.name},
            "stitched_loss": result.summary,
            "stitched_loss_arms": result.table,
        }
        report = write_run(self.out, self, tables, title="Loss of the stitched pass")
        columns = ["route", "ce", "ce_low", "ce_high", "increase_percent", "recovered", "kl"]
        print_table("Nats per token", result.summary.loc[:, columns])
        say(f"Open {report}; next: lrt-lens report {self.out}")

    def _token_map(self, stitch: "Stitch") -> Any:
        """Return the map of token identity up, if there are moments that have it."""
        from lrt_lens.moments import CrossMoments
        from lrt_lens.stitching import token_identity_map

        beside = Path(stitch_at(self.stitch)).parent / "moments.safetensors"
        if self.moments is None and not beside.is_file():
            return None
        moments = CrossMoments.load(self.moments or beside)
        has_token = moments.token_hook is not None
        return token_identity_map(moments, stitch.target_hook) if has_token else None
