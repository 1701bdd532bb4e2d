"""The command line: ``lrt-lens demo``, ``survey``, ``fit``, ``merge`` and ``export``.

Built by tyro from the dataclasses of this folder, whose fields are arguments of the Python
functions. torch is imported only when a command runs, so ``--help`` answers at once.
"""

import logging
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

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
from lrt_lens.cli._export import Export
from lrt_lens.cli._fit import Fit
from lrt_lens.cli._merge import Merge
from lrt_lens.cli._pair_command import PairCommand
from lrt_lens.cli._survey import SurveyPairs
from lrt_lens.moments._interrupts import Interrupts


@dataclass(frozen=True)
class Demo:
    """Run the main workflow on the bundled pair of models: stitch, transfer, evaluation, report.

    It needs no network and takes about two minutes.
    """

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
            vectors=self.out / "vectors",
        )
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
    commands = {"demo": Demo, "survey": SurveyPairs, "fit": Fit, "merge": Merge, "export": Export}
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
    resumes = (
        "; start the same command again and it resumes" if isinstance(command, PairCommand) else ""
    )
    complain(f"{reason}{incomplete}{resumes}")
    drop_output()
    sys.exit(status)


def _in_options(message: str, command: Any) -> str:
    """Return an error message of the Python API in the options of the command line."""
    for python, option in _OPTIONS_BY_PYTHON.items():
        message = message.replace(python, option)
    # "n_tokens is 0; expected …": the argument is an option of the command.
    name, is_argument, rest = message.partition(" is ")
    if is_argument and command is not None and name in asdict(command):
        return f"--{name.replace('_', '-')} is {rest}"
    return message
