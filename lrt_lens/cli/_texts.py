"""Texts that the commands read from files: labelled texts, and texts without labels.

    read_labelled("reviews.csv")             # Labelled(texts, labels, groups)
    read_labelled("contrast.jsonl")          # positive and negative texts; a pair is a group
    read_texts("neutral.txt")                # ["…", …]

Limits: rows are held in memory.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LabelledRows:
    """Texts with a label each, and what belongs together."""

    texts: list[str]
    """Texts in the order of the file."""
    labels: list[Any]
    """One label per text."""
    groups: list[Any] | None
    """One per text, such as the number of its pair; None if texts are independent."""


def read_labelled(
    path: str, text_field: str = "text", label_field: str = "label", group: str | None = None
) -> LabelledRows:
    """Return the labelled texts of a file.

    Args:
        path: a file of rows (.jsonl, .csv, .parquet, …). Rows with ``positive`` and ``negative``
            and without the column of labels are pairs: both texts are labelled by their column,
            and share a group.
        text_field: column of the texts.
        label_field: column of the labels; rows without a label are left out.
        group: column of what belongs together.

    Raises:
        FileFormatError: there is no such file, it is damaged, or a row lacks a column.
    """
    from lrt_lens.data import read_records
    from lrt_lens.data._document_rows import is_missing
    from lrt_lens.errors import FileFormatError

    rows = read_records(path)
    if rows and label_field not in rows[0][1] and {"positive", "negative"} <= rows[0][1].keys():
        return _pairs(path)
    labelled = [(where, row) for where, row in rows if not is_missing(row.get(label_field))]
    for where, row in labelled:
        lacking = [
            name for name in (text_field, *([group] if group else [])) if is_missing(row.get(name))
        ]
        if lacking:
            raise FileFormatError(
                f"{where} lacks {lacking}; it has {list(row)}: name the columns with --text-field, "
                "--label-field and --group"
            )
    if not labelled:
        columns = list(rows[0][1]) if rows else []
        raise FileFormatError(
            f"{path} has no labelled row: its columns are {columns}; expected {text_field!r} and "
            f"{label_field!r} (--text-field, --label-field), or 'positive' and 'negative'"
        )
    return LabelledRows(
        [str(row[text_field]) for _, row in labelled],
        [row[label_field] for _, row in labelled],
        [row[group] for _, row in labelled] if group else None,
    )


def _pairs(path: str) -> LabelledRows:
    from lrt_lens.data import ContrastSet

    contrast = ContrastSet.from_file(path)
    n = len(contrast)
    return LabelledRows(contrast.texts, ["positive"] * n + ["negative"] * n, [*range(n), *range(n)])


def read_texts(path: str) -> list[str]:
    """Return the texts of a file or a folder, or of a data set.

    Raises:
        FileFormatError: there is no such file, or it is damaged.
    """
    from lrt_lens.data import iterate_documents

    return list(iterate_documents(path))
