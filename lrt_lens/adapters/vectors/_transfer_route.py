"""The origin of a transferred vector: its source, hook points and map.

Problem: a vector in a file says that it was transferred, and not by what. Mechanism: a stitch is
described by a few facts, which the vector keeps.

    stitch.transfer(vector).route        # TransferRoute(source='small', source_hook='blocks.2…', …)

Limits: the facts identify the maps by a hash; the maps themselves are in the stitch folder.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TransferRoute:
    """Facts about the stitch that transferred an artefact."""

    source: str
    """Name of the model on which the artefact was learnt; empty if unknown."""
    revision: str
    """Revision of that model, or ``"unknown"``."""
    source_hook: str
    """Hook point of that model."""
    target_hook: str
    """Hook point to which the artefact was transferred."""
    solver: str
    """Solver that fitted the maps, as scores name it; empty if unknown."""
    n_tokens: int | None
    """Number of tokens on which the maps were fitted; None if unknown."""
    map_hash: str
    """Hash of the map from the source to the target, in hexadecimal."""
