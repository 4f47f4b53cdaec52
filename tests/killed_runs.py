"""Runs that are killed with kill -9 at a chosen moment.

A driver runs `curate` in a process of its own and stops for good at a chosen call of a chosen
function, so that the kill falls into the same moment every time.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from probes import tagging
from tests.tag_runs import ROOT, small_command

DRIVER = """
import importlib, pathlib, sys, time
from probes import tagging
from curate.cli import main

module, function, call, *arguments = sys.argv[1:]
%s
real, calls = getattr(importlib.import_module(module), function), 0

def stopping(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(call):
        pathlib.Path("stopped").touch()
        time.sleep(600)
    return real(*args, **kwargs)

setattr(importlib.import_module(module), function, stopping)
sys.exit(main(arguments))
"""


def run_until_killed(
    folder: Path,
    moment: tuple[str, str, int],
    *arguments: object,
    before: str = "",
    command: Callable[..., list[str]] = small_command,
) -> list[int]:
    """Run `curate tag` until the moment (module, function, which call of it), then kill -9.

    Args:
        folder: where it runs.
        moment: when it is killed.
        arguments: of `curate tag`; the small settings where they name no others.
        before: a line of Python to be run first; else shards are as large as in this process.
        command: makes the command line of the arguments; `curate_command` for another command.

    Returns:
        the processes that it had started itself.
    """
    driver = folder / "driver.py"
    driver.write_text(DRIVER % (before or f"tagging._SHARD_TOKENS = {tagging._SHARD_TOKENS!r}"))
    process = subprocess.Popen(
        [sys.executable, driver, *map(str, moment), *map(str, command(*arguments)[3:])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 600
        while not (folder / "stopped").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        started = _children(process.pid)
    finally:
        process.kill()
        process.communicate()
    (folder / "stopped").unlink()
    assert process.returncode == -9
    return started


def _children(process: int) -> list[int]:
    """The processes below a process, of all generations."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [pid for child in map(int, children) for pid in (child, *_children(child))]


def is_running(process: int) -> bool:
    return Path(f"/proc/{process}").exists()
