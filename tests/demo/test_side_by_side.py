"""Computations side by side: results, errors, and threads of torch."""

import threading

import pytest
import torch

from lrt_lens.demo._side_by_side import side_by_side


def test_results_come_in_the_order_of_the_tasks() -> None:
    before, done = torch.get_num_threads(), []
    tasks = {str(i): (lambda i=i: (i, torch.get_num_threads())) for i in range(7)}
    found = side_by_side(tasks, lambda: done.append(threading.current_thread()))
    assert found == {str(i): (i, 1) for i in range(7)}, "each with one thread of torch"
    assert done == [threading.current_thread()] * 7
    assert torch.get_num_threads() == before


def test_as_many_run_at_once_as_torch_has_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=10)
    try:
        side_by_side({"one": both.wait, "two": both.wait})
    finally:
        torch.set_num_threads(before)


def test_the_first_error_is_raised_and_the_rest_not_started() -> None:
    before, started = torch.get_num_threads(), []
    torch.set_num_threads(1)

    def fail() -> None:
        raise ValueError("no text")

    try:
        with pytest.raises(ValueError, match="no text"):
            side_by_side({"bad": fail, "good": lambda: started.append(1)})
    finally:
        torch.set_num_threads(before)
    assert torch.get_num_threads() == before
