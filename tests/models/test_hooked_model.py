"""Tests of a model's tokens, interventions, losses and continuations."""

import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from lrt_lens.data import ContrastSet, with_fewer_merges
from lrt_lens.errors import HookPointError, MismatchError, NonFiniteError
from lrt_lens.models import HookedModel
from lrt_lens.models._identity import tokenizer_hash

TEXTS = [
    "the little cat slept on the old stone house",
    "a sad queen",
    "the boy ran but the girl sang in the garden and it was good",
]


def towards(direction: Tensor) -> Any:
    return lambda x, hook: x + direction.to(x)


@pytest.fixture
def push(model: HookedModel) -> Any:
    """A hook that changes the stream strongly."""
    return towards(4 * torch.linspace(-1, 1, model.d_model))


# ------------------------------------------------------------------------------------------- tokens


def test_bos_is_put_in_front_as_the_tokenizer_itself_does(load: Any, train_tokenizer: Any) -> None:
    as_trained = load(layers=1)
    assert as_trained.prepend_bos is True
    assert as_trained.encode(TEXTS) == as_trained.tokenizer(TEXTS)["input_ids"]
    bare = train_tokenizer(bos=False)
    without = load(layers=1, tokenizer=bare)
    assert without.prepend_bos is False
    assert without.encode(TEXTS) == bare(TEXTS)["input_ids"] == as_trained.encode_bodies(TEXTS)


@pytest.mark.parametrize("bos_in_template", [True, False])
@pytest.mark.parametrize("prepend", [True, False])
def test_the_bos_policy_can_be_chosen_and_is_recorded(
    load: Any, train_tokenizer: Any, bos_in_template: bool, prepend: bool
) -> None:
    model = load(layers=1, tokenizer=train_tokenizer(bos=bos_in_template), prepend_bos=prepend)
    [ids] = model.encode(["the cat"])
    assert ids.count(model.tokenizer.bos_token_id) == int(prepend)
    assert model.prepend_bos == model.identity.prepend_bos == prepend
    assert ("no BOS" in repr(model)) is not prepend


def test_bos_without_a_bos_token_is_refused(load: Any, train_tokenizer: Any) -> None:
    tokenizer = train_tokenizer(bos=False)
    tokenizer.bos_token = None
    assert load(layers=1, tokenizer=tokenizer).prepend_bos is False
    with pytest.raises(
        ValueError,
        match=r"prepend_bos=True, but the tokenizer of 'LlamaForCausalLM' has no BOS token;"
        r" use prepend_bos=False",
    ):
        load(layers=1, tokenizer=tokenizer, prepend_bos=True)


def test_a_text_beyond_the_context_is_refused_or_cut_where_it_is_said(
    model: HookedModel, load: Any
) -> None:
    texts = ["the cat", "the cat " * 100 + "slept"]
    whole = model.encode_bodies(texts)[1]
    bos = model.tokenizer.bos_token_id
    assert model.encode(texts, truncation="right")[1] == [bos, *whole[:63]]
    assert model.encode(texts, truncation="left")[1] == [bos, *whole[-63:]]
    for run in (model.encode, model.logits, model.generate):
        with pytest.raises(ValueError, match=r"1 of 2 text\(s\) are longer than the 64 tokens"):
            run(texts)
    told = load(truncation="left")
    assert told.encode(texts)[1] == [bos, *whole[-63:]]
    assert told.encode(texts, truncation="right")[1] == [bos, *whole[:63]]
    with pytest.raises(MismatchError, match="was loaded with truncation=None; asked for 'left'"):
        HookedModel.load(model, truncation="left")
    # What is averaged over tokens is read in windows, each behind BOS.
    windows = model.codec.windows(texts)
    assert [len(parts) for parts in windows] == [1, 7]
    assert [token for window in windows[1] for token in window[1:]] == whole
    assert all(window[0] == bos and len(window) <= 64 for window in windows[1])
    losses = [
        torch.nn.functional.cross_entropy(
            model.logits(torch.tensor([row]))[0, :-1], torch.tensor(row[1:]), reduction="none"
        )
        for parts in windows
        for row in parts
    ]
    assert model.loss(texts) == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_another_end_to_cut_is_refused(model: HookedModel) -> None:
    with pytest.raises(ValueError, match="truncation is 'middle'"):
        model.encode(["the cat"], truncation="middle")  # type: ignore[arg-type]


