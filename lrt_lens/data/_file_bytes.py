"""Bytes and lines of a file of documents, decompressed and decoded.

Problem: a truncated archive, a byte of another encoding or an archive inside an archive must be one
error with file, line and remedy. Mechanism: pyarrow decompresses, the first bytes announce the
encoding and archives of other names, and bytes are read and decoded in pieces, so that a line of a
gigabyte, or an archive that unpacks to one, does not fill the memory.

    file = DocumentFile(Path("corpus.txt.gz"))
    for number, line in file.lines(): ...       # line ends of all systems become line feeds
    for number, piece in file.pieces(): ...     # the same; a long line comes in several pieces

Limits: UTF-8, or UTF-16 or UTF-32 with a byte order mark; a line that must be read as a whole has
at most `LONGEST_ROW` characters.
"""

import codecs
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lrt_lens.errors import FileFormatError

ARCHIVES = {".gz": "gzip", ".zst": "zstd"}
"""Codecs of pyarrow by ending."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # Before UTF-16, whose mark is the beginning of this one.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and the encodings that they announce."""
_PACKED = {
    "gzip": rb"\x1f\x8b",
    "zstd": rb"\x28\xb5\x2f\xfd",
    "xz": rb"\xfd7zXZ\0",
    "bzip2": rb"BZh[1-9]1AY&SY",
    "zip": rb"PK\x03\x04",
}
"""First bytes of archives, as patterns."""
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_TO_UTF8 = "convert it with: iconv -f latin1 -t utf-8 OLD > NEW (give its own encoding for latin1)"
_AGAIN = "copy or download it again"
LONGEST_ROW = 2**26
"""Largest number of characters of one row of a file: 67 million, a hundred long novels."""
LONGEST_JSON = 2**30
"""Largest number of characters of a ``.json`` file, which is parsed as a whole."""
_PIECE_BYTES = 2**16
"""Largest number of bytes that are read and decoded at once."""


