"""Documents cut into windows and gathered in blocks, for one model or for a pair.

Problem: a harvest must give the same folds and the same rows whether one process reads the
documents or many; and whether positions of two models are equal or have to be aligned depends on
their tokenizers. Mechanism: `WindowCutter` cuts each document into windows. With one tokenizer both
models read the same window, and row k is the same position in both. With two, every window has a
`Window.counterpart` in the target's tokens, cut at the same characters, whose rows are paired with
its own in order (`lrt_lens.data._aligned_windows`). The windows of one *part* are gathered in a
block of about ``block_rows`` unmasked tokens. Parts are the fitting folds and the groups of the
test fold (`lrt_lens.data._parts`): a document's hash decides its part, wherever it is in the
stream. The test fold gives a sixth of ``n_tokens`` and the fitting folds equal shares of the
others, and long documents wait (`lrt_lens.data._spreading`). Blocks are numbered in the order in
which they fill. Their contents depend only on the documents and the plan, so processes that share a
stream all read it, and each takes some of its blocks; the documents of many files may be several
streams (`lrt_lens.data._file_shares`). Products, shuffled pairs and rows paired with a ``lag`` are
always of one block.

    plan = BlockPlan(context_length=256)
    for block in iterate_blocks(documents, model, plan): block.part, block.windows
    for block in iterate_blocks(documents, small, plan, target=large): ...    # for both models
    for document in WindowCutter(plan, small, large).cut(texts): document.windows

Limits: with few documents a fold can stay empty, which is an error; chats need one tokenizer,
because two chat templates give two texts.
"""

import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from queue import Full, Queue
from typing import Generic, TypeVar

from lrt_lens.data._aligned_windows import cut_aligned_windows
from lrt_lens.data._alignment import Aligner, Alignment, nothing_aligns
from lrt_lens.data._documents import Document, DocumentReader, Documents, DocumentSource
from lrt_lens.data._fold_counts import FoldCounts
from lrt_lens.data._parts import DEFAULT_PARTS, Parts, exact_key
from lrt_lens.data._spreading import TokenBudget
from lrt_lens.data._windows import (
    MINIMUM_ROWS,
    Aligned,
    Block,
    BlockPlan,
    CutDocument,
    Window,
    cut_windows,
    sum_aligned,
)
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models._text_codec import column_list
from lrt_lens.models._text_reader import TextReader

logger = logging.getLogger(__name__)


TEXT_PIECE = 1_000_000
"""Largest number of characters that are tokenized at once.

A window of a longer text ends there. Of such a text no more is tokenized than can be used.
"""
_CHUNK_DOCUMENTS = 64
"""Number of documents that are tokenized at once; fewer if they are long."""


