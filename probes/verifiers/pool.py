"""Judge many completions in worker processes that may hang, crash, or be killed.

A verifier runs foreign code on hostile text: a model's `9^{9^{9^9}}`, a user's function. So it runs
in processes of its own (`probes.verifiers.worker`), and one bad task costs that task's verdict and
no other's. A task that uses up its processor time, or many times as much of the clock, is
"timeout"; one whose worker dies is "crashed"; both have reward None. Tasks and answers are lines
of JSON on pipes; nothing is pickled.
"""

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from curate.errors import RunError, UsageError
from curate.files import CODE_ROOT
from probes.busy import usable_cores
from probes.verifiers.code import NOT_PYTHON, TESTS_FACTOR
from probes.verifiers.verdict import Verdict

__all__ = ["VerifierPool"]

TASKS_A_START = 4  # that wait for each worker before another is started
TASKS_AHEAD = 64  # given to a worker at once, so that it never waits
BYTES_AHEAD = 256 * 1024  # but not all of many long completions
CLOCK_FACTOR = 6  # clock time that a task may take, in units of its processor time
CODE_MARGIN = 120.0  # seconds to start a sandbox on a busy machine
START_SECONDS = 120.0  # to import SymPy, or a user's module, on a busy machine
START_ATTEMPTS = 10  # workers that may die in a row before they are ready
POLL_SECONDS = 0.5
# An answer seldom comes alone, and those of a millisecond are taken in as cheaply as one.
GATHER_SECONDS = 0.001
GOLD_CHARACTERS = 80

Pair = tuple[str, str] | tuple[str, str, str | None]
"""A completion, its gold answer, and the verifier where it may be another than the pool's."""


