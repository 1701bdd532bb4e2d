"""Independent computations side by side, one thread each.

Problem: the stages of the demo are products of small matrices, which two threads of torch compute
hardly faster than one. Mechanism: as many stages as torch has threads run at once, each with one
thread of torch, and in an order that depends on nothing, so that results are the same.

    results = side_by_side({"loss": lambda: evaluate(...), "probes": lambda: ...})

Limits: interventions of the calling thread do not act in the computations.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

_LOOK_SECONDS = 0.2
"""Seconds between two looks at whether the threads are done; Ctrl-C acts between them."""


def side_by_side(
    tasks: Mapping[str, Callable[[], Any]], on_done: Callable[[], Any] = lambda: None
) -> dict[str, Any]:
    """Return the result of each task, by its name.

    The first error of a task is raised when it occurs; the others are then not started.

    Args:
        tasks: functions without arguments that do not depend on each other, longest first.
        on_done: called in the calling thread after each task.
    """
    n_threads = torch.get_num_threads()
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, Any, BaseException | None]] = queue.SimpleQueue()
    for name in tasks:
        waiting.put(name)

    def work() -> None:
        torch.set_num_threads(1)
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((name, tasks[name](), None))
            except BaseException as error:
                # Whatever it is, the calling thread raises it.
                done.put((name, None, error))

    # Daemons: an interrupted process does not wait for the end of a stage.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(n_threads)]
    found: dict[str, Any] = {}
    torch.set_num_threads(1)
    try:
        for worker in workers[: len(tasks)]:
            worker.start()
        while len(found) < len(tasks):
            try:
                name, result, error = done.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            found[name] = result
            on_done()
    finally:
        # What has not begun is dropped.
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()
        torch.set_num_threads(n_threads)
    return {name: found[name] for name in tasks}
