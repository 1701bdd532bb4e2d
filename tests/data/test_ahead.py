"""Tests of iteration in a thread: the same items, errors and end as without one."""

import threading
import time
from collections.abc import Iterator

import pytest

from lrt_lens.data._blocks import running_ahead


def threads() -> int:
    return sum(thread.name == "lrt_lens-blocks" for thread in threading.enumerate())


def test_the_same_items_in_the_same_order() -> None:
    with running_ahead(iter(range(50))) as items:
        assert list(items) == list(range(50))
    assert threads() == 0


def test_items_are_made_before_they_are_asked_for_and_not_all_of_them() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for k in range(100):
            made.append(k)
            yield k

    with running_ahead(make(), n_ready=3) as items:
        assert next(items) == 0
        deadline = time.monotonic() + 5
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert made == [0, 1, 2, 3, 4], "one read, three ready, one waiting"
    assert threads() == 0, "a reader that stops early stops the thread"
    assert len(made) == 5


def test_an_error_comes_where_it_would_have() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise ValueError("the second one is bad")

    with running_ahead(make()) as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="the second one is bad"):
            next(items)
    assert threads() == 0


def test_an_error_of_the_reader_ends_the_thread() -> None:
    def fail_on(item: int) -> None:
        raise RuntimeError(f"mine, at {item}")

    with pytest.raises(RuntimeError, match="mine, at 0"), running_ahead(iter(range(1000))) as items:
        fail_on(next(items))
    assert threads() == 0


def test_items_that_are_ready_stay_to_be_taken() -> None:
    with running_ahead(iter(range(3)), n_ready=3) as items:
        deadline = time.monotonic() + 5
        while len(items.ready()) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert items.ready() == [0, 1, 2]
        assert next(items) == 0
        assert items.ready() == [1, 2]
        assert list(items) == [1, 2]
        assert items.ready() == []
        assert list(items) == []
