"""Errors for users: each message has the observation, the expectation and the remedy."""

__all__ = [
    "FileFormatError",
    "HookPointError",
    "MismatchError",
    "NonFiniteError",
    "TooFewDocumentsError",
]


class HookPointError(ValueError):
    """A model does not have the hook point."""


class MismatchError(ValueError):
    """Models, tokenizers, bases, hook points or shards differ that must be the same."""


class FileFormatError(ValueError):
    """A file is truncated, was written by another program, or has another schema."""


class NonFiniteError(ValueError):
    """A number is NaN or infinite."""


class TooFewDocumentsError(ValueError):
    """The documents do not fill every fold."""
