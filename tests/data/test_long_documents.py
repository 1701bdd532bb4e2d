"""Documents of any length: bounded memory, and no more tokens than a harvest can use."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from lrt_lens.bundled import demo_pair
from lrt_lens.data import (
    BlockPlan,
    _blocks,
    _document_files,
    _file_bytes,
    iterate_blocks,
    iterate_documents,
    read_records,
)
from lrt_lens.data._blocks import Corpus, WindowCutter
from lrt_lens.data._documents import Document
from lrt_lens.errors import FileFormatError
from lrt_lens.models import ModelPair

SENTENCE = "The fox jumps over the lazy dog, and number {} is fine. "


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return demo_pair()


def prose(n_characters: int) -> str:
    return "".join(map(SENTENCE.format, range(n_characters // 50 + 1)))[:n_characters]


# ------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("kind", [".txt", ".md"])
@pytest.mark.parametrize("archive", ["", ".gz"])
def test_a_long_line_of_a_text_file_becomes_documents_that_end_at_blanks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, archive: str
) -> None:
    text = prose(250_000)
    path = tmp_path / f"book{kind}{archive}"
    data = text.encode() + b"\n\nA short one.\n"
    path.write_bytes(gzip.compress(data, 1) if archive else data)
    *parts, last = iterate_documents(path)
    assert last == "A short one."
    assert " ".join(parts) == text.rstrip()
    assert len(parts) == 2
    assert max(map(len, parts)) < 170_000
    assert "without a blank line (line 1)" in caplog.text


def test_a_text_without_blanks_and_an_open_fence_are_cut_as_well(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("漢" * 420_000)
    parts = list(iterate_documents(tmp_path / "a.txt"))
    assert "".join(parts) == "漢" * 420_000
    assert max(map(len, parts)) < 400_000
    # The fence is never closed: what is behind it is read as any other text.
    code = "".join(f"line {number}\n\n" for number in range(60_000))
    (tmp_path / "a.md").write_text(f"Before.\n\n```\n{code}")
    parts = list(iterate_documents(tmp_path / "a.md"))
    assert parts[0] == "Before."
    assert sum(part.count("line ") for part in parts) == 60_000
    assert max(map(len, parts)) < 400_000


@pytest.mark.parametrize("size", [2, 3, 7, 2**16])
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\n\r\n"])
def test_lines_do_not_depend_on_the_pieces_in_which_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, end: str
) -> None:
    monkeypatch.setattr(_file_bytes, "_PIECE_BYTES", size)
    lines = ["é漢😀 first", "", "b" * 20, "\ufeffthird", "x"]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path = tmp_path / f"{encoding}.txt"
        path.write_bytes(end.join(lines).encode(encoding))
        found = list(_file_bytes.DocumentFile(path).lines())
        expected = end.join(lines).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        assert [line.removesuffix("\n") for _, line in found] == [
            line.removeprefix("\ufeff") for line in expected
        ]
        assert [number for number, _ in found] == list(range(1, len(expected) + 1))


@pytest.mark.parametrize("size", [3, 2**16])
@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"abc\nde\xe9fgh", "line 2, byte 3 is 0xE9"),
        (b"abcdefgh\xe2\x82", "line 1, byte 9 is 0xE2"),
    ],
)
def test_a_byte_of_another_encoding_is_counted_across_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, data: bytes, place: str
) -> None:
    monkeypatch.setattr(_file_bytes, "_PIECE_BYTES", size)
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(FileFormatError, match=f"a.txt, {place}, which is not UTF-8"):
        list(iterate_documents(tmp_path / "a.txt"))


def test_a_row_above_the_limit_is_one_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_file_bytes, _document_files):
        monkeypatch.setattr(module, "LONGEST_ROW", 1000)
    monkeypatch.setattr(_file_bytes, "LONGEST_JSON", 1000)
    monkeypatch.setattr(_file_bytes, "_PIECE_BYTES", 256)
    rows = [{"text": "short"}, {"text": "x" * 1001}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.csv").write_text('id,text\n1,short\n2,"' + "no quote behind\n" * 100)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    expected = {
        "a.jsonl": "line 2 has more than 1,000 characters; expected one document per row",
        "a.csv": "row 2 has more than 1,000 characters; .* a quote is missing",
        "a.json": "more than 1,000 characters, .* write one row per line, as .jsonl",
    }
    for name, message in expected.items():
        for read in (lambda path: list(iterate_documents(path)), read_records):
            with pytest.raises(FileFormatError, match=f"{name},? .*{message}"):
                read(tmp_path / name)


# --------------------------------------------------------------------------------------- tokenizing


def encoded(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the texts that the source tokenizes from now on."""
    lengths, encode = list[int](), type(pair.source).encode_bodies

    def count(self: Any, texts: Any) -> Any:
        lengths.extend(map(len, texts))
        return encode(self, texts)

    monkeypatch.setattr(type(pair.source), "encode_bodies", count)
    return lengths


