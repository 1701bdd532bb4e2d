"""A pair of models: the source, where adapters are learnt, and the target of the transfer.

Problem: a map between two models is fitted on pairs of states that have read the same text, and the
models may have different tokenizers. Mechanism: `ModelPair` loads both models with distinct names,
requires one BOS policy if the tokenizers are the same, and `ModelPair.aligned` says whether
positions have to be aligned by characters.

    pair = ModelPair.load("runs/small/hf", "runs/large/hf", device="cuda")
    pair.source.name, pair.target.name         # 'small/hf', 'large/hf'

Limits: both models are loaded on one device, or with one ``device_map``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch

from lrt_lens._repr_html import card, note, table
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.models._hook_points import resolve
from lrt_lens.models._hooked_model import HookedModel, load_model
from lrt_lens.models._identity import names_apart
from lrt_lens.models._loading import ModelLike, model_origin
from lrt_lens.models._text_codec import Truncation

Hooks = int | str | Sequence[int | str]
"""One hook point or several, as layer numbers or names."""


@dataclass(frozen=True)
class ModelPair:
    """A source model, where adapters are learnt, and a target model, which they transfer to."""

    source: HookedModel
    """Usually the smaller model."""
    target: HookedModel
    """Usually the larger model."""

    @classmethod
    def load(
        cls,
        source: ModelLike,
        target: ModelLike,
        *,
        source_name: str | None = None,
        target_name: str | None = None,
        source_revision: str | None = None,
        target_revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        prepend_bos: bool | None = None,
        truncation: Truncation | None = None,
        trust_remote_code: bool = False,
    ) -> "ModelPair":
        """Return a pair of models, each loaded by `HookedModel.load`, which lists the options.

        Two folders whose paths end alike get longer names, such as 'run-a/hf' and 'run-b/hf',
        unless ``source_name`` and ``target_name`` are given.

        Raises:
            MismatchError: the models share a tokenizer and differ in their BOS policy.
        """
        options: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "device_map": device_map,
            "prepend_bos": prepend_bos,
            "truncation": truncation,
            "trust_remote_code": trust_remote_code,
        }
        # Names are fixed before loading, because the identities of the models record them.
        names = _names((source, target), (source_name, target_name))
        return cls(
            HookedModel.load(source, name=names[0], revision=source_revision, **options),
            HookedModel.load(target, name=names[1], revision=target_revision, **options),
        )

    def __post_init__(self) -> None:
        # With one tokenizer, equal positions are paired; BOS in one model only would shift them.
        # With two, positions are aligned by characters, and BOS has none.
        if not self.aligned and self.source.prepend_bos != self.target.prepend_bos:
            raise MismatchError(
                f"{self.source.name!r} has prepend_bos={self.source.prepend_bos} and"
                f" {self.target.name!r} {self.target.prepend_bos};"
                " load the pair with prepend_bos=True or prepend_bos=False"
            )

    def __repr__(self) -> str:
        return f"ModelPair(\n  source={self.source!r},\n  target={self.target!r})"

    def _repr_html_(self) -> str:
        rows = [
            {
                "": role,
                "model": model.name,
                "layers": model.n_layers,
                "width": model.d_model,
                "vocabulary": len(model.tokenizer),
                "BOS": "yes" if model.prepend_bos else "no",
                "basis": model.basis,
                "device": str(model.device),
            }
            for role, model in (("source", self.source), ("target", self.target))
        ]
        tokens = (
            "Different tokenizers: positions are aligned by the characters that they have read."
            if self.aligned
            else "Both models read the same tokens."
        )
        return card("ModelPair", table(pd.DataFrame(rows)), note(tokens))

    @cached_property
    def aligned(self) -> bool:
        """True if the tokenizers differ, so that positions have to be aligned by characters."""
        return not self.source.identity.reads_as(self.target.identity)

    def refuse_two_tokenizers(self, what: str, instead: str) -> None:
        """Raise `MismatchError` if the models have different tokenizers, or another prefix.

        For functions that compare the models token by token: ``what`` names the function,
        ``instead`` is the remedy in the message.
        """
        if not self.aligned and self.source.prefix != self.target.prefix:
            raise MismatchError(
                f"{what} compares models token by token, but {self.source.name!r} reads every text"
                f" behind the special tokens {self.source.prefix} and {self.target.name!r} behind"
                f" {self.target.prefix}; {instead}"
            )
        if self.aligned:
            sizes = " and ".join(
                f"one of {len(model.tokenizer):,} tokens" for model in (self.source, self.target)
            )
            raise MismatchError(
                f"{what} compares models token by token, but {self.source.name!r} and"
                f" {self.target.name!r} have different tokenizers ({sizes}); {instead}"
            )

    @property
    def context_length(self) -> int:
        """Number of tokens that both models can read at once."""
        return min(self.source.context_length, self.target.context_length)

    def reversed(self) -> "ModelPair":
        """Return the pair with source and target exchanged."""
        return ModelPair(self.target, self.source)


def model_sides(models: ModelPair | tuple[ModelLike, ModelLike]) -> tuple[HookedModel, HookedModel]:
    """Return source and target of a pair, or of a tuple of two models.

    The two models may have different tokenizers and BOS policies.

    Raises:
        ValueError: ``models`` is neither a `ModelPair` nor a tuple of two.
    """
    if isinstance(models, ModelPair):
        return models.source, models.target
    if not isinstance(models, tuple) or len(models) != 2:
        raise ValueError(f"models is {models!r}; expected a ModelPair, or a tuple (source, target)")
    names = _names(models, (None, None))
    return load_model(models[0], name=names[0]), load_model(models[1], name=names[1])


def paired_hooks(
    source: HookedModel, target: HookedModel, source_hook: Hooks, target_hook: Hooks
) -> list[tuple[str, str]]:
    """Return hook pairs: full names of the hook points of both models, paired in their order.

    Raises:
        HookPointError: a model has no such hook point, a hook point is given twice, or the numbers
            of hook points differ.
    """
    requested = [
        [hooks] if isinstance(hooks, int | str) else list(hooks)
        for hooks in (source_hook, target_hook)
    ]
    if len(requested[0]) != len(requested[1]) or not requested[0]:
        raise HookPointError(
            f"{len(requested[0])} source hook(s) and {len(requested[1])} target hook(s); each map"
            " needs one of both: give equally many source_hook and target_hook, at least one"
        )
    # Full names first, so that a layer number and its name count as the same hook point.
    names = [
        [resolve(hook, model) for hook in hooks]
        for hooks, model in zip(requested, (source, target), strict=True)
    ]
    if any(len(set(side)) < len(side) for side in names):
        raise HookPointError(
            f"hook points are given twice: {names[0]} → {names[1]}; give each once"
        )
    return list(zip(*names, strict=True))


def _names(models: Sequence[ModelLike], names: Sequence[str | None]) -> list[str]:
    """Return a distinct name per model; None in ``names`` leaves the choice to this function.

    A `HookedModel` keeps the name with which it was loaded.
    """
    fixed = [
        model.name if name is None and isinstance(model, HookedModel) else name
        for model, name in zip(models, names, strict=True)
    ]
    return names_apart([model_origin(model) for model in models], fixed)
