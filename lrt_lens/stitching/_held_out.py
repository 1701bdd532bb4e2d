"""Windows of documents that no map was fitted on, on which a stitch is evaluated."""

from lrt_lens.data._blocks import WindowCutter
from lrt_lens.data._documents import N_FOLDS, Documents, document_key, part_of
from lrt_lens.data._windows import BlockPlan, Window
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._stitch_data import StitchData


def read_windows(
    pair: ModelPair,
    stitch: StitchData,
    documents: Documents,
    n_tokens: int,
    context_length: int,
    folds: str,
) -> list[Window]:
    """Return windows of held-out documents, until ``n_tokens`` positions count.

    Their documents are numbered from 0, without gaps. ``folds`` is as in `StitchLossSettings`.
    """
    plan = BlockPlan(
        context_length=context_length, skip_first=stitch.skip_first, seed=stitch.provenance.seed
    )
    cutter = WindowCutter(plan, pair.source, pair.target)
    windows: list[Window] = []
    n_read, n_taken, n_counted = 0, 0, 0
    for text in cutter.texts(documents):
        if n_counted >= n_tokens:
            break
        n_read += 1
        if folds == "test" and part_of(document_key(text, stitch.provenance.seed)) < N_FOLDS:
            continue
        new_windows = [window.of_document(n_taken) for window in cutter.cut([text])[0].windows]
        windows += new_windows
        n_taken += bool(new_windows)
        # The last position of a window has no next token.
        n_counted += sum(int((window.rows < len(window.ids) - 1).sum()) for window in new_windows)
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
    return windows
