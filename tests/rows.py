"""Rows with a known linear relation, and the naive way to everything that moments give."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from lrt_lens.models._pair import ModelPair
    from lrt_lens.moments._cross_moments import CrossMoments

D_SOURCE, D_TARGET, ROWS_PER_DOCUMENT = 12, 9, 20
SOURCES = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
TARGETS = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")


@dataclass(frozen=True)
class Rows:
    """Paired activations, a document id and a part a row."""

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
    from lrt_lens.data._documents import document_key
    from lrt_lens.data._parts import part_of

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
    """``moments_of(rows)``: their moments, in float64 unless another ``moment_dtype`` is given."""

    def build(rows: Rows, **options: Any) -> Any:
        from lrt_lens.moments._cross_moments import CrossMoments

        return CrossMoments.from_activations(
            rows.x, rows.y, documents=rows.documents, **{"moment_dtype": torch.float64} | options
        )

    return build


@pytest.fixture(scope="session")
def sklearn_ridge() -> Callable[..., Any]:
    """``sklearn_ridge(x, y, alpha)``: scikit-learn's fit at our relative penalty."""
    from sklearn.linear_model import Ridge

    def fit(x: np.ndarray, y: np.ndarray, alpha: float) -> Any:
        centred = x - x.mean(0)
        return Ridge(alpha=alpha * (centred**2).sum() / x.shape[1], solver="cholesky").fit(x, y)

    return fit


@pytest.fixture(scope="session")
def layered(rows: Rows) -> dict[str, dict[str, Tensor]]:
    """Two source and two target hook points and an embedding: the deeper a source, the better it
    predicts.
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
    """Moments of the whole grid of `layered`, shuffled pairs and token identity included."""
    from lrt_lens.moments._cross_moments import CrossMoments

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
            # Rows of a part are documents of equal length: rotating by one document pairs each row
            # with another document.
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
    """All four pairs fitted."""
    return layered_moments().fit()


@pytest.fixture(scope="session")
def stitch(grid: Any) -> Any:
    """One of them, with its null and its refits."""
    return grid[SOURCES[1], TARGETS[1]]


@pytest.fixture(scope="session")
def owned_stitch(stitch: Any, pair: Any) -> Any:
    """The same, said to be fitted on the tiny pair."""
    return replace(
        stitch,
        provenance=replace(
            stitch.provenance, source=pair.source.identity, target=pair.target.identity
        ),
    )


@pytest.fixture(scope="session")
def whole(pair: "ModelPair", corpus: list[str]) -> "CrossMoments":
    """The bundled corpus of the tests harvested in one go, in small blocks."""
    from lrt_lens.moments._harvesting import harvest
    from tests.moments.small_blocks import OPTIONS

    return harvest(pair, corpus, progress=False, **OPTIONS)
