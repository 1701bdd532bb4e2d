"""Directional ablation, compared with weights from which the direction was projected out.

Arditi et al., §4.1: both are the same function.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.adapters.vectors import (
    AblationEvaluation,
    SteeringVector,
    ablation_hooks,
    evaluate_ablation,
)
from lrt_lens.data import ChoiceItems, ContrastSet
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.stitching import Stitch
from tests.adapters.vectors.reference import OneRowPerContinuation

PLACES = ("house", "garden", "tree", "river", "stone", "bird")
CONTRAST = ContrastSet(
    [f"the happy cat sang in the {p} and it was good" for p in PLACES],
    [f"the sad dog slept on the {p} and it was bad" for p in PLACES],
    name="mood",
)
ITEMS = ChoiceItems(
    [f"the little boy saw the {p} and he" for p in PLACES],
    [" sang"] * 6,
    [" slept"] * 6,
    name="mood",
)


@pytest.fixture(scope="module")
def vector(twins: ModelPair) -> SteeringVector:
    return SteeringVector.mean_difference(twins.source, CONTRAST, at=1)


@pytest.fixture(scope="module")
def result(
    twins: ModelPair, stitch: Stitch, vector: SteeringVector, passages: list[str]
) -> AblationEvaluation:
    return evaluate_ablation(
        twins,
        stitch,
        vector,
        neutral=passages[:6],
        items=ITEMS,
        prompts=ITEMS.prompts[:3],
        classifier=lambda text: len(text) % 2 == 0,
        n_samples=2,
        max_new_tokens=4,
        n_random=2,
        n_shuffled=2,
        n_contrast_groups=3,
        progress=False,
    )


def orthogonalised(model: Any, direction: torch.Tensor) -> Any:
    """Return a copy of a Hugging Face Llama without the direction.

    It is projected out of every matrix that writes to the stream.
    """
    copied, unit = copy.deepcopy(model), direction.double() / direction.double().norm()
    projector = torch.eye(len(unit), dtype=torch.float64) - torch.outer(unit, unit)
    with torch.no_grad():
        embedding = copied.model.embed_tokens.weight
        head = copied.lm_head.weight.clone()
        copied.lm_head.weight = torch.nn.Parameter(head)  # only reads from the stream
        copied.model.embed_tokens.weight = torch.nn.Parameter(
            (embedding.double() @ projector).float()
        )
        for layer in copied.model.layers:
            for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                matrix.copy_((projector @ matrix.double()).float())
    return copied


def test_everywhere_is_the_same_as_projecting_the_direction_out_of_the_weights(
    build_hf: Any, tokenizer: Any
) -> None:
    hf, direction = (
        build_hf("llama", seed=3),
        torch.randn(16, generator=torch.Generator().manual_seed(0)),
    )
    changed = orthogonalised(hf, direction)
    model = HookedModel.load(hf, tokenizer=tokenizer)
    tokens = torch.randint(1, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    untouched = model.logits(tokens)
    with model.intervene({**ablation_hooks(model, direction, skip_first=0)}):
        ablated = model.logits(tokens)
    with torch.inference_mode():
        expected = changed(tokens).logits
    torch.testing.assert_close(ablated, expected, atol=2e-4, rtol=1e-3)
    assert (ablated - untouched).abs().max() > 0.1


@pytest.mark.parametrize("name", ["gpt2", "neox", "gemma", "qwen2"])
def test_everywhere_leaves_nothing_along_the_direction_at_any_hook_point(
    models: dict[str, Any], name: str
) -> None:
    model, direction = models[name], torch.randn(16, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(1, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    seen = {}
    with model.intervene({**ablation_hooks(model, direction, skip_first=2)}):
        names = [hook for hook in model.hook_points if hook.endswith("_post")]
        for hook in names:
            model.intervene(
                {hook: lambda activation, hook: seen.update({hook.name: activation.clone()})}
            )
        model.logits(tokens)
    for point in model.bridge.hook_dict.values():
        point.remove_hooks()
    along = torch.stack([seen[hook] @ (direction / direction.norm()) for hook in sorted(seen)])
    assert along[:, :, 2:].abs().max() < 1e-5
    assert along[0, :, :2].abs().max() > 1e-3


def test_at_one_hook_the_propensity_is_that_of_the_vectors_own_ablation(
    twins: ModelPair, stitch: Stitch, vector: SteeringVector, result: AblationEvaluation
) -> None:
    transferred = stitch.transfer(vector)
    text = OneRowPerContinuation(twins.target, ITEMS, stitch.target_hook)
    expected = text.propensity(transferred.hooks(mode="ablate")[0][1])
    part = result.table.query(
        "where == 'hook' and arm == 'transferred' and outcome == 'propensity'"
    )
    np.testing.assert_allclose(part["value"], expected, atol=1e-5)
    none = result.table.query("where == 'hook' and arm == 'none' and outcome == 'propensity'")
    np.testing.assert_allclose(none["value"], text.propensity(), atol=1e-5)
    row = result.summary.set_index(["where", "arm"]).loc[("hook", "transferred")]
    assert row["drop"] == pytest.approx(np.mean(text.propensity() - expected), abs=1e-5)


def test_everywhere_the_propensity_and_the_damage_are_the_naive_ones(
    twins: ModelPair,
    stitch: Stitch,
    vector: SteeringVector,
    passages: list[str],
    result: AblationEvaluation,
) -> None:
    transferred, model = stitch.transfer(vector), twins.target
    rows = [model.encode([text])[0] for text in passages[:6]]

    def measured() -> tuple[float, float]:
        losses, preference = [], []
        for row in rows:
            table = model.logits(torch.tensor([row]))[0].double().log_softmax(-1)
            losses += [-float(table[p, row[p + 1]]) for p in range(4, len(row) - 1)]
        for prompt in ITEMS.prompts:
            scores = []
            for side in (ITEMS.positive[0], ITEMS.negative[0]):
                [start], [end] = model.encode([prompt]), model.encode_bodies([side])
                table = model.logits(torch.tensor([[*start, *end]]))[0].double().log_softmax(-1)
                scores.append(
                    sum(float(table[len(start) - 1 + i, token]) for i, token in enumerate(end))
                )
            preference.append(scores[0] - scores[1])
        return float(np.mean(losses)), float(np.mean(preference))

    loss, propensity = measured()
    with model.intervene({**ablation_hooks(model, transferred.direction)}):
        ablated_loss, ablated_propensity = measured()
    row = result.summary.set_index(["where", "arm"]).loc[("everywhere", "transferred")]
    assert row["damage"] == pytest.approx(ablated_loss - loss, abs=1e-4)
    assert row["propensity"] == pytest.approx(ablated_propensity, abs=1e-4)
    assert row["drop"] == pytest.approx(propensity - ablated_propensity, abs=1e-4)


def test_between_a_model_and_itself_transferred_is_native_and_no_ablation_drops_nothing(
    result: AblationEvaluation,
) -> None:
    rows = result.summary.set_index(["where", "arm"])
    for where in ("hook", "everywhere"):
        transferred, native, none = (
            rows.loc[(where, arm)] for arm in ("transferred", "native", "none")
        )
        assert transferred["cosine"] > 0.9999
        assert transferred["drop"] == pytest.approx(native["drop"], abs=0.01)
        assert (none["drop"], none["damage"], none["share_drop"]) == (0.0, 0.0, 0.0)
        assert rows.loc[(where, "random"), "n_draws"] == 2


def test_native_and_transferred_contain_the_contrast_pairs_and_the_map(
    twins: ModelPair, stitch: Stitch, vector: SteeringVector, passages: list[str]
) -> None:
    """Compare with vectors that are learnt here without one group of pairs."""
    twelve = ContrastSet(
        [f"the {who} {text}" for who in ("happy", "glad") for text in CONTRAST.positive],
        [f"the {who} {text}" for who in ("sad", "poor") for text in CONTRAST.negative],
        name="mood",
    )
    learnt = SteeringVector.mean_difference(twins.source, twelve, at=1)
    rows = evaluate_ablation(
        twins,
        stitch,
        learnt,
        neutral=passages[:6],
        items=ITEMS,
        places=("hook",),
        n_random=1,
        n_shuffled=1,
        n_contrast_groups=4,
        progress=False,
    ).summary.set_index("arm")
    assert rows.loc["none", "contains"] == "items, neutral texts"
    assert rows.loc["native", "contains"] == "items, neutral texts, contrast pairs"
    assert rows.loc["transferred", "contains"] == "items, neutral texts, contrast pairs, map"
    assert rows.loc["random", "contains"] == "draws"
    text = OneRowPerContinuation(twins.target, ITEMS, stitch.target_hook)
    states = learnt.states(twins.target, twelve, at=stitch.target_hook)
    drops = []
    for part in states.leaving_out(4):
        refit = SteeringVector.learnt_from(part, "mean_difference")
        ablated = text.propensity(refit.hooks(mode="ablate")[0][1])
        drops.append(float(np.mean(text.propensity() - ablated)))
    expected = np.sqrt(3 / 4 * np.sum((np.array(drops) - np.mean(drops)) ** 2))
    row = rows.loc["native"]
    assert row["drop_contrast_error"] == pytest.approx(expected, abs=1e-6)
    assert row["drop_high"] - row["drop"] > 3.18 * expected


def test_a_drawn_arm_has_the_rank_of_the_transferred_drop(result: AblationEvaluation) -> None:
    table, summary = result.table, result.summary.set_index(["where", "arm"])
    means = (
        table[table["outcome"] == "propensity"].groupby(["where", "arm", "draw"], dropna=False)
    )["value"].mean()
    for where in ("hook", "everywhere"):
        drops = means.loc[where, "none"].iloc[0] - means.loc[where, "random"].to_numpy()
        transferred = means.loc[where, "none"].iloc[0] - means.loc[where, "transferred"].iloc[0]
        row = summary.loc[(where, "random")]
        assert row["typical_size"] == pytest.approx(np.sqrt(np.mean(drops**2)))
        larger = (np.abs(drops) >= abs(transferred)).sum()
        assert row["transferred_p"] == pytest.approx((1 + larger) / 3)
        # t(.975, 1) · s · √(1 + 1/2) around the mean of both draws
        reach = 12.706 * np.std(drops, ddof=1) * np.sqrt(1.5)
        assert row["drop_low"] == pytest.approx(drops.mean() - reach, rel=1e-3)
    assert "map_refit" not in set(table["arm"])


def test_figures_show_every_panel(result: AblationEvaluation) -> None:
    assert len(result.figure().data) == 2 * 3 * 6
    assert "damage" in result._repr_html_()


def test_bad_input_is_refused_and_no_hook_stays_on(
    twins: ModelPair, stitch: Stitch, vector: SteeringVector, passages: list[str]
) -> None:
    with pytest.raises(ValueError, match="no behaviour to measure"):
        evaluate_ablation(twins, stitch, vector, neutral=passages[:2], progress=False)
    with pytest.raises(ValueError, match="no behaviour to measure"):
        evaluate_ablation(
            twins,
            stitch,
            vector,
            neutral=passages[:2],
            items=ITEMS,
            prompts=["the cat"],
            progress=False,
        )
    with pytest.raises(ValueError, match="no neutral text is longer"):
        evaluate_ablation(twins, stitch, vector, neutral=["a"], items=ITEMS, progress=False)
    with pytest.raises(ValueError, match=r"shape \(3,\).*expected \[16\]"):
        ablation_hooks(twins.target, torch.ones(3))
    with pytest.raises(ValueError, match="the name of one"):
        ablation_hooks(twins.target, torch.ones(16), where="hook")
    assert not any(point.fwd_hooks for point in twins.target.bridge.hook_dict.values())
