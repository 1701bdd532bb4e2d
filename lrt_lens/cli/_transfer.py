"""The command ``lrt-lens transfer``: a vector, a probe or an SAE through a stitch.

    lrt-lens transfer stitches/stitch learnt --out transferred

Limits: one artefact; rules of transfer that need rows are in Python (`lrt_lens.compare_transfers`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from lrt_lens._terminal import say
from lrt_lens.cli._artefacts import load_artefact, load_stitch
from lrt_lens.cli._command import Command
from lrt_lens.cli._kinds import ARTEFACTS
from lrt_lens.cli._models import check_loading
from lrt_lens.cli._outputs import say_facts, start_run, write_run
from lrt_lens.cli._texts import read_texts

if TYPE_CHECKING:
    from lrt_lens.models._pair import ModelPair


@dataclass(frozen=True, kw_only=True)
class Transfer(Command):
    """Transfer a vector, a probe or an SAE from the source model to the target model, or back.

    What the artefact is, is recognised from its file: one of ours, a folder of SAELens, or a vector
    of another program; --sae-id takes an SAE of a release of SAELens. No model is loaded, unless
    --recentre or --refit is given. Writes vector.safetensors, probe.safetensors or sae/, with
    results.json, report.html and run.toml.

        lrt-lens transfer stitches/stitch learnt/vector.safetensors --out transferred
        lrt-lens transfer stitches/stitch sae-folder --refit corpus.jsonl --source S --target T
        lrt-lens transfer stitches/stitch gpt2-small-res-jb --sae-id blocks.8.hook_resid_pre
        lrt-lens transfer stitches/stitch learnt-on-the-target --reverse --out back

    Next: `lrt-lens calibrate` for a vector, and `lrt-lens evaluate` for all of them, which compares
    the transfer with its controls.
    """

    words: ClassVar[str] = "transfer"
    stitch: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STITCH")]
    """Folder of a stitch, folder of a run of `lrt-lens fit`, or hub id."""
    artefact: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ARTEFACT")]
    """File or folder of the artefact, the folder of the run that wrote it, or a release."""
    out: Path = Path("transferred")
    """Folder for the results."""
    at: int | str | None = None
    """Hook point, or number of a block, of a file that has several vectors or is a tensor alone."""
    sae_id: str | None = None
    """Name of the SAE in a release of SAELens, or in a folder of several SAEs."""
    reverse: bool = False
    """Transfer from the target of the stitch to its source; --source and --target keep their
    roles of the fit."""
    bias: Literal["none", "add"] = "none"
    """Rule for the bias of the map, for a vector."""
    norm: Literal["match", "mapped", "unit"] = "match"
    """Rule for the length of a vector: as many standard deviations as on the source, the length
    that the map gives, or 1."""
    through: Literal["maps", "null"] = "maps"
    """The maps of the stitch, or as a control those of shuffled pairs."""
    recentre: str | None = None
    """File of unlabelled texts on which the threshold of a probe is set; needs both models."""
    refit: str | None = None
    """Documents to which an SAE is refitted in closed form; needs both models."""
    n_tokens: int = 30_000
    """Number of tokens of the refit."""
    text_field: str | None = None
    """Column of the texts of --refit."""
    source: str | None = None
    """Source model, for --recentre and --refit: hub id or local folder."""
    target: str | None = None
    """Target model, for --recentre and --refit: hub id or local folder."""
    device: str | None = None
    """Device of the models, such as cuda:0; by default the CPU."""
    dtype: str = "float32"
    """Precision of the weights."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        """Transfer the artefact, write it, and say what it is."""
        self.check_numbers()
        self._check_models()
        stitch = load_stitch(self.stitch)
        stitch = stitch.reversed() if self.reverse else stitch
        artefact = load_artefact(self.artefact, at=self.at, sae_id=self.sae_id)
        start_run(self.out, self, ARTEFACTS)
        options = self._options(type(artefact).__name__)
        if self.through == "null":
            if stitch.null is None:
                raise ValueError(
                    f"{self.stitch!r} holds no map of shuffled pairs; fit it with --null full"
                )
            options["through"] = stitch.null
        transferred = stitch.transfer(artefact, **options)
        facts = _save(transferred, self.out)
        report = write_run(self.out, self, {"artefact": facts.known}, title="Transfer")
        say_facts(f"Transferred by {stitch}", facts.known)
        say(f"Open {report}" + (f"; next: {facts.next}" if facts.next else ""))

    def _check_models(self) -> None:
        """Raise ValueError for texts without models that read them, and for bad models."""
        given = {"--source": self.source, "--target": self.target}
        if self.recentre is not None or self.refit is not None:
            missing = [option for option, model in given.items() if model is None]
            if missing:
                reads = "--recentre" if self.recentre is not None else "--refit"
                raise ValueError(f"{reads} needs both models; give {' and '.join(missing)} too")
        known = {option: model for option, model in given.items() if model is not None}
        check_loading(self.device, self.dtype, known)

    def _options(self, kind: str) -> dict[str, Any]:
        """Return the options of the rule of transfer of an artefact."""
        is_vector, is_probe = kind == "SteeringVector", kind == "LinearProbe"
        for option, value, takes in (
            ("--recentre", self.recentre, is_probe),
            ("--refit", self.refit, not (is_vector or is_probe)),
        ):
            if value is not None and not takes:
                what = "a probe" if option == "--recentre" else "an SAE"
                raise ValueError(f"{option} is for {what}; {self.artefact!r} is a {kind}")
        if is_vector:
            return {"bias": self.bias, "norm": self.norm}
        if is_probe:
            return {} if self.recentre is None else {"recentre": self._recentring(self.recentre)}
        return {} if self.refit is None else {"refit": self._refit(self.refit)}

    def _recentring(self, path: str) -> Any:
        from lrt_lens.adapters.probes import Recentring

        return Recentring(self._pair(), read_texts(path))

    def _refit(self, documents: str) -> Any:
        from lrt_lens.adapters.saes import RefitSettings, SAERefit
        from lrt_lens.data import DocumentSource

        settings = RefitSettings(n_tokens=self.n_tokens, progress=self.progress)
        return SAERefit(self._pair(), DocumentSource(documents, self.text_field), settings)

    def _pair(self) -> "ModelPair":
        from lrt_lens.models import ModelPair

        models = (self.target, self.source) if self.reverse else (self.source, self.target)
        return ModelPair.load(*models, device=self.device, dtype=self.dtype)


def _save(artefact: Any, out: Path) -> Any:
    """Write a transferred artefact into a folder, and return its facts."""
    from lrt_lens._folders import write_folder
    from lrt_lens.adapters.probes import LinearProbe
    from lrt_lens.adapters.vectors import SteeringVector
    from lrt_lens.cli._facts import facts_of

    if isinstance(artefact, SteeringVector):
        return facts_of(artefact.save(out / "vector.safetensors"))
    if isinstance(artefact, LinearProbe):
        return facts_of(artefact.save(out / "probe.safetensors"))
    write_folder(out / "sae", lambda folder: artefact.save_model(folder), last="cfg.json")
    return facts_of(out / "sae")
