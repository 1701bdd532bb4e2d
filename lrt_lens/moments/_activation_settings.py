"""Settings of moments from activations that somebody already has.

    settings = ActivationSettings(source_model=small, target_model=large, null="full")
    CrossMoments.from_activations({3: x}, {5: y}, documents=ids, settings=settings)

Each field may also be passed as a keyword.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lrt_lens._numbers import checked_whole
from lrt_lens._settings import Settings
from lrt_lens.data._parts import DEFAULT_PARTS, Parts
from lrt_lens.errors import HookPointError
from lrt_lens.models._hook_points import EMBED, HookPair
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._loading import torch_dtype
from lrt_lens.moments._harvest_settings import Null
from lrt_lens.moments._own_rows import TOKEN_COLUMNS, TOKENS, hook_name
from lrt_lens.moments._provenance import Provenance, package_versions

NULLS = ("full", "sketch", "none")
"""Kinds of sums of shuffled pairs."""


@dataclass(frozen=True)
class ActivationSettings(Settings):
    """Settings of `CrossMoments.from_activations`.

    Raises:
        ValueError: a value is out of its range.
    """

    source_hook: int | str = "source"
    """Layer or hook point of ``x`` if it is a single array."""
    target_hook: int | str = "target"
    """Layer or hook point of ``y`` if it is a single array."""
    pairs: Sequence[tuple[int | str, int | str]] | None = None
    """Hook pairs (source, target); None: every source hook point with every target hook point."""
    null: Null = True
    """Cross-moments of shuffled pairs, as in `HarvestSettings`."""
    moment_dtype: str | torch.dtype = torch.float32
    """Precision of products, float32 or float64; sums are always float64."""
    seed: int = 0
    """Seed of the parts and of the shuffled pairs."""
    parts: Parts = DEFAULT_PARTS
    """Numbers of folds and of groups of the test fold."""
    token_columns: int = TOKEN_COLUMNS
    """Largest number of tokens that have a column each in the baseline of token identity, if it
    has no embedding. Sums take memory in proportion to its square, 109 MB for 1024.
    """
    frequent_tokens: Sequence[int] | None = None
    """Ids of these tokens; None: the most frequent ones in the fitting folds of the first rows.
    Shards that are merged need the same.
    """
    source_model: Any = None
    """Model of ``x``: a `HookedModel`, what it loads, or a ``ModelIdentity``; None if unknown."""
    target_model: Any = None
    """Model of ``y``; None if unknown."""

    def __post_init__(self) -> None:
        if not isinstance(self.parts, Parts):
            raise ValueError(f"parts is {self.parts!r}; expected Parts(n_folds, n_test_groups)")
        if not isinstance(self.null, bool) and self.null not in NULLS:
            raise ValueError(
                f"null is {self.null!r}; expected True, False, 'full', 'sketch' or 'none'"
            )

        columns = checked_whole("token_columns", self.token_columns, least=1)
        object.__setattr__(self, "token_columns", columns)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of products."""
        return torch_dtype(self.moment_dtype)

    def with_identities(self) -> "ActivationSettings":
        """Return the settings with the identity of each model in place of the model."""
        source, target = map(identity_of, (self.source_model, self.target_model))
        return replace(self, source_model=source, target_model=target)

    @property
    def provenance(self) -> Provenance:
        """Provenance before any row; the models are identities here."""
        return Provenance(
            self.source_model,
            self.target_model,
            seed=self.seed,
            parts=self.parts,
            versions=package_versions(),
            frequent_tokens=None
            if self.frequent_tokens is None
            else tuple(sorted(set(self.frequent_tokens))),
        )

    def chosen_pairs(
        self, x: Mapping[str, Any], y: Mapping[str, Any]
    ) -> tuple[tuple[HookPair, ...], str | None]:
        """Return (hook pairs, hook point of token identity or None).

        ``hook_embed`` next to other source hook points stands for token identity.

        Raises:
            HookPointError: there are no rows of a hook point in ``pairs``, or there are no pairs.
        """
        token = next((hook for hook in (TOKENS, EMBED) if hook in x and len(x) > 1), None)
        if self.pairs is None:
            return tuple((s, t) for s in x if s != token for t in y), token
        pairs = tuple(
            dict.fromkeys(
                (
                    hook_name(source, self.source_model, "pairs"),
                    hook_name(target, self.target_model, "pairs"),
                )
                for source, target in self.pairs
            )
        )
        unknown = [pair for pair in pairs if pair[0] not in x or pair[1] not in y]
        if unknown or not pairs:
            raise HookPointError(
                f"pairs has {[*unknown, *pairs][:1]}; x has rows of {list(x)} and y of {list(y)}: "
                "give pairs of these hook points"
            )
        return pairs, token


def identity_of(model: Any) -> ModelIdentity | None:
    """Return the identity of a model, of an identity, or of None.

    Raises:
        TypeError: it is no model that can be loaded.
    """
    if model is None or isinstance(model, ModelIdentity):
        return model
    return HookedModel.load(model).identity
