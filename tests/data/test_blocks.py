"""Tests of windows, masks, folds and shuffled pairs."""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lrt_lens.data import (
    N_FOLDS,
    N_PARTS,
    Block,
    BlockPlan,
    cut_windows,
    document_key,
    exact_key,
    iterate_blocks,
    part_of,
)
from lrt_lens.data._blocks import Corpus, WindowCutter
from lrt_lens.data._parts import N_TEST_GROUPS, PART_NAMES
from lrt_lens.data._windows import Window, shuffled_rows
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models import HookedModel

PLAN = BlockPlan(context_length=24, block_rows=200)


@pytest.fixture(scope="module")
def blocks(corpus: list[str], model: HookedModel) -> list[Block]:
    return list(iterate_blocks(corpus, model, PLAN))


def body(window: Window, model: HookedModel) -> list[int]:
    return window.ids[1:] if model.prepend_bos else window.ids


# ------------------------------------------------------------------------------------------ windows


def test_no_window_holds_two_documents(
    blocks: list[Block], corpus: list[str], model: HookedModel
) -> None:
    ids = {document_key(text, 0): model.encode_bodies([text])[0] for text in corpus}
    windows = [window for block in blocks for window in block.windows]
    assert len(windows) > len(corpus), "some documents have several windows"
    for window in windows:
        tokens = body(window, model)
        document = ids[window.document]
        assert any(
            document[start : start + len(tokens)] == tokens for start in range(len(document))
        )


def test_the_windows_of_a_document_are_the_document(corpus: list[str], model: HookedModel) -> None:
    text = max(corpus, key=len)
    [ids] = model.encode_bodies([text])
    windows = cut_windows(ids, 1, model, PLAN)
    assert all(len(window.ids) <= PLAN.context_length for window in windows)
    assert all(window.ids[0] == model.tokenizer.bos_token_id for window in windows)
    joined = [token for window in windows for token in body(window, model)]
    # A last window with fewer than four rows is left out.
    assert joined == ids[: len(joined)]
    assert len(ids) - len(joined) < PLAN.skip_first + 4


def test_without_bos_a_window_starts_with_the_text(load: Any, corpus: list[str]) -> None:
    model = load(layers=1, prepend_bos=False)
    [ids] = model.encode_bodies(corpus[:1])
    assert cut_windows(ids, 1, model, PLAN)[0].ids == ids[:24]


def test_the_first_positions_and_special_tokens_are_masked(model: HookedModel) -> None:
    end = model.tokenizer.eos_token_id
    [window] = cut_windows([9, 9, 9, 9, 9, end, 9, 9, 9, end], 1, model, PLAN)
    assert window.ids == [end, 9, 9, 9, 9, 9, end, 9, 9, 9, end]
    assert window.rows.tolist() == [4, 5, 7, 8, 9]


def test_masking_none_still_masks_bos(model: HookedModel) -> None:
    [window] = cut_windows([9] * 5, 1, model, BlockPlan(skip_first=0))
    assert window.rows.tolist() == [1, 2, 3, 4, 5]


def test_a_window_that_offers_next_to_nothing_is_left_out(model: HookedModel) -> None:
    assert cut_windows([9] * 6, 1, model, PLAN) == []
    assert len(cut_windows([9] * 7, 1, model, PLAN)) == 1


# -------------------------------------------------------------------------------------------- folds


def test_a_sixth_of_the_documents_test_in_eight_groups_and_the_others_fit() -> None:
    counts = Counter(part_of(document_key(str(i), 0)) for i in range(24_000))
    assert set(counts) == set(range(N_PARTS))
    assert len(PART_NAMES) == N_PARTS
    assert all(abs(counts[k] - 4000) < 300 for k in range(N_FOLDS))
    assert all(abs(counts[N_FOLDS + g] - 500) < 120 for g in range(N_TEST_GROUPS))


