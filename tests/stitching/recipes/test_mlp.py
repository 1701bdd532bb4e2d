"""Network with one hidden layer: more expressive than affine maps, early stopping, resuming."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.metrics import r2_score

from lrt_lens.errors import MismatchError
from lrt_lens.moments import TEST_PARTS, CrossMoments
from lrt_lens.moments.cache._selection import RowSelection
from lrt_lens.stitching import Mlp, RowsInMemory
from lrt_lens.stitching.recipes._mlp import MlpResult


@pytest.fixture(scope="module")
def bent_rows() -> RowsInMemory:
    """Rows with y = |x| A + noise, which no linear map of x predicts."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4000, 4, generator=generator)
    y = x.abs() @ torch.randn(4, 6, generator=generator) + 0.1 * torch.randn(
        4000, 6, generator=generator
    )
    return RowsInMemory(x, y, [i // 20 for i in range(4000)], "a", "b")


@pytest.fixture(scope="module")
def trained(bent_rows: RowsInMemory) -> MlpResult:
    return Mlp(learning_rate=1e-2, batch_rows=256, epochs=40, hidden=24).fit(
        bent_rows, progress=False
    )


def test_it_explains_what_is_not_linear(trained: MlpResult, bent_rows: RowsInMemory) -> None:
    linear = (
        CrossMoments.from_activations(bent_rows.x, bent_rows.y, documents=bent_rows.documents)
        .fit()
        .scores["r2"][0]
    )
    assert linear < 0.05
    assert trained.score(bent_rows).r2 > 0.9


def test_scores_are_scikit_learns(trained: MlpResult, bent_rows: RowsInMemory) -> None:
    ((x, y),) = bent_rows.batches(RowSelection(parts=TEST_PARTS), 10_000)
    scores = trained.score(bent_rows)
    assert scores.r2 == pytest.approx(
        r2_score(y, trained.points(x), multioutput="variance_weighted"), abs=1e-5
    )
    assert scores.r2_uniform == pytest.approx(r2_score(y, trained.points(x)), abs=1e-5)
    assert scores.r2_uniform_down == pytest.approx(r2_score(x, trained.down_points(y)), abs=1e-5)


def test_the_hidden_layer_is_as_wide_as_the_papers(bent_rows: RowsInMemory) -> None:
    result = Mlp(epochs=1).fit(bent_rows, progress=False)
    assert [tuple(p.shape) for p in result.up.parameters()] == [(5, 4), (5,), (6, 5), (6,)]
    assert [tuple(p.shape) for p in result.down.parameters()] == [(5, 6), (5,), (4, 5), (4,)]
    paper = Mlp.oozeer()
    assert (
        paper.optimizer,
        paper.learning_rate,
        paper.batch_rows,
        paper.epochs,
        paper.patience,
    ) == ("adamw", 1e-4, 46_080, 3, None)


def test_points_are_the_formula_in_any_shape_and_precision(
    trained: MlpResult, bent_rows: RowsInMemory
) -> None:
    w1, b1, w2, b2 = (p.double() for p in trained.up.parameters())
    x = bent_rows.x[:6].double().reshape(2, 3, 4)
    torch.testing.assert_close(
        trained.points(x), (x @ w1.T + b1).clamp_min(0) @ w2.T + b2, rtol=1e-5, atol=1e-5
    )
    with pytest.raises(MismatchError, match="4 dimensions"):
        trained.points(bent_rows.y)


def test_it_stops_when_held_out_rows_get_no_better(bent_rows: RowsInMemory) -> None:
    noise = RowsInMemory(
        bent_rows.x,
        torch.randn(4000, 6, generator=torch.Generator().manual_seed(2)),
        bent_rows.documents,
    )
    result = Mlp(learning_rate=1e-2, epochs=50, hidden=64, patience=2, batch_rows=256).fit(
        noise, progress=False
    )
    assert result.settings.patience == 2
    for _, looks in result.history.groupby("direction"):
        losses = looks["held_out_loss"].to_numpy()
        assert len(losses) < 100
        assert losses[-3] == losses.min()
    assert result.score(noise).r2 > -0.1


def test_a_killed_run_goes_on_to_the_same_bits(
    bent_rows: RowsInMemory, killed_after: Callable[[int], None], tmp_path: Path
) -> None:
    """Kill twice: after early stopping of one direction only, and before that."""
    settings = Mlp(learning_rate=3e-2, batch_rows=256, epochs=12, patience=2, looks_per_epoch=3)
    whole = settings.fit(bent_rows, progress=False)
    assert len(set(whole.history.groupby("direction").size())) == 2
    n_steps = int(whole.history.groupby("direction")["step"].max().sum())
    for step in (10, n_steps - 30):
        killed_after(step)
        with pytest.raises(KeyboardInterrupt):
            settings.fit(bent_rows, checkpoint=tmp_path, checkpoint_every=1e-9, progress=False)
    resumed = settings.fit(bent_rows, checkpoint=tmp_path, progress=False)
    for ours, theirs in ((resumed.up, whole.up), (resumed.down, whole.down)):
        assert all(
            torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
        )
    assert resumed.history["held_out_loss"].equals(whole.history["held_out_loss"])


@pytest.mark.usefixtures("unchecked")
def test_no_hidden_units_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden"):
        Mlp(hidden=0)
