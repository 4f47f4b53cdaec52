"""The pool of servers against a stand-in that fails in every way that servers fail.

Nothing is timed. Where the order of events matters, the stand-in holds its answers until they have
come about; `MOST_SECONDS` only ends a test that has failed already.
"""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any

import pytest

from curate.addresses import check_base_url
from curate.errors import RunError, UsageError
from probes.servers.pool import Failure, ServerPool
from probes.servers.server import read_api_key
from tests.stand_ins.server import (
    DROPPED,
    SILENT,
    TRUNCATED,
    Fault,
    StandIn,
    instead,
    status,
)

KEY = "sk-aGoodKeyOfMine"
MOST_SECONDS = 60


def _double(path: str, body: dict[str, Any]) -> object:
    """What the servers of these tests do: 2 for 1."""
    if path == "/v1/models":
        return {"data": [{"id": "doubler"}]}
    return {"doubled": 2 * body["number"]}


def _read(body: dict[str, Any], answer: dict[str, Any]) -> int:
    number = answer["doubled"]
    if number % 2:
        raise ValueError(f"{number} is odd")
    return int(number)


@contextmanager
def _servers(count: int = 1, **settings: Any) -> Iterator[list[StandIn]]:
    servers = [StandIn(_double, **settings) for _ in range(count)]
    for server in servers:
        server.start()
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()


def _pool(servers: list[StandIn], **options: Any) -> ServerPool:
    settings = {"timeout_seconds": 120.0, "first_wait_seconds": 0.01, "patience_seconds": 30.0}
    return ServerPool([each.url for each in servers], **settings | options)


def _post(pool: ServerPool, count: int) -> dict[int, int | Failure]:
    found = list(pool.post("doubled", ({"number": number} for number in range(count)), _read))
    assert len(found) == count
    return dict(found)


def _until(happened: threading.Event) -> None:
    """Hold an answer."""
    assert happened.wait(MOST_SECONDS)


def _is_post(path: str) -> bool:
    return path != "/v1/models"


def _doubled(count: int) -> dict[int, int]:
    return {number: 2 * number for number in range(count)}


def test_every_request_is_answered_once_whatever_fails_on_the_way() -> None:
    faults = [
        *(status(500), status(503, "loading"), status(429), status(408), TRUNCATED, DROPPED),
        *(status(429, Retry_After="0.05"), status(503, Retry_After="0"), instead(b"[]")),
        *(instead(b""), instead(b'{"doubled": 3}'), instead(b'{"other": 3}'), instead(b"[" * 9999)),
        *(instead(b'{"doubled": null}'), instead(b"\xff\xfe")),
    ]
    with _servers(2) as servers, _pool(servers, attempts=9) as pool:
        for fault in faults:
            servers[0].faults.append(fault)
            servers[1].faults.append(fault)
        assert _post(pool, 200) == _doubled(200)
        posted = Counter(body["number"] for server in servers for body in server.posted)
        assert set(posted) == set(range(200))
        assert posted.total() == 200 + 2 * len(faults)
        assert not any(server.faults for server in servers)


def test_a_server_that_never_answers_costs_the_time_out_and_not_the_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with _servers(2) as servers, _pool(servers, timeout_seconds=3, in_flight=4) as pool:
        servers[0].always = SILENT
        assert _post(pool, 40) == _doubled(40)
    said = capsys.readouterr().err
    assert f"server {servers[0].url} leaves the pool: no answer within 3 s; 1 left" in said
    # Retries went elsewhere: it got its room once, and once more each time it was let in again.
    assert len(servers[1].posted) == 40


def test_requests_go_to_the_least_loaded_server_and_no_more_than_it_has_room_for() -> None:
    """The first answers nothing until the second, which waits to be full once, had the others."""
    full, others_done = threading.Event(), threading.Event()
    with _servers(2) as servers, _pool(servers, in_flight=8) as pool:
        slow, quick = servers

        def answer_slowly(path: str, body: dict[str, Any]) -> object:
            if _is_post(path):
                _until(others_done)
            return _double(path, body)

        def answer_quickly(path: str, body: dict[str, Any]) -> object:
            if _is_post(path):
                if quick.at_once == 8:
                    full.set()
                _until(full)
                if len(quick.posted) == 92:
                    others_done.set()
            return _double(path, body)

        slow.answer, quick.answer = answer_slowly, answer_quickly
        assert _post(pool, 100) == _doubled(100)
    assert [server.most_at_once for server in servers] == [8, 8]
    assert [len(server.posted) for server in servers] == [8, 92]


