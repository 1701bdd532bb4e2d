"""On busy cores a warning advises one thread; torch's own setting stays."""

import logging
from typing import Any

import pytest
import torch

from lrt_lens.models import HookedModel, _busy_cores


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that sets the load, the cores and the threads that are seen."""
    _busy_cores._warn.cache_clear()

    def see(load: float, cores: int, threads: int) -> None:
        monkeypatch.setattr(_busy_cores.os, "getloadavg", lambda: (load, 0.0, 0.0))
        monkeypatch.setattr(_busy_cores.os, "sched_getaffinity", lambda _: set(range(cores)))
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    yield see
    _busy_cores._warn.cache_clear()


def test_several_threads_on_busy_cores_are_advised_against_once(
    machine: Any, model_folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    machine(load=5.2, cores=2, threads=2)
    for _ in range(2):
        HookedModel.load(model_folder)
    [warning] = [one for one in caplog.records if one.name.endswith("_busy_cores")]
    for part in ("2 threads", "2 cores", "load 5.2", "OMP_NUM_THREADS=1", "set_num_threads(1)"):
        assert part in warning.getMessage()


@pytest.mark.parametrize(
    ("load", "cores", "threads", "device"),
    [
        (5.2, 2, 1, "cpu"),  # one thread waits for no other
        (2.0, 2, 2, "cpu"),  # this program's own threads
        (5.2, 16, 16, "cpu"),  # cores are free
        (5.2, 2, 2, "meta"),  # the products are computed elsewhere
    ],
)
def test_nobody_is_advised_who_needs_no_advice(
    machine: Any,
    caplog: pytest.LogCaptureFixture,
    load: float,
    cores: int,
    threads: int,
    device: str,
) -> None:
    machine(load=load, cores=cores, threads=threads)
    _busy_cores.advise_fewer_threads(device)
    assert not caplog.records


def test_where_the_load_is_unknown_nothing_is_said(
    machine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine(load=9.0, cores=2, threads=2)
    for name in ("getloadavg", "sched_getaffinity"):
        monkeypatch.delattr(_busy_cores.os, name)
    caplog.set_level(logging.INFO)
    _busy_cores.advise_fewer_threads("cpu")
    assert not caplog.records
