"""Conditions on a row's columns, as `curate filter --expr` takes them.

They are written like Python's and parsed by its grammar, but nothing is ever evaluated as Python:
what the tree may hold is listed here, and each part becomes a function of this module.

- column names, also with dots in them as `curate join` writes them (`small.pass_rate`), dotted ones
  for fields inside objects, and column("any name");
- numbers, text, True, False, and lists of them;
- < <= > >= == !=, in, not in, is None, is not None (null, true and false are known too);
- and, or, not, parentheses.

Null (NaN too) is unknown: a comparison with it is false, != and not in included, so that `not` of
one is true; only `is None` asks for it. Text is compared with a number as a number where it is one.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from typing import Any

from curate.errors import UsageError

_LONGEST = 2000  # Characters.
_MOST_PARTS = 500
_DEEPEST = 20

Row = Mapping[str, Any]
_Operand = Callable[[Row], Any]
_Condition = Callable[[Row], bool]
_WORDS: dict[str, bool | None] = {"null": None, "true": True, "false": False}
_ORDERINGS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class Expression:
    """A condition that was parsed; `text` is what the user wrote."""

    text: str
    _condition: _Condition = field(repr=False, compare=False)

    def matches(self, row: Row) -> bool:
        """Whether a row meets the condition.

        Raises:
            ValueError: values of the row cannot be compared so.
        """
        return self._condition(row)


def parse_expression(text: str, columns: Collection[str]) -> Expression:
    """Parse a condition on rows that have these columns.

    Raises:
        UsageError: it is no such condition, names a column that is not there (says which is
            nearest), or is longer, deeper or larger than any that a person writes.
    """
    if len(text) > _LONGEST:
        raise UsageError(f"--expr is longer than {_LONGEST:,} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's about odd escapes are not for our user.
            tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = getattr(error, "msg", None) or "nested too deep"
        raise UsageError(f"--expr {text!r:.80} cannot be read: {reason}") from error
    if sum(1 for _ in ast.walk(tree)) > _MOST_PARTS:
        raise UsageError(f"--expr has more than {_MOST_PARTS} parts")
    return Expression(text.strip(), _Parser(text, columns).condition(tree.body, 0))


def plain_value(value: Any) -> Any:
    """A cell as it is compared: NaN is null, dates and times are ISO 8601 text."""
    if isinstance(value, float | Decimal) and math.isnan(value):
        return None
    return value.isoformat() if isinstance(value, date | time) else value


def as_number(value: Any) -> int | float | Decimal | None:
    """A number, or the number that a text is; None for everything else."""
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return math.inf if value > 0 else -math.inf
    if isinstance(value, int | float | Decimal):
        return value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return None
        return None if math.isnan(number) else number
    return None


def number_in(row: Mapping[str, Any], name: str, place: int) -> float | None:
    """The finite number in a cell of the row at a place, from 0; None where there is none.

    Raises:
        UsageError: something else is in it.
    """
    given = plain_value(row.get(name))
    number = None if given is None else as_number(given)
    if given is not None and (number is None or not math.isfinite(number)):
        raise UsageError(f"row {place + 1}: {name} is {given!r:.60}, not a number")
    return None if number is None else float(number)


class _Parser:
    """Makes functions of the parts of one expression."""

    def __init__(self, text: str, columns: Collection[str]) -> None:
        self.text = text
        self.columns = columns

    def condition(self, node: ast.expr, depth: int) -> _Condition:
        if depth > _DEEPEST:
            raise UsageError(f"--expr is nested deeper than {_DEEPEST} levels")
        if isinstance(node, ast.BoolOp):
            parts = [self.condition(value, depth + 1) for value in node.values]
            if isinstance(node.op, ast.And):
                return lambda row: all(part(row) for part in parts)
            return lambda row: any(part(row) for part in parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.condition(node.operand, depth + 1)
            return lambda row: not inner(row)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = [
                self.comparison(left, op, right)
                for left, op, right in zip(sides, node.ops, sides[1:], strict=False)
            ]
            return lambda row: all(pair(row) for pair in pairs)
        raise self.refused(node, "is no comparison, such as pass_rate < 0.9")

    def comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Condition:
        if isinstance(op, ast.Is | ast.IsNot):
            if not self.is_null(right):
                raise self.refused(right, "cannot follow `is`; only None can")
            value, wanted = self.operand(left), isinstance(op, ast.Is)
            return lambda row: (value(row) is None) is wanted
        for side in (left, right):
            if self.is_null(side):
                raise self.refused(side, "equals nothing; write `is None` or `is not None`")
        a = self.operand(left)
        if isinstance(op, ast.In | ast.NotIn):
            b, wanted = self.container(right), isinstance(op, ast.In)
            return lambda row: _is_in(a(row), b(row), wanted)
        b = self.operand(right)
        if isinstance(op, ast.Eq | ast.NotEq):
            wanted = isinstance(op, ast.Eq)
            return lambda row: _known(a(row), b(row)) and _equal(a(row), b(row)) is wanted
        compare = _ORDERINGS[type(op)]
        return lambda row: _known(a(row), b(row)) and compare(*_comparable(a(row), b(row)))

    def container(self, node: ast.expr) -> _Operand:
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            values = [self.constant(element) for element in node.elts]
            return lambda row: values
        return self.operand(node)

    def operand(self, node: ast.expr) -> _Operand:
        if isinstance(node, ast.Name) and (node.id in self.columns or node.id not in _WORDS):
            return self.column(node.id)
        if isinstance(node, ast.Attribute):
            return self.column(self.dotted(node))
        if isinstance(node, ast.Call):
            return self.column(self.called(node))
        value = self.constant(node)
        return lambda row: value

    def constant(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
            return node.value
        if isinstance(node, ast.Name) and node.id in _WORDS:
            return _WORDS[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = self.constant(node.operand)
            if isinstance(value, int | float):
                return -value if isinstance(node.op, ast.USub) else value
        raise self.refused(node, "is neither a column nor a number nor a text")

    def dotted(self, node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return f"{self.dotted(node.value)}.{node.attr}"
        if isinstance(node, ast.Name):
            return node.id
        raise self.refused(node, "is no column")

    def called(self, node: ast.Call) -> str:
        is_column = isinstance(node.func, ast.Name) and node.func.id == "column"
        argument = node.args[0] if len(node.args) == 1 and not node.keywords else None
        if is_column and isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            return argument.value
        raise self.refused(node, 'cannot be called; only column("NAME") can')

    def column(self, name: str) -> _Operand:
        if name in self.columns:
            return lambda row: plain_value(row.get(name))
        first, *path = name.split(".")
        if not path or first not in self.columns:
            # Of several models each column's name has the model's before a dot.
            is_model = any(each.startswith(f"{first}.") for each in self.columns)
            wrong = name if is_model else first
            raise UsageError(f"--expr: {unknown_column(wrong, self.columns)}")

        def look_up(row: Row) -> Any:
            value: Any = row
            for part in (first, *path):
                value = value.get(part) if isinstance(value, Mapping) else None
            return plain_value(value)

        return look_up

    def is_null(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return node.id == "null" and "null" not in self.columns
        return isinstance(node, ast.Constant) and node.value is None

    def refused(self, node: ast.expr, why: str) -> UsageError:
        part = ast.get_source_segment(self.text.strip(), node) or ast.unparse(node)
        return UsageError(f"--expr: {part!r} {why}")


def unknown_column(name: str, columns: Collection[str]) -> str:
    """Say that no column has this name, and which is the nearest."""
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.0)
    return f"no column {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _known(*values: Any) -> bool:
    return all(value is not None for value in values)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, str) is not isinstance(b, str):
        x, y = as_number(a), as_number(b)
        return x is not None and y is not None and x == y
    return bool(a == b)


def _is_in(value: Any, container: Any, wanted: bool) -> bool:
    if not _known(value, container):
        return False
    if isinstance(container, list | tuple):
        return any(_equal(value, each) for each in container if each is not None) is wanted
    if isinstance(container, str) and isinstance(value, str):
        return (value in container) is wanted
    raise ValueError(f"{container!r:.60} is neither a list nor a text that may hold {value!r:.60}")


def _comparable(a: Any, b: Any) -> tuple[Any, Any]:
    if isinstance(a, str) and isinstance(b, str):
        return a, b
    x, y = as_number(a), as_number(b)
    if x is None or y is None:
        raise ValueError(f"{a!r:.60} and {b!r:.60} cannot be put in order")
    return x, y
