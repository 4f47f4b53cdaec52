"""Hostile programs in the real sandbox: each costs its own test, and none says that it passed."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from probes.verifiers.guest.assertions import PASSED
from probes.verifiers.sandbox import Outcome, Sandbox, SandboxError, why_no_sandbox

_MISSING = why_no_sandbox()
pytestmark = pytest.mark.skipif(_MISSING is not None, reason=f"no sandbox here: {_MISSING}")

SECONDS = 1.0


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    before = _children()
    yield
    until = time.monotonic() + 5
    while _children() - before and time.monotonic() < until:
        time.sleep(0.02)
    assert not _children() - before


def _children() -> set[int]:
    """The sandboxes that this process has started."""
    found = set()
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == os.getpid() and b"guest.serve" in command:
            found.add(int(folder.name))
    return found


def script(source: str, stdin: str = "", most: int = 10_000) -> Outcome:
    with Sandbox(source, SECONDS) as sandbox:
        return sandbox.read(stdin.encode(), most)


def refused(attempt: str) -> None:
    """An attempt that must end in an OSError, seen from a program that goes on."""
    found = script(
        f"import os\ntry:\n    {attempt}\n    print('done')\nexcept OSError:\n    print('refused')"
    )
    assert (found.status, found.output) == ("ended", b"refused\n")


def test_a_program_reads_and_writes() -> None:
    found = script("name = input()\nprint('hello', name)\nexit()", "you\n")
    assert (found.status, found.output) == ("ended", b"hello you\n")


def test_a_program_may_use_threads_and_files_of_its_own() -> None:
    found = script(
        "import threading, sys\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**27)\n"
        "def main():\n    open('/tmp/x', 'w').write('in a file')\n    print(open('x').read())\n"
        "t = threading.Thread(target=main)\nt.start()\nt.join()"
    )
    assert (found.status, found.output) == ("ended", b"in a file\n")


@pytest.mark.parametrize(
    "attempt",
    [
        "os.fork()",
        "os.system('true') and (_ for _ in ()).throw(OSError())",
        "os.execv('/proc/self/exe', ['x'])",
        "__import__('subprocess').run(['ls'])",
        "__import__('socket').socket()",
        "__import__('socket').create_connection(('127.0.0.1', 80))",
        "__import__('socket').socket(40, 1)",
        "open('/etc/passwd')",
        "open('/etc/hostname')",
        "os.listdir('/home')",
        "os.listdir('/proc')",
        "os.listdir('/sys')",
        "open('/root/.bashrc')",
        "open('/out', 'w')",
        "open('/code/probes/verifiers/guest/serve.py', 'w')",
        "os.mkdir('/usr/x')",
        "os.memfd_create('x')",
        "os.chroot('/tmp')",
        "os.kill(1, 9) or (_ for _ in ()).throw(OSError())",
    ],
)
def test_what_a_program_must_not_do_is_refused(attempt: str) -> None:
    refused(attempt)


def test_a_program_may_have_many_threads() -> None:
    found = script(
        "import threading, time\nthreads = [threading.Thread(target=time.sleep, args=(0.1,)) "
        "for _ in range(64)]\nfor each in threads: each.start()\n"
        "for each in threads: each.join()\nprint(len(threads))"
    )
    assert found.output == b"64\n"


def test_the_machines_environment_is_not_there() -> None:
    found = script("import os\nprint(sorted(os.environ), os.getcwd(), os.uname().nodename)")
    assert found.output.decode().endswith("/tmp sandbox\n")
    assert "PATH" not in found.output.decode().replace("LD_LIBRARY_PATH", "").replace(
        "PYTHONPATH", ""
    )


def test_a_fork_bomb_costs_its_own_test() -> None:
    found = script("import os\nwhile True:\n    os.fork()")
    assert found.status == "failed"


def test_a_bomb_of_threads_is_bounded() -> None:
    found = script(
        "import threading, time\nthreading.stack_size(32768)\nn = 0\ntry:\n    while True:\n"
        "        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()\n"
        "        n += 1\nexcept (RuntimeError, MemoryError):\n    print('bounded', n < 40_000)\n"
    )
    assert found.output in (b"bounded True\n", b"")
    assert found.status in ("ended", "time", "clock")


@pytest.mark.parametrize(
    "source",
    [
        "x = []\nwhile True:\n    x.append(bytearray(2**24))",
        "x = 'a' * 2**40",
        "import mmap\nx = [mmap.mmap(-1, 2**28) for _ in range(100)]",
    ],
)
def test_memory_is_bounded(source: str) -> None:
    assert script(source).status == "failed"


@pytest.mark.parametrize(
    "source",
    [
        "with open('/tmp/big', 'wb') as f:\n    while True:\n        f.write(bytes(2**20))",
        "n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{n}', 'wb').write(bytes(2**23))",
    ],
)
def test_the_disk_is_bounded(source: str) -> None:
    assert script(source).status == "failed"


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "try:\n    while True: pass\nexcept BaseException:\n    while True: pass",
    ],
)
def test_a_program_that_never_ends_is_ended(source: str) -> None:
    began = time.monotonic()
    assert script(source).status == "time"
    assert time.monotonic() - began < 60


def test_a_program_that_sleeps_is_ended_by_the_clock() -> None:
    with Sandbox("import time, os\nos.close(1)\ntime.sleep(1000)", 0.2) as sandbox:
        assert sandbox.read(b"", 100).status == "clock"


def test_a_flood_of_output_is_cut() -> None:
    found = script("while True: print('x' * 10_000)", most=50_000)
    assert found.status == "output"
    assert len(found.output) < 200_000


def test_errors_are_not_output() -> None:
    found = script("import sys\nwhile True:\n    sys.stderr.write('x' * 10_000)")
    assert (found.status, found.output) == ("time", b"")


@pytest.mark.parametrize("kill", ["9", "19"])
def test_a_program_that_ends_or_stops_its_parent_ends_its_own_sandbox(
    kill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probes.verifiers.sandbox.CLOCK_MARGIN", 1.0)
    with Sandbox(f"import os\nos.kill(os.getppid(), {kill})\nprint(1)", 0.2) as sandbox:
        assert sandbox.read(b"", 100).status == "gone"
        assert sandbox.read(b"", 100).status == "gone"


def test_killing_everything_ends_its_own_sandbox() -> None:
    with Sandbox("import os\nos.kill(-1, 9)", SECONDS) as sandbox:
        assert sandbox.read(b"", 100).status in ("gone", "signal 9")


@pytest.mark.parametrize("status", ["0", "None", ""])
def test_leaving_early_is_no_error_and_gives_no_output(status: str) -> None:
    found = script(f"import sys\nsys.exit({status})\nprint('never')")
    assert (found.status, found.output) == ("ended", b"")


@pytest.mark.parametrize("source", ["import sys\nsys.exit(3)", "1 / 0", "import os\nos.abort()"])
def test_ending_in_an_error_is_told(source: str) -> None:
    assert script("print(4)\n" + source).status in ("failed", "signal 6")


def test_every_test_starts_anew() -> None:
    with Sandbox("import json\nprint(hasattr(json, 'seen'))\njson.seen = 1", SECONDS) as sandbox:
        assert [sandbox.read(b"", 100).output for _ in range(3)] == [b"False\n"] * 3


# --- Forged verdicts ----------------------------------------------------------------------------

FORGERS = [
    "import os\nprint('passed', flush=True)\nos._exit(0)",
    "import os\nos.write(1, b'passed')\nos._exit(0)",
    "import os\nfor fd in range(3, 60):\n    try: os.write(fd, b'passed')\n"
    "    except OSError: pass\nos._exit(0)",
    "import sys\nsys.exit(0)",
    "import os, builtins\nbuiltins.AssertionError = None\n"
    "builtins.compile = lambda *a: 'pass'\n"
    "builtins.exec = lambda *a: None\nos._exit = lambda *a: None\ndef f(x): return 'wrong'",
    'import json\njson.dumps = lambda *a, **k: \'{"value": 4, "arguments": {"l": [1]}}\'\n'
    "def f(x): return 4",
    "class Same(int):\n    def __eq__(self, other): return True\n"
    "    def __ne__(self, other): return False\ndef f(x): return Same(3)",
    "class Same:\n    def __eq__(self, other): return True\n"
    "    def __ne__(self, other): return False\ndef f(x): return Same()",
    "def f(x): return 3\ndef set(x): return 1\ndef abs(x): return 0\ndef len(x): return 0",
    "def f(x): return 3\ndef Counter(x): return 1",
    "import os, sys\nfor n, m in list(sys.modules.items()):\n    if hasattr(m, 'PASSED'):\n"
    "        m.PASSED = b''\n        m._make_all = lambda *a: None\ndef f(x): return 3",
    "import os\nos.kill(os.getppid(), 9)",
    "import os\nfor n in range(2, 30):\n    if n != os.getpid():\n        try: os.kill(n, 9)\n"
    "        except OSError: pass\ndef f(x): return 3",
    "import gc\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and "
    "'source' in o and 'assert' in str(o.get('source')): return 5\n    return 3",
    "import inspect\ndef f(x):\n    return 5 if any('assert' in str(i.code_context) for i in "
    "inspect.stack()) else 3",
]


@pytest.mark.parametrize("source", FORGERS)
def test_a_forged_verdict_is_none(source: str) -> None:
    with Sandbox(source, SECONDS) as sandbox:
        found = sandbox.test("assert f(1) == 5\n", "")
        assert not (found.status == "ended" and found.output == PASSED), found
        compared = "assert len(set([f(1)]) - {5}) == 0 and Counter([f(1)]) == Counter([5])"
        again = sandbox.test(f"def test_it():\n    {compared}\n", "test_it")
        assert not (again.status == "ended" and again.output == PASSED), again


def test_what_tests_assert_is_not_where_the_program_runs() -> None:
    seen = (
        "def f(x):\n    import gc\n    wanted = 'secret-' + str(5)\n    return any("
        "wanted in repr(o) for o in gc.get_objects() if isinstance(o, (dict, list, tuple, set)))"
    )
    with Sandbox(seen, 10.0) as sandbox:
        for _ in range(2):
            found = sandbox.test("x = 'secret' + '-5'; y = 'secret-5'\nassert f(1) is False", "")
            assert (found.status, found.output) == ("ended", PASSED)


# --- What tests can do --------------------------------------------------------------------------

PROGRAM = """
import math

