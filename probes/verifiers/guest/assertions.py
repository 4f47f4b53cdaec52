"""Making the assertions of a test, in a process that the program under test has no part in.

The program's functions, classes and objects stand here as `Remote`, which asks the other process.
Plain values come as what they are, so that an assertion compares them as it would anywhere.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from probes.verifiers.guest.programs import SIMPLE, own_streams, prelude
from probes.verifiers.guest.values import decode, encode, read_frame

PASSED = b"passed"
SHOWN_BYTES = 500

# What tests compare by, besides builtins; a program's own must not stand in their place.
_KEPT = frozenset({"Counter", "OrderedDict", "defaultdict", "deque", "ChainMap"})
_SPECIAL = (
    *("__len__", "__getitem__", "__setitem__", "__delitem__", "__contains__", "__next__"),
    *("__enter__", "__exit__", "__lt__", "__le__", "__gt__", "__ge__", "__add__", "__radd__"),
    *("__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__floordiv__", "__mod__"),
    *("__pow__", "__matmul__", "__and__", "__or__", "__xor__", "__neg__", "__abs__", "__int__"),
    *("__float__", "__round__"),
)


def make_assertions() -> None:
    """Run tests against the program that another process serves; write whether all hold.

    File descriptors: 0 the program's answers, 1 the result, 3 what is asked of the program, 4 the
    frame of the tests.
    """
    result, command = os.dup(1), os.dup(4)
    answers, asked = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(3), "wb")
    tests = json.loads(read_frame(command))
    os.close(command)
    nowhere = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 3, 4):
        os.dup2(nowhere, fd)
    own_streams()
    try:
        _make_all(tests, Program(asked, answers))
    except BaseException as error:
        told = f"{type(error).__name__}: {error}"
        os.write(result, told.encode(errors="replace")[:SHOWN_BYTES])
        raise
    os.write(result, PASSED)


def _make_all(tests: dict[str, str], program: Program) -> None:
    solution = types.ModuleType("solution")
    solution.__dict__.update(program.names())
    sys.modules["solution"], sys.modules["pytest"] = solution, _pytest()
    own = {n: v for n, v in solution.__dict__.items() if not n.startswith("__")}
    space = {**prelude(), **own, "__name__": "test_solution"}
    exec(compile(tests["source"], "test_solution.py", "exec"), space)
    if not tests["function"]:
        return
    holder, _, name = tests["function"].rpartition(".")
    owner: Any = space[holder]() if holder else None
    if hasattr(owner, "setup_method"):
        owner.setup_method(*[None] * (owner.setup_method.__code__.co_argcount - 1))
    function = getattr(owner, name) if holder else space[name]
    bare = getattr(function, "__func__", function)
    for case in getattr(function, "_cases", [{}]):
        function(**case, **_fixtures(bare, space, case))


# --- The program --------------------------------------------------------------------------------


class Program:
    """The program under test, as this process sees it."""

    def __init__(self, asked: BinaryIO, answers: BinaryIO) -> None:
        self._asked, self._answers = asked, answers
        self._errors: dict[str, type[BaseException]] = {}

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a message; raises what the program raised."""
        self._asked.write(json.dumps(message).encode() + b"\n")
        self._asked.flush()
        line = self._answers.readline()
        if not line:
            raise EOFError("the program has ended its process")
        answer: dict[str, Any] = json.loads(line)
        if "raised" in answer:
            raise self._error(answer["raised"], answer["words"])
        return answer

    def _error(self, kinds: list[str], words: list[Any]) -> BaseException:
        for kind in kinds:
            found = self._errors.get(kind) or getattr(builtins, kind, None)
            if isinstance(found, type) and issubclass(found, BaseException):
                try:
                    return found(*words)
                except TypeError:
                    break
        return RuntimeError(*words)

    def names(self) -> Iterator[tuple[str, Any]]:
        """Its own names, without those that would change what a test itself says."""
        for name, told in self.ask({"do": "start"})["names"].items():
            if "module" in told:
                if told["module"].partition(".")[0] in sys.stdlib_module_names:
                    yield name, importlib.import_module(told["module"])
            elif name in _KEPT or hasattr(builtins, name) or name in sys.stdlib_module_names:
                continue
            elif "error" in told:
                base = type(self._error(told["error"][1:], []))
                self._errors[name] = type(name, (base,), {})
                yield name, self._errors[name]
            else:
                yield name, decode(told["value"], self.remote)

    def remote(self, pair: list[Any]) -> Remote:
        """What stands here for an object of the program."""
        return Remote(self, *pair)


def _asked(value: Any) -> Any:
    return encode(value, _pair)


def _pair(value: Any) -> list[Any]:
    if not isinstance(value, Remote):
        raise TypeError(f"a {type(value).__name__} cannot be given to the program")
    return [value.__dict__["_number"], value.__dict__["_kind"]]