class WindowCutter:
    """Cutter of documents into windows for ``source``, or for both ``source`` and ``target``.

    Raises:
        ValueError: the tokenizers differ, and one of them can neither return offsets nor decode.
    """

    def __init__(
        self, plan: BlockPlan, source: TextReader, target: TextReader | None = None
    ) -> None:
        self.plan, self.source = plan, source
        self._other: tuple[Aligner, TextReader] | None = None
        if target is not None and source.tokenizer_hash != target.tokenizer_hash:
            self._other = Aligner(source.tokenizer, target.tokenizer, same=False), target
        # One tokenizer, but other special tokens before every text.
        is_prefixed = target is not None and source.prefix != target.prefix
        self._prefixed = target if is_prefixed else None

    def read(self, documents: Documents) -> DocumentReader:
        """Return an iterator over the documents.

        Raises:
            MismatchError: a document is a chat, and the models have different tokenizers.
        """
        readers = [self.source] if self._other is None else [self.source, self._other[1]]
        return DocumentReader(documents, *(model.tokenizer for model in readers))

    def cut(self, documents: Sequence[Document | str]) -> list[CutDocument]:
        """Return one `CutDocument` per document or text.

        It has no windows if the text is too short or no position is aligned.
        """
        listed = column_list(documents)
        whole = [Document(one) if isinstance(one, str) else one for one in listed]
        texts, seed = [document.text for document in whole], self.plan.seed
        keys = [document.key(seed) for document in whole]
        cut = [
            self._cut_rest(one, text)
            for one, text in zip(
                self._cut_texts([text[:TEXT_PIECE] for text in texts], keys), texts, strict=True
            )
        ]
        return [
            replace(one, identity=exact_key(text, seed))
            for one, text in zip(cut, texts, strict=True)
        ]

    def _cut_texts(self, texts: list[str], keys: list[int]) -> list[CutDocument]:
        if self._other is not None:
            aligner, target = self._other
            bare = [_without_prefixes(text, self.source, target) for text in texts]
            return [
                self._cut_aligned(key, alignment, target)
                for key, alignment in zip(keys, aligner.align(bare), strict=True)
            ]
        # Both models read these tokens, so one tokenization serves both.
        bodies, models = self.source.encode_bodies(texts), (self.source, self._prefixed)
        return [
            CutDocument(key, self._lagged(cut_windows(ids, key, models[0], self.plan, models[1])))
            for key, ids in zip(keys, bodies, strict=True)
        ]

    def _cut_rest(self, begun: CutDocument, text: str) -> CutDocument:
        """Return a document with the windows of its further pieces, as far as the plan uses them.

        A tokenizer needs a hundred times the memory of its text.
        """
        plan = self.plan
        limits = [plan.n_tokens, plan.max_document_tokens]
        most = min((limit for limit in limits if isinstance(limit, int)), default=sys.maxsize)
        n_rows = sum(len(window.rows) for window in begun.windows)
        for start in range(TEXT_PIECE, len(text), TEXT_PIECE):
            # More than the limit, so that the document counts as longer.
            if n_rows > most:
                break
            [piece] = self._cut_texts([text[start : start + TEXT_PIECE]], [begun.key])
            n_rows += sum(len(window.rows) for window in piece.windows)
            begun = replace(
                begun,
                windows=[*begun.windows, *piece.windows],
                aligned=sum_aligned(begun.aligned, piece.aligned),
            )
        return begun

    def _cut_aligned(self, key: int, alignment: Alignment, target: TextReader) -> CutDocument:
        pairs = cut_aligned_windows(alignment, key, self.source, target, self.plan)
        windows = self._lagged([replace(one, counterpart=other) for one, other in pairs])
        n_source, n_target = len(alignment.first_ids), len(alignment.second_ids)
        return CutDocument(key, windows, Aligned(alignment.n_pairs, n_source, n_target))

    def _lagged(self, windows: list[Window]) -> list[Window]:
        """Return windows that pair each source row with the target row ``plan.lag`` rows later.

        A window that becomes too short is left out.
        """
        lag = self.plan.lag
        if not lag:
            return windows
        lagged = []
        for window in windows:
            other = window.read_by("target")
            if len(window.rows) >= lag + MINIMUM_ROWS:
                # Row k of the source is paired with row k + lag of the target.
                other = Window(other.ids, other.rows[lag:], other.document)
                lagged.append(
                    Window(window.ids, window.rows[:-lag], window.document, counterpart=other)
                )
        return lagged


def _without_prefixes(text: str, *readers: TextReader) -> str:
    """Return a text without the special tokens that it begins with and every window does too.

    A chat template may have written them; the aligner would read them as ordinary characters.
    """
    for reader in readers:
        if reader.prefix:
            text = text.removeprefix(reader.tokenizer.decode(reader.prefix))
    return text


@dataclass
class Corpus:
    """Counts of the documents read; they grow while blocks are made."""

    n_skipped: int = 0
    """Number of documents that are missing, blank or too short to give a row."""
    n_capped: int = 0
    """Number of documents that are longer than the cap of tokens per document."""
    digest: int = 0
    """Sum of the hashes of the documents' texts modulo 2⁶⁴; it does not depend on their order."""
    aligned: Aligned | None = None
    """Counts of aligned positions in all documents, including documents without a row.

    None if both models read the same tokens.
    """
    folds: FoldCounts = field(default_factory=FoldCounts)
    """Documents and tokens of each part."""
    n_read: int = 0
    """Number of documents that could give a row, whether they did or not."""
    n_read_tokens: int = 0
    """Number of their unmasked tokens."""
    n_units: int = 0
    """Number of their groups, or of texts that differ in more than case or punctuation."""
    is_stopped: bool = False
    """True if reading stopped early because no new group or text came for long."""

    @property
    def n_documents(self) -> int:
        """Number of documents that gave a row."""
        return sum(self.folds.documents)

    @property
    def n_rows(self) -> int:
        """Number of unmasked tokens."""
        return sum(self.folds.tokens)


def iterate_blocks(
    documents: Documents,
    model: TextReader,
    plan: BlockPlan,
    corpus: Corpus | None = None,
    target: TextReader | None = None,
    *,
    is_part: bool = False,
    cutter: WindowCutter | None = None,
) -> Iterator[Block]:
    """Yield blocks of one part each, numbered in the order in which they fill.

    The blocks that are not full come at the end. With ``target``, windows are cut for both models;
    at the same characters if their tokenizers differ. ``corpus`` receives the counts. With
    ``is_part`` these are not all documents of a harvest, so folds may stay empty. ``cutter``
    replaces the one of documents.

    Raises:
        MismatchError: the tokenizers differ and no position is aligned.
        TooFewDocumentsError: a fold stays empty; the message names it.
    """
    cutter = WindowCutter(plan, model, target) if cutter is None else cutter
    corpus = Corpus() if corpus is None else corpus
    blocks = _fill_blocks(documents, cutter, corpus, is_part=is_part)
    for index, block in enumerate(blocks):
        block.index = index
        yield block


