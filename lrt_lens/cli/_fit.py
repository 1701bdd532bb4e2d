"""The command ``lrt-lens fit``: harvest, fit, and results in a folder.

    lrt-lens fit --source gpt2 --target gpt2-medium --documents corpus.jsonl

If the exact moments of all hook pairs do not fit the memory, all are surveyed first, and exact
moments are harvested of the best ones.

Limits: ranks and shards do not survey; `lrt-lens survey` chooses their ``--pairs``.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from lrt_lens._terminal import print_table, say
from lrt_lens.cli._outputs import refuse_foreign, write_options, write_outputs
from lrt_lens.cli._pair_command import PairCommand, layers_of

if TYPE_CHECKING:
    from lrt_lens.models._hook_points import HookPair
    from lrt_lens.models._pair import ModelPair
    from lrt_lens.moments._harvest_settings import HarvestSettings
    from lrt_lens.moments._harvesting import HarvestRun
    from lrt_lens.moments._plan import HarvestPlan
    from lrt_lens.moments._scale_out import Ranks
    from lrt_lens.stitching._grid import StitchGrid
    from lrt_lens.stitching._survey import Survey


@dataclass(frozen=True, kw_only=True)
class Fit(PairCommand):
    """Harvest two models on the same text and fit a map for every hook pair.

    Writes moments.safetensors, results.json, report.html, run.toml and the best stitch. A run that
    is interrupted resumes if the same command is started again. Several processes can share the
    work under ``torchrun --nproc-per-node N -m lrt_lens fit …``, or as ``--shard i/N`` in separate
    jobs (docs/how-to/run_on_a_cluster.md).

        lrt-lens fit --source gpt2 --target gpt2-medium --documents corpus.jsonl --out stitches

    Next: `lrt-lens inspect stitches/stitch` names the hook points; `lrt-lens learn vector` or
    `learn probe` learns at the source's.
    """

    words: ClassVar[str] = "fit"

    pairs: Annotated[str | None, tyro.conf.arg(metavar="3:5,4:7")] = None
    """Hook pairs (source:target) instead of all layers, such as the best of `lrt-lens survey`."""
    survey: Literal["auto", "always", "never"] = "auto"
    """Survey all hook pairs first, and harvest exact moments of the best that fit the memory.

    'auto': if the moments of all take more than a quarter of the free memory, in one process.
    """
    shard: Annotated[str | None, tyro.conf.arg(metavar="i/N")] = None
    """Harvest only every Nth block, starting at block i (counted from 0).

    It writes moments-i-of-N.safetensors and stops; `lrt-lens merge` continues.
    """
    n_folds: int = 5
    """Number of cross-validation folds; moments hold one set of sums for each."""
    n_test_groups: int = 8
    """Number of groups of the test fold, for intervals; moments hold one set of sums for each."""
    memory_budget: Annotated[str | None, tyro.conf.arg(metavar="8GB")] = None
    """Memory for the moments of one process.

    If they need more, target layers are harvested in several passes (after a survey: fewer hook
    pairs in one pass).
    """
    placement: Literal["auto", "device", "host", "disk"] = "auto"
    """Place of the moments: with the models, in host memory, or in a mapped file; auto: with the
    models if they fit there, else in host memory."""
    placement_folder: str | None = None
    """Folder of the mapped file; by default the system's folder for temporary files."""
    dry_run: bool = False
    """Print memory, disk and time that the run needs, from the configs alone, and stop."""

    def check(self) -> None:
        """Raise ValueError for an option that would fail later, before anything is loaded."""
        from lrt_lens.moments._placement import refuse_unfit_folder

        super().check()
        _ = self.settings
        refuse_unfit_folder(self.placement, self.placement_folder)

    def run(self) -> None:
        """Harvest, fit and write the results; or print the plan."""
        from lrt_lens._byte_sizes import parse_bytes
        from lrt_lens.moments._scale_out import Ranks, parse_shard

        self.check()
        # torchrun sets RANK and WORLD_SIZE; without them there is one rank.
        ranks, shard = Ranks.of_environment(), parse_shard(self.shard) if self.shard else None
        wanted = parse_bytes(self.memory_budget) if self.memory_budget else None
        alone = ranks.count == 1 and shard is None
        may_survey = self._may_survey(wanted, alone)
        plan = None
        if self.dry_run or wanted is not None:
            plan = self._plan(ranks, None if may_survey else wanted)
        if plan is not None and ranks.rank == 0:
            self._show_plan(plan, self._budget(wanted) if alone else None)
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
        grids = self._harvest(ranks, shard, passes, self._budget(wanted) if may_survey else None)
        if grids is not None:
            write_outputs(self.out, self, *grids)

    @property
    def settings(self) -> "HarvestSettings":
        """Settings of the harvest."""
        from lrt_lens.moments._harvest_settings import HarvestSettings

        pairs = None if self.pairs is None else _pairs(self.pairs)
        return HarvestSettings(
            **self.fields,
            pairs=pairs,
            n_folds=self.n_folds,
            n_test_groups=self.n_test_groups,
            placement=self.placement,
            placement_folder=self.placement_folder,
        )

    @property
    def shard_name(self) -> str:
        """The shard in the names of files, such as ``0-of-8``; empty without one."""
        return (self.shard or "").replace("/", "-of-")

    def _budget(self, wanted: int | None) -> int:
        """Return the memory budget in bytes; by default a quarter of what is free."""
        from lrt_lens.moments._survey_plan import default_budget

        return wanted or default_budget(self.settings, self.device or "cpu") or 10**12

    def _may_survey(self, wanted: int | None, alone: bool) -> bool:
        """Return whether this run surveys all hook pairs first if their moments do not fit.

        Raises:
            ValueError: ``--survey always`` with ranks, shards or chosen pairs.
        """
        if self.survey == "always" and (not alone or self.pairs is not None):
            raise ValueError(
                "--survey always needs one process and no --pairs or --shard; survey first "
                "(lrt-lens survey …), and give the best hook pairs as --pairs to all of them"
            )
        is_free = wanted is None and alone and self.pairs is None
        return self.survey == "always" or (self.survey == "auto" and is_free)

    def _plan(self, ranks: "Ranks", budget: int | None) -> "HarvestPlan":
        from lrt_lens.moments._plan import plan_harvest

        options = {"memory_budget": budget, "ranks": ranks.count}
        # Shapes come from the configs, so a plan loads no weights.
        return plan_harvest(*self.shapes(), settings=self.settings, **options)

    def _show_plan(self, plan: "HarvestPlan", budget: int | None) -> None:
        from lrt_lens.moments._placement import chosen_place, where_moments_live
        from lrt_lens.moments._plan import measure_throughput
        from lrt_lens.moments._survey_plan import answer, exact_pairs

        exact: HarvestPlan | None = plan
        throughput = measure_throughput(self.device or "cpu", plan.source.dtype, plan.moment_dtype)
        if budget is not None and len(plan.passes) == 1:
            say(answer(plan, self.settings, budget, throughput))
            exact = exact_pairs(plan, self.settings, budget)
        device = self.device or "cpu"
        if exact is not None:
            place = chosen_place(self.placement, device, exact.moments, exact.workspace)
            say(f"The moments live {where_moments_live(place, device, self.placement_folder)}.")
            plan = replace(plan, place=place)
        table = plan.table(throughput).loc[:, ["item", "amount", "how"]]
        title = f"Exact moments of all hook pairs, {plan.source.name} → {plan.target.name}"
        print_table(title, table)
        for number, pairs in enumerate(plan.passes if len(plan.passes) > 1 else (), start=1):
            targets = ", ".join(dict.fromkeys(target for _, target in pairs))
            say(f"pass {number}: {len(pairs)} pairs to {targets}")

    def _harvest(
        self,
        ranks: "Ranks",
        shard: tuple[int, int] | None,
        passes: "tuple[tuple[HookPair, ...], ...]",
        budget: int | None,
    ) -> "tuple[StitchGrid, tuple[str, str]] | None":
        """Return the grid of all hook pairs and the names of the models.

        The result is None on every rank but 0, and after the harvest of a shard. If the moments of
        all hook pairs exceed a ``budget``, they are surveyed first.
        """
        from lrt_lens._repr_html import names_in_tables
        from lrt_lens.moments._checkpoint_files import remove_checkpoints
        from lrt_lens.moments._harvesting import settle
        from lrt_lens.stitching._within_budget import sizes_of

        pair, settings = self.load(ranks.device(self.device)), self.settings
        names = names_in_tables(pair.source.name, pair.target.name)
        surveyed = None
        is_asked = self.survey == "always"
        if budget is not None and (is_asked or sizes_of(pair, settings).of_all > budget):
            surveyed, chosen = self._survey_first(pair, budget)
            settings = replace(settings, pairs=chosen)
        whole = settle(pair, settings=replace(settings, shard=shard))
        runs = [whole.with_pairs(pairs) for pairs in passes] or [whole]
        files, folders = self._moment_files(shard, len(passes)), self._checkpoints(len(runs))
        grids = self._grids(ranks, runs, files, folders)
        if ranks.rank:
            return None
        # Checkpoints go only after all moments are saved.
        for folder in folders:
            remove_checkpoints(folder)
        if shard is not None:
            write_options(self.out, self, f"run-{self.shard_name}.toml")
            merge = f"lrt-lens merge OUT {self.out / 'moments-*.safetensors'}"
            say(f"written: {files[0]}; when all {shard[1]} shards are there: {merge}")
            return None
        grid = _combined(grids, files, whole.pairs)
        if surveyed is not None:
            grid = replace(grid, scores=surveyed.joined(grid.scores))
        return grid, names

    def _grids(
        self, ranks: "Ranks", runs: "list[HarvestRun]", files: list[Path], folders: list[Path]
    ) -> "list[StitchGrid]":
        """Return the grid of each pass, after its moments are saved; empty for shards and ranks."""
        from lrt_lens.moments._scale_out import harvest_in_ranks
        from lrt_lens.stitching._fit import fit_grid

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
            if run.shard is None:
                grid = fit_grid(moments, self.solver, progress=self.progress)
                # Scores of all passes fit into memory, their moments do not.
                grids.append(grid if len(runs) == 1 else _without_moments(grid))
        return grids

    def _survey_first(self, pair: "ModelPair", budget: int) -> "tuple[Survey, list[HookPair]]":
        """Return the survey of all hook pairs, and the best whose exact moments fit the budget."""
        from lrt_lens.moments._checkpoint_files import SURVEY_FOLDER
        from lrt_lens.stitching._within_budget import survey_within

        surveyed, chosen, sentence = survey_within(
            pair,
            self.documents,
            self.settings,
            budget,
            solver=self.solver,
            folder=self._checkpoints(1)[0] / SURVEY_FOLDER,
            progress=self.progress,
        )
        surveyed.save(self.out / "survey.safetensors")
        say(sentence)
        return surveyed, chosen

    def _moment_files(self, shard: tuple[int, int] | None, n_passes: int) -> list[Path]:
        """Return the file of each pass; one file if there is one pass."""
        from lrt_lens.moments._scale_out import shard_name

        if n_passes:
            numbers = range(1, n_passes + 1)
            return [self.out / f"moments-pass-{k}-of-{n_passes}.safetensors" for k in numbers]
        return [self.out / (shard_name(shard) if shard else "moments.safetensors")]

    def _prepare_folder(self, ranks: "Ranks", n_passes: int) -> None:
        from lrt_lens._files import make_folder, refuse_unwritable
        from lrt_lens.moments._checkpoint_files import remove_checkpoints

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
        if not self.shard:
            refuse_foreign(self.out, self)
        refuse_unwritable(self._checkpoints(n_passes)[0] if self.shard else self.out)
        if self.restart:
            for folder in self._checkpoints(n_passes):
                remove_checkpoints(folder)

    def _checkpoints(self, n_passes: int) -> list[Path]:
        """Return the folder of checkpoints of each pass; shards of one ``--out`` have their own."""
        name = f"checkpoint-{self.shard_name}" if self.shard else "checkpoint"
        if n_passes == 1:
            return [self.out / name]
        return [self.out / f"{name}-pass-{k}-of-{n_passes}" for k in range(1, n_passes + 1)]


def _pairs(text: str) -> list[tuple[int | str, int | str]]:
    """Return the hook pairs of an option such as ``26:14,27:15``.

    Raises:
        ValueError: an entry is not SOURCE:TARGET.
    """
    pairs = []
    for entry in text.split(","):
        ends = entry.split(":")
        if len(ends) != 2 or not all(end.strip() for end in ends):
            raise ValueError(
                f"--pairs has the entry {entry!r}; expected SOURCE:TARGET with layers or hook "
                "points, such as 3:5,4:7"
            )
        (source,), (target,) = (layers_of(end) for end in ends)
        pairs.append((source, target))
    return pairs


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
