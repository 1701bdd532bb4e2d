"""Place of the sums of a harvest: on the models' device, in host memory, or in a mapped file.

Problem: exact moments of wide models take more memory than an accelerator has beside the weights,
and sometimes more than the machine has. Mechanism: products are always computed where the rows are.
A `Placement` allocates the sums and adds the products to them:

``"device"``    sums on the models' device, to which products are added in place;
``"host"``      sums in host memory, pinned if the models are on a CUDA device: each product is
                copied to a pinned buffer while the device goes on, and added when it has arrived;
``"disk"``      sums in an unnamed file that is mapped into memory, so that the system writes out
                what does not fit;
``"auto"``      the device if the sums fit there beside the rows of a block, else the host.

    place = placed("auto", "cuda:0", n_bytes, workspace)
    sums = place.zeros((13, 2304, 3584))
    place.add(sums[0], product)
    place.finish()                         # before the sums are read

Limits: a mapped file is as fast as its disk; on a memory file system (some /tmp) it saves nothing.
Mapped sums cannot be sent to another process; save them and load them there.
"""

import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lrt_lens._byte_sizes import human_bytes

logger = logging.getLogger(__name__)

Place = Literal["auto", "device", "host", "disk"]
"""Places in which sums can live."""
PLACES: tuple[str, ...] = get_args(Place)
"""All places, the default first."""
FEWER_PAIRS = (
    "let fit_stitches(pair, documents, memory_budget='8GB') survey all hook pairs and harvest the "
    "best (by hand: lrt.survey, then pairs=survey.best(20)), choose 'proportional' layers or fewer "
    "of them, null='none', fewer n_folds and n_test_groups, placement='disk', or the passes of "
    "plan_harvest(…, memory_budget=…), one harvest each"
)
"""Remedy for exact moments that do not fit."""
_NEARLY_ALL = 0.8
"""Share of the free memory above which a warning is logged."""
_BUFFERS = 3
"""Products that wait in buffers while the device computes the next ones."""


