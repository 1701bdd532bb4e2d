"""From the words of the command line to a command: subcommands of tyro, and files of options.

    parse(["fit", "--config", "run.toml", "--n-tokens", "1000"], COMMANDS, GROUPS)    # Fit(…)

Problem: options come from the command line, from a file, and from defaults. Mechanism: the file is
read first, and its values become the defaults of the command's dataclass, so that tyro lets the
command line win and shows them in ``--help``.

Limits: options stand behind the words of the command.
"""

import inspect
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from lrt_lens._terminal import say
from lrt_lens.cli._command import Command
from lrt_lens.cli._config import config_values


def parse(
    arguments: Sequence[str],
    commands: Sequence[type[Command]],
    groups: dict[str, str],
    description: str,
) -> Command:
    """Return the command with the options of the command line, of its file, and the defaults.

    Args:
        arguments: words behind ``lrt-lens``.
        commands: classes of all commands, in the order of the help.
        groups: description of each first word that several commands share.
        description: text of ``lrt-lens --help``.

    Raises:
        ValueError: a file of options has an unknown name or a value of another type.
        SystemExit: help, the version or a completion was printed (0), or an option cannot be read
            (2).
    """
    if list(arguments) == ["--version"]:
        from lrt_lens import __version__

        say(f"lrt-lens {__version__}")
        raise SystemExit(0)
    by_words = {kind.words: kind for kind in commands}
    kind, path = _called(arguments, by_words), _config_path(arguments)
    default = None
    if kind is not None and path is not None:
        default = with_values(kind, config_values(path, kind, by_words))
    return tyro.cli(
        _subcommands(commands, groups, kind, default),
        prog="lrt-lens",
        description=description,
        args=list(arguments),
    )


def completion_script(
    shell: str, commands: Sequence[type[Command]], groups: dict[str, str], description: str
) -> None:
    """Print the completion script of a shell: bash, zsh or fish."""
    try:
        parse([_COMPLETION, shell], commands, groups, description)
    except SystemExit as ended:
        # tyro ends the process after it has printed the script.
        if ended.code:
            raise


_COMPLETION = "--tyro-print-completion"
"""Option by which tyro prints a script."""


def with_values(kind: type[Command], values: dict[str, Any]) -> Command:
    """Return a command with some options; those without a default are still to be given."""
    # Its __init__ may check types, and a missing value of tyro has none.
    command = object.__new__(kind)
    for field in fields(kind):
        value = values.get(field.name, field.default)
        object.__setattr__(command, field.name, tyro.MISSING if value is MISSING else value)
    return command


def _called(arguments: Sequence[str], by_words: dict[str, type[Command]]) -> type[Command] | None:
    """Return the command that the first words name; None if they name none."""
    for n_words in (2, 1):
        kind = by_words.get(" ".join(arguments[:n_words]))
        if kind is not None:
            return kind
    return None


def _config_path(arguments: Sequence[str]) -> Path | None:
    """Return the last value of ``--config``; None if there is none."""
    path = None
    for number, word in enumerate(arguments):
        if word == "--config" and number + 1 < len(arguments):
            path = Path(arguments[number + 1])
        elif word.startswith("--config="):
            path = Path(word.removeprefix("--config="))
    return None if path == Path("None") else path


def _subcommands(
    commands: Sequence[type[Command]],
    groups: dict[str, str],
    called: type[Command] | None,
    default: Command | None,
) -> Any:
    """Return the type from which tyro makes the parser: a union, with a union for each group."""
    members: dict[str, Any] = {}
    inner: dict[str, list[Any]] = {}
    for kind in commands:
        first, _, second = kind.words.partition(" ")
        # The list of commands shows the first line of each; its own help shows all.
        described = inspect.getdoc(kind) or ""
        described = described if kind is called else described.partition("\n")[0]
        named: dict[str, Any] = (
            {} if default is None or kind is not called else {"default": default}
        )
        config = tyro.conf.subcommand(second or first, description=described, **named)
        member = Annotated[kind, config]
        if second:
            inner.setdefault(first, []).append(member)
            members[first] = None  # its place in the order
        else:
            members[first] = member
    for first, several in inner.items():
        config = tyro.conf.subcommand(first, description=groups[first])
        members[first] = Annotated[Union[tuple(several)], config]  # noqa: UP007
    return Union[tuple(members.values())]  # noqa: UP007
