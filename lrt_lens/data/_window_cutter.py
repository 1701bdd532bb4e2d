"""Windows of texts, for one model or for a pair.

Problem: whether positions of two models are equal or have to be aligned depends on their
tokenizers. Mechanism: `WindowCutter` decides it, once for all of the package. With one tokenizer
both models read the same window, and row k is the same position in both. With two, every window has
a `Window.counterpart` in the target's tokens, cut at the same characters, whose rows are paired
with its own in order (`lrt_lens.data._aligned_windows`).

    cutter = WindowCutter(plan, small, large)
    for document in cutter.cut(texts): document.windows

Limits: chats need one tokenizer, because two chat templates give two texts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lrt_lens.data._aligned import Aligned
from lrt_lens.data._aligned_windows import cut_aligned_windows
from lrt_lens.data._alignment import Aligner, Alignment
from lrt_lens.data._documents import Documents, document_key, iterate_documents
from lrt_lens.data._windows import MINIMUM_ROWS, BlockPlan, CutDocument, Window, cut_windows
from lrt_lens.models._text_reader import TextReader


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
        if target is not None and not source.reads_as(target):
            self._other = Aligner(source.tokenizer, target.tokenizer, same=False), target

    def texts(self, documents: Documents) -> Iterator[str]:
        """Return an iterator over the texts of ``documents``.

        Raises:
            MismatchError: a document is a chat, and the models have different tokenizers.
        """
        readers = [self.source] if self._other is None else [self.source, self._other[1]]
        return iterate_documents(documents, *(model.tokenizer for model in readers))

    def cut(self, texts: Sequence[str]) -> list[CutDocument]:
        """Return one `CutDocument` per text.

        It has no windows if the text is too short or no position is aligned.
        """
        keys = [document_key(text, self.plan.seed) for text in texts]
        if self._other is not None:
            aligner, target = self._other
            return [
                self._cut_aligned(key, alignment, target)
                for key, alignment in zip(keys, aligner.align(texts), strict=True)
            ]
        # Both models read these tokens, so one tokenization serves both.
        bodies = self.source.encode_bodies(texts)
        return [
            CutDocument(key, self._lagged(cut_windows(ids, key, self.source, self.plan)))
            for key, ids in zip(keys, bodies, strict=True)
        ]

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
