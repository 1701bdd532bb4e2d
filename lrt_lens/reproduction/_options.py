"""The options of every script in `examples/`, and the models, texts and SAEs that they load.

Problem: every script needs models, texts and SAEs, from the bundle or from the user, and clear
errors if they are missing. Mechanism: one dataclass of options, whose methods load them.

By default these are the bundled ones. A script adds options by inheritance; ``QUICK`` says which
values ``--quick`` makes smaller:

    @dataclass(frozen=True)
    class Options(FigureOptions):
        QUICK: ClassVar = {"n_tokens": 6_000, "layer": 1}
        UNUSED: ClassVar = frozenset({"sae"})
        layer: int = 2
        "Layer of the source."

``UNUSED`` names the shared options that the script does not read: `run` refuses them.

A missing input is a `MissingInputError` that says what was searched, in which location, and how to
get it.

Limits: messages name the options of the command line, because only scripts use this module.
"""

import logging
import os
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from lrt_lens._numbers import checked_number, checked_whole
from lrt_lens.bundled._models import demo_pair
from lrt_lens.bundled._saes import demo_sae
from lrt_lens.bundled._texts import demo_documents
from lrt_lens.data._document_files import KINDS
from lrt_lens.data._documents import iterate_documents
from lrt_lens.models._hooked_model import HookedModel, load_model
from lrt_lens.models._identity import names_apart
from lrt_lens.models._loading import checked_device
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._fit_stitches import fit_stitches
from lrt_lens.stitching._grid import StitchGrid

logger = logging.getLogger(__name__)

_Options = TypeVar("_Options", bound="FigureOptions")
"""Options class of a script; `shrunk` returns the class that it was called on."""
LEAST_CHARACTERS, CHARACTERS_A_TOKEN = 20_000_000, 30
"""Limits of what is read of a data set, which may be larger than memory.

At least 20 million characters, and 30 per token: a token has about four characters, and the test
fold is a sixth of the texts.
"""


_SIGNED = ("scales", "betas")
"""Options that may be negative."""
_MAY_BE_ZERO = ("seed", "seeds", "lag", "n_pages", "n_attention")
"""Whole numbers that may be 0."""


class MissingInputError(OSError):
    """A model, an SAE, a text or a device that a script was asked for does not exist here."""


