"""Check that an artefact, a map or measurements belong to a model, a hook point and a width.

Problem: a vector, a probe, a map, rows or moments of another model or hook point give wrong numbers
without an error. Mechanism: everything that was made on a model has an `Origin` (hook point, model,
width), and each question about origins is one function, which every entry point asks:

    refuse_foreign(vector.origin, stitch.start)         # does this vector belong here?
    refuse_other_reader(vector.origin, model, "steer")  # may this model use it?
    refuse_other_stream(v.origin, w.origin, …)          # are both in one stream?
    refuse_other_map("x", map_ends(x), expected)        # does this map join these hook points?
    refuse_other_models("these moments", own, pair)     # were they read on these two models?

Limits: what is not known (None) is not compared. SAEs record their origin in the metadata of
SAELens, which `lrt_lens.adapters.saes._compatibility` reads.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.models._hook_points import RESIDUAL, joint_parts, place, same_place
from lrt_lens.models._identity import ModelIdentity

logger = logging.getLogger(__name__)

_MOST_DIGITS = 9
"""Largest number of digits of the number of a block."""

_UNNAMED = {"source", "target"}
"""Default hook points of an `AffineMap` and of moments of two tensors: they name no place."""


@dataclass(frozen=True)
class Origin:
    """Hook point, model and width at which something was made, starts or ends."""

    what: str
    """Subject of a message, such as ``"vector 'mood'"`` or ``"this stitch"``."""
    hook: str | None = None
    """Name of the hook point; None if it is not known."""
    model: ModelIdentity | None = None
    """Model; None if it is not known."""
    width: int | None = None
    """Number of dimensions at the hook point; None if it is not known."""
    made: str = "was learnt"
    """Verb of a message, such as ``"was learnt"``, ``"were read"`` or ``"starts"``."""

    def is_at(self, hook: str | None) -> bool:
        """Return whether the hook point may be ``hook``: it is, or one of both is not known."""
        return self.hook is None or hook is None or same_place(self.hook, hook)

    @property
    def place(self) -> str:
        """Hook point and model, as in ``"'blocks.3.hook_resid_post' of 'small'"``."""
        return f"{self.hook!r}{f' of {self.model.name!r}' if self.model else ''}"


Ends = tuple[Origin, Origin]
"""Origins at which a map starts and ends."""


@runtime_checkable
class Joins(Protocol):
    """Attributes of a map that `map_ends` reads, such as those of an `AffineMap`."""

    @property
    def source_hook(self) -> str:
        """Hook point at which the map starts."""
        ...

    @property
    def target_hook(self) -> str:
        """Hook point at which the map ends."""
        ...

    @property
    def source_model(self) -> ModelIdentity | None:
        """Model at which the map starts; None if it is not known."""
        ...

    @property
    def target_model(self) -> ModelIdentity | None:
        """Model at which the map ends; None if it is not known."""
        ...

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of dimensions at both ends."""
        ...


def map_ends(one: Joins) -> Ends:
    """Return the origins at which a map starts and ends."""
    return (
        Origin("this map", one.source_hook, one.source_model, one.widths[0], "starts"),
        Origin("this map", one.target_hook, one.target_model, one.widths[1], "ends"),
    )


def refuse_foreign(own: Origin, *expected: Origin, remedy: str = "learn it there") -> int:
    """Return the index of the first of ``expected`` to which an artefact belongs.

    Hook points are compared first, then models (with tokenizer and basis), then widths.

    Args:
        own: where the artefact was made.
        expected: one or several origins to which it may belong, of one thing such as a stitch.
        remedy: end of the message about another hook point.

    Raises:
        MismatchError: the artefact belongs to none of them.
    """
    at_hook = [i for i, one in enumerate(expected) if own.is_at(one.hook)]
    if not at_hook:
        places = " and ".join(one.place for one in expected)
        raise MismatchError(
            f"{own.what} {own.made} at {_on(own)}; {expected[0].what} {expected[0].made} at "
            f"{places}; {remedy}"
        )
    found = expected[at_hook[0]]
    if own.model is not None and found.model is not None:
        found.model.refuse_other(own.model, f"{own.what} {own.made} on a model that")
    refuse_other_width(own, found)
    return at_hook[0]


