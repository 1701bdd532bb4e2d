"""The options of every figure script, and what they load: bundled models, texts and SAEs unless
others are named.

A script adds options of its own by inheriting and says in ``QUICK`` what ``--quick`` shrinks:

    @dataclass(frozen=True)
    class Options(FigureOptions):
        QUICK: ClassVar = {"n_tokens": 6_000, "layer": 1}
        UNUSED: ClassVar = frozenset({"sae"})
        layer: int = 2
        "Layer of the source."

``UNUSED`` names the shared options that the script does not read: `run` refuses them.

What is not there offline is a `MissingInputError` that says what was looked for, where, and how to
get it.
"""

import logging
import os
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch

from lrt_lens.bundled._models import demo_pair
from lrt_lens.bundled._saes import demo_sae
from lrt_lens.bundled._texts import demo_documents
from lrt_lens.data._documents import iterate_documents
from lrt_lens.models._hooked_model import HookedModel, load_model
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._fit import fit_stitches
from lrt_lens.stitching._grid import StitchGrid

logger = logging.getLogger(__name__)

_Options = TypeVar("_Options", bound="FigureOptions")
LEAST_CHARACTERS, CHARACTERS_A_TOKEN = 20_000_000, 30
"""How much of a data set is read, as it may not fit into memory: a token has about four characters,
the test fold a sixth of the texts.
"""


class MissingInputError(OSError):
    """A model, an SAE, a text or a device that a script was asked for and that is not there."""


@dataclass(frozen=True)
class FigureOptions:
    """Options that all figure scripts have."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 6_000}
    """Values that ``--quick`` takes for options that were not given."""
    UNUSED: ClassVar[frozenset[str]] = frozenset()
    """Shared options that the script does not read; given on the command line they are refused."""

    source: str | None = None
    """Source model, where things are learnt: hub id or folder; the bundled small one without it."""
    target: str | None = None
    """Target model, where they are carried to: hub id or folder; the bundled large one without it.
    """
    sae: str | None = None
    """SAE of the source, a folder in SAELens' format; the bundled one without it."""
    documents: str | None = None
    """Texts: a .txt, .jsonl or .jsonl.gz file or the name of a data set; the bundled texts without
    it.
    """
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

    def shrunk(self: _Options, given: Collection[str] = ()) -> _Options:
        """With the values of ``QUICK`` for all but the options that were ``given``, where ``quick``
        is set.
        """
        if not self.quick:
            return self
        return replace(
            self, **{name: value for name, value in self.QUICK.items() if name not in given}
        )

    def check_device(self) -> None:
        """MissingInputError, with the devices that there are, unless tensors can be made on
        ``device``.
        """
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            there = [
                "cpu",
                *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
                *(["mps"] * torch.backends.mps.is_available()),
            ]
            raise MissingInputError(
                f"--device {self.device!r}: PyTorch finds no such device here; choose from {there}, or install a PyTorch that is built for "
                f"yours ({_first_line(error)})"
            ) from error

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
            raise MissingInputError(
                f"--source is {self.source!r} and --target {self.target!r}; give both, or none for the bundled pair"
            )
        first = _model(self.source, "source", self.device)
        return first, first if self.source == self.target else _model(
            self.target, "target", self.device
        )

    def texts(self) -> list[str]:
        """Documents: the bundled ones, all of a file, or the first of a data set, many times more
        than the script's tokens need.
        """
        return (
            demo_documents()
            if self.documents is None
            else self.load_texts(self.documents, "--documents")
        )

    def load_texts(self, name: str, option: str) -> list[str]:
        """Texts of a file or a data set; ``option`` is what the script calls it."""
        if os.path.isfile(name):
            found = _texts_of_file(name, option)
        else:
            tokens = max(
                getattr(self, f.name)
                for f in fields(self)
                if f.name.endswith("tokens") and isinstance(f.default, int)
            )
            found = list(
                _texts_of_data_set(name, option, max(LEAST_CHARACTERS, CHARACTERS_A_TOKEN * tokens))
            )
        if not found:
            raise MissingInputError(
                f"{option} {name!r}: no text in {os.path.abspath(name)!r}; give a .txt, .jsonl or .jsonl.gz file "
                "with texts, or the name of a data set with a column 'text'"
            )
        return found

    def grid(
        self,
        pair: ModelPair,
        texts: Any,
        source: int | str,
        target: int | str | None = None,
        *,
        null: Literal["full", "none"] = "full",
    ) -> StitchGrid:
        """Maps from one source layer to one target layer, or to all: for ``.best()``. The full
        null, not its sketch: arms are carried through it.
        """
        return fit_stitches(
            pair,
            texts,
            source_layers=[source],
            target_layers="all" if target is None else [target],
            n_tokens=self.n_tokens,
            null=null,
            seed=self.seed,
            progress=True,
        )

    def source_sae(self) -> Any:
        """The SAE of the source: the one named, or the bundled one beside the bundled models."""
        return self.load_sae(self.sae, "--sae", "small")

    def load_sae(self, folder: str | None, option: str, member: str) -> Any:
        """An SAE from a SAELens folder, or a bundled one (``"small"`` or ``"large"``); ``option``
        is what the script calls it.
        """
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

        try:
            return SAE.load_from_disk(folder, device=self.device)
        except Exception as error:  # SAELens raises whatever its readers of JSON, of configurations and of weights do
            raise MissingInputError(
                f"{option} {folder!r}: cfg.json and weights in {str(Path(folder).absolute())!r} do not load as an SAE "
                f"({type(error).__name__}: {_first_line(error)}); copy or download the folder again, or write it with SAELens' save_model"
            ) from error


def _texts_of_file(name: str, option: str) -> list[str]:
    try:
        return list(iterate_documents(Path(name)))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise MissingInputError(
            f"{option} {name!r}: {os.path.abspath(name)!r} does not read as text ({_first_line(error)}); give a .txt, .jsonl or "
            ".jsonl.gz file in UTF-8"
        ) from error


@lru_cache(maxsize=1)
def _texts_of_data_set(name: str, option: str, characters: int) -> tuple[str, ...]:
    """The first texts of a data set, until there are so many characters; kept, as scripts ask for
    them more than once.
    """
    looked_for = f"{option} {name!r}: no file {os.path.abspath(name)!r}"
    if not name or any(map(str.isspace, name)):
        raise MissingInputError(
            f"{looked_for}; give a .txt, .jsonl or .jsonl.gz file or the name of a data set, not a text"
        )
    found: list[str] = []
    size = 0
    try:
        for text in iterate_documents(name):
            found.append(text)
            size += len(text)
            if size >= characters:
                break
    except (
        Exception
    ) as error:  # datasets raises a dozen kinds for "not there" and for a stream that ends early
        raise MissingInputError(
            f"{looked_for}, and no data set of that name that loads here; give a .txt, .jsonl or .jsonl.gz file, or connect to the network "
            f"for a data set of the hub ({_first_line(error)})"
        ) from error
    logger.info("%s: the first %d texts, %d characters", name, len(found), size)
    return tuple(found)


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
