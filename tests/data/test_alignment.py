"""Tests of alignment against a naive oracle.

The oracle tokenizes or decodes every prefix of a text again and compares the characters.
"""

import logging
import random
import unicodedata
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from lrt_lens.bundled import DEMO_FOLDER
from lrt_lens.data import (
    Aligner,
    Alignment,
    BlockPlan,
    align,
    aligned_share,
    cut_windows,
    token_boundaries,
)
from lrt_lens.data._aligned_windows import cut_aligned_windows
from lrt_lens.data._alignment import refuse_unaligned
from lrt_lens.data._boundaries import NO_BOUNDARY, OffsetReader, PrefixReader, boundary_reader
from lrt_lens.errors import MismatchError

SENTENCES = [
    "The cat sat on the mat, and it was happy.",
    "naïve cafés in the garden 🙂 and 日本語 text",
    "Don't stop; she found 1,234 stones!",
    "The Quick brown fox\n\tjumped over the lazy dog",
    "a little girl saw a big bird and sang",
    "ﬁne ½ Ångström e\u0301clair",
]
HARD = [
    "",
    " ",
    "a",
    "  two  spaces ",
    "cr\r\nlf\ttab\n\n",
    "naïve 🙂",
    "👩‍👩‍👧‍👦 family",
    "日本語です。",
    "e\u0301clair",
    "e\u0301\u0323x",
    "zero\u200bwidth\ufeff",
    "ﬁne ½ Å",
    "İstanbul",
    "\u1112\u1161\u11ab글",
    "ｶﾞｷﾞ",
    "<s>not special</s> <|endoftext|> [CLS]",
    "\x00x",
    "\ufffd\ufffda",
    "a \u0301b",
    "\u0301a",
]
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="aA bé\u0301\u0323🙂日\u1112\u1161\u11abｶﾞﬁ\t\r\n\u200b.'İ", max_size=20),
    st.lists(
        st.sampled_from(["the", "cat", "sat", "happy", "garden", "🙂", "\n", "é"]), max_size=12
    ).map(" ".join),
)
PROPERTY = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


def _train(model: Any, trainer: Any, **parts: Any) -> Any:
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return tokenizer


def _fast(tokenizer: Tokenizer, **special: str) -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _word_piece(*, lowercase: bool) -> Any:
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    parts = {
        "normalizer": normalizers.BertNormalizer(lowercase=lowercase),
        "pre_tokenizer": pre_tokenizers.BertPreTokenizer(),
    }
    made = _train(
        models.WordPiece(unk_token="[UNK]"),
        trainer,
        **parts,
        decoder=decoders.WordPiece(cleanup=False),
    )
    return _fast(made, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def _byte_level(
    *, regex: bool = True, trim: bool = False, vocabulary: int = 320, normalizer: Any = None
) -> Any:
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    parts = {
        "pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex),
        "decoder": decoders.ByteLevel(),
    }
    if trim:
        parts["post_processor"] = processors.ByteLevel(trim_offsets=True)
    if normalizer is not None:
        parts["normalizer"] = normalizer
    return _fast(_train(models.BPE(), trainer, **parts), eos_token="<|end|>")


def _unigram(*, normalizer: Any = None) -> Any:
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    parts = {"pre_tokenizer": pre_tokenizers.Metaspace(), "decoder": decoders.Metaspace()}
    if normalizer is not None:
        parts["normalizer"] = normalizer
    return _fast(
        _train(models.Unigram(), trainer, **parts),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )


def _byte_fallback(*, prefix: str) -> Any:
    """Return a tokenizer like Llama 2's: characters outside the vocabulary become byte tokens.

    ``prefix`` is "first" or "never".
    """
    trainer = trainers.BpeTrainer(vocab_size=150, show_progress=False)
    learned = _train(
        models.BPE(), trainer, pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always")
    )
    state = {word for word in learned.get_vocab() if all(c.isascii() or c == "▁" for c in word)}
    vocabulary = {
        word: i
        for i, word in enumerate(
            ["<unk>", "<s>", *(f"<0x{b:02X}>" for b in range(256)), *sorted(state)]
        )
    }
    longer = sorted(word for word in state if len(word) == 2)
    merges = [
        (word[0], word[1]) for word in longer if word[0] in vocabulary and word[1] in vocabulary
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*steps, decoders.Strip(" ", 1, 0)] if prefix == "first" else steps
    )
    return _fast(tokenizer, unk_token="<unk>", bos_token="<s>")


