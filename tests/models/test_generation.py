"""Generated text is what the logits say, whatever the model and its generation config."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

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


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("config", "n_new"),
    [
        ({"max_length": 200}, 64),
        ({"max_length": 20}, 20),
        ({}, None),
        ({"max_new_tokens": 200}, 64),
        ({"max_new_tokens": 4, "max_length": 200}, None),
    ],
)
def test_a_generation_config_writes_no_further_than_the_context(
    build_hf: Any, tokenizer: Any, architecture: str, config: dict, n_new: int | None
) -> None:
    hf = build_hf(architecture)
    model = HookedModel.load(hf, tokenizer=tokenizer)
    prompt = "the cat saw the dog"
    ids = model.encode([prompt])[0]
    total = n_new or len(ids) + config.get("max_new_tokens", 20)
    text = model.generate(prompt, generation_config={**config, "do_sample": False})
    expected = greedy(hf, ids, total - len(ids))[len(ids) :]
    assert text == model.codec.decode_behind(ids, expected)


def test_a_prompt_that_fills_the_context_is_cut_if_the_user_says_so(
    build_hf: Any, tokenizer: Any, caplog: Any
) -> None:
    hf = build_hf("llama")
    model = HookedModel.load(hf, tokenizer=tokenizer)
    bodies = model.encode_bodies([" ".join(["cat dog"] * 60)])[0]
    # One token less than the context, all of it, and more.
    for n_tokens in (63, 64, 90):
        prompt = tokenizer.decode(bodies[: n_tokens - 1])
        assert len(model.codec.encode_bodies([prompt])[0]) == n_tokens - 1
        if n_tokens == 64:
            with pytest.raises(ValueError, match="truncation='left'"):
                model.generate(prompt, max_new_tokens=8)
        caplog.clear()
        text = model.generate(prompt, max_new_tokens=8, do_sample=False, truncation="left")
        ids = [0, *bodies[: n_tokens - 1]]
        is_cut = n_tokens >= 64
        kept = [0, *ids[len(ids) - 55 :]] if is_cut else ids
        written = greedy(hf, kept, min(8, 64 - len(kept)))[len(kept) :]
        ends = written.index(0) + 1 if 0 in written else len(written)
        assert text == model.codec.decode_behind(kept, written[:ends])
        assert ("were cut" in caplog.text) == is_cut
    with pytest.raises(ValueError, match="leaves no new token behind a prompt of 63 tokens"):
        model.generate(prompt, generation_config={"max_length": 9}, truncation="left")


def test_stop_strings_end_each_text_where_it_has_one(build_hf: Any, tokenizer: Any) -> None:
    hf = build_hf("llama", seed=3)
    model = HookedModel.load(hf, tokenizer=tokenizer)
    prompts = ["the cat saw the", "a dog ran over the", "the old king gave"]
    options = {"max_new_tokens": 16, "do_sample": False}
    free = [model.generate(prompt, generation_config=options) for prompt in prompts]
    stop = next(character for character in free[0][3:] if character.isprintable())
    texts = model.generate(prompts, generation_config={**options, "stop_strings": [stop]})
    for text, whole in zip(texts, free, strict=True):
        assert whole.startswith(text)
        if stop in whole:
            assert stop in text
            assert stop not in text[:-4]
        else:
            assert text == whole


def test_noise_of_a_hook_follows_the_seed_and_leaves_torchs_random_state(model: Any) -> None:
    def noisy(activation: Tensor, hook: Any) -> Tensor:
        return activation + 3 * torch.randn(activation.shape) + torch.rand_like(activation)

    torch.manual_seed(7)
    state = torch.get_rng_state()
    with model.intervene({1: noisy}):
        for options in ({}, {"do_sample": False}):
            texts = [
                model.generate("the cat", seed=seed, max_new_tokens=8, **options)
                for seed in (0, 1, 0)
            ]
            assert texts[0] == texts[2] != texts[1]
    assert torch.equal(torch.get_rng_state(), state)
