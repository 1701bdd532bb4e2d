"""Numbered rows of a source of documents, and what each column of a table holds.

Problem: the column of the texts is found by what the columns hold, and every reader (pandas,
pyarrow, datasets, json) has its own types. Mechanism: `ColumnKind` has three values for all of
them, and `Rows` carries them with the rows.

    arrow_kind(pyarrow.list_(pyarrow.string()))             # "nested"
    kinds_of_rows([{"id": "a", "turns": ["x"], "n": 1}])    # {"id": "text", "turns": "nested", …}

Limits: an identifier is a text like any other; only a name or the caller tells them apart.
"""

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

ColumnKind = Literal["text", "nested", "other"]
"""Texts; lists, structs, chats or bytes, which may hold texts; or others, such as numbers."""
TURNS = ({"role", "content"}, {"from", "value"})
"""Keys of one turn of a chat: of chat templates, and of ShareGPT."""
_NESTED = (list, tuple, dict, set, bytes, bytearray, np.ndarray)


@dataclass(frozen=True)
class Wanted:
    """Columns of a file that are read."""

    choose: Callable[[str, Mapping[str, ColumnKind]], Sequence[str]]
    """Function ``(name of the file, {column: kind})`` that returns the columns to read."""
    text_field: str | None = None
    """Column of the texts as the caller named it."""
    is_whole: bool = False
    """True if all columns are read, and none is searched for texts."""

    def __call__(self, source: str, columns: Mapping[str, ColumnKind]) -> Sequence[str]:
        return self.choose(source, columns)


@dataclass(frozen=True)
class Rows:
    """Numbered rows of one source of documents."""

    numbered: Iterable[tuple[int, Any]]
    """Each row with its number."""
    unit: str = "document"
    """Name of a row in messages: document, line, row or paragraph."""
    source: str = ""
    """Name of the file in messages; empty for rows in memory."""
    columns: Mapping[str, ColumnKind] | None = None
    """Columns with what they hold; None if only the rows themselves tell."""

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return iter(self.numbered)

    def where(self, number: int) -> str:
        """Return the place of a row, as messages name it."""
        row = f"{self.unit} {number}"
        return f"{self.source}, {row}" if self.source else row


def arrow_kind(kind: Any) -> ColumnKind:
    """Return what a column of a pyarrow type holds; a dictionary holds what its values are."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    if is_bytes or types.is_fixed_size_binary(kind) or types.is_nested(kind):
        return "nested"
    return "other"


def feature_kind(feature: Any) -> ColumnKind:
    """Return what a column of a data set holds, from its feature."""
    dtype = getattr(feature, "dtype", None)
    if dtype in ("string", "large_string"):
        return "text"
    # Lists, dictionaries, images and audio have no dtype of a number.
    is_simple = type(feature).__name__ in ("Value", "ClassLabel") and "binary" not in str(dtype)
    return "other" if is_simple else "nested"


def pandas_kinds(frame: Any) -> dict[str, ColumnKind]:
    """Return what each column of a pandas DataFrame holds."""
    names = list(map(str, frame.columns))
    refuse_repeated(names, "the table")
    return {name: _series_kind(frame.iloc[:, k]) for k, name in enumerate(names)}


def _series_kind(column: Any) -> ColumnKind:
    import pandas as pd

    if isinstance(column.dtype, pd.ArrowDtype):
        return arrow_kind(column.dtype.pyarrow_dtype)
    is_category = isinstance(column.dtype, pd.CategoricalDtype)
    values = column.dtype.categories if is_category else column.dropna()
    if len(values) and pd.api.types.is_string_dtype(values):
        return "text"
    return "nested" if any(isinstance(value, _NESTED) for value in values) else "other"


def kinds_of_rows(rows: Iterable[Any]) -> dict[str, ColumnKind]:
    """Return what each column of rows in memory holds; missing values do not count.

    A column holds texts if all of its values are texts, and nested values if any is one.
    """
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items() if isinstance(row, dict) else ():
            values.setdefault(str(name), []).append(value)
    return {name: _values_kind(column) for name, column in values.items()}


def _values_kind(column: list[Any]) -> ColumnKind:
    values = [value for value in column if not is_missing(value)]
    if values and all(isinstance(value, str) for value in values):
        return "text"
    return "nested" if any(isinstance(value, _NESTED) for value in values) else "other"


def refuse_repeated(names: Iterable[str], source: str) -> None:
    """Raise ValueError if two columns have one name."""
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise ValueError(
            f"{source} has several columns with the name(s) {repeated}; expected each name once:"
            " rename or drop the others"
        )


def is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN of any precision, or the missing value of pandas."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return True
    return type(value).__name__ in ("NAType", "NaTType")


def refuse_open_file(source: Any, name: str = "documents") -> None:
    """Raise ValueError for an open file, whose lines would be read with their markup."""
    if isinstance(source, io.IOBase) or (hasattr(source, "read") and hasattr(source, "readline")):
        path = getattr(source, "name", None)
        remedy = f"pathlib.Path({path!r})" if isinstance(path, str) else "a pathlib.Path"
        raise ValueError(
            f"{name} is an open file ({type(source).__name__}), whose lines are no documents; give"
            f" its path, {remedy}, or a list of texts"
        )


def without_surrogates(text: str) -> str:
    """Return a text with pairs of surrogates joined and lone ones replaced by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
