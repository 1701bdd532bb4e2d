"""The command ``lrt-lens evaluate sae``: a transferred SAE against its controls.

    lrt-lens evaluate sae stitches/stitch sae-folder --source S --target T --documents corpus.jsonl

Limits: SAEs are folders of SAELens.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from lrt_lens._terminal import print_table, say
from lrt_lens.cli._artefacts import load_sae, load_stitch
from lrt_lens.cli._models import PairOptions
from lrt_lens.cli._outputs import start_run, write_run


@dataclass(frozen=True, kw_only=True)
class EvaluateSAE(PairOptions):
    r"""Compare a transferred SAE with the target's own and with controls, on held-out documents.

    The SAE is the source's; it is transferred here, and with --refit also refitted. Writes
    results.json, report.html and run.toml. Documents are those of the fit: only those of its test
    fold are read.

        lrt-lens evaluate sae stitches/stitch sae-folder --source gpt2 --target gpt2-medium \
            --documents corpus.jsonl --native sae-of-the-target --refit

    Next: `lrt-lens report` joins several runs on one page.
    """

    words: ClassVar[str] = "evaluate sae"
    stitch: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STITCH")]
    """Folder of a stitch, folder of a run of `lrt-lens fit`, or hub id."""
    sae: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SAE")]
    """Folder of SAELens with the source's SAE, or with --sae-id a release of SAELens."""
    sae_id: str | None = None
    """Name of the SAE in a release of SAELens, or in a folder of several SAEs."""
    documents: str
    """A file, a folder of files, or the name of a data set."""
    native: str | None = None
    """Folder of SAELens with an SAE that was trained on the target, or with --native-id a
    release."""
    native_id: str | None = None
    """Name of the SAE in the release, or in the folder, of --native."""
    out: Path = Path("sae-evaluation")
    """Folder for the results."""
    text_field: str | None = None
    """Column of the texts; by default 'text', 'messages', or the only column with texts."""
    group: str | None = None
    """Column of what belongs together and shares a fold, as in the fit."""
    n_random: int = 20
    """Number of random maps."""
    refit: bool = False
    """Measure the refitted SAE and its controls too."""
    n_tokens: int = 20_000
    """Counted positions after which no further document is read."""
    context_length: int = 256
    """Tokens per window, BOS included."""
    keep: Literal["masked", "bos"] = "masked"
    """Positions that keep the model's own states."""
    folds: Literal["test", "all"] = "test"
    """Documents of the test fold of the fit, or all."""
    seed: int = 0
    """Seed of the bootstraps, the random maps and the controls of the refit."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        """Evaluate, write the results and print the arms."""
        from lrt_lens.adapters.saes import SAEEvaluationSettings, evaluate_sae
        from lrt_lens.data import DocumentSource

        self.check_numbers()
        if self.native_id is not None and self.native is None:
            raise ValueError("--native-id is given without --native; give the release too")
        stitch, sae = load_stitch(self.stitch), load_sae(self.sae, self.sae_id)
        native = None if self.native is None else load_sae(self.native, self.native_id)
        self.check_models()
        start_run(self.out, self)
        pair = self.load()
        result = evaluate_sae(
            pair,
            stitch,
            sae,
            DocumentSource(self.documents, self.text_field, self.group),
            native=native,
            progress=self.progress,
            settings=SAEEvaluationSettings(
                n_random=self.n_random,
                refit=self.refit,
                n_tokens=self.n_tokens,
                context_length=self.context_length,
                keep=self.keep,
                folds=self.folds,
                seed=self.seed,
            ),
        )
        names = {"source": pair.source.name, "target": pair.target.name}
        report = write_run(
            self.out, self, {"pair": names, "sae": result.table}, title="Evaluation of an SAE"
        )
        print_table("Metrics by arm", result.summary)
        say(f"Open {report}; next: lrt-lens report {self.out}")
