"""Hook pairs: a hook point of the source model with one of the target model.

    pairs = (("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"),)
    with_token(pairs, "hook_embed")     # adds ("hook_embed", "blocks.1.hook_resid_post")
    hooks_of(pairs, TARGET)             # ("blocks.1.hook_resid_post",)

The order of the hook pairs is that of the rows of a grid and of the tensors in a file.
"""

from collections.abc import Iterable, Sequence

HookPair = tuple[str, str]
"""Names (source hook point, target hook point)."""
SOURCE, TARGET = 0, 1
"""Positions of the two hook points in a `HookPair`."""


def with_token(pairs: Sequence[HookPair], token_hook: str | None) -> tuple[HookPair, ...]:
    """Return the hook pairs that have moments: ``pairs``, and token identity with each target.

    ``token_hook`` is the source hook point that stands for token identity; without it (None) the
    result is ``pairs``. Each hook pair occurs once.
    """
    if token_hook is None:
        return tuple(pairs)
    # `dict.fromkeys` removes duplicates and keeps the order, which decides the order in files.
    return tuple(dict.fromkeys([*pairs, *((token_hook, target) for _, target in pairs)]))


def hooks_of(pairs: Iterable[HookPair], side: int) -> tuple[str, ...]:
    """Return the distinct hook points on one side of the hook pairs, in their order."""
    return tuple(dict.fromkeys(pair[side] for pair in pairs))
