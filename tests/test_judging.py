"""The pool of verifier processes: one bad task costs that task's verdict and nothing else."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from curate.errors import RunError, UsageError
from probes.verifiers import pool as judging
from probes.verifiers.pool import VerifierPool
from probes.verifiers.verdict import Verdict

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"

REWARDS = """
import ctypes, os, sys, time

def judge(completion, answer):
    if completion == "hang":
        while True:
            pass
    if completion == "swallow":
        while True:
            try:
                while True:
                    pass
            except:
                pass
    if completion == "native":  # in C, where no signal handler of Python's runs
        return sum(range(10**13)) == 0
    if completion == "sleep":
        time.sleep(1000)
    if completion == "print":
        print("x" * 100_000)
        os.write(1, b'{"id": 0, "reward": 1}\\n')
        sys.stdin.read()
    if completion == "raise":
        raise ValueError("no way")
    if completion == "exit":
        os._exit(3)
    if completion == "leave":
        sys.exit(4)
    if completion == "segfault":
        ctypes.string_at(0)
    if completion == "memory":
        return bytearray(1 << 40) == b""
    if completion == "fork" and os.fork() == 0:
        time.sleep(8)
        os._exit(0)
    if completion == "fork":
        os._exit(5)
    if completion == "none":
        return None
    if completion == "half":
        return 0.5
    return completion == answer
