"""A stand-in of an OpenAI-compatible server, for the faults that a real one does not show at will.

It answers as `answer` says, unless a fault is planted: a status, half an answer, silence, a broken
connection. It can be stopped and started again on the same port.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What happens instead of an answer."""

    kind: str
    """status, truncated, silent, dropped, or answer (another one)."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""


def status(code: int, message: str = "", **headers: str) -> Fault:
    content = json.dumps({"error": {"message": message}}).encode()
    return Fault("status", code, {n.replace("_", "-"): v for n, v in headers.items()}, content)


TRUNCATED, SILENT, DROPPED = Fault("truncated"), Fault("silent"), Fault("dropped")


def instead(content: bytes) -> Fault:
    return Fault("answer", content=content)


@dataclass
class StandIn:
    """One server; `faults` are used up one a request, `always` lasts."""

    answer: Callable[[str, dict[str, Any]], object]
    port: int = 0
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    seconds: float = 0.0
    """How long an answer takes."""
    posted: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    at_once: int = 0
    """Requests that are here and not answered yet."""
    most_at_once: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Event()
        handler = type("Handler", (_Handler,), {"stand_in": self})
        self._server = _Server(("127.0.0.1", self.port), handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """As a kill does: nothing listens any more and open connections break."""
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self._server.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, *arguments: Any) -> None:
        self.connections: list[socket.socket] = []
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def do_GET(self) -> None:
        self._handle({})

    def do_POST(self) -> None:
        self._handle(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _handle(self, body: dict[str, Any]) -> None:
        stand_in = self.stand_in
        is_post = self.command == "POST"
        with stand_in._lock:
            stand_in.keys.add(self.headers["Authorization"])
            stand_in.at_once += is_post
            self._is_counted = is_post
            stand_in.most_at_once = max(stand_in.most_at_once, stand_in.at_once)
            if is_post:
                stand_in.posted.append(body)
            fault = stand_in.always
            if is_post and stand_in.faults:
                fault = stand_in.faults.popleft()
        try:
            self._answer(body, fault if is_post else None)
        finally:
            self._leave()

    def _leave(self) -> None:
        """Before its answer is sent: the next request may be here before this one has ended."""
        with self.stand_in._lock:
            self.stand_in.at_once -= self._is_counted
        self._is_counted = False

    def _answer(self, body: dict[str, Any], fault: Fault | None) -> None:
        stand_in = self.stand_in
        if fault is None or fault.kind == "truncated":
            time.sleep(stand_in.seconds)
        if fault and fault.kind == "silent":
            stand_in._ended.wait(20)
        if stand_in._ended.is_set() or (fault and fault.kind == "dropped"):
            self._leave()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault and fault.kind != "truncated":
            self._send(fault.status, fault.content, fault.headers)
        else:
            found = stand_in.answer(self.path, body)
            if isinstance(found, Fault):
                self._send(found.status, found.content, found.headers)
                return
            content = json.dumps(found).encode()
            self._send(200, content[: len(content) // 2] if fault else content, {})

    def _send(self, code: int, content: bytes, headers: Mapping[str, str]) -> None:
        self._leave()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent."""
