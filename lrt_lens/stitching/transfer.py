"""One verb for everything that a stitch carries: `Stitch.transfer` dispatches on the type of the artefact.

An adapter registers itself: ``@transfer_artefact.register`` on a function ``(artefact, stitch, **options)``. This module knows none.
"""

from functools import singledispatch
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrt_lens.stitching.stitch import Stitch


@singledispatch
def transfer_artefact(artefact: Any, stitch: "Stitch", **options: Any) -> Any:  # noqa: ARG001 (the signature adapters register with)
    """The artefact carried to the stitch's target model."""
    known = sorted(kind.__name__ for kind in transfer_artefact.registry if kind is not object)
    raise TypeError(f"a stitch cannot carry a {type(artefact).__name__}; it carries {known or 'SteeringVector'}")
