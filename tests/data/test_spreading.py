"""Tests of how tokens are spread over documents and folds."""

import logging
import random
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from lrt_lens.data import (
    Block,
    BlockPlan,
    DocumentSource,
    cut_windows,
    document_key,
    iterate_blocks,
    part_of,
)
from lrt_lens.data._blocks import Corpus
from lrt_lens.data._fold_counts import FoldCounts
from lrt_lens.data._spreading import TokenBudget, first_rows
from lrt_lens.data._windows import CutDocument, Window
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models import HookedModel

HALVES = (Fraction(1, 2),) * 2
WINDOW = 20
"""Rows of a full window: 24 tokens without BOS and three more masked ones."""


@pytest.fixture(scope="module")
def books(corpus: list[str]) -> list[str]:
    """60 documents of about 250 to 1,200 tokens."""
    rng = random.Random(1)
    return [" ".join(rng.choices(corpus, k=rng.randint(3, 16))) for _ in range(60)]


def rows_by_document(blocks: list[Block]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for block in blocks:
        for window in block.windows:
            counts[window.document] += len(window.rows)
    return counts


def read(
    documents: Any, model: HookedModel, **options: Any
) -> tuple[Counter[int], Corpus, list[Block]]:
    counted = Corpus()
    plan = BlockPlan(context_length=24, block_rows=200, **options)
    blocks = list(iterate_blocks(documents, model, plan, counted))
    return rows_by_document(blocks), counted, blocks


def test_every_fold_has_a_sixth_of_the_tokens_of_few_long_documents(
    books: list[str], model: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fifty harvests read the same texts: they are tokenized once.
    ids = dict(zip(books, model.encode_bodies(books), strict=True))
    monkeypatch.setattr(model, "encode_bodies", lambda texts: [ids[text] for text in texts])
    shares, shares_of_whole_documents = [], []
    sizes = [len(ids[text]) for text in books]
    for seed in range(50):
        rng = random.Random(seed)
        order = rng.sample(range(len(books)), len(books))
        documents = [books[k] for k in order]
        try:
            _, counted, _ = read(
                documents, model, n_tokens=5_000, max_document_tokens="auto", seed=seed
            )
        except TooFewDocumentsError:
            continue  # a fold without any document: one seed in a thousand
        shares.append(counted.folds.table["share"]["test"])
        taken = np.cumsum([sizes[k] for k in order]) < 5_000
        test = [part_of(document_key(text, seed)) >= 5 for text in documents]
        tokens = np.array([sizes[k] for k in order]) * taken
        shares_of_whole_documents.append((tokens * test).sum() / tokens.sum())
    assert len(shares) > 45
    assert 0.16 < min(shares) <= max(shares) < 0.175
    # Whole documents, as they come: what the cap and the shares are for.
    assert max(shares_of_whole_documents) > 0.4
    assert min(shares_of_whole_documents) < 0.05


def test_tokens_come_from_many_documents_before_any_gives_more(
    books: list[str], model: HookedModel
) -> None:
    # 60 documents of at most 24 tokens (a 200th of 4,800) are not enough: rounds follow.
    rows, counted, _ = read(books, model, n_tokens=4_800, max_document_tokens="auto")
    assert len(rows) == counted.n_documents == counted.n_capped == 60
    assert 4_800 <= counted.n_rows < 4_800 + 6 * 24
    # Documents of one fold differ by the windows of one round.
    for fold in range(6):
        sizes = [n for key, n in rows.items() if min(part_of(key), 5) == fold]
        assert max(sizes) - min(sizes) <= 24
    without, uncapped, _ = read(books, model, n_tokens=4_800)
    assert uncapped.n_capped == 0
    assert len(without) < 60


def test_a_cap_that_was_given_is_never_exceeded(books: list[str], model: HookedModel) -> None:
    rows, counted, blocks = read(books, model, max_document_tokens=50)
    assert set(rows.values()) == {50}
    assert (counted.n_rows, counted.n_capped) == (60 * 50, 60)
    assert sum(block.n_capped for block in blocks) == 60
    rows, counted, _ = read(books, model, n_tokens=10_000, max_document_tokens=50)
    assert set(rows.values()) == {50}


def test_without_n_tokens_there_is_no_automatic_cap(books: list[str], model: HookedModel) -> None:
    rows, counted, _ = read(books, model, max_document_tokens="auto")
    sizes = [
        sum(len(w.rows) for w in cut_windows(ids, 0, model, BlockPlan(context_length=24)))
        for ids in model.encode_bodies(books)
    ]
    assert sorted(rows.values()) == sorted(sizes)
    assert counted.n_capped == 0


def test_a_window_is_cut_behind_its_last_row() -> None:
    other = Window(list(range(40)), np.arange(8, 32), 1)
    windows = [Window(list(range(30)), np.arange(4, 28), 1, other)] * 2
    first, second = first_rows(windows, 30)
    assert len(first.rows) == 24
    assert (second.ids, second.rows.tolist()) == (list(range(10)), list(range(4, 10)))
    assert second.counterpart is not None
    assert second.counterpart.ids == list(range(14))
    assert second.counterpart.rows.tolist() == list(range(8, 14))
    assert len(first_rows(windows, 27)) == 1  # three rows are no window


def test_a_group_without_end_does_not_read_for_ever(
    model: HookedModel, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrt_lens.data._spreading._PATIENCE", 20_000)

    def stream() -> Iterator[str]:
        rng = random.Random(0)
        while True:
            yield " ".join(rng.sample(corpus, 3))

    one_group = DocumentSource(stream(), group=lambda _: "all")
    with pytest.raises(TooFewDocumentsError, match="hold no document"):
        read(one_group, model, n_tokens=1_000, max_document_tokens="auto")


def test_only_the_windows_that_would_come_last_are_dropped() -> None:
    budget = TokenBudget(BlockPlan(n_tokens=200, max_document_tokens="auto"), HALVES)
    for key in range(4):
        windows = [Window([0] * 10, np.arange(10), key)] * 30
        assert len(budget.take(CutDocument(key, windows, identity=key), share=0)) == 1
    waiting = [(document.key, begins) for document, _, begins in budget.rest()]
    # One window per document and round, until there are 200 rows.
    assert waiting == [(key % 4, False) for key in range(16)]
    assert budget.rows == [200, 0]


def test_what_waits_is_the_window_that_was_cut() -> None:
    budget = TokenBudget(BlockPlan(n_tokens=100, max_document_tokens="auto"))
    other = Window([5, 6, 7, 8, 9], np.array([2, 4]), 7)
    window = Window([1, 2, 300_000], np.array([1, 2]), 7, other)
    budget.take(CutDocument(7, [window, window]), share=0)
    [(_, later, begins)] = budget.rest()
    assert (later.ids, later.rows.tolist(), later.document) == (window.ids, [1, 2], 7)
    assert later.counterpart is not None
    assert (later.counterpart.ids, later.counterpart.rows.tolist()) == (other.ids, [2, 4])
    assert not begins


def test_folds_with_few_documents_are_mentioned_with_their_numbers(
    books: list[str], corpus: list[str], model: HookedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read(books, model, n_tokens=4_800, max_document_tokens="auto")
    [record] = caplog.records
    counts = Counter(min(part_of(document_key(text, 0)), 5) for text in books)
    few = [fold for fold in range(6) if counts[fold] < 10]
    assert few
    for fold in few:
        name = f"fold{fold}" if fold < 5 else "test"
        assert f"{name} {counts[fold]} document(s) with" in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read(corpus, model)
    assert not caplog.records


def test_a_fold_far_from_its_share_is_mentioned(
    corpus: list[str], model: HookedModel, caplog: pytest.LogCaptureFixture
) -> None:
    long = " ".join(corpus)
    fold = min(part_of(document_key(long, 0)), 5)
    with caplog.at_level(logging.WARNING):
        _, counted, _ = read([*corpus, long], model)
    table = counted.folds.table
    assert f"{table.index[fold]} {table['documents'].iloc[fold]} document(s)" in caplog.text
    assert f"({table['share'].iloc[fold]:.0%})" in caplog.text


def test_a_document_with_most_of_a_fold_is_mentioned(
    corpus: list[str], model: HookedModel, caplog: pytest.LogCaptureFixture
) -> None:
    # Long enough for half of the tokens of its fold, and too short to make the fold uneven.
    for n_texts in range(12, 18):
        long = " ".join(corpus[:n_texts])
        fold = min(part_of(document_key(long, 0)), 5)
        others = [text for text in corpus if min(part_of(document_key(text, 0)), 5) != fold]
        same = [text for text in corpus if min(part_of(document_key(text, 0)), 5) == fold]
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            rows, counted, _ = read([*others, *same[:12], long], model)
        share = rows[document_key(long, 0)] / counted.folds.table["tokens"].iloc[fold]
        assert share > 1 / 3
        assert "13 document(s) with" in caplog.text
        assert f"{share:.0%} of them from one document" in caplog.text


def test_groups_are_counted_as_one_each(
    corpus: list[str], model: HookedModel, caplog: pytest.LogCaptureFixture
) -> None:
    group = [str(k % 30) for k in range(len(corpus))]
    with caplog.at_level(logging.WARNING):
        _, counted, _ = read(DocumentSource(corpus, group=group), model)
    sizes = Counter(min(part_of(document_key(one, 0)), 5) for one in set(group))
    few = [fold for fold in range(6) if sizes[fold] < 10]
    assert few
    for fold in few:
        n_documents = counted.folds.table["documents"].iloc[fold]
        assert f"{n_documents} document(s) in {sizes[fold]} group(s) with" in caplog.text
    assert "give more groups, or finer ones" in caplog.text


@pytest.mark.parametrize("n_tokens", [None, 200])
def test_few_groups_are_told_from_few_documents(
    corpus: list[str], model: HookedModel, n_tokens: int | None
) -> None:
    two = DocumentSource(corpus, group=[k % 2 for k in range(len(corpus))])
    with pytest.raises(
        TooFewDocumentsError, match=r"document\(s\) in 2 group\(s\) .*; give at least 100 groups"
    ):
        read(two, model, n_tokens=n_tokens)


def test_the_largest_unit_is_known_among_any_number_of_small_ones() -> None:
    counts = FoldCounts()
    for key in range(50_000):
        counts.add(0, 10, 1, unit=key + 1)
        counts.add(0, 8, int(key == 0), unit=0)
    for part in range(1, 6):
        for key in range(2_000):
            counts.add(part, 450, 1, unit=key)
    complaint = counts.complaint
    assert complaint is not None
    assert "fold0 50,001" in complaint or "fold0 50001 document(s)" in complaint
    assert "44% of them from one document" in complaint
    assert "fold1" not in complaint


def in_order(corpus: list[str], n_groups: int, per_group: int) -> DocumentSource:
    """Texts of many groups, those of one group one after the other, as in a table of books."""
    rng = random.Random(2)
    texts = [" ".join(rng.sample(corpus, 2)) for _ in range(n_groups * per_group)]
    return DocumentSource(texts, group=[k // per_group for k in range(len(texts))])


@pytest.mark.parametrize("n_tokens", [1_200, 3_000, 6_000])
def test_groups_in_their_natural_order_fill_every_fold(
    corpus: list[str], model: HookedModel, n_tokens: int, caplog: pytest.LogCaptureFixture
) -> None:
    source = in_order(corpus, n_groups=60, per_group=12)
    rows, counted, _ = read(source, model, n_tokens=n_tokens, max_document_tokens="auto")
    # All were read; with 20 tokens per group, a fold with many groups leaves some out.
    assert counted.n_units == 60
    assert len(rows) == 60 if n_tokens > 60 * WINDOW else len(rows) > 50
    shares = counted.folds.table["share"]
    assert 0.13 < shares.min() <= shares.max() < 0.2
    # A group gives about what every other group of its fold gives.
    for fold in range(6):
        sizes = [n for key, n in rows.items() if min(part_of(key), 5) == fold]
        assert max(sizes) - min(sizes) <= 2 * WINDOW + 4
    assert "of them from one group" not in caplog.text


@pytest.mark.parametrize("cap", [None, 40])
def test_groups_in_their_natural_order_are_mentioned_without_an_automatic_cap(
    corpus: list[str], model: HookedModel, cap: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    source = in_order(corpus, n_groups=60, per_group=12)
    read(source, model, n_tokens=1_200, max_document_tokens=cap)
    assert "of them from one group" in caplog.text
    assert "shuffle the rows if those of one group follow each other" in caplog.text


def test_copies_that_follow_each_other_count_as_one_document(
    books: list[str], model: HookedModel
) -> None:
    texts = [text[:400] for text in books]
    copies = [text for text in texts for _ in range(30)]
    rows, counted, _ = read(copies, model, n_tokens=3_000, max_document_tokens="auto")
    assert len(rows) == counted.n_units == 60
    assert counted.folds.table["share"].min() > 0.13


def test_texts_without_copies_are_spread_as_if_units_were_documents(
    corpus: list[str], model: HookedModel
) -> None:
    alone, _, blocks = read(corpus, model, n_tokens=1_500, max_document_tokens="auto")
    grouped = DocumentSource(corpus, group=lambda text: text)
    same, _, others = read(grouped, model, n_tokens=1_500, max_document_tokens="auto")
    assert alone == same
    assert [block.fingerprint for block in blocks] == [block.fingerprint for block in others]


def test_a_stream_without_new_groups_says_what_was_read(
    model: HookedModel, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrt_lens.data._spreading._PATIENCE", 20_000)
    n_given = 0

    def stream() -> Iterator[dict[str, Any]]:
        nonlocal n_given
        rng = random.Random(0)
        while True:
            n_given += 1
            yield {"text": " ".join(rng.sample(corpus, 3)), "book": min(n_given // 10, 3)}

    message = (
        r"Reading stopped after ([\d,]+) document\(s\) with ([\d,]+) tokens, which are of 4 group"
    )
    with pytest.raises(TooFewDocumentsError, match=message) as error:
        read(
            DocumentSource(stream(), group="book"),
            model,
            n_tokens=1_000,
            max_document_tokens="auto",
        )
    found = re.search(message, str(error.value))
    assert found is not None
    n_read, n_tokens = (int(number.replace(",", "")) for number in found.groups())
    assert n_given - 64 <= n_read <= n_given
    assert 20_000 <= n_tokens < 40_000
    assert "shuffle the documents, because rows of one group follow each other" in str(error.value)


def test_few_texts_with_many_copies_are_told_from_few_documents(
    model: HookedModel, corpus: list[str]
) -> None:
    with pytest.raises(
        TooFewDocumentsError, match=r": 40 document\(s\) of 2 different text\(s\) .*100 different"
    ):
        read(corpus[:2] * 20, model, n_tokens=200, max_document_tokens="auto")


def test_the_memory_of_units_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrt_lens.data._spreading._COUNTED_UNITS", 100)
    budget = TokenBudget(BlockPlan(n_tokens=100_000, max_document_tokens="auto"), HALVES)
    windows = [Window([0] * 10, np.arange(10), 0)] * 60
    for key in range(400):
        budget.take(CutDocument(key + 1, windows[:1]), share=key % 2)
        # A large unit is remembered among any number of small ones: it never exceeds its cap.
        taken = budget.take(CutDocument(0, windows), share=0)
        assert bool(taken) is (key == 0)
    assert budget.n_units == 401
