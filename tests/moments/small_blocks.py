"""A harvest cut into blocks so small that the test corpus fills some forty of them, and what it
means for two of them to agree.
"""

from typing import Any

import torch

from lrt_lens.moments._cross_moments import CrossMoments

OPTIONS: dict[str, Any] = {
    "context_length": 24,
    "n_tokens": None,
    "moment_dtype": "float64",
    "block_rows": 250,
    "source_layers": [1],
    "target_layers": [0, 2],
}


def assert_same(found: CrossMoments, expected: CrossMoments) -> None:
    """Equal to rounding, counts and provenance exactly."""
    theirs = expected.tensors()
    for name, tensor in found.tensors().items():
        assert float((tensor - theirs[name]).norm()) <= 1e-12 * float(theirs[name].norm()), name
    assert torch.equal(found.n, expected.n)
    assert found.provenance == expected.provenance
