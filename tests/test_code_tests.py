"""Tests of programs in the layouts that datasets have, as golds and as questions."""

import base64
import json
import pickle
import zlib
from decimal import Decimal
from typing import Any

import pytest

from curate.config import AUTO
from curate.datasets.code_tests import CodeTests, is_code_gold, own_solutions, read_code_tests
from curate.datasets.fields import RowRejected
from curate.datasets.layouts import (
    CODE_INSTRUCTION,
    INSTRUCTION,
    Question,
    instruct,
    read_question,
    recognise_layout,
)

SCRIPT = CodeTests("stdin", "", (("1 2\n", "3\n"), ("4 5\n", "9\n")))
CALLS = CodeTests("calls", "add", (([1, 2], 3), ([4, 5], 9)))
IO = {"inputs": ["1 2\n", "4 5\n"], "outputs": ["3\n", "9\n"]}
FN = {"fn_name": "add", "inputs": [[1, 2], [4, 5]], "outputs": [3, 9]}
CASES = [
    {"input": "1 2\n", "output": "3\n", "type": "stdin_stdout", "fn_name": None},
    {"input": "4 5\n", "output": "9\n", "type": "stdin_stdout", "fn_name": None},
]
FUNCTIONAL = [
    {"input": "1\n2", "output": "3", "testtype": "functional"},
    {"input": "4\n5", "output": "9", "testtype": "functional"},
]
STDIN = [{"input": c["input"], "output": c["output"], "testtype": "stdin"} for c in CASES]
PYTEST = "from solution import add\n\ndef test_one():\n    assert add(1, 2) == 3\n\n"
PYTEST += "class TestMore:\n    def test_two(self):\n        assert add(4, 5) == 9"


