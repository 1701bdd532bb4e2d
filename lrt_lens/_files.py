"""Files and folders that are whole or absent, also after a full disk, a kill or a power failure.

Problem: a process that ends while it writes leaves half a file, which a later run would read, or
removes the old one first. Mechanism: everything is written under another name beside the old
content, synced to disk, and only then put in its place.

    write_atomically(path, lambda temporary: temporary.write_text("{}"))
    write_folder(folder, lambda staging: save_all(staging), last="config.json")

Limits: a rename replaces a file as a whole only within one file system. Where the system cannot
exchange two folders, `write_folder` says what it does instead.
"""

import ctypes
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no fcntl
    fcntl = None

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Arguments of Linux's ``renameat2``: paths as they are, and exchange instead of replace."""
_STAGING = ".saving-"
"""Start of the names of folders in which files wait for their place."""
_ATTEMPTS = 20


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file under a temporary name, sync it, rename it to ``path`` and return ``path``.

    ``write`` is called with the temporary path, which is in the same folder.
    If ``write`` fails, the temporary file is removed and ``path`` stays as it was.

    Raises:
        OSError: the disk is full, or the folder cannot be made or written to.
    """
    make_folder(path.parent)
    try:
        # In the same folder, because a rename across file systems would be a copy.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    # mkstemp opens the file; it is closed here because `write` opens the path itself.
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp makes files that only their owner can read.
        temporary.chmod(0o644)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except Exception as error:
        if (failure := _failure_of_system(error)) is not None:
            raise _unwritable(path, failure) from error
        raise
    finally:
        # After the rename there is no temporary file; unlink matters only if `write` failed.
        temporary.unlink(missing_ok=True)
    return path


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder on Windows
        return
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot sync a folder, and say so.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> Path:
    """Return the folder after creating it, with its parents, if it does not exist.

    Raises:
        OSError: the folder cannot be made; the message gives the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _failure_of_system(error: Exception) -> OSError | None:
    """Return the error of the operating system behind an exception; None if there is none."""
    if isinstance(error, OSError):
        return error
    # safetensors has its own exception, with the number of the system's error in its text.
    number = re.search(r"\(os error (\d+)\)", str(error))
    return None if number is None else OSError(int(number[1]), os.strerror(int(number[1])))


def _unwritable(path: Path, error: OSError) -> OSError:
    if getattr(error, "is_explained", False):
        return error
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = (
        "nothing that was there has changed; free some space, or choose another place"
        if is_full
        else "choose a folder that you may write to"
    )
    explained: Any = OSError(f"cannot write to {str(path)!r} ({error.strerror or error}); {remedy}")
    explained.errno, explained.is_explained = error.errno, True
    return explained


def refuse_unwritable(out: Path) -> None:
    """Check that files can be written into ``out``, before any work is done.

    Raises:
        OSError: the folder cannot be created or written.
    """
    probe = write_atomically(out / ".lrt_lens_probe", lambda temporary: temporary.write_text("{}"))
    probe.unlink()


# ------------------------------------------------------------------------------------------ folders


def write_folder(folder: Path, write: Callable[[Path], Any], *, last: str) -> Path:
    """Write files that belong together, put them into ``folder`` at once, and return ``folder``.

    ``write`` fills an empty folder beside ``folder``. It is synced to disk and exchanged with
    ``folder`` in one step, so that a reader finds the old files or the new ones, and a full disk or
    a kill leaves the old ones. Other files that are in ``folder`` stay there.

    Where the folder cannot be replaced (it is the current one, a mount point, or its parent is not
    writable), or the system cannot exchange folders, the new files wait inside ``folder`` and are
    renamed one by one; ``last`` is the name of the one that a reader opens first.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    make_folder(folder)
    # A link stays a link: what it points at is replaced.
    folder = folder.resolve()
    _remove_abandoned(folder)
    try:
        if not _is_replaceable(folder) or not _replace_as_a_whole(folder, write):
            _replace_file_by_file(folder, write, last)
    except Exception as error:
        if (failure := _failure_of_system(error)) is not None:
            raise _unwritable(folder, failure) from error
        raise
    return folder


def _is_replaceable(folder: Path) -> bool:
    """Return whether the folder may be exchanged for another one beside it."""
    here = Path.cwd()
    return not (
        folder in (here, *here.parents)
        or os.path.ismount(folder)
        or not os.access(folder.parent, os.W_OK)
    )


def _replace_as_a_whole(folder: Path, write: Callable[[Path], Any]) -> bool:
    """Exchange the folder for a new one; return False, with nothing changed, if it cannot be."""
    with _staged(folder.parent, _prefix(folder), write) as staging:
        for entry in folder.iterdir():
            if not (staging / entry.name).exists() and not entry.name.startswith(_STAGING):
                _link(entry, staging / entry.name)
        shutil.copymode(folder, staging)
        sync(staging)
        # After the exchange, ``staging`` holds the old files.
        is_exchanged = _exchange(staging, folder)
    if is_exchanged:
        sync(folder.parent)
    return is_exchanged


def _replace_file_by_file(folder: Path, write: Callable[[Path], Any], last: str) -> None:
    with _staged(folder, _STAGING, write) as staging:
        for path in sorted(staging.iterdir(), key=lambda path: path.name == last):
            path.replace(folder / path.name)
        sync(folder)


@contextmanager
def _staged(parent: Path, prefix: str, write: Callable[[Path], Any]) -> Iterator[Path]:
    """Yield a new folder with what ``write`` put there, synced to disk; remove it at the end."""
    staging = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    handle = _lock(staging)
    for _ in range(_ATTEMPTS):
        if handle is not None or fcntl is None:
            break
        time.sleep(0.001)  # `_remove_abandoned` of another process holds it for a moment
        handle = _lock(staging)
    try:
        write(staging)
        for path in staging.iterdir():
            sync(path)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _unlock(handle)


def _prefix(folder: Path) -> str:
    return f"{_STAGING}{folder.name[:100]}-"


def _link(entry: Path, to: Path) -> None:
    """Give a file, or the files of a folder, a second name; copy where there are no links."""

    def link_or_copy(source: str, target: str) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, target, follow_symlinks=False)

    if entry.is_dir() and not entry.is_symlink():
        shutil.copytree(entry, to, symlinks=True, copy_function=link_or_copy)
    else:
        link_or_copy(str(entry), str(to))


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, and return whether the system could."""
    renameat2 = getattr(_libc(), "renameat2", None)
    if renameat2 is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):  # Windows
        return None


def _lock(folder: Path) -> int | None:
    """Hold a folder for this process, which shows that it is not abandoned."""
    if fcntl is None:
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by its writer, removed by it, or on a file system without locks
        _unlock(handle)
        return None
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _remove_abandoned(folder: Path) -> None:
    """Remove folders that were left by a process that was killed while it saved this folder."""
    for parent, prefix in ((folder.parent, _prefix(folder)), (folder, _STAGING)):
        for staging in parent.iterdir() if os.access(parent, os.R_OK) else ():
            # Only a folder whose writer has ended, or has not begun to write, can be locked.
            if staging.name.startswith(prefix) and (handle := _lock(staging)) is not None:
                if any(staging.iterdir()):
                    shutil.rmtree(staging, ignore_errors=True)
                _unlock(handle)
