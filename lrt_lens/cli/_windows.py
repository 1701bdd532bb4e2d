"""Options of the commands that cut documents into windows.

    @dataclass(frozen=True, kw_only=True)
    class States(WindowOptions):
        model: str

    request_states(…, **self.windows)

Limits: the length of the context is an option, and is not read from the models.
"""

from dataclasses import dataclass
from typing import Any, Literal

from lrt_lens.cli._command import Command


@dataclass(frozen=True, kw_only=True)
class WindowOptions(Command):
    """Options that decide which documents are read, and in which windows."""

    documents: str
    """A file (.txt, .md, .jsonl, .ndjson, .json, .csv, .tsv or .parquet, also with .gz or .zst), a
    folder of such files, or the name of a data set."""
    n_tokens: int = 200_000
    """Number of tokens to harvest."""
    max_document_tokens: int | Literal["auto"] | None = "auto"
    """Most tokens of one document; by default a 200th of --n-tokens, and at least a window."""
    text_field: str | None = None
    """Column of the texts; by default 'text', 'messages', or the only column with texts."""
    group: str | None = None
    """Column of what belongs together (a book, a conversation) and shares a fold."""
    context_length: int = 256
    """Number of tokens per window."""
    seed: int = 0
    """Seed of folds and shuffled pairs."""

    @property
    def windows(self) -> dict[str, Any]:
        """Fields of `HarvestSettings` that decide the windows."""
        names = ("n_tokens", "max_document_tokens", "text_field", "group", "context_length", "seed")
        return {name: getattr(self, name) for name in names}