def question(row: dict[str, Any]) -> Question:
    return read_question(row, recognise_layout([row]))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "reward_model": {"ground_truth": json.dumps(IO)}}, SCRIPT),  # Eurus-2
        ({"prompt": "p", "reward_model": {"ground_truth": json.dumps(FN)}}, CALLS),
        ({"prompt": "p", "reward_model": {"ground_truth": FN}}, CALLS),
        ({"question": "p", "solutions": "[]", "input_output": json.dumps(IO)}, SCRIPT),  # APPS
        ({"question": "p add", "solutions": [], "input_output": json.dumps(FN)}, CALLS),  # TACO
        (  # open-r1, SYNTHETIC-1
            {
                "prompt": "p",
                "gold_standard_solution": "x",
                "verification_info": {"language": "python", "test_cases": CASES},
            },
            SCRIPT,
        ),
        (
            {
                "prompt": "p",
                "verification_info": repr({"language": "python", "test_cases": CASES}),
            },
            SCRIPT,
        ),
        ({"problem": "p", "solutions": ["x"], "tests": json.dumps(STDIN)}, SCRIPT),  # DeepCoder
        ({"problem": "p", "solutions": ["x"], "tests": json.dumps(IO)}, SCRIPT),
        (
            {
                "problem": "p",
                "tests": json.dumps(
                    [{**each, "metadata": {"func_name": "add"}} for each in FUNCTIONAL]
                ),
            },
            CALLS,
        ),
        (  # LiveCodeBench
            {
                "question_title": "t",
                "question_content": "p",
                "starter_code": "",
                "public_test_cases": json.dumps(STDIN[:1]),
                "private_test_cases": json.dumps(STDIN[1:]),
                "metadata": "{}",
            },
            SCRIPT,
        ),
        (
            {
                "question_content": "p",
                "starter_code": "class Solution:\n    def add(self, a: int, b: int) -> int:\n",
                "public_test_cases": json.dumps(FUNCTIONAL),
                "private_test_cases": "[]",
                "metadata": json.dumps({"func_name": "add"}),
            },
            CALLS,
        ),
        ({"prompt": "p", "official_tests": CASES}, SCRIPT),  # open-r1/codeforces
        (  # KodCode
            {"question": "p", "solution": "def add(a, b): return a + b", "test": PYTEST},
            CodeTests("asserts", "", ((PYTEST, "test_one"), (PYTEST, "TestMore.test_two"))),
        ),
        (  # MBPP
            {
                "prompt": "p",
                "code": "x",
                "test_list": ["assert add(1, 2) == 3", "assert add(4, 5) == 9"],
                "test_setup_code": "import math",
            },
            CodeTests(
                "asserts",
                "",
                (
                    ("import math\nassert add(1, 2) == 3", ""),
                    ("import math\nassert add(4, 5) == 9", ""),
                ),
            ),
        ),
        (  # open-instruct
            {
                "messages": [{"role": "user", "content": "p add"}],
                "ground_truth": ["assert add(1, 2) == 3"],
                "dataset": "code",
            },
            CodeTests("asserts", "", (("assert add(1, 2) == 3", ""),)),
        ),
        (
            {
                "messages": [{"role": "user", "content": "p add"}],
                "ground_truth": json.dumps(["assert add(1, 2) == 3"]),
                "dataset": ["code"],
            },
            CodeTests("asserts", "", (("assert add(1, 2) == 3", ""),)),
        ),
        (
            {
                "messages": [{"role": "user", "content": "p"}],
                "ground_truth": json.dumps(CASES),
                "dataset": ["code_stdio"],
            },
            SCRIPT,
        ),
        (  # HumanEval
            {
                "prompt": "def add(a, b):",
                "canonical_solution": "    return a + b",
                "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
                "entry_point": "add",
            },
            CodeTests(
                "asserts",
                "",
                (
                    (
                        "def check(candidate):\n    assert candidate(1, 2) == 3\n\n\ncheck(add)\n",
                        "",
                    ),
                ),
            ),
        ),
        (  # assertions in one text
            {"prompt": "p", "test": "import math\nassert add(1, 2) == 3\nassert add(4, 5) == 9"},
            CodeTests(
                "asserts",
                "",
                (
                    ("import math\nassert add(1, 2) == 3", ""),
                    ("import math\nassert add(4, 5) == 9", ""),
                ),
            ),
        ),
    ],
)
def test_published_layouts_are_read(row: dict[str, Any], expected: CodeTests) -> None:
    found = question(row)
    assert is_code_gold(found.answer)
    assert read_code_tests(found.answer) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {
                "question_content": "p",
                "public_test_cases": json.dumps(STDIN),
                "private_test_cases": base64.b64encode(
                    zlib.compress(pickle.dumps(json.dumps(STDIN)))
                ).decode(),
            },
            "its 'private_test_cases' are pickled, which could run anything",
        ),
        ({"prompt": "p", "input_output": pickle.dumps(IO)}, "bytes, which are not unpacked"),
        (
            {"prompt": "p", "verification_info": {"language": "cpp", "test_cases": CASES}},
            "its program is to be in cpp: only Python is judged",
        ),
        ({"prompt": "p", "language": "Rust", "tests": STDIN}, "to be in Rust"),
        ({"prompt": "p", "input_output": json.dumps({"inputs": [], "outputs": []})}, "no input"),
        (
            {"prompt": "p", "input_output": json.dumps({"inputs": ["1"], "outputs": []})},
            "1 inputs and 0 outputs",
        ),
        ({"prompt": "p", "tests": [{"input": "1", "output": "1"}, {"input": "2"}]}, "no object"),
        ({"prompt": "p", "input_output": "{not json"}, "neither JSON nor Python"),
        ({"prompt": "p", "tests": FUNCTIONAL}, "call a function that they do not name"),
        ({"prompt": "p", "test": "def test_it(:\n    assert True"}, "neither JSON nor Python"),
        ({"prompt": "p", "test_list": ["assert add(1) == 1", "print(1)"]}, "asserts nothing"),
        ({"prompt": "p", "tests": [STDIN[0], {**FUNCTIONAL[0], "fn_name": "f"}]}, "several kinds"),
    ],
)
def test_what_cannot_be_used_is_rejected_with_the_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowRejected, match=reason):
        question(row)


