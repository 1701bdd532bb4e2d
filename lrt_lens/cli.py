"""The command line: ``lrt-lens demo``, ``fit`` and ``merge``.

Built by tyro from the dataclasses below, whose fields are the same as the functions' arguments.
Nothing here imports torch before a command runs, so ``--help`` answers at once.
"""

import logging
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    import pandas as pd

    from lrt_lens.models._pair import ModelPair
    from lrt_lens.moments._harvesting import HarvestRun
    from lrt_lens.moments._hook_pairs import HookPair as Pair
    from lrt_lens.moments._plan import HarvestPlan
    from lrt_lens.moments._scale_out import Ranks
    from lrt_lens.stitching._grid import StitchGrid
    from lrt_lens.stitching.solvers._ridge import Ridge


@dataclass(frozen=True)
class Demo:
    """Everything on the bundled pair of models, offline, in about two minutes: a fitted stitch, a
    transferred vector, a report.
    """

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
        # Before transformers is imported: the bundled models load in a blink, and its bars would
        # break into ours.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from lrt_lens.demo._run import demo_tables, refuse_unwritable, run_demo, write_demo

        refuse_unwritable(self.out)
        result = run_demo(
            n_tokens=self.n_tokens,
            damage=self.damage,
            n_random=self.n_random,
            seed=self.seed,
            progress=self.progress,
        )
        report = write_demo(result, self.out)
        summary = demo_tables(result)["steering_summary"].rename(
            columns={"effect_at_equal_damage": "effect", "fraction_of_native": "of native"}
        )
        columns = ["concept", "arm", "scale", "effect", "low", "high", "of native", "flag"]
        _print_table(
            f"Effect in nats of log-odds, at {self.damage:g} nats per token of damage",
            summary.loc[:, columns],
        )
        _say(f"{result.stitch}\n{result.seconds:.0f} s. Open {report}")


