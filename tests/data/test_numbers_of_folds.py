"""Blocks, budgets and warnings with other numbers of folds and test groups than the default."""

import logging
import random
from typing import Any

import pytest

from lrt_lens.data import BlockPlan, Parts, document_key, iterate_blocks
from lrt_lens.data._blocks import Corpus, check_folds
from lrt_lens.data._fold_counts import FoldCounts, fold_table
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models import HookedModel

FEW = Parts(n_folds=3, n_test_groups=2)


@pytest.fixture(scope="module")
def many(corpus: list[str]) -> list[str]:
    """Return 900 documents of about 60 tokens."""
    rng = random.Random(3)
    return [" ".join(rng.choices(corpus, k=2)) for _ in range(900)]


def read(
    documents: list[str], model: HookedModel, parts: Parts, **options: Any
) -> tuple[Corpus, dict[int, int]]:
    """Return the counts of some documents, and the part of each document by its key."""
    counted, by_key = Corpus(), dict[int, int]()
    plan = BlockPlan(context_length=24, block_rows=200, parts=parts, **options)
    for block in iterate_blocks(documents, model, plan, counted):
        assert len(block.part_documents) == parts.n_parts
        assert block.part_documents[block.part] == block.n_documents == sum(block.part_documents)
        by_key |= dict.fromkeys((window.document for window in block.windows), block.part)
    return counted, by_key


@pytest.mark.parametrize("parts", [FEW, Parts(2, 1), Parts(7, 8), Parts(20, 64)])
def test_every_document_is_in_the_part_of_its_key(
    many: list[str], model: HookedModel, parts: Parts
) -> None:
    counted, by_key = read(many, model, parts)
    assert by_key == {key: parts.of(key) for key in (document_key(text, 0) for text in many)}
    assert list(counted.folds.table.index) == [*parts.names[: parts.n_folds], "test"]
    assert sum(counted.folds.documents) == counted.n_documents == len(many)


@pytest.mark.parametrize("parts", [Parts(), FEW, Parts(2, 1), Parts(10, 4)])
def test_the_test_fold_gives_a_sixth_and_the_folds_equal_shares_of_the_others(
    many: list[str], model: HookedModel, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        counted, _ = read(many, model, parts, n_tokens=12_000, max_document_tokens="auto")
    shares = counted.folds.table["share"].tolist()
    # A window has at most 20 rows, so that each share is exact up to one window.
    assert shares == pytest.approx([float(share) for share in parts.shares], abs=0.003)
    assert "uneven folds" not in caplog.text


def test_the_default_shares_are_sixths_to_the_last_bit(model: HookedModel) -> None:
    from lrt_lens.data._spreading import TokenBudget

    for n_tokens in (1, 1_000, 199_999, 10**9 + 7):
        budget = TokenBudget(BlockPlan(n_tokens=n_tokens), Parts().shares)
        assert budget.quotas == [n_tokens / 6] * 6


def test_expected_shares_are_named_if_folds_are_uneven() -> None:
    counts = FoldCounts(documents=[40, 40, 2, 8, 8], tokens=[400, 400, 20, 80, 80], parts=FEW)
    assert counts.complaint is not None
    assert "uneven folds: fold2 2 document(s) with 20 tokens (2%)" in counts.complaint
    assert "about 28% (the test fold: 17%) of the tokens each" in counts.complaint
    even = FoldCounts([40, 40, 40, 12, 12], [400, 400, 400, 120, 120], parts=FEW)
    assert even.complaint is None
    assert fold_table(None, even.tokens, FEW)["tokens"].tolist() == [400, 400, 400, 240]
    # Those of the default folds are equal, and are named once.
    default = FoldCounts([40] * 13, [1, *[400] * 12]).complaint
    assert default is not None
    assert "about 17% of the tokens each" in default


def test_empty_folds_are_named_with_the_number_of_folds(model: HookedModel) -> None:
    parts = Parts(n_folds=20, n_test_groups=1)
    texts = [f"the cat saw the big dog {k} times and the bird ran home." for k in range(12)]
    with pytest.raises(TooFewDocumentsError, match="for 20 folds and a test fold.* 400 documents"):
        read(texts, model, parts)
    with pytest.raises(TooFewDocumentsError, match=r"fold2 hold.* for 3 folds .* 100 documents"):
        check_folds([4, 4, 0, 2, 2], [40, 40, 0, 20, 20], FEW)
