"""Hook points and hook pairs: their names, and what a user names resolved to them.

Problem: TransformerLens 3.9 answers a wrong name with an empty cache, and one state of the stream
can have two names. Mechanism: the vocabulary is that of TransformerLens,
``blocks.{l}.hook_resid_pre|mid|post`` and ``hook_embed``, and names are checked against the hook
points that the model has. An int ``l`` stands for ``blocks.{l}.hook_resid_post``, and ``-1`` for
the last block. The stream after block ``l - 1`` is the stream before block ``l``, so
``blocks.{l}.hook_resid_pre`` and ``blocks.{l-1}.hook_resid_post`` are one hook point
(`same_place`). A hook pair is a hook point of the source with one of the target; the order of hook
pairs is that of the rows of a grid and of the tensors in a file.

    resolve(3, model)                                                   # 'blocks.3.hook_resid_post'
    same_place("blocks.4.hook_resid_pre", "blocks.3.hook_resid_post")   # True
    hooks_of(layer_pairs("all", -1, small, large), TARGET)              # ('blocks.7.…',)

Limits: the residual stream only, no attention heads or MLP activations.
"""

import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from lrt_lens.errors import HookPointError

EMBED = "hook_embed"
RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|mid|post)")
"""Names of hook points on the stream; the groups are the number of the block and the part."""


def residual_post(layer: int) -> str:
    """Return the hook point after block ``layer``."""
    return f"blocks.{layer}.hook_resid_post"


def residual_names(n_layers: int) -> list[str]:
    """Return the names of all hook points that a model of that many blocks can have."""
    parts = ("pre", "mid", "post")
    return [EMBED, *(f"blocks.{n}.hook_resid_{part}" for n in range(n_layers) for part in parts)]


def place(name: str) -> str:
    """Return the canonical name of a hook point.

    ``resid_pre`` of block ``l ≥ 1`` becomes ``resid_post`` of block ``l - 1``.
    """
    match = RESIDUAL.fullmatch(name)
    if match and match[2] == "pre" and int(match[1]) > 0:
        return residual_post(int(match[1]) - 1)
    return name


def hook_name(hook: Any, n_layers: int | None = None, model: str = "the model") -> str:
    """Return the name of a hook point of a model that is not at hand.

    Args:
        hook: a name, which is returned as it is, or the number of a block for the stream after it.
        n_layers: number of blocks of the model; None if it is not known.
        model: name of the model, for messages.

    Raises:
        HookPointError: the model has no such block, or a number counts from the last block of a
            model that is not known.
        TypeError: ``hook`` is neither a name nor a whole number.
    """
    if isinstance(hook, str):
        return hook
    try:
        # Numbers of numpy are whole numbers too.
        layer = operator.index(hook)
    except TypeError:
        raise TypeError(
            f"a hook point is {hook!r}; expected a name such as 'blocks.9.hook_resid_post', or the"
            " number of a block, such as 9"
        ) from None
    if n_layers is None:
        if layer < 0:
            raise HookPointError(
                f"layer {layer} counts from the last block; give model= too, whose number of blocks"
                " is needed"
            )
        return residual_post(layer)
    if not -n_layers <= layer < n_layers:
        raise HookPointError(
            f"layer {layer} is not on {model!r}; it has {n_layers} blocks:"
            f" use 0 to {n_layers - 1}, or -1 for the last"
        )
    # -1 is the last block, as in a list: -1 % n_layers = n_layers - 1.
    return residual_post(layer % n_layers)


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


Layers = Literal["all", "proportional"] | int | str | Sequence[int | str]
"""A selection of hook points: one, a list, or ``"all"`` for every ``hook_resid_post``.

With ``"proportional"``, each hook point of the other model is paired with that at equal relative
depth.
"""


@runtime_checkable
class HasHookPoints(Protocol):
    """Attributes of a model that `resolve` reads."""

    name: str
    n_layers: int
    hook_points: tuple[str, ...]


