"""The options of every figure script, and what they load: bundled models, texts and SAEs unless others are named.

A script adds options of its own by inheriting and says in ``QUICK`` what ``--quick`` shrinks:

    @dataclass(frozen=True)
    class Options(FigureOptions):
        QUICK: ClassVar = {"n_tokens": 6_000, "layer": 1}
        layer: int = 2
        "Layer of the source."

What is not there offline is a `MissingInputError` that says what was looked for, where, and how to get it.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from lrt_lens.adapters.sae.bundled import demo_sae
from lrt_lens.data.demo import demo_documents
from lrt_lens.data.documents import iterate_documents
from lrt_lens.models.hooked_model import HookedModel
from lrt_lens.models.loading import load_model
from lrt_lens.models.pair import ModelPair, demo_pair
from lrt_lens.stitching.grid import StitchGrid
from lrt_lens.stitching.harvest import fit_stitches

_Options = TypeVar("_Options", bound="FigureOptions")


class MissingInputError(OSError):
    """A model, an SAE or a text that a script was asked for and that is not there."""


@dataclass(frozen=True)
class FigureOptions:
    """Options that all figure scripts have."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 6_000}
    """Values that ``--quick`` takes for options that were not given."""

    source: str | None = None
    """Source model, where things are learnt: hub id or folder; the bundled small one without it."""
    target: str | None = None
    """Target model, where they are carried to: hub id or folder; the bundled large one without it."""
    sae: str | None = None
    """SAE of the source, a folder in SAELens' format; the bundled one without it."""
    documents: str | None = None
    """Texts: a .txt, .jsonl or .jsonl.gz file or the name of a data set; the bundled texts without it."""
    n_tokens: int = 120_000
    """Tokens of a harvest."""
    out: Path = Path("figures")
    """Folder for NAME.html, NAME.png and NAME.json."""
    seed: int = 0
    """Of folds, draws and bootstraps."""
    device: str = "cpu"
    """Where the models run."""
    quick: bool = False
    """Few of everything: shows that it runs, proves nothing."""

    @property
    def bundled(self) -> bool:
        """Whether the models are the bundled ones."""
        return self.source is None and self.target is None

    def shrunk(self: _Options) -> _Options:
        """With the values of ``QUICK`` for what was left at its default, where ``quick`` is set."""
        if not self.quick:
            return self
        defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(self)}
        return replace(self, **{name: value for name, value in self.QUICK.items() if getattr(self, name) == defaults[name]})

    def pair(self) -> ModelPair:
        """Both models."""
        if self.bundled:
            return demo_pair(device=self.device)
        return ModelPair(*self.models())

    def models(self) -> tuple[HookedModel, HookedModel]:
        """(source, target), whose tokenizers may differ; one model where both names are the same."""
        if self.bundled:
            pair = demo_pair(device=self.device)
            return pair.source, pair.target
        if self.source is None or self.target is None:
            raise MissingInputError(f"--source is {self.source!r} and --target {self.target!r}; give both, or none for the bundled pair")
        first = _model(self.source, "source", self.device)
        return first, first if self.source == self.target else _model(self.target, "target", self.device)

    def texts(self) -> Any:
        """Documents: a list of texts, or the name of a data set that loads."""
        if self.documents is None:
            return demo_documents()
        if Path(self.documents).is_file():
            return list(iterate_documents(Path(self.documents)))
        try:
            next(iter(iterate_documents(self.documents)))
        except ValueError as error:
            raise MissingInputError(
                f"--documents {self.documents!r}: no file {str(Path(self.documents).absolute())!r}, and no data set of that name that loads "
                f"here; give a .txt, .jsonl or .jsonl.gz file, or connect to the network for a data set of the hub ({_first_line(error)})"
            ) from error
        return self.documents

    def grid(
        self, pair: ModelPair, texts: Any, source: int | str, target: int | str | None = None, *, null: Literal["full", "none"] = "full"
    ) -> StitchGrid:
        """Maps from one source layer to one target layer, or to all: for ``.best()``. The full null, not its sketch: arms are carried through it."""
        return fit_stitches(
            pair, texts, source_layers=[source], target_layers="all" if target is None else [target], n_tokens=self.n_tokens, null=null, seed=self.seed,
            progress=True,
        )  # fmt: skip

    def source_sae(self) -> Any:
        """The SAE of the source: the one named, or the bundled one beside the bundled models."""
        return self.load_sae(self.sae, "--sae", "small")

    def load_sae(self, folder: str | None, option: str, member: str) -> Any:
        """An SAE from a SAELens folder, or a bundled one (``"small"`` or ``"large"``); ``option`` is what the script calls it."""
        if folder is None:
            if not self.bundled:
                raise MissingInputError(
                    f"{option} is missing: the bundled SAEs read the bundled models; give a SAELens folder of your model's SAE"
                )
            return demo_sae(member)
        if not (Path(folder) / "cfg.json").is_file():
            raise MissingInputError(
                f"{option} {folder!r}: no cfg.json in {str(Path(folder).absolute())!r}; give a folder that SAELens' save_model wrote, or one "
                "from `hf download` of a repository with an SAE"
            )
        from sae_lens import SAE

        return SAE.load_from_disk(folder, device=self.device)


def _model(name: str, role: str, device: str) -> HookedModel:
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        return load_model(name, device=device)
    except OSError as error:
        raise MissingInputError(
            f"--{role} {name!r}: no model folder {str(Path(name).absolute())!r} and no copy in the hub's cache {HF_HUB_CACHE!r} that loads; run "
            f"`hf download {name}` where there is a network (with HF_HUB_OFFLINE=0), or give a folder with config.json and weights "
            f"({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
