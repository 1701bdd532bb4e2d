"""Options of the commands that learn from texts at one hook point of a model.

    @dataclass(frozen=True, kw_only=True)
    class LearnVector(LearnOptions):
        contrast: str

    SteeringVector.mean_difference(model, contrast, **self.reading, read=self.read)

Limits: ``read`` stands in the commands, because a probe can also be fitted on every token.
"""

from dataclasses import dataclass
from typing import Any, Literal

from lrt_lens.cli._models import ModelOptions


@dataclass(frozen=True, kw_only=True)
class LearnOptions(ModelOptions):
    """Options of a command that reads states of texts at a hook point."""

    model: str
    """Model on which it is learnt: hub id or local folder."""
    at: int | str
    """Hook point, or the number of a block for the stream after it."""
    short_texts: Literal["drop", "refuse", "unmasked"] = "drop"
    """Rule for texts that the mask leaves nothing of; a pair is dropped as a whole."""
    truncation: Literal["left", "right"] | None = None
    """End that is cut off texts longer than the context; by default they are refused."""
    skip_first: int = 4
    """First positions of a text that are not read; a vector does not steer them either."""
    name: str | None = None
    """Name in tables; by default that of the file."""

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments of the functions that read states of texts."""
        names = ("at", "short_texts", "truncation", "skip_first")
        return {name: getattr(self, name) for name in names}
