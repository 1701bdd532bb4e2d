r"""The command ``lrt-lens evaluate vector``: a transferred vector against its controls.

    lrt-lens evaluate vector stitches/stitch learnt --source S --target T \
        --items items.jsonl --neutral neutral.txt --contrast contrast.jsonl

Limits: preferences between two continuations; propensities of generated text are in Python.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from lrt_lens._terminal import print_table, say
from lrt_lens.cli._artefacts import load_stitch, load_vector
from lrt_lens.cli._models import PairOptions
from lrt_lens.cli._outputs import start_run, write_run
from lrt_lens.cli._texts import read_texts


@dataclass(frozen=True, kw_only=True)
class EvaluateVector(PairOptions):
    r"""Compare a transferred vector with the target's own and with controls, at equal damage.

    The vector is the one that was learnt on the source; it is transferred here. Writes
    results.json, report.html and run.toml.

        lrt-lens evaluate vector stitches/stitch learnt --source gpt2 --target gpt2-medium \
            --items items.jsonl --neutral neutral.txt --contrast contrast.jsonl

    Without --contrast the arms native, native_best and permuted are left out, because a file of a
    vector does not hold its texts. Next: `lrt-lens report` joins several runs on one page.
    """

    words: ClassVar[str] = "evaluate vector"
    stitch: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STITCH")]
    """Folder of a stitch, folder of a run of `lrt-lens fit`, or hub id."""
    vector: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VECTOR")]
    """File of the source's vector, of ours or of another program, or the folder of its run."""
    items: str
    """File with the columns prompt, positive and negative: two continuations to compare."""
    neutral: str
    """File or folder of texts without the concept, on which damage is measured."""
    contrast: str | None = None
    """File of the texts that the vector was learnt from."""
    out: Path = Path("vector-evaluation")
    """Folder for the results."""
    at: int | str | None = None
    """Hook point, or number of a block, of a file that has several vectors or is a tensor alone."""
    scales: Literal["auto"] | tuple[float, ...] = "auto"
    """Multiples of the vector at which all arms are measured; auto searches around the damage."""
    damage: float = 0.1
    """Damage at which arms are compared, in nats per token on the neutral texts."""
    bias: Literal["none", "add"] = "none"
    """Rule for the bias of the map in the transfer."""
    norm: Literal["match", "mapped", "unit"] = "match"
    """Rule for the length of the transferred vector."""
    positions: Literal["all", "last", "generated", "every"] = "all"
    """Steered positions."""
    n_random: int = 20
    """Number of random directions."""
    n_permuted: int = 20
    """Number of vectors learnt from permuted labels."""
    n_shuffled: int = 20
    """Number of maps of shuffled pairs."""
    n_contrast_groups: int = 8
    """Number of groups of contrast pairs that are left out one at a time, for the intervals."""
    both_signs: bool = True
    """Measure the negative of every vector too."""
    validation_share: float = 0.25
    """Share of the items that select the hook point of native_best and are not measured."""
    seed: int = 0
    """Seed of directions, splits and bootstraps."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        """Evaluate, write the results and print the arms."""
        from lrt_lens.adapters.vectors import SteeringSettings, evaluate_steering
        from lrt_lens.data import ChoiceItems, ContrastSet

        self.check_numbers()
        stitch, vector = load_stitch(self.stitch), load_vector(self.vector, at=self.at)
        contrast = None if self.contrast is None else ContrastSet.from_file(self.contrast)
        items, neutral = ChoiceItems.from_file(self.items), read_texts(self.neutral)
        self.check_models()
        start_run(self.out, self)
        pair = self.load()
        settings = SteeringSettings(
            scales=self.scales,
            damage=self.damage,
            bias=self.bias,
            norm=self.norm,
            positions=self.positions,
            n_random=self.n_random,
            n_permuted=self.n_permuted,
            n_shuffled=self.n_shuffled,
            n_contrast_groups=self.n_contrast_groups,
            both_signs=self.both_signs,
            validation_share=self.validation_share,
            seed=self.seed,
            progress=self.progress,
        )
        result = evaluate_steering(
            pair, stitch, vector, items, neutral=neutral, contrast=contrast, settings=settings
        )
        tables = {
            "pair": {"source": pair.source.name, "target": pair.target.name},
            "steering_summary": result.summary,
            "steering": result.table,
        }
        report = write_run(self.out, self, tables, title="Evaluation of a steering vector")
        shown = result.summary.rename(
            columns={"effect_at_equal_damage": "effect", "fraction_of_native": "of native"}
        )
        columns = ["arm", "scale", "effect", "low", "high", "of native", "flag"]
        title = f"Effect in nats, at {self.damage:g} nats per token of damage"
        print_table(title, shown.loc[:, [name for name in columns if name in shown]])
        say(f"Open {report}; next: lrt-lens report {self.out}")
