"""The verifier of programs: the tests of a gold, run on the program of a completion.

A completion's program is its last block of Python between fences, else its last block without a
language, else, where it has no fences at all, the whole of it; what a model thinks before
`</think>`, or its like, does not count. The gold is what `curate.datasets.code_tests` reads of a
row: inputs and outputs of a script, calls of a function, or assertions. A program is right when it
passes every test; a test that takes too long ends the rest.

Programs run in `probes.verifiers.sandbox`, expected outputs are compared here.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
import time
from collections.abc import Callable
from typing import Any

from curate.datasets.code_tests import CodeTests, read_code_tests
from probes.verifiers.answers import spoken
from probes.verifiers.guest.assertions import PASSED
from probes.verifiers.guest.values import decode, encode
from probes.verifiers.sandbox import CLOCK_FACTOR, Outcome, Sandbox, SandboxError
from probes.verifiers.verdict import Verdict, shortened, unjudged

__all__ = ["find_program", "judge_code"]

SECONDS = 5.0
TESTS_FACTOR = 12
"""Processor time that all tests of a program may take, in units of that of one."""
_TOLERANCE = 1e-6
_OUTPUT_FACTOR, _OUTPUT_MORE = 4, 65_536
_PYTHON = ("python", "python3", "py", "py3")
# Possessive, so that it takes time linear in its text.
_FENCE = re.compile(r"^[ \t]*+(`{3,}+|~{3,}+)[ \t]*+([\w+#.-]*+)[^\n`]*+$", re.MULTILINE)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
NOT_PYTHON = "its program is not Python"
"""The reason of a verdict on what cannot be compiled."""
_STATUS = {
    "failed": "ended with an error",
    "time": "took more processor time than one test may",
    "clock": "took too long by the clock",
    "output": "wrote too much",
    "gone": "ended its sandbox",
}


def find_program(completion: str) -> str | None:
    """The Python program in a completion; None where there is none, or only of other languages."""
    text = spoken(completion)
    blocks: list[tuple[str, str]] = []
    opened: tuple[str, str, int] | None = None  # the fence, its language, where its text begins
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence[1], fence[2].lower(), fence.end()
        elif fence[1].startswith(opened[0]) and not fence[2]:
            blocks.append((opened[1], text[opened[2] : fence.start()]))
            opened = None
    if opened is not None:  # never closed: up to the end
        blocks.append((opened[1], text[opened[2] :]))
    if not blocks:
        return text.strip() or None
    for languages in (_PYTHON, ("",)):
        found = [block for language, block in blocks if language in languages and block.strip()]
        if found:
            return textwrap.dedent(found[-1]).strip()
    return None


def judge_code(completion: str, gold: str, seconds: float = SECONDS) -> Verdict:
    """Whether the program of a completion passes all tests of a gold.

    Args:
        completion: what a model wrote.
        gold: tests, as `curate.datasets.code_tests` writes them.
        seconds: processor time that one test may take; all together may take twelve times as much.
    """
    try:
        tests = read_code_tests(gold)
    except ValueError as error:
        return unjudged(f"finds no tests in the gold: {error}")
    program = find_program(completion)
    if program is None:
        return Verdict(0, "no_answer", tests_passed=0, tests_total=tests.count)
    try:
        passed, why = _run(program, tests, seconds)
    except SandboxError as error:
        return unjudged(f"has no sandbox: {error}")
    is_right = passed == tests.count
    return Verdict(
        int(is_right),
        "correct" if is_right else "wrong",
        shortened(program),
        why,
        tests_passed=passed,
        tests_total=tests.count,
    )


def _run(program: str, tests: CodeTests, seconds: float) -> tuple[int, str | None]:
    """How many tests a program passes, and how the first that it does not pass went."""
    passed, why, used = 0, None, 0.0
    until = time.monotonic() + CLOCK_FACTOR * TESTS_FACTOR * seconds
    with Sandbox(program, seconds) as sandbox:
        if sandbox.compile().status != "ended":
            return 0, NOT_PYTHON
        for number, test in enumerate(_tests(tests), 1):
            outcome, is_passed = test(sandbox)
            used += outcome.seconds
            passed += is_passed
            if not is_passed and why is None:
                how = _STATUS.get(outcome.status, outcome.status)
                if outcome.status == "ended":
                    how = "gave another output"
                elif tests.kind == "asserts" and outcome.output:
                    how = "failed: " + outcome.output.decode(errors="replace")
                why = f"test {number} of {tests.count} {how}"[:300]
            if outcome.status in ("time", "clock", "gone"):
                break
            if used > TESTS_FACTOR * seconds:
                why = why or f"its tests took more than {TESTS_FACTOR * seconds:g} s of CPU time"
                break
            if time.monotonic() > until:
                why = why or "its tests took too long by the clock"
                break
    return passed, why


_Test = Callable[[Sandbox], tuple[Outcome, bool]]


def _tests(tests: CodeTests) -> list[_Test]:
    if tests.kind == "stdin":
        return [_of_script(given, wanted) for given, wanted in tests.cases]
    if tests.kind == "calls":
        return [_of_call(tests.function, given, wanted) for given, wanted in tests.cases]
    return [_of_assertions(source, function) for source, function in tests.cases]


def _of_script(given: str, wanted: str) -> _Test:
    def run(sandbox: Sandbox) -> tuple[Outcome, bool]:
        most = _OUTPUT_FACTOR * len(wanted) + _OUTPUT_MORE
        outcome = sandbox.read(given.encode("utf-8", "replace"), most)
        if outcome.status != "ended":
            return outcome, False
        return outcome, same_output(outcome.output.decode("utf-8", "replace"), wanted)

    return run


def _of_call(function: str, given: list[Any], wanted: Any) -> _Test:
    def run(sandbox: Sandbox) -> tuple[Outcome, bool]:
        most = 8 * len(json.dumps(wanted)) + _OUTPUT_MORE
        outcome = sandbox.call(function, [encode(each) for each in given], most)
        if outcome.status != "ended":
            return outcome, False
        try:
            value = decode(json.loads(outcome.output))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return outcome, False  # Nothing that the guest writes of a value.
        return outcome, same_value(value, wanted)

    return run


def _of_assertions(source: str, function: str) -> _Test:
    def run(sandbox: Sandbox) -> tuple[Outcome, bool]:
        outcome = sandbox.test(source, function)
        return outcome, outcome.status == "ended" and outcome.output == PASSED

    return run


# --- Comparing ----------------------------------------------------------------------------------


def same_output(written: str, wanted: str) -> bool:
    """Whether two outputs have the same words in the same lines, blind to white space.

    Lines without a word do not count. Where a word that is wanted is a number with a point or an
    exponent, one within a relative or absolute 1e-6 is the same.
    """
    mine, its = _lines(written), _lines(wanted)
    return mine == its or (
        len(mine) == len(its)
        and all(
            len(a) == len(b) and all(map(_same_word, a, b)) for a, b in zip(mine, its, strict=True)
        )
    )


def _lines(text: str) -> list[list[str]]:
    return [words for line in text.split("\n") if (words := line.split())]


def _same_word(written: str, wanted: str) -> bool:
    if written == wanted:
        return True
    if not any(mark in wanted for mark in ".eE"):
        return False
    if not (_NUMBER.fullmatch(wanted) and _NUMBER.fullmatch(written)):
        return False
    return _close(float(written), float(wanted))


def _close(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def same_value(value: Any, wanted: Any) -> bool:
    """Whether a value that a function returned is the one wanted, which was JSON.

    Tuples are lists and keys are texts there. Some datasets have what is wanted in a list of one.
    """
    try:
        return _same(value, wanted) or (
            isinstance(wanted, list) and len(wanted) == 1 and _same(value, wanted[0])
        )
    except (RecursionError, OverflowError):
        return False


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(wanted)
            and all(map(_same, value, wanted))
        )
    if isinstance(wanted, dict):
        if not isinstance(value, dict) or len(value) != len(wanted):
            return False
        keyed = {_key(name): each for name, each in value.items()}
        return all(
            _key(name) in keyed and _same(keyed[_key(name)], each) for name, each in wanted.items()
        )
    if isinstance(wanted, float) or isinstance(value, float):
        is_number = all(isinstance(each, int | float) for each in (value, wanted))
        return is_number and (value == wanted or _close(float(value), float(wanted)))
    return bool(value == wanted)


def _key(name: Any) -> str:
    if isinstance(name, bool) or name is None:
        return json.dumps(name)
    return str(name)
