"""Progress with rate and time left: one rewritten line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_TERMINAL_EVERY = 0.2
_PLAIN_EVERY = 10.0
# Until as much is finished, or so many seconds after the first, time left is no more than noise:
# what runs at once finishes together.
_TELLING_SHARE = 0.03
_TELLING_SECONDS = 20.0


def say(text: str) -> None:
    """Tell the user something beside the results, which go to standard output."""
    print(text, file=sys.stderr, flush=True)


def clear() -> None:
    """Clear the line of a progress that is being shown, to print something else."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


class Progress:
    """Counts one stage's work and tells rate and time left on stderr.

    Args:
        label: the stage, such as `sampling`.
        total: units of work in all; None where it is not known.
        unit: what is counted, such as `rollouts`.
        done: units that an earlier run had finished; they count as done but not in the rate.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str,
        *,
        done: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = done
        self.note = ""
        self._first = done
        self._first_finished: float | None = None
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._start = self._shown = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start, above 0."""
        return max(time.monotonic() - self._start, 1e-9)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished work, and show it when it is time to."""
        self.done += count
        if count and self._first_finished is None:
            self._first_finished = time.monotonic()
        self.tick(note)

    def tick(self, note: str = "") -> None:
        """Show it when it is time to, though nothing more was finished."""
        self.note = note or self.note
        now = time.monotonic()
        if now - self._shown >= (_TERMINAL_EVERY if self._terminal else _PLAIN_EVERY):
            self._shown = now
            self._show(now)

    def skip(self, count: int) -> None:
        """Count work that turns out to be done already; it does not count in the rate."""
        self.done += count
        self._first += count

    def reach(self, done: int) -> None:
        """Say how much is done in all."""
        self.advance(done - self.done)

    def line(self, now: float) -> str:
        """Return what is shown at a moment of `time.monotonic`."""
        rate = (self.done - self._first) / max(now - self._start, 1e-9)
        text = f"{self.label}: {self.done:,}"
        if self.total is not None:
            text += f" of {self.total:,}"
        text += f" {self.unit}, {_rate(rate)}"
        if self.total is not None and rate > 0 and self._tells_time_left(now):
            text += f", {duration((self.total - self.done) / rate)} left"
        return text + (f", {self.note}" if self.note else "")

    def _tells_time_left(self, now: float) -> bool:
        assert self.total is not None
        if self.done - self._first >= _TELLING_SHARE * (self.total - self._first):
            return True
        first = self._first_finished
        return first is not None and now - first >= _TELLING_SECONDS

    def _show(self, now: float) -> None:
        text = self.line(now)
        self._stream.write(f"\r\x1b[K{text}" if self._terminal else f"{text}\n")
        self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._terminal:
            self._stream.write("\r\x1b[K")
        if kind is None:
            taken = duration(time.monotonic() - self._start)
            self._stream.write(f"{self.label}: {self.done:,} {self.unit} in {taken}\n")
        self._stream.flush()


def _rate(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


def duration(seconds: float) -> str:
    """Write a time span as a person would: `4 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
