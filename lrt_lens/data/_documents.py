"""Documents from whatever holds text.

A *document* is what a fold is made of and what no window crosses. Accepted: a string, an iterable
of strings or of chats (lists of ``{"role", "content"}``), a ``.txt``, ``.jsonl`` or ``.jsonl.gz``
file, a Hugging Face data set (loaded, or by name), rows with a ``text`` field.

    for text in iterate_documents("corpus.jsonl.gz", tokenizer): ...
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from lrt_lens.errors import MismatchError

_FILE_ENDINGS = (".txt", ".jsonl", ".jsonl.gz")

Documents = Any
"""See the module docstring."""


def iterate_documents(documents: Documents, *tokenizers: Any) -> Iterator[str]:
    """The texts in ``documents``, one at a time; chats go through the tokenizer's chat template,
    and are refused for two tokenizers.
    """
    for index, row in enumerate(_rows(documents)):
        yield _text(row, index, tokenizers)


def document_key(text: str, seed: int) -> int:
    """A 64-bit number from a document's text alone: its fold does not depend on order, shard or
    process.
    """
    return int.from_bytes(
        hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest(), "big"
    )


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file, gzipped or not; ValueError names file and line of what is not
    JSON.
    """
    return list(_read_jsonl(Path(path)))


def _rows(documents: Documents) -> Iterable[Any]:
    if isinstance(documents, str | Path):
        path = Path(documents)
        is_path = len(str(documents)) < 4096 and "\n" not in str(documents) and path.is_file()
        if is_path:
            return _read_file(path)
        if isinstance(documents, Path):
            raise ValueError(
                f"no file at {str(documents)!r}; give a .txt, .jsonl or .jsonl.gz file that exists"
            )
        if documents.endswith(_FILE_ENDINGS) and "\n" not in documents:
            raise ValueError(
                f"no file at {documents!r}; give a .txt, .jsonl or .jsonl.gz file that exists, or [text] for text of your own"
            )
        return (
            _hub_dataset(documents)
            if documents and not any(map(str.isspace, documents))
            else [documents]
        )
    if isinstance(documents, dict):
        raise ValueError(
            f"documents is a dict with keys {list(documents)[:5]}; give one split of a data set, a list of texts, or [row] for a single row"
        )
    if hasattr(documents, "column_names") and "text" not in (documents.column_names or ["text"]):
        raise ValueError(
            f"the data set has columns {documents.column_names}; expected 'text': rename one with rename_column(..., 'text')"
        )
    return documents


def _hub_dataset(name: str) -> Iterable[Any]:
    import datasets

    try:
        return datasets.load_dataset(name, split="train", streaming=True)
    except Exception as error:  # datasets raises a dozen kinds for "not there"
        raise ValueError(
            f"{name!r} is neither a file nor a data set that loads ({error}); pass a list of texts for text of your own"
        ) from error


def _read_file(path: Path) -> Iterator[Any]:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _read_jsonl(path)
        return
    # A text file holds a document a paragraph: one long document could fill only one fold. Line by
    # line: it may not fit into memory.
    paragraph: list[str] = []
    with open(path, encoding="utf-8") as lines:
        for line in chain(lines, ["\n"]):
            if line != "\n":
                paragraph.append(line)
            elif text := "".join(paragraph).strip():
                yield text
                paragraph = []


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is not JSON ({error}); expected one object a line"
                ) from error


def _text(row: Any, index: int, tokenizers: tuple[Any, ...]) -> str:
    if isinstance(row, str):
        return row
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return row["text"]
    chat = row.get("messages") if isinstance(row, dict) else row
    if (
        isinstance(chat, list)
        and chat
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in chat)
    ):
        if len(tokenizers) > 1:
            raise MismatchError(
                f"document {index} is a chat, but the two models have different tokenizers, each with its own template and special tokens, and would "
                "not read the same text; pass plain text, such as the contents of the messages"
            )
        if not tokenizers or getattr(tokenizers[0], "chat_template", None) is None:
            raise ValueError(
                f"document {index} is a chat, but the tokenizer has no chat template; set tokenizer.chat_template, or pass plain text"
            )
        return tokenizers[0].apply_chat_template(chat, tokenize=False)
    raise ValueError(
        f"document {index} is a {type(row).__name__} ({str(row)[:60]!r}); expected a text, a row with 'text', or a chat"
    )
