"""The errors that users meet. Each message says what was found, what was expected, and the remedy."""

__all__ = [
    "FileFormatError",
    "HookPointError",
    "MismatchError",
    "NonFiniteError",
    "TooFewDocumentsError",
]


class HookPointError(ValueError):
    """A hook point that the model does not have."""


class MismatchError(ValueError):
    """Two things that must agree (models, tokenizers, bases, hook points, shards) and do not."""


class FileFormatError(ValueError):
    """A file that is truncated, foreign, or of another schema."""


class NonFiniteError(ValueError):
    """NaN or infinity where numbers are expected."""


class TooFewDocumentsError(ValueError):
    """Not enough text to fill every fold."""
