"""One row per text, compared with Hugging Face's hidden states and a mask written naively."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from lrt_lens.adapters.concepts import ConceptMap
from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.adapters.vectors import PreferenceText, SteeringVector
from lrt_lens.data import ChoiceItems, ContrastSet
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.models._far_norms import FarNorms
from lrt_lens.models._reading import read_activations, read_tokens, readable
from lrt_lens.moments import harvest

TEXTS = [
    "the little cat slept on the old stone house",
    "a sad queen sang in the garden",
    "the boy ran but the girl sang in the garden and it was good",
]
SHORT = "a"


def hidden_states(model: HookedModel, text: str, layer: int) -> tuple[torch.Tensor, list[int]]:
    """Return (states [position, d] after a block, positions that the mask allows), by plain HF."""
    ids = model.tokenizer(text)["input_ids"]
    with torch.no_grad():
        states = model.engine.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    special = set(model.tokenizer.all_special_ids)
    allowed = [i for i, token in enumerate(ids) if i >= 4 and token not in special]
    return states[layer + 1][0], allowed


@pytest.mark.parametrize("end", ["", "<|endoftext|>"])
def test_reads_are_those_of_plain_hidden_states(
    models: dict[str, HookedModel], architecture: str, end: str
) -> None:
    model, texts = models[architecture], [text + end for text in TEXTS]
    found = {read: read_activations(model, texts, 1, read) for read in ("last", "mean", "max")}
    for row, text in enumerate(texts):
        states, allowed = hidden_states(model, text, 1)
        expected = {
            "last": states[allowed[-1]],
            "mean": states[allowed].mean(0),
            "max": states[allowed].max(0).values,
        }
        for read, value in expected.items():
            torch.testing.assert_close(found[read][row], value, atol=1e-5, rtol=1e-4)
    for index, tokens in read_tokens(model, texts, 1):
        states, allowed = hidden_states(model, texts[index], 1)
        torch.testing.assert_close(tokens, states[allowed], atol=1e-5, rtol=1e-4)


def test_tokens_of_a_text_of_several_windows_keep_their_order(
    models: dict[str, HookedModel],
) -> None:
    model, text = models["llama"], " ".join(TEXTS * 4)
    windows = model.codec.windows([text], None, 40)[0]
    # The last window is the shortest, and windows are read the shortest first.
    assert len(windows) > 2
    assert len(windows[-1]) < len(windows[0])
    ((_, tokens),) = read_tokens(model, [text], 1, context_length=40)
    special, expected = set(model.tokenizer.all_special_ids), []
    for ids in windows:
        states = model.engine.capture(model.pad([ids]), ["blocks.1.hook_resid_post"])
        allowed = [i for i, token in enumerate(ids) if i >= 4 and token not in special]
        expected.append(states["blocks.1.hook_resid_post"][0, allowed])
    torch.testing.assert_close(tokens, torch.cat(expected), atol=1e-5, rtol=1e-4)


@pytest.fixture
def sink(build_hf: Any, train_tokenizer: Any) -> HookedModel:
    """A GPT-2 without BOS whose first position has states a thousand times as long as others."""
    hf = build_hf("gpt2")
    hf.transformer.wpe.weight.data[0] *= 1000
    return HookedModel.load(hf, tokenizer=train_tokenizer(bos=False))


@pytest.mark.parametrize("read", ["last", "mean"])
def test_a_pair_of_one_word_does_not_decide_a_vector(
    sink: HookedModel, caplog: pytest.LogCaptureFixture, read: Any
) -> None:
    long = ContrastSet(TEXTS[:2], TEXTS[1:])
    whole = ContrastSet([*TEXTS[:2], TEXTS[2]], [*TEXTS[1:], SHORT])
    native = SteeringVector.mean_difference(sink, long, at=1, read=read)
    assert not caplog.text
    vector = SteeringVector.mean_difference(sink, whole, at=1, read=read)
    torch.testing.assert_close(vector.direction, native.direction)
    assert (vector.n_dropped, native.n_dropped) == (1, 0)
    assert "1 of 6 text(s) have no unmasked token to read" in caplog.text
    assert "5 ('a'); 1 pair(s) are left out" in caplog.text
    assert vector.contrast == whole.digest
    # Learnt again, the same pair is left out again; unmasked, the sink decides.
    assert vector.relearnt(sink, whole, at=1).n_dropped == 1
    unmasked = SteeringVector.mean_difference(sink, whole, at=1, read=read, short_texts="unmasked")
    assert unmasked.n_dropped == 0
    assert abs(unmasked.cosine(native)) < 0.9
    assert "norms above 20 × the median" in caplog.text
    assert ": 5 ('a');" in caplog.text
    with pytest.raises(ValueError, match=r"5 \('a'\); give longer texts, or read them with"):
        SteeringVector.mean_difference(sink, whole, at=1, read=read, short_texts="refuse")


def test_probes_and_maps_obey_the_same_rule(sink: HookedModel, load: Any) -> None:
    texts = [*TEXTS, SHORT, *TEXTS]
    labels = [0, 1, 0, 1, 0, 1, 1]
    probe = LinearProbe.fit(sink, texts, labels, at=1, n_folds=2)
    without = LinearProbe.fit(sink, texts[:3] + texts[4:], labels[:3] + labels[4:], at=1, n_folds=2)
    torch.testing.assert_close(probe.weight, without.weight)
    assert (probe.n_dropped, without.n_dropped) == (1, 0)
    assert probe.accuracy(sink, texts, labels) == without.accuracy(
        sink, texts[:3] + texts[4:], labels[:3] + labels[4:]
    )
    with pytest.raises(ValueError, match=r"1 of 7 text\(s\) have no unmasked token.*3 \('a'\)"):
        probe.predict(sink, texts)
    unmasked = LinearProbe.fit(sink, texts, labels, at=1, n_folds=2, short_texts="unmasked")
    assert len(unmasked.predict(sink, texts)) == 7

    # A text is left out if it is too short for either of two models.
    pair = ModelPair(load("llama", prepend_bos=False), sink)
    positive, negative = TEXTS, [text + " then they ran" for text in TEXTS]
    contrast = ContrastSet([*positive, SHORT], [*negative, TEXTS[0]])
    fitted = ConceptMap.fit(pair, contrast, source_hook=1, target_hook=1, n_folds=2)
    without_it = ConceptMap.fit(
        pair, ContrastSet(positive, negative), source_hook=1, target_hook=1, n_folds=2
    )
    assert (fitted.n_dropped, without_it.n_dropped) == (1, 0)
    torch.testing.assert_close(fitted.layers[0].map.weight, without_it.layers[0].map.weight)
    assert fitted.layers[0].n == 6


def test_short_texts_are_found_before_a_model_runs(
    model: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(model.engine, "capture", fail)
    with pytest.raises(ValueError, match="nothing is left to read"):
        SteeringVector.mean_difference(model, ContrastSet(["a", "b"], ["c", "d"]), at=1)
    with pytest.raises(ValueError, match=r"position 40 is outside 2 of 3 text\(s\)"):
        read_activations(model, [TEXTS[0], TEXTS[1], "the cat " * 13], 1, 40)


def test_positions_that_are_masked_count_as_too_short(model: HookedModel) -> None:
    kept = readable([model], [*TEXTS, "the cat"], -4)
    assert kept.n_dropped == 1
    assert list(kept.index) == [0, 1, 2]
    rows = read_activations(model, TEXTS, 1, 0, short_texts="unmasked")
    first = model.capture(TEXTS, 1)
    assert isinstance(first, torch.Tensor)
    torch.testing.assert_close(rows, first[:, 0])


def test_added_special_tokens_without_a_name_are_masked(
    build_hf: Any, train_tokenizer: Any
) -> None:
    tokenizer = train_tokenizer(vocabulary=330)
    tokenizer.add_tokens([AddedToken("<|turn|>", special=True)])
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    hf = build_hf("llama")
    hf.resize_token_embeddings(len(tokenizer))
    model = HookedModel.load(hf, tokenizer=tokenizer)
    assert turn in model.special_ids
    [with_turn] = read_activations(model, [TEXTS[0] + "<|turn|>"], 1, "last")
    [without] = read_activations(model, [TEXTS[0]], 1, "last")
    torch.testing.assert_close(with_turn, without)


def test_texts_beyond_the_context_are_refused_or_cut_where_it_is_said(model: HookedModel) -> None:
    long = "the cat slept on the house " * 12
    contrast = ContrastSet([long + "good", TEXTS[0]], [long + "bad", TEXTS[1]])
    with pytest.raises(ValueError, match=r"2 of 4 text\(s\) are longer than the 64 tokens.*0, 2"):
        SteeringVector.mean_difference(model, contrast, at=1)
    vector = SteeringVector.mean_difference(model, contrast, at=1, truncation="left")
    assert vector.n_cut == 2
    cut = ContrastSet([long + "good"] * 2, [long + "bad"] * 2)
    with pytest.raises(ValueError, match="have the same states at 'blocks.1.hook_resid_post'"):
        SteeringVector.mean_difference(model, cut, at=1, truncation="right")


def test_a_vector_of_zeros_is_refused() -> None:
    with pytest.raises(ValueError, match="vector 'vector' at 'blocks.1.hook_resid_post' is zero"):
        SteeringVector(torch.zeros(16), "blocks.1.hook_resid_post")


def test_far_norms_are_counted_over_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    count, states = FarNorms(), torch.randn(100, 8, generator=generator)
    count.add("here", states)
    assert count.warnings() == []
    far = torch.cat([states, 500 * states[:3]])
    count.add("here", far)
    norms = np.linalg.norm(far.numpy(), axis=1)
    assert (norms > 20 * np.median(norms)).sum() == count.n_far["here"] == 3
    assert "3 of 203 states at 'here' have norms above 20 × the median" in count.warnings()[0]


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_continuations_are_tokenized_behind_their_prompt(
    build_hf: Any, train_tokenizer: Any, kind: str
) -> None:
    if kind == "bytes":
        tokenizer = train_tokenizer(vocabulary=340)
    else:
        # Like Llama's: a text begins with "▁", wherever it is tokenized alone.
        pieces = ["<s>", "▁", *"abcdefghijklmnopqrstuvwxyz(AB) ", "(A", "▁t", "▁th", "▁the", "he"]
        merges = [("(", "A"), ("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("h", "e")]
        bare = Tokenizer(
            models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<s>")
        )
        bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        bare.decoder = decoders.Metaspace()
        bare.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=bare, bos_token="<s>", eos_token="<s>"
        )
    model = HookedModel.load(build_hf("llama"), tokenizer=tokenizer)
    check_continuations(model)


def check_continuations(model: HookedModel) -> None:
    """Compare propensities with the difference of two whole texts' log-probabilities."""
    items = ChoiceItems(
        ["the cat is (", "the little cat (", "a cat and th", "the", "the boy"],
        ["A", "A)", "e cat", " cat", " a"],
        ["B", "B)", "at house", " boy", " cat"],
    )

    def log_p(text: str) -> float:
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            table = model.engine.model(ids).logits[0].double().log_softmax(-1)
        return float(table[:-1].gather(1, ids[0, 1:, None]).sum())

    expected = [
        log_p(prompt + positive) - log_p(prompt + negative)
        for prompt, positive, negative in zip(
            items.prompts, items.positive, items.negative, strict=True
        )
    ]
    text = PreferenceText(model, items, 1)
    np.testing.assert_allclose(text.propensity(), expected, atol=2e-5)
    spanning = 0
    for prompt, positive, negative in zip(
        items.prompts, items.positive, items.negative, strict=True
    ):
        before = model.tokenizer(prompt)["input_ids"]
        wholes = [model.tokenizer(prompt + end)["input_ids"] for end in (positive, negative)]
        spanning += any(whole[: len(before)] != before for whole in wholes)
    assert text.n_spanning == spanning > 0


def test_a_harvest_names_hook_points_with_far_states(
    build_hf: Any, tokenizer: Any, corpus: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    hf = build_hf("gpt2", layers=2)
    hf.transformer.wpe.weight.data[9] *= 1000
    far = HookedModel.load(hf, tokenizer=tokenizer)
    plain = HookedModel.load(build_hf("gpt2", layers=2), tokenizer=tokenizer)
    moments = harvest(
        ModelPair(plain, far), corpus, context_length=32, n_tokens=None, progress=False
    )
    [state] = [
        record.getMessage()
        for record in caplog.records
        if "'target blocks.0.hook_resid_post' have norms above 20 ×" in record.getMessage()
    ]
    # Position 9 is the only far one: one state per window that reaches it.
    assert 0 < int(state.split()[0]) < int(state.split()[2]) == moments.n_tokens
    assert "'source blocks" not in caplog.text