def test_many_requests_are_in_flight_at_once() -> None:
    """Twice: no answer is given before 256 requests are waiting for theirs."""
    together = threading.Barrier(256)

    def answer(path: str, body: dict[str, Any]) -> object:
        if _is_post(path):
            together.wait(MOST_SECONDS)
        return _double(path, body)

    with _servers(1) as servers, _pool(servers, in_flight=256) as pool:
        servers[0].answer = answer
        assert _post(pool, 512) == _doubled(512)
    assert servers[0].most_at_once == 256
    assert len(servers[0].posted) == 512


@pytest.mark.parametrize("in_words", [False, True])
def test_a_server_is_left_alone_for_as_long_as_it_says(in_words: bool) -> None:
    moments: list[float] = []

    def answer(path: str, body: dict[str, Any]) -> object:
        if not _is_post(path):
            return _double(path, body)
        moments.append(time.time())
        if len(moments) > 1:
            return _double(path, body)
        # A date has whole seconds.
        date = formatdate(int(moments[0]) + 2, usegmt=True)
        return status(429, "slowly", Retry_After=date if in_words else "0.5")

    with _servers(1) as servers, _pool(servers) as pool:
        servers[0].answer = answer
        assert _post(pool, 1) == {0: 0}
    assert moments[1] >= (int(moments[0]) + 2 if in_words else moments[0] + 0.5)


def test_a_storm_of_429_is_calmed_by_asking_for_less_at_once() -> None:
    """The stand-in serves 4 requests at once and refuses the others, as rate limits do."""
    with _servers(1, seconds=0.01) as servers, _pool(servers, in_flight=64) as pool:
        server = servers[0]

        def answer(path: str, body: dict[str, Any]) -> object:
            if _is_post(path) and server.at_once > 4:
                return status(429, "too many")
            return _double(path, body)

        server.answer = answer
        assert _post(pool, 200) == _doubled(200)
        # Each of 64 asking again and again would be thousands.
        assert len(server.posted) < 600


def test_a_server_that_only_says_429_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with _servers(1) as servers, _pool(servers, patience_seconds=0.3) as pool:
        servers[0].always = status(429, "You exceeded your quota")
        with pytest.raises(RunError, match=r"no server is left.*You exceeded your quota"):
            _post(pool, 20)
    assert "leaves the pool for good" in capsys.readouterr().err


def test_a_server_that_asks_for_an_hour_is_not_waited_for() -> None:
    with _servers(2) as servers, _pool(servers) as pool:
        servers[0].always = status(429, Retry_After="3600")
        assert _post(pool, 20) == _doubled(20)
        servers[1].always = status(429, Retry_After="3600")
        with pytest.raises(RunError, match="asks to wait 3,600 s"):
            _post(pool, 1)


def test_a_dead_server_leaves_and_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    """Once it is there again, the other answers nothing until it has had 20 requests."""
    is_back = threading.Event()
    with _servers(2, seconds=0.02) as servers, _pool(servers, in_flight=4) as pool:
        found: dict[int, int | Failure] = {}
        before = 0

        def answer_again(path: str, body: dict[str, Any]) -> object:
            if len(servers[0].posted) > before + 20:
                is_back.set()
            return _double(path, body)

        def hold(path: str, body: dict[str, Any]) -> object:
            if _is_post(path):
                _until(is_back)
            return _double(path, body)

        for done, (number, answer) in enumerate(
            pool.post("doubled", ({"number": number} for number in range(250)), _read)
        ):
            assert number not in found
            found[number] = answer
            if done == 40:
                servers[0].stop()
            if done == 120:
                before = len(servers[0].posted)
                servers[0].answer, servers[1].answer = answer_again, hold
                servers[0].start()
        assert found == _doubled(250)
        assert len(servers[0].posted) > before + 20
    said = capsys.readouterr().err
    assert f"server {servers[0].url} leaves the pool: " in said
    assert f"server {servers[0].url} is in the pool" in said