def test_every_kind_of_column_is_texts(model: HookedModel) -> None:
    texts = ["the cat", "a sad queen"]
    expected = model.encode(texts)
    for column in (tuple(texts), np.array(texts), pd.Series(texts, index=[7, 3])):
        assert model.encode(column) == expected  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_text_is_named(model: HookedModel) -> None:
    with pytest.raises(TypeError, match="text 1 is nan, of type float"):
        model.encode(["the cat", float("nan")])  # type: ignore[list-item]


def test_a_prefix_is_what_the_tokenizer_writes_and_is_written_once(
    build_hf: Any, train_tokenizer: Any
) -> None:
    tokenizer = train_tokenizer(bos=False)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("a", "b")]
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="a b $A", special_tokens=[("a", ids[0]), ("b", ids[1])]
    )
    model = HookedModel.load(build_hf("llama"), tokenizer=tokenizer)
    assert (model.prefix, model.prepend_bos) == (ids, True)
    [row] = model.encode(["the cat"])
    assert row == tokenizer("the cat")["input_ids"] == [*ids, *model.encode_bodies(["the cat"])[0]]
    assert not model.read_mask([row], skip_first=0)[0, :2].any()
    # A chat template that has written the prefix gets no second one.
    assert model.encode([tokenizer.decode(row)])[0] == row


def test_new_text_is_what_the_model_wrote_behind_the_prompt(model: HookedModel) -> None:
    prompt = "the little cat"
    text = model.generate(prompt, max_new_tokens=8, do_sample=False)
    [ids] = model.encode([prompt])
    for _ in range(8):
        following = int(model.logits(torch.tensor([ids]))[0, -1].argmax())
        if following == model.tokenizer.eos_token_id:
            break
        ids.append(following)
    assert prompt + text == model.tokenizer.decode(ids, skip_special_tokens=True)


def test_nothing_in_the_generation_config_acts_unless_it_is_given(load: Any) -> None:
    model = load()
    plain = model.generate("the cat", do_sample=False, max_new_tokens=6)
    model.engine.model.generation_config.update(
        repetition_penalty=5.0, suppress_tokens=list(range(1, 300)), temperature=0.1, top_k=1
    )
    assert model.generate("the cat", do_sample=False, max_new_tokens=6) == plain
    config = copy.deepcopy(model.engine.model.generation_config)
    config.update(max_new_tokens=6, do_sample=False)
    assert model.generate("the cat", generation_config=config) != plain
    assert model.engine.model.generation_config.repetition_penalty == 5.0


def test_nan_is_refused_wherever_a_number_is_read(load: Any) -> None:
    model = load()
    with torch.no_grad():
        model.engine.model.get_output_embeddings().weight[5] = float("nan")
    for read in (model.logits, model.loss, lambda text: model.generate(text, max_new_tokens=2)):
        with pytest.raises(NonFiniteError, match="NaN"):
            read("the little cat")


def test_one_changed_weight_makes_another_model(build_hf: Any, tokenizer: Any) -> None:
    bare = build_hf("llama")
    before = HookedModel.load(bare, tokenizer=tokenizer).identity
    with torch.no_grad():
        bare.model.layers[1].mlp.down_proj.weight[-1, -1] += 0.5
    assert HookedModel.load(bare, tokenizer=tokenizer).identity.config_hash != before.config_hash
    # Quantised weights lie in buffers.
    for value in (1, 2):
        bare.model.register_buffer("qweight", torch.tensor([value], dtype=torch.int32))
        changed = HookedModel.load(bare, tokenizer=tokenizer).identity
        assert changed.config_hash != before.config_hash
        before = changed


@pytest.mark.parametrize("method", ["encode", "loss", "logits", "generate"])
def test_an_empty_text_is_named(model: HookedModel, method: str) -> None:
    with pytest.raises(
        ValueError, match=r"text 1 is empty \(''\); give texts with at least one token"
    ):
        getattr(model, method)(["the cat", ""])


