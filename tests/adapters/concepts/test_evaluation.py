"""Concept transfer: arms with known answers, effects of a hand-made pass, layers, errors."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.adapters.concepts import (
    Concept,
    ConceptTransfer,
    ConceptTransferSettings,
    evaluate_concept_transfer,
    read_rows,
)
from lrt_lens.adapters.concepts._arms import vector_part
from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.data import ChoiceItems, ContrastSet
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.models import ModelPair
from tests.adapters.concepts.small_concepts import PLACES, small_concepts
from tests.adapters.vectors.reference import OneRowPerContinuation
from tests.figures.counts import counts_of

MOOD, COLOUR = small_concepts(12)
ITEMS = f"n = {len(COLOUR.items)}–{len(MOOD.items)} items per concept"
ARMS = {
    "source",
    "native",
    "own",
    "noise_source",
    "own_disjoint",
    "other",
    "shuffled",
    "own_disjoint_ridge",
    "other_ridge",
    "mean_only",
    "random",
    "random_matched",
    "untransformed",
}


@pytest.fixture(scope="module")
def pair(load: Any) -> ModelPair:
    """A target whose loss on random words rises under steering; some random models differ."""
    return ModelPair(load("llama", d=16, layers=2, seed=1), load("llama", d=16, layers=3, seed=7))


@pytest.fixture(scope="module")
def result(pair: ModelPair, corpus: list[str]) -> ConceptTransfer:
    return evaluate_concept_transfer(
        pair,
        [MOOD, COLOUR],
        source_hook=1,
        target_hook=2,
        neutral=corpus[:8],
        betas=(-1.0, 1.0),
        damage=0.05,
        n_random=2,
        n_shuffled=3,
        progress=False,
    )


def test_controls_show_where_a_new_draw_falls_and_other_arms_their_rank(
    result: ConceptTransfer,
) -> None:
    for concept in ("mood", "colour"):
        rows = result.summary[result.summary["concept"] == concept].set_index("arm")
        table = result.table[(result.table["concept"] == concept) & (result.table["beta"] == 1.0)]
        draws = table[table["arm"] == "shuffled"].set_index("draw")["effect"]
        assert len(draws) == draws.nunique() == rows.loc["shuffled", "n_draws"] == 3
        # t(.975, 2) · s · √(1 + 1/3) around the mean of three draws
        reach = 4.3027 * draws.std() * math.sqrt(4 / 3)
        assert rows.loc["shuffled", "effect_high"] == pytest.approx(draws.mean() + reach, rel=1e-4)
        assert rows.loc["shuffled", "contains"] == "draws"
        assert "3 draws" in rows.loc["shuffled", "interval_flag"]
        assert rows.loc["native", "contains"] == "items, neutral texts"
        # Draws that do not reach the damage are left out: "damage not bracketed in 1 of 3".
        flag = rows.loc["shuffled", "flag"]
        n_missed = int(flag.split(" in ")[1].split()[0]) if flag else 0
        assert rows.loc["native", "shuffled_p_floor"] == pytest.approx(1 / (4 - n_missed))
        assert math.isnan(rows.loc["source", "random_p"])


def test_p_values_without_a_budget_are_of_the_effects_at_one(
    pair: ModelPair, corpus: list[str]
) -> None:
    options: dict[str, Any] = {"betas": (1.0,), "damage": None, "ridge": False}
    result = evaluate_concept_transfer(
        pair, [MOOD, COLOUR], source_hook=1, target_hook=2, n_shuffled=4, progress=False, **options
    )
    assert counts_of(result.figure()) == ITEMS
    rows = result.summary.set_index(["concept", "arm"])
    effects = result.table[result.table["beta"] == 1.0].set_index(["concept", "arm"])["effect"]
    for concept in ("mood", "colour"):
        draws = effects.loc[(concept, "random_matched")].to_numpy()
        assert len(draws) == 20
        size = abs(effects.loc[(concept, "other")].item())
        expected = (1 + (np.abs(draws) >= size).sum()) / 21
        assert rows.loc[(concept, "other"), "random_p"] == pytest.approx(expected)
        typical = rows.loc[(concept, "random_matched"), "typical_size"]
        assert typical == pytest.approx(np.sqrt((draws**2).mean()))


def test_every_arm_is_measured_on_both_concepts(result: ConceptTransfer) -> None:
    for concept in ("mood", "colour"):
        assert set(result.summary.loc[result.summary["concept"] == concept, "arm"]) == ARMS
    none = result.table[result.table["arm"] == "none"]
    assert len(none) == 2
    assert (none["effect"] == 0).all()


def test_with_few_texts_the_own_arm_and_the_one_without_a_source_are_native(
    result: ConceptTransfer,
) -> None:
    """Twelve texts in 16 dimensions, as in table 1 of the paper."""
    rows = result.summary.set_index(["concept", "arm"])
    for concept in ("mood", "colour"):
        for arm in ("own", "noise_source"):
            assert rows.loc[(concept, arm), "cosine"] == pytest.approx(1, abs=1e-5)
            assert rows.loc[(concept, arm), "effect"] == pytest.approx(
                rows.loc[(concept, "native"), "effect"], abs=1e-3
            )
        assert rows.loc[(concept, "other"), "cosine"] < 0.99
    distance = result.distance_to_self().set_index("arm")["mean"]
    assert distance["own"] < 0.05
    assert distance["other"] > 10 * distance["own"]


def test_numbers_are_those_of_a_pass_steered_by_hand(
    pair: ModelPair, result: ConceptTransfer
) -> None:
    (vector,) = result.vectors["mood", "other"]
    text = OneRowPerContinuation(pair.target, MOOD.items, 2)
    before, after = text.propensity(), text.propensity(vector.hook_at(-1.0))
    row = result.table.set_index(["concept", "arm", "beta"]).loc[("mood", "other", -1.0)]
    assert row["propensity"] == pytest.approx(after.mean(), abs=1e-4)
    assert row["effect"] == pytest.approx((after - before).mean(), abs=1e-4)
    assert row["probability"] == pytest.approx((100 / (1 + np.exp(-after))).mean(), abs=1e-2)
    assert row["effect_low"] <= row["effect"] <= row["effect_high"]


def test_vectors_are_learnt_from_the_same_part_on_both_sides(
    pair: ModelPair, result: ConceptTransfer
) -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:6].tolist()
    part = ContrastSet(
        [MOOD.contrast.positive[i] for i in order], [MOOD.contrast.negative[i] for i in order]
    )
    for arm, model, hook in (("native", pair.target, 2), ("source", pair.source, 1)):
        expected = SteeringVector.mean_difference(model, part, at=hook)
        torch.testing.assert_close(
            result.vectors["mood", arm][0].direction, expected.direction, atol=1e-4, rtol=1e-3
        )


def test_random_maps_are_raw_and_as_long_as_the_native_vector(result: ConceptTransfer) -> None:
    ratios = result.summary.set_index(["concept", "arm"])["norm_ratio"]
    assert ratios["mood", "random_matched"] == pytest.approx(1)
    assert (
        ratios["mood", "random"] > 1.5
    )  # entries of variance 1 lengthen a vector by √16 where the streams are alike


def test_equal_damage_lies_between_two_measured_strengths(result: ConceptTransfer) -> None:
    rows = result.summary[(result.summary["flag"] == "") & (result.summary["n_draws"] == 1)]
    assert {"native", "own", "other"} <= set(rows["arm"])
    for row in rows.to_dict("records"):
        part = result.table[
            (result.table["concept"] == row["concept"])
            & (result.table["arm"] == row["arm"])
            & (result.table["beta"] > 0)
        ]
        below, above = (
            part.loc[part["beta"] < row["beta_at_equal_damage"]],
            part.loc[part["beta"] >= row["beta_at_equal_damage"]],
        )
        assert above["damage"].min() >= 0.05
        assert below.empty or below["damage"].min() <= 0.05
    native = result.summary[result.summary["arm"] == "native"]
    known = native.dropna(subset=["fraction_of_native"])
    assert np.allclose(known["fraction_of_native"], 1)


def test_tables_and_figures_come_from_the_same_rows(result: ConceptTransfer) -> None:
    wide = result.paper_table(-1.0).set_index("concept")
    rows = result.table.set_index(["concept", "arm", "beta"])["probability"]
    assert wide.loc["colour", "native"] == pytest.approx(rows["colour", "native", -1.0])
    assert wide.loc["colour", "none"] == pytest.approx(rows["colour", "none", 0.0])
    with pytest.raises(ValueError, match="β = 7 was not measured"):
        result.paper_table(7.0)
    for kind in ("summary", "beta", "weak_to_strong"):
        figure = result.figure(kind)  # type: ignore[arg-type]
        assert figure.data
        assert counts_of(figure) == ITEMS + ", 8 neutral texts" * (kind == "summary")
    assert "own_disjoint" in result._repr_html_()


def test_several_layers_are_steered_together(pair: ModelPair) -> None:
    evaluation = evaluate_concept_transfer(
        pair,
        [MOOD, COLOUR],
        source_hook=[0, 1],
        target_hook=[2, 1],
        damage=None,
        betas=(1.0,),
        ridge=False,
        n_random=0,
        progress=False,
    )
    vectors = evaluation.vectors["mood", "native"]
    assert [vector.hook for vector in vectors] == [
        "blocks.2.hook_resid_post",
        "blocks.1.hook_resid_post",
    ]
    text = OneRowPerContinuation(pair.target, MOOD.items, 0)
    before = text.propensity()
    with vectors[0].apply(pair.target), vectors[1].apply(pair.target):
        after = text.propensity()
    row = evaluation.table.set_index(["concept", "arm"]).loc[("mood", "native")]
    assert row["effect"] == pytest.approx((after - before).mean(), abs=1e-4)
    assert math.isnan(row["damage"])
    assert "effect_at_equal_damage" not in evaluation.summary
    assert not any(point.fwd_hooks for point in pair.target.bridge.hook_dict.values())


def test_at_several_layers_the_last_prompt_token_is_steered_at_each(pair: ModelPair) -> None:
    """Prompts have unequal lengths; the reference adds each vector at each prompt's last token."""
    evaluation = evaluate_concept_transfer(
        pair,
        [MOOD, COLOUR],
        source_hook=[0, 1],
        target_hook=[1, 2],
        damage=None,
        betas=(1.0,),
        ridge=False,
        n_random=0,
        positions="last",
        progress=False,
    )
    model, effects = pair.target, []
    for prompt, *continuations in zip(
        MOOD.items.prompts, MOOD.items.positive, MOOD.items.negative, strict=True
    ):
        [start] = model.encode([prompt])
        said: dict[bool, list[float]] = {True: [], False: []}
        for continuation in continuations:
            end = model.tokenizer([continuation], add_special_tokens=False)["input_ids"][0]

            def adder(direction: torch.Tensor, at: int) -> Any:
                def add(activation: Any, hook: Any = None) -> Any:
                    changed = activation.clone()
                    changed[:, at] += direction.to(activation)
                    return changed

                return add

            for steered in (True, False):
                vectors = evaluation.vectors["mood", "native"] if steered else ()
                with model.intervene(
                    {vector.hook: adder(vector.direction, len(start) - 1) for vector in vectors}
                ):
                    log_p = model.logits(torch.tensor([[*start, *end]]))[0].log_softmax(-1)
                said[steered].append(
                    float(log_p[len(start) - 1 : -1].gather(1, torch.tensor(end)[:, None]).sum())
                )
        effects.append((said[True][0] - said[True][1]) - (said[False][0] - said[False][1]))
    row = evaluation.table.set_index(["concept", "arm"]).loc[("mood", "native")]
    assert row["effect"] == pytest.approx(np.mean(effects), abs=1e-3)