def _fill_blocks(
    documents: Documents, cutter: WindowCutter, corpus: Corpus, *, is_part: bool
) -> Iterator[Block]:
    parts = cutter.plan.parts
    open_blocks = {part: Block(part, n_parts=parts.n_parts) for part in range(parts.n_parts)}
    if corpus.folds.parts != parts:
        corpus.folds = FoldCounts(parts=parts)
    corpus.folds.has_groups = DocumentSource.of(documents).group is not None
    for document, window, begins in _taken_windows(documents, cutter, corpus):
        part = parts.of(document.key)
        corpus.folds.add(part, len(window.rows), n_documents=int(begins), unit=document.key)
        if begins:
            corpus.n_capped += document.is_capped
            corpus.digest = (corpus.digest + document.identity) % 2**64
        block = open_blocks[part]
        block.add(window, begins=document if begins else None)
        if block.n_rows >= cutter.plan.block_rows:
            open_blocks[part] = Block(part, n_parts=parts.n_parts)
            yield block
    _check_parts(corpus, cutter.plan, is_part=is_part)
    yield from (block for block in open_blocks.values() if block.windows)


def _taken_windows(
    documents: Documents, cutter: WindowCutter, corpus: Corpus
) -> Iterator[tuple[CutDocument, Window, bool]]:
    """Yield (document, window, whether it is the document's first) until the budget is spent."""
    parts = cutter.plan.parts
    budget = TokenBudget(cutter.plan, parts.shares)
    for document in _cut_documents(documents, cutter, corpus, budget):
        capped = replace(document, is_capped=budget.is_capped(document))
        # The test groups share one budget, as one fold.
        windows = budget.take(capped, min(parts.of(document.key), parts.n_folds))
        corpus.n_read += 1
        corpus.n_read_tokens, corpus.n_units = budget.n_read, budget.n_units
        yield from ((capped, window, number == 0) for number, window in enumerate(windows))
    corpus.is_stopped = budget.is_without_new_units
    yield from budget.rest()


def _cut_documents(
    documents: Documents, cutter: WindowCutter, corpus: Corpus, budget: TokenBudget
) -> Iterator[CutDocument]:
    """Yield the documents that give a row, until the budget is full."""
    reader = cutter.read(documents)
    while chunk := _chunk(reader):
        for document in cutter.cut(chunk):
            if budget.is_full:
                return
            corpus.aligned = sum_aligned(corpus.aligned, document.aligned)
            if document.windows:
                yield document
            else:
                corpus.n_skipped += 1
        corpus.n_skipped, reader.n_empty = corpus.n_skipped + reader.n_empty, 0
    corpus.n_skipped += reader.n_empty


def _chunk(reader: Iterator[Document]) -> list[Document]:
    """Return the next documents: tokenizers are much faster on 64 texts at once than on one."""
    chunk, size = list[Document](), 0
    for document in islice(reader, _CHUNK_DOCUMENTS):
        chunk.append(document)
        size += len(document.text)
        if size >= TEXT_PIECE:
            break
    return chunk


def _check_parts(corpus: Corpus, plan: BlockPlan, *, is_part: bool) -> None:
    if corpus.n_skipped:
        logger.warning(
            "%d of %d documents were too short to have an unmasked token, or empty",
            corpus.n_skipped,
            corpus.n_skipped + corpus.n_documents,
        )
    if corpus.aligned is not None and corpus.aligned.n_pairs == 0:
        raise nothing_aligns(corpus.n_skipped, corpus.aligned.n_source, corpus.aligned.n_target)
    if is_part:
        return
    if corpus.n_documents == 0:
        raise _no_rows(corpus, plan)
    # Every fold needs documents; the test fold needs them in at least one of its groups.
    counts = corpus.folds.table["documents"].to_dict()
    empty = [str(name) for name, n_documents in counts.items() if not n_documents]
    if empty:
        raise _empty_folds(empty, corpus, plan)
    if complaint := corpus.folds.complaint:
        stopped = f". {_stopped(corpus)}" if corpus.is_stopped else ""
        logger.warning("%s%s", complaint, stopped)


