"""The command ``lrt-lens import``: a file of another program as files of ours.

    lrt-lens import happy.gguf --model gpt2 --out imported

Limits: vectors and exported probes; SAEs of SAELens are read as they are.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from lrt_lens._terminal import say
from lrt_lens.cli._kinds import artefact_at, kind_at
from lrt_lens.cli._models import ModelOptions
from lrt_lens.cli._outputs import say_facts, start_run, write_run


@dataclass(frozen=True, kw_only=True)
class Import(ModelOptions):
    """Read the vectors of another program, and write each of them as a file of ours.

    Formats: llama.cpp and repeng (GGUF), GLP, vllm-lens, lm-eval, steering-vectors, AISteer360,
    Neuronpedia, transformers, a tensor alone (.npy, .pt, .safetensors), and exported probes. The
    format is recognised by the content, and no code of a file is run. Writes vector.safetensors,
    or one file per block, with results.json, report.html and run.toml.

        lrt-lens import happy.gguf --model gpt2 --out imported
        lrt-lens import direction.npy --at 6 --model gpt2

    With --model the file is compared with the model. Next: `lrt-lens transfer STITCH imported`.
    """

    words: ClassVar[str] = "import"
    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")]
    """File or folder of another program."""
    out: Path = Path("imported")
    """Folder for the results."""
    at: int | str | None = None
    """Hook point, or number of a block: chooses one of several, and is needed for a tensor."""
    model: str | None = None
    """Model of the vectors: hub id or local folder."""

    def run(self) -> None:
        """Read the file, write ours, and say what they are."""
        from lrt_lens.cli._facts import facts_of

        place = artefact_at(self.path)
        kind = kind_at(place)
        if kind not in ("foreign vector", "vector", "exported probe"):
            raise ValueError(
                f"{self.path!r} is of the kind {kind!r}, which is no vector or probe of another "
                "program; see what uses it: lrt-lens inspect"
            )
        if self.model is not None:
            self.check_model(self.model)
        model = None if self.model is None else self.load_model(self.model)
        artefacts = self._artefacts(place, kind, model)
        start_run(self.out, self, artefacts)
        written = [one.save(self.out / name) for name, one in artefacts.items()]
        facts = [facts_of(path) for path in written]
        rows = [{"file": path.name, **one.known} for path, one in zip(written, facts, strict=True)]
        report = write_run(self.out, self, {"artefacts": rows}, title="Import")
        say_facts(f"{len(written)} file(s) in {self.out}, the first one:", facts[0].known)
        say(f"Open {report}; next: {facts[0].next}")

    def _artefacts(self, place: Path, kind: str, model: Any) -> dict[str, Any]:
        """Return the vectors or the probe of a file, by the names of the files of ours."""
        from lrt_lens.serving import import_vector, import_vectors, load_probe

        if kind == "exported probe":
            return {"probe.safetensors": load_probe(place if place.is_dir() else place.parent)}
        if self.at is not None:
            return {"vector.safetensors": import_vector(place, at=self.at, model=model)}
        vectors = import_vectors(place, model=model)
        if len(vectors) == 1:
            return {"vector.safetensors": vectors[0]}
        # A subspace has several directions at one hook point.
        return {
            f"vector-{number}-{one.hook}.safetensors": one for number, one in enumerate(vectors)
        }
