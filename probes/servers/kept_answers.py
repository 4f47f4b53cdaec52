"""Answers of language models, kept with their requests in a file that is only ever appended to.

A line an answer, synced before it counts, so that what was paid for is never asked again: a killed
process leaves at most half a line at the end, which is cut off when the file is next opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curate.errors import RunError


@dataclass(frozen=True)
class Reply:
    """What a model answered, and what that took."""

    content: str
    refusal: str = ""
    """Why it would not answer, where the server says so."""
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """As the server counts them; None where it does not say."""


class KeptAnswers:
    """Replies by the hash of their request.

    Only one process may have the file open: lock its folder.

    Raises:
        RunError: the file is damaged, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replies: dict[str, Reply] = {}
        self._file: int | None = None
        if path.exists():
            self._read()

    def get(self, key: str) -> Reply | None:
        """Return the reply to a request, if there is one."""
        return self._replies.get(key)

    def add(self, key: str, request: Mapping[str, Any], reply: Reply) -> None:
        """Write a request and its reply to the disk.

        Raises:
            RunError: the disk is full, or the folder is gone.
        """
        # ASCII: a reply may hold half a surrogate pair, which is no UTF-8.
        entry = {"key": key, "request": request, "reply": asdict(reply)}
        line = json.dumps(entry).encode("ascii") + b"\n"
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}") from error
        self._replies[key] = reply

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> KeptAnswers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        whole = 0
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        break
                    try:
                        entry = json.loads(line)
                        self._replies[entry["key"]] = Reply(**entry["reply"])
                    except (ValueError, KeyError, TypeError) as error:
                        raise RunError(
                            f"{self.path} is damaged in line {number}; what the model answered "
                            "there is lost: remove the line, and it is asked again"
                        ) from error
                    whole += len(line)
            os.truncate(self.path, whole)
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}") from error
