"""States whose norm is far out of the stream's, which decide a mean that they take part in.

Problem: some tokens (the first of a text, a delimiter) carry massive activations, a hundred times
as long as any other state; one of them among a hundred texts turns a mean difference into its own
direction. Mechanism: a state is far if its norm is more than `FAR_FACTOR` times the median norm of
the states that are averaged with it.

    count = FarNorms()
    count.add("blocks.3.hook_resid_post", states)          # [state, d]
    count.warnings()                                       # one sentence per hook point

Limits: if most states are massive, none is far.
"""

from dataclasses import dataclass, field

from torch import Tensor

FAR_FACTOR = 20.0
"""Multiple of the median norm above which a state is far out of the stream."""


def far_from_median(norms: Tensor) -> Tensor:
    """Return which norms [state] are more than `FAR_FACTOR` times their median, as a mask."""
    return norms > FAR_FACTOR * norms.median()


@dataclass
class FarNorms:
    """Numbers of far states by hook point, counted block by block."""

    n_far: dict[str, int] = field(default_factory=dict)
    """Number of far states; a hook point without any is left out."""
    n_states: dict[str, int] = field(default_factory=dict)
    """Number of all states."""
    largest: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Largest norm, and the median norm of its block."""

    def add(self, hook: str, states: Tensor) -> None:
        """Count the far ones of some states [state, d]."""
        norms = states.detach().float().norm(dim=1)
        self.n_states[hook] = self.n_states.get(hook, 0) + len(norms)
        far = norms[far_from_median(norms)]
        if not len(far):
            return
        self.n_far[hook] = self.n_far.get(hook, 0) + len(far)
        largest = float(far.max()), float(norms.median())
        self.largest[hook] = max(self.largest.get(hook, largest), largest)

    def warnings(self) -> list[str]:
        """Return one sentence for each hook point with far states."""
        return [
            f"{count} of {self.n_states[hook]} states at {hook!r} have norms above"
            f" {FAR_FACTOR:g} × the median (up to {self.largest[hook][0]:.4g} beside"
            f" {self.largest[hook][1]:.4g}) and weigh accordingly in means and covariances"
            for hook, count in self.n_far.items()
        ]
