"""From the command line to the files of a figure: `run` is the main function of a script.

    run(reproduce, ["--quick", "--out", "figures"])

Problem: a long run must not fail at its end, on a missing folder or an option that was ignored.
Mechanism: options, device and folder are checked before anything is computed; refusals of the
library end with one line, bugs keep their traceback.

Limits: one process per folder and script.
"""

import inspect
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from lrt_lens._files import write_atomically
from lrt_lens._messages import one_line
from lrt_lens._refusals import is_refusal
from lrt_lens.moments._interrupts import Interrupts
from lrt_lens.reproduction._result import Reproduction

logger = logging.getLogger(__name__)

_STATUSES = (130, 143, 129)
"""Exit statuses of Ctrl-C, SIGTERM and SIGHUP."""
_Made = TypeVar("_Made")
"""Result of a function that writes files."""


def run(
    reproduce: Callable[[Any], Reproduction], arguments: list[str] | None = None
) -> Reproduction:
    """Read the options of ``reproduce``, call it, save its result and print it.

    The options are the dataclass that annotates the argument of ``reproduce``. A missing or
    unsuitable input, an option that the script does not read, or a folder that cannot be written
    ends with one line and status 2; Ctrl-C with status 130, all files or none, and a line that says
    which. Other errors are bugs and keep their traceback.

    Args:
        reproduce: function from options to a `Reproduction`.
        arguments: words of the command line; those of the process if None.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # These libraries log each start of the browser and each written file at the level INFO.
    for noisy in ("kaleido", "choreographer", "logistro", "gguf"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    options = read_options(reproduce, arguments)
    interrupts = Interrupts()
    before: dict[Path, tuple[int, int]] = {}
    result: Reproduction | None = None
    try:
        interrupts.install()
        options.check_numbers()
        options.check_device()
        _on_disk(lambda: _refuse_unwritable(options.out))
        before = _records(options.out)
        started = time.perf_counter()
        measured = reproduce(options)
        seconds = round(time.perf_counter() - started, 1)
        result = finished = replace(measured, options=options, seconds=seconds)
        written = _on_disk(lambda: finished.save(options.out))
    except (KeyboardInterrupt, SystemExit) as error:
        # SIGTERM and SIGHUP are exits with their own status; other exits are of the script.
        status = 130 if isinstance(error, KeyboardInterrupt) else error.code
        if status not in _STATUSES or not isinstance(status, int):
            raise
        # The record gets its final name last, after all other files, so its change shows whether
        # the files were written, at whatever moment the signal came.
        record = options.out / f"{result.name}.json" if result else Path()
        is_written = _records(options.out).get(record) != before.get(record)
        outcome = (
            f"all files were written to {options.out}" if is_written else "no file was written"
        )
        _stop(f"interrupted; {outcome}", error, status)
    except Exception as error:
        if not is_script_refusal(error):
            raise
        _stop(f"error: {error}", error)
    finally:
        interrupts.uninstall()
    logger.info("%s\n%.0f s. Open %s", result, result.seconds, written[".html"])
    return result


def read_options(
    reproduce: Callable[[Any], Reproduction], arguments: list[str] | None = None
) -> Any:
    """Return the options of a command line.

    With ``--quick`` those that are not on it get small values; an option that the script does not
    read is refused.
    """
    import tyro

    # The annotation of the one argument is the class of options; tyro builds the options from it.
    kind = next(value for name, value in get_type_hints(reproduce).items() if name != "return")
    description = inspect.getdoc(inspect.getmodule(reproduce)) or ""
    unread = f"\n\nNot read here: {_flags(kind.UNUSED)}." if kind.UNUSED else ""
    options = tyro.cli(kind, args=arguments, description=description + unread)
    words = sys.argv[1:] if arguments is None else arguments
    present = given_options([field.name for field in fields(kind)], words)
    if ignored := present & kind.UNUSED:
        _stop(f"error: {_flags(ignored)}: not read by this script; leave out what has no effect")
    return options.shrunk(present)


def given_options(names: Iterable[str], arguments: Sequence[str]) -> frozenset[str]:
    """Return the options that are on a command line.

    Recognised are ``--a-name value``, ``--a-name=value``, ``--a_name`` and ``--no-a-name``.
    """
    # tyro accepts hyphens and underscores, and --no-NAME for booleans.
    words = {
        word.removeprefix("--").split("=")[0].replace("-", "_")
        for word in arguments
        if word.startswith("--")
    }
    return frozenset(name for name in names if name in words or f"no_{name}" in words)


def is_script_refusal(error: Exception) -> bool:
    """Return whether an error means that the library refused its input.

    An error about the script's own `Reproduction` is a bug of the script.
    """
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    return is_refusal(error) and innermost.f_globals.get("__name__") != Reproduction.__module__


def _refuse_unwritable(folder: Path) -> None:
    # A file is written and removed, because permissions alone do not tell whether a disk is full.
    write_atomically(folder / ".writable", lambda temporary: temporary.write_text("")).unlink()


def _on_disk(write: Callable[[], _Made]) -> _Made:
    try:
        return write()
    except OSError as error:
        _stop(f"error: --out: {error}", error)


def _records(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return inode and time of writing of each record in a folder.

    A record that was moved away and back has the same values.
    """
    statuses = {path: path.stat() for path in folder.glob("*.json")}
    return {path: (status.st_ino, status.st_mtime_ns) for path, status in statuses.items()}


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))


def _stop(line: str, cause: BaseException | None = None, status: int = 2) -> NoReturn:
    """End the process with one line; the traceback stays in the exception for callers."""
    logger.error("%s", one_line(line))
    raise SystemExit(status) from cause