def refuse_other_width(own: Origin, expected: Origin) -> None:
    """Raise `MismatchError` if both widths are known and differ."""
    if own.width is None or expected.width is None or own.width == expected.width:
        return
    verb = "have" if own.made.startswith("were") else "has"
    raise MismatchError(
        f"{own.what} {verb} width {own.width}; expected {expected.width} dimensions, as at "
        f"{expected.place}: give one of this width, or transfer it with a stitch first"
    )


def refuse_other_reader(own: Origin, model: ModelIdentity, use: str) -> None:
    """Raise `MismatchError` unless an artefact may be used on ``model`` itself.

    Weights and basis are compared, the tokenizer is not: a direction depends on the stream, not on
    how texts become tokens. A warning says so if the special tokens before every text are others,
    because they change the stream. ``use`` is the verb of the message, such as ``"steer"``.
    """
    _refuse_other_reader(own, model, use)
    if own.model is not None and not own.model.same_prefix(model):
        logger.warning(
            "%s %s behind %s, and %r reads texts behind %s: their states differ; load the model"
            " as it was loaded there",
            own.what,
            own.made,
            _prefix(own.model),
            model.name,
            _prefix(model),
        )


def _refuse_other_reader(own: Origin, model: ModelIdentity, use: str) -> None:
    if own.model is not None:
        role = f"the model to {use} by {own.what}"
        own.model.refuse_other(model, role, tokens=False)
    refuse_other_width(own, Origin("the model", own.hook, model, model.d_model))


def _prefix(model: ModelIdentity) -> str:
    """Return the special tokens before every text of a model, as messages show them."""
    if model.prefix is None:
        return "BOS" if model.prepend_bos else "no BOS"
    return f"the special tokens {list(model.prefix)}" if model.prefix else "no special token"


def refuse_other_stream(own: Origin, other: Origin, what: str, remedy: str) -> None:
    """Raise `MismatchError` unless two directions are in one stream, so that both can be combined.

    ``what`` says that they cannot, such as ``"do not add"``. The tokenizer is not compared.
    """
    if not own.is_at(other.hook):
        raise MismatchError(
            f"{own.what} at {own.place} and {other.what} at {other.place} {what}; {remedy}"
        )
    if own.model is not None and other.model is not None:
        own.model.refuse_other(other.model, f"the model of {other.what}", tokens=False)
    refuse_other_width(other, own)


def refuse_other_map(
    what: str,
    own: Ends,
    expected: Ends,
    *,
    verb: str = "maps",
    remedy: str = "fit that pair of hook points",
) -> None:
    """Raise `MismatchError` unless a map joins two hook points, of these widths and models.

    Hook points with the default names are not compared.

    Args:
        what: subject of the message, such as ``"token_map"``.
        own: where the map starts and ends.
        expected: where it should start and end.
        verb: verb of the message; rows and moments do not map, they ``"join"``.
        remedy: end of the message about other hook points or widths.
    """
    pairs = tuple(zip(own, expected, strict=True))
    unnamed = any({end.hook for end in ends} == _UNNAMED for ends in (own, expected))
    is_there = unnamed or all(ours.is_at(theirs.hook) for ours, theirs in pairs)
    if is_there:
        refuse_other_models(what, _models(own), _models(expected))
    # Widths are shown only if they are what differs.
    widths = [(ours.width, theirs.width) for ours, theirs in pairs]
    if not is_there or any(a != b for a, b in widths if a is not None and b is not None):
        shown = [_route(ends, with_widths=is_there) for ends in (own, expected)]
        raise MismatchError(f"{what} {verb} {shown[0]}; expected {shown[1]}: {remedy}")


