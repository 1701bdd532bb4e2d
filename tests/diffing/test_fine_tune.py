"""The shift between a model and its fine-tune moves the topic that it was tuned on."""

import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.vectors import NeutralText, PreferenceText, calibrate_on
from lrt_lens.reproduction import fine_tune

HOOK = "blocks.3.hook_resid_post"


@pytest.mark.slow
def test_the_shift_of_a_short_fine_tune_moves_its_topic_beyond_random_directions() -> None:
    base = lrt.demo_pair().target
    tuned = fine_tune(base, list(lrt.demo_contrast("sentiment").positive), n_steps=8)
    pair = lrt.ModelPair(base, tuned)
    moments = lrt.harvest(
        pair,
        lrt.demo_documents("review"),
        pairs=[(HOOK, HOOK)],
        n_tokens=6_000,
        null=False,
        progress=False,
    )
    shift = lrt.diff(moments, kinds=["shift"]).vector("shift", on="source")
    items = lrt.demo_items("sentiment")
    neutral = NeutralText(base, lrt.demo_neutral()[:8], HOOK)
    choices = PreferenceText(base, items, HOOK)
    unsteered = choices.propensity()

    def effect(vector: lrt.SteeringVector) -> float:
        scale = calibrate_on(neutral, vector, 0.1).scale
        return float((choices.propensity(vector.hook_at(scale)) - unsteered).mean())

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, base.d_model, generator=generator)
    random = [
        effect(
            lrt.SteeringVector(row, HOOK, base.identity, name="r", median_norm=shift.median_norm)
        )
        for row in rows
    ]
    assert effect(shift) > max(random)
    # The other way round it moves the topic away.
    assert effect(shift.reversed()) < 0
