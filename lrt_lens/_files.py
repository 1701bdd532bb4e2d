"""Files that are whole or absent, also after a full disk, a kill or a power failure.

Problem: a process that ends while it writes leaves half a file, which a later run would read.
Mechanism: a file is written under another name in the same folder, synced to disk and renamed. A
process holds a lock on what it writes, so that the next one removes what a killed process left.

    write_atomically(path, lambda temporary: temporary.write_text("{}"))

Limits: a rename replaces a file as a whole only within one file system. Without locks (Windows,
some network mounts) nothing of a killed process is removed.
"""

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no fcntl
    fcntl = None

_STATUS = Path("/proc/self/status")
"""File in which Linux says the umask of this process."""
TEMPORARY = ".saving-"
"""Start of the names of files and folders that wait for their place."""


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file under a temporary name, sync it, rename it to ``path`` and return ``path``.

    ``write`` is called with the temporary path, which is in the same folder.
    If ``write`` fails, the temporary file is removed and ``path`` stays as it was.

    Raises:
        OSError: the disk is full, or the folder cannot be made or written to.
    """
    make_folder(path.parent)
    try:
        remove_abandoned(path.parent, temporary_prefix(path))
        # In the same folder, because a rename across file systems would be a copy.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=temporary_prefix(path))
    except OSError as error:
        raise unwritable(path.parent, error) from error
    # mkstemp opens the file; it is closed here because `write` opens the path itself.
    os.close(handle)
    temporary = Path(name)
    held = lock(temporary)
    try:
        write(temporary)
        # mkstemp makes files that only their owner can read.
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else mode_of_new_files())
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except Exception as error:
        if (failure := failure_of_system(error)) is not None:
            raise unwritable(path, failure) from error
        raise
    finally:
        # After the rename there is no temporary file; unlink matters only if `write` failed.
        temporary.unlink(missing_ok=True)
        unlock(held)
    return path


def mode_of_new_files() -> int:
    """Return the permissions that a new file of this process has: read and write, by its umask."""
    try:
        found = re.search(r"^Umask:\s*([0-7]+)$", _STATUS.read_text(), flags=re.M)
    except OSError:  # another system than Linux
        found = None
    if found is not None:
        return 0o666 & ~int(found[1], 8)
    # Python can read the umask only by setting it.
    umask = os.umask(0o022)
    os.umask(umask)
    return 0o666 & ~umask


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
        raise unwritable(folder, error) from error
    return folder


def failure_of_system(error: Exception) -> OSError | None:
    """Return the error of the operating system behind an exception; None if there is none."""
    if isinstance(error, OSError):
        return error
    # safetensors has its own exception, with the number of the system's error in its text.
    number = re.search(r"\(os error (\d+)\)", str(error))
    return None if number is None else OSError(int(number[1]), os.strerror(int(number[1])))


def unwritable(path: Path, error: OSError) -> OSError:
    """Return an error of the system as one line with the reason and the remedy."""
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


def foreign_file(path: Path, what: str) -> FileExistsError:
    """Return the error for a file that this package did not write and would overwrite.

    ``what`` names the file that is written under this name, such as ``"model card"``.
    """
    return FileExistsError(
        f"{str(path)!r} exists and is no {what} of this package; nothing was written: choose"
        " another folder, or move that file away"
    )


def refuse_unwritable(out: Path) -> None:
    """Check that files can be written into ``out``, before any work is done.

    Raises:
        OSError: the folder cannot be created or written.
    """
    probe = write_atomically(out / ".lrt_lens_probe", lambda temporary: temporary.write_text("{}"))
    probe.unlink()


# ------------------------------------------------------------------------ files of killed processes


def temporary_prefix(path: Path) -> str:
    """Return the start of the names under which a file or folder waits for its place."""
    # A hash, because the name itself may be as long as a name can be.
    return f"{TEMPORARY}{hashlib.blake2b(os.fsencode(path.name), digest_size=6).hexdigest()}-"


def lock(path: Path, *, patience: float = 0.0) -> int | None:
    """Hold a file or folder for this process; return None if that cannot be.

    Args:
        path: file or folder, which exists.
        patience: seconds to wait while another process holds it.
    """
    deadline = time.monotonic() + patience
    while fcntl is not None:
        handle = None
        try:
            handle = os.open(path, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # While this process waited, another may have put something else there.
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
            unlock(handle)
        except BlockingIOError:  # held by another process
            unlock(handle)
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.001)
        except OSError:  # removed, or on a file system without locks
            unlock(handle)
            return None
    return None


def unlock(handle: int | None) -> None:
    """Let go of what `lock` has held."""
    if handle is not None:
        os.close(handle)


def remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove files and folders with names of that start, whose writer was killed."""
    try:
        entries = list(os.scandir(folder))
    except OSError:  # it cannot be read; the writer will say whether it can be written to
        return
    for entry in entries:
        if not entry.name.startswith(prefix) or entry.is_symlink():
            continue
        # Only what no process writes can be locked. It may vanish at any time.
        handle = lock(Path(entry.path))
        if handle is None:
            continue
        try:
            if entry.is_dir():
                # Its writer has just made it, or has just exchanged it, while it is empty.
                if any(os.scandir(entry.path)):
                    shutil.rmtree(entry.path, ignore_errors=True)
            elif os.fstat(handle).st_size:
                os.unlink(entry.path)
        except OSError:
            pass
        finally:
            unlock(handle)