@dataclass(frozen=True)
class FigureOptions:
    """Options that all scripts in `examples/` share."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 6_000}
    """Values that ``--quick`` sets for options that are not on the command line."""
    UNUSED: ClassVar[frozenset[str]] = frozenset()
    """Shared options that the script does not read; they are refused on the command line."""

    source: str | None = None
    """Source model, on which things are learnt: hub id or folder; the bundled small one by
    default."""
    target: str | None = None
    """Target model of the transfer: hub id or folder; the bundled large one by default."""
    sae: str | None = None
    """SAE of the source: a folder in SAELens' format; the bundled one by default."""
    documents: str | None = None
    """Texts: a .txt, .md, .jsonl, .ndjson, .json, .csv, .tsv or .parquet file, or a data set's
    name; the bundled ones by default."""
    text_field: str | None = None
    """Column of the texts; by default 'text', or the only column with texts."""
    n_tokens: int = 120_000
    """Number of tokens of a harvest."""
    out: Path = Path("figures")
    """Folder for NAME.html, NAME.png and NAME.json."""
    seed: int = 0
    """Seed of folds, draws and bootstraps."""
    device: str = "cpu"
    """Device of the models."""
    quick: bool = False
    """Small settings that show that the script runs; its numbers mean nothing."""

    @property
    def bundled(self) -> bool:
        """True if both models are the bundled ones."""
        return self.source is None and self.target is None

    def shrunk(self: _Options, given: Collection[str] = ()) -> _Options:
        """Return options with the values of ``QUICK`` if ``quick``, except those in ``given``."""
        if not self.quick:
            return self
        # Options on the command line win over QUICK.
        changes = {name: value for name, value in self.QUICK.items() if name not in given}
        return replace(self, **changes)

    def check_numbers(self) -> None:
        """Check every option that is a number, or several.

        Raises:
            ValueError: one is NaN, infinite, or outside of what its name can mean.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            option = f"--{field.name.replace('_', '-')}"
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, bool) or not isinstance(number, int | float):
                    continue
                if isinstance(number, float):
                    signed = field.name in _SIGNED
                    least = -sys.float_info.max if signed else -sys.float_info.min
                    checked_number(option, number, above=least)
                elif re.search("layer|hook", field.name):
                    # Negative numbers count layers from the end.
                    checked_whole(option, number, least=-(10**6), most=10**6)
                else:
                    least = 0 if field.name in _MAY_BE_ZERO else 1
                    checked_whole(option, number, least=least)

    def check_device(self) -> None:
        """Check that tensors can be created on ``device``.

        Raises:
            MissingInputError: they cannot; the message lists the devices of this machine.
        """
        try:
            checked_device(self.device)
        except ValueError as error:
            message = str(error).replace("device is ", "--device ").replace(", and PyT", ": PyT", 1)
            raise MissingInputError(message) from error

    def pair(self) -> ModelPair:
        """Return the pair of both models."""
        if self.bundled:
            return demo_pair(device=self.device)
        return ModelPair(*self.models())

    def models(self) -> tuple[HookedModel, HookedModel]:
        """Return (source, target), whose tokenizers may differ.

        If both names are equal, they are one model.

        Raises:
            MissingInputError: only one model is named, or one does not load.
        """
        if self.bundled:
            pair = demo_pair(device=self.device)
            return pair.source, pair.target
        if self.source is None or self.target is None:
            raise MissingInputError(
                f"--source is {self.source!r} and --target {self.target!r}; "
                "give both, or none for the bundled pair"
            )
        names = names_apart([self.source, self.target])
        # One model against itself is loaded once, so both sides share its weights.
        source = _model(self.source, "source", self.device, names[0])
        if self.source == self.target:
            return source, source
        return source, _model(self.target, "target", self.device, names[1])

    def texts(self) -> list[str]:
        """Return the documents: the bundled ones, or those of ``documents``.

        All texts of a file are read; of a data set the first ones, many times more than the
        script's tokens need.

        Raises:
            MissingInputError: the texts cannot be read.
        """
        if self.documents is None:
            return demo_documents()
        return self.load_texts(self.documents, "--documents")

    def load_texts(self, name: str, option: str) -> list[str]:
        """Return the texts of a file or of a data set.

        Args:
            name: file or data set.
            option: the script's name of the option, for messages.

        Raises:
            MissingInputError: the texts cannot be read, or there are none.
        """
        if os.path.isfile(name):
            texts = _texts_of_file(name, option, self.text_field)
        else:
            # All options that count tokens, such as n_tokens and loss_tokens.
            needed = max(
                getattr(self, field.name)
                for field in fields(self)
                if field.name.endswith("tokens") and isinstance(field.default, int)
            )
            characters = max(LEAST_CHARACTERS, CHARACTERS_A_TOKEN * needed)
            texts = list(_texts_of_data_set(name, option, characters, self.text_field))
        if not texts:
            raise MissingInputError(
                f"{option} {name!r}: no text in {os.path.abspath(name)!r}; give a file with "
                f"texts ({' '.join(KINDS)}), or the name of a data set"
            )
        return texts

    def grid(
        self,
        pair: ModelPair,
        texts: Any,
        source: int | str,
        target: int | str | None = None,
        *,
        null: Literal["full", "none"] = "full",
    ) -> StitchGrid:
        """Return maps from one source layer to one target layer, or to all.

        Use ``.best()`` to get the stitch.

        Args:
            pair: both models.
            texts: documents to fit on.
            source: layer or hook point of the source.
            target: layer or hook point of the target; all layers if None.
            null: the full null by default, not its sketch, because arms are transferred through it.
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
        """Return the SAE of the source: the one that ``sae`` names, or the bundled one."""
        # The small model is the source of the bundled pair.
        return self.load_sae(self.sae, "--sae", "small")

    def load_sae(self, folder: str | None, option: str, member: str) -> Any:
        """Return an SAE from a SAELens folder, or a bundled one.

        Args:
            folder: the folder; None for a bundled SAE.
            option: the script's name of the option, for messages.
            member: the bundled SAE, ``"small"`` or ``"large"``.

        Raises:
            MissingInputError: the SAE does not load, or there is none for the models.
        """
        if folder is None:
            if not self.bundled:
                raise MissingInputError(
                    f"{option} is missing: the bundled SAEs read the bundled models; "
                    "give a SAELens folder of your model's SAE"
                )
            return demo_sae(member)
        absolute = str(Path(folder).absolute())
        if not (Path(folder) / "cfg.json").is_file():
            raise MissingInputError(
                f"{option} {folder!r}: no cfg.json in {absolute!r}; give a folder written by "
                "SAELens' save_model, or one from `hf download` of a repository with an SAE"
            )
        # Imported here because sae-lens is optional and takes seconds to import.
        from sae_lens import SAE

        try:
            return SAE.load_from_disk(folder, device=self.device)
        # SAELens passes on whatever its readers of JSON, configurations and weights raise.
        except Exception as error:
            raise MissingInputError(
                f"{option} {folder!r}: cfg.json and weights in {absolute!r} do not load as an SAE "
                f"({type(error).__name__}: {_first_line(error)}); copy or download the folder "
                "again, or write it with SAELens' save_model"
            ) from error


