"""Options and checks of the commands that run two models on documents.

    @dataclass(frozen=True, kw_only=True)
    class Survey(PairCommand):
        out: Path = Path("survey")

Limits: torch is imported by the methods only, so that ``--help`` answers at once.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lrt_lens.cli._models import PairOptions
from lrt_lens.cli._windows import WindowOptions

if TYPE_CHECKING:
    from lrt_lens.moments._plan import ModelShape
    from lrt_lens.stitching.solvers._ridge import Ridge


@dataclass(frozen=True, kw_only=True)
class PairCommand(WindowOptions, PairOptions):
    """Options of a command that runs two models on the same documents."""

    out: Path = Path("stitches")
    """Folder for the results."""
    source_layers: Annotated[str, tyro.conf.arg(metavar="all|proportional|3,5|HOOK")] = "all"
    """Layers of the source: 'all', 'proportional', or numbers and hook points, separated by
    commas."""
    target_layers: Annotated[str, tyro.conf.arg(metavar="all|proportional|3,5|HOOK")] = "all"
    """Layers of the target, in the form of --source-layers."""
    alpha: float | None = None
    """Ridge penalty relative to the mean variance; by default chosen by cross-validation."""
    standardize: bool = False
    """Scale source dimensions to unit variance first; useful if a few dimensions are very large."""
    null: Literal["auto", "full", "sketch", "none"] = "auto"
    """Moments of shuffled pairs: in full, as a sketch, or none."""
    moment_dtype: Literal["float32", "float64"] = "float32"
    """Precision in which the moments of a batch are computed; they are added up in float64."""
    file_shares: int | None = None
    """Divide the files into so many shares: each process reads only its own, not all documents."""
    checkpoint_every: float = 120.0
    """Seconds between checkpoints, in the folder checkpoint/ below --out."""
    restart: bool = False
    """Remove the checkpoints of an earlier run first."""
    progress: bool = True
    """Show progress bars."""

    def check(self) -> None:
        """Raise ValueError for an option that would fail later, before anything is loaded."""
        from lrt_lens._numbers import checked_seconds
        from lrt_lens.moments._harvest_settings import HarvestSettings

        HarvestSettings(
            n_tokens=self.n_tokens,
            max_document_tokens=self.max_document_tokens,
            context_length=self.context_length,
            seed=self.seed,
            file_shares=self.file_shares,
        )
        checked_seconds(self.checkpoint_every)
        _ = self.solver, layers_of(self.source_layers), layers_of(self.target_layers)
        self.check_models()

    def shapes(self) -> "tuple[ModelShape, ModelShape]":
        """Return the shapes of both models, from their configs: no weights are loaded."""
        from lrt_lens.models._identity import model_name
        from lrt_lens.moments._plan import ModelShape

        source = ModelShape.of_pretrained(self.source, self.dtype, self.source_revision)
        target = ModelShape.of_pretrained(self.target, self.dtype, self.target_revision)
        return (
            replace(source, name=self.source_name or model_name(self.source)),
            replace(target, name=self.target_name or model_name(self.target)),
        )

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of `HarvestSettings` that these options set."""
        return {
            "source_layers": layers_of(self.source_layers),
            "target_layers": layers_of(self.target_layers),
            **self.windows,
            # The Python functions take True for "full for small grids, else a sketch".
            "null": True if self.null == "auto" else self.null,
            "moment_dtype": self.moment_dtype,
            "file_shares": self.file_shares,
        }

    @property
    def solver(self) -> "Ridge":
        """Ridge regression with the penalty of these options."""
        from lrt_lens.stitching.solvers._ridge import Ridge

        return Ridge(alpha=self.alpha, standardize=self.standardize)


def layers_of(text: str) -> Any:
    """Return the layers of an option: a word, or a list of numbers and hook points."""
    if text in ("all", "proportional"):
        return text
    parts = [part.strip() for part in text.split(",")]
    # A negative number counts layers from the end.
    return [int(part) if re.fullmatch("-?[0-9]{1,9}", part) else part for part in parts]
