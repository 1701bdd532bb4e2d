"""Figures of clamping and ablation from their summaries."""

import pandas as pd
import pytest

from lrt_lens.figures._behaviour import ablation_figure, clamp_figure

CLAMP = pd.DataFrame(
    [
        {
            "concept": concept,
            "arm": arm,
            "share": 0.5,
            "low": 0.3,
            "high": 0.9,
            "clipped_ratio": 1.0,
        }
        for concept in ("a", "b")
        for arm in ("none", "native")
    ]
)
ABLATION = pd.DataFrame(
    [
        {
            "where": where,
            "arm": arm,
            "drop": 1.0,
            "drop_low": 0.5,
            "drop_high": 1.2,
            "damage": 0.1,
            "damage_low": 0.0,
            "damage_high": 0.2,
        }
        for where in ("hook", "everywhere")
        for arm in ("none", "native", "random")
    ]
)


def test_clamping_shows_a_point_with_its_interval_for_every_concept_and_arm() -> None:
    figure = clamp_figure(CLAMP)
    assert len(figure.data) == 4
    assert figure.data[0].x[0] == 0.5
    assert (figure.data[0].error_x.array[0], figure.data[0].error_x.arrayminus[0]) == pytest.approx(
        (0.4, 0.2)
    )


def test_ablation_shows_the_panels_that_were_measured() -> None:
    assert len(ablation_figure(ABLATION).data) == 2 * 3 * 2
    shares = ABLATION.assign(share=0.2, share_low=0.1, share_high=0.3)
    assert len(ablation_figure(shares).data) == 2 * 3 * 3
    for name, figure, frame in (
        ("share", clamp_figure, CLAMP),
        ("damage", ablation_figure, ABLATION),
    ):
        with pytest.raises(ValueError, match="lacks columns"):
            figure(frame.drop(columns=name))
