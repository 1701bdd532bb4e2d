"""Tests of pairs: both models read one text, in the same tokens or in aligned ones."""

from pathlib import Path
from typing import Any

import pytest

from lrt_lens.bundled import demo_pair
from lrt_lens.errors import MismatchError
from lrt_lens.models import HookedModel, ModelPair


def test_a_pair_loads_from_whatever_its_models_are(
    model_folder: Path, build_hf: Any, load: Any
) -> None:
    pair = ModelPair.load(model_folder, load("llama", d=24), dtype="float32")
    assert (pair.source.d_model, pair.target.d_model) == (16, 24)
    assert pair.source.name == "tiny-llama"
    assert "tiny-llama" in repr(pair)
    assert "tiny-llama" in pair._repr_html_()


def test_each_model_has_its_own_revision(model_folder: Path) -> None:
    pair = ModelPair.load(
        model_folder, model_folder, source_revision="step1", target_revision="step2"
    )
    assert (pair.source.revision, pair.target.revision) == ("step1", "step2")


def test_two_tokenizers_are_aligned_and_what_compares_tokens_says_why_it_cannot(
    load: Any, train_tokenizer: Any
) -> None:
    two = ModelPair(
        load(layers=1), load("gpt2", layers=1, tokenizer=train_tokenizer(bos=False, vocabulary=300))
    )
    assert two.aligned
    assert (two.source.prepend_bos, two.target.prepend_bos) == (True, False)
    assert not ModelPair(two.source, two.source).aligned
    ModelPair(two.source, two.source).refuse_two_tokenizers("this", "do that")
    with pytest.raises(
        MismatchError,
        match=r"this compares models token by token, but 'Llama.* and 'GPT2.* have different"
        r" tokenizers .*300 tokens\); do that",
    ):
        two.refuse_two_tokenizers("this", "do that")


def test_a_tokenizer_that_is_not_the_models_is_refused(build_hf: Any, train_tokenizer: Any) -> None:
    with pytest.raises(MismatchError, match=r"360 tokens.*340 rows.*the model was trained with"):
        HookedModel.load(build_hf("llama"), tokenizer=train_tokenizer(vocabulary=360))


def test_the_same_vocabulary_in_another_template_pairs_once_bos_is_decided(
    load: Any, train_tokenizer: Any
) -> None:
    plain = train_tokenizer(bos=False)
    with pytest.raises(
        MismatchError,
        match=r"has prepend_bos=True and .* False; load the pair with prepend_bos=True or"
        r" prepend_bos=False",
    ):
        ModelPair(load(layers=1), load(layers=1, tokenizer=plain))
    assert ModelPair(
        load(layers=1), load(layers=1, tokenizer=plain, prepend_bos=True)
    ).target.prepend_bos


def test_reversing_swaps_the_roles(pair: ModelPair) -> None:
    assert (pair.reversed().source, pair.reversed().target) == (pair.target, pair.source)


def test_a_member_that_the_bundled_family_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(ValueError, match=r"'huge' is not in the bundled family; it has \["):
        demo_pair("huge")
