"""The cost of a steering vector while text is generated."""

from typing import Any

import torch

from benchmarks.measuring import Measurement, Settings, alternate
from benchmarks.models import SMALL, TINY, random_documents, random_models
from lrt_lens.adapters.vectors import SteeringVector
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
        timings = alternate(steered, bare, _REPETITIONS)
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
