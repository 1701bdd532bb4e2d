"""From the command line to the files of a figure: ``run(reproduce)`` is the whole main of a script in `examples/`."""

import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_type_hints

from lrt_lens.reproduction.options import MissingInputError
from lrt_lens.reproduction.result import Reproduction
from lrt_lens.stitching.files import write_atomically

logger = logging.getLogger(__name__)


def run(reproduce: Callable[[Any], Reproduction], arguments: list[str] | None = None) -> Reproduction:
    """Read the options that ``reproduce`` asks for (its argument's dataclass), call it, save what it found and print it.

    What was asked for and is not there, or a folder that cannot be written, ends with one line and status 2; Ctrl-C with 130 and no file.
    """
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("kaleido", "choreographer", "logistro"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    kind = next(value for name, value in get_type_hints(reproduce).items() if name != "return")
    options = tyro.cli(kind, args=arguments, description=inspect.getdoc(inspect.getmodule(reproduce)) or "").shrunk()
    try:
        write_atomically(options.out / ".writable", lambda temporary: temporary.write_text("")).unlink()
    except OSError as error:
        logger.error("error: --out: %s", error)
        raise SystemExit(2) from error
    try:
        started = time.perf_counter()
        found = reproduce(options)
        found = replace(found, options=options, seconds=round(time.perf_counter() - started, 1))
        written = found.save(options.out)
    except MissingInputError as error:
        logger.error("error: %s", error)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        logger.error("interrupted; no file was written")
        raise SystemExit(130) from error
    logger.info("%s\n%.0f s. Open %s", found, found.seconds, written[".html"])
    return found
