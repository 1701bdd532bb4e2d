"""The hook pairs that a fit or a comparison works on, checked against the moments."""

from collections.abc import Sequence

from lrt_lens.errors import HookPointError, TooFewDocumentsError
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._hook_pairs import HookPair


def wanted_pairs(
    moments: CrossMoments, task: str, pairs: Sequence[HookPair] | None
) -> list[HookPair]:
    """Return the hook pairs of a task: ``pairs``, or all of the moments if None.

    Args:
        moments: cross-moments of both models.
        task: the verb in the error message, such as ``"fit"``.
        pairs: hook pairs that the user asked for.

    Raises:
        HookPointError: the moments hold no cross-moments of a hook pair.
        TooFewDocumentsError: there is no hook pair, or no row.
    """
    # By default the pairs of two layers; `kept_pairs` also has token identity with each target.
    wanted = list(moments.pairs if pairs is None else pairs)
    for pair in wanted:
        if pair not in moments.kept_pairs:
            raise HookPointError(
                f"these moments hold no pair {pair}; they hold {len(moments.pairs)}, such as "
                f"{moments.pairs[0]}"
            )
    if not moments.source or not wanted:
        raise TooFewDocumentsError(
            f"nothing to {task}: {moments.n_tokens} tokens and {len(wanted)} pair(s); add rows and "
            "choose at least one pair"
        )
    return wanted