MAKERS: dict[str, Callable[[], Any]] = {
    "bundled": lambda: transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER / "small"),
    "byte-level": lambda: _byte_level(vocabulary=290),
    "byte-level across spaces, trimmed": lambda: _byte_level(
        regex=False, trim=True, vocabulary=420
    ),
    "byte-level NFC": lambda: _byte_level(normalizer=normalizers.NFC(), vocabulary=400),
    "WordPiece": lambda: _word_piece(lowercase=False),
    "WordPiece lower case": lambda: _word_piece(lowercase=True),
    "Unigram": lambda: _unigram(),
    "Unigram NFKC": lambda: _unigram(
        normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    ),
    "byte fallback": lambda: _byte_fallback(prefix="first"),
    "byte fallback without prefix": lambda: _byte_fallback(prefix="never"),
}
EXACT = (
    "bundled",
    "byte-level",
    "byte-level across spaces, trimmed",
    "byte fallback",
    "byte fallback without prefix",
)
"""Tokenizers that spell every text exactly: their prefixes can be decoded and compared."""


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: make() for name, make in MAKERS.items()}


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of a prefix, with the leading space that a decoder removes."""
    if not ids:
        return ""
    bytes_of = []
    for token in tokenizer.convert_ids_to_tokens(ids):
        if token.startswith("<0x") and token.endswith(">") and len(token) == 6:
            bytes_of.append(bytes([int(token[3:5], 16)]))
        elif isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
            bytes_of.append(bytes(_BYTES[c] for c in token))
        else:
            bytes_of.append(token.replace("▁", " ").encode())
    return b"".join(bytes_of).decode("utf-8", errors="surrogateescape")


def _byte_table() -> dict[str, int]:
    """Return the printable characters that GPT-2 writes for bytes."""
    plain = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _byte_table()


def _naive_ends(tokenizer: Any, text: str, ids: list[int]) -> dict[int, int]:
    """Return boundary → last token whose prefix spells the text up to it; quadratic time."""
    whole = _decoded(tokenizer, ids)
    target = text if whole == text else " " + text  # a dummy prefix
    assert whole == target
    found = {}
    for index in range(len(ids)):
        prefix = _decoded(tokenizer, ids[: index + 1])
        end = len(prefix) - (len(target) - len(text))
        if target.startswith(prefix) and end > 0:
            found[end] = index
    return found


def _found_ends(tokenizer: Any, text: str) -> tuple[list[int], dict[int, int]]:
    tokens = token_boundaries(tokenizer, text)
    return tokens.ids.tolist(), {
        int(end): index for index, end in enumerate(tokens.ends) if end != NO_BOUNDARY
    }


# --------------------------------------------------------------------------------------- boundaries


@PROPERTY
@given(text=TEXTS, name=st.sampled_from(EXACT))
def test_boundaries_are_exactly_those_that_decoded_prefixes_spell(
    tokenizers: dict[str, Any], text: str, name: str
) -> None:
    ids, found = _found_ends(tokenizers[name], text)
    if "\u2581" not in text:  # Metaspace's own space: two texts with one spelling
        assert found == _naive_ends(tokenizers[name], text, ids)


@pytest.mark.parametrize("text", HARD)
@pytest.mark.parametrize("name", EXACT)
def test_hard_texts_have_exactly_the_boundaries_that_decoded_prefixes_spell(
    tokenizers: dict[str, Any], text: str, name: str
) -> None:
    ids, found = _found_ends(tokenizers[name], text)
    assert found == _naive_ends(tokenizers[name], text, ids)


@PROPERTY
@given(text=TEXTS, name=st.sampled_from(list(MAKERS)))
def test_ends_increase_and_ids_are_the_tokenizers_own(
    tokenizers: dict[str, Any], text: str, name: str
) -> None:
    tokens = token_boundaries(tokenizers[name], text)
    closed = tokens.ends[tokens.ends != NO_BOUNDARY]
    assert (np.diff(closed) > 0).all()
    assert ((closed > 0) & (closed <= len(text))).all()
    plain = tokenizers[name](text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokens.ids.tolist() == plain


@PROPERTY
@given(text=TEXTS)
def test_under_nfc_each_boundary_normalises_apart(tokenizers: dict[str, Any], text: str) -> None:
    tokenizer = tokenizers["byte-level NFC"]
    ids, found = _found_ends(tokenizer, text)
    for end, index in found.items():
        assert _decoded(tokenizer, ids[: index + 1]) == unicodedata.normalize("NFC", text[:end])


def test_a_composed_character_ends_behind_its_mark(tokenizers: dict[str, Any]) -> None:
    _, found = _found_ends(tokenizers["byte-level NFC"], "e\u0301x")
    assert sorted(found) == [2, 3]


def test_only_the_last_byte_token_of_an_emoji_closes_its_boundary(
    tokenizers: dict[str, Any],
) -> None:
    tokens = token_boundaries(tokenizers["byte fallback"], "🙂")
    assert tokens.ends.tolist() == [NO_BOUNDARY] * (len(tokens.ids) - 1) + [1]


def test_a_token_across_two_characters_leaves_the_first_unclosed() -> None:
    halves = [("æ", "Ĺ"), ("¥", "æ")]  # 日本 is E6 97 A5 E6 9C AC: cut E6 97 | A5 E6 | 9C | AC
    vocabulary = {c: i for i, c in enumerate([*_BYTES, *map("".join, halves)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=halves))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokens = token_boundaries(_fast(tokenizer), "日本")
    assert tokens.ends.tolist() == [NO_BOUNDARY, NO_BOUNDARY, NO_BOUNDARY, 2]


def test_lower_casing_maps_back_to_the_original_text(tokenizers: dict[str, Any]) -> None:
    _, found = _found_ends(tokenizers["WordPiece lower case"], "The CAT sat")
    assert {3, 7, 11} <= set(found)


def test_special_tokens_in_a_text_are_text(tokenizers: dict[str, Any]) -> None:
    for name, tokenizer in tokenizers.items():
        if "Unigram" in name:
            continue  # "<s>" is an ordinary piece of this model
        for special in tokenizer.all_special_tokens:
            ids = token_boundaries(tokenizer, f"a {special} b").ids
            assert not set(ids.tolist()) & (
                set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
            )


# ----------------------------------------------------------------------------------------- decoding


class _Slow:
    """Tokenizer without offsets, like those written in Python."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": self._tokenizer(texts, **options)["input_ids"]}

    def decode(self, ids: list[int], **options: Any) -> str:
        return self._tokenizer.decode(ids, **options)

    def get_vocab(self) -> dict[str, int]:
        return self._tokenizer.get_vocab()


