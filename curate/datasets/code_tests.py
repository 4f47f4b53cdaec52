"""Reading the tests of a programming problem from a row, in the layouts that datasets have.

- `{"inputs", "outputs", "fn_name"}`, an object or JSON text, wherever it stands: verl's
  `reward_model.ground_truth` (Eurus-2, PRIME), `input_output` (APPS, TACO), `tests` (DeepCoder).
- a list of `{"input", "output", "testtype" or "type", "fn_name" or "metadata"}`, or
  `{"test_cases": [...]}` with it: `verification_info` (open-r1, SYNTHETIC-1 and -2), `tests`
  (DeepCoder), `public_test_cases` with `private_test_cases` (LiveCodeBench), `official_tests`.
- assertions: a list of them (`test_list` of MBPP, `test_cases` of AceCode, `ground_truth` of
  open-instruct), or a module of pytest functions (`test` of KodCode).

A gold is the text that a row has, where it says all, or else JSON text in the first of these
layouts or with the assertions. Only Python programs are judged. What is pickled, as LiveCodeBench's
private tests are, is never unpickled: it could run anything.
"""

from __future__ import annotations

import ast
import base64
import binascii
import builtins
import contextlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from curate.datasets.fields import MISSING, RowRejected, lookup, object_in, type_name

CODE_FIELDS = (
    *("reward_model.ground_truth", "verification_info", "input_output", "tests", "test_cases"),
    *("public_test_cases", "official_tests", "test_list", "assert_case", "ground_truth", "test"),
)
"""Where tests stand, in this order."""
_SOLUTION_FIELDS = (
    *("solution", "solutions", "gold_standard_solution", "canonical_solution", "code"),
)
_LANGUAGE_FIELDS = ("language", "programming_language", "lang")
_OTHER_LANGUAGES = frozenset(
    (
        *("c", "c++", "cpp", "c#", "csharp", "cs", "d", "dart", "elixir", "erlang", "fortran"),
        *("go", "golang", "haskell", "java", "javascript", "js", "julia", "kotlin", "lua"),
        *("ocaml", "pascal", "perl", "php", "python2", "r", "racket", "ruby", "rust", "scala"),
        *("shell", "bash", "sql", "swift", "typescript", "ts", "zig"),
    )
)
_MODULE = re.compile(r"^(?:assert[ (]|(?:async )?def (?:test|check)|class Test)", re.MULTILINE)
_IMPORTED = re.compile(r"^from solution import ([\w, ]+)$", re.MULTILINE)
MOST_SOLUTIONS = 3
"""Of a row that are tried."""


@dataclass(frozen=True, slots=True)
class CodeTests:
    """The tests of one problem."""

    kind: str
    """stdin: (input, output) of a script; calls: (arguments, value) of a function; asserts:
    (module, function in it or "")."""
    function: str
    """What is called; "" but for calls."""
    cases: tuple[tuple[Any, Any], ...]

    @property
    def count(self) -> int:
        """How many tests there are."""
        return len(self.cases)

    def text(self) -> str:
        """As a gold: JSON in one line, which `read_code_tests` reads."""
        held: dict[str, Any]
        if self.kind == "asserts":
            held = {"assertions": self.cases}
        else:
            given, wanted = zip(*self.cases, strict=True)
            held = {"inputs": given, "outputs": wanted}
            held |= {"fn_name": self.function} if self.function else {}
        return json.dumps(held, separators=(",", ":"), default=_plain)

    def names(self) -> list[str]:
        """What the tests ask a program to define, as far as they say it by name."""
        if self.kind == "calls":
            return [self.function]
        if self.kind == "stdin":
            return []
        found: dict[str, None] = {}
        for source, _ in self.cases[:1]:
            for names in _IMPORTED.findall(source):
                found.update(dict.fromkeys(name.strip() for name in names.split(",")))
            if not found:
                found.update(dict.fromkeys(_called(source)))
        return [name for name in found if name.isidentifier()]


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)