def test_without_any_server_the_run_waits_a_while_and_goes_on_if_one_comes_back() -> None:
    with _servers(1) as servers, _pool(servers) as pool:
        servers[0].stop()
        threading.Timer(0.5, servers[0].start).start()
        assert _post(pool, 10) == _doubled(10)


def test_with_no_server_left_the_run_stops() -> None:
    with _servers(2) as servers, _pool(servers, patience_seconds=0.3) as pool:
        for server in servers:
            server.stop()
        with pytest.raises(RunError, match="no server is left") as error:
            _post(pool, 10)
        assert all(server.url in str(error.value) for server in servers)
        assert "cannot be reached" in str(error.value)
        # Nothing hangs: another request fails in the same way, until a server is back.
        with pytest.raises(RunError):
            _post(pool, 1)
        servers[0].start()
        ends = time.monotonic() + MOST_SECONDS
        while not pool.servers[0].is_in:
            assert time.monotonic() < ends
            time.sleep(0.01)
        assert _post(pool, 5) == _doubled(5)


def test_a_server_that_looks_well_and_never_answers_leaves_for_good() -> None:
    with _servers(2) as servers, _pool(servers) as pool:
        servers[0].always = status(500, "out of memory")
        assert _post(pool, 50) == _doubled(50)
        servers[1].always = status(500, "out of memory")
        with pytest.raises(RunError, match="HTTP 500: out of memory"):
            list(pool.post("doubled", [{"number": 1}] * 50, _read))
    assert len(servers[1].posted) < 500


def test_a_request_that_is_refused_or_always_fails_does_not_stop_the_others() -> None:
    def answer(path: str, body: dict[str, Any]) -> object:
        if body.get("number") == 3:
            return status(400, "no threes")
        if body.get("number") == 5:
            return {"doubled": 11}
        return _double(path, body)

    with _servers(1) as servers, _pool(servers) as pool:
        servers[0].answer = answer
        found = _post(pool, 40)
    refused, failed = found.pop(3), found.pop(5)
    assert found == {n: 2 * n for n in range(40) if n not in (3, 5)}
    assert refused == Failure(f"{servers[0].url}: HTTP 400: no threes")
    assert isinstance(failed, Failure)
    assert "its answer is not what was asked for (11 is odd), at the last of 5" in failed.reason
    posted = Counter(body["number"] for body in servers[0].posted)
    assert (posted[3], posted[5]) == (1, 5)


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.servers.server._MOST_BYTES", 10_000)
    with _servers(1) as servers, _pool(servers, attempts=1) as pool:
        servers[0].faults.append(instead(b'{"doubled": "%s"}' % (b"x" * 100_000)))
        failure = _post(pool, 1)[0]
    assert isinstance(failure, Failure) and "longer than 10,000 bytes" in failure.reason


# --- Before anything is sent -----------------------------------------------------------------


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_server_that_is_not_there_at_first_may_come_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    is_there = threading.Event()

    def answer(path: str, body: dict[str, Any]) -> object:
        if _is_post(path):
            is_there.set()
        return _double(path, body)

    def hold(path: str, body: dict[str, Any]) -> object:
        if _is_post(path):
            _until(is_there)
        return _double(path, body)

    absent = StandIn(answer, port=_closed_port())
    with _servers(1) as servers, _pool([*servers, absent], in_flight=2) as pool:
        assert f"server {absent.url} is not used yet: cannot be reached" in capsys.readouterr().err
        absent.start()
        servers[0].answer = hold
        assert _post(pool, 100) == _doubled(100)
        absent.stop()
    assert absent.posted


def test_with_none_there_at_first_the_run_does_not_start() -> None:
    absent = StandIn(_double, port=_closed_port())
    start = time.monotonic()
    with (
        pytest.raises(RunError, match=r"no server is left.*cannot be reached"),
        _pool([absent], patience_seconds=10 * MOST_SECONDS),
    ):
        raise AssertionError
    assert time.monotonic() - start < 5 * MOST_SECONDS  # It does not wait for one.


