"""From the command line to the files of a figure: ``run(reproduce)`` is the whole main of a script
in `examples/`.
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
from lrt_lens.errors import (
    FileFormatError,
    HookPointError,
    MismatchError,
    NonFiniteError,
    TooFewDocumentsError,
)
from lrt_lens.reproduction._options import MissingInputError
from lrt_lens.reproduction._result import Reproduction

logger = logging.getLogger(__name__)

_Made = TypeVar("_Made")
REFUSALS = (
    MissingInputError,
    FileFormatError,
    HookPointError,
    MismatchError,
    NonFiniteError,
    TooFewDocumentsError,
)
"""What the library says of its input; a traceback would add nothing."""


def run(
    reproduce: Callable[[Any], Reproduction], arguments: list[str] | None = None
) -> Reproduction:
    """Read the options that ``reproduce`` asks for (its argument's dataclass), call it, save what
    it found and print it.

    What is not there or does not fit, an option that the script does not read, or a folder that
    cannot be written ends with one line and status 2; Ctrl-C with 130, all files or none, and a
    line that says which. Other errors are bugs and keep their traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("kaleido", "choreographer", "logistro"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    options = read_options(reproduce, arguments)
    before: dict[Path, tuple[int, int]] = {}
    found: Reproduction | None = None
    try:
        options.check_device()
        _on_disk(
            lambda: write_atomically(
                options.out / ".writable", lambda temporary: temporary.write_text("")
            ).unlink()
        )
        before = _records(options.out)
        started = time.perf_counter()
        made = reproduce(options)
        found = made = replace(
            made, options=options, seconds=round(time.perf_counter() - started, 1)
        )
        written = _on_disk(lambda: made.save(options.out))
    except KeyboardInterrupt as error:
        # The record is moved to its place last, when all other files are in theirs: it tells, at
        # whatever moment the signal came.
        place = options.out / f"{found.name}.json" if found else Path()
        is_written = _records(options.out).get(place) != before.get(place)
        _stop(
            f"interrupted; all files were written to {options.out}"
            if is_written
            else "interrupted; no file was written",
            error,
            130,
        )
    except Exception as error:
        if not is_refusal(error):
            raise
        _stop(f"error: {error}", error)
    logger.info("%s\n%.0f s. Open %s", found, found.seconds, written[".html"])
    return found


def read_options(
    reproduce: Callable[[Any], Reproduction], arguments: list[str] | None = None
) -> Any:
    """Options from the command line, shrunk by ``--quick`` where they were not given; one that the
    script does not read is refused.
    """
    import tyro

    kind = next(value for name, value in get_type_hints(reproduce).items() if name != "return")
    described = inspect.getdoc(inspect.getmodule(reproduce)) or ""
    unread = f"\n\nNot read here: {_flags(kind.UNUSED)}." if kind.UNUSED else ""
    options = tyro.cli(kind, args=arguments, description=described + unread)
    given = given_options(
        [field.name for field in fields(kind)], sys.argv[1:] if arguments is None else arguments
    )
    if ignored := given & kind.UNUSED:
        _stop(
            f"error: {_flags(ignored)}: not read by this script; leave out what would change nothing"
        )
    return options.shrunk(given)


def given_options(names: Iterable[str], arguments: Sequence[str]) -> frozenset[str]:
    """Which of the options stand on a command line: ``--a-name value``, ``--a-name=value``,
    ``--a_name`` or ``--no-a-name``.
    """
    words = {
        word.removeprefix("--").split("=")[0].replace("-", "_")
        for word in arguments
        if word.startswith("--")
    }
    return frozenset(name for name in names if name in words or f"no_{name}" in words)


def is_refusal(error: Exception) -> bool:
    """Whether the library refused what it was given: an error of its own kinds, or a ValueError
    that comes out of it and not of what it calls.

    One about the script's own `Reproduction` is a bug of the script.
    """
    if isinstance(error, REFUSALS):
        return True
    if not isinstance(error, ValueError):
        return False
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    module = str(innermost.f_globals.get("__name__", ""))
    return module.startswith("lrt_lens.") and module != "lrt_lens.reproduction._result"


def _on_disk(write: Callable[[], _Made]) -> _Made:
    try:
        return write()
    except OSError as error:
        _stop(f"error: --out: {error}", error)


def _records(folder: Path) -> dict[Path, tuple[int, int]]:
    """Which record stands where, by inode and time of writing: a record that was moved away and
    back is the same.
    """
    found = [(path, path.stat()) for path in folder.glob("*.json")]
    return {path: (status.st_ino, status.st_mtime_ns) for path, status in found}


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))


def _stop(line: str, cause: BaseException | None = None, status: int = 2) -> NoReturn:
    """End with one line; the traceback stays in the exception for callers."""
    logger.error("%s", line.strip().replace("\n", " "))
    raise SystemExit(status) from cause
