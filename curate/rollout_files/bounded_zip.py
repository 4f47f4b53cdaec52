"""Reading members of a zip archive that nobody vouches for: no more than is allowed is unpacked.

What an archive says of its own sizes is not believed: a member is read up to a limit, and all that
is read together up to another. Members are stored, deflated, or packed by zstd, which Python's own
`zipfile` reads from 3.14 on only.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.errors import UsageError

_ZSTD = 93
_LOCAL_HEADER = struct.Struct("<26xHH")
_MIB = 1024 * 1024
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, pa.ArrowException),
    *(OSError, EOFError, NotImplementedError, RuntimeError, ValueError),
)


class BoundedZip:
    """An archive whose members are read one at a time.

    Args:
        path: of the archive.
        most_bytes: of a member, unpacked.
        most_ratio: how many times its own size all that is read may come to, above a gibibyte.

    Raises:
        UsageError: it is no zip archive.
    """

    def __init__(self, path: Path, *, most_bytes: int = 64 * _MIB, most_ratio: int = 200) -> None:
        self.path = path
        self._most = most_bytes
        try:
            self._left = max(1024 * _MIB, most_ratio * path.stat().st_size)
            with zipfile.ZipFile(path) as archive:
                # What was written again under a name is the last of that name.
                self._members = {each.filename: each for each in archive.infolist()}
        except _DAMAGED as error:
            raise UsageError(f"{path} is no readable zip archive: {error}") from error

    def names(self) -> list[str]:
        """Of all members, in their order."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """The content of a member.

        Raises:
            UsageError: it is damaged, or larger than is allowed.
        """
        most = min(self._most, self._left)
        try:
            content = self._unpack(self._members[name], most + 1)
        except _DAMAGED as error:
            raise UsageError(f"{self.path}: {name} is damaged: {error}") from error
        if len(content) > most:
            raise UsageError(
                f"{self.path}: {name} unpacks to more than {most / _MIB:,.0f} MiB, which is more "
                "than is read of an archive of this size"
            )
        self._left -= len(content)
        return content

    def read_json(self, name: str) -> Any:
        """The JSON value of a member.

        Raises:
            UsageError: as for `read`, or it is no JSON.
        """
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{self.path}: {name} is no JSON: {error}") from error

    def _unpack(self, member: zipfile.ZipInfo, most: int) -> bytes:
        if member.compress_type != _ZSTD:
            with zipfile.ZipFile(self.path) as archive, archive.open(member) as file:
                return file.read(most)
        with self.path.open("rb") as raw:
            raw.seek(member.header_offset)
            name, extra = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
            raw.seek(name + extra, 1)
            packed = raw.read(member.compress_size)
        with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
            return bytes(stream.read(most))