def _called(source: str) -> list[str]:
    """The functions that a module's assertions call and that nothing there defines."""
    tree = ast.parse(source)
    named = [each for each in ast.walk(tree) if isinstance(each, ast.Name)]
    mine = {each.id for each in named if not isinstance(each.ctx, ast.Load)}
    mine |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    called = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    names = [each.id for each in called if isinstance(each, ast.Name)]
    return [name for name in names if name not in mine and not hasattr(builtins, name)]


def is_code_gold(gold: str) -> bool:
    """Whether a gold answer is tests of a program."""
    return _looks_like_tests(gold, "")


def read_code_tests(gold: str) -> CodeTests:
    """The tests that a gold holds, or a text in one of the layouts of datasets.

    Raises ValueError with the reason where it holds none.
    """
    try:
        return _tests_in(gold, {}, "the gold")
    except RowRejected as error:
        raise ValueError(str(error)) from error


def find_code_field(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """The first of the known fields in which any row has tests, of whatever kind."""
    kept = list(rows)
    for field in CODE_FIELDS:
        if any(_looks_like_tests(lookup(row, field), field) for row in kept):
            return field
    return None


def code_tests(row: Mapping[str, Any], field: str) -> tuple[CodeTests, str] | None:
    """The tests of a row, and its gold answer; None where it is no programming problem.

    Args:
        field: where its gold answer stands; where nothing is there, the known fields are looked at.

    Raises:
        RowRejected: they are of another language than Python, pickled, or cannot be used.
    """
    fields = [field] if lookup(row, field) not in (MISSING, None, "") else CODE_FIELDS
    for name in fields:
        value = lookup(row, name)
        if not _looks_like_tests(value, name):
            continue
        for column in _LANGUAGE_FIELDS:
            _refuse_language(row.get(column))
        tests = _tests_in(value, row, name)
        if isinstance(value, str):
            with contextlib.suppress(RowRejected):
                if _tests_in(value, {}, "the gold") == tests:
                    return tests, value.strip()
        return tests, tests.text()
    return None


def _looks_like_tests(value: Any, field: str) -> bool:
    """Whether a value is tests of a program, or was meant to be."""
    if value is MISSING or value is None or value == "":
        return False
    if field.rpartition(".")[2] in ("public_test_cases", "input_output"):
        return True
    if isinstance(value, str):
        found = object_in(value)
        if found is None:
            return _MODULE.search(value) is not None
        value = found
    if isinstance(value, list) and value:
        first = value[0]
        if isinstance(first, str):
            found = object_in(first)
            return _MODULE.search(first) is not None if found is None else _is_of_tests(found)
        value = first
    return _is_of_tests(value)


def _is_of_tests(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_of_tests, value[:1]))
    if not isinstance(value, Mapping):
        return False
    known = (
        *({"inputs", "outputs"}, {"input", "output"}, {"test_cases"}, {"assert_case"}),
        {"assertions"},
    )
    names = {name for name, held in value.items() if held is not None}
    return any(each <= names for each in known)


def _refuse_language(language: Any) -> None:
    if isinstance(language, str) and language.strip().casefold() in _OTHER_LANGUAGES:
        raise RowRejected(f"its program is to be in {language.strip()}: only Python is judged")


