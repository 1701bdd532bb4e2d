"""The command line: ``lrt-lens demo``, ``fit`` and ``merge``.

Built by tyro from the dataclasses below, whose fields are arguments of the Python functions. torch
is imported only when a command runs, so ``--help`` answers at once.
"""

import logging
import os
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro

from lrt_lens._refusals import is_refusal
from lrt_lens._terminal import (
    PlainFormatter,
    complain,
    drop_output,
    open_closed_streams,
    print_table,
    say,
)
from lrt_lens.moments._interrupts import Interrupts

if TYPE_CHECKING:
    from lrt_lens.models._hook_points import HookPair
    from lrt_lens.models._pair import ModelPair
    from lrt_lens.moments._harvesting import HarvestRun
    from lrt_lens.moments._plan import HarvestPlan
    from lrt_lens.moments._scale_out import Ranks
    from lrt_lens.stitching._grid import StitchGrid
    from lrt_lens.stitching.solvers._ridge import Ridge


@dataclass(frozen=True)
class Demo:
    """Run the main workflow on the bundled pair of models: stitch, transfer, evaluation, report.

    It needs no network and takes about two minutes.
    """

    out: Path = Path("demo-report")
    """Folder for results.json, report.html and stitch/."""
    n_tokens: int = 120_000
    """Number of tokens of the harvest."""
    damage: float = 0.1
    """Damage in nats per token on neutral text at which vectors are compared."""
    n_random: int = 20
    """Number of random directions, as a control."""
    seed: int = 0
    """Seed of folds, draws and bootstraps."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        """Run the demo and write its report."""
        from lrt_lens._files import refuse_unwritable
        from lrt_lens.demo._report import demo_tables, write_demo
        from lrt_lens.demo._run import checked_numbers, run_demo

        checked_numbers(
            n_tokens=self.n_tokens, n_random=self.n_random, damage=self.damage, seed=self.seed
        )
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
        print_table(
            f"Effect in nats of log-odds, at {self.damage:g} nats per token of damage",
            summary.loc[:, columns],
        )
        say(f"{result.stitch}\n{result.seconds:.0f} s. Open {report}")


@dataclass(frozen=True)
class Fit:
    """Harvest two models on the same text and fit a map for every hook pair.

    A run that is interrupted resumes if the same command is started again. Several processes can
    share the work under ``torchrun --nproc-per-node N -m lrt_lens fit …``, or as ``--shard i/N`` in
    separate jobs (docs/how-to/run_on_a_cluster.md).
    """

    source: str
    """Source model, on which things are learnt: hub id or local folder."""
    target: str
    """Target model of the transfer: hub id or local folder."""
    documents: str
    """A file (.txt, .md, .jsonl, .ndjson, .json, .csv, .tsv or .parquet, also with .gz or .zst), a
    folder of such files, or the name of a data set."""
    out: Path = Path("stitches")
    """Folder for moments.safetensors, results.json, report.html and the best stitch."""
    n_tokens: int = 200_000
    """Number of tokens to harvest."""
    max_document_tokens: int | Literal["auto"] | None = "auto"
    """Most tokens of one document; by default a 200th of --n-tokens, and at least a window."""
    text_field: str | None = None
    """Column of the texts; by default 'text', 'messages', or the only column with texts."""
    group: str | None = None
    """Column of what belongs together (a book, a conversation) and shares a fold."""
    context_length: int = 256
    """Number of tokens per window."""
    source_layers: Annotated[str, tyro.conf.arg(metavar="all|proportional|3,5|HOOK")] = "all"
    """Layers of the source: 'all', 'proportional', or numbers and hook points, separated by
    commas."""
    target_layers: Annotated[str, tyro.conf.arg(metavar="all|proportional|3,5|HOOK")] = "all"
    """Layers of the target, in the form of --source-layers."""
    alpha: float | None = None
    """Ridge penalty relative to the mean variance; by default chosen by cross-validation."""
    standardize: bool = False
    """Scale source dimensions to unit variance first; useful if a few dimensions are very large."""
    null: Literal["auto", "full", "sketch", "none"] = "auto"
    """Moments of shuffled pairs: in full, as a sketch, or none."""
    moment_dtype: Literal["float32", "float64"] = "float32"
    """Precision in which the moments of a batch are computed; they are added up in float64."""
    device: str | None = None
    """Device of the models, such as cuda:0; by default the CPU."""
    device_map: str | None = None
    """Distribution of the weights over several devices, such as auto."""
    dtype: str = "float32"
    """Precision of the weights."""
    source_revision: str | None = None
    """Revision of the source model on the hub."""
    target_revision: str | None = None
    """Revision of the target model on the hub."""
    source_name: str | None = None
    """Name of the source in tables and files; by default its hub id or the end of its path."""
    target_name: str | None = None
    """Name of the target in tables and files."""
    prepend_bos: bool | None = None
    """Begin each window with BOS; by default as the tokenizer does."""
    seed: int = 0
    """Seed of folds and shuffled pairs."""
    shard: Annotated[str | None, tyro.conf.arg(metavar="i/N")] = None
    """Harvest only every Nth block, starting at block i (counted from 0).

    It writes moments-i-of-N.safetensors and stops; `lrt-lens merge` continues.
    """
    file_shares: int | None = None
    """Divide the files into so many shares: each process reads only its own, not all documents."""
    checkpoint_every: float = 120.0
    """Seconds between checkpoints, in the folder checkpoint/ below --out."""
    restart: bool = False
    """Remove the checkpoints of an earlier run first."""
    memory_budget: Annotated[str | None, tyro.conf.arg(metavar="8GB")] = None
    """Memory for the moments of one process.

    If they need more, target layers are harvested in several passes.
    """
    dry_run: bool = False
    """Print memory, disk and time that the run needs, from the configs alone, and stop."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        """Harvest, fit and write the results; or print the plan."""
        from lrt_lens.moments._scale_out import Ranks, parse_shard

        self._check()
        _refuse_missing_folder("--source", self.source)
        _refuse_missing_folder("--target", self.target)
        # torchrun sets RANK and WORLD_SIZE; without them there is one rank.
        ranks, shard = Ranks.of_environment(), parse_shard(self.shard) if self.shard else None
        plan = self._plan(ranks) if self.dry_run or self.memory_budget else None
        if plan is not None and ranks.rank == 0:
            self._show_plan(plan)
        if self.dry_run:
            return
        # A plan with a single pass needs no pass of its own.
        passes = plan.passes if plan is not None and len(plan.passes) > 1 else ()
        if shard is not None and passes:
            raise ValueError(
                f"the memory budget needs {len(passes)} passes, and --shard takes one: "
                "raise --memory-budget, or give some --target-layers to each run"
            )
        self._prepare_folder(ranks, max(1, len(passes)))
        grids = self._harvest(ranks, shard, passes)
        if grids is not None:
            _write_outputs(self.out, _json_arguments(self), *grids)

    def _check(self) -> None:
        """Raise ValueError for an option that would fail later, before anything is loaded."""
        from lrt_lens._numbers import checked_seconds
        from lrt_lens.models._loading import checked_device, torch_dtype
        from lrt_lens.moments._harvest_settings import HarvestSettings

        HarvestSettings(
            n_tokens=self.n_tokens,
            max_document_tokens=self.max_document_tokens,
            context_length=self.context_length,
            seed=self.seed,
            file_shares=self.file_shares,
        )
        checked_seconds(self.checkpoint_every)
        torch_dtype(self.dtype)
        _ = self._solver, _layers(self.source_layers), _layers(self.target_layers)
        # With several ranks, "cuda" is the GPU of each.
        if self.device is not None:
            checked_device(self.device)

    def _harvest(
        self,
        ranks: "Ranks",
        shard: tuple[int, int] | None,
        passes: "tuple[tuple[HookPair, ...], ...]",
    ) -> "tuple[StitchGrid, tuple[str, str]] | None":
        """Return the grid of all hook pairs and the names of the models.

        The result is None on every rank but 0, and after the harvest of a shard.
        """
        from lrt_lens._repr_html import names_in_tables
        from lrt_lens.models._pair import ModelPair
        from lrt_lens.moments._checkpoint import remove_checkpoints
        from lrt_lens.moments._scale_out import harvest_in_ranks
        from lrt_lens.stitching._fit import fit_grid

        pair = ModelPair.load(
            self.source,
            self.target,
            device=ranks.device(self.device),
            device_map=self.device_map,
            dtype=self.dtype,
            source_revision=self.source_revision,
            target_revision=self.target_revision,
            source_name=self.source_name,
            target_name=self.target_name,
            prepend_bos=self.prepend_bos,
        )
        whole = self._settle(pair, shard)
        runs = [whole.with_pairs(pairs) for pairs in passes] or [whole]
        files, folders = self._moment_files(shard, len(passes)), self._checkpoints(len(runs))
        grids: list[StitchGrid] = []
        for run, file, folder in zip(runs, files, folders, strict=True):
            moments = harvest_in_ranks(
                run,
                self.documents,
                folder,
                ranks=ranks,
                result=files[-1],
                checkpoint_every=self.checkpoint_every,
                progress=self.progress and ranks.rank == 0,
            )
            if moments is None:  # not rank 0
                continue
            moments.save(file)
            if shard is None:
                grid = fit_grid(moments, self._solver, progress=self.progress)
                # Scores of all passes fit into memory, their moments do not.
                grids.append(grid if len(runs) == 1 else _without_moments(grid))
        if ranks.rank:
            return None
        # Checkpoints go only after all moments are saved.
        for folder in folders:
            remove_checkpoints(folder)
        if shard is not None:
            merge = f"lrt-lens merge OUT {self.out / 'moments-*.safetensors'}"
            say(f"written: {files[0]}; when all {shard[1]} shards are there: {merge}")
            return None
        names = names_in_tables(pair.source.name, pair.target.name)
        return _combined(grids, files, whole.pairs), names

    def _moment_files(self, shard: tuple[int, int] | None, n_passes: int) -> list[Path]:
        """Return the file of each pass; one file if there is one pass."""
        from lrt_lens.moments._scale_out import shard_name

        if n_passes:
            numbers = range(1, n_passes + 1)
            return [self.out / f"moments-pass-{k}-of-{n_passes}.safetensors" for k in numbers]
        return [self.out / (shard_name(shard) if shard else "moments.safetensors")]

    def _settle(self, pair: "ModelPair", shard: tuple[int, int] | None) -> "HarvestRun":
        from lrt_lens.moments._harvesting import settle

        return settle(
            pair,
            source_layers=_layers(self.source_layers),
            target_layers=_layers(self.target_layers),
            n_tokens=self.n_tokens,
            max_document_tokens=self.max_document_tokens,
            text_field=self.text_field,
            group=self.group,
            context_length=self.context_length,
            seed=self.seed,
            null=self._null,
            moment_dtype=self.moment_dtype,
            shard=shard,
            file_shares=self.file_shares,
        )

    def _plan(self, ranks: "Ranks") -> "HarvestPlan":
        from lrt_lens._byte_sizes import parse_bytes
        from lrt_lens.moments._plan import ModelShape, plan_harvest

        # Shapes come from the configs, so a plan loads no weights.
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
        table = plan.table(throughput).loc[:, ["item", "amount", "how"]]
        print_table(f"Needs of {plan.source.name} → {plan.target.name}", table)
        for number, pairs in enumerate(plan.passes if len(plan.passes) > 1 else (), start=1):
            targets = ", ".join(dict.fromkeys(target for _, target in pairs))
            say(f"pass {number}: {len(pairs)} pairs to {targets}")

    def _prepare_folder(self, ranks: "Ranks", n_passes: int) -> None:
        from lrt_lens._files import make_folder, refuse_unwritable
        from lrt_lens.moments._checkpoint import remove_checkpoints

        if self.restart and ranks.count > 1:
            raise ValueError(
                f"--restart with {ranks.count} ranks: one would remove the checkpoints of another; "
                f"remove {self.out / 'checkpoint'} and leave the option out"
            )
        if ranks.rank:
            make_folder(self.out)
            return
        # Shards may share a folder, so each tests its own part of it and not the same file.
        # Before hours of work, not after them.
        refuse_unwritable(self._checkpoints(n_passes)[0] if self.shard else self.out)
        if self.restart:
            for folder in self._checkpoints(n_passes):
                remove_checkpoints(folder)

    def _checkpoints(self, n_passes: int) -> list[Path]:
        """Return the folder of checkpoints of each pass; shards of one ``--out`` have their own."""
        name = f"checkpoint-{self.shard.replace('/', '-of-')}" if self.shard else "checkpoint"
        if n_passes == 1:
            return [self.out / name]
        return [self.out / f"{name}-pass-{k}-of-{n_passes}" for k in range(1, n_passes + 1)]

    @property
    def _null(self) -> Any:
        # The Python functions take True for "full for small grids, else a sketch".
        return True if self.null == "auto" else self.null

    @property
    def _solver(self) -> "Ridge":
        from lrt_lens.stitching.solvers._ridge import Ridge

        return Ridge(alpha=self.alpha, standardize=self.standardize)


@dataclass(frozen=True)
class Merge:
    """Add the moments of all shards of a run, fit, and write the same results as fit."""

    out: tyro.conf.Positional[Path]
    """Folder for moments.safetensors, results.json, report.html and the best stitch."""
    shards: tyro.conf.Positional[tuple[Path, ...]]
    """The files of `lrt-lens fit --shard i/N`, in any order."""
    alpha: float | None = None
    """Ridge penalty relative to the mean variance; by default chosen by cross-validation."""
    standardize: bool = False
    """Scale source dimensions to unit variance first; useful if a few dimensions are very large."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        """Merge, fit and write the results."""
        from lrt_lens._files import refuse_unwritable
        from lrt_lens._repr_html import names_in_tables
        from lrt_lens.moments._scale_out import merge_shards
        from lrt_lens.stitching._fit import fit_grid
        from lrt_lens.stitching.solvers._ridge import Ridge

        solver = Ridge(alpha=self.alpha, standardize=self.standardize)
        refuse_unwritable(self.out)
        moments = merge_shards(self.shards)
        moments.save(self.out / "moments.safetensors")
        models = (moments.provenance.source, moments.provenance.target)
        names = names_in_tables(*(model.name if model else "unknown" for model in models))
        grid = fit_grid(moments, solver, progress=self.progress)
        _write_outputs(self.out, _json_arguments(self), grid, names)


def _write_outputs(
    out: Path, arguments: dict[str, Any], grid: "StitchGrid", names: tuple[str, str]
) -> None:
    """Write the best stitch, results.json and report.html, and print the scores."""
    from lrt_lens.models._hook_points import short_hook
    from lrt_lens.report._html import write_html
    from lrt_lens.report._results import write_results
    from lrt_lens.stitching._fit_report import fit_report

    # The best pair by cross-validation; the test fold only scores it.
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
    print_table(f"Hook pairs, best first{part}", shown.loc[:, _FIT_COLUMNS])
    moments = grid.moments
    say(
        f"{moments.n_tokens:,} tokens of {moments.provenance.n_documents:,} documents: "
        f"{moments.n_fit:,} for the fit, the others for the test.\n"
        f"{moments.folds.to_string(formatters={'share': '{:.0%}'.format})}\n{best}\n"
        f"Open {report}; in Python: lrt.Stitch.from_pretrained({str(out / 'stitch')!r})"
    )


def _without_moments(grid: "StitchGrid") -> "StitchGrid":
    """Return the scores alone, so that the moments of one pass are freed before the next."""
    from lrt_lens.moments._cross_moments import CrossMoments

    return replace(grid, moments=CrossMoments(pairs=()))


def _combined(
    grids: "list[StitchGrid]", files: list[Path], pairs: "tuple[HookPair, ...]"
) -> "StitchGrid":
    """Return one grid of all passes, with the moments of the pass that holds the best pair."""
    import pandas as pd

    from lrt_lens.moments._cross_moments import CrossMoments

    if len(grids) == 1:
        return grids[0]
    scores = pd.concat([grid.scores for grid in grids], ignore_index=True)
    sources, targets = map(str, scores["source_hook"]), map(str, scores["target_hook"])
    fitted = list(zip(sources, targets, strict=True))
    order = [fitted.index(hook_pair) for hook_pair in pairs]
    # Cross-validated gain chooses; columns of the test fold must not.
    winner = max(range(len(grids)), key=lambda number: grids[number].scores["gain_cv"].max())
    return replace(
        grids[winner],
        moments=CrossMoments.load(files[winner]),
        scores=scores.iloc[order].reset_index(drop=True),
        folds={hook_pair: errors for grid in grids for hook_pair, errors in grid.folds.items()},
    )


def _json_arguments(command: Any) -> dict[str, Any]:
    """Return the fields of a command as JSON values."""

    # tuples and paths are no JSON values
    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {key: plain(value) for key, value in asdict(command).items()}


_SHOWN_PAIRS = 12
"""Number of hook pairs that are printed."""
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
"""Columns that fit into a terminal of 80 columns; the report and results.json hold all."""


_DESCRIPTION = "Use what is learnt inside a small language model in a large one."
"""First lines of ``lrt-lens --help``."""
_OPTIONS_BY_PYTHON = {
    "another checkpoint folder, or remove_checkpoints(folder) to begin again": (
        "another --out, or --restart to begin again"
    ),
    "or wait for it, or choose another folder": "or wait for it, or choose another --out",
    "start all ranks again with the same arguments: the harvest resumes": (
        "start the same command again: it resumes"
    ),
    "start the harvest again with the same arguments, on": "start the same command again, on",
    "the passes of plan_harvest(…, memory_budget=…), one harvest each": (
        "harvest in several passes (--memory-budget 8GB)"
    ),
    "harvest(…, shard=(i, N)).save(…)": "lrt-lens fit --shard i/N",
    "text_field= names": "--text-field names",
}
"""Remedies in the words of the Python API, with the options that replace them."""


_ENDINGS = {128 + 1: "the terminal was closed (SIGHUP)", 128 + 15: "SIGTERM"}
"""Signals that end a command, by its exit status."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line ``lrt-lens``.

    What the user can mend ends with one line and status 1, an option that does not exist or is no
    value of its type with status 2, Ctrl-C with status 130, SIGTERM with 143 and SIGHUP with 129.
    A bug keeps its traceback.
    """
    open_closed_streams()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PlainFormatter("%(levelname)s %(name)s: %(message)s"))
    # Set before transformers is imported: its progress bars would interrupt ours, and fill a log.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    commands = {"demo": Demo, "fit": Fit, "merge": Merge}
    command: Any = None
    interrupts = Interrupts()
    try:
        interrupts.install()
        command = tyro.extras.subcommand_cli_from_dict(
            # tyro shows the module docstring as the description of the command.
            commands,
            prog="lrt-lens",
            description=_DESCRIPTION,
            args=arguments,
        )
        command.run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _stop("interrupted", command, 130)
    except SystemExit as ended:
        if ended.code in _ENDINGS:
            _stop(f"ended by a signal: {_ENDINGS[ended.code]}", command, ended.code)
        raise
    except BrokenPipeError:
        _stop("error: the output was closed before the end of the command", None, 1)
    except Exception as error:
        if not is_refusal(error):
            raise
        complain(f"error: {_in_options(str(error) or type(error).__name__, command)}")
        drop_output()
        sys.exit(1)
    finally:
        interrupts.uninstall()


def _stop(reason: str, command: Any, status: int) -> NoReturn:
    """End the process with one line that says what is left, and a status."""
    incomplete = "" if command is None else "; no incomplete file was left behind"
    resumes = "; start the same command again and it resumes" if isinstance(command, Fit) else ""
    complain(f"{reason}{incomplete}{resumes}")
    drop_output()
    sys.exit(status)


def _refuse_missing_folder(option: str, model: str) -> None:
    """Raise if a model is written as a path and no file or folder is there."""
    # transformers would look for it on the hub and complain about the form of the id.
    is_path = model.startswith(("/", "./", "../", "~")) or model.count("/") > 1
    if is_path and not Path(model).exists():
        raise ValueError(
            f"{option} is {model!r}, and no such folder exists; give a folder that holds a "
            "Hugging Face model (config.json and weights), or a hub id such as "
            "'EleutherAI/pythia-70m-deduped'"
        )


def _in_options(message: str, command: Any) -> str:
    """Return an error message of the Python API in the options of the command line."""
    for python, option in _OPTIONS_BY_PYTHON.items():
        message = message.replace(python, option)
    # "n_tokens is 0; expected …": the argument is an option of the command.
    name, is_argument, rest = message.partition(" is ")
    if is_argument and command is not None and name in asdict(command):
        return f"--{name.replace('_', '-')} is {rest}"
    return message


def _layers(text: str) -> Any:
    """Return the layers of an option: a word, or a list of numbers and hook points."""
    if text in ("all", "proportional"):
        return text
    parts = [part.strip() for part in text.split(",")]
    # A negative number counts layers from the end.
    return [int(part) if re.fullmatch("-?[0-9]{1,9}", part) else part for part in parts]