@dataclass(frozen=True)
class DocumentFile:
    """A file of one of the known kinds, which may be compressed."""

    path: Path
    """Path of the file."""

    def __str__(self) -> str:
        return str(self.path)

    @property
    def codec(self) -> str | None:
        """Codec of pyarrow that the ending names; None if there is none."""
        return ARCHIVES.get(self.path.suffix.lower())

    @contextmanager
    def opened(self) -> Iterator[io.BufferedReader]:
        """Return a context with the decompressed bytes; damage becomes a `FileFormatError`."""
        import pyarrow

        if self.codec is not None and self.path.stat().st_size == 0:
            raise FileFormatError(f"{self} has 0 bytes, so it is no {self.codec} archive; {_AGAIN}")
        with self.refused_damage():
            raw = pyarrow.input_stream(str(self.path), compression=self.codec)
            with io.BufferedReader(raw) as stream:
                yield stream

    @contextmanager
    def refused_damage(self) -> Iterator[None]:
        """Raise `FileFormatError` for the errors that pyarrow has for a damaged file."""
        import pyarrow

        try:
            yield
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise FileFormatError(
                f"{self} is truncated, damaged or of another kind than its ending says"
                f" ({first_line(error)}); {_AGAIN}"
            ) from error
        except OSError as error:
            # Errors of the system have a number and name the file, those of a codec do not.
            if error.errno is not None:
                raise
            raise FileFormatError(
                f"{self} is truncated or damaged ({first_line(error)}); {_AGAIN}"
            ) from error

    @contextmanager
    def refused_rows(self) -> Iterator[None]:
        """Raise `FileFormatError` for a ValueError about the columns or rows of this file."""
        try:
            yield
        except ValueError as error:
            raise FileFormatError(str(error)) from error

    def encoding(self, stream: io.BufferedReader) -> str:
        """Return the encoding that the first bytes announce; UTF-8 if they announce none."""
        start = stream.peek(1024)
        for name, pattern in _PACKED.items():
            if re.match(pattern, start):
                inside = (
                    f"its {self.codec} archive holds another one" if self.codec else "it is one"
                )
                raise FileFormatError(
                    f"{self} is no text: {inside} ({name}); expected text below at most one archive"
                    " that its ending names (.gz or .zst): unpack it, or rename it"
                )
        for mark, name in _MARKS:
            if start.startswith(mark):
                return name
        if b"\0" in start[:1024]:
            raise FileFormatError(
                f"{self} holds NUL bytes: it is no text, or UTF-16 without a byte order mark;"
                " expected UTF-8: iconv -f utf-16le -t utf-8 OLD > NEW converts it"
            )
        return "utf-8"

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield the lines with their numbers from 1, each with a line feed as its end.

        Raises:
            FileFormatError: a line is not of the encoding, holds a NUL character, or has more than
                `LONGEST_ROW` characters.
        """
        number, begun, size = 0, list[str](), 0
        for number, piece in self.pieces():
            if not begun and piece.endswith("\n"):
                yield number, piece
                continue
            begun.append(piece)
            size += len(piece)
            if size > LONGEST_ROW:
                raise self.too_long(f"line {number}")
            if piece.endswith("\n"):
                yield number, "".join(begun)
                begun, size = [], 0
        if begun:
            yield number, "".join(begun)

    def pieces(self) -> Iterator[tuple[int, str]]:
        """Yield the lines as `lines` does, but a long one in several pieces of one number.

        Only the last piece of a line ends with a line feed.

        Raises:
            FileFormatError: a line is not of the encoding, or holds a NUL character.
        """
        number, is_start, carried = 1, True, ""
        for at_line_feed, text in chain(self._decoded(), [(0, "")]):
            if "\0" in text:
                raise FileFormatError(
                    f"{self}, line {at_line_feed} holds NUL characters; expected text: it is"
                    " damaged or no text file"
                )
            # A line feed may follow in the next piece.
            text, carried = carried + text, ""
            if text.endswith("\r") and at_line_feed:
                text, carried = text[:-1], "\r"
            if not text:
                continue
            # Also carriage returns alone end a line.
            whole = text.replace("\r\n", "\n")
            for part in _LINE.findall(whole.replace("\r", "\n")) if "\r" in whole else [whole]:
                # Joined files have a mark at the start of each.
                yield number, part.removeprefix("\ufeff") if is_start else part
                is_start = part.endswith("\n")
                number += is_start

    def text(self) -> str:
        """Return the whole text.

        Raises:
            FileFormatError: as for `pieces`, or it has more than `LONGEST_JSON` characters.
        """
        pieces, size = list[str](), 0
        for _, piece in self.pieces():
            pieces.append(piece)
            size += len(piece)
            if size > LONGEST_JSON:
                raise FileFormatError(
                    f"{self} has more than {LONGEST_JSON:,} characters, and such a file is parsed"
                    " as a whole; write one row per line, as .jsonl"
                )
        return "".join(pieces)

    def too_long(self, where: str) -> FileFormatError:
        """Return the error for a row with more than `LONGEST_ROW` characters."""
        return FileFormatError(
            f"{self}, {where} has more than {LONGEST_ROW:,} characters; expected one document per"
            " row: split it into chapters or paragraphs, or see whether a line end or a quote is"
            " missing"
        )

    def _decoded(self) -> Iterator[tuple[int, str]]:
        """Yield texts of at most one line and few bytes, with the numbers of their line feeds."""
        with self.opened() as stream:
            encoding = self.encoding(stream)
            if not encoding.startswith("utf-8"):
                # In UTF-16 the bytes of a line feed also occur inside other characters.
                yield from _numbered(self._pieces_of_text(stream, encoding))
                return
            yield from self._pieces_of_utf8(stream)

    def _pieces_of_utf8(self, stream: io.BufferedReader) -> Iterator[tuple[int, str]]:
        number, n_before, pending = 1, 0, b""
        for read in chain(_pieces(stream.readline), [b""]):
            data = pending + read
            is_end = read.endswith(b"\n") or not read
            try:
                text, n_used = codecs.utf_8_decode(data, "strict", is_end)
            except UnicodeDecodeError as error:
                raise FileFormatError(
                    f"{self}, line {number}, byte {n_before + error.start + 1} is"
                    f" 0x{data[error.start]:02X}, which is not UTF-8; {_TO_UTF8}"
                ) from None
            # A character may continue in the next piece.
            pending, n_before = data[n_used:], n_before + n_used
            yield number, text
            if data.endswith(b"\n"):
                number, n_before = number + 1, 0

    def _pieces_of_text(self, stream: io.BufferedReader, encoding: str) -> Iterator[str]:
        try:
            yield from _pieces(io.TextIOWrapper(stream, encoding=encoding).readline)
        except UnicodeError as error:
            raise FileFormatError(
                f"{self} is no valid {encoding.upper()}, which its byte order mark announces"
                f" ({first_line(error)}); {_AGAIN}, or convert it to UTF-8 with iconv"
            ) from error


def _pieces(readline: Callable[[int], Any]) -> Iterator[Any]:
    """Yield lines, and long ones in pieces."""
    while piece := readline(_PIECE_BYTES):
        yield piece


def _numbered(pieces: Iterator[str]) -> Iterator[tuple[int, str]]:
    number = 1
    for piece in pieces:
        yield number, piece
        number += piece.endswith("\n")


def first_line(error: BaseException) -> str:
    """Return the beginning of an error's message, for one line of another message."""
    return str(error).strip().split("\n")[0][:200]
