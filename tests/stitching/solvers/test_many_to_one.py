"""Joint maps from several layers, compared with scikit-learn and with maps from one layer."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import r2_score

from lrt_lens.errors import HookPointError
from lrt_lens.models import depth
from lrt_lens.models._hook_points import joint_name, joint_parts
from lrt_lens.moments import CrossMoments
from lrt_lens.stitching.solvers import ManyToOne, Ridge, layer_contributions
from lrt_lens.stitching.solvers._many_to_one import select_layers

LAYERS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
JOINT = joint_name(LAYERS)


@pytest.fixture(scope="module")
def joint_rows(rows: Any) -> Any:
    """Return rows of three layers of four dimensions; the second is independent of the target."""
    y = (
        rows.x[:, [0, 1, 2, 3, 8, 9, 10, 11]]
        @ torch.randn(8, 9, generator=torch.Generator().manual_seed(4)).double()
    )
    return replace(
        rows, y=y + 2 * torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).double()
    )


@pytest.fixture(scope="module")
def joint(joint_rows: Any, moments_of: Any) -> CrossMoments:
    return moments_of(joint_rows, source_hook=JOINT, target_hook="blocks.5.hook_resid_post")


def test_a_joint_name_knows_its_parts() -> None:
    assert joint_parts(JOINT) == LAYERS
    assert joint_parts("hook_embed") == ["hook_embed"]
    assert depth(JOINT) == 3.0


def test_group_penalties_are_ridge_with_a_penalty_of_its_own_for_each_layer(
    joint: CrossMoments, joint_rows: Any
) -> None:
    groups, alpha = (1.0, 100.0, 0.25), 0.01
    stitch = joint.fit(ManyToOne(alpha=alpha, groups=groups)).best(by="r2_cv")
    x, y = joint_rows.numpy(joint_rows.fits)
    # Ridge with penalties p_g is plain ridge of x_g / √p_g; the unit of λ is the mean variance of
    # the rows themselves.
    scale = np.repeat(np.array(groups) ** -0.5, 4)
    centred = x - x.mean(0)
    expected = (
        SklearnRidge(alpha=alpha * (centred**2).sum() / 12, solver="cholesky")
        .fit(centred * scale, y)
        .coef_.T
        * scale[:, None]
    )
    np.testing.assert_allclose(stitch.up.weight.numpy(), expected, rtol=1e-8, atol=1e-10)
    assert len(stitch.refits) == 5


def test_the_layer_that_says_nothing_is_penalised_most(
    joint: CrossMoments, joint_rows: Any, moments_of: Any
) -> None:
    few = moments_of(
        joint_rows.taken(range(0, 2400, 30)),
        source_hook=JOINT,
        target_hook="blocks.5.hook_resid_post",
    )
    grid = few.fit(ManyToOne(sweeps=2))
    groups = grid.folds[few.pairs[0]].up.setting.groups
    assert groups[1] > groups[0]
    assert groups[1] > groups[2]
    assert grid.scores["r2_cv"].iloc[0] > few.fit(ManyToOne(groups=())).scores["r2_cv"].iloc[0]


def test_some_layers_can_be_taken_from_joint_moments_exactly(
    joint: CrossMoments, joint_rows: Any, moments_of: Any
) -> None:
    taken = select_layers(joint, joint.pairs[0], [0, 2]).fit(Ridge(alpha=0.01)).scores.iloc[0]
    columns = [0, 1, 2, 3, 8, 9, 10, 11]
    expected = (
        moments_of(replace(joint_rows, x=joint_rows.x[:, columns]))
        .fit(Ridge(alpha=0.01))
        .scores.iloc[0]
    )
    assert taken["r2"] == pytest.approx(expected["r2"], rel=1e-9)
    assert taken["source_hook"] == f"{LAYERS[0]}+{LAYERS[2]}"


def test_the_median_norm_of_some_layers_is_unknown(joint: CrossMoments) -> None:
    norms = {
        n: select_layers(joint, joint.pairs[0], list(range(n)))
        .fit(Ridge(alpha=0.01))
        .best(by="r2_cv")
        for n in (2, 3)
    }
    assert np.isnan(norms[2].source_statistics.median_norm)
    assert norms[3].source_statistics.median_norm == next(iter(joint.source.values())).median_norm


def test_contributions_are_test_scores_of_joint_fits(joint: CrossMoments, joint_rows: Any) -> None:
    table = layer_contributions(joint, solver=Ridge(alpha=0.01), progress=False).set_index(
        "source_hook"
    )
    x, y = joint_rows.numpy(joint_rows.fits)
    test_x, test_y = joint_rows.numpy(~joint_rows.fits)

    def r2(columns: list[int]) -> float:
        centred = x[:, columns] - x[:, columns].mean(0)
        fit = SklearnRidge(alpha=0.01 * (centred**2).sum() / len(columns), solver="cholesky").fit(
            x[:, columns], y
        )
        return r2_score(test_y, fit.predict(test_x[:, columns]), multioutput="variance_weighted")

    assert table.loc[LAYERS[1], "r2_alone"] == pytest.approx(r2([4, 5, 6, 7]), rel=1e-6)
    assert table.loc[LAYERS[1], "r2_without"] == pytest.approx(
        r2([0, 1, 2, 3, 8, 9, 10, 11]), rel=1e-6
    )
    assert table.loc[LAYERS[1], "r2_up_to"] == pytest.approx(r2(list(range(8))), rel=1e-6)
    assert abs(table.loc[LAYERS[1], "adds"]) < 0.01 < table.loc[LAYERS[0], "adds"]


def test_the_way_down_is_ridge_to_all_layers(joint: CrossMoments) -> None:
    many, plain = (
        joint.fit(ManyToOne(alpha=0.1)).best(by="r2_cv"),
        joint.fit(Ridge(alpha=0.1)).best(by="r2_cv"),
    )
    torch.testing.assert_close(many.down.weight, plain.down.weight)


def test_wrong_penalties_and_moments_of_single_layers_are_refused(
    joint: CrossMoments, rows: Any, moments_of: Any
) -> None:
    with pytest.raises(
        ValueError, match="groups has 2 penalties; .* joins 3 layers: give one penalty per layer"
    ):
        joint.fit(ManyToOne(groups=(1.0, 2.0)))
    with pytest.raises(ValueError, match="expected positive penalties"):
        ManyToOne(groups=(1.0, -2.0))
    with pytest.raises(ValueError, match="alphas is empty"):
        ManyToOne(alphas=())
    with pytest.raises(ValueError, match="alpha is -1.0; expected a positive number"):
        ManyToOne(alpha=-1.0)
    with pytest.raises(
        HookPointError, match="hold no joint source hook point .* harvest with joint=True"
    ):
        layer_contributions(moments_of(rows), progress=False)
