"""Running a program: as a script, for a call of its function, or for tests to make use of."""

from __future__ import annotations

import io
import json
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

from probes.verifiers.guest.values import SOLUTION, decode, encode, write_all

MOST_NAMES = 1000  # of a program that tests may use

# What LeetCode's own environment has imported for solutions that are one function.
_PRELUDE = """
import array, bisect, collections, copy, datetime, functools, heapq, itertools, math, operator
import random, re, string, sys
from bisect import bisect, bisect_left, bisect_right, insort
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from functools import cache, cmp_to_key, lru_cache, reduce
from heapq import heapify, heappop, heappush, heappushpop, heapreplace, nlargest, nsmallest
from itertools import accumulate, chain, combinations, count, groupby, pairwise, permutations
from itertools import product, zip_longest
from math import ceil, comb, factorial, floor, gcd, inf, isqrt, lcm, log, log2, sqrt
from typing import *
"""

# What tests may ask of an object that is another function than the method of that name.
SIMPLE: dict[str, Any] = {
    "__bool__": bool,
    "__str__": str,
    "__repr__": repr,
    "__iter__": iter,
    "__hash__": hash,
}
# What a program's own kind of collection is equal to.
_PLAIN: tuple[Any, ...] = (tuple, list, dict, set, frozenset)


def prelude() -> dict[str, Any]:
    """The names that every function finds imported, as on LeetCode."""
    names: dict[str, Any] = {}
    exec(_PRELUDE, names)
    return names


def own_streams() -> None:
    """Put streams of Python's on the file descriptors that this process was given."""

    def opened(fd: int, mode: str) -> io.TextIOWrapper:
        return io.TextIOWrapper(os.fdopen(fd, mode, closefd=False), encoding="utf-8")

    sys.stdin = sys.__stdin__ = opened(0, "rb")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = opened(1, "wb")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = opened(2, "wb")  # type: ignore[misc]


def compile_only(source: str) -> None:
    """Compile a program; raises where it is not Python."""
    compile(source, "solution.py", "exec")


def run_script(source: str) -> None:
    """Run a program as `python solution.py` would."""
    own_streams()
    sys.argv = ["solution.py"]
    _as_module(source, "__main__", {})


def run_call(source: str, name: str, arguments: list[Any]) -> None:
    """Call a function of a program, or a method of its `Solution`, and write what it returns."""
    own_streams()
    result = os.dup(1)
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    module = _as_module(source, SOLUTION, prelude())
    function = getattr(module, name, None)
    if not callable(function) and hasattr(module, "Solution"):
        function = getattr(module.Solution(), name)
    value = function(*arguments)  # type: ignore[misc]
    write_all(result, json.dumps(encode(value)).encode())


def _as_module(source: str, name: str, before: dict[str, Any]) -> types.ModuleType:
    """The module that a program makes; what was there `before` is its `__prelude__`."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    module.__dict__.update(before, __name__=name, __prelude__=before)
    exec(compile(source, "solution.py", "exec"), module.__dict__)
    return module


def serve_program(source: str) -> None:
    """Run a program, and do with what it defines what the process of the tests asks for.

    Nothing is run before that process has asked, and so has read the tests.
    """
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open("/dev/null", os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    own_streams()
    served = _Served(source)
    for line in asked:
        try:
            answer = json.dumps(served.do(json.loads(line)))
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is the tests' to judge)
            kinds = [kind.__name__ for kind in type(error).__mro__]
            words = [each if isinstance(each, int | str) else str(each) for each in error.args]
            answer = json.dumps({"raised": kinds, "words": words[:4]})
        answers.write(answer.encode() + b"\n")
        answers.flush()


class _Served:
    def __init__(self, source: str) -> None:
        self._source = source
        self._objects: dict[int, Any] = {}

    def do(self, asked: dict[str, Any]) -> dict[str, Any]:
        what = asked["do"]
        if what == "start":
            return {"names": dict(self._names(_as_module(self._source, SOLUTION, prelude())))}
        of, arguments = self._objects[asked["of"]], decode(asked["arguments"], self._known)
        if what == "call":
            value = of(*arguments, **decode(asked["named"], self._known))
            return {"value": self._told(value), "arguments": self._told(arguments)}
        if what == "get":
            value = getattr(of, *arguments)
        elif what == "set":
            setattr(of, *arguments)
            value = None
        elif what == "is":
            value = isinstance(arguments[0], of)
        elif what == "plain":
            value = next((kind(of) for kind in _PLAIN if isinstance(of, kind)), None)
        elif what in SIMPLE:
            value = SIMPLE[what](of)
        else:
            method = getattr(type(of), what, None)
            if method is None:
                raise TypeError(f"a {type(of).__name__} has no {what}")
            value = method(of, *arguments)
        return {"value": self._told(None if value is NotImplemented else value)}

    def _names(self, module: types.ModuleType) -> Iterator[tuple[str, dict[str, Any]]]:
        held = list(module.__dict__.items())
        own = [each for each in held if module.__prelude__.get(each[0]) is not each[1]]
        for name, value in own[:MOST_NAMES]:
            if name.startswith("__"):
                continue
            if isinstance(value, types.ModuleType):
                yield name, {"module": value.__name__}
            elif isinstance(value, type) and issubclass(value, BaseException):
                yield name, {"error": [kind.__name__ for kind in value.__mro__]}
            else:
                yield name, {"value": self._told(value)}

    def _told(self, value: Any) -> Any:
        return encode(value, self._hold)

    def _hold(self, value: Any) -> list[Any]:
        self._objects[id(value)] = value
        return [id(value), type(value).__name__]

    def _known(self, pair: list[Any]) -> Any:
        return self._objects[pair[0]]
