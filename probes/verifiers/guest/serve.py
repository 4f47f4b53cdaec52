"""The process that all tests of a program are forked from.

Commands (JSON): `{"do": "program", "source"}`, once; `{"do": "compile", "limit"}`;
`{"do": "read", "limit"}`, with a frame of
bytes for the program's stdin; `{"do": "call", "name", "arguments", "limit"}`; and `{"do": "test",
"limit"}`, with a frame `{"source", "function"}` for the process that makes the assertions. Each but
the first is answered by `{"status", "seconds"}` and a frame of what was written: the program's
stdout, the value that was returned, or whether the assertions held.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from probes.verifiers.guest.assertions import make_assertions
from probes.verifiers.guest.limits import confine
from probes.verifiers.guest.programs import (
    compile_only,
    prelude,
    run_call,
    run_script,
    serve_program,
)
from probes.verifiers.guest.values import decode, read_frame, write_all, write_frame

READY = b"ready"
_HIGH = 100  # from here on no file descriptor of this process's own is
_READ = 65536

Found = tuple[str, float, bytes]
"""Status, processor time in seconds, and what was written."""


def start(work: Callable[[], None], cpu_seconds: int, files: Sequence[int]) -> int:
    """Fork a process that does some work, and return its id once it is confined.

    Args:
        work: what it does.
        cpu_seconds: processor time that it may take.
        files: its file descriptors 0, 1, 2 and so on; it has no others.

    Raises OSError where it could not be confined.
    """
    confined, told = os.pipe()
    process = os.fork()
    if process == 0:
        _work(work, cpu_seconds, [*files, told])
    os.close(told)
    is_confined = os.read(confined, 1) == b"k"
    os.close(confined)
    if not is_confined:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        raise OSError("a test could not be confined")
    return process


def _work(work: Callable[[], None], cpu_seconds: int, files: Sequence[int]) -> None:
    """Never returns."""
    status = 1
    try:
        # First out of each other's way, then into place.
        high = [os.dup2(fd, _HIGH + place) for place, fd in enumerate(files)]
        for place, fd in enumerate(high):
            os.dup2(fd, place)
        os.closerange(len(files), 2 * _HIGH)
        confine(cpu_seconds)
        os.write(len(files) - 1, b"k")
        os.close(len(files) - 1)
        work()
        status = 0
    except SystemExit as error:
        status = 0 if error.code in (None, 0) else 1
    except BaseException:  # noqa: BLE001 (its status tells)
        status = 1
    finally:
        for stream in (sys.stdout, sys.__stdout__):
            try:
                stream.flush()  # type: ignore[union-attr]
            except BaseException:  # noqa: BLE001
                status = 1
        os._exit(status)


def gather(process: int, output: int, limit: dict[str, Any]) -> Found:
    """What a process writes, until it ends or is ended; `output` is closed.

    The status is "ended", "failed", "time", "clock", "output" or "signal N".
    """
    written, cut = bytearray(), ""
    ending = os.pidfd_open(process)
    poll = select.poll()
    poll.register(ending, select.POLLIN)
    poll.register(output, select.POLLIN)
    until = time.monotonic() + limit["clock"]
    while not cut:
        left = until - time.monotonic()
        ready = dict(poll.poll(1000 * left)) if left > 0 else {}
        if not ready:
            cut = "clock"
        elif output in ready:
            part = os.read(output, _READ)
            written += part
            if not part:
                poll.unregister(output)
            elif len(written) > limit["output"]:
                cut = "output"
        else:  # it has ended, and nothing is left to be read
            break
    os.kill(process, signal.SIGKILL)
    _, status, used = os.wait4(process, 0)
    os.close(ending)
    os.close(output)
    seconds = used.ru_utime + used.ru_stime
    if cut:
        return cut, seconds, bytes(written)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        is_late = number == signal.SIGXCPU or seconds >= limit["cpu"]
        return "time" if is_late else f"signal {number}", seconds, bytes(written)
    return "failed" if os.WEXITSTATUS(status) else "ended", seconds, bytes(written)


def run_alone(work: Callable[[], None], stdin: bytes, limit: dict[str, Any]) -> Found:
    """Do some work in a process of its own that has bytes to read."""
    given = os.memfd_create("stdin")
    write_all(given, stdin)
    os.lseek(given, 0, os.SEEK_SET)
    output, written = os.pipe()
    nowhere = os.open(os.devnull, os.O_RDWR)
    process = start(work, limit["cpu"], [given, written, nowhere])
    for fd in (given, written, nowhere):
        os.close(fd)
    return gather(process, output, limit)


def run_test(source: str, limit: dict[str, Any]) -> Found:
    """Serve a program in one process and make assertions on it in another."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    to_program, asked = os.pipe()
    answered, from_program = os.pipe()
    output, result = os.pipe()
    work = partial(serve_program, source)
    program = start(work, limit["cpu"], [to_program, from_program, nowhere])
    for fd in (to_program, from_program):
        os.close(fd)
    tests = start(make_assertions, limit["cpu"], [answered, result, nowhere, asked, 0])
    for fd in (answered, asked, result, nowhere):
        os.close(fd)
    status, seconds, written = gather(tests, output, limit)
    os.kill(program, signal.SIGKILL)
    _, ended, used = os.wait4(program, 0)
    seconds += used.ru_utime + used.ru_stime
    if os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGXCPU:
        status = "time"
    return status, seconds, written


def main() -> None:
    """Serve until stdin closes."""
    write_frame(1, READY)
    source, is_warm = "", False
    while True:
        try:
            command = json.loads(read_frame(0))
        except EOFError:
            return
        if command["do"] == "program":
            source = command["source"]
            continue
        limit = command["limit"]
        if command["do"] in ("call", "test") and not is_warm:
            prelude()  # once here, and not again in each process
            is_warm = True
        if command["do"] == "compile":
            found = run_alone(partial(compile_only, source), b"", limit)
        elif command["do"] == "read":
            found = run_alone(partial(run_script, source), read_frame(0), limit)
        elif command["do"] == "call":
            arguments = [decode(each) for each in command["arguments"]]
            found = run_alone(partial(run_call, source, command["name"], arguments), b"", limit)
        else:
            found = run_test(source, limit)
        status, seconds, written = found
        write_frame(1, json.dumps({"status": status, "seconds": seconds}).encode())
        write_frame(1, written)


if __name__ == "__main__":
    main()
