"""Counts of the positions at which two tokenizations of the same texts end together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Aligned:
    """Counts of aligned positions and of tokens in some texts; they can be added."""

    n_pairs: int = 0
    """Number of aligned positions."""
    n_source: int = 0
    """Number of tokens of the source's tokenizer."""
    n_target: int = 0
    """Number of tokens of the target's tokenizer."""

    @property
    def share(self) -> tuple[float, float]:
        """Shares of source and of target tokens that are aligned; NaN without tokens."""
        nan = float("nan")
        return self.n_pairs / (self.n_source or nan), self.n_pairs / (self.n_target or nan)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of pairs, source and target tokens, in the order of files."""
        return self.n_pairs, self.n_source, self.n_target

    def __add__(self, other: "Aligned") -> "Aligned":
        return Aligned(
            self.n_pairs + other.n_pairs,
            self.n_source + other.n_source,
            self.n_target + other.n_target,
        )

    def __str__(self) -> str:
        return "{:.1%} of the source's tokens and {:.1%} of the target's".format(*self.share)


def sum_aligned(one: Aligned | None, other: Aligned | None) -> Aligned | None:
    """Return the sum of two counts, of which None counts nothing."""
    if one is None or other is None:
        return one or other
    return one + other