@dataclass
class Placement:
    """Sums in one place, and how products are added to them."""

    place: str = "device"
    """``"device"``, ``"host"`` or ``"disk"``."""
    device: torch.device | None = None
    """Device of the rows; None: that of the first rows, and the sums with them."""
    folder: Path | None = None
    """Folder of a mapped file; None: the system's folder for temporary files."""
    _waiting: "deque[_Arriving]" = field(default_factory=deque, init=False, repr=False)
    _free: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _pins: bool = field(default=True, init=False, repr=False)
    """False after pinned memory could not be had once."""

    @property
    def sums_device(self) -> torch.device | None:
        """Device of the sums, or None for that of the rows."""
        return self.device if self.place == "device" else torch.device("cpu")

    def zeros(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return float64 sums of this shape.

        Args:
            shape: shape of the sums.
            like: tensor on the device of the rows, for sums that live there.

        Raises:
            ValueError: the memory or the disk is too small; the message names the bytes.
        """
        if self.place == "disk":
            return mapped_zeros(shape, self.folder)
        if self.place == "device":
            return torch.zeros(*shape, dtype=torch.float64, device=self.sums_device or like.device)
        if like.device.type == "cuda" or (self.device and self.device.type == "cuda"):
            return self._host_memory(tuple(shape), torch.float64).zero_()
        return torch.zeros(*shape, dtype=torch.float64)

    def add(self, sums: Tensor, product: Tensor) -> None:
        """Add a product to sums of its shape; it may arrive later, see `finish`."""
        if not self._is_far(sums, product):
            sums += product
            return
        while len(self._waiting) >= _BUFFERS:
            self._finish_one()
        buffer = self._buffer(product)
        buffer[: product.numel()].view(product.shape).copy_(product, non_blocking=True)
        event = None
        if product.device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(product.device))
        self._waiting.append(_Arriving(sums, buffer, event))

    def finish(self) -> None:
        """Add all products that are on their way."""
        while self._waiting:
            self._finish_one()

    def _is_far(self, sums: Tensor, product: Tensor) -> bool:
        return sums.device != product.device

    def _finish_one(self) -> None:
        arriving = self._waiting.popleft()
        if arriving.event is not None:
            arriving.event.synchronize()
        product = arriving.buffer[: arriving.sums.numel()].view(arriving.sums.shape)
        arriving.sums.add_(product)
        self._free.append(arriving.buffer)

    def _buffer(self, product: Tensor) -> Tensor:
        """Return a flat buffer in which the product has room, a used one if there is one."""
        for number, buffer in enumerate(self._free):
            if buffer.numel() >= product.numel() and buffer.dtype == product.dtype:
                return self._free.pop(number)
        if product.device.type != "cuda":
            return torch.empty(product.numel(), dtype=product.dtype)
        return self._host_memory((product.numel(),), product.dtype)

    def _host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return host memory, pinned if that can be had; one warning if it cannot.

        Raises:
            ValueError: ordinary memory does not suffice either.
        """
        size = human_bytes(prod(shape) * dtype.itemsize)
        if self._pins:
            try:
                return _empty(shape, dtype, pin_memory=True)
            # CUDA reports a failed allocation as RuntimeError.
            except (RuntimeError, MemoryError) as error:
                self._pins = False
                logger.warning(
                    "%s of pinned host memory could not be had (%s): ordinary memory is used, and "
                    "copies from the device wait for it; fewer pairs, or a higher limit of locked "
                    "memory (ulimit -l), would avoid that",
                    size,
                    str(error).strip().split("\n")[0][:100],
                )
        try:
            return _empty(shape, dtype)
        except (RuntimeError, MemoryError) as error:
            raise ValueError(
                f"{size} of host memory could not be had for the moments; give placement='disk', a "
                "smaller memory_budget, or fewer pairs"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        # Buffers are of this process; `Accumulator` finishes before its sums are copied.
        self.finish()
        return {**self.__dict__, "_waiting": deque(), "_free": []}


@dataclass(frozen=True)
class _Arriving:
    """A product on its way to the sums."""

    sums: Tensor
    buffer: Tensor
    """Flat host memory that the device writes to; its first numbers are the product."""
    event: Any
    """CUDA event after the copy; None if the copy is complete."""


def placed(
    place: str,
    device: str | torch.device,
    n_bytes: int,
    workspace: int = 0,
    *,
    folder: str | Path | None = None,
) -> Placement:
    """Return the placement of sums, and log one line if they do not live on the models' device.

    Args:
        place: one of ``PLACES``.
        device: device of the models and of the rows.
        n_bytes: bytes of the sums.
        workspace: bytes that one block needs on the device beside them.
        folder: folder of a mapped file.

    Raises:
        ValueError: the sums do not fit there; the message names what is free.
    """
    device = torch.device(device)
    chosen = chosen_place(place, device, n_bytes, workspace)
    if chosen != "device":
        # What was asked for is no surprise.
        logger.log(
            logging.WARNING if place == "auto" else logging.INFO,
            "the exact moments (%s) live %s",
            human_bytes(n_bytes),
            where_moments_live(chosen, device, folder),
        )
    if chosen == "disk":
        where = scratch_folder(folder)
        remedy = "give placement_folder= on a larger disk, fewer pairs, or fewer folds and groups"
        free = free_disk(where)
        refuse_more_than_there_is(n_bytes, free, f"the disk of {str(where)!r}", remedy)
        refuse_unfit_folder(chosen, where)
        return Placement("disk", device, where)
    refuse_unfit(n_bytes, "cpu" if chosen == "host" else device)
    return Placement(chosen, device)


def chosen_place(place: str, device: str | torch.device, n_bytes: int, workspace: int) -> str:
    """Return ``"device"``, ``"host"`` or ``"disk"``; the arguments are those of `placed`."""
    device = torch.device(device)
    if place == "disk":
        return "disk"
    # On a CPU the device is the host.
    if device.type == "cpu" or place == "device":
        return "device"
    free = available_memory(device)
    fits = free is None or n_bytes + workspace <= free
    return "device" if place == "auto" and fits else "host"


def where_moments_live(
    place: str, device: str | torch.device, folder: str | Path | None = None
) -> str:
    """Return a phrase for a chosen place, such as ``"on cuda:0"``."""
    if place == "disk":
        return f"in a mapped file in {str(scratch_folder(folder))!r}"
    if place == "host":
        return f"in host memory, to which products are copied from {device}"
    return "in memory" if torch.device(device).type == "cpu" else f"on {device}"


def refuse_unfit(n_bytes: int, device: str | torch.device, remedy: str = FEWER_PAIRS) -> None:
    """Raise ValueError if so many bytes are not free on a device; warn above 80 % of them."""
    refuse_more_than_there_is(n_bytes, available_memory(device), device, remedy)


def checked_folder(place: str, folder: str | Path) -> Path:
    """Return the folder of a mapped file, with ``~`` expanded.

    Raises:
        ValueError: it is no path, or the sums are not to be a mapped file.
    """
    if not isinstance(folder, str | Path):
        raise ValueError(
            f"placement_folder is {folder!r}; expected the path of a folder, or None for the "
            "system's folder for temporary files"
        )
    if place != "disk":
        raise ValueError(
            f"placement_folder is {str(folder)!r} and placement {place!r}; only a mapped file has "
            "a folder: give placement='disk' too"
        )
    return Path(folder).expanduser()


def scratch_folder(folder: str | Path | None) -> Path:
    """Return the folder of mapped files; by default the system's folder for temporary files."""
    return Path(folder or tempfile.gettempdir())


def refuse_unfit_folder(place: str, folder: str | Path | None) -> None:
    """Raise ValueError if sums are to be a mapped file and no file can be mapped in the folder."""
    if place == "disk":
        mapped_zeros((1,), folder)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, *, pin_memory: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=pin_memory)


def mapped_zeros(shape: Sequence[int], folder: str | Path | None = None) -> Tensor:
    """Return float64 zeros in a file that is mapped into memory and has no name.

    The file ends with the tensor, also if the process is killed.

    Raises:
        ValueError: the folder has no room for it, or cannot be written.
    """
    n_bytes = prod(shape) * torch.float64.itemsize
    folder = scratch_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".moments-")
        try:
            # Reserved now: a full disk would otherwise end the process when a page is written.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, max(n_bytes, 1))
            else:
                os.truncate(handle, max(n_bytes, 1))
            flat = torch.from_file(name, shared=True, size=prod(shape), dtype=torch.float64)
        finally:
            os.close(handle)
            # The mapping keeps the file until the tensor is gone.
            os.unlink(name)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"no mapped file of {human_bytes(n_bytes)} in {str(folder)!r} ({error}); give "
            "placement_folder= with a folder that has room for the moments"
        ) from error
    return flat.view(*shape)