@PROPERTY
@given(text=TEXTS, name=st.sampled_from(["bundled", "byte-level", "byte fallback without prefix"]))
def test_decoding_prefixes_finds_what_offsets_find(
    tokenizers: dict[str, Any], text: str, name: str
) -> None:
    by_offsets, by_decoding = (
        token_boundaries(tokenizers[name], text),
        PrefixReader(_Slow(tokenizers[name])).read([text])[0],
    )
    assert by_decoding.ids.tolist() == by_offsets.ids.tolist()
    if "\ufffd" not in text and "\u2581" not in text:  # half a character decodes to the first
        assert by_decoding.ends.tolist() == by_offsets.ends.tolist()


def test_a_tokenizer_without_offsets_is_read_by_decoding(tokenizers: dict[str, Any]) -> None:
    for name in ("bundled", "byte fallback", "WordPiece lower case"):
        slow = _Slow(tokenizers[name])
        assert isinstance(boundary_reader(slow), PrefixReader)
        text = "The cat sat on the mat." if name != "bundled" else "naïve 🙂 and 日本"
        assert (
            token_boundaries(slow, text).ends.tolist()
            == token_boundaries(tokenizers[name], text).ends.tolist()
        )
    assert isinstance(boundary_reader(tokenizers["bundled"]), OffsetReader)


