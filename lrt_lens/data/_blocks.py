"""Documents cut into blocks: the unit of harvesting, of products and of shuffled pairs.

Problem: a harvest must give the same folds and the same rows whether one process reads the
documents or many. Mechanism: documents become windows (`lrt_lens.data._window_cutter`), each within
one document. The windows of one *part* are gathered in a block of about ``block_rows`` unmasked
tokens. Parts are the folds: a document's hash decides whether it is for fitting (one of ``N_FOLDS``
cross-validation folds) or for testing (one of ``N_TEST_GROUPS`` groups of the test fold), wherever
it is in the stream. Blocks are numbered in the order in which they fill. Their contents depend only
on the documents and the plan, so processes that share a harvest all read the same stream, and each
takes some of its blocks. Products, shifts and shuffled pairs never reach beyond one block.

    plan = BlockPlan(context_length=256)
    for block in iterate_blocks(documents, model, plan): block.part, block.windows
    for block in iterate_blocks(documents, small, plan, target=large): ...    # for both models

Limits: with few documents a fold can stay empty, which is an error.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from lrt_lens.data._aligned import Aligned, sum_aligned
from lrt_lens.data._alignment import nothing_aligns
from lrt_lens.data._block import Block
from lrt_lens.data._documents import Documents
from lrt_lens.data._parts import N_FOLDS, N_PARTS, PART_NAMES, part_of
from lrt_lens.data._window_cutter import WindowCutter
from lrt_lens.data._windows import MINIMUM_ROWS, BlockPlan, CutDocument
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models._text_reader import TextReader

logger = logging.getLogger(__name__)


@dataclass
class Corpus:
    """Counts of the documents read; they grow while blocks are made."""

    n_documents: int = 0
    n_skipped: int = 0
    """Number of documents that are too short to give a row."""
    n_rows: int = 0
    digest: int = 0
    """Sum of the documents' keys modulo 2⁶⁴; it does not depend on their order."""
    aligned: Aligned | None = None
    """Counts of aligned positions in all documents, those without a row included.

    None if both models read the same tokens.
    """


def iterate_blocks(
    documents: Documents,
    model: TextReader,
    plan: BlockPlan,
    corpus: Corpus | None = None,
    target: TextReader | None = None,
) -> Iterator[Block]:
    """Yield blocks of one part each, numbered in the order in which they fill.

    The blocks that are not full come at the end. With ``target``, windows are cut for both models;
    at the same characters if their tokenizers differ. ``corpus`` receives the counts.

    Raises:
        MismatchError: the tokenizers differ and no position is aligned.
        TooFewDocumentsError: a fold stays empty; the message names it.
    """
    cutter = WindowCutter(plan, model, target)
    blocks = _fill_blocks(documents, cutter, Corpus() if corpus is None else corpus)
    for index, block in enumerate(blocks):
        block.index = index
        yield block


def _fill_blocks(documents: Documents, cutter: WindowCutter, corpus: Corpus) -> Iterator[Block]:
    open_blocks = {part: Block(part) for part in range(N_PARTS)}
    filled: set[int] = set()
    for document in _cut_documents(documents, cutter, corpus):
        part = part_of(document.key)
        filled.add(part)
        for number, window in enumerate(document.windows):
            block = open_blocks[part]
            block.add(window, begins=document if number == 0 else None)
            if block.n_rows >= cutter.plan.block_rows:
                open_blocks[part] = Block(part)
                yield block
    _check_parts(filled, corpus, cutter.plan)
    yield from (block for block in open_blocks.values() if block.windows)


def _cut_documents(
    documents: Documents, cutter: WindowCutter, corpus: Corpus
) -> Iterator[CutDocument]:
    """Yield the documents that give a row, until they have ``plan.n_tokens`` rows."""
    texts, n_tokens = cutter.texts(documents), cutter.plan.n_tokens
    # Tokenizers are much faster on 64 texts at once than on one.
    while chunk := list(islice(texts, 64)):
        for document in cutter.cut(chunk):
            if n_tokens is not None and corpus.n_rows >= n_tokens:
                return
            corpus.aligned = sum_aligned(corpus.aligned, document.aligned)
            if not document.windows:
                corpus.n_skipped += 1
                continue
            # A document is read to its end, so n_rows can exceed n_tokens by one document.
            corpus.n_documents += 1
            corpus.n_rows += sum(len(window.rows) for window in document.windows)
            corpus.digest = (corpus.digest + document.key) % 2**64
            yield document


def _check_parts(filled: set[int], corpus: Corpus, plan: BlockPlan) -> None:
    if corpus.n_skipped:
        logger.warning(
            "%d of %d documents were too short to have an unmasked token",
            corpus.n_skipped,
            corpus.n_skipped + corpus.n_documents,
        )
    if corpus.aligned is not None and corpus.aligned.n_pairs == 0:
        raise nothing_aligns(corpus.n_skipped, corpus.aligned.n_source, corpus.aligned.n_target)
    if corpus.n_documents == 0:
        raise _no_rows(corpus, plan)
    # Every fold needs documents; the test fold needs them in at least one of its groups.
    empty = [PART_NAMES[k] for k in range(N_FOLDS) if k not in filled]
    if not any(part >= N_FOLDS for part in filled):
        empty.append("test")
    if empty:
        raise _empty_folds(empty, corpus, plan)


def _no_rows(corpus: Corpus, plan: BlockPlan) -> TooFewDocumentsError:
    if corpus.aligned is not None:
        return TooFewDocumentsError(
            f"no document has an aligned pair of tokens: {corpus.n_skipped} have"
            f" {corpus.aligned.n_pairs} aligned positions in all, which are {corpus.aligned}."
            f" The first {plan.skip_first} positions and special or unknown tokens are masked,"
            f" and a window needs {MINIMUM_ROWS} others:"
            " give longer texts, in the language of both tokenizers"
        )
    return TooFewDocumentsError(
        f"no document has an unmasked token: {corpus.n_skipped} were empty or too short (the first"
        f" {plan.skip_first} positions and special tokens are masked); give longer texts"
    )


def _empty_folds(empty: list[str], corpus: Corpus, plan: BlockPlan) -> TooFewDocumentsError:
    message = f"fold(s) {', '.join(empty)} hold no document: "
    masked = ""
    if corpus.n_skipped:
        masked = (
            f" ({corpus.n_skipped} more have no token after the first {plan.skip_first} and the"
            " special ones)"
        )
    if plan.n_tokens is not None and corpus.n_rows >= plan.n_tokens:
        return TooFewDocumentsError(
            f"{message}n_tokens={plan.n_tokens} was reached after {corpus.n_documents}"
            f" document(s){masked}; raise n_tokens"
        )
    return TooFewDocumentsError(
        f"{message}{corpus.n_documents} document(s) for {N_FOLDS} folds and a test fold{masked};"
        " give at least 100 documents (one long text can be split into paragraphs)"
    )
