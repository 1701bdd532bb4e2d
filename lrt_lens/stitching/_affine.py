"""Affine maps between residual streams: ``y ≈ x @ W + b``, where rows are tokens.

Activations are mapped with the bias, differences of activations without:

    up = AffineMap(weight, bias, "blocks.3.hook_resid_post", "blocks.5.hook_resid_post")
    up.points(x), up.directions(v)
    round_trip = up.compose(down)

Limits: a map of unknown models is compared by hook points and widths only. The maps of a grid and
of a stitch know their models.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import xxhash
from torch import Tensor, linalg

from lrt_lens._given_tensors import float_tensor
from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import hook_name, same_place
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.typing import ArrayLike


@dataclass(frozen=True)
class AffineMap:
    """Affine map ``x @ weight + bias`` from one hook point to another."""

    weight: Tensor
    """Weight matrix W [d_source, d_target]; an array of numpy or a list becomes a tensor."""
    bias: Tensor
    """Bias b [d_target]."""
    source_hook: str = "source"
    """Hook point at which the map starts. The number of a block becomes the name of the stream
    after it."""
    target_hook: str = "target"
    """Hook point at which the map ends."""
    source_model: ModelIdentity | None = field(default=None, kw_only=True)
    """Model at which the map starts; None if it is not known."""
    target_model: ModelIdentity | None = field(default=None, kw_only=True)
    """Model at which the map ends; None if it is not known."""

    def __post_init__(self) -> None:
        for name in ("weight", "bias"):
            object.__setattr__(self, name, float_tensor(name, getattr(self, name)))
        for name in ("source_hook", "target_hook"):
            object.__setattr__(self, name, hook_name(getattr(self, name)))
        if self.weight.shape[1:] != self.bias.shape:
            raise MismatchError(
                f"weight {tuple(self.weight.shape)} and bias {tuple(self.bias.shape)} do not fit; "
                "expected [d_source, d_target] and [d_target]"
            )

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of dimensions (d_source, d_target)."""
        d_source, d_target = self.weight.shape
        return d_source, d_target

    @cached_property
    def digest(self) -> str:
        """Hash of weight and bias in float32, in hexadecimal; a saved map has the same."""
        content = xxhash.xxh3_128()
        for tensor in (self.weight, self.bias):
            content.update(tensor.float().cpu().contiguous().numpy().tobytes())
        return content.hexdigest()

    def between(self, source: ModelIdentity | None, target: ModelIdentity | None) -> "AffineMap":
        """Return this map as one of two models; an unknown model (None) leaves what is known."""
        models = (source or self.source_model, target or self.target_model)
        if models == (self.source_model, self.target_model):
            return self
        return replace(self, source_model=models[0], target_model=models[1])

    def points(self, x: ArrayLike) -> Tensor:
        """Return mapped activations ``x W + b``, [..., d_source] → [..., d_target].

        Arrays and lists are read too; the result is a tensor.
        """
        x = self._rows(x)
        return x @ self._like(self.weight, x) + self._like(self.bias, x)

    def directions(self, v: ArrayLike) -> Tensor:
        """Return mapped differences ``v W``, without bias, [..., d_source] → [..., d_target]."""
        # (x + v)W + b − (xW + b) = vW
        v = self._rows(v)
        return v @ self._like(self.weight, v)

    def compose(self, then: "AffineMap") -> "AffineMap":
        """Return this map followed by ``then``.

        Raises:
            MismatchError: ``then`` starts at another hook point.
        """
        if not same_place(self.target_hook, then.source_hook):
            raise MismatchError(
                f"this map ends at {self.target_hook!r}, the next starts at {then.source_hook!r}; "
                "compose maps that meet"
            )
        if self.target_model is not None and then.source_model is not None:
            self.target_model.refuse_other(then.source_model, "the model of the next map")
        # (xW₁ + b₁)W₂ + b₂ = x(W₁W₂) + (b₁W₂ + b₂)
        return AffineMap(
            self.weight @ then.weight,
            self.bias @ then.weight + then.bias,
            self.source_hook,
            then.target_hook,
            source_model=self.source_model,
            target_model=then.target_model,
        )

    def inverse(self, rcond: float | None = None) -> "AffineMap":
        """Return the map back, by pseudo-inverse of the weight.

        It inverts the map exactly if the map is injective, and is the least-squares inverse
        otherwise. It amplifies directions that the map shrank, so a fitted map down is better
        (`StitchGrid.score` compares them).

        Args:
            rcond: singular values below this share of the largest count as zero; torch's default
                if None.
        """
        # x ≈ (y − b)W⁺ = yW⁺ − bW⁺
        weight = linalg.pinv(self.weight) if rcond is None else linalg.pinv(self.weight, rtol=rcond)
        return AffineMap(
            weight,
            -self.bias @ weight,
            self.target_hook,
            self.source_hook,
            source_model=self.target_model,
            target_model=self.source_model,
        )

    def __repr__(self) -> str:
        d_source, d_target = self.weight.shape
        return f"AffineMap({self.source_hook} [{d_source}] → {self.target_hook} [{d_target}])"

    def _rows(self, x: ArrayLike) -> Tensor:
        x = float_tensor("x", x)
        if x.shape[-1] != self.weight.shape[0]:
            raise MismatchError(
                f"last dimension is {x.shape[-1]}; this map starts at {self.source_hook!r} with "
                f"{self.weight.shape[0]} dimensions: give states or directions of that hook point"
            )
        return x

    @staticmethod
    def _like(parameter: Tensor, x: Tensor) -> Tensor:
        # Fitted maps are float64; activations can be bfloat16 on a GPU.
        return parameter.to(device=x.device, dtype=x.dtype)


@dataclass(frozen=True)
class MapPair:
    """Maps in both directions, each fitted separately: ``down`` is not the inverse of ``up``."""

    up: AffineMap
    down: AffineMap

    def between(self, source: ModelIdentity | None, target: ModelIdentity | None) -> "MapPair":
        """Return these maps as those of two models, see `AffineMap.between`."""
        up, down = self.up.between(source, target), self.down.between(target, source)
        return self if up is self.up and down is self.down else MapPair(up, down)

    def reversed(self) -> "MapPair":
        """Return the pair with ``up`` and ``down`` exchanged."""
        return MapPair(self.down, self.up)


@dataclass(frozen=True)
class StreamStatistics:
    """Mean, covariance and typical norm of the stream at one hook point.

    Over the tokens of the fitting folds, or those of the texts that a baseline was fitted on.
    """

    mean: Tensor
    """Mean of the stream [d]."""
    covariance: Tensor
    """Covariance of the stream [d, d]."""
    median_norm: float
    """Median of ‖x‖ over the same tokens; NaN if it is unknown."""

    def deviation(self, direction: Tensor) -> float:
        """Return the standard deviation of the stream along a direction [d] of any length."""
        # √(uᵀCu) with ‖u‖ = 1; rounding can make the quadratic form slightly negative.
        unit = direction.to(self.covariance) / direction.to(self.covariance).norm()
        return float((unit @ self.covariance @ unit).clamp_min(0).sqrt())

    def principal_directions(self, n: int) -> Tensor:
        """Return the unit directions of largest variance as rows [n, d], the largest first.

        Raises:
            ValueError: ``n`` is not between 1 and d.
        """
        width = len(self.covariance)
        if not 1 <= n <= width:
            raise ValueError(f"n is {n}; expected a number of directions from 1 to {width}")
        # Columns of `eigh` ascend by eigenvalue; the sign of each is arbitrary.
        return torch.linalg.eigh(self.covariance.double()).eigenvectors.T.flip(0)[:n]
