"""Names of residual hook points.

TransformerLens names are the vocabulary: ``blocks.{l}.hook_resid_pre|mid|post`` and ``hook_embed``.
An int ``l`` is short for ``blocks.{l}.hook_resid_post`` and ``-1`` is the last. The stream that
leaves block ``l - 1`` enters block ``l``, so ``blocks.{l}.hook_resid_pre`` and
``blocks.{l-1}.hook_resid_post`` are one place and compare equal everywhere (`same_place`).

    resolve(3, model)            # 'blocks.3.hook_resid_post'
    same_place("blocks.4.hook_resid_pre", "blocks.3.hook_resid_post")   # True

Names are validated here, against the model's real range: TransformerLens 3.9 answers a wrong name
with an empty cache.
"""

import re
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from lrt_lens.errors import HookPointError

EMBED = "hook_embed"
_RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|mid|post)")

Layers = Literal["all", "proportional"] | int | str | Sequence[int | str]
"""Which hook points: ``"all"`` (every ``hook_resid_post``), one, or a list; ``"proportional"``
pairs equal relative depths.
"""


@runtime_checkable
class HasHookPoints(Protocol):
    """What `resolve` needs to know of a model."""

    name: str
    n_layers: int
    hook_points: tuple[str, ...]


def residual_post(layer: int) -> str:
    """The name of the stream that leaves block ``layer``."""
    return f"blocks.{layer}.hook_resid_post"


def place(name: str) -> str:
    """The one name of a place in the stream: ``resid_pre`` of block ``l ≥ 1`` becomes
    ``resid_post`` of block ``l - 1``.
    """
    match = _RESIDUAL.fullmatch(name)
    if match and match[2] == "pre" and int(match[1]) > 0:
        return residual_post(int(match[1]) - 1)
    return name


def same_place(first: str, second: str) -> bool:
    """Whether two names mean the same place in the residual stream."""
    return place(first) == place(second)


def short_hook(hook_point: str) -> str:
    """A hook name as short as an axis or a small table needs it.

    `blocks.3.hook_resid_post` becomes `3.post` (likewise pre and mid) and `hook_embed` becomes
    `embed`; any other name only loses its `blocks.` and `hook_`.
    """
    return re.sub(r"^blocks\.|hook_(?:resid_)?", "", hook_point)


def joint_name(names: Sequence[str]) -> str:
    """One name for several hook points of one model side by side: their streams concatenated,
    [position, sum of widths].
    """
    return "+".join(names)


def joint_parts(name: str) -> list[str]:
    """The hook points that a name joins; the name alone where it joins none."""
    return name.split("+")


def depth(name: str) -> float:
    """How many blocks have run when this place is reached: -1 for the embedding, ``l + 0.5``
    between attention and MLP.
    """
    if len(parts := joint_parts(name)) > 1:
        return max(map(depth, parts))
    match = _RESIDUAL.fullmatch(name)
    if match is None:
        return -1.0
    return int(match[1]) + {"pre": 0.0, "mid": 0.5, "post": 1.0}[match[2]]


def resolve(hook: int | str, model: HasHookPoints) -> str:
    """The full name of a hook point of ``model``; `HookPointError` names the model's real range
    where there is none.
    """
    if isinstance(hook, int):
        if not -model.n_layers <= hook < model.n_layers:
            raise HookPointError(
                f"layer {hook} is not on {model.name!r}; it has {model.n_layers} blocks: use 0 to {model.n_layers - 1}, or -1 for the last"
            )
        return residual_post(hook % model.n_layers)
    if hook in model.hook_points:
        return hook
    match = _RESIDUAL.fullmatch(hook)
    if match and int(match[1]) < model.n_layers:
        raise HookPointError(
            f"hook point {hook!r} is not on {model.name!r}: its blocks have no hook_resid_{match[2]} "
            "(attention and MLP run in parallel there); use hook_resid_pre or hook_resid_post"
        )
    raise HookPointError(
        f"hook point {hook!r} is not on {model.name!r}; it has {model.n_layers} blocks: "
        f"use 'blocks.0.hook_resid_post' to 'blocks.{model.n_layers - 1}.hook_resid_post', hook_resid_pre or hook_resid_mid, or '{EMBED}'"
    )


def resolve_layers(layers: Layers, model: HasHookPoints) -> list[str]:
    """Full names for a selection of layers (``"all"`` and ``"proportional"``: every
    ``hook_resid_post``).
    """
    if isinstance(layers, str) and layers in ("all", "proportional"):
        return [residual_post(layer) for layer in range(model.n_layers)]
    chosen = [layers] if isinstance(layers, int | str) else list(layers)
    if not chosen:
        raise HookPointError(
            f"no layer chosen on {model.name!r}; give 'all', a layer, or a list of layers"
        )
    return list(dict.fromkeys(resolve(layer, model) for layer in chosen))


def layer_pairs(
    source_layers: Layers, target_layers: Layers, source: HasHookPoints, target: HasHookPoints
) -> list[tuple[str, str]]:
    """Pairs of hook points to fit: the product of both selections, or equal relative depths where
    one is ``"proportional"``.
    """
    sources, targets = resolve_layers(source_layers, source), resolve_layers(target_layers, target)
    if target_layers == "proportional":
        return list(
            dict.fromkeys(
                (name, _at_share(depth(name) / source.n_layers, target)) for name in sources
            )
        )
    if source_layers == "proportional":
        return list(
            dict.fromkeys(
                (_at_share(depth(name) / target.n_layers, source), name) for name in targets
            )
        )
    return [(s, t) for s in sources for t in targets]


def _at_share(share: float, model: HasHookPoints) -> str:
    return residual_post(min(model.n_layers - 1, max(0, round(share * model.n_layers) - 1)))
