"""A source and a target model that read the same tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrt_lens.errors import MismatchError
from lrt_lens.models.hooked_model import HookedModel, tokenizer_hash
from lrt_lens.models.loading import ModelLike, load_model

DEMO_FOLDER = Path(__file__).parent / "demo"
"""The bundled family: a folder a size, the harvest text and the contrast sets."""


@dataclass(frozen=True)
class ModelPair:
    """A source model, where things are learnt, and a target model, where they are carried to."""

    source: HookedModel
    """Usually the small one."""
    target: HookedModel
    """Usually the large one."""

    @classmethod
    def load(
        cls,
        source: ModelLike,
        target: ModelLike,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        source_revision: str | None = None,
        target_revision: str | None = None,
        prepend_bos: bool | None = None,
        trust_remote_code: bool = False,
    ) -> "ModelPair":
        """Load both models (see `HookedModel.load`); `MismatchError` where their tokenizers or BOS policies differ."""
        options: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "device_map": device_map,
            "prepend_bos": prepend_bos,
            "trust_remote_code": trust_remote_code,
        }
        return cls(load_model(source, revision=source_revision, **options), load_model(target, revision=target_revision, **options))

    def __post_init__(self) -> None:
        if tokenizer_hash(self.source.tokenizer) != tokenizer_hash(self.target.tokenizer):
            raise MismatchError(
                f"{self.source.name!r} and {self.target.name!r} have different tokenizers "
                f"({type(self.source.tokenizer).__name__} of {len(self.source.tokenizer)} and {type(self.target.tokenizer).__name__} of "
                f"{len(self.target.tokenizer)} tokens); a map is fitted on the same tokens: choose two models of one family"
            )
        if self.source.prepend_bos != self.target.prepend_bos:
            raise MismatchError(
                f"{self.source.name!r} has prepend_bos={self.source.prepend_bos} and {self.target.name!r} {self.target.prepend_bos}; "
                "load the pair with prepend_bos=True or prepend_bos=False"
            )

    def __repr__(self) -> str:
        return f"ModelPair(\n  source={self.source!r},\n  target={self.target!r})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{role}</th><td>{m.name}</td><td>{m.n_layers}</td><td>{m.d_model}</td><td>{m.basis}</td><td>{m.device}</td></tr>"
            for role, m in (("source", self.source), ("target", self.target))
        )
        return f"<table><tr><th></th><th>model</th><th>layers</th><th>d_model</th><th>basis</th><th>device</th></tr>{rows}</table>"

    @property
    def context_length(self) -> int:
        """Tokens that both models can read at once."""
        return min(self.source.context_length, self.target.context_length)

    def reversed(self) -> "ModelPair":
        """The same pair with the roles swapped."""
        return ModelPair(self.target, self.source)


def demo_pair(
    source: str = "small", target: str = "large", *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> ModelPair:
    """The bundled small and large model, offline. ``source`` and ``target`` name members of the family."""
    for name in (source, target):
        if not (DEMO_FOLDER / name / "config.json").exists():
            members = sorted(path.parent.name for path in DEMO_FOLDER.glob("*/config.json"))
            raise ValueError(f"{name!r} is not in the bundled family; it has {members}")
    return ModelPair.load(str(DEMO_FOLDER / source), str(DEMO_FOLDER / target), device=device, dtype=dtype)
