"""A pool of servers with an OpenAI-compatible interface: many requests in flight, none lost.

A request goes to the least loaded server. What a server cannot help (a time-out, 429, 5xx, a broken
connection, an answer that is not what was asked for) is tried again after a wait that doubles each
time, with jitter, wherever there is room. A server that answers 429 rests for as long as it says
(`Retry-After`) and gets fewer requests at once afterwards, more again as it answers. A server that
fails several times in a row leaves the pool, is asked now and then whether it is well, and comes
back; one that comes back and never answers leaves for good.

The requests live in an event loop of their own thread, so that hundreds of them cost little, all
can be abandoned at once (Ctrl-C), and a caller needs no event loop and may have one (notebooks).
"""

from __future__ import annotations

import asyncio
import queue
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from curate.addresses import check_base_url
from curate.errors import RunError, UsageError, one_line
from curate.progress import say
from probes.servers.server import (
    MOST_MESSAGE,
    Busy,
    Clients,
    Json,
    RequestRefused,
    Server,
    ServerBroke,
    ServerFault,
    Unreachable,
    is_well,
)

T = TypeVar("T")

_LONGEST_WAIT = 60.0
# Faults in a row after which a server leaves, and times that it may come back without an answer.
_FAULTS_TO_LEAVE = 3
_RETURNS = 3
# A key that is refused, or an empty account: waiting does not help.
_NO_ENTRY = {401: "refuses the API key", 402: "asks for payment"}
# What reading a wrong answer raises in a `check`.
_WRONG_ANSWER = (ValueError, KeyError, IndexError, TypeError, AttributeError)


@dataclass(frozen=True)
class Failure:
    """A request that got no answer: refused by a server, or tried too often."""

    reason: str


@dataclass(eq=False)
class _Place:
    """A request that waits for a server, and where it failed before."""

    server: asyncio.Future[Server]
    failed: Server | None

    @property
    def is_taken(self) -> bool:
        return self.server.done()


Admit = Callable[[Server], Awaitable[None]]


