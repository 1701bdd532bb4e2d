"""The machine of a measurement, described without its name."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "transformer-lens", "numpy", "scikit-learn")


def describe_machine(threads: int) -> dict[str, Any]:
    """Processor, cores, memory, threads and versions: no host name, no path."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def load_average() -> float:
    """Mean number of runnable processes in the last minute.

    Well above 0 at the start of a benchmark, it means that another program is running.
    """
    return round(os.getloadavg()[0], 2)


def _cpu_model() -> str:
    """The name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