def own_solutions(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The programs that a row gives as right ones, a few at most."""
    for field in _SOLUTION_FIELDS:
        value = lookup(row, field)
        if isinstance(value, str) and value.lstrip().startswith("["):
            listed = object_in(value)
            value = listed if isinstance(listed, list) else value
        if isinstance(value, Mapping) and isinstance(value.get("solution"), list):
            value = _of_python(value)
        found = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        texts = [each for each in found if isinstance(each, str) and each.strip()]
        if texts:
            return tuple(texts[:MOST_SOLUTIONS])
    return ()


def _of_python(solutions: Mapping[str, Any]) -> list[Any]:
    """Those of CodeContests that are in Python 3, where languages are numbers."""
    python3 = 3
    languages = solutions.get("language")
    if not isinstance(languages, list):
        return list(solutions["solution"])
    pairs = zip(languages, solutions["solution"], strict=False)
    return [text for language, text in pairs if language in (python3, "PYTHON3", "python3")]


# --- Layouts ------------------------------------------------------------------------------------


def _tests_in(value: Any, row: Mapping[str, Any], field: str) -> CodeTests:
    if field.rpartition(".")[2] == "public_test_cases":
        return _of_live_code_bench(row, field)
    if value is MISSING or value is None or value == "":
        raise RowRejected(f"no tests: {field!r} is missing or null")
    if isinstance(value, bytes):
        raise RowRejected(f"its tests in {field!r} are bytes, which are not unpacked")
    if isinstance(value, str):
        found = object_in(value)
        if found is None:
            return _of_module(value, row, field)
        value = found
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        inner = object_in(value[0])  # open-instruct has lists of one text
        value = value[0] if inner is None and "\n" in value[0] else inner or value
        if isinstance(value, str):
            return _of_module(value, row, field)
    if isinstance(value, Mapping):
        return _of_object(value, row, field)
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value):
            return _of_assertions(value, row, field)
        return _of_cases(value, row, field)
    raise RowRejected(f"no tests: {field!r} is {type_name(value)}")


def _of_object(value: Mapping[str, Any], row: Mapping[str, Any], field: str) -> CodeTests:
    _refuse_language(value.get("language"))
    written = value.get("assertions")
    if isinstance(written, list) and all(
        isinstance(each, list) and len(each) == 2 and all(isinstance(e, str) for e in each)
        for each in written
    ):
        return CodeTests("asserts", "", tuple((each[0], each[1]) for each in written))
    for name in ("test_cases", "tests", "ground_truth", "assert_case"):
        if value.get(name):
            return _tests_in(value[name], {**row, **value}, f"{field}.{name}")
    inputs, outputs = value.get("inputs"), value.get("outputs")
    inputs = value.get("input") if inputs is None else inputs
    outputs = value.get("output") if outputs is None else outputs
    if isinstance(inputs, str) and isinstance(outputs, str):
        inputs, outputs = [inputs], [outputs]
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise RowRejected(f"no tests: {field!r} has no 'inputs' with 'outputs'")
    if len(inputs) != len(outputs):
        raise RowRejected(f"its tests have {len(inputs)} inputs and {len(outputs)} outputs")
    function = _name(value.get("fn_name")) or _name(value.get("func_name"))
    return _of_pairs(inputs, outputs, function)


def _of_pairs(inputs: list[Any], outputs: list[Any], function: str) -> CodeTests:
    if not inputs:
        raise RowRejected("no tests: there is no input")
    if function:
        cases = tuple(
            (_arguments(given), _json_or_text(wanted))
            for given, wanted in zip(inputs, outputs, strict=True)
        )
        return CodeTests("calls", function, cases)
    scripts = tuple((_text(a), _text(b)) for a, b in zip(inputs, outputs, strict=True))
    return CodeTests("stdin", "", scripts)


def _of_cases(cases: list[Any], row: Mapping[str, Any], field: str) -> CodeTests:
    """Tests that are objects with an input and an output each."""
    inputs, outputs, functions, kinds = [], [], set(), set()
    for case in cases:
        case = object_in(case) if isinstance(case, str) else case
        if not isinstance(case, Mapping) or "input" not in case or "output" not in case:
            raise RowRejected(f"a test in {field!r} is no object with 'input' and 'output'")
        kind = str(case.get("testtype") or case.get("type") or "").casefold()
        function = _name(case.get("fn_name")) or _function_in(case.get("metadata"))
        is_call = kind in ("functional", "function_call", "function") or (not kind and function)
        kinds.add(bool(is_call))
        if is_call:
            function = function or _function_in(row.get("metadata"))
            functions.add(function or _name(row.get("fn_name")))
        inputs.append(case["input"])
        outputs.append(case["output"])
    if len(kinds) > 1 or len(functions) > 1:
        raise RowRejected("its tests are of several kinds or functions")
    name = functions.pop() if functions else ""
    if True in kinds and not name:
        raise RowRejected("its tests call a function that they do not name")
    return _of_pairs(inputs, outputs, name)


def _of_live_code_bench(row: Mapping[str, Any], field: str) -> CodeTests:
    cases: list[Any] = []
    for name in ("public_test_cases", "private_test_cases"):
        value = lookup(row, name)
        if value is MISSING or value is None or value == "":
            continue
        found = object_in(value) if isinstance(value, str) else value
        if not isinstance(found, list):
            packed = _is_packed(value)
            raise RowRejected(
                f"its {name!r} are pickled, which could run anything, and are not unpacked"
                if packed
                else f"its {name!r} are no list of tests"
            )
        cases += found
    if not cases:
        raise RowRejected(f"no tests: {field!r} is empty")
    return _of_cases(cases, row, field)


def _is_packed(value: Any) -> bool:
    """Whether it is what zlib wrote, in base64 or as it is; nothing is unpacked."""
    if isinstance(value, bytes):
        return True
    try:
        head = base64.b64decode(value[:64] + "=" * (-len(value[:64]) % 4), validate=True)
        zlib.decompressobj().decompress(head, 1)
    except (binascii.Error, ValueError, zlib.error, TypeError):
        return False
    return True


def _of_assertions(texts: list[str], row: Mapping[str, Any], field: str) -> CodeTests:
    setup = row.get("test_setup_code")
    before = setup.rstrip() + "\n" if isinstance(setup, str) and setup.strip() else ""
    cases = []
    for text in texts:
        found = object_in(text)
        if isinstance(found, Mapping):
            return _of_cases(texts, row, field)
        tree = _parsed(text, field)
        if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
            raise RowRejected(f"a test in {field!r} asserts nothing")
        cases.append((before + text, ""))
    return CodeTests("asserts", "", tuple(cases))


def _of_module(text: str, row: Mapping[str, Any], field: str) -> CodeTests:
    """A module of test functions, or of assertions."""
    tree = _parsed(text, field)
    functions = [name for node in tree.body for name in _test_functions(node)]
    if functions:
        return CodeTests("asserts", "", tuple((text, name) for name in functions))
    entry = row.get("entry_point")
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if isinstance(entry, str) and entry.isidentifier() and "check" in names:  # HumanEval
        return CodeTests("asserts", "", ((f"{text}\n\ncheck({entry})\n", ""),))
    if not any(isinstance(node, ast.Assert) for node in tree.body):
        raise RowRejected(f"no tests: {field!r} has neither test functions nor assertions")
    if all(isinstance(node, ast.Assert | ast.Import | ast.ImportFrom) for node in tree.body):
        before = [n for n in tree.body if not isinstance(n, ast.Assert)]
        head = "".join(ast.unparse(node) + "\n" for node in before)
        asserts = [node for node in tree.body if isinstance(node, ast.Assert)]
        return CodeTests("asserts", "", tuple((head + ast.unparse(n), "") for n in asserts))
    return CodeTests("asserts", "", ((text, ""),))


def _test_functions(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
        return [node.name]
    if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
        inside = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        return [f"{node.name}.{n.name}" for n in inside if n.name.startswith("test")]
    return []


def _parsed(text: str, field: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RowRejected(
            f"no tests: {field!r} is neither JSON nor Python ({type(error).__name__})"
        ) from error


def _name(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _function_in(metadata: Any) -> str:
    if isinstance(metadata, str):
        metadata = object_in(metadata)
    if not isinstance(metadata, Mapping):
        return ""
    return _name(metadata.get("func_name")) or _name(metadata.get("fn_name"))


def _text(value: Any) -> str:
    """What stands on stdin or stdout: a text, or a list of its lines."""
    if isinstance(value, list):
        return "\n".join(_text(each) for each in value)
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _arguments(given: Any) -> list[Any]:
    """The arguments of a call: a list, or a text with JSON in each line."""
    if isinstance(given, str):
        lines = [line for line in given.split("\n") if line.strip()]
        found = [_json_or_text(line) for line in lines]
        return found
    return given if isinstance(given, list) else [given]


def _json_or_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
