"""A lock that a rank holds while it lives: the system lets go of it however the process ends.

It keeps two processes from writing one rank's checkpoint, and tells the rank that waits for the
others which of them is gone.
"""

import os
import time
from pathlib import Path

from lrt_lens.errors import MismatchError

try:
    import fcntl
except ImportError:  # Windows has none: nothing is locked there
    fcntl = None

_ATTEMPTS = 10


class RankLock:
    """``rank{r}.lock`` in a folder of checkpoints."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self._handle: int | None = None

    def acquire(self, n_ranks: int) -> None:
        """Take the lock; MismatchError where another process has it, or one of ranks that this run
        does not have.
        """
        for path in self.folder.glob("rank*.lock"):
            number = path.stem.removeprefix("rank")
            if number.isdigit() and int(number) >= n_ranks and is_locked(path):
                raise self._taken(path)
        if fcntl is None:
            return
        path = self.folder / f"rank{self.rank}.lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # A rank that looks whether we live holds the lock for a moment.
                if attempt == _ATTEMPTS - 1:
                    os.close(handle)
                    raise self._taken(path) from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                os.close(handle)
                return
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()}".encode())
        self._handle = handle

    def release(self) -> None:
        """Let go."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _taken(self, path: Path) -> MismatchError:
        holder = path.read_text().strip() or "unknown"
        return MismatchError(
            f"another process (id {holder}) is harvesting into {str(self.folder)!r} as {path.stem}; end it, or wait for it, "
            "or choose another --out"
        )


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if fcntl is None:
        return False
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
