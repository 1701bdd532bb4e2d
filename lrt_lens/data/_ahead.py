"""Iteration in a thread: documents are tokenized while the models compute.

    with running_ahead(iterate_blocks(documents, model, plan)) as blocks:
        for block in blocks: ...

At most ``n_ready`` items wait, so memory does not grow. Both sides run at the same time, because
Hugging Face tokenizers and torch release Python's global lock while they compute.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Full, Queue
from typing import TypeVar

Item = TypeVar("Item")
_POLL_SECONDS = 0.1
"""Seconds after which the thread looks whether it should stop."""


@contextmanager
def running_ahead(items: Iterator[Item], n_ready: int = 4) -> Iterator[Iterator[Item]]:
    """Return a context that iterates over ``items`` in a thread, which ends with the context.

    An exception in the thread is raised in the iteration.
    """
    queue: Queue[tuple[Item] | BaseException | None] = Queue(maxsize=n_ready)
    stop = threading.Event()

    # The queue holds (item,), an exception, or None at the end. The tuple lets an item be None.
    def put(entry: tuple[Item] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                queue.put(entry, timeout=_POLL_SECONDS)
            except Full:
                continue
            return

    def make() -> None:
        try:
            for item in items:
                put((item,))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again in `read`
            put(error)

    def read() -> Iterator[Item]:
        while (entry := queue.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]

    thread = threading.Thread(target=make, name="lrt_lens-blocks", daemon=True)
    thread.start()
    try:
        yield read()
    finally:
        stop.set()
        # A stream that waits for the network must not delay the end of an interrupted run. So the
        # wait is limited, and the thread is a daemon, which ends with the process.
        thread.join(timeout=5)
