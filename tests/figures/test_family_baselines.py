"""The figure of the baselines shows the rows of its table and nothing else."""

import math

import pandas as pd
import pytest

from lrt_lens.figures._family_baselines import family_figure


def row(method: str, **changed: float) -> dict:
    missing = math.nan
    found = {
        "cosine": missing,
        "cosine_low": missing,
        "cosine_high": missing,
        "effect": missing,
        "effect_low": missing,
        "effect_high": missing,
        "fraction_of_native": missing,
        "fraction_low": missing,
        "fraction_high": missing,
        "effect_null": missing,
        "auroc": missing,
        "auroc_low": missing,
        "auroc_high": missing,
        "share_of_native": missing,
        "share_low": missing,
        "share_high": missing,
        "auroc_null": missing,
    }
    return {"method": method} | found | changed


TABLE = pd.DataFrame(
    [
        row(
            "ridge",
            cosine=0.7,
            cosine_low=0.6,
            cosine_high=0.8,
            effect=1.0,
            fraction_of_native=0.5,
            fraction_low=0.4,
            fraction_high=0.7,
            effect_null=0.2,
            auroc=0.8,
            share_of_native=0.75,
            share_low=0.6,
            share_high=9.0,
            auroc_null=0.46,
        ),
        row("native", effect=2.0, auroc=0.9),
        row("token_identity", cosine=0.4, cosine_low=0.35, cosine_high=0.45),
        row(
            "random",
            effect=0.1,
            effect_low=-0.4,
            effect_high=0.6,
            auroc=0.5,
            auroc_low=0.42,
            auroc_high=0.58,
        ),
    ]
)


def test_points_intervals_and_nulls_are_those_of_the_table() -> None:
    transferred, nulls = (
        [trace for trace in family_figure(TABLE).data if trace.name.startswith(name)]
        for name in ("transferred", "null")
    )
    assert [list(trace.y) for trace in transferred] == [
        ["token_identity", "ridge"],
        ["ridge"],
        ["ridge"],
    ]
    assert list(transferred[1].x) == [0.5]
    assert (transferred[1].error_x.array[0], transferred[1].error_x.arrayminus[0]) == pytest.approx(
        (0.2, 0.1)
    )
    assert "0.500 (0.400 to 0.700)" in transferred[1].hovertext[0]
    steering, reading = (dict(zip(trace.y, trace.x, strict=True)) for trace in nulls)
    assert steering == pytest.approx({"ridge": 0.1, "random": 0.05})
    assert reading == pytest.approx({"ridge": -0.1, "random": 0.0})
    assert list(nulls[0].error_x.array) == pytest.approx(
        [0.25, 0.0]
    )  # the range of random draws, shares of native's 2 nats


def test_what_lies_beyond_the_edge_is_drawn_at_it() -> None:
    reading = [
        trace for trace in family_figure(TABLE).data if trace.name.startswith("transferred")
    ][2]
    assert reading.x[0] + reading.error_x.array[0] == pytest.approx(1.75)
    assert "9.000" in reading.hovertext[0]


def test_a_table_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks columns"):
        family_figure(pd.DataFrame({"method": ["ridge"]}))


@pytest.mark.parametrize("native", [{"effect": math.nan}, {"effect": 0.0}, {"auroc": 0.5}])
def test_a_native_arm_without_an_effect_has_no_shares(native: dict[str, float]) -> None:
    table = TABLE.copy()
    for column, value in native.items():
        table.loc[table["method"] == "native", column] = value
    nulls = [trace for trace in family_figure(table).data if "null" in (trace.name or "")]
    shares = [share for trace in nulls[int("auroc" in native) :][:1] for share in trace.x]
    assert not shares