def _texts_of_file(name: str, option: str, text_field: str | None) -> list[str]:
    try:
        return list(iterate_documents(Path(name), text_field=text_field))
    # The readers raise ValueErrors that name the row and the remedy.
    except (OSError, ValueError) as error:
        remedy = str(error).replace("text_field= names", "--text-field names")
        raise MissingInputError(
            f"{option} {name!r}: {os.path.abspath(name)!r} does not read as text: {remedy}"
        ) from error


@lru_cache(maxsize=1)
def _texts_of_data_set(
    name: str, option: str, characters: int, text_field: str | None
) -> tuple[str, ...]:
    """Return the first texts of a data set that hold so many characters together.

    They are cached, because scripts ask for them more than once.
    """
    searched = f"{option} {name!r}: no file {os.path.abspath(name)!r}"
    file_kinds = f"give a file ({' '.join(KINDS)})"
    if not name or any(map(str.isspace, name)):
        raise MissingInputError(f"{searched}; {file_kinds} or the name of a data set, not a text")
    texts: list[str] = []
    size = 0
    try:
        for text in iterate_documents(name, text_field=text_field):
            texts.append(text)
            size += len(text)
            if size >= characters:
                break
    # datasets raises a dozen kinds for a missing data set and for a stream that ends early.
    except Exception as error:
        raise MissingInputError(
            f"{searched}, and no data set of that name that loads here; {file_kinds}, or connect "
            f"to the network for a data set of the hub ({_first_line(error)})"
        ) from error
    logger.info("%s: the first %d texts, %d characters", name, len(texts), size)
    return tuple(texts)


def _model(path: str, role: str, device: str, name: str) -> HookedModel:
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        return load_model(path, device=device, name=name)
    except OSError as error:
        raise MissingInputError(
            f"--{role} {path!r}: no model folder {str(Path(path).absolute())!r} and no copy in the "
            f"hub's cache {HF_HUB_CACHE!r} that loads; run `hf download {path}` on a machine with "
            "a network (with HF_HUB_OFFLINE=0), or give a folder with config.json and weights "
            f"({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
