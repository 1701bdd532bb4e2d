"""The command line ``lrt-lens``: the table of its commands, and its entry point.

Each command is a dataclass in a module of its own, whose fields are arguments of the Python
functions; tyro makes the options from them. A new command is a class in COMMANDS. torch is imported
only when a command runs, so ``--help`` answers at once.
"""

import logging
import os
import sys
from typing import Any, NoReturn

from lrt_lens._refusals import is_refusal
from lrt_lens._terminal import PlainFormatter, complain, drop_output, open_closed_streams
from lrt_lens.cli._calibrate import Calibrate
from lrt_lens.cli._command import Command
from lrt_lens.cli._completion import Completion
from lrt_lens.cli._demo import Demo
from lrt_lens.cli._diff import Diff
from lrt_lens.cli._evaluate_probe import EvaluateProbe
from lrt_lens.cli._evaluate_sae import EvaluateSAE
from lrt_lens.cli._evaluate_stitch import EvaluateStitch
from lrt_lens.cli._evaluate_vector import EvaluateVector
from lrt_lens.cli._export import Export
from lrt_lens.cli._fit import Fit
from lrt_lens.cli._fit_states import FitStates
from lrt_lens.cli._import import Import
from lrt_lens.cli._inspect import Inspect
from lrt_lens.cli._learn_probe import LearnProbe
from lrt_lens.cli._learn_vector import LearnVector
from lrt_lens.cli._merge import Merge
from lrt_lens.cli._pair_command import PairCommand
from lrt_lens.cli._parsing import completion_script, parse
from lrt_lens.cli._report import ReportRuns
from lrt_lens.cli._states import States
from lrt_lens.cli._survey import SurveyPairs
from lrt_lens.cli._transfer import Transfer
from lrt_lens.cli._update import UpdateModel
from lrt_lens.moments._interrupts import Interrupts

COMMANDS: tuple[type[Command], ...] = (
    Demo,
    SurveyPairs,
    Fit,
    Merge,
    States,
    FitStates,
    LearnVector,
    LearnProbe,
    Transfer,
    Calibrate,
    EvaluateVector,
    EvaluateProbe,
    EvaluateSAE,
    EvaluateStitch,
    UpdateModel,
    Diff,
    Export,
    Import,
    ReportRuns,
    Inspect,
    Completion,
)
"""Every command, in the order of ``lrt-lens --help``: that of a whole job."""
GROUPS: dict[str, str] = {
    "learn": "Learn a steering vector or a linear probe from a file of texts.",
    "evaluate": "Compare a transferred vector, probe or SAE, or the stitch itself, with controls.",
}
"""Description of each first word that several commands share."""
_DESCRIPTION = """Use what is learnt inside a small language model in a large one.

Exit status: 0 if the work is done; 1 for what you can mend (a file, a full disk), with one line
that says how; 2 for an option that cannot be read; 130 after Ctrl-C, 143 after SIGTERM and 129 if
the terminal was closed. A bug keeps its traceback. `lrt-lens --version` prints the version."""
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
    "give at=, such as at=12 for the stream behind block 12, and model=": (
        "give --at, such as --at 12 for the stream behind block 12, and --model"
    ),
    "choose one with at=, or take all with lrt_lens.serving.import_vectors": (
        "choose one with --at, or take all with lrt-lens import"
    ),
    "give model= too": "give --model too",
    "(to go the other way use stitch.reversed())": (
        "(lrt-lens transfer --reverse goes the other way)"
    ),
    "or give wait= seconds": "or give --wait SECONDS",
    "folds='all' reads": "--folds all reads",
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
    command: Command | None = None
    interrupts = Interrupts()
    try:
        interrupts.install()
        words = sys.argv[1:] if arguments is None else arguments
        command = parse(words, COMMANDS, GROUPS, _DESCRIPTION)
        if isinstance(command, Completion):
            completion_script(command.shell, COMMANDS, GROUPS, _DESCRIPTION)
        else:
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


def _stop(reason: str, command: Command | None, status: Any) -> NoReturn:
    """End the process with one line that says what is left, and a status."""
    incomplete = "" if command is None else "; no incomplete file was left behind"
    resumes = (
        "; start the same command again and it resumes" if isinstance(command, PairCommand) else ""
    )
    complain(f"{reason}{incomplete}{resumes}")
    drop_output()
    sys.exit(status)


def _in_options(message: str, command: Command | None) -> str:
    """Return an error message of the Python API in the options of the command line."""
    for python, option in _OPTIONS_BY_PYTHON.items():
        message = message.replace(python, option)
    # "n_tokens is 0; expected …": the argument is an option of the command.
    name, is_argument, rest = message.partition(" is ")
    if is_argument and command is not None and name in command.arguments:
        return f"--{name.replace('_', '-')} is {rest}"
    return message