def test_the_part_of_a_document_depends_on_its_text_and_the_seed_alone(
    corpus: list[str], model: HookedModel, blocks: list[Block]
) -> None:
    def part_by_document(documents: list[str], plan: BlockPlan) -> dict[int, int]:
        return {
            window.document: block.part
            for block in iterate_blocks(documents, model, plan)
            for window in block.windows
        }

    forwards = part_by_document(corpus, PLAN)
    assert forwards == part_by_document(corpus[::-1], BlockPlan(context_length=40, block_rows=90))
    assert forwards == {document_key(text, 0): part_of(document_key(text, 0)) for text in corpus}
    assert set(forwards.values()) >= set(range(N_FOLDS))
    other_seed = part_by_document(corpus, BlockPlan(seed=1))
    assert other_seed == {document_key(text, 1): part_of(document_key(text, 1)) for text in corpus}


def test_a_block_holds_one_part_and_about_the_rows_it_should(blocks: list[Block]) -> None:
    for block in blocks:
        assert {part_of(window.document) for window in block.windows} == {block.part}
        assert (
            block.n_rows
            == sum(len(window.rows) for window in block.windows)
            < PLAN.block_rows + PLAN.context_length
        )
    full = [block.part for block in blocks if block.n_rows >= PLAN.block_rows]
    assert len(full) > N_FOLDS


def test_all_that_was_read_is_counted_in_any_order(corpus: list[str], model: HookedModel) -> None:
    def count(documents: list[str]) -> tuple[Corpus, int]:
        counted = Corpus()
        return counted, sum(
            block.n_rows for block in iterate_blocks(documents, model, PLAN, counted)
        )

    forwards, rows = count(corpus)
    backwards, _ = count(corpus[::-1])
    assert (forwards.n_documents, forwards.n_skipped, forwards.n_rows) == (150, 0, rows)
    assert backwards == forwards
    assert count([*corpus[:-1], corpus[-1] + " and more"])[0].digest != forwards.digest


def test_blocks_are_numbered_and_count_each_document_where_it_begins(
    corpus: list[str], model: HookedModel, blocks: list[Block]
) -> None:
    assert [block.index for block in blocks] == list(range(len(blocks)))
    assert sum(block.n_documents for block in blocks) == len(corpus)
    hashes = {document_key(text, 0): exact_key(text, 0) for text in corpus}
    assert sum(block.digest for block in blocks) % 2**64 == sum(hashes.values()) % 2**64
    seen: set[int] = set()
    for block in blocks:
        begun = {window.document for window in block.windows} - seen
        assert (block.n_documents, block.digest) == (
            len(begun),
            sum(hashes[key] for key in begun) % 2**64,
        )
        seen |= begun
    assert any(
        block.n_documents < len({window.document for window in block.windows}) for block in blocks
    ), "some documents go on in another block"


def test_what_a_block_holds_depends_on_the_documents_before_it_alone(
    corpus: list[str], model: HookedModel, blocks: list[Block]
) -> None:
    with_more = list(iterate_blocks([*corpus, *(f"{text} and" for text in corpus)], model, PLAN))
    full = [block for block in blocks if block.n_rows >= PLAN.block_rows]
    assert [block.fingerprint for block in with_more[: len(full)]] == [
        block.fingerprint for block in full
    ]


def test_a_fingerprint_tells_blocks_apart(blocks: list[Block]) -> None:
    assert len({block.fingerprint for block in blocks}) == len(blocks)
    first = blocks[0]
    window = first.windows[0]
    for changed in (
        Block(
            first.part,
            [
                Window([*window.ids[:-1], window.ids[-1] + 1], window.rows, window.document),
                *first.windows[1:],
            ],
        ),
        Block(
            first.part, [Window(window.ids, window.rows[:-1], window.document), *first.windows[1:]]
        ),
        Block(first.part, first.windows[:-1]),
        Block(first.part + 1, first.windows),
    ):
        assert changed.fingerprint != first.fingerprint
        assert 0 <= changed.fingerprint < 2**63
    assert Block(first.part, list(first.windows)).fingerprint == first.fingerprint


