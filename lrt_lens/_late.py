"""Functions that a method calls although they live in a package above its own.

Problem: `CrossMoments.fit` returns a `StitchGrid`, whose module needs `CrossMoments`; a method that
imported it would close a circle. Mechanism: `lrt_lens/__init__.py` says once which function stands
behind which method; `implementation` imports it when the method is first called.

    provide({"CrossMoments.fit": "lrt_lens.stitching:fit_grid"})
    implementation("CrossMoments.fit")(moments, solver)

Limits: for methods that users have and that would otherwise be free functions; nothing inside the
package may call them (`tests/test_structure.py` lists them).
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

_PLACES: dict[str, str] = {}


def provide(places: Mapping[str, str]) -> None:
    """Say where the function behind each method lives: ``{"Class.method": "package:function"}``."""
    _PLACES.update(places)


def provided(method: str) -> bool:
    """Return whether a function stands behind ``method``."""
    return method in _PLACES


def implementation(method: str) -> Callable[..., Any]:
    """Return the function behind ``method``, imported on first use."""
    module, _, function = _PLACES[method].partition(":")
    return getattr(import_module(module), function)
