r"""Options of a command in a TOML file: reading, checking and writing.

    # run.toml
    source = "gpt2"             # for every command that has this option
    [fit]                       # for `lrt-lens fit` alone
    n_tokens = 100_000
    [learn.vector]              # for `lrt-lens learn vector`; [learn] is for both kinds
    at = 6

    config_values(Path("run.toml"), Fit, {"fit": Fit, …})     # {"source": "gpt2", "n_tokens": …}
    toml_text("fit", {"source": "gpt2"})                      # "[fit]\nsource = \"gpt2\"\n"

Problem: a run of thirty options must be repeated from a file, and a misspelt name must not be
ignored. Mechanism: names are those of the command line, with ``_`` or ``-``; every name in the file
is compared with the options of all commands, and every value with the type of its option.

Limits: paths are relative to the folder in which the command is started, as on the command line.
TOML has no null, so None is written as the text "None", which the command line reads in the same
way.
"""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lrt_lens.cli._command import Command

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    NoneType: '"None"',
}
"""Types of options in words."""
_LARGEST = 10_000_000
"""Most bytes of a file of options."""

Commands = Mapping[str, type[Command]]
"""Every command, by its words."""


def config_values(path: Path, command: type[Command], commands: Commands) -> dict[str, Any]:
    """Return the options of a command that a file sets, with their types.

    Names outside tables are for every command that has such an option, ``[learn]`` for every
    command that begins with ``learn``, and ``[learn.vector]`` for that command; the narrowest wins.

    Raises:
        ValueError: the file is no TOML, has a name that no such command has, or a value of another
            type.
        OSError: the file cannot be read.
    """
    values: dict[str, Any] = {}
    # The narrowest table comes last.
    for words, table in sorted(_tables(path, commands), key=lambda entry: len(entry[0])):
        applies = command.words[: len(words)] == words
        known = {name for kind in _commands_of(words, commands) for name in _options(kind)}
        for key, value in _named(path, words, table).items():
            if key not in known:
                raise ValueError(
                    f"{str(path)!r} has {key!r} in {_place(words)}, which is no option of "
                    f"{_spoken(words)}{_nearest(key, known)}"
                )
            if applies and key in _options(command):
                values[key] = _checked(path, words, key, value, _options(command)[key])
    return values


def toml_text(words: str, options: Mapping[str, Any], command: type[Command] | None = None) -> str:
    """Return a table of TOML for a command, which `config_values` reads.

    Args:
        words: words of the command.
        options: texts, numbers, booleans, lists of them, and None.
        command: its class, whose options with the default None are left out if they are None.
    """
    defaults = {} if command is None else {one.name: one.default for one in fields(command)}
    lines = [f"[{'.'.join(words.split())}]"]
    for name, value in options.items():
        if value is None and defaults.get(name, MISSING) is None:
            continue
        lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # repr of infinity and NaN, inf and nan, is TOML too.
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    # JSON escapes what TOML must escape, except DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


# ------------------------------------------------------------------------------------------ reading


def _tables(path: Path, commands: Commands) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the words of each table with its options; those outside tables have no words."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{str(path)!r} is no file of options: it has over 10 MB")
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{str(path)!r} is no TOML ({error}); expected lines such as n_tokens = 20_000"
        ) from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"--config is {str(path)!r}, and no such file exists") from error
    yield from _inner(path, "", content, commands)


def _inner(
    path: Path, words: str, content: dict[str, Any], commands: Commands
) -> Iterator[tuple[str, dict[str, Any]]]:
    yield words, {key: value for key, value in content.items() if not isinstance(value, dict)}
    for key, value in content.items():
        if isinstance(value, dict):
            whole = f"{words} {key}".strip()
            if not any(_commands_of(whole, commands)):
                known = {part for name in commands for part in (name, name.split()[0])}
                raise ValueError(
                    f"{str(path)!r} has the table [{'.'.join(whole.split())}], which is no command"
                    f"{_nearest(whole, known)}"
                )
            yield from _inner(path, whole, value, commands)


def _commands_of(words: str, commands: Commands) -> list[type[Command]]:
    """Return the commands whose words begin with these."""
    return [
        kind
        for name, kind in commands.items()
        if not words or name == words or name.startswith(f"{words} ")
    ]


def _options(command: type[Command]) -> dict[str, Any]:
    """Return the types of a command's options by name."""
    hints = get_type_hints(command)
    return {one.name: hints[one.name] for one in fields(command) if one.name != "config"}


def _named(path: Path, words: str, table: dict[str, Any]) -> dict[str, Any]:
    """Return a table with the names of the fields; n-tokens and n_tokens are one."""
    named: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in named:
            raise ValueError(f"{str(path)!r} has {name!r} twice in {_place(words)}; keep one")
        named[name] = value
    return named


def _checked(path: Path, words: str, key: str, value: Any, hint: Any) -> Any:
    """Return a value of TOML as a value of the option's type."""
    # Imported late, because it takes long.
    from pydantic import TypeAdapter, ValidationError

    if value == "None" and NoneType in get_args(hint):
        return None
    try:
        # As JSON: strict for numbers and texts, while lists may be tuples and texts paths.
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} has {key} = {_toml(value)[:80]} in {_place(words)}; expected "
            f"{type_in_words(hint)}"
        ) from error


def type_in_words(hint: Any) -> str:
    """Return the values that an option takes, in words."""
    if hint in _WORDS:
        return _WORDS[hint]
    if get_origin(hint) is Literal:
        return " or ".join(f'"{one}"' for one in get_args(hint))
    if get_origin(hint) in (tuple, list):
        return f"a list of {type_in_words(get_args(hint)[0]).removeprefix('a ')}s"
    # None can be left out instead.
    parts = [one for one in get_args(hint) if one is not NoneType]
    return " or ".join(type_in_words(one) for one in parts)


def _place(words: str) -> str:
    return f"[{'.'.join(words.split())}]" if words else "the part outside tables"


def _spoken(words: str) -> str:
    return f"`lrt-lens {words}`" if words else "any command"


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.4)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; expected one of {sorted(known)}"