def test_no_further_document_is_read_once_every_fold_has_its_share(
    corpus: list[str], model: HookedModel
) -> None:
    counted, read = Corpus(), list[str]()

    def stream() -> Iterator[str]:
        for text in corpus:
            read.append(text)
            yield text

    list(iterate_blocks(stream(), model, BlockPlan(n_tokens=2000, context_length=24), counted))
    table = counted.folds.table
    # A fold ends with the window that fills its sixth.
    assert table["tokens"].between(2000 / 6, 2000 / 6 + 24).all()
    assert (table["tokens"].sum(), table["documents"].sum()) == (
        counted.n_rows,
        counted.n_documents,
    )
    assert len(read) < len(corpus)


def test_documents_too_short_are_skipped_counted_and_mentioned(
    corpus: list[str], model: HookedModel, caplog: pytest.LogCaptureFixture
) -> None:
    counted = Corpus()
    with caplog.at_level(logging.WARNING):
        list(iterate_blocks([*corpus, "", "cat"], model, PLAN, counted))
    assert (counted.n_documents, counted.n_skipped) == (150, 2)
    assert "2 of 152 documents were too short to have an unmasked token" in caplog.text


def test_too_few_documents_name_the_folds_that_stay_empty(
    corpus: list[str], model: HookedModel
) -> None:
    by_part = {part_of(document_key(text, 0)): text for text in corpus}
    without_two = [text for part, text in by_part.items() if part not in (1, 3)]
    with pytest.raises(
        TooFewDocumentsError,
        match=r"fold\(s\) fold1, fold3 hold no document: \d+ document.*at least 100 documents",
    ):
        list(iterate_blocks(without_two, model, PLAN))
    with pytest.raises(TooFewDocumentsError, match=r"fold\(s\) test hold no document: 5 document"):
        list(
            iterate_blocks([text for part, text in by_part.items() if part < N_FOLDS], model, PLAN)
        )


def test_a_fold_that_masking_empties_is_named_with_the_reason(
    corpus: list[str], model: HookedModel
) -> None:
    end = model.tokenizer.eos_token
    masked = [
        text if part_of(document_key(text, 0)) != 2 else text[:8] + end * 40 for text in corpus
    ]
    # The texts have changed, and with them some folds: those documents are left out.
    documents = [
        text
        for text, before in zip(masked, corpus, strict=True)
        if text == before or part_of(document_key(text, 0)) == 2
    ]
    n_masked = sum(text.endswith(end) for text in documents)
    assert n_masked
    with pytest.raises(
        TooFewDocumentsError,
        match=rf"fold\(s\) fold2 hold no document: .* \({n_masked} more have no token after"
        rf" the first 4 and the special ones\)",
    ):
        list(iterate_blocks(documents, model, PLAN))


def test_a_single_document_is_too_few(model: HookedModel, corpus: list[str]) -> None:
    with pytest.raises(
        TooFewDocumentsError, match=r"hold no document: 1 document\(s\) for 5 folds and a test fold"
    ):
        list(iterate_blocks(" ".join(corpus), model, PLAN))


@pytest.mark.parametrize("documents", [[], [""], ["cat", "dog"]])
def test_documents_that_offer_nothing_are_refused(model: HookedModel, documents: list[str]) -> None:
    with pytest.raises(
        TooFewDocumentsError,
        match=rf"no document has an unmasked token: {len(documents)} were empty or too short.*give"
        rf" longer texts",
    ):
        list(iterate_blocks(documents, model, PLAN))


# ------------------------------------------------------------------------------------------ batches


def test_batches_hold_every_window_once_and_no_more_padded_tokens_than_asked(
    blocks: list[Block],
) -> None:
    block = max(blocks, key=lambda b: len(b.windows))
    batches = list(block.batches(100))
    assert Counter(id(w) for batch in batches for w in batch) == Counter(map(id, block.windows))
    assert all(len(batch) * max(len(w.ids) for w in batch) <= 100 for batch in batches)
    assert len(batches) > 2
    assert [len(batch) for batch in block.batches(1)] == [1] * len(block.windows)


# ----------------------------------------------------------------------------------- shuffled pairs


def rows_of(order: list[Window]) -> tuple[np.ndarray, np.ndarray]:
    documents = np.concatenate([[window.document] * len(window.rows) for window in order])
    return documents, np.concatenate([window.rows for window in order])


def largest_share(documents: np.ndarray) -> float:
    return np.unique(documents, return_counts=True)[1].max() / len(documents)


