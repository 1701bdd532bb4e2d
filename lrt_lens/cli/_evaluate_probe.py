"""The command ``lrt-lens evaluate probe``: a transferred probe against its controls.

    lrt-lens evaluate probe stitches/stitch reviews.csv --source S --target T --probe learnt

Limits: the arm token_identity needs a harvest of the reversed pair, in Python.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from lrt_lens._terminal import print_table, say
from lrt_lens.cli._artefacts import load_probe, load_stitch
from lrt_lens.cli._models import PairOptions
from lrt_lens.cli._outputs import start_run, write_run
from lrt_lens.cli._texts import read_labelled, read_texts


@dataclass(frozen=True, kw_only=True)
class EvaluateProbe(PairOptions):
    r"""Compare a transferred probe with the target's own and with controls, on labelled texts.

    Without --probe one is fitted on the source here, on the training texts. Writes results.json,
    report.html and run.toml.

        lrt-lens evaluate probe stitches/stitch reviews.csv --source gpt2 --target gpt2-medium \
            --probe learnt --test-texts other-reviews.csv

    A --probe that was fitted on the texts that are tested is too good: give --test-texts, or let
    the probe be fitted here. Next: `lrt-lens report` joins several runs on one page.
    """

    words: ClassVar[str] = "evaluate probe"
    stitch: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STITCH")]
    """Folder of a stitch, folder of a run of `lrt-lens fit`, or hub id."""
    texts: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TEXTS")]
    """File with labelled texts (columns text and label, or positive and negative)."""
    probe: str | None = None
    """File of a probe of the source, or the folder of its run; by default one is fitted here."""
    test_texts: str | None = None
    """File with labelled texts to test on; by default a share of the texts."""
    out: Path = Path("probe-evaluation")
    """Folder for the results."""
    text_field: str = "text"
    """Column of the texts."""
    label_field: str = "label"
    """Column of the labels; rows without a label are left out."""
    group: str | None = None
    """Column of what belongs together (a pair, a story): it is on one side of the split."""
    read: Literal["last", "mean", "max"] | int = "mean"
    """Token of a text that a probe fitted here reads, or how its tokens are pooled."""
    short_texts: Literal["drop", "refuse", "unmasked"] = "drop"
    """Rule for texts that the mask leaves nothing of."""
    test_share: float = 0.3
    """Share of the texts for the test, without --test-texts."""
    ks: tuple[int, ...] = (10, 30, 100)
    """Numbers of labels of the target in the learning curve."""
    n_seeds: int = 5
    """Number of draws of each k labels."""
    n_random: int = 20
    """Number of random probes."""
    n_permuted: int = 20
    """Number of probes fitted on permuted labels."""
    n_shuffled: int = 20
    """Number of maps of shuffled pairs."""
    recentre: str = "train"
    """Unlabelled texts that set the thresholds: train, none, or a file of other texts."""
    task: str | None = None
    """Name of the task in tables; by default that of the file."""
    seed: int = 0
    """Seed of splits and draws."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        """Evaluate, write the results and print the arms."""
        from lrt_lens.adapters.probes import ProbeEvaluationSettings, evaluate_probe

        self.check_numbers()
        stitch = load_stitch(self.stitch)
        probe = None if self.probe is None else load_probe(self.probe)
        columns = self.text_field, self.label_field, self.group
        rows = read_labelled(self.texts, *columns)
        test = None if self.test_texts is None else read_labelled(self.test_texts, *columns)
        words = self.recentre in ("train", "none")
        recentre: Any = self.recentre if words else read_texts(self.recentre)
        self.check_models()
        start_run(self.out, self)
        pair = self.load()
        result = evaluate_probe(
            pair,
            stitch,
            rows.texts,
            rows.labels,
            probe=probe,
            test_texts=test and test.texts,
            test_labels=test and test.labels,
            progress=self.progress,
            settings=ProbeEvaluationSettings(
                read=self.read,
                short_texts=self.short_texts,
                test_share=self.test_share,
                ks=self.ks,
                n_seeds=self.n_seeds,
                n_random=self.n_random,
                n_permuted=self.n_permuted,
                n_shuffled=self.n_shuffled,
                groups=rows.groups,
                test_groups=test and test.groups,
                recentre=recentre,
                task=self.task or Path(self.texts).name.split(".")[0],
                seed=self.seed,
            ),
        )
        tables = {
            "pair": {"source": pair.source.name, "target": pair.target.name},
            "chance": result.chance,
            "n_test": result.n_test,
            "probes_summary": result.summary,
            "probes": result.table,
        }
        report = write_run(self.out, self, tables, title="Evaluation of a probe")
        shown = ["arm", "k", "accuracy", "low", "high", "auroc", "share_of_native"]
        title = f"Accuracy on {result.n_test} texts; chance {result.chance:.2f}"
        print_table(title, result.summary.loc[:, shown])
        say(f"Open {report}; next: lrt-lens report {self.out}")
