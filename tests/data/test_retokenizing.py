"""Tests of a tokenizer with fewer merges: the same vocabulary and text, in more tokens."""

from typing import Any

import pytest

from lrt_lens.data import align, with_fewer_merges
from lrt_lens.models._identity import tokenizer_hash


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_it_spells_the_same_text_with_the_same_vocabulary_in_more_tokens(
    tokenizer: Any, corpus: list[str], keep: float
) -> None:
    finer = with_fewer_merges(tokenizer, keep)
    assert finer.get_vocab() == tokenizer.get_vocab()
    assert tokenizer_hash(finer) != tokenizer_hash(tokenizer)
    for text in corpus[:5]:
        ids, fewer = (t(text, add_special_tokens=False)["input_ids"] for t in (finer, tokenizer))
        assert len(ids) > len(fewer)
        assert finer.decode(ids) == tokenizer.decode(fewer) == text
        # Every boundary of the coarser tokenization is a boundary of the finer one.
        assert align(text, tokenizer, finer).share[0] == 1
    if keep == 0:
        assert len(ids) == len(text.encode())


def test_all_merges_are_the_tokenizer_itself(tokenizer: Any) -> None:
    assert tokenizer_hash(with_fewer_merges(tokenizer, 1.0)) == tokenizer_hash(tokenizer)


def test_what_has_no_merges_is_refused(tokenizer: Any) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    with pytest.raises(ValueError, match=r"keep is 2.0; expected a share of merges from 0 to 1"):
        with_fewer_merges(tokenizer, 2.0)
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?"))
    )
    with pytest.raises(
        ValueError, match=r"holds WordLevel; expected a fast tokenizer with a BPE model"
    ):
        with_fewer_merges(words)
    with pytest.raises(ValueError, match=r"object holds a slow tokenizer"):
        with_fewer_merges(object())
