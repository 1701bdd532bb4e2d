"""Folders of files that belong together, replaced as a whole.

Problem: a reader beside a writer must not find the configuration of one object and the tensors of
another, and a full disk or a kill must leave the old ones. Mechanism: the new files are written
into a folder beside the old one, synced to disk, and both folders are exchanged in one step.

    write_folder(folder, lambda staging: save_all(staging), last="config.json")

Limits: a folder that holds anything else, that is the current folder, a mount point or somebody
else's, or on a system that cannot exchange folders, keeps its place: its files are then renamed one
by one. A process that has the old folder as its current one must enter the new one again.
"""

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lrt_lens._files import (
    TEMPORARY,
    failure_of_system,
    lock,
    make_folder,
    mode_of_new_files,
    remove_abandoned,
    sync,
    temporary_prefix,
    unlock,
    unwritable,
)

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Arguments of Linux's ``renameat2``: paths as they are, and exchange instead of replace."""
_PATIENCE = 10.0
"""Seconds to wait for another process that holds a folder while it exchanges or removes it."""


def write_folder(folder: Path, write: Callable[[Path], Any], *, last: str) -> Path:
    """Write files that belong together, put them into ``folder`` at once, and return ``folder``.

    ``write`` fills an empty folder. Other files that are in ``folder`` stay there. Where the folder
    cannot be exchanged, its files are renamed one by one; ``last`` is the name of the one that a
    reader opens first.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; the old files are still
            there.
    """
    make_folder(folder)
    try:
        # A link stays a link: what it points at is replaced.
        folder = folder.resolve()
        remove_abandoned(folder.parent, temporary_prefix(folder))
        remove_abandoned(folder, TEMPORARY)
        # Beside the folder, because only there it can wait for an exchange.
        is_beside = os.access(folder.parent, os.W_OK) and not os.path.ismount(folder)
        place = (folder.parent, temporary_prefix(folder)) if is_beside else (folder, TEMPORARY)
        with _staged(*place, write) as staging:
            if not (is_beside and _is_replaceable(folder, staging) and _replaced(folder, staging)):
                for path in sorted(staging.iterdir(), key=lambda path: path.name == last):
                    path.replace(folder / path.name)
                sync(folder)
    except Exception as error:
        if (failure := failure_of_system(error)) is not None:
            raise unwritable(folder, failure) from error
        raise
    return folder


def _is_replaceable(folder: Path, staging: Path) -> bool:
    """Return whether ``staging`` may take the place of the folder, which loses nothing by it."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the current folder was removed
        here = Path("/")
    ours = {entry.name for entry in os.scandir(staging)}
    attributes = getattr(os, "listxattr", lambda _: [])(folder)
    return not (
        folder in (here, *here.parents)
        or not os.access(folder, os.W_OK)
        or any(entry.name not in ours or entry.is_dir() for entry in os.scandir(folder))
        # Lists of rights, which a new folder does not have.
        or any(name != "security.selinux" for name in attributes)
    )


def _replaced(folder: Path, staging: Path) -> bool:
    """Exchange both folders, and return whether that could be done; else nothing has changed."""
    old, new = folder.stat(), staging.stat()
    try:
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.chown(staging, old.st_uid, old.st_gid)
    except OSError:  # somebody else's
        return False
    ours = {entry.name for entry in os.scandir(staging)}
    shutil.copymode(folder, staging)
    sync(staging)
    # A lock belongs to the folder, not to its name: without one of its own, the old folder would
    # look abandoned to `remove_abandoned` of another process as soon as it has the other name.
    held = lock(folder, patience=_PATIENCE)
    try:
        if not _exchange(staging, folder):
            return False
        # ``staging`` is the old folder now. What somebody else has put there meanwhile stays.
        for entry in list(os.scandir(staging)):
            if entry.name not in ours:
                os.rename(entry.path, folder / entry.name)
        _remove(staging, ours)
    finally:
        unlock(held)
    sync(folder.parent)
    return True


@contextmanager
def _staged(parent: Path, prefix: str, write: Callable[[Path], Any]) -> Iterator[Path]:
    """Yield a new folder with what ``write`` put there, synced to disk; remove it at the end."""
    staging = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    made = staging.stat()
    # `remove_abandoned` of another process may hold it for a moment.
    held = lock(staging, patience=_PATIENCE)
    try:
        write(staging)
        mode = mode_of_new_files()
        for path in staging.iterdir():
            # safetensors makes files that only their owner can read.
            if path.is_file():
                path.chmod(mode)
            sync(path)
        yield staging
    finally:
        # After an exchange the name is that of the old folder, which `_replaced` removes.
        with suppress(FileNotFoundError):
            if os.path.samestat(made, staging.stat()):
                _remove(staging, {path.name for path in staging.iterdir()})
        unlock(held)


def _remove(folder: Path, names: set[str]) -> None:
    """Remove files of a folder, and the folder itself if nothing else is in it."""
    for name in names:
        path = folder / name
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)  # without locks, another process may be removing it too
    with suppress(OSError):
        folder.rmdir()


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