def test_no_text_at_all_is_refused(model: HookedModel) -> None:
    with pytest.raises(
        ValueError, match="no text given; expected a text, or a list of at least one"
    ):
        model.capture([], 0)


def test_the_read_mask_leaves_out_padding_specials_and_the_first_positions(
    model: HookedModel,
) -> None:
    end = model.tokenizer.eos_token_id
    mask = model.read_mask([[end, 9, 9, 9, 9, end, 9], [end, 9, 9, 9, 9]], skip_first=3)
    assert mask.int().tolist() == [[0, 0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 0, 0]]
    assert model.read_mask([[9] * 6]).int().tolist() == [[0, 0, 0, 0, 1, 1]]


def test_padding_on_the_right_changes_nothing(models: dict, architecture: str) -> None:
    model = models[architecture]
    rows = model.encode(TEXTS)
    padded, streams = model.logits(TEXTS), model.capture(TEXTS, -1)
    assert len({len(row) for row in rows}) == 3
    for index, row in enumerate(rows):
        alone = torch.tensor([row])
        torch.testing.assert_close(
            padded[index, : len(row)], model.logits(alone)[0], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            streams[index, : len(row)], model.capture(alone, -1)[0], atol=1e-5, rtol=1e-5
        )


# -------------------------------------------------------------------------------------- activations


def test_one_hook_point_gives_a_tensor_and_several_a_dict_by_full_name(model: HookedModel) -> None:
    one = model.capture("the cat", -1)
    assert one.shape == (1, len(model.encode(["the cat"])[0]), 16)
    assert torch.equal(one, model.capture("the cat", "blocks.2.hook_resid_post"))
    assert list(model.capture(TEXTS, [0, "hook_embed"])) == [
        "blocks.0.hook_resid_post",
        "hook_embed",
    ]
    assert list(model.capture(TEXTS, "all")) == [
        f"blocks.{layer}.hook_resid_post" for layer in range(3)
    ]
    assert torch.equal(
        model.capture(TEXTS, [-1])["blocks.2.hook_resid_post"], model.capture(TEXTS, 2)
    )


def test_both_names_of_a_place_give_the_same_activations(models: dict, architecture: str) -> None:
    both = models[architecture].capture(
        TEXTS, ["blocks.2.hook_resid_pre", "blocks.1.hook_resid_post"]
    )
    assert torch.equal(both["blocks.2.hook_resid_pre"], both["blocks.1.hook_resid_post"])


def test_an_unknown_hook_point_is_refused_with_the_range(model: HookedModel) -> None:
    with pytest.raises(
        HookPointError, match="layer 3 is not on 'LlamaForCausalLM'; it has 3 blocks: use 0 to 2"
    ):
        model.capture("the cat", 3)
    with pytest.raises(
        HookPointError, match=r"'blocks.9.hook_resid_post' is not on .*'blocks.2.hook_resid_post'"
    ):
        model.intervene({"blocks.9.hook_resid_post": lambda x, hook: x})


def test_an_intervention_lasts_as_long_as_its_with_block(model: HookedModel, push: Any) -> None:
    before = model.logits(TEXTS)
    with model.intervene({1: push}):
        assert not torch.allclose(model.logits(TEXTS), before, atol=0.1)
    assert torch.equal(model.logits(TEXTS), before)


def test_an_intervention_lasts_until_its_handle_is_removed(model: HookedModel, push: Any) -> None:
    before = model.logits(TEXTS)
    handle = model.intervene({1: push})
    changed = model.logits(TEXTS)
    handle.remove()
    handle.remove()
    assert not torch.allclose(changed, before, atol=0.1)
    assert torch.equal(model.logits(TEXTS), before)


def test_an_intervention_ends_with_an_exception_in_its_block(model: HookedModel, push: Any) -> None:
    before = model.logits(TEXTS)
    with pytest.raises(KeyError, match="mine"), model.intervene({1: push}):
        raise KeyError("mine")
    assert torch.equal(model.logits(TEXTS), before)


