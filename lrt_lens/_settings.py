"""Settings objects whose fields can also be passed as keywords.

Problem: a harvest has thirteen settings, and four functions take them. Mechanism: the settings are
one frozen dataclass; a function takes ``settings`` or, as ``**options``, any of its fields:

    @dataclass(frozen=True)
    class HarvestSettings(Settings):
        n_tokens: int | None = 200_000

    @takes(HarvestSettings)
    def harvest(pair, documents, *, settings: HarvestSettings | None = None, **options: Any):
        settings = resolve(HarvestSettings, settings, options)

    harvest(pair, documents, n_tokens=10_000)
    harvest(pair, documents, settings=HarvestSettings(n_tokens=10_000))

Limits: a type checker does not know the names in ``**options``; a wrong name is a TypeError when
the function is called. It lists all names and suggests the nearest.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast


@dataclass(frozen=True)
class Settings:
    """Base of all settings objects: a frozen dataclass in which every field has a default."""


Kind = TypeVar("Kind", bound=Settings)
"""A class of settings."""
Function = TypeVar("Function", bound=Callable[..., Any])
"""A function that takes settings."""


def resolve(kind: type[Kind], settings: Kind | None, options: Mapping[str, Any]) -> Kind:
    """Return ``settings`` (the defaults where None) with the fields in ``options`` replaced.

    Raises:
        TypeError: an option is not a field of ``kind``, or ``settings`` is no ``kind``.
    """
    # Checked here, because `replace` reports an unknown field in words of __init__.
    _refuse_unknown(options, kind, {})
    _refuse_other_kind(settings, kind)
    return replace(settings or kind(), **options)


def takes(kind: type[Settings]) -> Callable[[Function], Function]:
    """Return a decorator that adds the fields of ``kind`` to the signature of a function.

    The function must end in ``**options``; `help` and Jupyter then list each field and its default.
    Unknown keywords, and ``settings`` of another class, are refused before the function is called.
    """

    def show(function: Function) -> Function:
        signature = inspect.signature(function)
        # Options that are also real parameters would appear twice.
        parameters = list(signature.parameters.values())
        if parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
            raise TypeError(
                f"{function.__name__} takes no **options; end its signature in **options: Any"
            )
        own, defaults = [parameter.name for parameter in parameters[:-1]], kind()
        shown = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(defaults, field.name),
                annotation=field.type,
            )
            for field in fields(kind)
            if field.name not in own
        ]

        @functools.wraps(function)
        def checked(*args: Any, **keywords: Any) -> Any:
            _refuse_unknown(keywords, kind, {function.__name__: own})
            _refuse_other_kind(keywords.get("settings"), kind)
            return function(*args, **keywords)

        # inspect.signature, and with it help() and Jupyter, reads __signature__ first.
        vars(checked)["__signature__"] = signature.replace(parameters=[*parameters[:-1], *shown])
        return cast(Function, checked)

    return show


def _refuse_unknown(
    options: Mapping[str, Any], kind: type[Settings], own: Mapping[str, list[str]]
) -> None:
    """Raise if an option is neither a field of ``kind`` nor a parameter of the function.

    ``own`` holds the parameters of the function by its name; it is empty if only fields count.
    """
    known = {kind.__name__: [field.name for field in fields(kind)]}
    for function, names in own.items():
        known[function] = [name for name in names if name not in ("self", "cls")]
    accepted = [name for names in known.values() for name in names]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        near = [
            repr(close)
            for name in unknown
            for close in difflib.get_close_matches(name, accepted, n=1)
        ]
        homes = ", ".join(f"{home} has {names}" for home, names in known.items())
        remedy = f"did you mean {' and '.join(near)}?" if near else "use these names"
        raise TypeError(f"unknown option {', '.join(unknown)}; {homes}: {remedy}")


def _refuse_other_kind(settings: object, kind: type[Settings]) -> None:
    if settings is not None and not isinstance(settings, kind):
        example = fields(kind)[0].name
        raise TypeError(
            f"settings is of type {type(settings).__name__}; expected {kind.__name__}, such as "
            f"{kind.__name__}({example}=…): give its fields as keywords, or an object of that class"
        )