@dataclass(eq=False)
class _Worker:
    """One process, and the tasks given to it: the first of them is the one in hand."""

    process: "subprocess.Popen[bytes]"
    since: float  # when the task in hand was begun, or the process started; time.monotonic()
    state: Literal["starting", "ready", "retiring"] = "starting"
    tasks: deque[int] = field(default_factory=deque)
    to_send: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    killed_late: bool = False

    def send(self) -> None:
        """Write what the pipe takes."""
        assert self.process.stdin is not None
        # A broken pipe is a dead worker, and found as such.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self.to_send:
                written = os.write(self.process.stdin.fileno(), self.to_send[:65536])
                del self.to_send[:written]

    def receive(self) -> list[dict[str, Any]] | None:
        """The answers that have arrived; None once the process has closed its side."""
        assert self.process.stdout is not None
        try:
            data = os.read(self.process.stdout.fileno(), 65536)
        except BlockingIOError:
            return []
        if not data:
            return None
        self.received += data
        *lines, rest = self.received.split(b"\n")
        self.received = bytearray(rest)
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        """End the process now and give back its pipes."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class VerifierPool:
    """Workers that judge completions by one verifier; a context manager.

    Args:
        verifier: math, exact, numeric, choice, code, or MODULE:FUNCTION, found from the
            current folder.
        others: further ones that a pair may name.
        workers: how many processes; by default one for each processor that this process may use.
        seconds: processor time a completion may take, or one test of a program; six times as much
            by the clock.
        memory_gib: memory that a worker may take above what it holds at its start.
        pass_threshold: the reward of a user's function from which on a completion is correct; None:
            its maximum (`probes.verifiers.load.load_verifier`).
        explain: whether verdicts say what was compared and why they are what they are.

    Entering raises UsageError when the verifier cannot be loaded, with the reason, and RunError
    when ten workers in a row die before they are ready.
    """

    def __init__(
        self,
        verifier: str,
        *,
        others: Sequence[str] = (),
        workers: int | None = None,
        seconds: float = 5.0,
        memory_gib: float = 3.0,
        pass_threshold: float | None = None,
        explain: bool = False,
    ):
        self.verifier = verifier
        self.others = tuple(name for name in others if name != verifier)
        self.workers = workers or usable_cores()
        self.seconds = seconds
        self.memory_gib = memory_gib
        self.pass_threshold = pass_threshold
        self.explain = explain
        self.thresholds: dict[str, float] = {}
        """By verifier, the reward from which on a completion is correct; once it is entered."""
        self._clock = CLOCK_FACTOR * seconds
        if "code" in (verifier, *others):  # which ends a program's tests by itself
            self._clock = CLOCK_FACTOR * seconds * (TESTS_FACTOR + 2) + CODE_MARGIN
        self._pool: list[_Worker] = []
        self._failed_starts = 0

    def __enter__(self) -> Self:
        with self._none_left_behind():
            while not any(worker.state == "ready" for worker in self._pool):
                self._turn(deque(), [], lambda task, verdict: None)
        return self

    def __exit__(self, *_: object) -> None:
        self._kill_all()

    def judge(
        self, pairs: Sequence[Pair], on_progress: Callable[[int], None] | None = None
    ) -> list[Verdict]:
        """The verdict of each pair, in order; identical pairs are judged once.

        `on_progress` is called with the number of pairs judged so far. Raises RunError when
        workers no longer start.
        """
        places: dict[Pair, list[int]] = {}
        for place, pair in enumerate(pairs):
            places.setdefault(pair, []).append(place)
        tasks = list(places)
        verdicts: dict[int, Verdict] = {}
        done = 0

        def settle(task: int, verdict: Verdict) -> None:
            nonlocal done
            for place in places[tasks[task]]:
                verdicts[place] = verdict
            done += len(places[tasks[task]])
            if on_progress is not None:
                on_progress(done)

        waiting = deque(range(len(tasks)))
        with self._none_left_behind():
            while done < len(pairs):
                self._turn(waiting, tasks, settle)
        return [verdicts[place] for place in range(len(pairs))]

    def check_golds(
        self,
        golds: Sequence[str],
        on_progress: Callable[[int], None] | None = None,
        verifiers: Sequence[str | None] | None = None,
        solutions: Sequence[Sequence[str]] | None = None,
    ) -> list[str | None]:
        r"""None for each gold that the verifier accepts against itself, or one line saying why not.

        The completion is `\boxed{gold}`; a user's function is also tried with the bare gold.
        `verifiers` are those of the golds, None for the pool's. Tests of a program are tried on
        `solutions`, right programs that a dataset has for each gold, of which one must pass them.
        """
        names = [name or self.verifier for name in verifiers or [None] * len(golds)]
        answers = [place for place, name in enumerate(names) if name != "code"]
        verdicts = self.judge_golds(
            [golds[place] for place in answers], on_progress, [names[place] for place in answers]
        )
        found = self._check_tests(golds, names, solutions or [()] * len(golds))
        for place, verdict in zip(answers, verdicts, strict=True):
            found[place] = self._why_not(golds[place], names[place], verdict)
        if on_progress is not None:
            on_progress(len(golds))
        return found

    def _check_tests(
        self, golds: Sequence[str], names: Sequence[str], solutions: Sequence[Sequence[str]]
    ) -> list[str | None]:
        """Why none of the right programs of a gold passes its tests; None where one does."""
        found: list[str | None] = [None] * len(golds)
        left = [place for place, name in enumerate(names) if name == "code"]
        for turn in range(max(map(len, solutions), default=0)):
            left = [place for place in left if len(solutions[place]) > turn]
            pairs = [(solutions[place][turn], golds[place], "code") for place in left]
            tried = dict(zip(left, self.judge(pairs), strict=True))
            left = [place for place in left if not tried[place].is_correct]
            for place, verdict in tried.items():
                if verdict.is_correct:
                    found[place] = None
                elif verdict.reward is None:
                    found[place] = f"code verifier {_shown(verdict.reason or '', 200)}"
                elif verdict.verdict == "wrong" and verdict.reason != NOT_PYTHON:
                    reason = _shown(verdict.reason or "", 200)
                    found[place] = f"its own solution does not pass its tests: {reason}"
        return found

    def judge_golds(
        self,
        golds: Sequence[str],
        on_progress: Callable[[int], None] | None = None,
        verifiers: Sequence[str] | None = None,
    ) -> list[Verdict]:
        r"""The verdict on each gold against itself; see `check_golds`."""
        names = verifiers or [self.verifier] * len(golds)
        asked = list(zip(golds, names, strict=True))
        verdicts = self.judge([(rf"\boxed{{{gold}}}", gold, of) for gold, of in asked], on_progress)
        again = [n for n, found in enumerate(verdicts) if ":" in names[n] and not found.is_correct]
        bare = self.judge([(golds[place], golds[place], names[place]) for place in again])
        for place, verdict in zip(again, bare, strict=True):
            if verdict.verdict != "wrong":  # accepted, or a better reason than "not accepted"
                verdicts[place] = verdict
        return verdicts

    def _why_not(self, gold: str, verifier: str, verdict: Verdict) -> str | None:
        if verdict.is_correct:
            return None
        reason = verdict.reason if verdict.reward is None else None
        reason = reason or "does not accept it against itself"
        return f"{verifier} verifier {_shown(reason, 200)}; gold '{_shown(gold)}'"

    # --- the processes ----------------------------------------------------------------------------

    def _start(self) -> _Worker:
        # Where this package is imported from; -P keeps a user's folder from shadowing it.
        paths = [str(CODE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        threshold = self.pass_threshold
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "probes.verifiers.worker"),
                *(f"--seconds={self.seconds}", f"--memory-gib={self.memory_gib}"),
                *([] if threshold is None else [f"--pass-threshold={threshold!r}"]),
                *(["--explain"] if self.explain else []),
                *("--", self.verifier, *self.others),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        return _Worker(process, time.monotonic())

    def _turn(
        self,
        waiting: deque[int],
        tasks: Sequence[Pair],
        settle: Callable[[int, Verdict], None],
    ) -> None:
        """Hand out tasks, wait a little for the workers, and take in what they did."""
        while len(self._pool) < min(self.workers, max(1, len(waiting) // TASKS_A_START)):
            self._pool.append(self._start())
        for worker in self._pool:
            if worker.state == "ready" and worker.process.poll() is None:
                _fill(worker, waiting, tasks, share=math.ceil(len(waiting) / len(self._pool)))
        _wait(self._pool)
        for worker in list(self._pool):
            # Asked before reading: what it wrote before it died is read below. And not only its
            # pipe's end tells: a child that a user's function left behind can hold that open.
            dead = worker.process.poll() is not None
            while answers := worker.receive():
                for answer in answers:
                    self._take(worker, answer, settle)
            if dead or answers is None:
                self._bury(worker, waiting, settle)
            else:
                self._end_if_late(worker)

    def _take(
        self, worker: _Worker, answer: dict[str, Any], settle: Callable[[int, Verdict], None]
    ) -> None:
        if "failed" in answer:
            raise UsageError(answer["failed"])
        worker.since = time.monotonic()
        if "ready" in answer:
            worker.state = "ready"
            self.thresholds = answer["thresholds"]
            self._failed_starts = 0
            return
        task = worker.tasks.popleft()
        assert task == answer.pop("id"), "a worker answers in the order it was asked"
        if answer.pop("retiring"):
            worker.state = "retiring"  # the tasks it still holds go to another
        settle(task, Verdict(**{"reward": None, **answer}))

    def _end_if_late(self, worker: _Worker) -> None:
        limit = START_SECONDS if worker.state == "starting" else self._clock
        idle = worker.state == "ready" and not worker.tasks
        if not idle and time.monotonic() - worker.since > limit:
            worker.killed_late = True
            worker.process.kill()

    def _bury(
        self, worker: _Worker, waiting: deque[int], settle: Callable[[int, Verdict], None]
    ) -> None:
        """Give a dead worker's tasks back, all but the one that it died of."""
        worker.kill()
        self._pool.remove(worker)
        if worker.state == "ready" and worker.tasks:
            settle(worker.tasks.popleft(), self._epitaph(worker))
        waiting.extendleft(reversed(worker.tasks))
        if worker.state == "starting":
            self._failed_starts += 1
            if self._failed_starts >= START_ATTEMPTS:
                how = _how_it_ended(worker.process.returncode)
                raise RunError(f"{START_ATTEMPTS} verifier workers in a row died at start ({how})")

    def _epitaph(self, worker: _Worker) -> Verdict:
        if worker.killed_late:
            limit = f"took more than {self._clock:g} s by the clock"
            return Verdict(None, "timeout", None, limit)
        if worker.process.returncode == -signal.SIGVTALRM:
            return Verdict(None, "timeout", None, f"took more than {self.seconds:g} s")
        how = _how_it_ended(worker.process.returncode)
        return Verdict(None, "crashed", None, f"died ({how})")

    @contextlib.contextmanager
    def _none_left_behind(self) -> Iterator[None]:
        """Whatever interrupts the work, Ctrl-C included, no worker goes on with half of it."""
        try:
            yield
        except BaseException:
            self._kill_all()
            raise

    def _kill_all(self) -> None:
        while self._pool:
            self._pool.pop().kill()