def test_an_intervention_ends_with_an_exception_in_its_function(model: HookedModel) -> None:
    before = model.logits(TEXTS)

    def fail(x: Tensor, hook: Any) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), model.intervene({1: fail}):
        model.logits(TEXTS)
    assert torch.equal(model.logits(TEXTS), before)


def test_no_hook_stays_on_where_one_of_several_has_a_wrong_name(
    model: HookedModel, push: Any
) -> None:
    before = model.logits(TEXTS)
    with pytest.raises(HookPointError):
        model.intervene({1: push, 7: push})
    assert torch.equal(model.logits(TEXTS), before)


def test_removing_one_of_two_interventions_on_a_hook_point_leaves_the_other(
    model: HookedModel, push: Any
) -> None:
    before = model.logits(TEXTS)
    other = towards(torch.linspace(1, -3, model.d_model))
    with model.intervene({1: other}):
        alone = model.logits(TEXTS)
        with model.intervene({1: push}):
            both = model.logits(TEXTS)
        assert torch.equal(model.logits(TEXTS), alone)
    assert torch.equal(model.logits(TEXTS), before)
    assert not torch.allclose(both, alone, atol=0.1)


def test_a_hook_function_that_returns_nothing_only_looks(model: HookedModel) -> None:
    before, seen = model.logits(TEXTS), []
    with model.intervene({1: lambda x, hook: seen.append(x.clone())}):
        assert torch.equal(model.logits(TEXTS), before)
    torch.testing.assert_close(seen[0], model.capture(TEXTS, 1), atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------------------------- predictions


def test_the_loss_is_that_of_hugging_face_with_labels(
    models: dict, architecture: str, build_hf: Any
) -> None:
    model, bare = models[architecture], build_hf(architecture)
    row = torch.tensor(model.encode(TEXTS[:1]))
    with torch.inference_mode():
        expected = float(bare(input_ids=row, labels=row).loss)
    assert model.loss(TEXTS[0]) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_several_texts_weighs_every_token_once(model: HookedModel) -> None:
    losses = model.token_losses(model.encode(TEXTS))
    counts = [len(row) - 1 for row in model.encode(TEXTS)]
    assert (~losses.isnan()).sum(1).tolist() == counts
    expected = sum(
        count * model.loss(text) for count, text in zip(counts, TEXTS, strict=True)
    ) / sum(counts)
    assert model.loss(TEXTS) == pytest.approx(expected, rel=1e-5)


def test_the_loss_feels_an_intervention(model: HookedModel, push: Any) -> None:
    before = model.loss(TEXTS)
    with model.intervene({1: push}):
        assert abs(model.loss(TEXTS) - before) > 0.01


def test_a_text_without_a_token_to_predict_has_no_loss(load: Any) -> None:
    model = load(layers=1, prepend_bos=False)
    with pytest.raises(
        ValueError,
        match=r"no text has a token to predict: the longest has 1 token\(s\) and 2 are needed;"
        r" give longer texts",
    ):
        model.loss(["a"])


def test_generation_is_decided_by_its_seed_and_leaves_the_global_one_alone(
    model: HookedModel,
) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = model.generate("the cat", max_new_tokens=12, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    assert model.generate("the cat", max_new_tokens=12, seed=1) == first
    assert model.generate("the cat", max_new_tokens=12, seed=2) != first


def test_a_string_gives_a_string_and_a_list_a_list_in_its_order(model: HookedModel) -> None:
    together = model.generate(TEXTS, max_new_tokens=6, do_sample=False)
    assert isinstance(together, list)
    assert together == [model.generate(text, max_new_tokens=6, do_sample=False) for text in TEXTS]
    assert len(set(together)) > 1


def test_greedy_generation_takes_the_most_likely_token_each_time(
    models: dict, architecture: str
) -> None:
    model = models[architecture]
    [ids] = model.encode(["the cat"])
    start = len(ids)
    for _ in range(6):
        ids = [*ids, int(model.logits(torch.tensor([ids]))[0, -1].argmax())]
        if ids[-1] == model.tokenizer.eos_token_id:
            break
    assert model.generate("the cat", max_new_tokens=6, do_sample=False) == model.tokenizer.decode(
        ids[start:], skip_special_tokens=True
    )


def test_an_intervention_acts_on_every_generated_token_with_the_cache_on(
    models: dict, architecture: str
) -> None:
    """Greedy continuations under a hook equal those without a cache, computed token by token."""
    model = models[architecture]
    widths: list[int] = []
    direction = 4 * torch.linspace(-1, 1, model.d_model)

    def shift(x: Tensor, hook: Any) -> Tensor:
        widths.append(x.shape[1])
        return x + direction

    with model.intervene({1: shift}):
        text = model.generate("the cat", max_new_tokens=6, do_sample=False)
        cached = widths.copy()
        [ids] = model.encode(["the cat"])
        start = len(ids)
        for _ in range(6):
            ids = [*ids, int(model.logits(torch.tensor([ids]))[0, -1].argmax())]
            if ids[-1] == model.tokenizer.eos_token_id:
                break
    assert text == model.tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert cached == [start] + [1] * (len(cached) - 1)
    assert len(cached) == len(ids) - start > 1
    assert model.generate("the cat", max_new_tokens=6, do_sample=False) != text


# ----------------------------------------------------------------------------------------- identity


def test_the_same_weights_are_the_same_model_and_other_weights_another(load: Any) -> None:
    first = load(seed=3).identity
    first.refuse_other(load(seed=3).identity, "the copy")
    with pytest.raises(
        MismatchError,
        match=r"the twin is 'LlamaForCausalLM' .*config_hash.*expected"
        r" 'LlamaForCausalLM'.*load that model",
    ):
        first.refuse_other(load(seed=4).identity, "the twin")


def test_a_model_that_differs_in_one_matrix_in_the_middle_is_another(
    load: Any, build_hf: Any, tokenizer: Any
) -> None:
    """A merged LoRA leaves embedding and final norm unchanged."""
    tuned = build_hf("llama", seed=3)
    with torch.no_grad():
        tuned.model.layers[1].self_attn.q_proj.weight.mul_(1.1)
    assert (
        HookedModel.load(tuned, tokenizer=tokenizer).identity.config_hash
        != load(seed=3).identity.config_hash
    )


def test_a_model_stays_itself_in_another_dtype(model_folder: Any) -> None:
    full, half = HookedModel.load(model_folder), HookedModel.load(model_folder, dtype="bfloat16")
    full.identity.refuse_other(half.identity, "the same in bf16")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("basis", "centred"),
        ("d_model", 8),
        ("n_layers", 2),
        ("tokenizer_hash", "0"),
        ("prepend_bos", False),
    ],
)
def test_every_field_that_makes_a_model_another_is_refused_by_name(
    model: HookedModel, field: str, value: Any
) -> None:
    with pytest.raises(
        MismatchError,
        match=f"the target model is .* with {field} {value!r}; expected .* with {field} ",
    ):
        model.identity.refuse_other(replace(model.identity, **{field: value}), "the target model")