def test_shuffled_rows_are_a_permutation_that_pairs_other_documents(blocks: list[Block]) -> None:
    shares = []
    for block in blocks:
        order = [window for batch in block.batches(100) for window in batch]
        pairing = shuffled_rows(block, order, 0)
        documents, _ = rows_of(order)
        assert sorted(pairing.tolist()) == list(range(block.n_rows))
        shares.append(largest_share(documents))
        if shares[-1] <= 0.5:
            assert (documents[pairing] != documents).all()
    assert sum(share <= 0.5 for share in shares) > 5


def test_partners_stand_at_the_same_position_wherever_every_position_has_some() -> None:
    lengths = [20, 20, 20, 12, 12]
    order = [
        Window([0] * length, np.arange(4, length), document)
        for document, length in enumerate(lengths)
    ]
    pairing = shuffled_rows(Block(0, order, 0), order, 0)
    documents, positions = rows_of(order)
    assert (positions[pairing] == positions).all()
    assert (documents[pairing] != documents).all()


def test_rows_without_a_partner_at_their_position_meet_another_document_elsewhere() -> None:
    order = [
        Window([0] * 6, np.array([4, 5]), 1),
        Window([0] * 8, np.array([6, 7]), 2),
        Window([0] * 10, np.array([8, 9]), 3),
    ]
    pairing = shuffled_rows(Block(0, order, 6), order, 0)
    documents, _ = rows_of(order)
    assert sorted(pairing.tolist()) == [0, 1, 2, 3, 4, 5]
    assert (documents[pairing] != documents).all()


def test_rows_of_one_long_document_take_partners_from_the_others() -> None:
    lengths = [9, 9, 9, 16]
    order = [
        Window([0] * length, np.arange(4, length), document)
        for document, length in enumerate(lengths)
    ]
    pairing = shuffled_rows(Block(0, order, 0), order, 0)
    documents, positions = rows_of(order)
    assert sorted(pairing.tolist()) == list(range(len(documents)))
    assert (documents[pairing] != documents).all()
    assert (positions[pairing] == positions)[positions < 5].all(), "and no more of them than needed"


def test_a_block_of_one_document_is_permuted_within_itself() -> None:
    order = [Window([0] * 12, np.arange(4, 12), 1)]
    pairing = shuffled_rows(Block(0, order, 8), order, 0)
    assert sorted(pairing.tolist()) == list(range(8))
    assert (pairing != np.arange(8)).all()


def test_shuffled_rows_are_decided_by_the_seed(blocks: list[Block]) -> None:
    block = max(blocks, key=lambda b: len(b.windows))
    assert (shuffled_rows(block, block.windows, 0) == shuffled_rows(block, block.windows, 0)).all()
    assert (shuffled_rows(block, block.windows, 0) != shuffled_rows(block, block.windows, 1)).any()


def test_a_text_that_brings_its_own_bos_gets_no_second_one(model: Any) -> None:
    bos, ids = (
        model.tokenizer.bos_token_id,
        model.encode_bodies(["the little cat slept on the old stone house"])[0],
    )
    [plain], [templated] = (
        cut_windows(row, 1, model, BlockPlan(context_length=64)) for row in (ids, [bos, *ids])
    )
    assert plain.ids == templated.ids == [bos, *ids]


def test_aligned_windows_write_a_prefix_once_that_the_text_begins_with(
    model: Any, load: Any, train_tokenizer: Any, corpus: list[str]
) -> None:
    other = load(layers=1, tokenizer=train_tokenizer(vocabulary=300))
    bare = WindowCutter(BlockPlan(context_length=32), model, other)
    end = model.tokenizer.bos_token
    for text in corpus[:5]:
        [plain], [templated] = bare.cut([text]), bare.cut([end + text])
        assert len(plain.windows) == len(templated.windows) > 0
        for one, again in zip(plain.windows, templated.windows, strict=True):
            for role in ("source", "target"):
                expected, found = one.read_by(role), again.read_by(role)
                assert found.ids == expected.ids
                assert found.ids.count(model.tokenizer.bos_token_id) == 1
                np.testing.assert_array_equal(found.rows, expected.rows)