def test_a_model_and_itself_need_no_concept_of_their_own(pair: ModelPair) -> None:
    """The true map is the identity: every fitted arm equals native, the random arms do not."""
    many = [f"{a} under the {b}" for a in PLACES for b in PLACES if a != b][:40]
    concepts = [
        Concept(
            ContrastSet(
                [f"the happy cat sang in the {e}" for e in many],
                [f"the sad cat slept on the {e}" for e in many],
                name="mood",
            ),
            MOOD.items,
        ),
        Concept(
            ContrastSet(
                [f"she saw a red {e}" for e in many],
                [f"then he ran on a blue {e}" for e in many],
                name="colour",
            ),
            COLOUR.items,
        ),
    ]
    evaluation = evaluate_concept_transfer(
        (pair.source, pair.source),
        concepts,
        source_hook=1,
        target_hook=1,
        damage=None,
        betas=(1.0,),
        n_random=1,
        progress=False,
    )
    cosines = evaluation.summary.set_index(["concept", "arm"])["cosine"]
    for arm in ("own", "own_disjoint", "other", "untransformed"):
        assert cosines["mood", arm] == pytest.approx(1, abs=1e-3), arm
    assert abs(cosines["mood", "random"]) < 0.9


def test_items_of_questions_are_split_into_pairs_and_tests() -> None:
    items = ChoiceItems(
        [f"question {i}?" for i in range(20)], [" yes"] * 20, [" no"] * 20, name="task"
    )
    concept = Concept.from_items(items, n_test=8)
    assert (len(concept.contrast), len(concept.items), concept.name) == (12, 8, "task")
    asked = {text.rsplit(" ", 1)[0] for text in concept.contrast.texts}
    assert not asked & set(concept.items.prompts)
    with pytest.raises(ValueError, match="20 items, 19 to be measured"):
        Concept.from_items(items, n_test=19)


