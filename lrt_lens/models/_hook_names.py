"""Names of residual hook points: arithmetic on names, without a model.

Problem: one state of the stream can have two names. Mechanism: the vocabulary is that of
TransformerLens, ``blocks.{l}.hook_resid_pre|mid|post`` and ``hook_embed``. The stream after block
``l - 1`` is the stream before block ``l``, so ``blocks.{l}.hook_resid_pre`` and
``blocks.{l-1}.hook_resid_post`` are one hook point (`same_place`).

    residual_post(3)                                                    # 'blocks.3.hook_resid_post'
    same_place("blocks.4.hook_resid_pre", "blocks.3.hook_resid_post")   # True

Limits: the residual stream only, no attention heads or MLP activations.
"""

import re
from collections.abc import Sequence

EMBED = "hook_embed"
RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|mid|post)")
"""Names of hook points on the stream; the groups are the number of the block and the part."""


def residual_post(layer: int) -> str:
    """Return the hook point after block ``layer``."""
    return f"blocks.{layer}.hook_resid_post"


def place(name: str) -> str:
    """Return the canonical name of a hook point.

    ``resid_pre`` of block ``l ≥ 1`` becomes ``resid_post`` of block ``l - 1``.
    """
    match = RESIDUAL.fullmatch(name)
    if match and match[2] == "pre" and int(match[1]) > 0:
        return residual_post(int(match[1]) - 1)
    return name


def same_place(first: str, second: str) -> bool:
    """Return whether two names stand for the same hook point."""
    return place(first) == place(second)


def short_hook(hook_point: str) -> str:
    """Return a short form of a hook point's name, for axes and small tables.

    `blocks.3.hook_resid_post` becomes `3.post` (likewise pre and mid) and `hook_embed` becomes
    `embed`; from any other name only `blocks.` and `hook_` are removed.
    """
    return re.sub(r"^blocks\.|hook_(?:resid_)?", "", hook_point)


def joint_name(names: Sequence[str]) -> str:
    """Return the name of several hook points of one model, used as one.

    Its activations are theirs, concatenated: [position, sum of widths].
    """
    return "+".join(names)


def joint_parts(name: str) -> list[str]:
    """Return the hook points in a joint name; a list of one for the name of one hook point."""
    return name.split("+")


def depth(name: str) -> float:
    """Return the number of blocks before a hook point.

    ``l + 0.5`` between attention and MLP of block ``l``; -1 for the embedding; the largest of its
    parts for a joint name.
    """
    if len(parts := joint_parts(name)) > 1:
        return max(map(depth, parts))
    match = RESIDUAL.fullmatch(name)
    if match is None:
        return -1.0
    return int(match[1]) + {"pre": 0.0, "mid": 0.5, "post": 1.0}[match[2]]