@dataclass(frozen=True)
class Fit:
    """Harvest two models on the same text and fit every layer pair; killed and started again, it
    goes on where it was.

    Many processes share the work under ``torchrun --nproc-per-node N -m lrt_lens fit …``, or as
    ``--shard i/N`` in jobs of their own (docs/how-to/run_on_a_cluster.md).
    """

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
    shard: Annotated[str | None, tyro.conf.arg(metavar="i/N")] = None
    """Harvest only every Nth block, from the i-th on (from 0), write moments-i-of-N.safetensors and
    stop; `lrt-lens merge` goes on.
    """
    checkpoint_every: float = 120.0
    """Seconds between checkpoints, in the folder checkpoint/ below --out."""
    restart: bool = False
    """Throw the checkpoints of an earlier run away."""
    memory_budget: Annotated[str | None, tyro.conf.arg(metavar="8GB")] = None
    """Memory for the moments of a process: where they need more, target layers are harvested in
    several passes.
    """
    dry_run: bool = False
    """Say what it would take, from the configs alone, and stop."""
    progress: bool = True

    def run(self) -> None:
        """Run it."""
        from lrt_lens.moments._scale_out import Ranks, parse_shard

        ranks, shard = Ranks.of_environment(), parse_shard(self.shard) if self.shard else None
        plan = self._plan(ranks) if self.dry_run or self.memory_budget else None
        if plan is not None and ranks.rank == 0:
            self._show_plan(plan)
        if self.dry_run:
            return
        passes = plan.passes if plan is not None and len(plan.passes) > 1 else ()
        if shard is not None and passes:
            raise ValueError(
                f"the memory budget needs {len(passes)} passes, and --shard takes one: raise --memory-budget, or give some "
                "--target-layers to each run"
            )
        self._prepare_folder(ranks, max(1, len(passes)))
        grids = self._harvest(ranks, shard, passes)
        if grids is not None:
            _write_outputs(self.out, _json_arguments(self), *grids)

    def _harvest(
        self, ranks: "Ranks", shard: tuple[int, int] | None, passes: "tuple[tuple[Pair, ...], ...]"
    ) -> "tuple[StitchGrid, tuple[str, str]] | None":
        """(all pairs fitted, names of the models) on rank 0; None on the others, and where a shard
        was written.
        """
        from lrt_lens.models._pair import ModelPair
        from lrt_lens.moments._checkpoint import remove_checkpoints
        from lrt_lens.moments._scale_out import harvest_in_ranks, shard_name
        from lrt_lens.stitching._fit import fit_grid

        pair = ModelPair.load(
            self.source,
            self.target,
            device=ranks.device(self.device),
            device_map=self.device_map,
            dtype=self.dtype,
            source_revision=self.source_revision,
            target_revision=self.target_revision,
            prepend_bos=self.prepend_bos,
        )
        whole = self._settle(pair, shard)
        runs = [whole.with_pairs(pairs) for pairs in passes] or [whole]
        name = shard_name(shard) if shard else "moments.safetensors"
        files = (
            [
                self.out / f"moments-pass-{k}-of-{len(runs)}.safetensors"
                for k in range(1, len(runs) + 1)
            ]
            if passes
            else [self.out / name]
        )
        grids: list[StitchGrid] = []
        for run, file, folder in zip(runs, files, self._checkpoints(len(runs)), strict=True):
            moments = harvest_in_ranks(
                run,
                self.documents,
                folder,
                ranks=ranks,
                result=files[-1],
                checkpoint_every=self.checkpoint_every,
                progress=self.progress and ranks.rank == 0,
            )
            if moments is None:
                continue
            moments.save(file)
            if shard is None:
                grid = fit_grid(moments, self._solver, progress=self.progress)
                grids.append(grid if len(runs) == 1 else _without_moments(grid))
        if ranks.rank:
            return None
        for folder in self._checkpoints(len(runs)):
            remove_checkpoints(folder)
        if shard is not None:
            _say(
                f"written: {files[0]}; when all {shard[1]} shards are there: lrt-lens merge OUT {self.out / 'moments-*.safetensors'}"
            )
            return None
        return _combined(grids, files, whole.pairs), (pair.source.name, pair.target.name)

    def _settle(self, pair: "ModelPair", shard: tuple[int, int] | None) -> "HarvestRun":
        from lrt_lens.moments._harvesting import settle

        return settle(
            pair,
            source_layers=_layers(self.source_layers),
            target_layers=_layers(self.target_layers),
            n_tokens=self.n_tokens,
            context_length=self.context_length,
            seed=self.seed,
            null=self._null,
            moment_dtype=self.moment_dtype,
            shard=shard,
        )

    def _plan(self, ranks: "Ranks") -> "HarvestPlan":
        from lrt_lens._byte_sizes import parse_bytes
        from lrt_lens.moments._plan import ModelShape, plan_harvest

        return plan_harvest(
            ModelShape.of_pretrained(self.source, self.dtype, self.source_revision),
            ModelShape.of_pretrained(self.target, self.dtype, self.target_revision),
            source_layers=_layers(self.source_layers),
            target_layers=_layers(self.target_layers),
            null=self._null,
            moment_dtype=self.moment_dtype,
            context_length=self.context_length,
            n_tokens=self.n_tokens,
            memory_budget=parse_bytes(self.memory_budget) if self.memory_budget else None,
            ranks=ranks.count,
        )

    def _show_plan(self, plan: "HarvestPlan") -> None:
        from lrt_lens.moments._plan import measure_throughput

        throughput = measure_throughput(self.device or "cpu", plan.source.dtype, plan.moment_dtype)
        _print_table(
            f"What {plan.source.name} → {plan.target.name} takes",
            plan.table(throughput).loc[:, ["item", "amount", "how"]],
        )
        for number, pairs in enumerate(plan.passes if len(plan.passes) > 1 else (), start=1):
            _say(
                f"pass {number}: {len(pairs)} pairs to {', '.join(dict.fromkeys(target for _, target in pairs))}"
            )

    def _prepare_folder(self, ranks: "Ranks", n_passes: int) -> None:
        from lrt_lens._files import make_folder
        from lrt_lens.demo._run import refuse_unwritable
        from lrt_lens.moments._checkpoint import remove_checkpoints

        if self.restart and ranks.count > 1:
            raise ValueError(
                f"--restart with {ranks.count} ranks: one would remove what another has begun; remove "
                f"{self.out / 'checkpoint'} and leave it out"
            )
        if ranks.rank:
            make_folder(self.out)
            return
        # Shards may share a folder, and must not meet at the file that this tries to write.
        refuse_unwritable(self._checkpoints(n_passes)[0] if self.shard else self.out)
        if self.restart:
            for folder in self._checkpoints(n_passes):
                remove_checkpoints(folder)

    def _checkpoints(self, n_passes: int) -> list[Path]:
        """A folder of checkpoints for each pass, and one for each shard: several may share an
        --out.
        """
        name = f"checkpoint-{self.shard.replace('/', '-of-')}" if self.shard else "checkpoint"
        return [
            self.out / (name if n_passes == 1 else f"{name}-pass-{k}-of-{n_passes}")
            for k in range(1, n_passes + 1)
        ]

    @property
    def _null(self) -> Any:
        return True if self.null == "auto" else self.null

    @property
    def _solver(self) -> "Ridge":
        from lrt_lens.stitching.solvers._ridge import Ridge

        return Ridge(alpha=self.alpha, standardize=self.standardize)


@dataclass(frozen=True)
class Merge:
    """Add the moments of all shards of a run, fit, and write what fit writes."""

    out: tyro.conf.Positional[Path]
    """Folder for moments.safetensors, results.json, report.html and the best stitch."""
    shards: tyro.conf.Positional[tuple[Path, ...]]
    """The files that `lrt-lens fit --shard i/N` has written, in any order."""
    alpha: float | None = None
    """As in fit."""
    standardize: bool = False
    progress: bool = True

    def run(self) -> None:
        """Run it."""
        from lrt_lens.demo._run import refuse_unwritable
        from lrt_lens.moments._scale_out import merge_shards
        from lrt_lens.stitching._fit import fit_grid
        from lrt_lens.stitching.solvers._ridge import Ridge

        refuse_unwritable(self.out)
        moments = merge_shards(self.shards)
        moments.save(self.out / "moments.safetensors")
        models = (moments.provenance.source, moments.provenance.target)
        names = tuple(model.name if model else "unknown" for model in models)
        solver = Ridge(alpha=self.alpha, standardize=self.standardize)
        grid = fit_grid(moments, solver, progress=self.progress)
        _write_outputs(self.out, _json_arguments(self), grid, (names[0], names[1]))


