"""A file lock that a rank holds while its process lives.

Problem: two processes must not write the checkpoint of one rank, and rank 0, which waits for the
others, must notice that one of them has died. Mechanism: ``flock`` on ``rank{r}.lock``, which the
operating system releases however the process ends.

    lock = RankLock(folder, rank=0)
    lock.acquire(n_ranks=8)
    is_locked(folder / "rank3.lock")      # whether rank 3 is alive
    lock.release()

Limits: Windows and some network file systems have no ``flock``; nothing is locked there.
"""

import os
import re
import secrets
import time
from pathlib import Path

from lrt_lens.errors import FileFormatError, MismatchError

try:
    import fcntl
except ImportError:  # Windows has no fcntl
    fcntl = None

_ATTEMPTS = 10
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NAME = re.compile(r"rank([0-9]{1,9})\.lock")


class RankLock:
    """The lock of one rank: ``rank{r}.lock`` in a folder of checkpoints."""

    def __init__(self, folder: Path, rank: int, launch: str = "") -> None:
        self.folder, self.rank, self.launch = folder, rank, launch
        self._handle: int | None = None

    def acquire(self, n_ranks: int) -> None:
        """Take the lock.

        Raises:
            MismatchError: another process holds this lock, or that of a rank >= ``n_ranks``, which
                this run does not have.
        """
        # A locked file of a rank that this run does not have: a run with more ranks is still alive.
        for path in self.folder.glob("rank*.lock"):
            number = _NAME.fullmatch(path.name)
            if number and int(number[1]) >= n_ranks and is_locked(path):
                raise self._held_by_other(path)
        if fcntl is None:
            return
        path = self.folder / f"rank{self.rank}.lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o644)
        except OSError as error:
            if path.is_symlink():
                raise FileFormatError(
                    f"{str(path)!r} is a symbolic link, which is not followed; remove it"
                ) from error
            raise
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # `is_locked` in another rank holds the lock for a moment while it tests it.
                if attempt == _ATTEMPTS - 1:
                    os.close(handle)
                    raise self._held_by_other(path) from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                os.close(handle)
                return
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()} {secrets.token_hex(8)} {self.launch}".encode())
        # Closing the handle releases the lock, so it stays open.
        self._handle = handle

    def release(self) -> None:
        """Release the lock; no effect if it is not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _held_by_other(self, path: Path) -> MismatchError:
        holder = lock_entry(path).partition(" ")[0] or "unknown"
        return MismatchError(
            f"another process (id {holder}) is harvesting into {str(self.folder)!r} as "
            f"{path.stem}; end it, or wait for it, or choose another folder"
        )


def lock_entry(path: Path) -> str:
    """Return what the last holder of a lock wrote: its process, a random number and its launch.

    Empty if there is no such file. The random number tells one holder from another.
    """
    try:
        return path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""


def is_locked(path: Path) -> bool:
    """Return whether a living process holds the lock."""
    if fcntl is None:
        return False
    try:
        handle = os.open(path, os.O_RDWR | _NO_LINK)
    except OSError:  # no file, or a link, which no rank has made
        return False
    try:
        # A shared lock fails only while another process holds the exclusive one.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