def test_the_parts_are_disjoint_and_as_many_as_asked(pair: ModelPair) -> None:
    rows = read_rows(pair, MOOD.contrast, source_hook=1, target_hook=2)["mood"]
    first, second = vector_part(rows, 4, seed=3)
    assert (len(first), len(second)) == (4, 8)
    together = torch.cat([first.source, second.source]).flatten(1)
    assert len(torch.unique(together, dim=0)) == 12


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused(pair: ModelPair, corpus: list[str]) -> None:
    options: dict[str, Any] = {
        "source_hook": 1,
        "target_hook": 2,
        "neutral": corpus[:4],
        "progress": False,
    }
    with pytest.raises(
        ValueError,
        match=r"1 concept\(s\) given; a map fitted on another concept needs at least two",
    ):
        evaluate_concept_transfer(pair, [MOOD], **options)
    short = Concept(
        ContrastSet(MOOD.contrast.positive[:3], MOOD.contrast.negative[:3], name="short"),
        MOOD.items,
    )
    with pytest.raises(ValueError, match="fewer than 4 pairs or items"):
        evaluate_concept_transfer(pair, [MOOD, short], **options)
    for betas in ([2.0], [0.0, 1.0], [1.0, math.nan], [1.0, 1.0]):
        with pytest.raises(ValueError, match="1 among them"):
            evaluate_concept_transfer(pair, [MOOD, COLOUR], betas=betas, **options)
    with pytest.raises(ValueError, match="give neutral texts and a positive damage"):
        evaluate_concept_transfer(pair, [MOOD, COLOUR], source_hook=1, target_hook=2)
    with pytest.raises(ValueError, match="n_pairs is 11; expected 2 to 10"):
        evaluate_concept_transfer(pair, [MOOD, COLOUR], n_pairs=11, **options)
    with pytest.raises(HookPointError, match="layer 9 is not on"):
        evaluate_concept_transfer(pair, [MOOD, COLOUR], **options | {"target_hook": 9})
    with pytest.raises(ValueError, match=r"rows of 2 pair\(s\) of hook points given for 1"):
        evaluate_concept_transfer(pair, [MOOD, COLOUR], rows=[{}, {}], **options)
    with pytest.raises(MismatchError, match="read them again with read_rows"):
        evaluate_concept_transfer(pair, [MOOD, COLOUR], rows=[{}], **options)
    same = Concept(
        ContrastSet(MOOD.contrast.positive, MOOD.contrast.positive, name="same"), MOOD.items
    )
    with pytest.raises(ValueError, match="one class"):
        evaluate_concept_transfer(pair, [MOOD, same], **options)


def test_settings_can_be_keywords_or_an_object(pair: ModelPair) -> None:
    models: dict[str, Any] = {"source_hook": 1, "target_hook": 2, "progress": False}
    fields: dict[str, Any] = {"damage": None, "betas": (1.0,), "ridge": False, "n_random": 1}
    by_keyword = evaluate_concept_transfer(pair, [MOOD, COLOUR], **models, **fields)
    by_object = evaluate_concept_transfer(
        pair, [MOOD, COLOUR], **models, settings=ConceptTransferSettings(**fields)
    )
    assert by_keyword.table.equals(by_object.table)
    with pytest.raises(TypeError, match="unknown option beta; ConceptTransferSettings has"):
        evaluate_concept_transfer(pair, [MOOD, COLOUR], **models, beta=1.0)
