"""Bytes and lines of a file of documents, decompressed and decoded.

Problem: a truncated archive, a byte of another encoding or an archive inside an archive must be one
error with file, line and remedy. Mechanism: pyarrow decompresses, the first bytes announce the
encoding and archives of other names, and each line is decoded by itself.

    file = DocumentFile(Path("corpus.txt.gz"))
    for number, line in file.lines(): ...       # line ends of all systems become line feeds

Limits: UTF-8, or UTF-16 or UTF-32 with a byte order mark; a file whose lines end with carriage
returns only is held in memory.
"""

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

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
        """Return a context with the decompressed bytes, which turns damage into ValueErrors."""
        import pyarrow

        if self.codec is not None and self.path.stat().st_size == 0:
            raise ValueError(f"{self} has 0 bytes, so it is no {self.codec} archive; {_AGAIN}")
        try:
            raw = pyarrow.input_stream(str(self.path), compression=self.codec)
            with io.BufferedReader(raw) as stream:
                yield stream
        except pyarrow.ArrowInvalid as error:
            raise ValueError(
                f"{self} is truncated, damaged or of another kind than its ending says"
                f" ({first_line(error)}); {_AGAIN}"
            ) from error
        except OSError as error:
            # Errors of the system have a number and name the file, those of a codec do not.
            if error.errno is not None:
                raise
            raise ValueError(
                f"{self} is truncated or damaged ({first_line(error)}); {_AGAIN}"
            ) from error

    def encoding(self, stream: io.BufferedReader) -> str:
        """Return the encoding that the first bytes announce; UTF-8 if they announce none."""
        start = stream.peek(1024)
        for name, pattern in _PACKED.items():
            if re.match(pattern, start):
                inside = (
                    f"its {self.codec} archive holds another one" if self.codec else "it is one"
                )
                raise ValueError(
                    f"{self} is no text: {inside} ({name}); expected text below at most one archive"
                    " that its ending names (.gz or .zst): unpack it, or rename it"
                )
        for mark, name in _MARKS:
            if start.startswith(mark):
                return name
        if b"\0" in start[:1024]:
            raise ValueError(
                f"{self} holds NUL bytes: it is no text, or UTF-16 without a byte order mark;"
                " expected UTF-8: iconv -f utf-16le -t utf-8 OLD > NEW converts it"
            )
        return "utf-8"

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield the lines with their numbers from 1, each with a line feed as its end.

        Raises:
            ValueError: a line is not of the encoding, or holds a NUL character.
        """
        number = 0
        for at_line_feed, text in self._between_line_feeds():
            if "\0" in text:
                raise ValueError(
                    f"{self}, line {at_line_feed} holds NUL characters; expected text: it is"
                    " damaged or no text file"
                )
            # Also carriage returns alone end a line.
            whole = text.replace("\r\n", "\n")
            for line in _LINE.findall(whole.replace("\r", "\n")) if "\r" in whole else [whole]:
                number += 1
                # Joined files have a mark at the start of each.
                yield number, line.removeprefix("\ufeff")

    def _between_line_feeds(self) -> Iterator[tuple[int, str]]:
        with self.opened() as stream:
            encoding = self.encoding(stream)
            if not encoding.startswith("utf-8"):
                # In UTF-16 the bytes of a line feed also occur inside other characters.
                yield from enumerate(self._decoded(stream, encoding), start=1)
                return
            for number, line in enumerate(stream, start=1):
                try:
                    text = line.decode(encoding if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    self._refuse_byte(f"line {number}", line, error)
                yield number, text

    def text(self) -> str:
        """Return the whole text."""
        return "".join(line for _, line in self.lines())

    def _decoded(self, stream: io.BufferedReader, encoding: str) -> Iterator[str]:
        try:
            yield from io.TextIOWrapper(stream, encoding=encoding)
        except UnicodeError as error:
            raise ValueError(
                f"{self} is no valid {encoding.upper()}, which its byte order mark announces"
                f" ({first_line(error)}); {_AGAIN}, or convert it to UTF-8 with iconv"
            ) from error

    def _refuse_byte(self, where: str, data: bytes, error: UnicodeDecodeError) -> NoReturn:
        raise ValueError(
            f"{self}, {where}, byte {error.start + 1} is 0x{data[error.start]:02X}, which is not"
            f" UTF-8; {_TO_UTF8}"
        ) from None


def first_line(error: BaseException) -> str:
    """Return the beginning of an error's message, for one line of another message."""
    return str(error).strip().split("\n")[0][:200]


def refuse_open_file(source: Any, name: str = "documents") -> None:
    """Raise ValueError for an open file, whose lines would be read with their markup."""
    if isinstance(source, io.IOBase) or (hasattr(source, "read") and hasattr(source, "readline")):
        path = getattr(source, "name", None)
        remedy = f"pathlib.Path({path!r})" if isinstance(path, str) else "a pathlib.Path"
        raise ValueError(
            f"{name} is an open file ({type(source).__name__}), whose lines are no documents; give"
            f" its path, {remedy}, or a list of texts"
        )
