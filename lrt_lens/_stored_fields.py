"""Fields of our classes in files: JSON objects that are checked against the types of the class.

Problem: a file that was changed, cut or written by a newer version must be one clear error, and not
a KeyError far away. Mechanism: pydantic checks names and types of all fields, strictly (no text is
taken for a number), with the annotations of the dataclass as the schema.

    content = json_object(path, metadata["vector"])
    fields = stored_fields(path, SteeringVector, content, others=("direction",))
    with as_damage(path):
        return SteeringVector(direction, **fields)

Limits: what a value means is checked by the class that is made of it.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired, Required, get_type_hints

import xxhash
from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from lrt_lens._messages import one_line
from lrt_lens.errors import FileFormatError

_EXTRA = ("extra_forbidden", "unexpected_keyword_argument")
"""Kinds of pydantic's errors for a field that the class does not have."""
_SHOWN = 3
"""Largest number of errors that a message lists."""


def json_object(path: Path, text: str | None, what: str = "its JSON") -> dict[str, Any]:
    """Return a JSON object of a file; ``what`` names it in messages.

    Raises:
        FileFormatError: there is none, or it is no JSON object.
    """
    if text is None:
        raise _lacking(path, what)
    try:
        content = json.loads(text)
    # Deep nesting is a RecursionError, a number of thousands of digits a ValueError.
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{str(path)!r} is damaged: {what} is not valid JSON ({_start_of(error)}); copy it, or "
            "save it again"
        ) from error
    if not isinstance(content, dict):
        raise FileFormatError(
            f"{str(path)!r} holds a {type(content).__name__} as {what}; expected fields by name: "
            "copy it, or save it again"
        )
    return content


def read_json_file(path: Path, schema: str | None = None) -> dict[str, Any]:
    """Return the JSON object in a file, of ``schema`` if one is given.

    Raises:
        FileFormatError: the file cannot be read, holds no JSON object, or is of another schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise damage(path, error) from error
    content = json_object(path, text, "the file")
    found = content.get("schema_version")
    if schema is not None and found != schema:
        raise FileFormatError(
            f"{str(path)!r} has schema {found!r}; expected {schema!r}: another program or version "
            "wrote it"
        )
    return content


def schema_of(path: Path) -> str:
    """Return the schema version that a JSON file names; empty if it names none or is no JSON."""
    try:
        return str(read_json_file(path).get("schema_version") or "")
    except FileFormatError:
        return ""


def stored_fields(
    path: Path, kind: Any, content: dict[str, Any], *, others: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the fields of a dataclass that a file stores, in the types of the class.

    Fields of other dataclasses become objects of these. A field that has a default may be missing,
    because an earlier version may not have had it.

    Args:
        path: the file, for the message.
        kind: the dataclass, or a TypedDict.
        content: stored values by the name of their field.
        others: fields that are stored elsewhere in the file, or not at all.

    Raises:
        FileFormatError: a field is missing, unknown, or of another type.
    """
    try:
        # As text, because JSON has neither tuples nor sets, which pydantic makes of its lists.
        return _schema(kind, tuple(others)).validate_json(json.dumps(content))
    except ValidationError as error:
        raise _refusal(path, kind.__name__, error) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise damage(path, error) from error


def stored_text(kind: Any, fields: dict[str, Any], *, others: Sequence[str] = ()) -> str:
    """Return the fields of a dataclass as the JSON that `stored_fields` reads.

    Raises:
        ValueError: a field is of another type than the class says, so that the file could not be
            read again.
    """
    try:
        text = json.dumps(fields, default=_plain)
        _schema(kind, tuple(others)).validate_json(text)
    except ValidationError as error:
        facts = "; ".join(_facts(kind.__name__, error))
        raise ValueError(
            f"this {kind.__name__} cannot be saved, because a file of it could not be read again:"
            f" {facts}; give fields of these types"
        ) from error
    except TypeError as error:
        raise ValueError(f"this {kind.__name__} cannot be saved: {_start_of(error)}") from error
    return text


