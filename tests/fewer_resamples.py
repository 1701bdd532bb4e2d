"""Fewer resamples per interval, for simulations of many intervals."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def fewer_resamples(n: int = 500) -> Iterator[None]:
    """Draw ``n`` resamples per interval instead of 2,000 while this is open."""
    modules = [
        f"lrt_lens.statistics.{name}.N_BOOTSTRAP" for name in ("_bootstrap", "_correlations")
    ]
    with patch(modules[0], n), patch(modules[1], n):
        yield