class ServerPool:
    """Several servers that answer the same requests.

    To be used in a `with` block, or from `open` to `close`.

    Args:
        base_urls: their addresses, as the OpenAI client takes them (`http://host:8000/v1`).
        api_key: sent to each as a bearer token; never shown.
        timeout_seconds: a request's answer must be here by then, or it is sent again.
        in_flight: requests at one server at a time, at most.
        attempts: tries that a request has; 429 and a server that is not there do not count.
        patience_seconds: how long to go on without any server, and with one that only says 429.
        first_wait_seconds: before the second try; each further wait is twice as long.
        admit: looks at a server before it gets requests, at first and when it comes back. It raises
            `UsageError` where the server is the wrong one, and `ServerFault` where it is not well.

    Raises:
        UsageError: on opening: an address is wrong, or a server is, or refuses the key.
        RunError: on opening: none of the servers answers.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        *,
        api_key: str | None = None,
        timeout_seconds: float = 600.0,
        in_flight: int = 128,
        attempts: int = 5,
        patience_seconds: float = 60.0,
        first_wait_seconds: float = 0.5,
        admit: Admit = is_well,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self.in_flight = in_flight
        self.attempts = attempts
        self.patience_seconds = patience_seconds
        self.first_wait_seconds = first_wait_seconds
        self.admit = admit
        self._clients = Clients(api_key)
        self.hide_key = self._clients.hide_key
        urls = dict.fromkeys(check_base_url(url) for url in base_urls)
        self.servers = [Server(url, self._clients, in_flight) for url in urls]
        if not self.servers:
            raise UsageError("no server given: name one by --base-url http://HOST:PORT/v1")
        self._waiting: deque[_Place] = deque()
        self._returning: set[asyncio.Task[None]] = set()
        self._lost_timer: asyncio.TimerHandle | None = None
        self._is_lost = False
        self._thread: threading.Thread | None = None

    # --- From the caller's thread ------------------------------------------------------------

    def __enter__(self) -> ServerPool:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> ServerPool:
        """Look at every server, and be ready; to be followed by `close`."""
        self._clients.open(self.in_flight * len(self.servers))
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(started)), name="servers", daemon=True
        )
        self._thread.start()
        started.result()
        try:
            asyncio.run_coroutine_threadsafe(self._look_at_all(), self._loop).result()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Abandon every request and end the thread."""
        if self._thread:
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()
            self._thread = None

    def post(
        self, path: str, bodies: Iterable[Json], check: Callable[[Json, Json], T]
    ) -> Iterator[tuple[int, T | Failure]]:
        """Post every body to one of the servers and yield what came, as it comes.

        A caller that stops early, or is interrupted, abandons what is under way.

        Args:
            path: below the servers' addresses: `completions`, `chat/completions`.
            bodies: read as they are sent, a bounded number ahead of the answers.
            check: turns a body and its answer (a JSON object) into what is yielded. It raises
                ValueError, or what reading a wrong answer raises (KeyError, IndexError, TypeError,
                AttributeError); the request is then sent again.

        Yields:
            the body's number, from 0, and its answer or why there is none.

        Raises:
            RunError: no server is left.
        """
        finished: queue.SimpleQueue[tuple[int, Future[T | Failure]]] = queue.SimpleQueue()
        under_way: set[Future[T | Failure]] = set()
        numbered = enumerate(bodies)
        most = self.in_flight * len(self.servers)
        try:
            while True:
                for number, body in islice(numbered, most - len(under_way)):
                    future = asyncio.run_coroutine_threadsafe(
                        self._answer(path, body, check), self._loop
                    )
                    under_way.add(future)
                    future.add_done_callback(partial(_note, finished, number))
                if not under_way:
                    return
                number, future = finished.get()
                under_way.discard(future)
                yield number, future.result()
        finally:
            for future in under_way:
                future.cancel()

    # --- In the thread of the event loop -----------------------------------------------------

    async def _live(self, started: Future[None]) -> None:
        """Be there until `close`, then end whatever is still under way."""
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        async with self._clients:
            started.set_result(None)
            await self._stopped.wait()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _look_at_all(self) -> None:
        await asyncio.gather(*map(self._first_look, self.servers))
        absent = [server for server in self.servers if not server.is_in]
        if len(absent) == len(self.servers):
            raise self._none_left()
        for server in absent:
            say(f"server {server.url} is not used yet: {server.reason}")
            self._expect_back(server)

    async def _first_look(self, server: Server) -> None:
        try:
            await self.admit(server)
        except ServerFault as fault:
            server.reason = str(fault)
        else:
            server.is_in = True

    async def _answer(self, path: str, body: Json, check: Callable[[Json, Json], T]) -> T | Failure:
        """Try a request until it is answered, refused, or was tried often enough."""
        tries = 0
        server: Server | None = None
        while True:
            server = await self._free_server(server)
            try:
                answer = check(body, await server.ask(path, body, seconds=self.timeout_seconds))
                server.answered()
                return answer
            except RequestRefused as refusal:
                if refusal.status not in _NO_ENTRY:
                    server.answered()
                    return Failure(f"{server.url}: {refusal}")
                self._leave(server, f"{_NO_ENTRY[refusal.status]} ({refusal})", for_good=True)
                continue
            except Busy as busy:
                self._rest(server, busy)
                continue
            except Unreachable as fault:
                server.broke = True
                self._leave(server, str(fault))
                continue
            except ServerFault as fault:
                server.broke = server.broke or isinstance(fault, ServerBroke)
                reason = str(fault)
            except _WRONG_ANSWER as error:
                reason = self.hide_key(f"its answer is not what was asked for ({_wrong(error)})")
            finally:
                self._release(server)
            tries += 1
            self._count_fault(server, reason)
            if tries >= self.attempts:
                return Failure(f"{server.url}: {reason}, at the last of {tries} attempts")
            await asyncio.sleep(self._wait(tries - 1))

    def _wait(self, times: int) -> float:
        longest = min(self.first_wait_seconds * 2**times, _LONGEST_WAIT)
        return random.uniform(longest / 2, longest)

    # Which server gets a request.

    async def _free_server(self, failed: Server | None) -> Server:
        """Wait for the least loaded server with room; to be given back by `_release`.

        Args:
            failed: where the request was tried before; it waits for another one if there is any.
        """
        if self._is_lost:
            raise self._none_left()
        place = _Place(self._loop.create_future(), failed)
        if failed:
            self._waiting.appendleft(place)
        else:
            self._waiting.append(place)
        self._dispatch()
        try:
            return await place.server
        except asyncio.CancelledError:
            if place.is_taken and not place.server.cancelled() and not place.server.exception():
                self._release(place.server.result())
            raise

    def _dispatch(self) -> None:
        """Give the free servers to those who wait, the longest first."""
        now = self._loop.time()
        there = [server for server in self.servers if server.is_in]
        free = [each for each in there if each.rests_until <= now and each.has_room]
        for place in list(self._waiting) if free else []:
            fit = [each for each in free if each is not place.failed or len(there) == 1]
            if fit and not place.is_taken:
                server = min(fit, key=lambda server: server.in_flight)
                server.in_flight += 1
                place.server.set_result(server)
                free = [each for each in free if each.has_room]
            if place.is_taken:
                self._waiting.remove(place)
            if not free:
                return

    def _release(self, server: Server) -> None:
        server.in_flight -= 1
        self._dispatch()

    # How a server is doing.

    def _rest(self, server: Server, busy: Busy) -> None:
        """Leave a server that says 429 alone for a while; then ask it for half as much at once."""
        now = self._loop.time()
        if not server.is_in or server.rests_until > now:
            return  # It said so to another request already.
        if server.busy_since is None:
            server.busy_since = now
        elif now - server.busy_since > self.patience_seconds:
            self._leave(server, f"has only been saying {busy}", for_good=True)
            return
        seconds = self._wait(server.busy_answers) if busy.seconds is None else busy.seconds
        if seconds > max(self.patience_seconds, _LONGEST_WAIT):
            self._leave(server, f"asks to wait {seconds:,.0f} s ({busy})", for_good=True)
            return
        server.busy_answers += 1
        server.room = max(1.0, server.room / 2)
        server.rests_until = now + seconds
        # A timer may come a little early by the clock that `_dispatch` reads.
        self._loop.call_later(seconds + 0.01, self._dispatch)

    def _count_fault(self, server: Server, reason: str) -> None:
        server.faults += 1
        if server.faults >= _FAULTS_TO_LEAVE:
            self._leave(server, reason)

    def _leave(self, server: Server, reason: str, *, for_good: bool = False) -> None:
        if not server.is_in:
            return
        server.is_in = False
        server.reason = reason
        for_good = for_good or server.returns >= _RETURNS
        left = sum(each.is_in for each in self.servers)
        stays = " for good" if for_good else ""
        say(f"server {server.url} leaves the pool{stays}: {reason}; {left} left")
        if not for_good:
            self._expect_back(server)
        if not left:
            self._wait_or_give_up()

    def _expect_back(self, server: Server) -> None:
        task = self._loop.create_task(self._come_back(server))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _come_back(self, server: Server) -> None:
        """Ask a server now and then whether it is well, until it is or proves to be wrong."""
        times = server.returns
        while True:
            await asyncio.sleep(self._wait(times))
            times += 1
            try:
                await self.admit(server)
                break
            except ServerFault as fault:
                server.reason = str(fault)
            except UsageError as error:
                server.reason = str(error)
                say(f"server {server.url} stays out: {error}")
                self._returning.discard(asyncio.current_task())
                if not any(each.is_in for each in self.servers):
                    self._wait_or_give_up()
                return
        server.is_in = True
        server.faults = 0
        server.returns += 1
        self._is_lost = False
        say(f"server {server.url} is in the pool")
        if self._lost_timer:
            self._lost_timer.cancel()
            self._lost_timer = None
        self._dispatch()

    def _wait_or_give_up(self) -> None:
        """With no server in the pool: give those that may come back some time."""
        if not self._returning:
            self._give_up()
        elif not self._lost_timer:
            self._lost_timer = self._loop.call_later(self.patience_seconds, self._give_up)

    def _give_up(self) -> None:
        self._is_lost = True
        for place in self._waiting:
            if not place.is_taken:
                place.server.set_exception(self._none_left())
        self._waiting.clear()

    def _none_left(self) -> RunError:
        reasons = "; ".join(f"{server.url}: {server.reason}" for server in self.servers)
        return RunError(
            f"no server is left ({reasons}); start one, and the same command goes on from here"
        )


def _note(
    finished: queue.SimpleQueue[tuple[int, Future[Any]]], number: int, future: Future[Any]
) -> None:
    finished.put((number, future))


def _wrong(error: Exception) -> str:
    text = one_line(str(error))[:MOST_MESSAGE]
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"
