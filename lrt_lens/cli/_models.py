"""Options of the commands that load one model, or two.

    @dataclass(frozen=True, kw_only=True)
    class LearnVector(ModelOptions):
        model: str

    self.load_model(self.model)        # a HookedModel

Limits: torch is imported by the methods only, so that ``--help`` answers at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lrt_lens.cli._command import Command

if TYPE_CHECKING:
    from lrt_lens.models._hooked_model import HookedModel
    from lrt_lens.models._pair import ModelPair


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Command):
    """Options of a command that loads one model."""

    device: str | None = None
    """Device of the model, such as cuda:0; by default the CPU."""
    device_map: str | None = None
    """Distribution of the weights over several devices, such as auto."""
    dtype: str = "float32"
    """Precision of the weights."""
    revision: str | None = None
    """Revision of the model on the hub."""
    prepend_bos: bool | None = None
    """Begin each text with BOS; by default as the tokenizer does."""

    def check_model(self, model: str) -> None:
        """Raise ValueError for a device, a precision or a folder that there is not."""
        check_loading(self.device, self.dtype, {"--model": model})

    def load_model(self, model: str) -> "HookedModel":
        """Return a model: a hub id, or a local folder."""
        from lrt_lens.models import load_model

        return load_model(
            model,
            device=self.device,
            device_map=self.device_map,
            dtype=self.dtype,
            revision=self.revision,
            prepend_bos=self.prepend_bos,
        )


@dataclass(frozen=True, kw_only=True)
class PairOptions(Command):
    """Options of a command that loads both models."""

    source: str
    """Source model, on which things are learnt: hub id or local folder."""
    target: str
    """Target model of the transfer: hub id or local folder."""
    device: str | None = None
    """Device of the models, such as cuda:0; by default the CPU."""
    device_map: str | None = None
    """Distribution of the weights over several devices, such as auto."""
    dtype: str = "float32"
    """Precision of the weights."""
    source_revision: str | None = None
    """Revision of the source model on the hub."""
    target_revision: str | None = None
    """Revision of the target model on the hub."""
    source_name: str | None = None
    """Name of the source in tables and files; by default its hub id or the end of its path."""
    target_name: str | None = None
    """Name of the target in tables and files."""
    prepend_bos: bool | None = None
    """Begin each window with BOS; by default as the tokenizer does."""

    def check_models(self) -> None:
        """Raise ValueError for a device, a precision or a folder that there is not."""
        check_loading(self.device, self.dtype, {"--source": self.source, "--target": self.target})

    def load(self, device: str | None = None) -> "ModelPair":
        """Return both models on a device, by default that of the options."""
        from lrt_lens.models import ModelPair

        return ModelPair.load(
            self.source,
            self.target,
            device=self.device if device is None else device,
            device_map=self.device_map,
            dtype=self.dtype,
            source_revision=self.source_revision,
            target_revision=self.target_revision,
            source_name=self.source_name,
            target_name=self.target_name,
            prepend_bos=self.prepend_bos,
        )


def check_loading(device: str | None, dtype: str, models: dict[str, str]) -> None:
    """Raise ValueError for a device, a precision or a folder that there is not.

    Args:
        device: name of a device; None is the default.
        dtype: precision of weights.
        models: hub ids or folders, by their options.
    """
    from lrt_lens.models._loading import checked_device, torch_dtype

    torch_dtype(dtype)
    # With several ranks, "cuda" is the GPU of each.
    if device is not None:
        checked_device(device)
    for option, model in models.items():
        # transformers would look for it on the hub and complain about the form of the id.
        is_path = model.startswith(("/", "./", "../", "~")) or model.count("/") > 1
        if is_path and not Path(model).exists():
            raise ValueError(
                f"{option} is {model!r}, and no such folder exists; give a folder that holds a "
                "Hugging Face model (config.json and weights), or a hub id such as "
                "'EleutherAI/pythia-70m-deduped'"
            )
