"""Addresses of servers, in one form and without secrets, and the names of what holds the key."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from curate.errors import UsageError, one_line

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"


def check_base_url(url: str) -> str:
    """Return a server's address without a slash at its end, and with /v1 where it has no path.

    Raises:
        UsageError: not an http or https address, or it holds a password or a query, which would be
            written into the run folder.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        has_secrets = "@" in parts.netloc or bool(parts.query or parts.fragment)
    except ValueError:
        raise UsageError("--base-url is not an address such as http://localhost:8000/v1") from None
    if has_secrets:
        raise UsageError(
            f"--base-url {parts.scheme}://{parts.hostname}{f':{port}' if port else ''} has a user, "
            "a password or a query, which would be kept in the run folder; give the address alone "
            f"and the key in the environment variable {DEFAULT_KEY_VARIABLE}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
        raise UsageError(
            f"--base-url is {one_line(url)!r}; it must be an address such as "
            "http://localhost:8000/v1"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def check_key_variable(name: str) -> None:
    """Refuse what cannot be the name of an environment variable; empty stands for the usual one.

    Raises:
        UsageError: it is none. It may be the key itself, so it is not repeated.
    """
    if name and not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise UsageError(
            "--api-key-env takes the name of an environment variable, and what it was given is "
            f"none; set {DEFAULT_KEY_VARIABLE} to the key and leave the option out"
        )