def test_the_tokenizer_hash_tells_a_few_merges_apart(train_tokenizer: Any) -> None:
    whole = train_tokenizer()
    assert tokenizer_hash(with_fewer_merges(whole, 0.97)) != tokenizer_hash(whole)


def test_the_tokenizer_hash_tells_vocabularies_apart_and_ignores_bos(train_tokenizer: Any) -> None:
    assert tokenizer_hash(train_tokenizer()) == tokenizer_hash(train_tokenizer(bos=False))
    assert tokenizer_hash(train_tokenizer()) != tokenizer_hash(train_tokenizer(vocabulary=320))


def test_a_token_without_an_embedding_is_named(build_hf: Any, train_tokenizer: Any) -> None:
    grown = train_tokenizer()
    grown.add_tokens(["<extra>"])
    model = HookedModel.load(build_hf("llama"), tokenizer=grown)
    assert model.loss("the cat sat on the tree") > 0
    with pytest.raises(
        MismatchError,
        match=r"token 340 \('<extra>'\), but .* embeds 340 rows; load the tokenizer that",
    ):
        model.loss("the cat <extra> sat")


# ---------------------------------------------------------------------------------- unusual texts


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "texts",
    [
        pd.DataFrame({"prompt": ["the cat"]}),
        {"text": ["the cat"]},
        {"the cat", "a dog"},
        Path(__file__),
        io.StringIO("the cat\na dog\n"),
    ],
)
def test_a_table_a_dict_a_set_and_a_file_are_no_texts(model: HookedModel, texts: Any) -> None:
    for run in (model.encode, model.loss, model.generate):
        with pytest.raises(TypeError, match="expected a list or one column"):
            run(texts)
    with pytest.raises(TypeError, match="positive is a"):
        ContrastSet(texts, ["a", "b"])


