"""The command ``lrt-lens learn probe``: a linear probe from labelled texts.

    lrt-lens learn probe reviews.csv --model gpt2 --at 6 --read mean --out learnt

Limits: one hook point; `lrt_lens.choose_layers` compares hook points.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from lrt_lens._terminal import say
from lrt_lens.cli._learn import LearnOptions
from lrt_lens.cli._outputs import say_facts, start_run, write_run
from lrt_lens.cli._texts import read_labelled


@dataclass(frozen=True, kw_only=True)
class LearnProbe(LearnOptions):
    """Fit a linear probe on labelled texts, by logistic regression on a model's states.

    Writes probe.safetensors, results.json, report.html and run.toml. The file has the columns text
    and label (.jsonl, .csv, .parquet, …), or positive and negative: then each pair is a group.

        lrt-lens learn probe reviews.csv --model gpt2 --at 6 --read mean --out learnt

    The hook point is that of the stitch (`lrt-lens inspect STITCH` names it).
    Next: `lrt-lens transfer STITCH learnt`.
    """

    words: ClassVar[str] = "learn probe"
    texts: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TEXTS")]
    """File with labelled texts, one per row."""
    out: Path = Path("probe")
    """Folder for the results."""
    read: Literal["last", "mean", "max", "every"] | int = "last"
    """Token of a text that is read, how its tokens are pooled, or every token on its own."""
    text_field: str = "text"
    """Column of the texts."""
    label_field: str = "label"
    """Column of the labels; rows without a label are left out."""
    group: str | None = None
    """Column of what belongs together (a pair, a story): it stays in one fold when the penalty is
    chosen."""
    n_folds: int = 5
    """Number of folds over which the penalty is chosen."""
    seed: int = 0
    """Seed of the folds."""

    def run(self) -> None:
        """Fit the probe, write it, and say what it is."""
        from lrt_lens.adapters.probes import LinearProbe
        from lrt_lens.cli._facts import probe_facts

        self.check_numbers()
        rows = read_labelled(self.texts, self.text_field, self.label_field, self.group)
        self.check_model(self.model)
        start_run(self.out, self, ["probe.safetensors"])
        probe = LinearProbe.fit(
            self.load_model(self.model),
            rows.texts,
            rows.labels,
            **self.reading,
            read=self.read,
            groups=rows.groups,
            n_folds=self.n_folds,
            name=self.name or Path(self.texts).name.split(".")[0],
            seed=self.seed,
        )
        path = probe.save(self.out / "probe.safetensors")
        facts = probe_facts(probe, path)
        report = write_run(self.out, self, {"artefact": facts.known}, title="Linear probe")
        say_facts(f"Fitted on {len(rows.texts)} texts", facts.known)
        say(f"Open {report}; next: {facts.next}")