def _fill(worker: _Worker, waiting: deque[int], tasks: Sequence[Pair], share: int) -> None:
    if not worker.tasks:
        worker.since = time.monotonic()
    while (
        waiting
        and len(worker.tasks) < min(TASKS_AHEAD, share)
        and len(worker.to_send) < BYTES_AHEAD
    ):
        task = waiting.popleft()
        completion, gold, *named = tasks[task]
        asked: dict[str, Any] = {"id": task, "completion": completion, "gold": gold}
        if named and named[0]:
            asked["verifier"] = named[0]
        line = json.dumps(asked)
        worker.tasks.append(task)
        worker.to_send += line.encode() + b"\n"
    worker.send()


def _wait(pool: Sequence[_Worker]) -> None:
    """Wait until a worker can be read or written, or for half a second."""
    with selectors.DefaultSelector() as selector:
        for worker in pool:
            assert worker.process.stdin is not None and worker.process.stdout is not None
            selector.register(worker.process.stdout, selectors.EVENT_READ)
            if worker.to_send:
                selector.register(worker.process.stdin, selectors.EVENT_WRITE)
        if selector.select(POLL_SECONDS):
            time.sleep(GATHER_SECONDS)


def _how_it_ended(status: int) -> str:
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}"


def _shown(text: str, most: int = GOLD_CHARACTERS) -> str:
    """On one line and not too long."""
    text = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
