"""A stitch has maps both ways, the scatters of both streams, and the identities of its models."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.errors import MismatchError
from lrt_lens.models._belonging import Origin
from lrt_lens.models._hook_points import EMBED
from lrt_lens.moments import CrossMoments
from lrt_lens.stitching import StreamStatistics
from tests.rows import ROWS_PER_DOCUMENT, Rows

SOURCE, TARGET = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"


def assert_same_maps(one: Any, other: Any, tolerance: float = 0.0) -> None:
    for way in ("up", "down"):
        first, second = getattr(one, way), getattr(other, way)
        for name in ("weight", "bias"):
            ours, theirs = getattr(first, name), getattr(second, name)
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        assert (first.source_hook, first.target_hook) == (second.source_hook, second.target_hook)


def test_a_stitch_starts_and_ends_where_its_maps_do(stitch: Any) -> None:
    assert (stitch.source_hook, stitch.target_hook) == (SOURCE, TARGET)
    assert stitch.up.weight.shape == (12, 9)
    assert stitch.down.weight.shape == (9, 12)
    assert (stitch.down.source_hook, stitch.down.target_hook) == (TARGET, SOURCE)


def test_its_statistics_are_those_of_the_tokens_that_fitted(
    rows: Any, layered: dict, stitch: Any
) -> None:
    x = layered["source"][SOURCE][torch.from_numpy(rows.fits)]
    statistics = stitch.source_statistics
    torch.testing.assert_close(statistics.mean, x.mean(0))
    torch.testing.assert_close(
        statistics.covariance, torch.cov(x.T, correction=0), rtol=1e-8, atol=1e-8
    )
    direction = torch.linspace(-2, 3, 12, dtype=torch.float64)
    expected = float((x @ direction / direction.norm()).std(correction=0))
    assert statistics.deviation(direction) == pytest.approx(expected, rel=1e-8)
    assert statistics.deviation(direction.float() * 100) == pytest.approx(expected, rel=1e-5)
    assert stitch.target_statistics.mean.shape == (9,)


def test_a_direction_in_which_nothing_varies_has_no_deviation() -> None:
    statistics = StreamStatistics(torch.zeros(2), torch.diag(torch.tensor([4.0, 0.0])), 1.0)
    assert statistics.deviation(torch.tensor([0.0, 5.0])) == 0
    assert statistics.deviation(torch.tensor([5.0, 0.0])) == 2


def test_there_is_a_refit_for_every_fold_and_a_null(stitch: Any) -> None:
    assert len(stitch.refits) == 5
    assert len({float(pair.up.weight.sum()) for pair in stitch.refits}) == 5
    assert all(
        float((pair.up.weight - stitch.up.weight).norm() / stitch.up.weight.norm()) < 0.3
        for pair in stitch.refits
    )
    assert float(stitch.null.up.weight.norm()) < 0.5 * float(stitch.up.weight.norm())
    assert stitch.null.down.weight.shape == (9, 12)


def test_reversing_exchanges_everything(stitch: Any) -> None:
    back = stitch.reversed()
    assert (back.source_hook, back.target_hook) == (TARGET, SOURCE)
    assert torch.equal(back.up.weight, stitch.down.weight)
    assert back.source_statistics is stitch.target_statistics
    assert back.scores["r2"] == stitch.scores["r2_down"]
    assert back.scores["r2_down_cv"] == stitch.scores["r2_cv"]
    assert back.scores["alpha"] == stitch.scores["alpha_down"]
    assert (back.scores["source_hook"], back.scores["target_hook"]) == (TARGET, SOURCE)
    assert torch.equal(back.null.up.weight, stitch.null.down.weight)
    assert torch.equal(back.refits[3].up.weight, stitch.refits[3].down.weight)
    assert back.scores["r2_token_down"] == stitch.scores["r2_token"]
    assert "r2_token" not in back.scores, "the target's embedding was not harvested"


def test_reversing_twice_is_the_same_stitch(owned_stitch: Any) -> None:
    twice = owned_stitch.reversed().reversed()
    assert_same_maps(twice, owned_stitch)
    assert_same_maps(twice.null, owned_stitch.null)
    for one, other in zip(twice.refits, owned_stitch.refits, strict=True):
        assert_same_maps(one, other)
    assert twice.provenance == owned_stitch.provenance
    assert twice.source_statistics is owned_stitch.source_statistics
    assert twice.scores == owned_stitch.scores


def test_a_reversed_stitch_has_the_scores_of_one_that_is_fitted_the_other_way(
    rows: Rows, layered: Any
) -> None:
    x = layered["source"]
    y = layered["target"] | {EMBED: layered["target"][TARGET][:, :4] ** 3}

    def fitted(source: Any, target: Any, hook_pair: Any, turn: int) -> Any:
        pairs = (hook_pair, (hook_pair[0], EMBED))
        options: dict[str, Any] = {"moment_dtype": torch.float64, "null": "full"}
        moments = CrossMoments(pairs=pairs, token_hook=EMBED, **options)
        sides = (source, target)
        for part in np.unique(rows.parts):
            index = torch.from_numpy(np.flatnonzero(rows.parts == part))
            blocks = ({hook: v[index] for hook, v in side.items()} for side in sides)
            # Row i of the target is paired with row π(i) of the source; the other way it is π⁻¹.
            pairing = torch.arange(len(index)).roll(turn)
            moments.add_block(int(part), *blocks, pairing)
        return moments.fit()[hook_pair]

    there = fitted(x, y, (SOURCE, TARGET), -ROWS_PER_DOCUMENT)
    back = fitted(y, x, (TARGET, SOURCE), ROWS_PER_DOCUMENT)
    reversed_scores = there.reversed().scores
    assert set(reversed_scores) == set(back.scores)
    controls = {"r2_null", "r2_token", "r2_uniform_token", "gain_cv", "cosine", "rank"}
    assert controls <= set(reversed_scores)
    for name, value in back.scores.items():
        expected = value if isinstance(value, str) else pytest.approx(value, abs=1e-10)
        assert reversed_scores[name] == expected, name
    assert abs(back.scores["r2_null"]) < 0.2 < back.scores["r2_token"], "controls are not trivial"
    assert_same_maps(there.reversed().null, back.null, 1e-10)


def test_a_stitch_without_shuffled_pairs_has_no_null_in_either_direction(
    layered_moments: Any,
) -> None:
    back = layered_moments(null="none", token=False).fit()[SOURCE, TARGET].reversed()
    assert back.null is None
    assert not {"r2_null", "r2_token", "gain_cv"} & set(back.scores)
    assert "cosine" in back.scores


def test_a_reversed_stitch_belongs_to_the_models_exchanged(owned_stitch: Any, pair: Any) -> None:
    owned_stitch.reversed().check(pair.target, pair.source)
    with pytest.raises(MismatchError):
        owned_stitch.reversed().check(pair.source, pair.target)


def test_the_models_it_was_fitted_on_are_accepted_and_others_refused(
    owned_stitch: Any, pair: Any, load: Any
) -> None:
    owned_stitch.check(pair.source, pair.target)
    with pytest.raises(
        MismatchError,
        match=r"the source model is .* with config_hash .*; "
        r"expected .*load that model, or fit again",
    ):
        owned_stitch.check(source=load("llama", d=16, layers=2, seed=99))
    with pytest.raises(MismatchError, match="the target model is"):
        owned_stitch.check(target=pair.source)


def test_another_basis_or_bos_policy_is_refused_by_name(owned_stitch: Any, pair: Any) -> None:
    for field, value in (("basis", "centred"), ("prepend_bos", False)):
        provenance = replace(
            owned_stitch.provenance, target=replace(pair.target.identity, **{field: value})
        )
        with pytest.raises(
            MismatchError, match=f"with {field} .*expected .* with {field} {value!r}"
        ):
            replace(owned_stitch, provenance=provenance).check(target=pair.target)


def test_what_was_learnt_elsewhere_is_refused(owned_stitch: Any, pair: Any) -> None:
    def refuse(hook: str, model: Any) -> None:
        owned_stitch.refuse_foreign(Origin("vector 'mood'", hook, model))

    refuse(SOURCE, pair.source.identity)
    refuse("blocks.2.hook_resid_pre", None)
    with pytest.raises(
        MismatchError,
        match=r"vector 'mood' was learnt at 'blocks.0.hook_resid_post' on '.*'; "
        rf"this stitch starts at '{SOURCE}' of '.*'; .*stitch.reversed\(\)",
    ):
        refuse("blocks.0.hook_resid_post", pair.source.identity)
    with pytest.raises(MismatchError, match="vector 'mood' was learnt on a model that is"):
        refuse(SOURCE, pair.target.identity)


def test_what_it_cannot_carry_is_refused_by_type(stitch: Any) -> None:
    with pytest.raises(
        TypeError, match="a stitch cannot transfer a ndarray; it transfers .*SteeringVector"
    ):
        stitch.transfer(np.zeros(12))


def test_a_stitch_shows_its_score_beside_its_controls(owned_stitch: Any) -> None:
    text = repr(owned_stitch)
    for part in (SOURCE, TARGET, f"r2 {owned_stitch.scores['r2']:.2f}", "null", "tokens alone"):
        assert part in text
    assert "r2_uniform_cv" in owned_stitch._repr_html_()
