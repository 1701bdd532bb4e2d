"""Sketched moments: their sums are those of a naive loop, and they merge, save and resume."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrt_lens.errors import FileFormatError, MismatchError, NonFiniteError
from lrt_lens.moments import SurveyMoments, SurveySettings
from lrt_lens.moments._survey_sums import Sketch, survey_bytes
from tests.rows import SOURCES, TARGETS, Rows

PAIRS = tuple((s, t) for s in SOURCES for t in TARGETS)
PARTS = {"fold2": [2], "the other folds": [0, 1, 3, 4], "test": [5]}


@pytest.fixture(scope="module")
def survey_of(rows: Rows, layered: dict[str, dict[str, Tensor]]) -> Callable[..., SurveyMoments]:
    """A function that returns the survey moments of `layered`, of all rows or of some."""

    def build(
        sketch: Sketch | None = None,
        *,
        chosen: np.ndarray | None = None,
        origin: dict[str, Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> SurveyMoments:
        moments = SurveyMoments(PAIRS, "hook_embed", dtype, sketch or Sketch(8, 4, down=True))
        if origin is None:
            moments.start(layered["source"], layered["target"])
        else:
            moments.start_from(origin)
        wanted = np.ones(len(rows.parts), bool) if chosen is None else chosen
        for part in range(13):
            index = torch.from_numpy(np.flatnonzero((rows.parts == part) & wanted))
            for some in index.split(50):
                x, y = ({h: r[some] for h, r in layered[side].items()} for side in layered)
                if len(some):
                    moments.add_block(part, x, y, torch.arange(len(some)).roll(1))
        return moments

    return build


def rows_of(rows: Rows, streams: dict[str, Tensor], hook: str, parts: list[int]) -> Tensor:
    """Rows of some parts of a survey: 5 is the whole test fold."""
    chosen = np.isin(np.minimum(rows.parts, 5), parts)
    return streams[hook][torch.from_numpy(chosen)]


def columns_of(moments: SurveyMoments, direction: Any, hook: str) -> Tensor:
    return moments.directions[direction].outcomes[hook].columns


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_scatters_are_those_of_the_rows_in_the_columns(
    rows: Rows, layered: dict, survey_of: Callable, direction: Any, parts: list[int]
) -> None:
    moments = survey_of()
    for pair in moments.pairs_of(direction):
        sides = ("source", "target") if direction == "up" else ("target", "source")
        x, y = (
            rows_of(rows, layered[side], hook, parts)
            for side, hook in zip(sides, pair, strict=True)
        )
        projected = y @ columns_of(moments, direction, pair[1])
        centred_x, centred_y = x - x.mean(0), projected - projected.mean(0)
        scatter = moments.scatter(direction, pair, parts)
        torch.testing.assert_close(scatter.xx, centred_x.T @ centred_x)
        torch.testing.assert_close(scatter.xy, centred_x.T @ centred_y)
        torch.testing.assert_close(scatter.variance, centred_y.square().sum(0))
        torch.testing.assert_close(scatter.mean_x, x.mean(0))
        torch.testing.assert_close(scatter.mean_y, projected.mean(0))
        torch.testing.assert_close(
            moments.variances(direction, pair[1], parts), (y - y.mean(0)).square().sum(0)
        )


def test_the_columns_are_signs_and_the_same_signs_of_standardised_dimensions(
    layered: dict, survey_of: Callable
) -> None:
    columns = columns_of(survey_of(), "up", TARGETS[1])
    plain, standard = columns[:, :8], columns[:, 8:]
    assert set(plain.unique().tolist()) == {-1.0, 1.0}
    deviation = layered["target"][TARGETS[1]].std(0, correction=0)
    torch.testing.assert_close(standard * deviation[:, None], plain)


def test_the_null_is_that_of_the_shuffled_rows(
    rows: Rows, layered: dict, survey_of: Callable
) -> None:
    moments = survey_of()
    pair, parts = (SOURCES[1], TARGETS[1]), [5]
    expected = torch.zeros(12, 4, dtype=torch.float64)
    x = rows_of(rows, layered["source"], pair[0], parts)
    mean_x = x.mean(0)
    y = rows_of(rows, layered["target"], pair[1], parts) @ columns_of(moments, "up", pair[1])
    for part in range(5, 13):
        index = torch.from_numpy(np.flatnonzero(rows.parts == part))
        for some in index.split(50):
            shuffled = layered["target"][pair[1]][some].roll(-1, 0)[torch.arange(len(some)).roll(2)]
            projected = shuffled @ columns_of(moments, "up", pair[1])[:, :4]
            expected += (layered["source"][pair[0]][some] - mean_x).T @ (
                projected - y[:, :4].mean(0)
            )
    null = moments.null_xy("up", pair, test=True)
    assert null is not None
    torch.testing.assert_close(null, expected)
    assert moments.null_xy("up", ("hook_embed", pair[1]), test=True) is None


@pytest.mark.parametrize("case", ["far from the shift", "one huge row"])
def test_rows_that_lose_digits_in_float32_keep_them(case: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 12, generator=generator)
    y = x @ torch.randn(12, 9, generator=generator) + torch.randn(2000, 9, generator=generator)
    first = slice(0, 200)
    if case == "one huge row":
        y[500] *= 1e5
    else:
        y[200:] += 3000
    moments = SurveyMoments((("s", "t"),), sketch=Sketch(8, 0))
    for block in (first, slice(200, None)):
        moments.add_block(0, {"s": x[block]}, {"t": y[block]})
    projected = y.double() @ columns_of(moments, "up", "t")
    wide = x.double()
    expected = (wide - wide.mean(0)).T @ (projected - projected.mean(0))
    scatter = moments.scatter("up", ("s", "t"), [0])
    # Sums of float32 about the shift: the error is relative to the largest of them.
    assert (scatter.xy - expected).abs().max() < 2e-6 * expected.abs().max()
    variance = (projected - projected.mean(0)).square().sum(0)
    torch.testing.assert_close(scatter.variance, variance, rtol=1e-6, atol=0)


def test_a_huge_row_is_named_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rows = torch.randn(100, 12, generator=torch.Generator().manual_seed(0))
    rows[7] *= 1e4
    moments = SurveyMoments((("s", "t"),), sketch=Sketch(8, 0))
    moments.add_block(0, {"s": rows}, {"t": rows.flip(1)})
    moments.warn_of_heavy_rows()
    assert "row 7 has 100% of the variance of the 100 rows at source 's'" in caplog.text
    assert "at target 't'" in caplog.text


def test_a_source_seen_through_fewer_columns_has_the_moments_of_its_projection(
    rows: Rows, layered: dict, survey_of: Callable
) -> None:
    from lrt_lens.moments._sketches import subsampled_columns

    moments = survey_of(Sketch(8, 0, source_columns=7))
    transform = subsampled_columns(12, 7, 0)
    # Orthonormal up to √(12/7), so that squared norms are kept in the mean.
    torch.testing.assert_close(transform.T @ transform, 12 / 7 * torch.eye(7, dtype=torch.float64))
    x = rows_of(rows, layered["source"], SOURCES[1], [5]) @ transform
    scatter = moments.scatter("up", (SOURCES[1], TARGETS[1]), [5])
    torch.testing.assert_close(scatter.xx, (x - x.mean(0)).T @ (x - x.mean(0)))
    # The embedding has 5 dimensions only, and stays whole.
    assert moments.scatter("up", ("hook_embed", TARGETS[1]), [5]).xx.shape == (5, 5)


def test_halves_merge_to_the_whole_also_about_other_shifts(
    rows: Rows, layered: dict, survey_of: Callable
) -> None:
    whole, even = survey_of(), np.arange(len(rows.parts)) % 2 == 0
    first = survey_of(chosen=even)
    moved = {
        name: tensor + 0.5 if name.startswith("shift/") else tensor
        for name, tensor in first._origin.items()
    }
    second = survey_of(chosen=~even, origin=moved)
    merged = first.merge(second)
    assert merged.n_tokens == whole.n_tokens
    for direction in ("up", "down"):
        for pair in whole.pairs_of(direction):
            ours, theirs = (one.scatter(direction, pair, [0, 1]) for one in (merged, whole))
            for name in ("xx", "xy", "variance", "mean_x", "mean_y"):
                torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
            torch.testing.assert_close(
                merged.variances(direction, pair[1], [5]), whole.variances(direction, pair[1], [5])
            )


def test_a_file_holds_the_same_sums(survey_of: Callable, tmp_path: Path) -> None:
    moments = survey_of()
    again = SurveyMoments.load(moments.save(tmp_path / "survey.safetensors"))
    assert (again.pairs, again.sketch, again.provenance) == (
        PAIRS,
        moments.sketch,
        moments.provenance,
    )
    ours, theirs = moments.tensors(), again.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # Nothing was read yet: a survey that was interrupted before its first block.
    empty = SurveyMoments(PAIRS)
    assert not SurveyMoments.load(empty.save(tmp_path / "empty.safetensors")).is_begun


def test_other_files_and_other_surveys_are_refused(survey_of: Callable, tmp_path: Path) -> None:
    moments = survey_of()
    path = moments.save(tmp_path / "survey.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-64] + bytes(64))
    with pytest.raises(FileFormatError, match="survey"):
        SurveyMoments.load(path)
    with pytest.raises(MismatchError, match="differ in sketch"):
        moments.merge(survey_of(Sketch(16, 4, down=True)))
    other = survey_of()
    other.provenance = replace(other.provenance, seed=1)
    with pytest.raises(MismatchError, match="seed"):
        moments.merge(other)
    scaled = survey_of()
    name = f"scale/target/{TARGETS[0]}"
    scaled._origin[name] = scaled._origin[name] * 2
    with pytest.raises(MismatchError, match="standardise"):
        moments.merge(scaled)


def test_a_bad_block_changes_nothing(rows: Rows, layered: dict, survey_of: Callable) -> None:
    moments = survey_of()
    before = {name: tensor.clone() for name, tensor in moments.tensors().items()}
    bad = {hook: stream.clone() for hook, stream in layered["source"].items()}
    bad[SOURCES[0]][3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN"):
        moments.add_block(0, bad, layered["target"])
    for side in ("source", "target"):
        wide = {hook: torch.cat([s, s], 1) for hook, s in layered[side].items()}
        with pytest.raises(MismatchError, match="dimensions"):
            moments.add_block(0, *(layered | {side: wide}).values())
    assert all(torch.equal(before[name], tensor) for name, tensor in moments.tensors().items())


@pytest.mark.parametrize(
    "sketch",
    [Sketch(8, 4), Sketch(8, 0, down=True), Sketch(8, 4, source_columns=7, down=True)],
    ids=str,
)
def test_the_plan_knows_the_bytes(sketch: Sketch) -> None:
    pairs = (("a", "b"), ("c", "b"), ("a", "d"))
    moments = SurveyMoments(pairs, "hook_embed", sketch=sketch)
    x = {hook: torch.randn(30, 12) for hook in ("a", "c", "hook_embed")}
    moments.start(x, {hook: torch.randn(30, 9) for hook in ("b", "d")})
    planned = sum(survey_bytes(pairs, "hook_embed", sketch, 12, 9).values())
    columns = sum(
        one.columns.nbytes for sums in moments.directions.values() for one in sums.outcomes.values()
    )
    assert planned >= moments.n_bytes
    assert planned - columns == pytest.approx(moments.n_bytes, rel=0.05)


def test_settings_are_checked() -> None:
    assert SurveySettings().n_tokens == 20_000
    assert SurveySettings(null=False).sketch.null_columns == 0
    with pytest.raises(ValueError, match="5 folds .* at least 12"):
        SurveySettings(source_columns=4)
    with pytest.raises(ValueError, match="columns"):
        SurveySettings(columns=1)
