"""The command ``lrt-lens merge``: moments of all shards of a run, fitted together.

    lrt-lens merge OUT stitches/moments-*.safetensors

Limits: every shard of the run is needed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from lrt_lens.cli._command import Command
from lrt_lens.cli._outputs import start_run, write_outputs


@dataclass(frozen=True, kw_only=True)
class Merge(Command):
    """Add the moments of all shards of a run, fit, and write the same results as fit.

        lrt-lens merge OUT stitches/moments-*-of-8.safetensors

    Next: as after `lrt-lens fit`.
    """

    words: ClassVar[str] = "merge"

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder for moments.safetensors, results.json, report.html and the best stitch."""
    shards: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="SHARDS")]
    """The files of `lrt-lens fit --shard i/N`, in any order."""
    alpha: float | None = None
    """Ridge penalty relative to the mean variance; by default chosen by cross-validation."""
    standardize: bool = False
    """Scale source dimensions to unit variance first; useful if a few dimensions are very large."""
    placement: Literal["device", "disk"] = "device"
    """Place of the moments: in memory, or in a mapped file."""
    placement_folder: Path | None = None
    """Folder of the mapped file; by default the system's folder for temporary files."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        """Merge, fit and write the results."""
        from lrt_lens._repr_html import names_in_tables
        from lrt_lens.moments._scale_out import merge_shards
        from lrt_lens.stitching._fit import fit_grid
        from lrt_lens.stitching.solvers._ridge import Ridge

        solver = Ridge(alpha=self.alpha, standardize=self.standardize)
        start_run(self.out, self)
        moments = merge_shards(
            self.shards, placement=self.placement, placement_folder=self.placement_folder
        )
        moments.save(self.out / "moments.safetensors")
        models = (moments.provenance.source, moments.provenance.target)
        names = names_in_tables(*(model.name if model else "unknown" for model in models))
        grid = fit_grid(moments, solver, progress=self.progress)
        write_outputs(self.out, self, grid, names)
