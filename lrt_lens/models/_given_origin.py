"""Hook point and model of an artefact that a user makes.

Problem: a vector of one's own is written with what is at hand, ``SteeringVector(direction, 9,
pair.source)``, and an artefact keeps the name of its hook point and the identity of its model.
Mechanism: `set_origin` replaces the former by the latter, by the rule of every other function: the
number of a block stands for the stream after it, and -1 for the last block.

    def __post_init__(self):
        set_origin(self)

Limits: names of hook points are not compared with those of the model.
"""

from typing import Any

from lrt_lens.models._hook_points import hook_name
from lrt_lens.models._identity import ModelIdentity


def set_origin(artefact: Any) -> None:
    """Replace the hook point and the model with which a user made an artefact by name and identity.

    The artefact is a frozen dataclass with the fields ``hook``, a name or the number of a block,
    and ``model``, an identity, a model or None.

    Raises:
        HookPointError: the model has no such block.
        TypeError: the hook point or the model is of another class.
    """
    # A `HookedModel` has an identity; this module does not import that class.
    identity = getattr(artefact.model, "identity", artefact.model)
    if identity is not None and not isinstance(identity, ModelIdentity):
        raise TypeError(
            f"model is {type(identity).__name__} {str(identity)[:80]!r}; expected a HookedModel,"
            " such as pair.source or HookedModel.load(…), its identity, or None"
        )
    known: tuple[Any, ...] = () if identity is None else (identity.n_layers, identity.name)
    object.__setattr__(artefact, "model", identity)
    object.__setattr__(artefact, "hook", hook_name(artefact.hook, *known))