def refuse_other_models(
    what: str, own: Sequence[ModelIdentity | None], expected: Sequence[ModelIdentity | None]
) -> None:
    """Raise `MismatchError` unless source and target of ``what`` are the expected models.

    ``what`` is the subject of the message; with an empty one the message is about the models
    themselves.
    """
    of = f" of {what}" if what else ""
    for role, ours, theirs in zip(("source", "target"), own, expected, strict=True):
        if ours is not None and theirs is not None:
            theirs.refuse_other(ours, f"the {role} model{of}")


def identity_of(role: str, model: object) -> ModelIdentity | None:
    """Return the identity of a loaded model; None if there is no model.

    Args:
        role: name of the parameter, for the message, such as ``"source"``.
        model: a `HookedModel`, or None.

    Raises:
        TypeError: it is something else, such as a pair of models.
    """
    if model is None:
        return None
    identity = getattr(model, "identity", None)
    if isinstance(identity, ModelIdentity):
        return identity
    remedy = "load it with HookedModel.load"
    if hasattr(model, "source") and hasattr(model, "target"):
        remedy = "give both models of a pair, check(pair.source, pair.target)"
    raise TypeError(f"{role} is a {type(model).__name__}; expected a HookedModel: {remedy}")


def is_model(identity: ModelIdentity | None, model: ModelIdentity) -> bool:
    """Return whether an identity may be that of ``model``, by the rule of `refuse_other_reader`."""
    try:
        _refuse_other_reader(Origin("it", model=identity), model, "use")
    except MismatchError:
        return False
    return True


def refuse_impossible_hook(path: Path, hook: str, model: ModelIdentity | None) -> None:
    """Raise `FileFormatError` if a file names a block that its model does not have."""
    part = _missing_part(hook, model)
    if model is not None and part is not None:
        raise FileFormatError(
            f"{str(path)!r} is about the hook point {part[:80]!r}, and its model"
            f" {model.name!r} has {model.n_layers} blocks: it was changed, or mixed from two"
            " files; copy it, or save it again"
        )


def refuse_impossible_origin(own: Origin) -> None:
    """Raise `MismatchError` if a model has no such block, or no stream of this width there.

    Only the width of the residual stream is known.
    """
    if own.model is None or own.hook is None:
        return
    part = _missing_part(own.hook, own.model)
    if part is not None:
        raise MismatchError(
            f"{own.what} is at {part[:80]!r}, and {own.model.name!r} has {own.model.n_layers}"
            " blocks, counted from 0: give a hook point of this model, or the model that it"
            " belongs to"
        )
    if RESIDUAL.fullmatch(place(own.hook)) is not None:
        refuse_other_width(own, Origin("its model", own.hook, own.model, own.model.d_model))


def _missing_part(hook: str, model: ModelIdentity | None) -> str | None:
    """Return the part of a hook point that names a block which a model does not have."""
    for part in joint_parts(hook):
        block = RESIDUAL.fullmatch(part)
        # A number of many digits is none that int() reads.
        if model is None or block is None:
            continue
        # The stream before a block that is not there is the output of the last one.
        n_hooks = model.n_layers + (block[2] == "pre")
        if len(block[1]) > _MOST_DIGITS or int(block[1]) >= n_hooks:
            return part
    return None


def _models(ends: Ends) -> tuple[ModelIdentity | None, ModelIdentity | None]:
    return ends[0].model, ends[1].model


def _on(origin: Origin) -> str:
    return f"{origin.hook!r}{f' on {origin.model.name!r}' if origin.model else ''}"


def _route(ends: Ends, *, with_widths: bool) -> str:
    widths = [f" [{end.width}]" if with_widths and end.width else "" for end in ends]
    return " → ".join(f"{end.hook!r}{width}" for end, width in zip(ends, widths, strict=True))
