"""Talking to the Hugging Face Hub: one-line errors, waiting when it asks to, no token shown."""

from __future__ import annotations

import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from curate.errors import CurateError, RunError, UsageError
from curate.progress import say

T = TypeVar("T")

# Addresses of uploads are signed: whoever has the query may write there.
_QUERY = re.compile(r"(https?://[^\s'\"?]+)\?[^\s'\"]+")
_MOST_WAITS = 5
# Where the Hub does not say: its limits are counted over five minutes.
_WAIT_SECONDS = 30.0
# What huggingface_hub and its transports raise: Xet's and LFS's errors are RuntimeErrors.
FAILURES = (httpx.HTTPError, OSError, RuntimeError, ValueError)


class Changed(Exception):
    """The repository is no longer at the commit that an upload was made for."""


class Hub:
    """The Hub as one dataset repository's writer sees it, with the token from the usual places.

    Attributes:
        api: huggingface_hub's client.
        repo: the repository's full id, owner/name.

    Raises UsageError for a name that cannot be, or where there is no token.
    """

    def __init__(self, repo: str) -> None:
        check_name(repo)
        token = get_token()
        if token is None:
            raise UsageError(
                "no token for the Hub: `hf auth login`, or set HF_TOKEN; make one with write "
                "access at huggingface.co/settings/tokens"
            )
        self.repo = repo
        self._token = token
        self.api = HfApi(token=token)
        with self.asking("asking who you are"):
            if "/" not in repo:
                # Without an owner the Hub would mean a dataset that has none, such as squad.
                self.repo = f"{self.patiently(self.api.whoami)['name']}/{repo}"

    def patiently(self, call: Callable[[], T]) -> T:
        """Call, and again when the Hub asks to wait: what huggingface_hub itself does not retry."""
        for _ in range(_MOST_WAITS):
            try:
                return call()
            except HfHubHTTPError as error:
                if error.response.status_code != 429:
                    raise
                seconds = _seconds_asked_for(error)
            say(f"the Hub asks to wait; going on in {seconds:.0f} s")
            time.sleep(seconds)
        return call()

    def files(self, revision: str) -> dict[str, str]:
        """Path and content hash of every file: SHA-256 of a large one, git's SHA-1 of others."""
        entries = self.patiently(
            lambda: list(
                self.api.list_repo_tree(
                    self.repo, recursive=True, revision=revision, repo_type="dataset"
                )
            )
        )
        return {
            entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
            for entry in entries
            if isinstance(entry, RepoFile)
        }

    @contextmanager
    def asking(self, doing: str) -> Iterator[None]:
        """Turn failures into a UsageError or RunError of one line; keep secrets out of logs.

        Args:
            doing: what is done, for the error.

        Raises:
            UsageError: the user must change something: token, name, rights.
            RunError: the connection was lost, or the Hub is out of order; the same continues.
            Changed: the repository changed since the commit that the upload was for.
        """
        with _without_secrets(self.hidden):
            try:
                yield
            except FAILURES as error:
                raise self._explained(error, doing) from None

    def hidden(self, text: str) -> str:
        """A text without the token and without the queries of addresses."""
        return _QUERY.sub(r"\1?…", text.replace(self._token, "…"))

    def _explained(self, error: Exception, doing: str) -> CurateError | Changed:
        # An upload's own error says only which file; its cause says why.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, httpx.HTTPError):
            cause = cause.__cause__
        reason = self.hidden(" ".join(str(cause or error).split()))[:500]
        if not isinstance(cause, HfHubHTTPError):
            if isinstance(error, ValueError):  # The Hub read the card's metadata and refused it.
                return UsageError(f"{doing}: {reason}")
            return RunError(
                f"{doing}: lost the connection to the Hub ({reason or type(error).__name__}); the "
                "same command continues, and what is there is not uploaded again"
            )
        status = cause.response.status_code
        message = self.hidden(" ".join((cause.server_message or "").split()))[:300]
        said = f" ({status}: {message})" if message else f" ({status})"
        if status == 412:
            return Changed()
        if status == 401:
            return UsageError(
                f"{doing}: the Hub refused the token{said}; make one with write access at "
                "huggingface.co/settings/tokens, then `hf auth login` or HF_TOKEN"
            )
        if status == 403:
            return UsageError(
                f"{doing}: the token may not write to {self.repo}{said}; use one that may, another "
                "--repo, or --create-pr"
            )
        if status in (400, 404, 409, 422):
            return UsageError(f"{doing}: the Hub refused {self.repo}{said}")
        if status == 429:
            return RunError(f"{doing}: the Hub's rate limit is used up{said}; continue later")
        return RunError(f"{doing}: the Hub failed{said}; the same command continues")


def check_name(repo: str) -> None:
    """Raise UsageError for a name that no repository can have."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"--repo {repo!r}: {error}") from error


def _seconds_asked_for(error: HfHubHTTPError) -> float:
    try:
        return max(float(error.response.headers["Retry-After"]), 0.0)
    except (KeyError, ValueError):
        return _WAIT_SECONDS


@contextmanager
def _without_secrets(hidden: Callable[[str], str]) -> Iterator[None]:
    """Hide secrets in what huggingface_hub logs, and print its warnings as a line each."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = hidden(record.getMessage()), ()
        return True

    handlers = logging.getLogger("huggingface_hub").handlers
    for handler in handlers:
        handler.addFilter(hide)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(hide)
        for each in caught:
            if issubclass(each.category, UserWarning):  # Not what concerns its programmers only.
                print(f"warning: {hidden(' '.join(str(each.message).split()))}", file=sys.stderr)
