"""Texts to windows, for one model or for a pair: the one place that knows whether positions are
equal or have to be aligned.

    cutter = WindowCutter(plan, small, large)
    for document in cutter.cut(texts): document.windows

With one tokenizer both models read the same window, and row k is the same position in both. With
two, every window has a `counterpart` in the target's tokens, cut at the same characters and paired
with it row by row (`lrt_lens.data._aligned_windows`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lrt_lens.data._aligned_windows import cut_aligned_windows
from lrt_lens.data._alignment import Aligner, Alignment
from lrt_lens.data._documents import Documents, document_key, iterate_documents
from lrt_lens.data._windows import MINIMUM_ROWS, BlockPlan, Window, cut_windows
from lrt_lens.models._hooked_model import HookedModel


@dataclass(frozen=True)
class Aligned:
    """How much of some texts two tokenizers share; adds up."""

    n_pairs: int = 0
    """Aligned positions."""
    n_source: int = 0
    """Tokens of the source's tokenizer."""
    n_target: int = 0

    @property
    def share(self) -> tuple[float, float]:
        """Share of the source's and of the target's tokens that are aligned; NaN without tokens."""
        return self.n_pairs / (self.n_source or float("nan")), self.n_pairs / (
            self.n_target or float("nan")
        )

    @property
    def counts(self) -> tuple[int, int, int]:
        """The three as a tuple, as files keep them."""
        return self.n_pairs, self.n_source, self.n_target

    def __add__(self, other: "Aligned") -> "Aligned":
        return Aligned(
            self.n_pairs + other.n_pairs,
            self.n_source + other.n_source,
            self.n_target + other.n_target,
        )

    def __str__(self) -> str:
        return "{:.1%} of the source's tokens and {:.1%} of the target's".format(*self.share)


@dataclass(frozen=True)
class CutDocument:
    """A document's windows."""

    key: int
    windows: list[Window]
    aligned: Aligned | None = None
    """None where both models read the same tokens."""


class WindowCutter:
    """Cuts documents for ``source``, or for ``source`` and ``target``: aligned where these read
    different tokens.

    ValueError where one of two different tokenizers gives neither offsets nor text back.
    """

    def __init__(
        self, plan: BlockPlan, source: HookedModel, target: HookedModel | None = None
    ) -> None:
        self.plan, self.source = plan, source
        self._other: tuple[Aligner, HookedModel] | None = None
        if target is not None and not source.identity.reads_as(target.identity):
            self._other = Aligner(source.tokenizer, target.tokenizer, same=False), target

    def texts(self, documents: Documents) -> Iterator[str]:
        """The documents as texts; `MismatchError` for a chat where the two models would spell it
        differently.
        """
        readers = [self.source] if self._other is None else [self.source, self._other[1]]
        return iterate_documents(documents, *(model.tokenizer for model in readers))

    def cut(self, texts: Sequence[str]) -> list[CutDocument]:
        """One `CutDocument` a text, without windows where the text is too short or nothing in it
        aligns.
        """
        keys = [document_key(text, self.plan.seed) for text in texts]
        if self._other is not None:
            aligner, target = self._other
            return [
                self._cut_aligned(key, found, target)
                for key, found in zip(keys, aligner.align(texts), strict=True)
            ]
        bodies = self.source.encode_bodies(texts)
        return [
            CutDocument(key, self._lagged(cut_windows(ids, key, self.source, self.plan)))
            for key, ids in zip(keys, bodies, strict=True)
        ]

    def _cut_aligned(self, key: int, alignment: Alignment, target: HookedModel) -> CutDocument:
        pairs = cut_aligned_windows(alignment, key, self.source, target, self.plan)
        windows = self._lagged([replace(one, counterpart=other) for one, other in pairs])
        return CutDocument(
            key,
            windows,
            Aligned(alignment.n_pairs, len(alignment.first_ids), len(alignment.second_ids)),
        )

    def _lagged(self, windows: list[Window]) -> list[Window]:
        """Each row of the source beside the target's ``plan.lag`` rows later; windows that become
        too short are left out.
        """
        lag = self.plan.lag
        if not lag:
            return windows
        found = []
        for window in windows:
            other = window.read_by("target")
            if len(window.rows) >= lag + MINIMUM_ROWS:
                other = Window(other.ids, other.rows[lag:], other.document)
                found.append(
                    Window(window.ids, window.rows[:-lag], window.document, counterpart=other)
                )
        return found
