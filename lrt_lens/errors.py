"""Errors for users: each message has the observation, the expectation and the remedy.

    try:
        stitch.transfer(vector)
    except MismatchError as error:
        print(error)    # the vector belongs to another model or hook point

Problem: a wrong artefact gives wrong numbers without an error. Mechanism: functions refuse it with
one of these classes, which all derive from ValueError, so that old handlers still work.

Limits: an argument out of its range is a plain ValueError.
"""

__all__ = [
    "FileFormatError",
    "HookPointError",
    "HubError",
    "MismatchError",
    "NonFiniteError",
    "OtherThreadError",
    "TooFewDocumentsError",
]


class HookPointError(ValueError):
    """A model does not have the hook point."""


class MismatchError(ValueError):
    """Models, tokenizers, bases, hook points or shards differ that must be the same."""


class HubError(ValueError):
    """The hub refuses an upload, or cannot be reached."""


class FileFormatError(ValueError):
    """A file is truncated, was written by another program, or has another schema."""


class NonFiniteError(ValueError):
    """A number is NaN or infinite."""


class OtherThreadError(ValueError):
    """A thread runs a model on which the thread that started it has an intervention open."""


class TooFewDocumentsError(ValueError):
    """The documents do not fill every fold."""
