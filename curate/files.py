"""Writing files so that a reader never sees half of one, whenever the process is killed.

Each file is written aside in its own folder, flushed to the disk and renamed over the target:
the target holds either all of the old content or all of the new.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

CODE_ROOT = Path(__file__).resolve().parent.parent
"""The folder in which the packages of this distribution lie."""


@contextmanager
def atomic_writer(path: str | Path, mode: Literal["w", "wb"] = "wb") -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` only when the block ends without an error.

    Missing parent folders are made. Text is UTF-8, line ends as given. On an error, or on Ctrl-C,
    the file written aside is removed and `path` stays as it was. Raises OSError, also where `path`
    is a folder or a device.
    """
    # A link is followed, so that what it points to is replaced and the link survives.
    path = Path(os.path.realpath(path))
    exists = path.exists()
    if exists and not path.is_file():
        # Renaming over /dev/null would do lasting harm.
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Ends in .tmp, so that no reader's `*.parquet` picks up what a killed process left.
    aside = path.with_name(f".{path.name[:50]}.{secrets.token_hex(6)}.tmp")
    try:
        is_text = mode == "w"
        with aside.open(
            "x" if is_text else "xb",
            encoding="utf-8" if is_text else None,
            newline="" if is_text else None,
        ) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if exists:
            aside.chmod(path.stat().st_mode & 0o777)
        aside.replace(path)
    except BaseException:  # Ctrl-C too must leave no rubbish behind.
        aside.unlink(missing_ok=True)
        raise
    _sync_entries(path.parent)


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write `data` to `path` at one stroke; text as UTF-8. Raises OSError."""
    content = data.encode("utf-8") if isinstance(data, str) else data
    with atomic_writer(path) as file:
        file.write(content)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder's files to the disk, so that it can be renamed into place. Raises OSError."""
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    _sync_entries(folder)


def _sync_entries(folder: Path) -> None:
    """Make a rename last through a power cut; some file systems cannot sync a folder."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def path_or_none(path: str | Path | None) -> Path | None:
    """A path, where there is one."""
    return None if path is None else Path(path)
