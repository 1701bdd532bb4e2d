"""A source and a target model: of one tokenizer, or of two whose tokens are aligned by the text
that they spell.
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
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._loading import ModelLike, load_model

Hooks = int | str | Sequence[int | str]
"""One hook point or several, as layer numbers or names."""


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
        """Load both models (see `HookedModel.load`); `MismatchError` where they share a tokenizer
        and differ in their BOS policy.
        """
        options: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "device_map": device_map,
            "prepend_bos": prepend_bos,
            "trust_remote_code": trust_remote_code,
        }
        return cls(
            load_model(source, revision=source_revision, **options),
            load_model(target, revision=target_revision, **options),
        )

    def __post_init__(self) -> None:
        if not self.aligned and self.source.prepend_bos != self.target.prepend_bos:
            raise MismatchError(
                f"{self.source.name!r} has prepend_bos={self.source.prepend_bos} and {self.target.name!r} {self.target.prepend_bos}; "
                "load the pair with prepend_bos=True or prepend_bos=False"
            )

    def __repr__(self) -> str:
        return f"ModelPair(\n  source={self.source!r},\n  target={self.target!r})"

    def _repr_html_(self) -> str:
        rows = [
            {
                "": role,
                "model": m.name,
                "layers": m.n_layers,
                "width": m.d_model,
                "vocabulary": len(m.tokenizer),
                "BOS": "yes" if m.prepend_bos else "no",
                "basis": m.basis,
                "device": str(m.device),
            }
            for role, m in (("source", self.source), ("target", self.target))
        ]
        tokens = (
            "Different tokens: positions are aligned by the text behind them."
            if self.aligned
            else "Both read the same tokens."
        )
        return card("ModelPair", table(pd.DataFrame(rows)), note(tokens))

    @cached_property
    def aligned(self) -> bool:
        """Whether the models read different tokens, so that positions have to be aligned by the
        text behind them.
        """
        return not self.source.identity.reads_as(self.target.identity)

    def refuse_two_tokenizers(self, what: str, instead: str) -> None:
        """`MismatchError` for what compares models token by token, where they read different ones."""
        if self.aligned:
            tokenizers = (f"one of {len(m.tokenizer):,} tokens" for m in (self.source, self.target))
            raise MismatchError(
                f"{what} compares models token by token, but {self.source.name!r} and {self.target.name!r} have different tokenizers "
                f"({' and '.join(tokenizers)}); {instead}"
            )

    @property
    def context_length(self) -> int:
        """Tokens that both models can read at once."""
        return min(self.source.context_length, self.target.context_length)

    def reversed(self) -> "ModelPair":
        """The same pair with the roles swapped."""
        return ModelPair(self.target, self.source)


def model_sides(models: ModelPair | tuple[ModelLike, ModelLike]) -> tuple[HookedModel, HookedModel]:
    """(source, target) of a pair, or of a tuple of two models whose tokenizers may differ.

    Raises:
        ValueError: ``models`` is neither a `ModelPair` nor a tuple of two.
    """
    if isinstance(models, ModelPair):
        return models.source, models.target
    if not isinstance(models, tuple) or len(models) != 2:
        raise ValueError(f"models is {models!r}; expected a ModelPair, or a tuple (source, target)")
    return load_model(models[0]), load_model(models[1])


def paired_hooks(
    source: HookedModel, target: HookedModel, source_hook: Hooks, target_hook: Hooks
) -> list[tuple[str, str]]:
    """Hook pairs: full names of the hook points of both models, paired in the order given.

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
            f"{len(requested[0])} source hook(s) and {len(requested[1])} target hook(s); each map "
            "needs one of both: give equally many source_hook and target_hook, at least one"
        )
    names = [
        [resolve(hook, model) for hook in hooks]
        for hooks, model in zip(requested, (source, target), strict=True)
    ]
    if any(len(set(side)) < len(side) for side in names):
        raise HookPointError(
            f"hook points are given twice: {names[0]} → {names[1]}; give each once"
        )
    return list(zip(*names, strict=True))
