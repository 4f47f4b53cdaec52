"""`curate doctor --try`: this machine's devices at work on a small model, each check told.

The checks run in a process of their own (`probes.doctor.checks`), since what is broken may end its
process, and a GPU that has failed once fails at whatever comes next: then another process goes on
with the rest. Nothing that could be broken is imported here.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from curate.files import CODE_ROOT
from probes.doctor.finding import lines_of

NAMES = (
    *("model", "sampling", "same again", "verifying", "re-scoring", "gradients"),
    *("training step", "longest"),
)
"""The checks, in order. Each works on made rollouts where sampling gave none."""
MARK = "tried "
"""What the lines of the other process begin with; others are a library's."""
SECONDS = 120.0
"""For all checks but the first, together."""
_START_SECONDS = 900.0  # to import the libraries and load a model, which may be read from a network
_MOST_CHARACTERS = 300
_SMALLER = (
    "close what else runs here, begin with OMP_NUM_THREADS=1 where others are at work, or give a "
    "smaller --model"
)


@dataclass(frozen=True)
class Tried:
    """One thing that was tried.

    Attributes:
        about: what, one of `NAMES`.
        passed: whether it gave what it must.
        text: what was found.
        remedy: what to do where it failed.
        numbers: what was measured, by name.
    """

    about: str
    passed: bool
    text: str
    remedy: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)

    def text_lines(self) -> str:
        """Write it for a terminal, the remedy on a line below."""
        return lines_of("passed" if self.passed else "failed", self.about, self.text, self.remedy)


def try_machine(
    model: str = "",
    *,
    trust_remote_code: bool = False,
    tell: Callable[[Tried], None] | None = None,
    begins: Callable[[str], None] | None = None,
) -> list[Tried]:
    """Try all of `NAMES`, in order.

    Args:
        model: as `curate tag` takes it; empty: a small one made in code.
        trust_remote_code: run Python code that comes with the model.
        tell: is called with each check that is over.
        begins: is called with the name of each check as it begins.
    """
    tries = _Tries(model, trust_remote_code, tell or (lambda one: None), begins or (lambda _: None))
    while tries.left:
        tries.run_process()
    return tries.found


class _Tries:
    """The checks that are left, and what was found of the others."""

    def __init__(
        self,
        model: str,
        trust_remote_code: bool,
        tell: Callable[[Tried], None],
        begins: Callable[[str], None],
    ) -> None:
        self.asked = {"model": model, "trust_remote_code": trust_remote_code}
        self.tell, self.begins = tell, begins
        self.left = list(NAMES)
        self.found: list[Tried] = []
        self._seconds = SECONDS

    def run_process(self) -> None:
        """Run what is left in one process, as far as that gets."""
        paths = [str(CODE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "probes.doctor.checks"),
                    json.dumps({**self.asked, "names": self.left}),
                ],
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
            watch = _Watch(process)
            try:
                self._follow(process, watch, errors)
            finally:
                watch.end()
                process.kill()
                process.wait()

    def _follow(self, process: subprocess.Popen[bytes], watch: _Watch, errors: IO[bytes]) -> None:
        watch.allow(_START_SECONDS)
        in_hand, has_tried = "", False
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith(MARK.encode()):
                continue
            said: dict[str, Any] = json.loads(line[len(MARK) :])
            if "begins" in said:
                in_hand = said["begins"]
                self.begins(in_hand)
                if in_hand != NAMES[0] and not watch.is_last:
                    watch.allow(self._seconds, is_last=True)
            else:
                in_hand, has_tried = "", True
                self._settle(Tried(**said))
        status = process.wait()
        if watch.was_late:
            self._give_up(in_hand)
        elif status and (in_hand or not has_tried):
            why = f"it ended its process ({_how(status)}){_last_line(errors)}"
            remedy = "install the versions that were tested (`versions` above names them)"
            self._settle(Tried(in_hand or self.left[0], False, why, remedy))
            # Where nothing began, nothing would the next time.
            for about in [] if in_hand else [*self.left]:
                self._settle(Tried(about, False, "it was not reached", "see above"))

    def _give_up(self, in_hand: str) -> None:
        limit = f"{SECONDS:.0f} s"
        if not in_hand or in_hand == NAMES[0]:
            limit = f"{_START_SECONDS / 60:.0f} minutes"
        for about in [*self.left]:
            text = "it was not over" if about == in_hand else "it was not reached"
            self._settle(Tried(about, False, f"{text} within {limit}", _SMALLER))

    def _settle(self, tried: Tried) -> None:
        self.left.remove(tried.about)
        self.found.append(tried)
        self.tell(tried)


class _Watch:
    """Ends a process that takes too long."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.was_late = self.is_last = False
        self._process = process
        self._timer: threading.Timer | None = None

    def allow(self, seconds: float, *, is_last: bool = False) -> None:
        """Give it so much from now on."""
        self.end()
        self.is_last = is_last
        self._timer = threading.Timer(seconds, self._stop)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Watch no more."""
        if self._timer:
            self._timer.cancel()

    def _stop(self) -> None:
        self.was_late = True
        self._process.kill()


def _how(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _last_line(errors: IO[bytes]) -> str:
    """What the process said last."""
    with contextlib.suppress(OSError):
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:_MOST_CHARACTERS]}" if lines else ""
    return ""


def tried_facts(found: list[Tried]) -> list[dict[str, Any]]:
    """The checks in plain values."""
    facts = [asdict(one) for one in found]
    for one in facts:
        # What is not a number has no place in JSON.
        one["numbers"] = {n: v if math.isfinite(v) else None for n, v in one["numbers"].items()}
    return facts