def _write_outputs(
    out: Path, arguments: dict[str, Any], grid: "StitchGrid", names: tuple[str, str]
) -> None:
    """The best stitch, results.json and report.html; the table on the screen."""
    from lrt_lens.models._hook_points import short_hook
    from lrt_lens.report._html import write_html
    from lrt_lens.report._results import write_results
    from lrt_lens.stitching._fit_report import fit_report

    best = grid.best()
    best.save_pretrained(out / "stitch")
    tables = {
        "pair": {"source": names[0], "target": names[1]},
        "grid": grid.scores,
        "stitch": best.scores,
    }
    write_results(out / "results.json", arguments, tables)
    report = write_html(out / "report.html", fit_report(*names, grid, best))
    shown = grid.scores.sort_values("gain_cv", ascending=False).head(_SHOWN_PAIRS)
    for column in ("source_hook", "target_hook"):
        shown[column] = shown[column].map(short_hook)
    part = "" if len(shown) == len(grid.scores) else f" ({len(shown)} of {len(grid.scores)})"
    _print_table(f"Layer pairs, best first{part}", shown.loc[:, _FIT_COLUMNS])
    read = f"{grid.moments.n_tokens:,} tokens of {grid.moments.provenance.n_documents:,} documents, {grid.moments.n_fit:,} of them fitted; the others test."
    _say(
        f"{read}\n{best}\nOpen {report}; in Python: lrt.Stitch.from_pretrained({str(out / 'stitch')!r})"
    )


def _without_moments(grid: "StitchGrid") -> "StitchGrid":
    """Scores alone: the moments of one pass must go before those of the next come."""
    from lrt_lens.moments._cross_moments import CrossMoments

    return replace(grid, moments=CrossMoments(pairs=()))


def _combined(
    grids: "list[StitchGrid]", files: list[Path], pairs: "tuple[Pair, ...]"
) -> "StitchGrid":
    """One grid of all passes, over the moments of the pass that holds the best pair."""
    import pandas as pd

    from lrt_lens.moments._cross_moments import CrossMoments

    if len(grids) == 1:
        return grids[0]
    scores = pd.concat([grid.scores for grid in grids], ignore_index=True)
    fitted = list(
        zip(map(str, scores["source_hook"]), map(str, scores["target_hook"]), strict=True)
    )
    order = [fitted.index(pair) for pair in pairs]
    winner = max(range(len(grids)), key=lambda number: grids[number].scores["gain_cv"].max())
    folds = {pair: found for grid in grids for pair, found in grid.folds.items()}
    return replace(
        grids[winner],
        moments=CrossMoments.load(files[winner]),
        scores=scores.iloc[order].reset_index(drop=True),
        folds=folds,
    )


def _json_arguments(command: Any) -> dict[str, Any]:
    """A command's fields as JSON values."""

    def plain(value: Any) -> Any:
        return (
            str(value)
            if isinstance(value, Path)
            else [plain(item) for item in value]
            if isinstance(value, tuple)
            else value
        )

    return {key: plain(value) for key, value in asdict(command).items()}


_SHOWN_PAIRS = 12
_FIT_COLUMNS = [
    "source_hook",
    "target_hook",
    "gain_cv",
    "r2",
    "r2_uniform",
    "r2_down",
    "r2_null",
    "r2_token",
]
"""What fits a terminal of 80 columns; the report and results.json hold all."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``lrt-lens``."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    commands = {"demo": Demo, "fit": Fit, "merge": Merge}
    command = tyro.extras.subcommand_cli_from_dict(
        commands, prog="lrt-lens", description=__doc__, args=arguments
    )
    try:
        command.run()
    except KeyboardInterrupt:
        resumes = (
            "; start the same command again and it goes on where it was"
            if isinstance(command, Fit)
            else ""
        )
        _complain(f"interrupted; nothing half-written was left behind{resumes}")
        sys.exit(130)
    except (ValueError, OSError, TypeError) as error:
        _complain(f"error: {error}")
        sys.exit(1)


def _layers(text: str) -> Any:
    if text in ("all", "proportional"):
        return text
    return [
        int(part) if part.strip().lstrip("-").isdigit() else part.strip()
        for part in text.split(",")
    ]


def _print_table(title: str, frame: "pd.DataFrame") -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=SIMPLE, padding=0, collapse_padding=True)
    for column in frame.columns:
        table.add_column(
            column, overflow="fold", justify="right" if frame[column].dtype.kind in "fi" else "left"
        )
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    Console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return str(value)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")