def test_half_a_character_that_a_decoder_drops_closes_nothing(tokenizers: dict[str, Any]) -> None:
    byte_tokens = transformers.ByT5Tokenizer()  # decodes half a character to nothing, not to U+FFFD
    text = "naïve 🙂 日本"
    after = {len(text[:end].encode()) - 1: end for end in range(1, len(text) + 1)}
    found = token_boundaries(byte_tokens, text)
    assert found.ends.tolist() == [
        after.get(index, NO_BOUNDARY) for index in range(len(text.encode()))
    ]
    assert align(text, byte_tokens, tokenizers["bundled"]).n_pairs == len(
        [end for end in token_boundaries(tokenizers["bundled"], text).ends if end != NO_BOUNDARY]
    )


def test_a_tokenizer_that_gives_neither_offsets_nor_text_is_refused(
    tokenizers: dict[str, Any],
) -> None:
    mute = _Slow(tokenizers["bundled"])
    mute.decode = None  # pyright: ignore[reportAttributeAccessIssue] (a tokenizer that cannot)
    with pytest.raises(
        ValueError, match="_Slow gives neither offsets .* nor text back .*fast version"
    ):
        token_boundaries(mute, "text")


def test_a_tokenizer_whose_text_is_another_is_refused_with_what_it_spells(
    tokenizers: dict[str, Any],
) -> None:
    liar = _Slow(tokenizers["bundled"])
    liar.decode = lambda ids, **_: "x" * len(ids)
    with pytest.raises(ValueError, match="spells 'The cat.* as 'xxx"):
        token_boundaries(liar, "text")


# ---------------------------------------------------------------------------------------- alignment


@PROPERTY
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=4),
    names=st.tuples(*[st.sampled_from(list(MAKERS))] * 2),
)
def test_pairs_are_all_shared_boundaries_and_nothing_else(
    tokenizers: dict[str, Any], texts: list[str], names: tuple[str, str]
) -> None:
    first, second = (tokenizers[name] for name in names)
    for text, found in zip(texts, Aligner(first, second).align(texts), strict=True):
        pairs = list(
            zip(found.first_positions.tolist(), found.second_positions.tolist(), strict=True)
        )
        if first is second:
            assert pairs == [(i, i) for i in range(len(found.first_ids))]
            continue
        (_, ends_first), (_, ends_second) = _found_ends(first, text), _found_ends(second, text)
        assert pairs == [
            (ends_first[end], ends_second[end])
            for end in sorted(ends_first.keys() & ends_second.keys())
        ]
        assert all(
            (np.diff(positions) > 0).all()
            for positions in (found.first_positions, found.second_positions)
        )


@PROPERTY
@given(text=TEXTS, names=st.tuples(*[st.sampled_from(EXACT)] * 2))
def test_both_prefixes_decode_to_the_same_text(
    tokenizers: dict[str, Any], text: str, names: tuple[str, str]
) -> None:
    first, second = (tokenizers[name] for name in names)
    found = Aligner(first, second).align([text])[0]
    for i, j in zip(found.first_positions, found.second_positions, strict=True):
        prefixes = [
            _decoded(t, ids[: p + 1].tolist())
            for t, ids, p in ((first, found.first_ids, i), (second, found.second_ids, j))
        ]
        spelled = [
            p.removeprefix(" ") if not text.startswith(" ") else " " + p.lstrip(" ")
            for p in prefixes
        ]
        if first is not second and "\u2581" not in text:
            assert spelled[0] == spelled[1]


def test_one_vocabulary_gives_identical_positions_without_asking_for_offsets(
    tokenizers: dict[str, Any],
) -> None:
    bundled = tokenizers["bundled"]
    other = _Slow(transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER / "large"))
    other.decode = None  # pyright: ignore[reportAttributeAccessIssue] (never called where the vocabulary is the same)
    aligner = Aligner(bundled, other)
    found = aligner.align(["naïve 🙂", ""])
    assert aligner.same
    assert [a.n_pairs for a in found] == [len(a.first_ids) for a in found]
    assert found[0].n_pairs > found[1].n_pairs == 0
    assert np.array_equal(found[0].first_positions, found[0].second_positions)


def test_batches_and_single_texts_agree_and_repeat(tokenizers: dict[str, Any]) -> None:
    first, second = tokenizers["bundled"], tokenizers["WordPiece"]
    aligner = Aligner(first, second)
    for text, found, again in zip(HARD, aligner.align(HARD), aligner.align(HARD), strict=True):
        alone = aligner.align([text])[0]
        for other in (again, alone):
            assert np.array_equal(found.first_positions, other.first_positions)
            assert np.array_equal(found.second_positions, other.second_positions)