def test_a_lone_surrogate_and_ids_that_are_not_embedded_are_named(model: HookedModel) -> None:
    with pytest.raises(ValueError, match="text 1 has a lone surrogate"):
        model.encode(["the cat", "a \ud83d dog"])
    with pytest.raises(MismatchError, match=f"embeds {model.d_vocab} rows"):
        model.logits(torch.tensor([[1, model.d_vocab]]))
    with pytest.raises(ValueError, match="have 65 positions"):
        model.capture(torch.ones(1, 65, dtype=torch.long), 1)


def test_a_prefix_is_found_by_a_text_of_known_tokens(build_hf: Any) -> None:
    bare = Tokenizer(
        WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "кот": 3, "сад": 4}, unk_token="[UNK]")
    )
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    bare.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    model = HookedModel.load(build_hf("llama"), tokenizer=tokenizer)
    assert model.prefix == [1]
    assert model.encode("кот сад") == [[1, 3, 4]]


def test_new_text_ends_where_the_context_does_and_where_the_model_ends_it(
    model: HookedModel, load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "the cat sat in the garden " * 4
    [ids] = model.encode(prompt)
    text = model.generate(prompt, do_sample=False, max_new_tokens=60)
    assert "their continuations end there" in caplog.text
    whole = torch.tensor([ids])
    while whole.shape[1] < model.context_length:
        following = model.engine.model(whole).logits[:, -1].argmax(-1, keepdim=True)
        whole = torch.cat([whole, following], 1)
        if int(following) == model.tokenizer.eos_token_id:
            break
    assert prompt + text == model.tokenizer.decode(whole[0], skip_special_tokens=True)
    # A batch of prompts is padded behind a text that ended; the padding is no text.
    other = load()
    prompts = ["the cat", "a dog is"]
    by_length: dict[int, list[str]] = {}
    for one in [*prompts, "the boy", "the old", "a girl", "the sad"]:
        by_length.setdefault(len(other.encode(one)[0]), []).append(one)
    batch = max(by_length.values(), key=len)
    for end in range(0, 300, 7):
        other.engine.model.generation_config.eos_token_id = end
        options = {"do_sample": False, "max_new_tokens": 12}
        alone = [other.generate(one, **options) for one in batch]
        assert other.generate(batch, **options) == alone


def test_logits_of_plus_infinity_are_refused_and_minus_infinity_is_not(load: Any) -> None:
    model = load()
    head = model.engine.model.lm_head
    head.register_forward_hook(
        lambda _m, _i, out: out.index_fill(-1, torch.tensor([3]), -torch.inf)
    )
    assert np.isfinite(model.loss(["the cat sat"]))
    head.register_forward_hook(lambda _m, _i, out: out.index_fill(-1, torch.tensor([5]), torch.inf))
    for run in (model.loss, model.logits, model.generate):
        with pytest.raises(NonFiniteError, match="NaN or infinite"):
            run(["the cat sat", "a dog"])


def test_a_generation_config_may_be_a_dict_and_asks_for_one_text(model: HookedModel) -> None:
    plain = model.generate("the cat", do_sample=False, max_new_tokens=6)
    config = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    assert model.generate("the cat", generation_config=config) == plain
    with pytest.raises(ValueError, match="num_return_sequences=2"):
        model.generate("the cat", generation_config={"do_sample": True, "num_return_sequences": 2})