"""


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    return "rewards:judge"


@pytest.fixture(scope="module")
def math_pool() -> Iterator[VerifierPool]:
    with VerifierPool("math", workers=2, seconds=1) as pool:
        yield pool


@pytest.mark.parametrize(
    "hostile",
    [
        r"\boxed{9^{9^{9^{9^9}}}}",
        r"\boxed{100000000!}",
        r"\boxed{" + "(" * 3000,
        r"\boxed{" + "(" * 3000 + "}",
        r"\boxed{" + "{" * 3000,
        r"\boxed{" + "{" * 3000 + "}" * 3001,
        "7" * 1_000_000,
        r"\boxed{" + "7" * 1_000_000 + "}",
        "$" * 4_000,
        "$ " * 2_000,
    ],
    ids=lambda text: text[:16] + str(len(text)),
)
def test_hostile_mathematics_costs_its_own_verdict_only(
    math_pool: VerifierPool, hostile: str
) -> None:
    good = [(rf"\boxed{{{n}}}", str(n + n % 2)) for n in range(12)]
    started = time.monotonic()
    verdicts = math_pool.judge([*good[:6], (hostile, "72"), *good[6:]])
    assert time.monotonic() - started < 120
    judged = verdicts.pop(6)
    assert judged.reward != 1
    assert (judged.reward is None) == (judged.verdict in ("timeout", "crashed", "error"))
    assert [verdict.reward for verdict in verdicts] == [1, 0] * 6


def test_a_users_function_may_do_anything(rewards: str) -> None:
    expected = {
        "hang": "timeout",
        "swallow": "timeout",
        "native": "timeout",
        "sleep": "timeout",
        "print": "wrong",
        "raise": "error",
        "exit": "crashed",
        "leave": "crashed",
        "segfault": "crashed",
        "memory": "error",
        "fork": "crashed",
        "none": "error",
        "half": "wrong",
    }
    pairs = [(str(n), str(n - n % 2)) for n in range(24)]
    for place, completion in enumerate(expected):
        pairs.insert(3 * place + 2, (completion, "72"))
    with VerifierPool(rewards, workers=2, seconds=1) as pool:
        verdicts = pool.judge(pairs)
    found = {completion: verdict for (completion, _), verdict in zip(pairs, verdicts, strict=True)}
    assert {name: found[name].verdict for name in expected} == expected
    assert all(found[name].reward is None for name in expected if name not in ("print", "half"))
    assert [found[str(n)].reward for n in range(24)] == [1, 0] * 12
    assert found["exit"].reason == "died (exit status 3)"
    assert found["segfault"].reason == "died (signal SIGSEGV)"
    assert found["raise"].reason == "raised ValueError: no way"
    assert found["half"] == Verdict(0.5, "wrong")
    assert found["memory"].reason is not None and "Memory" in found["memory"].reason


def test_order_duplicates_and_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    (tmp_path / "counted.py").write_text(
        f"def judge(c, a):\n    open({str(calls)!r}, 'a').write(c + '\\n')\n    return c == a\n"
    )
    monkeypatch.chdir(tmp_path)
    pairs = [(str(n % 50), str(n % 50 if n % 3 else -1)) for n in range(600)]
    seen: list[int] = []
    with VerifierPool("counted:judge", workers=2) as pool:
        verdicts = pool.judge(pairs, seen.append)
        assert pool.judge([]) == []
    assert [verdict.reward for verdict in verdicts] == [int(c == a) for c, a in pairs]
    assert len(calls.read_text().splitlines()) == len(set(pairs))
    assert seen == sorted(seen) and seen[-1] == len(pairs)


def test_text_that_is_no_unicode_comes_through() -> None:
    with VerifierPool("exact", workers=1) as pool:
        odd = "\ud800\x00\u2028é\n\t"
        assert pool.judge([(rf"\boxed{{{odd}}}", odd), ("x" * 3_000_000, "y")])[0].reward == 1


def test_a_verifier_that_cannot_be_loaded_is_one_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('half written')")
    monkeypatch.chdir(tmp_path)
    for name, why in [
        ("broken:judge", "RuntimeError: half written"),
        ("maths", "did you mean math"),
        ("--help", "unknown verifier"),
    ]:
        with pytest.raises(UsageError, match=why), VerifierPool(name):
            pass


def test_workers_that_always_die_at_start_are_a_run_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dies.py").write_text("import os\nos._exit(7)")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="exit status 7"), VerifierPool("dies:judge", workers=2):
        pass


def test_golds_against_themselves() -> None:
    golds = ["72", r"n \equiv 1 \pmod{60}", "a \\equiv\nb" + "c" * 200]
    with VerifierPool("math", workers=1) as pool:
        fine, congruence, long = pool.check_golds(golds)
    assert fine is None
    assert congruence == (
        "math verifier finds no answer in the gold that it can compare; "
        r"gold 'n \equiv 1 \pmod{60}'"
    )
    assert (
        long is not None and "\n" not in long and r"'a \equiv\nb" in long and long.endswith("c…'")
    )


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [("exact", "a b", " "), ("numeric", r"12\%", "a few"), ("choice", "(B)", "Bob")],
)
def test_golds_of_the_other_verifiers(name: str, good: str, bad: str) -> None:
    with VerifierPool(name, workers=1) as pool:
        accepted, refused = pool.check_golds([good, bad])
    assert accepted is None
    assert refused is not None and refused.startswith(f"{name} verifier finds")


def test_golds_of_a_users_function(rewards: str) -> None:
    with VerifierPool(rewards, workers=2, seconds=1) as pool:
        assert pool.check_golds(["72"]) == [None]  # accepts the bare gold alone
        [hangs] = pool.check_golds(["hang"])
    # Processor time, or six times as much by the clock where the processor is taken by others.
    assert hangs is not None and re.fullmatch(
        "rewards:judge verifier took more than (1 s|6 s by the clock); gold 'hang'", hangs
    )


def test_real_golds_are_accepted_against_themselves() -> None:
    if not DATA.is_dir():
        pytest.skip(f"no shared data in {DATA}")
    golds = set()
    for path in sorted(DATA.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            golds.add(str(json.loads(line)["answer"]).rpartition("####")[2].strip())
    sample = random.Random(0).sample(sorted(golds), 1000)
    with VerifierPool("math", workers=2) as pool:
        rejected = [reason for reason in pool.check_golds(sample) if reason is not None]
    assert len(rejected) <= 0.015 * len(sample), rejected
    # One is an equation of factorials of a variable.
    told = ("finds no answer in the gold", "too large to compute")
    assert all(any(words in reason for words in told) for reason in rejected)


def is_alive(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("task", ["hang", "sleep"])
def test_no_worker_outlives_its_parent(rewards: str, death: signal.Signals, task: str) -> None:
    script = f"""
        from probes.verifiers import pool as judging
        with judging.VerifierPool({rewards!r}, workers=1, seconds=100) as pool:
            print(pool._pool[0].process.pid, flush=True)
            pool.judge([({task!r}, "72")])
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.5)  # into the task
    assert is_alive(worker)
    if death == signal.SIGINT:
        os.killpg(parent.pid, death)  # as Ctrl-C does
    else:
        os.kill(parent.pid, death)
    parent.wait(120)
    parent.stdout.close()
    assert wait_until(lambda: not is_alive(worker), 60)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_interrupt_leaves_no_worker_and_the_pool_goes_on(
    rewards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VerifierPool(rewards, workers=1, seconds=100) as pool:
        worker = pool._pool[0].process.pid
        with monkeypatch.context() as patch:

            def interrupt(_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(judging, "_wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.judge([("hang", "72")])
        assert not is_alive(worker)
        assert pool.judge([("72", "72")])[0].reward == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_killed_while_idle_is_replaced() -> None:
    with VerifierPool("exact", workers=1) as pool:
        worker = pool._pool[0].process.pid
        os.kill(worker, signal.SIGKILL)
        assert wait_until(lambda: not is_alive(worker), 60)
        assert pool.judge([("72", "72")])[0].reward == 1
