"""Generated text is what the logits say, whatever the model and its generation config."""

from typing import Any

import pytest
import torch
import transformers

from lrt_lens.models import HookedModel
from tests.models.decoders import DECODERS, build_decoder


def build(name: str, tokenizer: Any) -> Any:
    return build_decoder(next(one for one in DECODERS if one.name == name), len(tokenizer))


def greedy(hf: Any, ids: list[int], n_new: int) -> list[int]:
    """Return the ids with the largest logits, by plain passes without a cache."""
    with torch.inference_mode():
        for _ in range(n_new):
            ids = [*ids, int(hf(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


@pytest.mark.parametrize("name", ["roberta-pad1", "camembert-pad1", "xlm_roberta-pad1"])
def test_positions_that_depend_on_padding_are_those_of_the_logits(
    name: str, tokenizer: Any
) -> None:
    hf = build(name, tokenizer)
    with torch.no_grad():
        base = hf.base_model.embeddings
        base.position_embeddings.weight.normal_(0, 1)
    model = HookedModel.load(hf, tokenizer=tokenizer)
    config = model._generation_config(12, None, None)
    config.eos_token_id = None
    # The second text has padding tokens, which take no position.
    for ids in ([0, 9, 8, 7, 30, 31], [0, 9, 1, 1, 8, 7]):
        tokens = torch.tensor([ids])
        options = {"attention_mask": torch.ones_like(tokens)}
        written = model.engine.generate(tokens, config, **options)[0].tolist()
        assert written == greedy(hf, ids, 12)
        # Beams carry their positions with them, and nothing stays on the model.
        config.num_beams = 2
        assert model.engine.generate(tokens, config, **options).shape == (1, len(ids) + 12)
        config.num_beams = 1
        assert "prepare_inputs_for_generation" not in vars(hf)


class AppendsAToken(transformers.GPT2LMHeadModel):
    """A model that predicts a mask token behind the text, as XLM does."""

    def prepare_inputs_for_generation(
        self, input_ids: Any, attention_mask: Any = None, **options: Any
    ) -> Any:
        mask = torch.full_like(input_ids[:, :1], 5)
        return {"input_ids": torch.cat([input_ids, mask], dim=1), "use_cache": False}


def test_a_model_that_writes_something_else_than_its_logits_say_is_refused(
    build_hf: Any, tokenizer: Any
) -> None:
    hf = AppendsAToken(build_hf("gpt2").config).eval()
    model = HookedModel.load(hf, tokenizer=tokenizer)
    assert model.logits("the cat").isfinite().all()
    with pytest.raises(ValueError, match=r"cannot generate as its logits say.*differ by"):
        model.generate("the cat")


def test_attentions_in_a_list_of_their_own_are_no_blocks(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no list of blocks that each run once"):
        HookedModel.load(build("xlm-causal", tokenizer), tokenizer=tokenizer)
