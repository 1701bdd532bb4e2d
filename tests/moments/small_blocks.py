"""Options of a harvest with about forty small blocks, and a comparison of two such harvests."""

from typing import Any

import torch

from lrt_lens.moments import CrossMoments

OPTIONS: dict[str, Any] = {
    "context_length": 24,
    "n_tokens": None,
    "moment_dtype": "float64",
    "block_rows": 250,
    "source_layers": [1],
    "target_layers": [0, 2],
}


def assert_same(moments: CrossMoments, expected: CrossMoments) -> None:
    """Assert sums equal up to rounding, and counts and provenance exactly equal."""
    theirs = expected.tensors()
    for name, tensor in moments.tensors().items():
        assert float((tensor - theirs[name]).norm()) <= 1e-12 * float(theirs[name].norm()), name
    assert torch.equal(moments.n, expected.n)
    assert moments.provenance == expected.provenance
