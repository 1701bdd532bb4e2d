r"""The command ``lrt-lens diff``: directions that two models do not share, from their moments.

    lrt-lens diff stitches --hooks 2,3
    lrt-lens diff base tuned --documents texts.jsonl --hooks 3

Limits: promoted tokens and contexts need Python (`ModelDiff.read`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from lrt_lens._terminal import print_table, say
from lrt_lens.cli._command import Command
from lrt_lens.cli._models import check_loading
from lrt_lens.cli._outputs import start_run, write_run
from lrt_lens.cli._pair_command import layers_of

if TYPE_CHECKING:
    from lrt_lens.moments._cross_moments import CrossMoments

_TABLE = "diff.csv"
_SHOWN = ["kind", "index", "eigenvalue", "low", "high", "held_out", "noise", "above_noise"]
_SHOWN_ROWS = 3
"""Number of directions of each kind that are printed."""


@dataclass(frozen=True, kw_only=True)
class Diff(Command):
    r"""Find what one model holds that no linear map of another one explains, and the reverse.

    Works from the moments of a fit, or harvests them for two models. Kinds of directions: gained,
    lost and shared; difference and shift for equal widths. Writes results.json, report.html,
    run.toml, diff.csv, and every direction above the noise as a steering vector in `directions`.

        lrt-lens diff stitches --hooks 2,3
        lrt-lens diff base tuned --documents texts.jsonl --hooks 3

    Next: calibrate, export or transfer a file in `directions`, such as directions/gained-1.
    """

    words: ClassVar[str] = "diff"
    moments: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MOMENTS | SOURCE TARGET")
    ]
    """Folder of a fit or a file of moments; or two models, hub ids or local folders."""
    documents: str | None = None
    """File or folder of texts that two models read."""
    hooks: Annotated[str | None, tyro.conf.arg(metavar="3|2,3|HOOK,HOOK")] = None
    """Layer or hook point of both models, or of source and target. By default the only hook pair of
    the moments, or the middle layers of two models."""
    kind: tuple[Literal["gained", "lost", "difference", "shift", "shared"], ...] = ()
    """Kinds of directions; by default all that the widths allow."""
    n_directions: int = 10
    """Number of directions of each kind."""
    out: Path = Path("diff")
    """Folder for the results."""
    n_tokens: int = 100_000
    """Number of tokens that two models read."""
    context_length: int = 128
    """Number of tokens per window, BOS included."""
    device: str | None = None
    """Device of the models, such as cuda:0; by default the CPU."""
    dtype: str = "float32"
    """Precision of the weights."""
    seed: int = 0
    """Seed of the harvest."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        """Compare, write table, page and directions, and print the first of each kind."""
        from lrt_lens._files import make_folder, write_atomically
        from lrt_lens.diffing import diff

        self.check_numbers()
        hook = self._hook()
        self._check()
        start_run(self.out, self, [_TABLE])
        moments, hook = self._moments(hook)
        result = diff(moments, hook, kinds=self.kind or None, n_directions=self.n_directions)
        make_folder(self.out / "directions")
        written = []
        for kind in result.kinds:
            for index in range(1, result.n_above_noise(kind) + 1):
                path = self.out / "directions" / f"{kind}-{index}.safetensors"
                written.append(result.vector(kind, index).save(path))
        csv = result.table.to_csv(index=False).encode()
        write_atomically(self.out / _TABLE, lambda temporary: temporary.write_bytes(csv))
        models = (moments.provenance.source, moments.provenance.target)
        names = ["" if model is None else model.name for model in models]
        tables = {
            "pair": {"source": names[0], "target": names[1]},
            "hooks": {"source": result.source_hook, "target": result.target_hook},
            "diff": result.table,
            "n_tokens": result.n_tokens,
        }
        report = write_run(self.out, self, tables, title="What two models do not share")
        first = result.table[result.table["index"] <= _SHOWN_ROWS]
        print_table(f"{result.source_hook} → {result.target_hook}", first.loc[:, _SHOWN])
        say(f"Open {report}; {len(written)} directions above the noise: {self.out / 'directions'}")

    def _check(self) -> None:
        """Raise ValueError or OSError for what would fail after the models are loaded."""
        if len(self.moments) not in (1, 2):
            raise ValueError(
                f"{len(self.moments)} paths were given; expected one, of moments, or two models"
            )
        if len(self.moments) == 2:
            if self.documents is None:
                raise ValueError("--documents is missing: two models need texts that both read")
            check_loading(
                self.device, self.dtype, {"SOURCE": self.moments[0], "TARGET": self.moments[1]}
            )
            return
        if self.documents is not None:
            raise ValueError(
                "--documents was given with moments, which need no text; give two models, or leave "
                "it out"
            )
        if not self._file.is_file():
            raise FileNotFoundError(
                f"no moments at {str(self._file)!r}; give the folder of lrt-lens fit, a file of "
                "moments, or two models"
            )

    @property
    def _file(self) -> Path:
        path = Path(self.moments[0])
        return path / "moments.safetensors" if path.is_dir() else path

    def _hook(self) -> Any:
        """Return the hook points of ``--hooks`` as `diff` takes them."""
        if self.hooks is None:
            return None
        parts = layers_of(self.hooks)
        if isinstance(parts, str) or len(parts) > 2:
            raise ValueError(
                f"--hooks is {self.hooks!r}; expected one layer or hook point, or two separated by "
                "a comma"
            )
        return parts[0] if len(parts) == 1 else tuple(parts)

    def _moments(self, hook: Any) -> "tuple[CrossMoments, Any]":
        """Return the moments and the hook pair; two models read the documents first."""
        from lrt_lens.models import ModelPair
        from lrt_lens.moments import CrossMoments, harvest

        if len(self.moments) == 1:
            return CrossMoments.load(self._file), hook
        pair = ModelPair.load(*self.moments, device=self.device, dtype=self.dtype)
        if hook is None:
            hook = (pair.source.n_layers // 2, pair.target.n_layers // 2)
        hook = hook if isinstance(hook, tuple) else (hook, hook)
        moments = harvest(
            pair,
            self.documents,
            pairs=[hook],
            n_tokens=self.n_tokens,
            context_length=self.context_length,
            null=True,
            seed=self.seed,
            progress=self.progress,
        )
        return moments, hook