def _plain(value: Any) -> Any:
    """Return a number of numpy or torch, or a set, as JSON has it."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if callable(getattr(value, "item", None)):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is no value of JSON")


def json_checksum(content: Any) -> str:
    """Return a hash of a value of JSON, in hexadecimal; the order of fields does not matter."""
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()


def stored_value(path: Path, kind: Any, text: str | None, what: str) -> Any:
    """Return a value of ``kind``, any type that pydantic knows, from its JSON text.

    Raises:
        FileFormatError: there is no such text, or it is of another type.
    """
    if text is None:
        raise _lacking(path, what)
    try:
        return _value_schema(kind).validate_json(text)
    except ValidationError as error:
        raise _refusal(path, what, error) from error


@lru_cache(maxsize=64)
def _value_schema(kind: Any) -> Any:
    return TypeAdapter(kind, config=ConfigDict(strict=True))


@lru_cache(maxsize=64)
def _schema(kind: Any, others: tuple[str, ...]) -> Any:
    hints = get_type_hints(kind)
    if hasattr(kind, "__required_keys__"):
        required = {name: name in kind.__required_keys__ for name in hints}
    else:
        required = {
            field.name: field.default is MISSING and field.default_factory is MISSING
            for field in fields(kind)
        }
    items = {
        name: Required[hints[name]] if is_required else NotRequired[hints[name]]
        for name, is_required in required.items()
        if name not in others
    }
    make: Any = TypedDict
    schema = make(kind.__name__, items)
    # Also for nested dataclasses, which have no configuration of their own.
    schema.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
    return TypeAdapter(schema)


def _facts(name: str, error: ValidationError) -> list[str]:
    """Return what is wrong: missing fields, unknown ones, and those of another type."""
    missing, unknown, others = [], [], []
    for problem in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in problem["loc"]) or name
        if problem["type"] == "missing":
            missing.append(where)
        elif problem["type"] in _EXTRA:
            unknown.append(where)
        else:
            others.append(f"{where} is {_cut(repr(problem['input']), 60)}: {problem['msg']}")
    return [
        *([f"missing {missing[:_SHOWN]}"] if missing else []),
        *([f"unknown {unknown[:_SHOWN]}"] if unknown else []),
        *others[:_SHOWN],
    ]


def _refusal(path: Path, name: str, error: ValidationError) -> FileFormatError:
    """Return the error for fields that are not those of the class."""
    facts = _facts(name, error)
    head = f"{str(path)!r} does not hold the fields of a {name}: {'; '.join(facts)}; it was"
    if all(fact.startswith("unknown ") for fact in facts):
        return FileFormatError(
            f"{head} written by a newer version: install that, or save it again with this one"
        )
    return FileFormatError(
        f"{head} changed, or written by another version: copy it, or save it again with this one"
    )


def _lacking(path: Path, what: str) -> FileFormatError:
    return FileFormatError(
        f"{str(path)!r} lacks {what}; it was changed or written by another program: copy it, or "
        "save it again"
    )


@contextmanager
def as_damage(path: Path) -> Iterator[None]:
    """Turn any refusal of a file's values, by the class made of them, into a `FileFormatError`."""
    try:
        yield
    except FileFormatError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        RuntimeError,
        StopIteration,
        TypeError,
        ValueError,
    ) as error:
        raise damage(path, error) from error


def damage(path: Path, error: Exception) -> FileFormatError:
    """Return the `FileFormatError` for values that do not belong together."""
    return FileFormatError(
        f"{str(path)!r} is damaged or was changed ({_start_of(error)}); copy it, or save it again"
    )


def _start_of(error: Exception) -> str:
    """Return the start of an error's text, or its kind if it has none, on one line."""
    return _cut(one_line(error) or type(error).__name__, 200)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
