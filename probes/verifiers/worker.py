"""The process that judges: `python -m probes.verifiers.worker NAME ... [--seconds S]
[--memory-gib G] [--pass-threshold X] [--explain]`.

It reads one JSON object a line on stdin, `{"id", "completion", "gold"}`, with `"verifier"` where it
is not the first that was named, and answers one a line, in the same order: `{"id", "reward",
"verdict", "answer_found", "reason", "answer_read", "gold_read"}` without those that are null, and
`"retiring"`, true on its last when it then ends by itself. Its first line is `{"ready": true,
"thresholds": {NAME: X}}` with the rewards from which on a completion is correct, or `{"failed":
why}` where a verifier cannot be loaded. With `--explain` every verdict says why.
`probes.verifiers.pool` is the other side.

Each task has `S` seconds of processor time, not of the clock, so that a busy machine does not
change a verdict; a task that sleeps is the other side's to end. Memory is bounded to what the
process holds once the verifier is loaded, and `G` GiB more. The process ends when stdin closes,
and on Linux as soon as its parent dies.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import json
import os
import resource
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from curate.errors import UsageError
from probes.verifiers.explain import explaining
from probes.verifiers.load import (
    Verdict,
    VerifierFunction,
    check_threshold,
    load_verifier,
    reward_threshold,
)

# `dataclasses.asdict` copies deeply, which costs as much as a verdict.
_FIELDS = [field.name for field in dataclasses.fields(Verdict)]


class _OutOfTime(BaseException):
    """Not an Exception: math-verify and users' functions swallow those."""


class _ProcessorTime:
    """Raises _OutOfTime within the block once it has used `seconds` of processor time.

    It raises again every half second, for code that swallows it. Where no Python code runs (a
    long multiplication of integers in C), twice the time ends the process by SIGVTALRM.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.running = False
        signal.signal(signal.SIGPROF, self._expired)
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)

    def _expired(self, _signal: int, _frame: FrameType | None) -> None:
        if self.running:
            raise _OutOfTime

    def __enter__(self) -> None:
        self.running = True
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 * self.seconds + 1)
        signal.setitimer(signal.ITIMER_PROF, self.seconds, 0.5)

    def __exit__(self, *_: object) -> None:
        # The timers stay: they stand still while the process waits, and the next block sets them.
        self.running = False


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Stdin and stdout for the protocol alone.

    What a user's function prints goes to stderr, and what it reads is empty.
    """
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return tasks, answers


def _die_with_parent() -> None:
    """Ask Linux to kill this process with its parent, even in the middle of a long call."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        with contextlib.suppress(OSError, AttributeError):  # stdin's end is there all the same
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _bound_memory(gib: float) -> None:
    """Let the address space grow by so much from here; where Linux does not say, from nothing."""
    pages = 0
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(gib * 2**30)
    with contextlib.suppress(OSError, ValueError):  # a lower limit is in force
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is a verdict, not a core file


def _judge(
    verifiers: Mapping[str, VerifierFunction], task: dict[str, str], limit: _ProcessorTime
) -> Verdict:
    verifier = verifiers[task.get("verifier") or next(iter(verifiers))]
    try:
        with limit:
            return verifier(task["completion"], task["gold"])
    except _OutOfTime:
        return Verdict(None, "timeout", None, f"took more than {limit.seconds:g} s")
    except MemoryError:
        return Verdict(None, "error", None, "ran out of memory")
    except Exception as error:  # noqa: BLE001 (the verifier's edge; recorded in the verdict)
        return Verdict(None, "error", None, f"{type(error).__name__}: {error}"[:200])


def _serve(
    verifiers: Mapping[str, VerifierFunction],
    tasks: Iterable[bytes],
    answers: BinaryIO,
    seconds: float,
) -> None:
    limit = _ProcessorTime(seconds)
    for line in tasks:
        task = json.loads(line)
        verdict = _judge(verifiers, task, limit)
        # Cut off anywhere, SymPy's and ANTLR's caches may be left half written.
        retiring = verdict.verdict == "timeout" or verdict.reason == "ran out of memory"
        answer = {
            "id": task["id"],
            **{n: value for n in _FIELDS if (value := getattr(verdict, n)) is not None},
            "retiring": retiring,
        }
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
        if retiring:
            break


def main() -> None:
    """Serve until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent handles it
    _die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m probes.verifiers.worker")
    parser.add_argument("names", nargs="+", help="math, exact, numeric, choice, MODULE:FUNCTION")
    parser.add_argument("--seconds", type=float, default=5.0, help="processor time a task")
    parser.add_argument("--memory-gib", type=float, default=3.0, help="memory above the start's")
    parser.add_argument("--pass-threshold", type=float, help="from which on a reward is correct")
    parser.add_argument("--explain", action="store_true", help="say what was compared, and why")
    options = parser.parse_args()
    tasks, answers = _private_pipes()
    if any(":" in name for name in options.names):
        sys.path.insert(0, str(Path.cwd()))
    try:
        check_threshold(options.names, options.pass_threshold)
        # It is of users' functions; others give 0 and 1.
        of = {name: options.pass_threshold if ":" in name else None for name in options.names}
        verifiers = {name: load_verifier(name, of[name]) for name in options.names}
        thresholds = {name: reward_threshold(name, of[name]) for name in options.names}
    except UsageError as error:
        answers.write(json.dumps({"failed": str(error)}).encode() + b"\n")
        answers.flush()
        return
    if options.explain:
        verifiers = {name: explaining(name, verifiers[name], of[name]) for name in verifiers}
    if "math" in verifiers:
        # Imports SymPy, and math-verify's patterns, before the limits hold.
        verifiers["math"](r"so $x + 1$", "1 - x")
    _bound_memory(options.memory_gib)
    answers.write(json.dumps({"ready": True, "thresholds": thresholds}).encode() + b"\n")
    answers.flush()
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        _serve(verifiers, tasks, answers, options.seconds)


if __name__ == "__main__":
    main()
    # A user's function may have left threads behind; nothing here needs an orderly end.
    os._exit(0)
