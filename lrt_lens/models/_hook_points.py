"""Hook points of a model: what a user names, resolved to the names that the model has.

Problem: TransformerLens 3.9 answers a wrong name with an empty cache. Mechanism: names are checked
against the hook points that the model has. An int ``l`` stands for ``blocks.{l}.hook_resid_post``,
and ``-1`` for the last block.

    resolve(3, model)                      # 'blocks.3.hook_resid_post'
    resolve_layers("all", model)           # the hook_resid_post of every block

Limits: names of the residual stream, see `lrt_lens.models._hook_names`.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from lrt_lens.errors import HookPointError
from lrt_lens.models._hook_names import EMBED, RESIDUAL, depth, residual_post

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
    if isinstance(hook, int):
        if not -model.n_layers <= hook < model.n_layers:
            raise HookPointError(
                f"layer {hook} is not on {model.name!r}; it has {model.n_layers} blocks:"
                f" use 0 to {model.n_layers - 1}, or -1 for the last"
            )
        # -1 is the last block, as in a list: -1 % n_layers = n_layers - 1.
        return residual_post(hook % model.n_layers)
    if hook in model.hook_points:
        return hook
    match = RESIDUAL.fullmatch(hook)
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
        return [residual_post(layer) for layer in range(model.n_layers)]
    selection = [layers] if isinstance(layers, int | str) else list(layers)
    if not selection:
        raise HookPointError(
            f"no layer of {model.name!r} is selected; give 'all', a layer, or a list of layers"
        )
    return list(dict.fromkeys(resolve(layer, model) for layer in selection))


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
    return residual_post(min(model.n_layers - 1, max(0, round(share * model.n_layers) - 1)))