def free_disk(folder: Path) -> int | None:
    """Return the free bytes of the disk of a folder, which need not exist; None if unknown."""
    for there in (folder, *folder.absolute().parents):
        if there.is_dir():
            return shutil.disk_usage(there).free
    return None


def most_free(
    place: str, device: str | torch.device, folder: str | Path | None = None
) -> int | None:
    """Return the free bytes where sums of this placement may live; None if unknown."""
    if place == "disk":
        return free_disk(scratch_folder(folder))
    devices = {"device": [device], "host": ["cpu"], "auto": [device, "cpu"]}[place]
    known = [free for one in devices if (free := available_memory(one)) is not None]
    return max(known, default=None)


def available_memory(device: str | torch.device = "cpu") -> int | None:
    """Return the bytes of free memory on a device; None if the system does not tell."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    free = []
    try:
        # MemAvailable includes the page cache, which the system gives up on demand;
        # SC_AVPHYS_PAGES does not. A container may have less than its machine.
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(
            next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        )
        free.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError, StopIteration):
        pass
    try:
        return min(free) if free else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def refuse_more_than_there_is(
    needed: int, available: int | None, device: Any = "cpu", remedy: str = FEWER_PAIRS
) -> None:
    """Raise ValueError if ``needed`` bytes are more than are free; warn above 80 % of them.

    Without this check the system would kill the process in the middle of a harvest.
    """
    if available is not None and needed > available:
        raise ValueError(
            f"the moments of these pairs take {human_bytes(needed)} and {human_bytes(available)} "
            f"are free on {device}; {remedy}"
        )
    if available is not None and needed > _NEARLY_ALL * available:
        logger.warning(
            "the moments take %s, nearly all of the %s that are free on %s",
            human_bytes(needed),
            human_bytes(available),
            device,
        )