def resolve(hook: int | str, model: HasHookPoints) -> str:
    """Return the full name of a hook point of ``model``.

    Raises:
        HookPointError: the model has no such hook point; the message lists the range of its names.
    """
    if not isinstance(hook, str):
        hook = hook_name(hook, model.n_layers, model.name)
    if hook in model.hook_points:
        return hook
    match = RESIDUAL.fullmatch(hook)
    # A model has the output of every block. States that were computed elsewhere are there for some.
    if match and not all(residual_post(n) in model.hook_points for n in range(model.n_layers)):
        raise HookPointError(
            f"hook point {hook!r} is not on {model.name!r}, whose states are kept at"
            f" {list(model.hook_points)}; choose one of these, or keep that one too"
        )
    if match and int(match[1]) < model.n_layers:
        raise HookPointError(
            f"hook point {hook!r} is not on {model.name!r}: its blocks have no"
            f" hook_resid_{match[2]}, because attention and MLP run in parallel;"
            " use hook_resid_pre or hook_resid_post"
        )
    raise HookPointError(
        f"hook point {hook!r} is not on {model.name!r}; it has {model.n_layers} blocks: "
        f"use 'blocks.0.hook_resid_post' to 'blocks.{model.n_layers - 1}.hook_resid_post',"
        f" hook_resid_pre or hook_resid_mid, or '{EMBED}'"
    )


def resolve_layers(layers: Layers, model: HasHookPoints) -> list[str]:
    """Return the full names of a selection of hook points, each once.

    ``"all"`` and ``"proportional"`` select every ``hook_resid_post``.

    Raises:
        HookPointError: the selection is empty, or the model lacks one of its hook points.
    """
    if isinstance(layers, str) and layers in ("all", "proportional"):
        posts = [residual_post(layer) for layer in range(model.n_layers)]
        # States that were computed elsewhere are there for some layers only.
        return [name for name in posts if name in model.hook_points] or list(model.hook_points)
    # A number of numpy is no int, and no sequence either.
    chosen: Any = [layers] if isinstance(layers, str) or hasattr(layers, "__index__") else layers
    selection = list(chosen)
    if not selection:
        raise HookPointError(
            f"no layer of {model.name!r} is selected; give 'all', a layer, or a list of layers"
        )
    return list(dict.fromkeys(resolve(layer, model) for layer in selection))


def resolved_parts(hook: int | str, model: HasHookPoints) -> list[str]:
    """Return the names of the hook points that a layer or a name, joint or not, stands for."""
    return [
        resolve(part, model) for part in (joint_parts(hook) if isinstance(hook, str) else [hook])
    ]


def layer_pairs(
    source_layers: Layers, target_layers: Layers, source: HasHookPoints, target: HasHookPoints
) -> list[tuple[str, str]]:
    """Return the hook pairs to fit: every source hook point with every target hook point.

    If one selection is ``"proportional"``, each hook point of the other is paired only with the
    one at equal relative depth.
    """
    sources, targets = resolve_layers(source_layers, source), resolve_layers(target_layers, target)
    pairs = [(s, t) for s in sources for t in targets]
    if target_layers == "proportional":
        pairs = [(s, _at_relative_depth(depth(s) / source.n_layers, target)) for s in sources]
    elif source_layers == "proportional":
        pairs = [(_at_relative_depth(depth(t) / target.n_layers, source), t) for t in targets]
    return list(dict.fromkeys(pairs))


def _at_relative_depth(share: float, model: HasHookPoints) -> str:
    # Depth l + 1 is after block l, so layer = share · n_layers - 1, rounded and kept in range.
    wanted = min(model.n_layers - 1, max(0, round(share * model.n_layers) - 1))
    kept = [name for name in model.hook_points if name.endswith("hook_resid_post")]
    # A model has all of them; of states that were computed elsewhere the nearest is taken.
    return min(kept, key=lambda name: abs(depth(name) - 1 - wanted), default=residual_post(wanted))


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