def test_nothing_is_ever_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    class Boom:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("it was unpickled",))

    packed = base64.b64encode(zlib.compress(pickle.dumps(Boom()))).decode()
    for value in (packed, pickle.dumps(Boom())):
        row = {"prompt": "p", "public_test_cases": "[]", "private_test_cases": value}
        with pytest.raises(RowRejected, match="pickled"):
            question(row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "what is 1 + 1 ?", "answer": "2"},
        {"prompt": "what is the set ?", "answer": "[1, 2]"},
        {"prompt": "what is it ?", "answer": '{"a": 1}'},
        {"prompt": "say it", "answer": "They assert (and test) it."},
        {"prompt": "p", "solution": "so \\boxed{4}", "test": "a quiz"},
        {"prompt": "p", "solution": "so \\boxed{4}", "tests": 3},
    ],
)
def test_answers_are_no_tests(row: dict[str, Any]) -> None:
    assert not is_code_gold(question(row).answer)


def test_a_text_that_says_all_stays_the_gold() -> None:
    text = json.dumps(FN)
    assert question({"prompt": "add", "input_output": text}).answer == text
    made = question({"prompt": "add", "input_output": {**FN, "outputs": [Decimal("3.5"), 9]}})
    assert json.loads(made.answer) == {**FN, "outputs": [3.5, 9]}


@pytest.mark.parametrize("tests", [SCRIPT, CALLS, CodeTests("asserts", "", (("assert 1", "f"),))])
def test_a_gold_is_read_as_it_was_written(tests: CodeTests) -> None:
    assert is_code_gold(tests.text())
    assert read_code_tests(tests.text()) == tests


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"solution": "print(1)"}, ("print(1)",)),
        ({"solutions": json.dumps(["a", "b", "c", "d"])}, ("a", "b", "c")),
        ({"solutions": ["", "b"]}, ("b",)),
        ({"gold_standard_solution": "x"}, ("x",)),
        ({"solutions": {"language": [2, 3, 3], "solution": ["c++", "a", "b"]}}, ("a", "b")),
        ({"answer": "x", "solution": None}, ()),
    ],
)
def test_a_row_may_have_solutions_of_its_own(
    row: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert own_solutions(row) == expected


@pytest.mark.parametrize(
    ("row", "ending"),
    [
        (
            {"question": "sum two", "input_output": json.dumps(FN)},
            "sum two\n\nTests will call `add`.",
        ),
        ({"question": "write add", "input_output": json.dumps(FN)}, "write add"),
        ({"question": "sum two", "input_output": json.dumps(IO)}, "sum two"),
        ({"question": "sum two", "test": PYTEST}, "Tests will call `add`."),
        ({"question": "sum", "test_list": ["assert set(add(1)) == {2}"]}, "Tests will call `add`."),
        (
            {"question": "sum", "starter_code": "def add(a, b):\n", "input_output": json.dumps(FN)},
            "sum\n\nStart from this code:\n```python\ndef add(a, b):\n```",
        ),
    ],
)
def test_a_prompt_says_the_names_that_its_tests_call(row: dict[str, Any], ending: str) -> None:
    assert question(row).messages[-1][1].endswith(ending)


def test_a_program_is_asked_for_in_a_block() -> None:
    asked = {"question": "sum two", "input_output": json.dumps(IO)}
    assert instruct(question(asked), AUTO)[-1]["content"] == f"sum two {CODE_INSTRUCTION}"
    own = {**asked, "question": "sum two. Write it inside a markdown code block."}
    assert instruct(question(own), AUTO)[-1]["content"] == own["question"]
    answer = {"question": "sum two", "answer": "4"}
    assert instruct(question(answer), AUTO)[-1]["content"] == f"sum two {INSTRUCTION}"
