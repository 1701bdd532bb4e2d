"""Rows of pyarrow as dictionaries of Python values.

    arrow_rows(table, "a.parquet", 1)           # {"text": …}, …

Problem: pyarrow has a dozen errors for a value that Python does not have. Mechanism: rows are
converted at once, and one by one if that fails, so that the error names the row.

Limits: the rows of one table or batch are in memory together.
"""

from collections.abc import Iterator
from typing import Any

from lrt_lens.errors import FileFormatError

_NO_VALUES = (ValueError, OverflowError, KeyError, TypeError, NotImplementedError)
"""Errors of pyarrow for a value that Python does not have: a year 20,000, an unknown time zone."""


def arrow_rows(batch: Any, source: str, first: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a pyarrow table or batch as dictionaries.

    Raises:
        FileFormatError: a value cannot be read, such as a text that is not valid UTF-8; the message
            names ``source`` and the row, counted from ``first``.
    """
    try:
        rows = batch.to_pylist()
    except _NO_VALUES:
        rows = []
        for k in range(batch.num_rows):
            try:
                rows += batch.slice(k, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise FileFormatError(
                    f"{source}, row {first + k} holds a text that is not UTF-8 ({error});"
                    " write the table again from valid texts"
                ) from None
            except _NO_VALUES as error:
                raise FileFormatError(
                    f"{source}, row {first + k} holds a value that Python cannot represent"
                    f" ({type(error).__name__}: {str(error)[:200]!r}); write the table again"
                    " without that column"
                ) from error
    yield from rows
