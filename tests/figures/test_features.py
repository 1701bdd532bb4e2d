"""Figures of features show the rows of their table and nothing else."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from lrt_lens.figures._features import (
    attention_figure,
    attribution_figure,
    entropy_figure,
    fidelity_figure,
)


def _table(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    numbers = {
        name: rng.uniform(0, 1, n)
        for name in (
            "attribution_r",
            "attribution_r_random",
            "attribution_r_shuffled",
            "attribution_r_other",
            "attribution_r_low",
            "attribution_r_high",
            "rho_write",
            "rho_read",
            "density_source",
            "density_target",
            "max_activation_source",
            "max_activation_target",
            "entropy_share_source",
            "entropy_share_target",
        )
    }
    table = pd.DataFrame(
        {"feature": range(n), "kind": ["semantic", "structural", "undecided"] * (n // 3)} | numbers
    )
    table.loc[0, "attribution_r"] = np.nan
    return table


def _named(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data if trace.name}


def test_densities_integrate_to_one_and_legends_count_features() -> None:
    table = _table()
    traces = _named(attribution_figure(table))
    assert {
        "transferred (59)",
        "random SAE, same maps (59)",
        "semantic (19)",
        "structural (20)",
    } <= set(traces)
    for name in ("transferred (59)", "semantic (19)"):
        assert np.sum(traces[name].y) * 0.05 == pytest.approx(1)
    counted = np.histogram(
        table.loc[table["kind"] == "structural", "attribution_r"], np.linspace(-1, 1, 41)
    )[0]
    np.testing.assert_allclose(traces["structural (20)"].y, counted / 20 / 0.05)


def test_the_share_of_semantic_features_is_that_of_densities_and_left_out_where_there_are_few() -> (
    None
):
    table = _table()
    (share,) = [trace for trace in attribution_figure(table).data if trace.name is None]
    known = table.dropna(subset=["attribution_r"])
    edges = np.linspace(-1, 1, 41)[::2]
    a, b = (
        np.histogram(known.loc[known["kind"] == kind, "attribution_r"], edges)[0]
        for kind in ("semantic", "structural")
    )
    for place in range(20):
        if a[place] + b[place] < 5:
            assert np.isnan(share.y[place])
        else:
            assert share.y[place] == pytest.approx(a[place] / 19 / (a[place] / 19 + b[place] / 20))


def test_a_table_without_columns_or_correlations_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lacks columns \['kind'\]"):
        attribution_figure(_table().drop(columns="kind"))
    with pytest.raises(ValueError, match="no feature has an attribution correlation"):
        attribution_figure(_table().assign(attribution_r=np.nan))
    with pytest.raises(ValueError, match="no feature's attention was measured"):
        attention_figure(_attention().head(0))


def test_fidelity_shows_every_feature_in_both_panels() -> None:
    figure: Any = fidelity_figure(_table())
    assert sum(len(trace.x) for trace in figure.data) == 2 * 60


def test_the_same_features_are_marked_before_and_after() -> None:
    table = _table()
    figure: Any = entropy_figure(table, (0.15, 0.2), names=("small", "large"))
    marked = [trace for trace in figure.data if trace.name.startswith("largest share")]
    assert list(marked[0].text) == list(marked[1].text)
    strong = table[table["max_activation_source"] >= table["max_activation_source"].median()]
    assert list(marked[0].text) == list(strong.nlargest(5, "entropy_share_source")["feature"])
    assert [shape.y0 for shape in figure.layout.shapes] == [0.15, 0.2]


def _attention() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "feature": [3, 3, 3, 8],
            "model": ["source", "source", "target", "source"],
            "layer": [4, 4, 5, 4],
            "head": [0, 1, 2, 1],
            "effect": [0.5, -0.1, 0.2, 0.3],
            "low": [0.4, -0.2, 0.1, 0.2],
            "high": [0.6, 0.0, 0.3, 0.4],
            "effect_choosing": [0.1, -0.4, 0.2, 0.3],
            "effect_random": [0.01, 0.02, 0.03, 0.04],
        }
    )


def test_attention_shows_the_head_that_the_other_examples_chose() -> None:
    figure: Any = attention_figure(_attention())
    source = next(trace for trace in figure.data if trace.name == "strongest head")
    assert list(source.text) == ["L4H1", "L4H1"]
    assert list(source.x) == [-0.1, 0.3]
    assert list(figure.layout.yaxis.categoryarray) == ["feature 8", "feature 3"]
