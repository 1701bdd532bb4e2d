"""Windows of sequences whose states are kept, where no documents are given.

Problem: an engine has read sequences of tokens, and a harvest cuts documents. Mechanism: each
sequence is one window, read whole; its document is the text of its tokens, or the id that it
brings. With two tokenizers the text is cut for both sides as documents are.

    cutter = SequenceCutter(plan, source, target, lead, sequences)
    for document in cutter.read(None): cutter.cut([document])

Limits: with two tokenizers, sequences that their own tokenizer does not write again as they are
(generated or truncated ones) have no aligned windows and are left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lrt_lens.data._blocks import WindowCutter
from lrt_lens.data._documents import Document
from lrt_lens.data._parts import exact_key
from lrt_lens.data._windows import MINIMUM_ROWS, BlockPlan, CutDocument, Window
from lrt_lens.errors import MismatchError
from lrt_lens.models._text_reader import TextReader, special_tokens, unmasked
from lrt_lens.moments.states._sequence import StateSequence


@dataclass(frozen=True)
class SequenceDocument(Document):
    """One sequence as a document."""

    ids: Any = None
    """Token ids [token], as the engine read them."""


class SequenceCutter(WindowCutter):
    """Cutter of sequences into windows, for the source and the target of a harvest.

    ``lead`` is the side whose sequences these are. With one tokenizer both sides read the same ids.
    """

    def __init__(
        self,
        plan: BlockPlan,
        source: TextReader,
        target: TextReader,
        lead: Literal["source", "target"],
        sequences: Iterator[StateSequence],
        name: str,
    ) -> None:
        super().__init__(plan, source, target)
        self._leader = source if lead == "source" else target
        self._sequences, self._name = sequences, name

    def read(self, documents: Any) -> Any:  # noqa: ARG002 (the sequences are the documents)
        """Return an iterator over the sequences; it has an attribute ``n_empty``.

        Raises:
            MismatchError: a sequence is longer than the context.
        """
        return _SequenceReader(self._documents())

    def cut(self, documents: Sequence[Any]) -> list[CutDocument]:
        """Return one `CutDocument` per sequence."""
        if self._other is not None:
            return super().cut(documents)
        special, seed = special_tokens(self.source), self.plan.seed
        masked = np.union1d(special, special_tokens(self._leader))
        cut = []
        for document in documents:
            ids, key = document.ids.tolist(), document.key(seed)
            rows = unmasked(ids, masked, self.plan.skip_first)
            window = Window(ids, rows, key)
            windows = self._lagged([window] if len(rows) >= MINIMUM_ROWS else [])
            identity = exact_key(document.ids.tobytes().hex(), seed)
            cut.append(replace(CutDocument(key, windows), identity=identity))
        return cut

    def _documents(self) -> Iterator[SequenceDocument]:
        for sequence in self._sequences:
            if len(sequence.ids) > self.plan.context_length:
                raise MismatchError(
                    f"{sequence.name!r} of {self._name!r} has {len(sequence.ids)} tokens, and"
                    f" windows have at most {self.plan.context_length}; give"
                    f" context_length={len(sequence.ids)} or more (each sequence is one window),"
                    " or the documents, whose windows the engine has read"
                )
            text = self._text(sequence.ids)
            # Values of one column are compared as text, because files know no other types.
            group = None if sequence.document is None else str(sequence.document)
            yield SequenceDocument(text, group, ids=sequence.ids)

    def _text(self, ids: np.ndarray) -> str:
        """Return the text of a sequence, without the special tokens before it."""
        prefix, tokens = self._leader.prefix, ids.tolist()
        if prefix and tokens[: len(prefix)] == prefix:
            tokens = tokens[len(prefix) :]
        # `clean_up_tokenization_spaces` would change the text, and so the fold of the document.
        return self._leader.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


class _SequenceReader:
    """Iterator that counts empty documents, of which sequences have none."""

    def __init__(self, documents: Iterator[SequenceDocument]) -> None:
        self._documents, self.n_empty = documents, 0

    def __iter__(self) -> Iterator[SequenceDocument]:
        return self._documents

    def __next__(self) -> SequenceDocument:
        return next(self._documents)
