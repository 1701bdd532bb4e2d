"""Advice to compute with fewer threads where other programs want the same cores.

Problem: torch divides each product between threads that wait for each other. If other programs run
on the same cores, the slowest thread decides, and two threads were several times slower than one.
Mechanism: when a model is loaded onto the CPU, the load of the machine is compared with its cores,
and a warning says what to set; torch's setting is the user's, so it stays.

    advise_fewer_threads("cpu")         # at most one warning per process

Limits: the load is that of the last minute, which may be over, or have come from this process. It
is unknown on Windows.
"""

import logging
import os
from functools import cache

import torch

logger = logging.getLogger(__name__)

_BUSY = 1.25
"""Load per core above which cores are shared; threads of one program alone give at most 1."""


def advise_fewer_threads(device: str | torch.device) -> None:
    """Log one warning per process if torch uses several threads on cores that others use too."""
    if torch.device(device).type != "cpu":
        return
    n_threads, cores = torch.get_num_threads(), _cores()
    if n_threads > 1 and _load() > _BUSY * cores:
        _warn(n_threads, cores)


@cache  # so that a process says it once
def _warn(n_threads: int, cores: int) -> None:
    logger.warning(
        "torch computes with %d threads, and other programs wait for this machine's %d cores (load"
        " %.1f): threads that wait for each other may be several times slower than one; set"
        " OMP_NUM_THREADS=1 before Python starts, or torch.set_num_threads(1)",
        n_threads,
        cores,
        _load(),
    )


def _load() -> float:
    """Return how many processes ran or waited for a core in the last minute; 0 if unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0


def _cores() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
