"""The command ``lrt-lens learn vector``: a steering vector from pairs of texts.

    lrt-lens learn vector contrast.jsonl --model gpt2 --at 6 --out learnt

Limits: one hook point and one method; `lrt_lens.choose_layers` compares hook points.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from lrt_lens._terminal import say
from lrt_lens.cli._learn import LearnOptions
from lrt_lens.cli._outputs import say_facts, start_run, write_run


@dataclass(frozen=True, kw_only=True)
class LearnVector(LearnOptions):
    """Learn a steering vector from pairs of texts that differ in one concept.

    Writes vector.safetensors, results.json, report.html and run.toml. The file of texts has the
    columns positive and negative (.jsonl, .csv, .parquet, …).

        lrt-lens learn vector contrast.jsonl --model gpt2 --at 6 --out learnt

    The hook point is that of the stitch (`lrt-lens inspect STITCH` names it).
    Next: `lrt-lens transfer STITCH learnt`.
    """

    words: ClassVar[str] = "learn vector"
    contrast: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CONTRAST")]
    """File with the columns positive and negative, one pair of texts per row."""
    out: Path = Path("vector")
    """Folder for the results."""
    method: Literal["mean_difference", "principal_component", "lda"] = "mean_difference"
    """Mean difference of both sides, first principal component of the differences within pairs, or
    linear discriminant analysis."""
    read: Literal["last", "mean", "max"] | int = "last"
    """Token of a text that is read, or how its tokens are pooled."""

    def run(self) -> None:
        """Learn the vector, write it, and say what it is."""
        from lrt_lens.adapters.vectors import SteeringVector
        from lrt_lens.cli._facts import vector_facts
        from lrt_lens.data import ContrastSet

        self.check_numbers()
        contrast = ContrastSet.from_file(self.contrast, name=self.name)
        self.check_model(self.model)
        start_run(self.out, self, ["vector.safetensors"])
        learn = {
            "mean_difference": SteeringVector.mean_difference,
            "principal_component": SteeringVector.principal_component,
            "lda": SteeringVector.lda,
        }[self.method]
        vector = learn(self.load_model(self.model), contrast, **self.reading, read=self.read)
        path = vector.save(self.out / "vector.safetensors")
        facts = vector_facts(vector, path)
        report = write_run(self.out, self, {"artefact": facts.known}, title="Steering vector")
        say_facts(f"Learnt from {len(contrast)} pairs", facts.known)
        say(f"Open {report}; next: {facts.next}")