def check_folds(
    documents: Sequence[int] | None, tokens: Sequence[int], parts: Parts = DEFAULT_PARTS
) -> None:
    """Refuse an empty fold in a harvest of several streams, and log a warning of uneven folds.

    Args:
        documents: number of documents of each part; None if they are not known.
        tokens: number of tokens of each part.
        parts: numbers of folds and test groups.

    Raises:
        TooFewDocumentsError: a fold has no document; the message names it.
    """
    if documents is None:
        return
    counts = FoldCounts(documents=list(documents), tokens=list(tokens), parts=parts)
    n_documents = counts.table["documents"].to_dict()
    empty = [str(name) for name, number in n_documents.items() if not number]
    if empty:
        raise TooFewDocumentsError(
            f"fold(s) {', '.join(empty)} hold no document: {sum(documents)} document(s) of all "
            f"files for {parts.n_folds} folds and a test fold; give at least "
            f"{parts.enough_documents} documents"
        )
    if complaint := counts.complaint:
        logger.warning("%s", complaint)


def _stopped(corpus: Corpus) -> str:
    """Return a sentence on the early end of reading, with the remedy."""
    units = "group(s)" if corpus.folds.has_groups else "different text(s)"
    same = "rows of one group" if corpus.folds.has_groups else "copies of one text"
    return (
        f"Reading stopped after {corpus.n_read:,} document(s) with {corpus.n_read_tokens:,} tokens,"
        f" which are of {corpus.n_units} {units}, the last of them far back: shuffle the documents,"
        f" because {same} follow each other"
    )


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
    # Of n_tokens each fold has its share before another fold has more, so more would not help.
    message = f"fold(s) {', '.join(empty)} hold no document: "
    masked = ""
    if corpus.n_skipped:
        masked = (
            f" ({corpus.n_skipped} more have no token after the first {plan.skip_first} and the"
            " special ones)"
        )
    if corpus.is_stopped:
        return TooFewDocumentsError(f"{message}{_stopped(corpus)}{masked}, or give more of them")
    enough, n_folds = plan.parts.enough_documents, plan.parts.n_folds
    groups, remedy = "", f"{enough} documents (one long text can be split into paragraphs)"
    if corpus.folds.has_groups:
        # Documents of a group share a fold, so more documents of these groups would not help.
        groups, remedy = f" in {corpus.n_units} group(s)", f"{enough} groups, or finer ones"
    elif corpus.n_units < corpus.n_read:
        groups, remedy = f" of {corpus.n_units} different text(s)", f"{enough} different texts"
    return TooFewDocumentsError(
        f"{message}{corpus.n_read} document(s){groups} for {n_folds} folds and a test"
        f" fold{masked}; give at least {remedy}"
    )


Item = TypeVar("Item")
_POLL_SECONDS = 0.1
"""Seconds after which the thread looks whether it should stop."""


class ItemsAhead(Generic[Item]):
    """Iterator over the items that a thread puts into a queue.

    The queue holds (item,), an exception, or None at the end. The tuple lets an item be None.
    """

    def __init__(self, queue: "Queue[tuple[Item] | BaseException | None]") -> None:
        self._queue, self._is_over = queue, False

    def __iter__(self) -> "ItemsAhead[Item]":
        return self

    def __next__(self) -> Item:
        entry = None if self._is_over else self._queue.get()
        if isinstance(entry, tuple):
            return entry[0]
        self._is_over = True
        if isinstance(entry, BaseException):
            raise entry
        raise StopIteration

    def ready(self) -> list[Item]:
        """Return the items that are made already, in their order, and leave them in the queue."""
        with self._queue.mutex:
            entries = list(self._queue.queue)
        return [entry[0] for entry in entries if isinstance(entry, tuple)]


@contextmanager
def running_ahead(items: Iterator[Item], n_ready: int = 4) -> Iterator[ItemsAhead[Item]]:
    """Return a context that iterates over ``items`` in a thread, which ends with the context.

    An exception in the thread is raised in the iteration.
    """
    queue: Queue[tuple[Item] | BaseException | None] = Queue(maxsize=n_ready)
    stop = threading.Event()

    def put(entry: tuple[Item] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                queue.put(entry, timeout=_POLL_SECONDS)
            except Full:
                continue
            return

    def make() -> None:
        try:
            for item in items:
                put((item,))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again in the iteration
            put(error)

    thread = threading.Thread(target=make, name="lrt_lens-blocks", daemon=True)
    thread.start()
    try:
        yield ItemsAhead(queue)
    finally:
        stop.set()
        # A stream that waits for the network must not delay the end of an interrupted run. So the
        # wait is limited, and the thread is a daemon, which ends with the process.
        thread.join(timeout=5)
