"""Files of texts that are damaged in thousands of ways: each is read, or is one of our errors."""

import gzip
import io
import json
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from lrt_lens import errors
from lrt_lens.data import ChoiceItems, ContrastSet, behaviour_items, iterate_documents, read_records
from lrt_lens.data._documents import iterate_rows

OWN = tuple(getattr(errors, name) for name in errors.__all__)
WORDS = [
    *("Once", "upon", "a", "time,", "in", "a", "house", "by", "the", "sea,", "there", "lived"),
    *("an", "old", "fisherman:", "'Ahoy!'", "é", "漢字", "😀"),
]


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))


def rows_of(kind: str, draw: random.Random) -> list[dict[str, Any]]:
    n = draw.randint(1, 6)
    if kind == "contrast":
        return [{"positive": sentence(draw), "negative": sentence(draw)} for _ in range(n + 1)]
    if kind == "items":
        names = ("prompt", "positive", "negative")
        return [{name: sentence(draw) for name in names} for _ in range(n)]
    if kind == "behaviours":
        return [
            {
                "question": sentence(draw),
                "answer_matching_behavior": " (A)",
                "answer_not_matching_behavior": " (B)",
            }
            for _ in range(n)
        ]
    if kind == "chats":
        turns = [{"role": draw.choice(["user", "assistant"]), "content": sentence(draw)}] * 2
        return [{"messages": turns, "id": k} for k in range(n)]
    return [{"text": sentence(draw), "id": k, "meta": {"tags": ["a"], "n": 1.5}} for k in range(n)]


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


def strange(draw: random.Random) -> Any:
    """A value of any type, in place of a text."""
    return draw.choice(
        [
            *(None, True, 0, -1, 10**400, 1.5, float("nan"), float("inf"), "", " \n", "\ud800"),
            *([], {}, [[]], [None], ["a"], {"role": "user"}, {"role": 1, "content": 2}, nested(90)),
            [{"role": {}, "content": None, "tool_calls": 5}, {"role": "user", "content": "x"}],
            *("[{'role': 'user', 'content': 1}]", "b'a'", "[" * 3000, "{" * 50, "array(['a'])"),
        ]
    )


def changed(value: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with another value, key or order somewhere inside."""
    if draw.random() < 0.2 or not isinstance(value, list | dict) or not value:
        return strange(draw)
    if isinstance(value, list):
        copy = list(value)
        place = draw.randrange(len(copy))
        copy[place] = changed(copy[place], draw)
        return copy
    copy = dict(value)
    key = draw.choice(list(copy))
    if draw.random() < 0.2:
        copy[draw.choice(["", "text", "data", "id ", "\0"])] = copy.pop(key)
    else:
        copy[key] = changed(copy[key], draw)
    return copy


def as_bytes(ending: str, rows: list[Any], draw: random.Random) -> bytes:
    texts = [str(value) for row in rows if isinstance(row, dict) for value in row.values()]
    if ending in (".txt", ".md"):
        text = draw.choice(["\n\n", "\n", "\r", "\r\n\r\n", "\n```\n"]).join(texts)
        return text.encode(draw.choice(["utf-8", "utf-8-sig", "utf-16"]), "replace")
    if ending == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=draw.random() < 0.5) for row in rows]
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    if ending == ".json":
        wrapped: Any = draw.choice([rows, {"data": rows, "version": 1}, dict(enumerate(rows))])
        return json.dumps(wrapped).encode()
    try:
        tabular = [row for row in rows if isinstance(row, dict)]
        if ending != ".parquet":
            # CSV has no lists and structs.
            tabular = [
                {
                    name: json.dumps(value) if isinstance(value, list | dict) else value
                    for name, value in row.items()
                    if name != "meta"
                }
                for row in tabular
            ]
        table = pyarrow.Table.from_pylist(tabular)
        buffer = io.BytesIO()
        if ending == ".parquet":
            parquet.write_table(table, buffer, compression=draw.choice(["snappy", "zstd", "none"]))
        else:
            separator = "\t" if ending == ".tsv" else ","
            arrow_csv.write_csv(table, buffer, arrow_csv.WriteOptions(delimiter=separator))
        return buffer.getvalue()
    # Not every table can be written.
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
        return "\n".join(",".join(map(repr, texts)) for _ in rows).encode("utf-8", "replace")


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Bytes with one to three faults of the kinds that disks, networks and editors make."""
    for _ in range(draw.randint(1, 3)):
        start, end = sorted(draw.randint(0, len(data)) for _ in range(2))
        short = slice(start, min(end, start + 40))
        kind = draw.randrange(8)
        if kind == 0 and data:
            flipped = bytearray(data)
            flipped[start % len(data)] ^= 1 << draw.randrange(8)
            data = bytes(flipped)
        elif kind == 1:
            data = data[:end]
        elif kind == 2:
            data = data[:start] + data[end:]
        elif kind == 3:
            data = data[:end] + data[short] * 3 + data[end:]
        elif kind == 4:
            data = data[:start] + draw.randbytes(draw.randint(1, 30)) + data[start:]
        elif kind == 5:
            inserted = draw.choice(
                [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b'"', b"[" * 5000, b"{", b"9" * 5000]
            )
            data = data[:start] + inserted + data[start:]
        elif kind == 6:
            data = data[short] + data
        else:
            swaps = [(b'"', b"'"), (b"\n", b"\r"), (b":", b","), (b",", b"\t")]
            data = data.replace(*draw.choice(swaps))
    return data


class Template:
    """A tokenizer as far as chats need one."""

    chat_template = "{{ messages }}"

    def apply_chat_template(self, turns: list[dict[str, Any]], tokenize: bool) -> str:
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, 1),
    ".zst": lambda data: pyarrow.Codec("zstd").compress(data, asbytes=True),
}
READERS: dict[str, Callable[[Path], Any]] = {
    "texts": lambda path: list(iterate_documents(path, Template())),
    "chats": lambda path: list(iterate_rows(path)),
    "contrast": ContrastSet.from_file,
    "items": ChoiceItems.from_file,
    "behaviours": behaviour_items,
    "records": read_records,
}
ENDINGS = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet")


def damaged_files(ending: str, kind: str, n: int) -> Iterator[tuple[str, bytes]]:
    draw = random.Random(f"{ending}{kind}")
    for _ in range(n):
        rows: list[Any] = list(rows_of(kind, draw))
        archive = draw.choice(list(ARCHIVES))
        if draw.random() < 0.5:
            rows = [changed(row, draw) if draw.random() < 0.5 else row for row in rows]
            data = as_bytes(ending, rows, draw)
        else:
            data = as_bytes(ending, rows, draw)
            if archive and draw.random() < 0.5:
                yield ending + archive, mutated(ARCHIVES[archive](data), draw)
                continue
            data = mutated(data, draw)
        yield ending + archive, ARCHIVES[archive](data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_damaged_file_is_read_or_is_one_of_our_errors(
    tmp_path: Path, ending: str, kind: str
) -> None:
    n_read = n_refused = 0
    messages = list[tuple[Path, str]]()
    for number, (name, data) in enumerate(damaged_files(ending, kind, 150)):
        path = tmp_path / f"{number}{name}"
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                READERS[kind](path)
        except OWN as error:
            n_refused += 1
            messages.append((path, str(error)))
        else:
            n_read += 1
    for path, message in messages:
        assert str(path) in message
        assert "\n" not in message
    # A file that cannot be damaged, or cannot be read, would test nothing.
    assert n_refused > 10, (n_read, n_refused)
    if kind in ("texts", "chats") or ending == ".jsonl":
        assert n_read > 5, (n_read, n_refused)
