"""Documents from anything that contains texts, and the part of a corpus that each belongs to.

Problem: folds are made of documents, and no window extends over two of them, so all sources of text
must become a stream of documents; and every process, shard and later run must assign a document to
the same fold. Mechanism: `iterate_documents` accepts a string, an iterable of strings or of chats
(lists of ``{"role", "content"}``), a ``.txt``, ``.jsonl`` or ``.jsonl.gz`` file, a Hugging Face
data set (loaded, or by name), and rows with a ``text`` field. The hash of a document's text
(`document_key`) decides its part, wherever the document stands in the stream: one of five
cross-validation folds, or one of eight groups of the test fold.

    for text in iterate_documents("corpus.jsonl.gz", tokenizer): ...
    part_of(document_key("Some text.", seed=0))       # 0 … 12
    PART_NAMES[5]                                     # "test0"

Limits: a text file has one document per paragraph; chats need one tokenizer with a chat template;
with fewer than 100 documents a part may stay empty.
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
"""A string, an iterable of texts or chats, a file, or a data set; see `iterate_documents`."""


def iterate_documents(documents: Documents, *tokenizers: Any) -> Iterator[str]:
    """Yield the texts of ``documents``; chats become text by the tokenizer's chat template.

    Raises:
        MismatchError: a document is a chat, and there are two tokenizers.
        ValueError: ``documents`` or one of its rows contains no text, or there is no such file.
    """
    for index, row in enumerate(_rows(documents)):
        yield _text(row, index, tokenizers)


def document_key(text: str, seed: int) -> int:
    """Return a 64-bit hash of a document's text, which decides its fold.

    The fold therefore does not depend on the document's position, the shard or the process.
    """
    # The seed is the key of the hash: another seed gives independent folds.
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big")


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file, gzipped or not.

    Raises:
        ValueError: a line is not JSON; the message names file and line.
    """
    return list(_read_jsonl(Path(path)))


def _rows(documents: Documents) -> Iterable[Any]:
    if isinstance(documents, str | Path):
        return _rows_of_string(documents)
    if isinstance(documents, dict):
        raise ValueError(
            f"documents is a dict with keys {list(documents)[:5]}; give one split of a data set,"
            " a list of texts, or [row] for a single row"
        )
    # `column_names` of a streamed data set is None if its columns are unknown; its rows are then
    # checked one by one in `_text`.
    if hasattr(documents, "column_names") and "text" not in (documents.column_names or ["text"]):
        raise ValueError(
            f"the data set has columns {documents.column_names}; expected 'text':"
            " rename one with rename_column(..., 'text')"
        )
    return documents


def _rows_of_string(documents: str | Path) -> Iterable[Any]:
    """Return the rows of a file or of a data set on the hub, or else the string as a document."""
    path = Path(documents)
    # `is_file` raises OSError for a text that is longer than a path can be.
    if len(str(documents)) < 4096 and "\n" not in str(documents) and path.is_file():
        return _read_file(path)
    missing = f"no file at {str(documents)!r}; give a .txt, .jsonl or .jsonl.gz file that exists"
    if isinstance(documents, Path):
        raise ValueError(missing)
    if documents.endswith(_FILE_ENDINGS) and "\n" not in documents:
        raise ValueError(f"{missing}, or [text] for text of your own")
    # A word without white space is a name of a data set on the hub, everything else is a text.
    if documents and not any(map(str.isspace, documents)):
        return _hub_dataset(documents)
    return [documents]


def _hub_dataset(name: str) -> Iterable[Any]:
    import datasets

    try:
        return datasets.load_dataset(name, split="train", streaming=True)
    except Exception as error:  # datasets has many exceptions for a name that does not exist
        raise ValueError(
            f"{name!r} is neither a file nor a data set that loads ({error});"
            " pass a list of texts for text of your own"
        ) from error


def _read_file(path: Path) -> Iterator[Any]:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _read_jsonl(path)
        return
    # Each paragraph of a text file is a document, because one long document would fill one fold
    # only. The file is read line by line, because it may not fit into memory.
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
                    f"{path}, line {number} is not JSON ({error}); expected one object per line"
                ) from error


def _text(row: Any, index: int, tokenizers: tuple[Any, ...]) -> str:
    if isinstance(row, str):
        return row
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return row["text"]
    chat = row.get("messages") if isinstance(row, dict) else row
    if _is_chat(chat):
        return _chat_text(chat, index, tokenizers)
    raise ValueError(
        f"document {index} is a {type(row).__name__} ({str(row)[:60]!r});"
        " expected a text, a row with 'text', or a chat"
    )


def _is_chat(row: Any) -> bool:
    return (
        isinstance(row, list)
        and bool(row)
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in row)
    )


def _chat_text(chat: Any, index: int, tokenizers: tuple[Any, ...]) -> str:
    if len(tokenizers) > 1:
        raise MismatchError(
            f"document {index} is a chat, but the two models have different tokenizers, whose"
            " chat templates and special tokens differ, so that they would not read the same text;"
            " give plain text, such as the contents of the messages"
        )
    if not tokenizers or getattr(tokenizers[0], "chat_template", None) is None:
        raise ValueError(
            f"document {index} is a chat, but the tokenizer has no chat template;"
            " set tokenizer.chat_template, or give plain text"
        )
    return tokenizers[0].apply_chat_template(chat, tokenize=False)


N_FOLDS = 5
"""Cross-validation folds."""
N_TEST_GROUPS = 8
"""Groups of documents inside the test fold, for intervals."""
N_PARTS = N_FOLDS + N_TEST_GROUPS
"""Parts in all: the folds, then the groups of the test fold."""
PART_NAMES = tuple(
    [f"fold{k}" for k in range(N_FOLDS)] + [f"test{g}" for g in range(N_TEST_GROUPS)]
)


def part_of(key: int) -> int:
    """Return the part of the document with this key: 0 to 4 are folds, 5 to 12 test groups."""
    # fold = key mod 6, the sixth value is the test fold; group = ⌊key / 6⌋ mod 8: other digits of
    # the hash, so that the test group does not depend on the fold.
    fold, group = key % (N_FOLDS + 1), (key // (N_FOLDS + 1)) % N_TEST_GROUPS
    return fold if fold < N_FOLDS else N_FOLDS + group