def test_share_is_pairs_over_tokens_both_ways(tokenizers: dict[str, Any]) -> None:
    found = align("The cat sat", tokenizers["bundled"], tokenizers["byte fallback"])
    assert found.share == (
        found.n_pairs / len(found.first_ids),
        found.n_pairs / len(found.second_ids),
    )
    assert aligned_share([found, found]) == found.share
    assert found.swapped.share == found.share[::-1]


def test_texts_in_which_nothing_aligns_are_refused(tokenizers: dict[str, Any]) -> None:
    with pytest.raises(MismatchError, match="no token at all"):
        align("", tokenizers["bundled"], tokenizers["Unigram"])
    ids, none = np.arange(3), np.arange(0)
    with pytest.raises(MismatchError, match=r"1 text\(s\) of 3 and 3 tokens"):
        refuse_unaligned([Alignment(ids, ids, none, none)])


# ------------------------------------------------------------------------------------------ windows


def _model(tokenizer: Any, *, bos: int | None) -> Any:
    from lrt_lens.models import HookedModel

    model = object.__new__(HookedModel)
    model.tokenizer = SimpleNamespace(bos_token_id=bos, all_special_ids=tokenizer.all_special_ids)
    model.prepend_bos = bos is not None
    model.codec = SimpleNamespace(
        prefix=[] if bos is None else [bos],
        special_ids=frozenset(tokenizer.all_special_ids),
        tokenizer_hash=str(tokenizer),
    )
    return model


@pytest.mark.parametrize("context", [8, 17, 64])
def test_windows_hold_the_same_text_and_fit_both_contexts(
    tokenizers: dict[str, Any], context: int
) -> None:
    rng = random.Random(0)
    text = " ".join(rng.choices(" ".join(SENTENCES[:1] + SENTENCES[2:4]).split(), k=120))
    first, second = tokenizers["bundled"], tokenizers["byte fallback without prefix"]
    found = align(text, first, second)
    source, target = _model(first, bos=0), _model(second, bos=None)
    windows = cut_aligned_windows(
        found, 7, source, target, BlockPlan(context_length=context, skip_first=2)
    )
    assert windows
    for one, other in windows:
        assert max(len(one.ids), len(other.ids)) <= context
        assert one.ids[0] == 0
        assert _decoded(first, one.ids[1:]) == _decoded(second, other.ids)
        assert len(one.rows) == len(other.rows) >= 4
        assert min(one.rows.min(), other.rows.min()) >= 2
        for i, j in zip(one.rows, other.rows, strict=True):
            assert _decoded(first, one.ids[1 : i + 1]) == _decoded(second, other.ids[: j + 1])


def test_windows_of_one_tokenizer_are_those_of_the_ordinary_cut(tokenizers: dict[str, Any]) -> None:
    tokenizer, text = tokenizers["bundled"], " ".join(SENTENCES)
    model, plan = _model(tokenizer, bos=0), BlockPlan(context_length=12)
    found = align(text, tokenizer, tokenizer)
    for (one, other), usual in zip(
        cut_aligned_windows(found, 1, model, model, plan),
        cut_windows(found.first_ids.tolist(), 1, model, plan),
        strict=True,
    ):
        assert one.ids == other.ids == usual.ids
        assert one.rows.tolist() == other.rows.tolist() == usual.rows.tolist()


def test_a_stretch_without_shared_boundaries_is_left_out() -> None:
    ids = np.arange(10, 40)
    positions = np.array([*range(6), *range(20, 30)])
    model = _model(SimpleNamespace(all_special_ids=[]), bos=None)
    windows = cut_aligned_windows(
        Alignment(ids, ids, positions, positions),
        1,
        model,
        model,
        BlockPlan(context_length=8, skip_first=0),
    )
    assert [w.ids for w, _ in windows] == [list(range(10, 16)), list(range(31, 39))]


def test_reading_by_decoding_is_logged(
    tokenizers: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="lrt_lens.data._boundaries"):
        boundary_reader(_Slow(tokenizers["bundled"]))
    assert "read by decoding" in caplog.text