LIMIT = 7

class Bag(list):
    put = list.append

class Point(NamedTuple):
    x: int
    y: int

class TooMuch(ValueError):
    pass

class Stack:
    def __init__(self, items=()):
        self.items = list(items)
    def push(self, item):
        if len(self.items) >= LIMIT:
            raise TooMuch("full", LIMIT)
        self.items.append(item)
        return self
    def __len__(self):
        return len(self.items)
    def __getitem__(self, place):
        return self.items[place]
    def __eq__(self, other):
        return isinstance(other, Stack) and self.items == other.items
    def __add__(self, other):
        return Stack(self.items + other.items)
    @property
    def top(self):
        return self.items[-1]

def pair(x): return (x, [x, {x}], {x: None}, b"b", 1.5, 2j)
def sort(items): items.sort()
def squares(n):
    for k in range(n):
        yield k * k
def half(x): return x / 3
def root(x): return math.sqrt(x)
"""

ASSERTIONS = [
    "assert pair(1) == (1, [1, {1}], {1: None}, b'b', 1.5, 2j)",
    "assert isinstance(pair(1), tuple) and not isinstance(pair(1), list)",
    "x = [3, 1, 2]\nassert sort(x) is None and x == [1, 2, 3]",
    "assert list(squares(4)) == [0, 1, 4, 9] and sum(squares(3)) == 5",
    "assert math.isclose(half(1), 1 / 3) and LIMIT == 7",
    "from solution import *\nimport pytest\nassert half(1) == pytest.approx(0.3333333, rel=1e-3)\n"
    "assert half(1) != pytest.approx(0.4)",
    "s = Stack()\ns.push(1).push(2)\nassert len(s) == 2 and s[0] == 1 and s.top == 2\n"
    "assert s.items == [1, 2] and Counter(s.items) == Counter([2, 1])",
    "assert Stack([1]) + Stack([2]) == Stack([1, 2]) and Stack([1]) != Stack() and Stack() != 3",
    "b = Bag([1])\nb.put(2)\nassert b == [1, 2] and [1, 2] == b and b != [1] and b[1] == 2",
    "p = Point(1, y=2)\nassert p == (1, 2) and p.x == 1 and p != (1, 3) and tuple(p) == (1, 2)",
    "assert isinstance(Stack(), Stack) and not isinstance(3, Stack)",
    "s = Stack()\ns.items = [5]\nassert s.top == 5 and bool(s) and not Stack()",
    "import pytest\ns = Stack(range(7))\n"
    "with pytest.raises(TooMuch, match='full') as e:\n    s.push(1)\n"
    "assert e.value.args == ('full', 7)\nwith pytest.raises(ValueError):\n    s.push(1)\n"
    "with pytest.raises(ValueError, match='math'):\n    root(-1)",
    "try:\n    Stack()[3]\nexcept IndexError:\n    pass\nelse:\n    assert False",
]


@pytest.mark.parametrize("source", ASSERTIONS)
def test_assertions_see_the_program_as_if_it_were_here(source: str) -> None:
    with Sandbox(PROGRAM, SECONDS) as sandbox:
        found = sandbox.test(source, "")
        assert (found.status, found.output) == ("ended", PASSED)


@pytest.mark.parametrize(
    "source",
    [
        "assert pair(1) == [1, [1, {1}], {1: None}, b'b', 1.5, 2j]",
        "assert Stack([1]) == Stack([2])",
        "import pytest\nwith pytest.raises(TypeError):\n    root(-1)",
        "import pytest\nwith pytest.raises(ValueError):\n    root(1)",
        "assert missing(1) == 1",
        "assert half(1) == 'x'",
    ],
)
def test_assertions_that_do_not_hold_say_why(source: str) -> None:
    with Sandbox(PROGRAM, SECONDS) as sandbox:
        found = sandbox.test(source, "")
        assert found.status == "failed" and found.output and found.output != PASSED


MODULE = """
import pytest
from solution import Stack, half

