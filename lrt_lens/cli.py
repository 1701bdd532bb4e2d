"""The command line: ``lrt-lens demo`` and ``lrt-lens fit``.

Built by tyro from the dataclasses below, whose fields are the same as the functions' arguments. Nothing here imports torch before a
command runs, so ``--help`` answers at once.
"""

import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Demo:
    """Everything on the bundled pair of models, offline, in under two minutes: a fitted stitch, a transferred vector, a report."""

    out: Path = Path("demo-report")
    """Folder for results.json, report.html and stitch/."""
    n_tokens: int = 120_000
    """Tokens for the harvest."""
    damage: float = 0.1
    """Nats per token on neutral text at which vectors are compared."""
    n_random: int = 20
    """Random directions as a control."""
    seed: int = 0
    progress: bool = True

    def run(self) -> None:
        """Run it."""
        from lrt_lens.demo import demo_tables, refuse_unwritable, run_demo, write_demo

        refuse_unwritable(self.out)
        result = run_demo(n_tokens=self.n_tokens, damage=self.damage, n_random=self.n_random, seed=self.seed, progress=self.progress)
        report = write_demo(result, self.out)
        summary = demo_tables(result)["steering_summary"].rename(
            columns={"effect_at_equal_damage": "effect", "fraction_of_native": "of native"}
        )
        columns = ["concept", "arm", "scale", "effect", "low", "high", "of native", "flag"]
        _print_table(f"Effect in nats of log-odds, at {self.damage:g} nats per token of damage", summary.loc[:, columns])
        _say(f"{result.stitch}\n{result.seconds:.0f} s. Open {report}")


@dataclass(frozen=True)
class Fit:
    """Harvest two models on the same text and fit every layer pair."""

    source: str
    """Model that things were learnt on: hub id or local folder."""
    target: str
    """Model they are carried to."""
    documents: str
    """A .txt, .jsonl or .jsonl.gz file, or the name of a data set with a 'text' column."""
    out: Path = Path("stitches")
    """Folder for moments.safetensors, results.json, report.html and the best stitch."""
    n_tokens: int = 200_000
    context_length: int = 256
    source_layers: Annotated[str, tyro.conf.arg(metavar="all|proportional|3,5|HOOK")] = "all"
    """'all', 'proportional', layer numbers or hook points, separated by commas."""
    target_layers: Annotated[str, tyro.conf.arg(metavar="all|proportional|3,5|HOOK")] = "all"
    alpha: float | None = None
    """Ridge penalty relative to the mean variance; chosen by cross-validation by default."""
    standardize: bool = False
    """Scale source dimensions to unit variance first: for streams with massive dimensions."""
    null: Literal["auto", "full", "sketch", "none"] = "auto"
    """Shuffled pairs: kept whole, sketched, or not at all."""
    moment_dtype: Literal["float32", "float64"] = "float32"
    device: str | None = None
    device_map: str | None = None
    dtype: str = "float32"
    source_revision: str | None = None
    target_revision: str | None = None
    prepend_bos: bool | None = None
    seed: int = 0
    progress: bool = True

    def run(self) -> None:
        """Run it."""
        from lrt_lens.demo import refuse_unwritable
        from lrt_lens.models.pair import ModelPair
        from lrt_lens.report.fit import fit_report
        from lrt_lens.report.html import write_html
        from lrt_lens.report.results import write_results
        from lrt_lens.stitching.harvest import harvest
        from lrt_lens.stitching.ridge import Ridge

        refuse_unwritable(self.out)
        pair = ModelPair.load(
            self.source, self.target, device=self.device, device_map=self.device_map, dtype=self.dtype,
            source_revision=self.source_revision, target_revision=self.target_revision, prepend_bos=self.prepend_bos,
        )  # fmt: skip
        moments = harvest(
            pair, self.documents, source_layers=_layers(self.source_layers), target_layers=_layers(self.target_layers), n_tokens=self.n_tokens,
            context_length=self.context_length, seed=self.seed, null=True if self.null == "auto" else self.null,
            moment_dtype=self.moment_dtype, progress=self.progress,
        )  # fmt: skip
        moments.save(self.out / "moments.safetensors")
        grid = moments.fit(Ridge(alpha=self.alpha, standardize=self.standardize), progress=self.progress)
        best = grid.best()
        best.save_pretrained(self.out / "stitch")
        tables = {"pair": {"source": pair.source.name, "target": pair.target.name}, "grid": grid.scores, "stitch": best.scores}
        write_results(self.out / "results.json", {key: str(value) for key, value in asdict(self).items()}, tables)
        report = write_html(self.out / "report.html", fit_report(pair, grid, best))
        _print_table("Layer pairs, best first", grid.scores.sort_values("gain_cv", ascending=False).head(12).loc[:, _FIT_COLUMNS])
        _say(f"{best}\nOpen {report}")


_FIT_COLUMNS = ["source_hook", "target_hook", "alpha", "gain_cv", "r2_cv", "r2", "r2_uniform", "r2_down", "cka", "r2_null", "r2_token"]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``lrt-lens``."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    command = tyro.extras.subcommand_cli_from_dict({"demo": Demo, "fit": Fit}, prog="lrt-lens", description=__doc__, args=arguments)
    try:
        command.run()
    except KeyboardInterrupt:
        _say("interrupted; nothing half-written was left behind")
        sys.exit(130)
    except (ValueError, OSError, TypeError) as error:
        _say(f"error: {error}")
        sys.exit(1)


def _layers(text: str) -> Any:
    if text in ("all", "proportional"):
        return text
    return [int(part) if part.strip().lstrip("-").isdigit() else part.strip() for part in text.split(",")]


def _print_table(title: str, frame: "pd.DataFrame") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in frame.columns:
        table.add_column(column, overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    Console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return str(value)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
