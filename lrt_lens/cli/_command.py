"""Base of all commands: a frozen dataclass whose fields are the options, and a method `run`.

    @dataclass(frozen=True, kw_only=True)
    class LearnVector(Command):
        words: ClassVar[str] = "learn vector"
        contrast: tyro.conf.Positional[Path]

Limits: torch is imported by the methods only, so that ``--help`` answers at once.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of ``lrt-lens``; its docstring is the text of ``--help``."""

    words: ClassVar[str]
    """Words that call the command, such as ``"learn vector"``."""

    config: Annotated[Path | None, tyro.conf.arg(metavar="run.toml")] = None
    """File with options by name; those on the command line win. Every run writes one."""

    def run(self) -> None:
        """Do the work, write the results and print what was written."""
        raise NotImplementedError

    def check_numbers(self) -> None:
        """Raise ValueError for a number out of its range, before anything is read or loaded."""
        from lrt_lens._numbers import checked_number, checked_whole

        for name, value in self.arguments.items():
            if value is None or isinstance(value, str | bool | list):
                continue
            if name in _LEAST or name.startswith("n_"):
                checked_whole(name, value, least=_LEAST.get(name, 0))
            elif name in _ABOVE_ZERO:
                checked_number(name, value, above=0.0)

    @property
    def arguments(self) -> dict[str, Any]:
        """Options of this run as values of JSON, without the name of the file of options."""
        names = [field.name for field in fields(self) if field.name != "config"]
        return {name: _plain(getattr(self, name)) for name in names}


_LEAST = {
    "seed": 0,
    "skip_first": 0,
    "n_tokens": 1,
    "n_folds": 2,
    "n_seeds": 1,
    "context_length": 2,
}
"""Smallest values of whole numbers; that of other numbers of things (``n_…``) is 0."""
_ABOVE_ZERO = ("damage", "tolerance", "first_guess", "validation_share", "test_share")
"""Options that are finite numbers above 0."""


def _plain(value: Any) -> Any:
    """Return tuples as lists, and paths as text."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
