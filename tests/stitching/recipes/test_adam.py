"""Maps trained by Adam converge to the closed forms, with the losses and settings of papers."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from torch import nn

from lrt_lens.errors import (
    FileFormatError,
    HookPointError,
    MismatchError,
    NonFiniteError,
    TooFewDocumentsError,
)
from lrt_lens.moments import TEST_PARTS, ActivationCache, CrossMoments
from lrt_lens.moments.cache._selection import RowSelection
from lrt_lens.stitching import AdamFit, RowsInMemory, joint_loss
from lrt_lens.stitching.recipes._adam import AdamResult
from lrt_lens.stitching.recipes._learner import COLUMNS
from lrt_lens.stitching.solvers import FixedMaps, TwoWay

SHORT: dict[str, Any] = {"batch_rows": 128, "epochs": 3, "learning_rate": 1e-2}
FASTER: dict[str, Any] = SHORT | {"learning_rate": 2e-2}
DIVERGING: dict[str, Any] = SHORT | {"learning_rate": 1e30}


def selected(rows: RowsInMemory, selection: RowSelection) -> tuple[np.ndarray, np.ndarray]:
    (batch,) = rows.batches(selection, len(rows.x))
    return batch[0].double().numpy(), batch[1].double().numpy()


def mean_square(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).mean())


@pytest.fixture(scope="module")
def lrt(linear_rows: RowsInMemory) -> AdamResult:
    return AdamFit.lrt(
        learning_rate=2e-2, batch_rows=512, epochs=100, schedule="cosine", weight_decay=0.0
    ).fit(linear_rows, progress=False)


# ------------------------------------------------------------------------------- what they minimise


def test_with_enough_steps_each_direction_is_least_squares(
    lrt: AdamResult, linear_rows: RowsInMemory
) -> None:
    x, y = selected(linear_rows, lrt.settings.training)
    for affine, a, b in ((lrt.maps.up, x, y), (lrt.maps.down, y, x)):
        extended = np.hstack([a, np.ones((len(a), 1))])
        best = extended @ np.linalg.lstsq(extended, b, rcond=None)[0]
        found = a @ affine.weight.double().numpy() + affine.bias.double().numpy()
        assert 1 - 1e-6 < mean_square(found, b) / mean_square(best, b) < 1.001


def test_with_enough_steps_both_directions_reach_the_minimum_of_eq_3(
    linear_rows: RowsInMemory,
) -> None:
    settings = AdamFit.stitching(learning_rate=2e-2, batch_rows=512, epochs=120)
    result = settings.fit(linear_rows, progress=False)
    x, y = selected(linear_rows, settings.training)
    moments = CrossMoments.from_activations(
        torch.from_numpy(x), torch.from_numpy(y), documents=[0] * len(x), moment_dtype=torch.float64
    )
    (part,) = moments.n.nonzero()[:, 0].tolist()
    best = TwoWay(alpha=0.0).minimise(moments.scatter(moments.pairs[0], (part,))).objective
    found = naive_joint_loss(
        result.maps.up.weight,
        result.maps.up.bias,
        result.maps.down.weight,
        result.maps.down.bias,
        x,
        y,
        1.0,
    )
    assert 1 - 1e-6 < found / best < 1.01


def naive_joint_loss(
    up: Any, up_bias: Any, down: Any, down_bias: Any, x: np.ndarray, y: np.ndarray, alpha: float
) -> float:
    """Return eq. 3 summed token by token, in float64."""
    up, up_bias, down, down_bias = (
        np.asarray(t.detach(), dtype=np.float64) for t in (up, up_bias, down, down_bias)
    )
    total = 0.0
    for h_a, h_b in zip(x, y, strict=True):
        to_b, to_a = h_a @ up + up_bias, h_b @ down + down_bias
        total += ((to_b - h_b) ** 2).mean() + ((to_a - h_a) ** 2).mean()
        total += (
            alpha * ((to_b @ down + down_bias - h_a) ** 2).mean()
            + alpha * ((to_a @ up + up_bias - h_b) ** 2).mean()
        )
    return total / len(x)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_the_joint_loss_is_eq_3(linear_rows: RowsInMemory, alpha: float) -> None:
    torch.manual_seed(4)
    up, down = nn.Linear(6, 5), nn.Linear(5, 6)
    x, y = linear_rows.x[:50], linear_rows.y[:50]
    naive = naive_joint_loss(
        up.weight.T,
        up.bias,
        down.weight.T,
        down.bias,
        x.double().numpy(),
        y.double().numpy(),
        alpha,
    )
    assert float(joint_loss(up, down, alpha)(x, y).detach()) == pytest.approx(naive, rel=1e-5)


def test_the_papers_settings() -> None:
    lrt, stitching = AdamFit.lrt(), AdamFit.stitching()
    assert (
        asdict(lrt).items()
        >= {
            "optimizer": "adamw",
            "learning_rate": 1e-4,
            "batch_rows": 16_384,
            "epochs": 4,
            "schedule": "constant",
            "clip_norm": None,
            "inversion_weight": None,
            "validation_share": 0.1,
            "patience": None,
        }.items()
    )
    assert (
        asdict(stitching).items()
        >= {
            "optimizer": "adam",
            "learning_rate": 1e-4,
            "batch_rows": 5120,
            "epochs": 2,
            "schedule": "cosine",
            "clip_norm": 1.0,
            "inversion_weight": 1.0,
            "zero_bias": True,
            "weight_decay": 0.0,
            "patience": None,
        }.items()
    )
    assert [stitching.rate(step, 100) for step in (0, 50, 100)] == pytest.approx([1e-4, 5e-5, 0.0])


def test_steps_are_those_of_torchs_adam(linear_rows: RowsInMemory) -> None:
    """One epoch of the stitching recipe against the same loop written out."""
    settings = AdamFit.stitching(batch_rows=400, epochs=1, learning_rate=1e-2, seed=3)
    result = settings.fit(linear_rows, progress=False)
    torch.manual_seed(3)
    up, down = nn.Linear(6, 5), nn.Linear(5, 6)
    nn.init.zeros_(up.bias)
    nn.init.zeros_(down.bias)
    parameters = [*up.parameters(), *down.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    batches = list(linear_rows.batches(settings.training, 400, seed=3))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for x, y in batches:
        mse = nn.functional.mse_loss
        loss = mse(up(x), y) + mse(down(y), x) + mse(down(up(x)), x) + mse(up(down(y)), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(result.maps.up.weight, up.weight.detach().T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.maps.down.bias, down.bias.detach(), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------ what they say


def test_the_history_says_what_went_through(lrt: AdamResult, linear_rows: RowsInMemory) -> None:
    n = linear_rows.count(lrt.settings.training)
    assert tuple(lrt.history.columns) == COLUMNS
    assert len(lrt.history) == 2 * 2 * 100
    assert (lrt.tokens, lrt.steps) == (100 * n, 100 * -(-n // 512))
    assert lrt.history["tokens"].max() == lrt.tokens
    ends = lrt.history[lrt.history["direction"] == "up"]["held_out_loss"]
    assert ends.iloc[-1] < 0.5 * ends.iloc[0]
    x, y = selected(linear_rows, lrt.settings.validation)
    assert ends.iloc[-1] == pytest.approx(
        mean_square(lrt.maps.up.points(torch.from_numpy(x)).numpy(), y), rel=1e-5
    )
    assert 0 < lrt.history["seconds"].max() <= lrt.seconds


def test_scores_are_scikit_learns_on_the_test_fold(
    lrt: AdamResult, linear_rows: RowsInMemory
) -> None:
    x, y = selected(linear_rows, RowSelection(parts=TEST_PARTS))
    up, down = (
        lrt.maps.up.points(torch.from_numpy(x)).numpy(),
        lrt.maps.down.points(torch.from_numpy(y)).numpy(),
    )
    for scores in (lrt.score(linear_rows), lrt.score((torch.from_numpy(x), torch.from_numpy(y)))):
        assert scores.n_rows == len(x)
        assert scores.r2 == pytest.approx(
            r2_score(y, up, multioutput="variance_weighted"), abs=1e-6
        )
        assert scores.r2_uniform == pytest.approx(r2_score(y, up), abs=1e-6)
        assert scores.r2_down == pytest.approx(
            r2_score(x, down, multioutput="variance_weighted"), abs=1e-6
        )
        assert scores.r2_uniform_down == pytest.approx(r2_score(x, down), abs=1e-6)


def test_scores_stand_beside_those_of_the_closed_forms(
    lrt: AdamResult, linear_rows: RowsInMemory
) -> None:
    moments = CrossMoments.from_activations(
        linear_rows.x, linear_rows.y, documents=linear_rows.documents
    )
    (row,) = moments.fit(FixedMaps(lrt.maps)).scores.to_dict("records")
    ours = lrt.score(linear_rows)
    assert row["r2"] == pytest.approx(ours.r2, abs=1e-5)
    assert row["r2_uniform_down"] == pytest.approx(ours.r2_uniform_down, abs=1e-5)
    assert moments.fit().scores["r2"][0] == pytest.approx(ours.r2, abs=0.01)


def test_the_test_fold_takes_no_part(linear_rows: RowsInMemory) -> None:
    settings = AdamFit.lrt(**SHORT)
    clean = settings.fit(linear_rows, progress=False)
    corrupted = replace(linear_rows, y=linear_rows.y.clone())
    mask = RowSelection(parts=TEST_PARTS).mask(corrupted._parts, corrupted._keys)
    corrupted.y[torch.from_numpy(mask)] += 1e3
    found = settings.fit(corrupted, progress=False)
    assert torch.equal(found.maps.up.weight, clean.maps.up.weight)
    assert found.history["held_out_loss"].tolist() == clean.history["held_out_loss"].tolist()
    assert found.score(corrupted).r2 < 0


# ------------------------------------------------------------------------------------- interruption


@pytest.mark.parametrize(
    "settings",
    [AdamFit.stitching(**SHORT), AdamFit.lrt(**SHORT, patience=2)],
    ids=["stitching", "lrt"],
)
@pytest.mark.parametrize("step", [2, 21, 47])
def test_a_killed_run_goes_on_to_the_same_bits(
    settings: AdamFit,
    step: int,
    linear_rows: RowsInMemory,
    killed_after: Callable[[int], None],
    tmp_path: Path,
) -> None:
    whole = settings.fit(linear_rows, progress=False)
    killed_after(step)
    with pytest.raises(KeyboardInterrupt):
        settings.fit(linear_rows, checkpoint=tmp_path, checkpoint_every=1e-9, progress=False)
    resumed = settings.fit(linear_rows, checkpoint=tmp_path, progress=False)
    for name in ("up", "down"):
        assert torch.equal(getattr(resumed.maps, name).weight, getattr(whole.maps, name).weight)
        assert torch.equal(getattr(resumed.maps, name).bias, getattr(whole.maps, name).bias)
    columns = [name for name in COLUMNS if name != "seconds"]
    assert resumed.history[columns].equals(whole.history[columns])
    assert (resumed.steps, resumed.tokens) == (whole.steps, whole.tokens)


def test_a_cached_run_goes_on_to_the_same_bits(
    linear_rows: RowsInMemory, killed_after: Callable[[int], None], tmp_path: Path
) -> None:
    settings = AdamFit.stitching(**SHORT)
    with ActivationCache.create(tmp_path / "cache", shard_bytes=12_000) as cache:
        cache.add(linear_rows.x, linear_rows.y, documents=linear_rows.documents)
    assert len(cache.manifest.shards) > 3
    whole = settings.fit(cache, progress=False)
    killed_after(30)
    with pytest.raises(KeyboardInterrupt):
        settings.fit(cache, checkpoint=tmp_path / "run", checkpoint_every=1e-9, progress=False)
    resumed = settings.fit(
        ActivationCache.open(tmp_path / "cache"), checkpoint=tmp_path / "run", progress=False
    )
    assert torch.equal(resumed.maps.up.weight, whole.maps.up.weight)
    assert whole.score(cache).n_rows == linear_rows.count(RowSelection(parts=TEST_PARTS))


def test_a_finished_run_is_its_result(linear_rows: RowsInMemory, tmp_path: Path) -> None:
    settings = AdamFit.lrt(**SHORT)
    first = settings.fit(linear_rows, checkpoint=tmp_path, progress=False)
    again = settings.fit(linear_rows, checkpoint=tmp_path, progress=False)
    assert torch.equal(first.maps.up.weight, again.maps.up.weight)
    assert again.seconds == first.seconds


def test_a_checkpoint_of_another_run_is_refused(linear_rows: RowsInMemory, tmp_path: Path) -> None:
    AdamFit.lrt(**SHORT).fit(linear_rows, checkpoint=tmp_path, progress=False)
    with pytest.raises(MismatchError, match="learning_rate"):
        AdamFit.lrt(**FASTER).fit(linear_rows, checkpoint=tmp_path, progress=False)
    with pytest.raises(MismatchError, match="rows"):
        AdamFit.lrt(**SHORT).fit(
            replace(linear_rows, y=linear_rows.y + 1), checkpoint=tmp_path, progress=False
        )
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match="truncated"):
        AdamFit.lrt(**SHORT).fit(linear_rows, checkpoint=tmp_path, progress=False)


# ---------------------------------------------------------------------------------------- bad input


def test_training_stops_when_held_out_rows_get_no_better(linear_rows: RowsInMemory) -> None:
    stopped = AdamFit.lrt(batch_rows=256, epochs=200, learning_rate=3e-2, patience=3).fit(
        linear_rows, progress=False
    )
    up = stopped.history[stopped.history["direction"] == "up"]["held_out_loss"].to_numpy()
    assert len(up) < 400
    assert up[-4:].argmin() == 0
    assert up[-4] == up.min()
    x, y = selected(linear_rows, stopped.settings.validation)
    assert mean_square(stopped.maps.up.points(torch.from_numpy(x)).numpy(), y) == pytest.approx(
        up.min(), rel=1e-5
    )


@pytest.mark.usefixtures("unchecked")
def test_bad_rows_are_refused(linear_rows: RowsInMemory) -> None:
    bad = linear_rows.x.clone()
    bad[7, 0] = float("inf")
    settings = AdamFit.lrt(**SHORT)
    with pytest.raises(NonFiniteError, match="1 of 3000 rows of x"):
        settings.fit((bad, linear_rows.y, linear_rows.documents))
    with pytest.raises(ValueError, match="do not pair"):
        settings.fit((bad[1:], linear_rows.y, linear_rows.documents))
    with pytest.raises(TooFewDocumentsError, match="validate"):
        settings.fit((linear_rows.x, linear_rows.y, [1] * 3000))
    with pytest.raises(TypeError, match="documents"):
        settings.fit((linear_rows.x, linear_rows.y))
    with pytest.raises(ValueError, match="hooks"):
        settings.fit(linear_rows, hooks=("a", "b"))
    with pytest.raises(NonFiniteError, match="learning_rate"):
        AdamFit.lrt(**DIVERGING).fit(linear_rows, progress=False)


def test_other_hook_points_are_refused(linear_rows: RowsInMemory, tmp_path: Path) -> None:
    with ActivationCache.create(tmp_path, source_hook="a", target_hook="b") as cache:
        cache.add(linear_rows.x, linear_rows.y, documents=linear_rows.documents)
    settings = AdamFit.lrt(**SHORT)
    with pytest.raises(HookPointError, match=r"'c'.*\['a'\]"):
        settings.fit(cache, hooks=("c", "b"))
    result = settings.fit(cache, hooks=("a", "b"), progress=False)
    assert (result.maps.up.source_hook, result.maps.down.source_hook) == ("a", "b")
    with pytest.raises(MismatchError, match="source hook point 'a'"):
        result.score(linear_rows)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("batch_rows", 0),
        ("epochs", -1),
        ("clip_norm", 0.0),
        ("validation_share", 1.0),
        ("patience", 0),
        ("weight_decay", -1.0),
        ("inversion_weight", -0.5),
        ("optimizer", "sgd"),
        ("schedule", "linear"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        AdamFit(**{name: value})
