"""Progress on stderr."""

import io
import time

import pytest

from curate.progress import Progress


def test_time_left_is_told_once_some_of_the_work_is_finished() -> None:
    progress = Progress("sampling", 1000, "rollouts", stream=io.StringIO())
    now = time.monotonic()
    progress.advance(1)
    assert "left" not in progress.line(now + 15)
    assert progress.line(now + 25).endswith(" left")  # 20 s after the first.
    progress.advance(29)
    assert "30 of 1,000 rollouts, " in progress.line(now + 10)
    assert progress.line(now + 10).endswith(" left")


def test_the_caller_may_know_better_how_long_it_takes() -> None:
    progress = Progress("sampling", 100, "rollouts", stream=io.StringIO())
    now = time.monotonic()
    progress.advance(10)
    assert progress.line(now + 60).endswith(", 9 min 0 s left")
    progress.seconds_left = 61
    assert progress.line(now + 60).endswith(", 1 min 1 s left")


def test_what_was_done_before_does_not_count() -> None:
    progress = Progress("sampling", 1000, "rollouts", done=500, stream=io.StringIO())
    progress.advance(5)
    assert "left" not in progress.line(time.monotonic() + 5)


def test_it_shows_itself_while_nothing_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress = Progress("trying", None, "rollouts", stream=stream)
    progress.tick("1 s of at most 60 s")
    assert stream.getvalue() == ""
    start = time.monotonic()
    monkeypatch.setattr("curate.progress.time.monotonic", lambda: start + 11)
    progress.tick("11 s of at most 60 s")
    assert stream.getvalue() == "trying: 0 rollouts, 0/s, 11 s of at most 60 s\n"
