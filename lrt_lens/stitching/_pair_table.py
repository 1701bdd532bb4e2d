"""Tables of hook pairs as a notebook shows them.

    heat_of_pairs(grid.scores, "gain_cv")      # HTML: source hook points down, target ones across
    name_of_best(grid.scores, "gain_cv")       # "blocks.3.hook_resid_post → blocks.4.…"
    choosing_column(grid.scores, None)         # "gain_cv", or "r2_uniform_cv" without token scores

Limits: at most 16 hook points per side are shown.
"""

import pandas as pd

from lrt_lens._repr_html import heat_table
from lrt_lens.models._hook_points import depth, short_hook

_SHOWN = 16
"""Most hook points per side in the table that a notebook shows."""


def heat_of_pairs(scores: pd.DataFrame, value: str) -> str:
    """Return a shaded HTML table of one column over all hook pairs."""
    wide = scores.pivot(index="source_hook", columns="target_hook", values=value)
    wide = wide.loc[sorted(wide.index, key=depth), sorted(wide.columns, key=depth)]
    wide = wide.iloc[:_SHOWN, :_SHOWN].rename(index=short_hook, columns=short_hook)
    return heat_table(wide, corner="source ↓ target →")


NO_GAIN = (
    "gain_cv is unknown, because these moments hold no token identity: give tokens=… with the "
    "activations"
)
"""Why ``gain_cv`` is NaN in a table without scores of token identity, and the remedy."""


def knows_tokens(scores: pd.DataFrame) -> bool:
    """Return whether a table has scores of token identity, so that a gain over it is known."""
    return bool(scores["r2_uniform_token"].notna().to_numpy().any())


def choosing_column(scores: pd.DataFrame, by: str | None) -> str:
    """Return the column by which hook pairs are chosen.

    It is ``by``. If that is None, it is ``gain_cv``, and ``r2_uniform_cv`` in a table without
    scores of token identity.

    Raises:
        ValueError: ``by`` is not cross-validated, or is a gain that is unknown.
    """
    if by is None:
        return "gain_cv" if knows_tokens(scores) else "r2_uniform_cv"
    options = [name for name in scores.columns if name.endswith("_cv")]
    if by not in options:
        raise ValueError(
            f"best(by={by!r}) would choose by a column that is not cross-validated; use one of "
            f"{options}"
        )
    if by == "gain_cv" and not knows_tokens(scores):
        raise ValueError(f"{NO_GAIN}, or choose by='r2_uniform_cv'")
    return by


def name_of_best(scores: pd.DataFrame, value: str) -> str | None:
    """Return the hook pair with the highest value as text; None if there is no value."""
    known = scores.dropna(subset=[value])
    if known.empty:
        return None
    best = known.loc[known[value].idxmax()]
    return f"{best['source_hook']} → {best['target_hook']}"
