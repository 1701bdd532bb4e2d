"""The cost of a steering vector while text is generated, and of a draw of an evaluation."""

from typing import Any

import torch

from benchmarks.measuring import Measurement, Settings, alternate
from benchmarks.models import SMALL, TINY, random_documents, random_models
from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.adapters.vectors._arm_meter import ArmMeter
from lrt_lens.adapters.vectors._vector_arm import VectorArm
from lrt_lens.data import ChoiceItems
from lrt_lens.models import HookedModel

_REPETITIONS = 15
_PROMPT_TOKENS = 32
_PROMPTS = 4


def steered_generate_over_plain(settings: Settings) -> Measurement:
    """Seconds of `HookedModel.generate` under a vector ÷ seconds of Hugging Face's own."""
    shape, n_new = (TINY, 8) if settings.quick else (SMALL, 32)
    with random_models(shape, settings.seed) as folder:
        model = HookedModel.load(str(folder / "target"))
        lengths = (_PROMPT_TOKENS, _PROMPT_TOKENS)
        texts = random_documents(folder, _PROMPTS * _PROMPT_TOKENS, lengths, settings.seed)
        prompts = list(texts)[:_PROMPTS]
        layer = shape.middle[1]
        vector = SteeringVector(
            torch.randn(model.d_model, generator=torch.Generator().manual_seed(settings.seed)),
            f"blocks.{layer}.hook_resid_post",
            model.identity,
        )
        ids = torch.tensor(model.encode(prompts))
        plain: Any = model.engine.model
        # Both write exactly this many tokens: no text ends early.
        config = model._generation_config(n_new, None, None)
        config.eos_token_id = None

        def steered() -> Any:
            with vector.apply(model):
                return model.generate(prompts, generation_config=config)

        def bare() -> torch.Tensor:
            with torch.inference_mode():
                ones = torch.ones_like(ids)
                return plain.generate(input_ids=ids, attention_mask=ones, generation_config=config)

        steered()
        bare()
        timings = alternate(steered, bare, settings.repetitions(_REPETITIONS))
    return Measurement(
        name="steered_generate_over_plain",
        value=timings.ratio,
        target=1.1,
        at_most=True,
        what="Seconds of `model.generate` under `vector.apply` ÷ seconds of `generate` of the bare "
        f"Hugging Face model: {_PROMPTS} prompts of {_PROMPT_TOKENS} tokens, {n_new} new tokens, "
        f"greedy, random model of 384 dimensions and 6 layers, vector at layer {layer}.",
        raw=timings.raw("steered", "plain") | {"prompts": len(prompts), "new_tokens": n_new},
    )


def evaluate_steering_per_draw(settings: Settings) -> Measurement:
    """Seconds per draw of a control ÷ seconds of one plain pass over the same texts."""
    shape, n_texts, n_items = (TINY, 4, 8) if settings.quick else (SMALL, 20, 57)
    n_draws = 4 if settings.quick else 20
    with random_models(shape, settings.seed) as folder:
        model = HookedModel.load(str(folder / "target"))
        layer = shape.middle[1]
        texts = list(random_documents(folder, n_texts * 90, (90, 90), settings.seed))
        words = [text.split() for text in random_documents(folder, n_items * 14, (14, 14), 1)]
        items = ChoiceItems(
            [" ".join(row[:12]) for row in words],
            [f" {row[12]}" for row in words],
            [f" {row[13]}" for row in words],
        )
        generator = torch.Generator().manual_seed(settings.seed)
        directions = torch.randn(n_draws + 1, model.d_model, generator=generator)
        arms = [
            VectorArm(
                "random",
                SteeringVector(one, f"blocks.{layer}.hook_resid_post", model.identity),
                draw=draw,
            )
            for draw, one in enumerate(directions)
        ]
        meter = ArmMeter(model, items, texts, budget=0.1)
        # The first draw tokenizes the texts, stores the residual and searches the scale.
        meter.measure(arms[0])
        rows = [model.encode(texts), model.encode([f"{p}{c}" for p, c in _spelled(items)])]
        batches = [model.pad(part) for part in rows]
        plain: Any = model.engine.model

        def draws() -> Any:
            return [meter.measure(arm) for arm in arms[1:]]

        def bare() -> list[torch.Tensor]:
            with torch.inference_mode():
                return [plain(batch, use_cache=False).logits for batch in batches]

        bare()
        timings = alternate(draws, bare, settings.repetitions(3))
    return Measurement(
        name="evaluate_steering_per_draw",
        value=timings.ratio / n_draws,
        target=3.0,
        at_most=True,
        what="Seconds per draw of a control in `evaluate_steering` (effect and damage of a random "
        "direction and of its negative, at the scales that bracket the budget) ÷ seconds of one "
        f"pass of the bare Hugging Face model over the same texts: {len(texts)} neutral texts of "
        f"90 tokens and {n_items} items, random model of 384 dimensions and 6 layers, steered at "
        f"layer {layer}.",
        raw=timings.raw("draws", "plain") | {"draws": n_draws, "items": n_items},
    )


def _spelled(items: ChoiceItems) -> list[tuple[str, str]]:
    """Return prompts with both continuations."""
    return [
        (prompt, continuation)
        for side in (items.positive, items.negative)
        for prompt, continuation in zip(items.prompts, side, strict=True)
    ]
