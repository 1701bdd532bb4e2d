"""Windows of documents that no map was fitted on, on which a stitch is evaluated."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from lrt_lens.data._blocks import WindowCutter
from lrt_lens.data._documents import Document, Documents, DocumentSource
from lrt_lens.data._parts import N_FOLDS, part_of
from lrt_lens.data._spreading import TokenBudget
from lrt_lens.data._windows import BlockPlan, CutDocument, Window
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._provenance import Provenance


def fold_filter(documents: Documents, origin: Provenance, folds: str) -> Callable[[Document], bool]:
    """Return a function that tells whether a document is in the folds that are read.

    Args:
        documents: documents, with the groups of the harvest if it had any.
        origin: provenance of the map, whose seed and rule decide the folds.
        folds: ``"test"``, for the test fold, or ``"all"``.

    Raises:
        MismatchError: the test fold is asked for, and the harvest decided folds by another rule.
    """
    if folds != "test":
        return lambda _: True
    origin.refuse_other_folds(DocumentSource.of(documents).group)
    return lambda document: part_of(document.key(origin.seed)) >= N_FOLDS


def read_windows(
    pair: ModelPair,
    origin: Provenance,
    skip_first: int,
    documents: Documents,
    n_tokens: int,
    context_length: int,
    folds: str,
) -> list[Window]:
    """Return windows of held-out documents, until ``n_tokens`` positions count.

    ``origin`` is the provenance of the maps, and ``skip_first`` the number of masked positions of a
    window. The documents are numbered from 0, without gaps; ``folds`` are those of
    `StitchLossSettings`.
    """
    is_read = fold_filter(documents, origin, folds)
    plan = BlockPlan(
        context_length=context_length,
        skip_first=skip_first,
        n_tokens=n_tokens,
        max_document_tokens="auto",
        seed=origin.seed,
    )
    cutter, budget = WindowCutter(plan, pair.source, pair.target), TokenBudget(plan)
    n_read, numbers = 0, dict[int, int]()
    taken: list[Window] = []

    def take(document: CutDocument, windows: Iterable[Window]) -> None:
        for window in windows:
            taken.append(window.of_document(numbers.setdefault(document.identity, len(numbers))))

    for document in cutter.read(documents):
        if budget.is_full:
            break
        n_read += 1
        if not is_read(document):
            continue
        [cut] = cutter.cut([document])
        # Documents of one group count as one, because they are not independent.
        cut = replace(cut, identity=n_read if document.group is None else cut.key)
        take(cut, budget.take(cut, share=0))
    for cut, window, _ in budget.rest():
        take(cut, [window])
    n_taken = len(numbers)
    n_counted = sum(len(window.rows) for window in taken)
    if n_taken == 1 and n_counted >= n_tokens:
        raise TooFewDocumentsError(
            f"n_tokens={n_tokens} was reached after 1 document; raise n_tokens: an interval over "
            "documents needs at least 2"
        )
    if n_taken < 2:
        remedy = (
            "; folds='all' reads the others too, if they had no part in the fit"
            if folds == "test"
            else ""
        )
        raise TooFewDocumentsError(
            f"{n_taken} of {n_read} document(s) can be "
            f"measured{' (a sixth is in the test fold)' if folds == 'test' else ''}; an interval "
            "over "
            f"documents needs at least 2 that are longer than {plan.skip_first + 4} tokens: give "
            f"more text{remedy}"
        )
    return taken