class Remote:
    """An object of the program: a function, a class, an instance."""

    def __init__(self, program: Program, number: int, kind: str) -> None:
        self.__dict__.update(_program=program, _number=number, _kind=kind)

    def _ask(self, what: str, *arguments: Any) -> Any:
        program: Program = self.__dict__["_program"]
        message = {"do": what, "of": self.__dict__["_number"], "arguments": _asked(list(arguments))}
        return decode(program.ask(message)["value"], program.remote)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What a call of it returns; what it does to its arguments is done here too."""
        program: Program = self.__dict__["_program"]
        message = {"do": "call", "of": self.__dict__["_number"], "named": _asked(named)}
        answer = program.ask({**message, "arguments": _asked(list(arguments))})
        theirs = decode(answer["arguments"], program.remote)
        for mine, its in zip(arguments, theirs, strict=True):
            if isinstance(mine, list | dict | set) and type(mine) is type(its) and mine != its:
                mine.clear()
                (mine.extend if isinstance(mine, list) else mine.update)(its)
        return decode(answer["value"], program.remote)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        return self._ask("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __instancecheck__(self, other: Any) -> bool:
        """Whether another object of the program is of this class."""
        return isinstance(other, Remote) and self._ask("is", other) is True

    def __eq__(self, other: object) -> bool:
        # With what is no object of its own a program does not say itself that it is equal; what a
        # collection of its own is made of, is compared here.
        if not isinstance(other, Remote):
            plain = self._ask("plain")
            return plain is not None and bool(plain == other)
        is_same = self.__dict__["_number"] == other.__dict__["_number"]
        return is_same or self._ask("__eq__", other) is True


def _special(name: str) -> Callable[..., Any]:
    return lambda self, *arguments: self._ask(name, *arguments)


for _name in (*_SPECIAL, *SIMPLE):
    setattr(Remote, _name, _special(_name))


# --- The parts of pytest that tests of one function use -------------------------------------------


class _Raises:
    """`pytest.raises`."""

    def __init__(self, kinds: Any, match: str | None = None) -> None:
        self.kinds, self.match = kinds, match
        self.value: BaseException | None = None
        self.type: type[BaseException] | None = None

    def __enter__(self) -> _Raises:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if kind is None:
            raise AssertionError("nothing was raised")
        self.value, self.type = error, kind
        if not issubclass(kind, self.kinds):
            return False
        if self.match is not None and not re.search(self.match, str(error)):
            raise AssertionError("the message is another one")
        return True


def _raises(kinds: Any, *call: Any, match: str | None = None, **named: Any) -> _Raises:
    if not call:
        return _Raises(kinds, match)
    with _Raises(kinds) as raised:
        call[0](*call[1:], **named)
    return raised


class _Approximately:
    """`pytest.approx`."""

    def __init__(
        self,
        expected: Any,
        rel: float | None = None,
        abs: float | None = None,
        nan_ok: bool = False,
    ) -> None:
        self.expected, self.nan_ok = expected, nan_ok
        self.absolute = 1e-12 if abs is None else abs
        self.relative = (0.0 if abs is not None else 1e-6) if rel is None else rel

    def _close(self, value: Any, wanted: Any) -> bool:
        if isinstance(value, Remote):
            return False
        if isinstance(wanted, dict):
            return (
                isinstance(value, dict)
                and value.keys() == wanted.keys()
                and all(self._close(value[name], wanted[name]) for name in wanted)
            )
        if isinstance(wanted, list | tuple):
            is_like = isinstance(value, list | tuple) and len(value) == len(wanted)
            return is_like and all(map(self._close, value, wanted))
        if not isinstance(wanted, int | float | complex):
            return bool(value == wanted)
        if wanted != wanted:
            return self.nan_ok and value != value
        return bool(
            value == wanted
            or abs(value - wanted) <= max(self.relative * abs(wanted), self.absolute)
        )

    def __eq__(self, value: object) -> bool:
        return self._close(value, self.expected)


class _Marks:
    """`pytest.mark`: parameters are kept, all other marks say nothing here."""

    def __getattr__(self, name: str) -> Any:
        def mark(*given: Any, **_: Any) -> Any:
            if name == "parametrize":
                return lambda function: _with_parameters(function, *given[:2])
            return given[0] if len(given) == 1 and callable(given[0]) else lambda function: function

        return mark


def _with_parameters(function: Any, names: Any, values: Any) -> Any:
    names = names.replace(",", " ").split() if isinstance(names, str) else list(names)
    rows = []
    for given in values:
        row = given.values if isinstance(given, _Parameters) else given
        is_one = len(names) == 1 and not isinstance(given, _Parameters)
        rows.append(dict(zip(names, [row] if is_one else row, strict=True)))
    before = getattr(function, "_cases", [{}])
    function._cases = [{**one, **more} for one in before for more in rows]
    return function


class _Parameters:
    """`pytest.param`."""

    def __init__(self, *values: Any, **_: Any) -> None:
        self.values = values


def _fixture(*given: Any, **_: Any) -> Any:
    def mark(function: Any) -> Any:
        function._is_fixture = True
        return function

    return mark(given[0]) if given and callable(given[0]) else mark


def _fail(reason: str = "", *_: Any, **__: Any) -> None:
    raise AssertionError(reason)


def _pytest() -> types.ModuleType:
    module = types.ModuleType("pytest")
    module.__dict__.update(
        raises=_raises,
        approx=_Approximately,
        mark=_Marks(),
        param=_Parameters,
        fixture=_fixture,
        fail=_fail,
    )
    return module


def _fixtures(function: Any, space: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The values of a function's parameters that fixtures of its module make."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount - len(function.__defaults__ or ())]
    wanted = [name for name in names if name not in given and name != "self"]
    return {name: _fixture_value(name, space) for name in wanted}


def _fixture_value(name: str, space: dict[str, Any]) -> Any:
    function = space[name]
    if not getattr(function, "_is_fixture", False):
        raise LookupError(f"there is no fixture {name}")
    value = function(**_fixtures(function, space, {}))
    return next(value) if isinstance(value, types.GeneratorType) else value
