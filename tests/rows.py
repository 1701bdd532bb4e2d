"""Rows with a known linear relation, and moments, maps and stitches made from them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from lrt_lens.models import ModelPair
    from lrt_lens.moments import CrossMoments

D_SOURCE, D_TARGET, ROWS_PER_DOCUMENT = 12, 9, 20
SOURCES = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
TARGETS = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")


@dataclass(frozen=True)
class Rows:
    """Paired activations, with the document and the part of each row."""

    x: Tensor
    y: Tensor
    documents: list[str]
    parts: np.ndarray

    @property
    def fits(self) -> np.ndarray:
        return self.parts < 5

    def numpy(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.x.numpy()[chosen], self.y.numpy()[chosen]

    def taken(self, index: Any) -> "Rows":
        index = torch.as_tensor(index)
        return Rows(
            self.x[index],
            self.y[index],
            [self.documents[i] for i in index.tolist()],
            self.parts[index.numpy()],
        )


def make_rows(seed: int, n_documents: int = 120) -> Rows:
    """A noisy linear relation between streams with large means and correlated dimensions."""
    from lrt_lens.data import document_key, part_of

    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n = n_documents * ROWS_PER_DOCUMENT
    mixing = 3 * torch.eye(D_SOURCE, dtype=torch.float64) + randn(D_SOURCE, D_SOURCE)
    x = randn(n, D_SOURCE) @ mixing * torch.logspace(
        -0.25, 0.25, D_SOURCE, dtype=torch.float64
    ) + 30 * randn(D_SOURCE)
    y = (
        (x - x.mean(0)) @ randn(D_SOURCE, D_TARGET) / 5
        + 3 * randn(n, D_TARGET)
        + 20 * randn(D_TARGET)
    )
    documents = [f"document {i // ROWS_PER_DOCUMENT}" for i in range(n)]
    return Rows(x, y, documents, np.array([part_of(document_key(d, 0)) for d in documents]))


@pytest.fixture(scope="session")
def rows() -> Rows:
    """2400 rows of 120 documents, 12 → 9 dimensions, float64."""
    return make_rows(0)


@pytest.fixture(scope="session")
def moments_of() -> Callable[..., Any]:
    """A function that returns the moments of rows, in float64 unless ``moment_dtype`` is given."""

    def build(rows: Rows, **options: Any) -> Any:
        from lrt_lens.moments import CrossMoments

        return CrossMoments.from_activations(
            rows.x, rows.y, documents=rows.documents, **{"moment_dtype": torch.float64} | options
        )

    return build


@pytest.fixture(scope="session")
def sklearn_ridge() -> Callable[..., Any]:
    """A function that fits scikit-learn's ridge regression at our relative penalty."""
    from sklearn.linear_model import Ridge

    def fit(x: np.ndarray, y: np.ndarray, alpha: float) -> Any:
        centred = x - x.mean(0)
        return Ridge(alpha=alpha * (centred**2).sum() / x.shape[1], solver="cholesky").fit(x, y)

    return fit


@pytest.fixture(scope="session")
def layered(rows: Rows) -> dict[str, dict[str, Tensor]]:
    """Activations at two source and two target hook points and at an embedding.

    The deeper a source hook point, the better it predicts.
    """
    generator = torch.Generator().manual_seed(5)

    def noisy(values: Tensor, share: float) -> Tensor:
        return values + share * values.std(0) * torch.randn(
            values.shape, generator=generator, dtype=values.dtype
        )

    return {
        "source": {
            SOURCES[0]: noisy(rows.x, 1.0),
            SOURCES[1]: rows.x,
            "hook_embed": noisy(rows.x[:, :5], 2.0),
        },
        "target": {TARGETS[0]: noisy(rows.y, 0.5), TARGETS[1]: rows.y},
    }


@pytest.fixture(scope="session")
def layered_moments(rows: Rows, layered: dict) -> Callable[..., Any]:
    """A function that returns the moments of all hook pairs of `layered`, null included."""
    from lrt_lens.moments import CrossMoments

    def build(
        *, null: str = "full", token: bool = True, target: dict[str, Tensor] | None = None
    ) -> Any:
        pairs = tuple((s, t) for s in SOURCES for t in TARGETS)
        moments = CrossMoments(
            pairs=pairs,
            token_hook="hook_embed" if token else None,
            moment_dtype=torch.float64,
            null=null,
        )
        x, y = layered["source"], target or layered["target"]
        if not token:
            x = {hook: values for hook, values in x.items() if hook != "hook_embed"}
        for part in np.unique(rows.parts):
            index = torch.from_numpy(np.flatnonzero(rows.parts == part))
            # All documents have equal length, so rotating by one document pairs each row with a
            # row of another document.
            pairing = torch.arange(len(index)).roll(-ROWS_PER_DOCUMENT)
            moments.add_block(
                int(part),
                {h: v[index] for h, v in x.items()},
                {h: v[index] for h, v in y.items()},
                pairing,
            )
        return moments

    return build


@pytest.fixture(scope="session")
def grid(layered_moments: Callable[..., Any]) -> Any:
    """Fit of all four hook pairs."""
    return layered_moments().fit()


@pytest.fixture(scope="session")
def stitch(grid: Any) -> Any:
    """Stitch of one hook pair, with its null and its refits."""
    return grid[SOURCES[1], TARGETS[1]]


@pytest.fixture(scope="session")
def owned_stitch(stitch: Any, pair: Any) -> Any:
    """That stitch, with the models of the tiny pair in its provenance."""
    return replace(
        stitch,
        provenance=replace(
            stitch.provenance, source=pair.source.identity, target=pair.target.identity
        ),
    )


@pytest.fixture(scope="session")
def whole(pair: "ModelPair", corpus: list[str]) -> "CrossMoments":
    """Moments of the test corpus, harvested in one run, in small blocks."""
    from lrt_lens.moments import harvest
    from tests.moments.small_blocks import OPTIONS

    return harvest(pair, corpus, progress=False, **OPTIONS)
