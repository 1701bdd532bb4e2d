"""Tests of copies that share a vocabulary, against `copy.deepcopy`."""

import copy
import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lrt_lens.bundled import DEMO_FOLDER
from lrt_lens.data import token_boundaries
from lrt_lens.models._tokenizer_copy import tokenizer_copy

TEXTS = ["The cat  sat.\n", "naïve 🙂 <|x|> café", " <|y|>lead", "<|endoftext|>"]


def with_added(tokenizer: Any) -> Any:
    """Return a tokenizer with added tokens that are plain, stripped and special."""
    tokenizer.add_tokens([AddedToken("<|x|>", lstrip=True), AddedToken("caf", single_word=True)])
    tokenizer.add_special_tokens({"pad_token": "<|y|>"})
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def with_gap() -> Any:
    """Return a tokenizer whose file gives an added token an id behind a gap."""
    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    content = json.loads(made.to_str())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [{"id": 9, "content": "<far>", "special": True, **flags}]
    backend = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@pytest.mark.parametrize(
    "make",
    [
        lambda: AutoTokenizer.from_pretrained(DEMO_FOLDER / "small"),
        lambda: with_added(AutoTokenizer.from_pretrained(DEMO_FOLDER / "small")),
        with_gap,
    ],
    ids=["bundled", "added tokens", "gap in the ids"],
)
def test_a_copy_reads_as_a_deep_copy(make: Any) -> None:
    tokenizer = make()
    ours, theirs = tokenizer_copy(tokenizer), copy.deepcopy(tokenizer)
    assert ours.backend_tokenizer is not tokenizer.backend_tokenizer
    for split in (True, False):
        options = {"split_special_tokens": split, "return_offsets_mapping": True}
        assert dict(ours(TEXTS, **options)) == dict(theirs(TEXTS, **options))
    assert ours.get_vocab() == theirs.get_vocab()
    assert json.loads(ours.backend_tokenizer.to_str()) == json.loads(
        theirs.backend_tokenizer.to_str()
    )


def test_changing_a_copy_leaves_the_original() -> None:
    tokenizer = with_added(AutoTokenizer.from_pretrained(DEMO_FOLDER / "small"))
    before = tokenizer.backend_tokenizer.to_str()
    copied = tokenizer_copy(tokenizer)
    copied.add_tokens(["<|z|>"])
    copied.backend_tokenizer.post_processor = None
    copied.init_kwargs["changed"] = True
    assert tokenizer.backend_tokenizer.to_str() == before
    assert "changed" not in tokenizer.init_kwargs
    assert len(copied) == len(tokenizer) + 1
    # Untrimmed boundaries are read from such a copy.
    assert token_boundaries(tokenizer, "a  b").ends.max() == 4
    assert tokenizer.backend_tokenizer.to_str() == before


def test_a_tokenizer_without_a_backend_is_copied_whole() -> None:
    class Slow:
        def __init__(self) -> None:
            self.settings = {"left": True}

    slow = Slow()
    copied = tokenizer_copy(slow)
    copied.settings["left"] = False
    assert slow.settings["left"]
