"""Freed memory is given back where the C library can."""

import sys

import pytest
import torch

from lrt_lens.stitching.freed_memory import give_back_freed_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_falls_when_fragments_are_given_back() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    # Small tensors come from the heap; every other one stays, so that the heap's top cannot shrink.
    tensors = [torch.ones(8192) for _ in range(4000)]
    kept = tensors[::16]
    full = resident()
    del tensors
    give_back_freed_memory()
    assert resident() < full - 60_000_000
    assert len(kept) == 250
