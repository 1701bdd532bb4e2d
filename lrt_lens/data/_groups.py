"""Groups of documents that share a fold: what they may be, and the group of each document.

Problem: a group that is not what the caller meant (the keys of a dictionary, the column names of a
table, one empty text for all) decides the folds without an error. Mechanism: `refuse_other_groups`
accepts a column, a function or one value per document, and `Groups` refuses missing values.

    refuse_other_groups({"a": 1})                     # ValueError
    groups = Groups("author")
    groups.of({"text": "…", "author": "A"}, "row 1")  # "A"

Limits: a misspelt value is another group.
"""

import os
from collections.abc import Iterator, Mapping, Set
from pathlib import PurePath
from typing import Any

from lrt_lens.data._document_rows import is_missing, refuse_open_file

_FILE = "file"
"""Column that paragraphs of a file have, which otherwise have no columns."""
_EXPECTED = "expected the name of a column, one value per document, or a function of a row"


def refuse_other_groups(group: Any) -> None:
    """Raise ValueError if ``group`` names no column and gives no value to each document."""
    if group is None or callable(group):
        return
    refuse_open_file(group, "group")
    if isinstance(group, str):
        if not group.strip():
            raise ValueError(f"group is {group!r}; {_EXPECTED}")
        return
    remedy = ""
    if isinstance(group, Mapping):
        remedy = ": look the values up, such as [groups[key] for key in keys], in the order of the"
        remedy += " documents"
    elif isinstance(group, Set):
        remedy = ": a set has no order"
    elif hasattr(group, "iterrows") or hasattr(group, "column_names"):
        remedy = ": give one of its columns, such as table['author']"
    elif getattr(group, "ndim", 1) != 1:
        remedy = f": it has {group.ndim} dimensions instead of one"
    elif hasattr(group, "__iter__") and not isinstance(group, bytes | bytearray):
        return
    raise ValueError(f"group is a {type(group).__name__}; {_EXPECTED}{remedy}")


def refuse_other_number(documents: Any, group: Any) -> None:
    """Raise ValueError if there is another number of groups than of documents.

    A harvest that ends before the documents do would not notice it. Files and streams have no
    number until they are read.
    """
    if isinstance(group, str) or not hasattr(group, "__len__"):
        return
    # A path among the documents stands for all rows of its file.
    has_paths = isinstance(documents, list | tuple) and any(
        isinstance(one, os.PathLike) for one in documents
    )
    if isinstance(documents, str | bytes | os.PathLike | Mapping) or has_paths:
        return
    try:
        n_documents, n_groups = len(documents), len(group)
    except TypeError:  # a stream, or an array without dimensions
        return
    if n_documents != n_groups:
        raise ValueError(
            f"group has {n_groups} values for {n_documents} documents; give one value per document,"
            " in their order, also for documents that are missing or blank"
        )


class Groups:
    """Groups of the documents of one source, in the order of its rows."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self._values: Iterator[Any] | None = None
        if group is not None and not isinstance(group, str) and not callable(group):
            self._values = iter(group)

    @property
    def column(self) -> str | None:
        """Name of the column that holds the groups; None if they are no column."""
        return self.group if isinstance(self.group, str) else None

    def of(self, row: Any, where: str, file: str = "") -> Any:
        """Return the group of the next row; None if there are no groups.

        Rows without columns of a ``file`` have a column ``"file"``, the name of the file.

        Raises:
            ValueError: the row has none, or it is no single value; ``where`` names the row.
        """
        if self.group is None:
            return None
        if self.column is not None:
            value = row.get(self.column) if isinstance(row, dict) else None
            if value is None and self.column == _FILE and file and not isinstance(row, dict):
                value = PurePath(file).name
            remedy = f"the column {self.column!r} has no value there"
        elif self._values is not None:
            value, remedy = next(self._values, None), "group has no value for it"
        else:
            value, remedy = self._of_function(row, where), "the function returned None or ''"
        # Scalars of pyarrow know their Python values.
        plain: Any = value
        value = plain.as_py() if hasattr(plain, "as_py") else plain
        if is_missing(value) or (isinstance(value, str) and not value.strip()):
            raise ValueError(f"{where} has no group: {remedy}; give each document one")
        if isinstance(value, list | tuple | dict | set) or getattr(value, "ndim", 0):
            raise ValueError(
                f"{where} has the group {str(value)[:60]!r} ({type(value).__name__}); expected a"
                " single value, such as a name or a number"
            )
        return value

    def _of_function(self, row: Any, where: str) -> Any:
        try:
            return self.group(row)
        except Exception as error:  # of the caller's function
            has = f"has the columns {list(row)[:12]}" if isinstance(row, dict) else "has no columns"
            raise ValueError(
                f"the function group failed at {where} with {type(error).__name__}: {error}; the"
                f" row {has}"
            ) from error

    def refuse_left_over(self) -> None:
        """Raise ValueError if there are values for which no document was read."""
        if self._values is not None and next(self._values, self) is not self:
            raise ValueError(
                "group has more values than there are documents; give one value per document"
            )
