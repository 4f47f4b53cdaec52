"""Opening text files: compressed or not, in UTF-8 or in UTF-16 with a mark of its byte order.

What is streamed is UTF-8 in either case. Half a surrogate pair of UTF-16 comes as bytes that are no
UTF-8, so that it spoils one row and not the file.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

from curate.errors import UsageError

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def lines(path: Path) -> Iterator[bytes]:
    """Stream the lines of a file as UTF-8, each with its line feed, without a byte order mark.

    Raises:
        UsageError: a compressed file is not whole, or UTF-16 ends within a character.
    """
    with _opened(path) as file:
        if not _is_utf_16(file):
            for number, line in enumerate(file):
                yield line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
            return
        for text in io.TextIOWrapper(file, "utf-16", errors="surrogatepass", newline="\n"):
            yield text.encode("utf-8", "surrogatepass")


def read_text(path: Path) -> str:
    """The whole text of a file.

    Raises:
        UnicodeDecodeError: it is neither UTF-8 nor marked as UTF-16.
    """
    content = path.read_bytes()
    if _is_mark(content[:4]):
        return content.decode("utf-16")
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")


def open_text(path: Path) -> IO[str]:
    """Open a file for the `csv` module: line ends stay, bytes that are no text are surrogates."""
    with path.open("rb") as file:
        encoding = "utf-16" if _is_utf_16(file) else "utf-8-sig"
    errors = "surrogatepass" if encoding == "utf-16" else "surrogateescape"
    return path.open(encoding=encoding, errors=errors, newline="")


def first_character(path: Path) -> bytes:
    """The first byte of a file, as UTF-8, that is no space."""
    return next((stripped[:1] for line in lines(path) if (stripped := line.strip())), b"")


def _is_utf_16(file: io.BufferedReader) -> bool:
    return _is_mark(file.peek(4)[:4])


def _is_mark(start: bytes) -> bool:
    # That of UTF-32 begins as that of UTF-16.
    return start.startswith(_UTF_16) and start != codecs.BOM_UTF32_LE


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    suffix = path.suffix.lower()
    try:
        if suffix == ".gz":
            with gzip.open(path, "rb") as unpacked:
                yield io.BufferedReader(cast(io.RawIOBase, unpacked))
        elif suffix == ".zst":
            with (
                path.open("rb") as packed,
                pa.CompressedInputStream(packed, "zstd") as unpacked_by_arrow,
            ):
                yield io.BufferedReader(unpacked_by_arrow)
        else:
            with path.open("rb") as file:
                yield file
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not whole UTF-16: {error.reason}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        if suffix != ".zst" or error.strerror:
            raise
        raise UsageError(f"{path} is not a whole zstd file: {' '.join(str(error).split())}") from (
            error
        )
