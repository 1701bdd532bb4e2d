r"""The command ``lrt-lens update``: artefacts of an old revision of a model, tested in a new one.

    lrt-lens update OLD NEW --artefacts probe.safetensors --documents texts.jsonl \
        --labelled reviews.csv

Limits: SAEs are measured on the documents of the test fold.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from lrt_lens._terminal import print_table, say
from lrt_lens.cli._artefacts import load_artefact
from lrt_lens.cli._command import Command
from lrt_lens.cli._models import check_loading
from lrt_lens.cli._outputs import start_run, write_run
from lrt_lens.cli._texts import read_labelled, read_texts


@dataclass(frozen=True, kw_only=True)
class UpdateModel(Command):
    r"""Say of each probe, vector and SAE of a model: keep, repair or relearn after its update.

    Both revisions read the documents, so that maps between them need no labels. Every artefact is
    tested as it is (frozen), after a shift, a rotation and a fitted map, learnt again, and through
    a map of shuffled pairs. Writes results.json, report.html, run.toml, and the repaired artefacts.

        lrt-lens update base chat --artefacts probe.safetensors --documents texts.jsonl \
            --labelled reviews.csv

    Without --labelled (probes) or --items and --neutral (vectors) the verdict is predicted. Next:
    use the files in the folder `repaired`, or learn again what cannot be repaired.
    """

    words: ClassVar[str] = "update"
    old: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OLD")]
    """Revision on which the artefacts were learnt: hub id or local folder."""
    new: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NEW")]
    """Other revision of the same model: hub id or local folder."""
    artefacts: tuple[str, ...]
    """Files or folders of probes, vectors and SAEs of the old revision."""
    documents: str
    """File or folder of texts on which the maps are fitted."""
    labelled: str | None = None
    """File with labelled texts for the probes (columns text and label, or positive and
    negative)."""
    unlabelled: str | None = None
    """File or folder of texts of the probes' kind, whose labels nobody knows; they correct the
    repaired probes."""
    items: str | None = None
    """File with choice items for the vectors (prompt, positive, negative)."""
    neutral: str | None = None
    """File or folder of texts on which damage is measured, for the vectors."""
    out: Path = Path("update")
    """Folder for the results."""
    text_field: str = "text"
    """Column of the texts."""
    label_field: str = "label"
    """Column of the labels."""
    n_tokens: int = 100_000
    """Number of tokens on which the maps are fitted."""
    context_length: int = 128
    """Number of tokens per window, BOS included."""
    tolerance: float = 0.02
    """Loss (of AUROC, of FVU, and a tenth of the share of an effect) that needs no repair."""
    test_share: float = 0.5
    """Share of the labelled texts that are tested."""
    damage: float = 0.1
    """Damage at which vectors are compared, in nats per token."""
    n_shuffled: int = 20
    """Number of draws of the map of shuffled pairs."""
    n_random: int = 20
    """Number of random vectors."""
    device: str | None = None
    """Device of the models, such as cuda:0; by default the CPU."""
    dtype: str = "float32"
    """Precision of the weights."""
    old_revision: str | None = None
    """Revision of the old model on the hub."""
    new_revision: str | None = None
    """Revision of the new model on the hub."""
    seed: int = 0
    """Seed of the harvest, of splits and of draws."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        """Test the artefacts, write results and repaired artefacts, and print the verdicts."""
        from lrt_lens.data import ChoiceItems
        from lrt_lens.models import load_model
        from lrt_lens.updates import UpdateSettings, update

        self.check_numbers()
        artefacts = [load_artefact(path) for path in self.artefacts]
        rows = None
        if self.labelled is not None:
            rows = read_labelled(self.labelled, self.text_field, self.label_field, None)
        items = None if self.items is None else ChoiceItems.from_file(self.items)
        neutral, unlabelled = (
            None if path is None else read_texts(path) for path in (self.neutral, self.unlabelled)
        )
        check_loading(self.device, self.dtype, {"OLD": self.old, "NEW": self.new})
        start_run(self.out, self)
        old, new = (
            load_model(name, device=self.device, dtype=self.dtype, revision=revision)
            for name, revision in ((self.old, self.old_revision), (self.new, self.new_revision))
        )
        result = update(
            old,
            new,
            artefacts,
            self.documents,
            labelled=None if rows is None else (rows.texts, rows.labels),
            unlabelled=unlabelled,
            items=items,
            neutral=neutral,
            sae_documents=self.documents,
            settings=UpdateSettings(
                n_tokens=self.n_tokens,
                context_length=self.context_length,
                tolerance=self.tolerance,
                test_share=self.test_share,
                damage=self.damage,
                n_shuffled=self.n_shuffled,
                n_random=self.n_random,
                progress=self.progress,
                seed=self.seed,
            ),
        )
        result.save_repaired(self.out / "repaired")
        tables = {
            "pair": {"source": old.name, "target": new.name},
            "update_summary": result.summary,
            "update": result.table,
            "n_tokens": result.n_tokens,
        }
        report = write_run(self.out, self, tables, title="After the update")
        shown = ["artefact", "verdict", "old", "frozen", "repaired", "distilled", "relearnt"]
        print_table("Artefacts of the old revision", result.summary.loc[:, shown])
        say(f"Open {report}; repaired artefacts: {self.out / 'repaired'}")
