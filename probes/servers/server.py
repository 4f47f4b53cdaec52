"""One server with an OpenAI-compatible interface: what it is asked, and what is wrong otherwise.

A fault is what another try may help; a refusal is what none can.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import cycle
from typing import Any

import httpx

from curate.addresses import DEFAULT_KEY_VARIABLE, check_key_variable
from curate.errors import UsageError, one_line

Json = dict[str, Any]

_CONNECT_SECONDS = 10.0
# httpx looks at all connections of a client whenever one changes: at 256 that is 10 ms a request.
_CONNECTIONS_OF_A_CLIENT = 8
_PROBE_SECONDS = 30.0
# More than any honest answer: 1,000 completions of 8,000 tokens have about 90 MB.
_MOST_BYTES = 256 * 1024**2
MOST_MESSAGE = 300
"""Characters of an error that are told."""
_TRY_AGAIN = {408, 409, 425, 429}


class RequestRefused(Exception):
    """A server says that the request itself is wrong, so that no other try can help.

    Attributes:
        status: the HTTP status, 300 to 499.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ServerFault(Exception):
    """A server gave no answer, or none that can be used; another try may help."""


class ServerBroke(ServerFault):
    """The server answered 5xx, or went away: it may have crashed."""


class Unreachable(ServerBroke):
    """Nothing listens there: the request was never sent."""


class Busy(ServerFault):
    """429, or 503 with a time: the server asks to come later."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds


def read_api_key(variable: str = "") -> str | None:
    """Read the API key from the environment; None where the usual variable is not set.

    Args:
        variable: the variable's name; OPENAI_API_KEY where empty.

    Raises:
        UsageError: the variable was named but is not set, or holds what cannot be a key, or the
            name cannot be that of a variable.
    """
    check_key_variable(variable)
    name = variable or DEFAULT_KEY_VARIABLE
    key = os.environ.get(name, "").strip()
    if not key:
        if variable:
            raise UsageError(f"the environment variable {variable} for the API key is not set")
        return None
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(f"what the environment variable {name} holds cannot be an API key")
    return key


class Clients:
    """The connections to the servers of a pool, and the API key that is sent to each, if any."""

    def __init__(self, api_key: str | None) -> None:
        self._api_key = api_key
        self._clients: list[httpx.AsyncClient] = []

    def hide_key(self, text: str) -> str:
        """Take the key out of a text that a server wrote."""
        return text.replace(self._api_key, "***") if self._api_key else text

    def open(self, most: int) -> None:
        """Make as many as so many requests at a time need; to be entered in an event loop."""
        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        certificates = httpx.create_ssl_context()
        self._clients = [
            httpx.AsyncClient(
                headers={**headers, "User-Agent": "curate"},
                verify=certificates,
                limits=httpx.Limits(
                    max_connections=None,
                    max_keepalive_connections=None,
                    # Shorter than the 5 s of uvicorn, so that the server never closes first.
                    keepalive_expiry=2.0,
                ),
                # The time for the whole answer is limited in `Server.ask`.
                timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            )
            for _ in range(math.ceil(most / _CONNECTIONS_OF_A_CLIENT))
        ]
        self._turns = cycle(self._clients)

    def next(self) -> httpx.AsyncClient:
        """Take turns, so that each has few connections."""
        return next(self._turns)

    async def __aenter__(self) -> Clients:
        self._stack = AsyncExitStack()
        for client in self._clients:
            await self._stack.enter_async_context(client)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


class Server:
    """One server of a pool: how to ask it, and how it has been doing.

    Args:
        url: its address, which holds no secret.
        clients: to ask it with.
        in_flight: requests at a time, at most.

    Attributes:
        is_in: whether it gets requests.
        reason: why it is not in the pool.
        broke: whether it answered 5xx to a request of the caller's, or went away, and has answered
            none since.
    """

    def __init__(self, url: str, clients: Clients, in_flight: int) -> None:
        self.url = url
        self.is_in = False
        self.reason = "not asked yet"
        self.broke = False
        self.in_flight = 0
        self.room = float(in_flight)
        self.faults = 0
        self.returns = 0
        self.busy_answers = 0
        self.busy_since: float | None = None
        self.rests_until = 0.0
        self._clients = clients
        self._most = in_flight

    @property
    def has_room(self) -> bool:
        """Whether it may get another request now."""
        return self.in_flight < self.room

    def answered(self) -> None:
        """Forget what was wrong with it, and give it a little more room."""
        self.faults = self.returns = self.busy_answers = 0
        self.broke = False
        self.busy_since = None
        self.room = min(self._most, self.room + 1 / self.room)

    async def ask(
        self, path: str, body: Json | None = None, *, seconds: float = _PROBE_SECONDS
    ) -> Json:
        """Send one request, once: a POST with a body, else a GET.

        Args:
            path: below the address (`completions`); with a slash before it, beside `/v1`
                (`/tokenize`).
            body: what is posted, as JSON.
            seconds: the answer must be here whole by then.

        Raises:
            RequestRefused: the server says that the request is wrong.
            ServerFault: no answer, or not a JSON object.
        """
        root = self.url.removesuffix("/v1") if path.startswith("/") else f"{self.url}/"
        client, hide = self._clients.next(), self._clients.hide_key
        try:
            async with asyncio.timeout(seconds):
                method = "GET" if body is None else "POST"
                async with client.stream(method, f"{root}{path}", json=body) as response:
                    content = await _read(response)
        except TimeoutError:
            raise ServerFault(f"no answer within {seconds:g} s") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unreachable(f"cannot be reached ({hide(_name(error))})") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise ServerBroke(f"the connection broke ({hide(_name(error))})") from None
        if response.status_code == 200:
            return _parse(content)
        message = hide(f"HTTP {response.status_code}{_message(content)}")
        if response.status_code == 429 or (
            response.status_code == 503 and "retry-after" in response.headers
        ):
            raise Busy(message, _retry_after(response))
        if response.status_code >= 500:
            raise ServerBroke(message)
        if response.status_code in _TRY_AGAIN:
            raise ServerFault(message)
        raise RequestRefused(response.status_code, message)


async def is_well(server: Server) -> None:
    """Admit a server that lists its models, or has no such list.

    Raises:
        UsageError: it refuses the key.
        ServerFault: no answer.
    """
    try:
        await server.ask("models")
    except RequestRefused as refusal:
        if refusal.status in (401, 403):
            raise UsageError(f"the server {server.url} refuses the API key ({refusal})") from None


async def _read(response: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > _MOST_BYTES:
            raise ServerFault(f"its answer is longer than {_MOST_BYTES:,} bytes")
    return bytes(content)


def _parse(content: bytes) -> Json:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise ServerFault(f"its answer of {len(content):,} bytes is not JSON") from None
    if not isinstance(found, dict):
        raise ServerFault("its answer is not a JSON object")
    return found


def _message(content: bytes) -> str:
    """What a server says about an error, for one line: `: model not found`."""
    try:
        found = json.loads(content[:_MOST_BYTES])
        while isinstance(found, dict):
            found = next(found[k] for k in ("error", "message", "detail") if k in found)
        text = found if isinstance(found, str) else json.dumps(found)
    except (ValueError, RecursionError, StopIteration):
        text = content[:MOST_MESSAGE].decode(errors="replace")
    text = one_line(text.strip())
    return f": {text[:MOST_MESSAGE]}" if text else ""


def _name(error: Exception) -> str:
    return one_line(str(error))[:MOST_MESSAGE] or type(error).__name__


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that a server asks to wait; None where it does not say, or not in a known form."""
    text = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d*)?", text):
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
