"""An iterator that runs ahead of its reader in a thread: documents are tokenised while the models
compute.

    with running_ahead(iterate_blocks(documents, model, plan)) as blocks:
        for block in blocks: ...

At most ``n_ready`` items wait, so memory does not grow. Tokenizers of Hugging Face let go of
Python's lock while they work, and so does torch.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Full, Queue
from typing import TypeVar

Item = TypeVar("Item")
_LOOK_SECONDS = 0.1


@contextmanager
def running_ahead(items: Iterator[Item], n_ready: int = 4) -> Iterator[Iterator[Item]]:
    """The same items, made in a thread; what ``items`` raises is raised here. The thread ends with
    the ``with`` block.
    """
    queue: Queue[tuple[Item] | BaseException | None] = Queue(maxsize=n_ready)
    stop = threading.Event()

    def put(made: tuple[Item] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                queue.put(made, timeout=_LOOK_SECONDS)
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
        except BaseException as error:  # whatever it is belongs to the reader
            put(error)

    def read() -> Iterator[Item]:
        while (made := queue.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            yield made[0]

    thread = threading.Thread(target=make, name="lrt_lens-blocks", daemon=True)
    thread.start()
    try:
        yield read()
    finally:
        stop.set()
        # A stream that hangs in the network must not hold up an interrupted run: the thread is a
        # daemon.
        thread.join(timeout=5)