@pytest.fixture
def stack():
    return Stack([1, 2])

def test_fixture(stack):
    assert stack.top == 2

@pytest.mark.parametrize("x, wanted", [(3, 1), pytest.param(6, 2, id="six")])
def test_cases(x, wanted):
    assert half(x) == wanted

@pytest.mark.parametrize("x", [(1, 2), (3, 4)])
@pytest.mark.slow
def test_one_name(x):
    assert len(Stack(x)) == 2

class TestStack:
    def setup_method(self):
        self.stack = Stack([9])
    def test_top(self):
        assert self.stack.top == 9

def test_wrong():
    assert half(3) == 2
"""


@pytest.mark.parametrize(
    "name", ["test_fixture", "test_cases", "test_one_name", "TestStack.test_top"]
)
def test_functions_of_pytest_are_run(name: str) -> None:
    with Sandbox(PROGRAM, SECONDS) as sandbox:
        assert sandbox.test(MODULE, name).output == PASSED
        assert sandbox.test(MODULE, "test_wrong").status == "failed"


def test_tests_end_when_the_program_does_not() -> None:
    with Sandbox("def f(x):\n    while True: pass", SECONDS) as sandbox:
        assert sandbox.test("assert f(1) == 5", "").status == "time"
    with Sandbox("while True: pass", SECONDS) as sandbox:
        assert sandbox.test("assert f(1) == 5", "").status == "time"
    with Sandbox("import time\ndef f(x): time.sleep(100)", 0.2) as sandbox:
        assert sandbox.test("assert f(1) == 5", "").status == "clock"


def test_a_sandbox_that_cannot_start_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.verifiers.sandbox.find_bubblewrap", lambda: "/bin/false")
    with pytest.raises(SandboxError, match="the sandbox did not start"), Sandbox("1", 1):
        pass
    monkeypatch.setattr("probes.verifiers.sandbox.find_bubblewrap", lambda: None)
    with pytest.raises(SandboxError, match="bubblewrap is not installed"), Sandbox("1", 1):
        pass