def test_no_more_of_a_text_is_tokenized_than_n_tokens_can_use(
    pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_blocks, "TEXT_PIECE", 100_000)
    lengths = encoded(pair, monkeypatch)
    text = prose(900_000)
    plan = BlockPlan(n_tokens=10_000, max_document_tokens="auto")
    [cut] = WindowCutter(plan, pair.source).cut([text])
    assert lengths == [_blocks.TEXT_PIECE]
    assert cut.key == Document(text).key(0)
    lengths.clear()
    [all_of_it] = WindowCutter(BlockPlan(), pair.source).cut([text])
    assert sum(lengths) == len(text)
    assert max(lengths) == _blocks.TEXT_PIECE
    assert (all_of_it.key, all_of_it.identity) == (cut.key, cut.identity)
    assert len(all_of_it.windows) > 4 * len(cut.windows)
    n_rows = sum(len(window.rows) for window in all_of_it.windows)
    lengths.clear()
    capped = BlockPlan(n_tokens=None, max_document_tokens=n_rows // 2)
    [half] = WindowCutter(capped, pair.source).cut([text])
    assert sum(lengths) < len(text)
    assert sum(len(window.rows) for window in half.windows) > n_rows // 2


def test_texts_below_the_piece_are_tokenized_whole_and_few_long_ones_at_once(
    pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_blocks, "TEXT_PIECE", 100_000)
    texts = [f"{number} " + prose(20_000) for number in range(40)]
    body = pair.source.encode_bodies([texts[0]])[0]
    lengths = encoded(pair, monkeypatch)
    at_once, count = list[int](), WindowCutter.cut
    monkeypatch.setattr(
        WindowCutter,
        "cut",
        lambda self, documents: (at_once.append(len(documents)), count(self, documents))[1],
    )
    corpus = Corpus()
    blocks = list(iterate_blocks(texts, pair.source, BlockPlan(), corpus))
    assert corpus.n_documents == 40
    assert lengths == [len(text) for text in texts]
    assert max(at_once) == 5
    key = Document(texts[0]).key(0)
    found = [i for block in blocks for w in block.windows if w.document == key for i in w.ids]
    n_prefix = len(pair.source.prefix)
    windows = [w for block in blocks for w in block.windows if w.document == key]
    assert [i for w in windows for i in w.ids[n_prefix:]] == body
    assert len(found) == len(body) + n_prefix * len(windows)


# ------------------------------------------------------------------------------------------- memory

PEAK = """
import resource, sys
from pathlib import Path
from lrt_lens.bundled import demo_pair
from lrt_lens.data._blocks import iterate_blocks
from lrt_lens.data._windows import BlockPlan
pair = demo_pair()
list(iterate_blocks(["A text of its own, number %d, that is long enough." % i for i in range(200)],
                    pair.source, BlockPlan(n_tokens=1000)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    plan = BlockPlan(n_tokens=10_000, max_document_tokens="auto")
    n = sum(block.n_rows for block in iterate_blocks(Path(sys.argv[1]), pair.source, plan))
except ValueError as error:
    n = type(error).__name__
print(n, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def gzipped(path: Path, blocks: Callable[[], Any]) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for block in blocks():
            file.write(block)


def zipped(path: Path, blocks: Callable[[], Any]) -> None:
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        for block in blocks():
            file.write(block)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n_blocks", "outcome"),
    [
        ("a.txt", 60, int),
        ("a.txt.gz", 400, int),
        ("a.md.zst", 60, int),
        ("a.jsonl", 100, str),
        ("a.jsonl.gz", 400, str),
        ("a.csv.zst", 100, str),
    ],
)
def test_a_line_of_up_to_400_megabytes_takes_little_memory(
    tmp_path: Path, name: str, n_blocks: int, outcome: type
) -> None:
    def blocks() -> Any:
        yield {".txt": b"", ".md": b"", ".jsonl": b'{"text": "', ".csv": b'id,text\n1,"'}[
            Path(name.removesuffix(".gz").removesuffix(".zst")).suffix
        ]
        for number in range(n_blocks):
            yield (prose(1_000_000) + f"({number}) ").encode()

    path = tmp_path / name
    write = {".gz": gzipped, ".zst": zipped}.get(path.suffix)
    if write is None:
        with path.open("wb") as file:
            file.writelines(blocks())
    else:
        write(path, blocks)
    shown = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(shown[1]) < 900, f"{shown[1]} MB"
    if outcome is str:
        assert shown[0] == "FileFormatError"
    else:
        assert 10_000 <= int(shown[0]) < 15_000
