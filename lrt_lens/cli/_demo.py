"""The command ``lrt-lens demo``: the main workflow on the bundled pair of models.

    lrt-lens demo --out demo-report

Limits: its numbers say nothing about larger models.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lrt_lens._terminal import print_table, say
from lrt_lens.cli._command import Command
from lrt_lens.cli._outputs import start_run, write_options


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Run the main workflow on the bundled pair of models: stitch, transfer, evaluation, report.

    It needs no network and takes about two minutes.

        lrt-lens demo --out demo-report

    Open demo-report/report.html. `lrt-lens fit` is the first step with models of your own.
    """

    words: ClassVar[str] = "demo"

    out: Path = Path("demo-report")
    """Folder for results.json, report.html, stitch/ and vectors/."""
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
        from lrt_lens.demo import demo_tables, run_demo, write_demo
        from lrt_lens.demo._checks import checked_numbers

        checked_numbers(
            n_tokens=self.n_tokens, n_random=self.n_random, damage=self.damage, seed=self.seed
        )
        start_run(self.out, self)
        result = run_demo(
            n_tokens=self.n_tokens,
            damage=self.damage,
            n_random=self.n_random,
            seed=self.seed,
            progress=self.progress,
            vectors=self.out / "vectors",
        )
        write_options(self.out, self)
        report = write_demo(result, self.out)
        tables = demo_tables(result)
        summary = tables["steering_summary"].rename(
            columns={"effect_at_equal_damage": "effect", "fraction_of_native": "of native"}
        )
        columns = ["concept", "arm", "scale", "effect", "low", "high", "of native", "flag"]
        print_table(
            f"Effect in nats of log-odds, at {self.damage:g} nats per token of damage",
            summary.loc[:, columns],
        )
        if result.exports:
            names = {
                "file": "file",
                "passed": "passed",
                "max_difference": "at its block",
                "one_block_away": "one away",
                "damage": "damage",
            }
            exports = tables["exports"].rename(columns=names)
            print_table(
                "Exported and checked: max |Δ logits| against our hook",
                exports.loc[:, list(names.values())],
            )
        say(f"{result.stitch}\n{result.seconds:.0f} s. Open {report}")