def test_a_server_that_comes_back_as_another_stays_out(capsys: pytest.CaptureFixture[str]) -> None:
    is_out = threading.Event()

    async def admit(server: Any) -> None:
        if (await server.ask("models"))["data"][0]["id"] != "doubler":
            is_out.set()
            raise UsageError(f"{server.url} is no doubler")

    def hold_the_last(path: str, body: dict[str, Any]) -> object:
        if body.get("number") == 99:
            _until(is_out)
        return _double(path, body)

    with _servers(2) as servers, _pool(servers, admit=admit, in_flight=2) as pool:
        servers[0].stop()
        servers[0].answer = lambda path, body: {"data": [{"id": "trebler"}]}
        servers[0].start()
        servers[0].faults.extend([DROPPED] * 3)
        servers[1].answer = hold_the_last
        assert _post(pool, 100) == _doubled(100)
    assert f"server {servers[0].url} stays out" in capsys.readouterr().err
    with (
        _servers(1) as wrong,
        pytest.raises(UsageError, match="is no doubler"),
    ):
        wrong[0].answer = lambda path, body: {"data": [{"id": "trebler"}]}
        with _pool(wrong, admit=admit):
            raise AssertionError


# --- Keys and addresses ----------------------------------------------------------------------


def test_the_key_is_sent_and_shown_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    """Not even where a server says it back."""
    with _servers(2) as servers, _pool(servers, api_key=KEY, patience_seconds=0.2) as pool:
        servers[0].always = status(500, f"you said {KEY}")
        servers[1].faults.append(status(400, f"you said Bearer {KEY}"))
        failures = [found for found in _post(pool, 20).values() if isinstance(found, Failure)]
        assert failures == [Failure(f"{servers[1].url}: HTTP 400: you said Bearer ***")]
        servers[1].always = status(401, f"wrong key {KEY}")
        with pytest.raises(RunError, match=r"refuses the API key .*wrong key \*\*\*") as error:
            _post(pool, 20)
        assert servers[0].keys == servers[1].keys == {f"Bearer {KEY}"}
        for text in (repr(pool), repr(pool.servers), repr(error.value), capsys.readouterr().err):
            assert KEY not in text


def test_a_key_that_is_refused_is_noticed_before_anything_is_sent() -> None:
    with _servers(1) as servers:
        servers[0].answer = lambda path, body: status(401, "who are you")
        with (
            pytest.raises(UsageError, match=r"refuses the API key .HTTP 401: who are you"),
            _pool(servers),
        ):
            raise AssertionError
        assert not servers[0].posted


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert read_api_key() is None
    with pytest.raises(UsageError, match="MY_KEY for the API key is not set"):
        read_api_key("MY_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert read_api_key() == KEY
    with pytest.raises(UsageError, match="--api-key-env takes the name") as error:
        read_api_key(KEY)
    assert KEY not in str(error.value)
    monkeypatch.setenv("MY_KEY", "a\r\nHost: b")
    with pytest.raises(UsageError) as error:
        read_api_key("MY_KEY")
    assert "Host" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://host/api/openai", "https://host/api/openai"),
        ("http://[::1]:8000/", "http://[::1]:8000/v1"),
    ],
)
def test_addresses_are_taken_as_people_write_them(given: str, meant: str) -> None:
    assert check_base_url(given) == meant


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "ftp://host", "http://", "http://host:port", "http://[::1", "", "x y"),
        *("http://host/\n", "http://me:hunter2@host/v1", "http://host/v1?key=hunter2"),
        "http://host/v1#hunter2",
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as error:
        check_base_url(url)
    assert "hunter2" not in str(error.value) and "\n" not in str(error.value)


def test_leaving_early_abandons_what_is_under_way() -> None:
    left = threading.Event()

    def hold(path: str, body: dict[str, Any]) -> object:
        if _is_post(path):
            _until(left)
        return _double(path, body)

    with _servers(1) as servers, _pool(servers, in_flight=4) as pool:
        start = time.monotonic()
        servers[0].answer = hold
        servers[0].faults.append(Fault("answer", content=b'{"doubled": 0}'))
        for _ in pool.post("doubled", ({"number": number} for number in range(100)), _read):
            break
        pool.close()
        assert len(servers[0].posted) <= 5
        assert time.monotonic() - start < MOST_SECONDS  # The answers come after that.
        left.set()
