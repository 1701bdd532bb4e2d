"""Ranks of a harvest as forked processes, which share the models of the tests."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrt_lens.moments._scale_out import Ranks


def forking(
    harvest: Callable[[Path, Ranks, float], Any], pause: float
) -> Callable[..., multiprocessing.Process]:
    """Return ``fork(folder, rank, count)``, which starts a process that harvests as a rank.

    ``harvest(folder, ranks, pause)`` returns the moments on rank 0, and None on the others;
    ``pause`` are the seconds that it waits for each block.
    """
    context: Any = multiprocessing.get_context("fork")
    usual = pause

    def work(folder: Path, ranks: Ranks, pause: float) -> None:
        # The output of a rank is dropped: pytest captures that of the parent process.
        try:
            moments = harvest(folder, ranks, pause)
            if moments is not None:
                moments.save(folder / "moments.safetensors")
        except BaseException as error:
            # Any exception: the child must not run the rest of pytest, and tests read the error.
            (folder / f"error{ranks.rank}.txt").write_text(f"{type(error).__name__}: {error}")
            os._exit(1)
        os._exit(0)

    def start(folder: Path, rank: int, count: int, pause: float = usual) -> Any:
        process = context.Process(target=work, args=(folder, Ranks(rank, count), pause))
        process.start()
        return process

    return start


def end(processes: list[Any], seconds: float = 120.0) -> list[int]:
    """Wait for the ranks, and return their exit statuses."""
    for process in processes:
        process.join(seconds)
    return [process.exitcode for process in processes]
