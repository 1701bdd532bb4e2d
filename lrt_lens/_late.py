"""Functions that a method calls although they are defined in a package above its own.

Problem: `CrossMoments.fit` returns a `StitchGrid`, whose module needs `CrossMoments`; a method that
imported it would close a circle. Mechanism: `lrt_lens/__init__.py` registers the function that
implements each such method; `implementation` imports it when the method is first called.

    provide({"CrossMoments.fit": "lrt_lens.stitching:fit_grid"})
    implementation("CrossMoments.fit")(moments, solver)

Limits: only for methods that users call and that would otherwise be free functions. Code inside the
package must not call them (`tests/test_structure.py` lists them).
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

_IMPLEMENTATIONS: dict[str, str] = {}
"""Function of each method, as ``"package:function"``; text, so that nothing is imported yet."""


def provide(implementations: Mapping[str, str]) -> None:
    """Register the function behind each method: ``{"Class.method": "package:function"}``."""
    _IMPLEMENTATIONS.update(implementations)


def provided(method: str) -> bool:
    """Return whether a function is registered for ``method``."""
    return method in _IMPLEMENTATIONS


def implementation(method: str) -> Callable[..., Any]:
    """Return the function registered for ``method``, imported on first use.

    Raises:
        KeyError: no function is registered for ``method``.
    """
    # "package:function", the form of entry points
    module, _, function = _IMPLEMENTATIONS[method].partition(":")
    return getattr(import_module(module), function)
