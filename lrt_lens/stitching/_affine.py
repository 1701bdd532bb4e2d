"""Affine maps between residual streams: ``y ≈ x @ W + b``, rows are tokens."""

from dataclasses import dataclass

from torch import Tensor, linalg

from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_names import same_place


@dataclass(frozen=True)
class AffineMap:
    """``points(x) = x @ weight + bias``."""

    weight: Tensor
    """[d_source, d_target]."""
    bias: Tensor
    """[d_target]."""
    source_hook: str = "source"
    target_hook: str = "target"

    def __post_init__(self) -> None:
        if self.weight.shape[1:] != self.bias.shape:
            raise MismatchError(
                f"weight {tuple(self.weight.shape)} and bias {tuple(self.bias.shape)} do not fit; "
                "expected [d_source, d_target] and [d_target]"
            )

    def points(self, x: Tensor) -> Tensor:
        """Activations carried over, [..., d_source] → [..., d_target]: ``x W + b``."""
        return self._rows(x) @ self._like(self.weight, x) + self._like(self.bias, x)

    def directions(self, v: Tensor) -> Tensor:
        """Differences carried over, [..., d_source] → [..., d_target]: ``v W``, no bias."""
        return self._rows(v) @ self._like(self.weight, v)

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
        return AffineMap(
            self.weight @ then.weight,
            self.bias @ then.weight + then.bias,
            self.source_hook,
            then.target_hook,
        )

    def inverse(self, rcond: float | None = None) -> "AffineMap":
        """Return the map back by pseudo-inverse.

        It is exact if this map loses nothing, and the least-squares way back otherwise.

        Singular values below ``rcond`` of the largest count as zero. Amplifies what the map shrank:
        a fitted way down is better, see `StitchGrid.score`.
        """
        weight = linalg.pinv(self.weight) if rcond is None else linalg.pinv(self.weight, rtol=rcond)
        return AffineMap(weight, -self.bias @ weight, self.target_hook, self.source_hook)

    def __repr__(self) -> str:
        d_source, d_target = self.weight.shape
        return f"AffineMap({self.source_hook} [{d_source}] → {self.target_hook} [{d_target}])"

    def _rows(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.weight.shape[0]:
            raise MismatchError(
                f"last dimension is {x.shape[-1]}; this map starts at {self.source_hook!r} with "
                f"{self.weight.shape[0]} dimensions"
            )
        return x

    @staticmethod
    def _like(parameter: Tensor, x: Tensor) -> Tensor:
        return parameter.to(device=x.device, dtype=x.dtype)


@dataclass(frozen=True)
class MapPair:
    """A map and its way back, each fitted on its own (``down`` is no inverse of ``up``)."""

    up: AffineMap
    down: AffineMap

    def reversed(self) -> "MapPair":
        """The two exchanged."""
        return MapPair(self.down, self.up)


@dataclass(frozen=True)
class StreamStatistics:
    """Mean, covariance and size of the stream at one hook point, over the tokens of the fit."""

    mean: Tensor
    """[d]."""
    covariance: Tensor
    """[d, d]."""
    median_norm: float
    """Median ‖x‖."""

    def deviation(self, direction: Tensor) -> float:
        """Standard deviation of the stream along a direction (of any length)."""
        unit = direction.to(self.covariance) / direction.to(self.covariance).norm()
        return float((unit @ self.covariance @ unit).clamp_min(0).sqrt())
