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
the function is called.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar


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
        TypeError: an option is not a field of ``kind``.
    """
    # Checked here, because `replace` reports an unknown field in words of __init__.
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f"unknown option {', '.join(unknown)}; {kind.__name__} has {known}: use these names"
        )
    return replace(settings or kind(), **options)


def takes(kind: type[Settings]) -> Callable[[Function], Function]:
    """Return a decorator that shows the fields of ``kind`` in the signature of a function.

    The function must end in ``**options``; `help` and Jupyter then list each field and its default.
    """

    def show(function: Function) -> Function:
        signature = inspect.signature(function)
        # Options that are also real parameters would appear twice.
        parameters = list(signature.parameters.values())
        if parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
            raise TypeError(f"{function.__name__} takes no **options")
        named, defaults = {parameter.name for parameter in parameters}, kind()
        shown = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(defaults, field.name),
                annotation=field.type,
            )
            for field in fields(kind)
            if field.name not in named
        ]
        # inspect.signature, and with it help() and Jupyter, reads __signature__ first.
        function.__signature__ = signature.replace(parameters=[*parameters[:-1], *shown])
        return function

    return show
