"""One verb for everything that a stitch carries: `Stitch.transfer` dispatches on the type of the
artefact.

An adapter registers itself: ``@transfer_artefact.register`` on a function ``(artefact, stitch,
**options)``. This module knows none. Classes of libraries that are slow to import are not
registered: their adapter is imported when the first of them arrives (`_ADAPTERS`).
"""

from functools import singledispatch
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrt_lens.stitching._stitch import Stitch

_ADAPTERS = {"sae_lens": ("lrt_lens.adapters.saes._transfer", "transfer_sae")}
"""Library → module and function that carry its objects."""


@singledispatch
def transfer_artefact(artefact: Any, stitch: "Stitch", **options: Any) -> Any:
    """The artefact carried to the stitch's target model."""
    for kind in type(artefact).__mro__:
        if found := _ADAPTERS.get(kind.__module__.partition(".")[0]):
            module, function = found
            return getattr(import_module(module), function)(artefact, stitch, **options)
    known = sorted(kind.__name__ for kind in transfer_artefact.registry if kind is not object)
    raise TypeError(
        f"a stitch cannot carry a {type(artefact).__name__}; it carries {[*known, 'SAELens SAE']}"
    )
