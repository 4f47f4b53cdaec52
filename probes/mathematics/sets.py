r"""Answers of several parts: lists, tuples and sets, and intervals with the inequalities they are.

A list (`1, 2`, `x = 1 or x = 2`, `\pm 3`) is unordered and its repeats count; a tuple is ordered; a
set is unordered. An interval or a union is read from brackets, `x \ge 2`, `1 < x \le 3`,
`x \ne 3`, `\mathbb{R}` and `\{x : x > 2\}`. The parts stay text, for whoever compares them.

Every regular expression of this module takes time linear in its text.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from probes.mathematics.numbers import read_number

MOST_PARTS = 200

Same = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Collection:
    """Several parts, in the order in which they stand."""

    kind: Literal["list", "tuple", "set", "brackets"]
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`, in text."""

    low: str
    low_is_open: bool
    high: str
    high_is_open: bool

    def __str__(self) -> str:
        left, right = "(" if self.low_is_open else "[", ")" if self.high_is_open else "]"
        return f"{left}{self.low}, {self.high}{right}"


_MARKS = re.compile(
    r"\\[{}]|\\[lr]angle(?![A-Za-z])|\\cup(?![A-Za-z])|\\[A-Za-z]+|[()\[\]{},;]|"
    r"(?<![A-Za-z\\])(?:and|or|U)(?![A-Za-z])|\|"
)
_OPEN = frozenset(("(", "[", "{", r"\{", r"\langle"))
_CLOSE = frozenset((")", "]", "}", r"\}", r"\rangle"))
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_FRENCH = re.compile(r"([\[\]])\s?([^\[\],;]+)[,;]([^\[\],;]+?)\s?([\[\]])")


def split_parts(text: str, separators: frozenset[str]) -> list[str]:
    """The parts between separators that stand outside of brackets."""
    parts, start, depth = [], 0, 0
    for mark in _MARKS.finditer(text):
        if mark[0] in _OPEN:
            depth += 1
        elif mark[0] in _CLOSE:
            depth = max(depth - 1, 0)
        elif depth == 0 and mark[0] in separators:
            parts.append(text[start : mark.start()].strip())
            start = mark.end()
    parts.append(text[start:].strip())
    return parts


def inside(text: str) -> tuple[str, str, str] | None:
    """The bracket that opens a text, what it holds and the one that closes it, if at the end."""
    depth, opening, content = 0, "", 0
    for mark in _MARKS.finditer(text):
        if mark[0] in _OPEN:
            if depth == 0:
                if mark.start() > 0:
                    return None
                opening, content = mark[0], mark.end()
            depth += 1
        elif mark[0] in _CLOSE:
            depth -= 1
            if depth <= 0:
                if mark.end() == len(text) and opening:
                    return opening, text[content : mark.start()].strip(), mark[0]
                return None
    return None


_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
SEPARATORS = frozenset((",", ";", "and", "or"))


def _parts(text: str) -> list[str]:
    if ", " in text or ";" in text:  # 1,000, 2,000
        text = _GROUPED.sub(lambda match: match[0].replace(",", ""), text)
    return [part for part in split_parts(text, SEPARATORS) if part]


@lru_cache(maxsize=16384)
def read_collection(text: str) -> Collection | None:
    """The parts of a text in canonical notation; None where it is a single thing."""
    if len(text) > 10_000:
        return None
    bracketed = inside(text)
    if bracketed is not None:
        opening, content, closing = bracketed
        if opening == r"\{":
            if "|" in content or ":" in content or r"\mid" in content:
                return None
            return Collection("set", _spread(_parts(content))) if content else None
        parts = split_parts(content, frozenset((",", ";")))
        if len(parts) > 1 and all(parts):
            if opening in ("(", r"\langle") and closing in (")", r"\rangle"):
                return Collection("tuple", tuple(parts))
            if opening == "[" and closing == "]":
                return Collection("brackets", tuple(parts))
            if opening == "{":
                return Collection("list", _spread(_parts(content)))
        return None
    parts = _parts(text)
    if len(parts) > 1:
        spread = _spread(parts)
        return Collection("list", spread) if len(spread) <= MOST_PARTS else None
    both = list(_signs(text))
    return Collection("list", tuple(both)) if len(both) == 2 else None


def _spread(parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(one for part in parts for one in _signs(part))


def _signs(text: str) -> Iterator[str]:
    r"""`1 \pm x` as `1 + x` and `1 - x`."""
    if len(_PLUS_MINUS.findall(text)) != 1:
        yield text
        return
    for sign, other in (("+", "-"), ("-", "+")):
        one = _PLUS_MINUS.sub(sign, text).replace(r"\mp", other)
        yield one.removeprefix("+").strip()


def same_parts(gold: Sequence[str], found: Sequence[str], same: Same, *, ordered: bool) -> bool:
    """Whether each part has its own equal: in order, or in any."""
    if len(gold) != len(found):
        return False
    if ordered:
        return all(same(one, other) for one, other in zip(gold, found, strict=True))
    left = list(found)
    for one in gold:
        match = next((place for place, other in enumerate(left) if same(one, other)), None)
        if match is None:
            return False
        del left[match]
    return True


# --- intervals ------------------------------------------------------------------------------------

_EVERYTHING = Interval(r"-\infty", True, r"\infty", True)
_VARIABLE = r"[A-Za-z](?:_\{?\w{1,5}\}?)?|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega|sigma)"
_MEMBER = re.compile(rf"(?P<name>{_VARIABLE}|f\(x\))\s?(?:\\in|=)(?![A-Za-z])\s?")
_BUILDER = re.compile(
    rf"\\\{{\s?({_VARIABLE})\s?(?:\\in\s?(?:\\mathbb\s?\{{?\s?R\s?\}}?|R))?\s?(?:\||:|\\mid)\s?(.+)\\\}}"
)
_RELATION = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|<|>")
_MIRRORED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_REALS = re.compile(
    r"(?:\\mathbb\s?\{?\s?R\s?\}?|(?:\\text\s?\{\s?)?all real(?: numbers?| values?)?s?(?:\s?\})?)",
    re.IGNORECASE,
)
_WITHOUT = re.compile(
    r"(?:\\mathbb\s?\{?\s?R\s?\}?|\(\s?-\s?\\infty\s?,\s?\+?\s?\\infty\s?\))\s?"
    r"(?:\\setminus|\\backslash|-|\\)\s?\\\{(.+)\\\}"
)


@lru_cache(maxsize=16384)
def read_intervals(text: str) -> tuple[str | None, tuple[Interval, ...], bool] | None:
    """The variable, the intervals, and whether it is written as inequalities; None for all else."""
    if len(text) > 2_000:
        return None
    variable = None
    if built := _BUILDER.fullmatch(text):
        variable, text = built[1], built[2].strip()
    elif member := _MEMBER.match(text):
        variable, text = member["name"], text[member.end() :]
        if r"\in" not in member[0] and not _RELATION.search(text) and "infty" not in text:
            return None
    if without := _WITHOUT.fullmatch(text):
        points = [part for part in split_parts(without[1], SEPARATORS) if part]
        return variable, _around(points), False
    if _REALS.fullmatch(text):
        return variable, (_EVERYTHING,), False
    if not any(sign in text for sign in "([])<>\\"):
        return None
    parts = split_parts(text, frozenset((r"\cup", "U", "or")))
    found: list[Interval] = []
    is_relation = False
    for part in parts:
        bracketed = _bracketed(part)
        if bracketed is not None:
            found.append(bracketed)
            continue
        related = _related(part)
        if related is None or (variable not in (None, related[0])):
            return None
        variable, is_relation = related[0], True
        found.extend(related[1])
    return (variable, tuple(found), is_relation) if found else None


def _bracketed(text: str) -> Interval | None:
    held = inside(text)
    if held is None:
        french = _FRENCH.fullmatch(text)
        if french is None or (french[1], french[4]) == ("[", "]"):
            return None
        return Interval(french[2].strip(), french[1] == "]", french[3].strip(), french[4] == "[")
    opening, content, closing = held
    ends = split_parts(content, frozenset((",", ";")))
    if len(ends) != 2 or not all(ends) or opening not in ("(", "[") or closing not in (")", "]"):
        return None
    return _made(ends[0], opening == "(", ends[1], closing == ")")


def _made(low: str, low_is_open: bool, high: str, high_is_open: bool) -> Interval:
    low, high = low.strip(), high.strip()
    low = r"-\infty" if re.fullmatch(r"-\s?\\infty", low) else low
    high = r"\infty" if re.fullmatch(r"\+?\s?\\infty", high) else high
    return Interval(low, low_is_open or low == r"-\infty", high, high_is_open or high == r"\infty")


def _related(text: str) -> tuple[str, list[Interval]] | None:
    """The variable and the intervals of one inequality, or of several that hold at once."""
    parts = [part for part in split_parts(text, frozenset(("and", ",", r"\cap"))) if part]
    if not 0 < len(parts) <= 6:
        return None
    each = [_one_relation(part) for part in parts]
    known = [one for one in each if one is not None]
    if len(known) != len(each) or len({variable for variable, _ in known}) != 1:
        return None
    variable = known[0][0]
    if len(known) == 1:
        return variable, known[0][1]
    intervals = [interval for _, several in known for interval in several]
    if len(intervals) != 2:
        if all(len(several) == 2 for _, several in known):  # x ≠ 1, x ≠ 2
            return variable, list(_around([several[0].high for _, several in known]))
        return None
    return variable, _both(intervals[0], intervals[1], "and" in text)


def _both(one: Interval, other: Interval, surely: bool) -> list[Interval]:
    """What lies in a ray to the left and in one to the right; a comma may mean either of two."""
    rising, falling = (one, other) if one.high == r"\infty" else (other, one)
    if rising.high != r"\infty" or falling.low != r"-\infty":
        return [one, other]
    low, high = read_number(rising.low), read_number(falling.high)
    if not surely and (low is None or high is None or low.value >= high.value):
        return [one, other]
    return [Interval(rising.low, rising.low_is_open, falling.high, falling.high_is_open)]


def _one_relation(text: str) -> tuple[str, list[Interval]] | None:
    signs = [match[0] for match in _RELATION.finditer(text)]
    sides = [side.strip() for side in _RELATION.split(text)]
    if not 1 <= len(signs) <= 2 or not all(sides):
        return None
    if len(signs) == 1:
        left, right = sides
        size = re.fullmatch(rf"\|\s?({_VARIABLE})\s?\|", left)
        if size and signs[0] != r"\ne" and (number := read_number(right)) and number.value > 0:
            is_open = signs[0] in ("<", ">")
            if signs[0] in ("<", r"\le"):
                return size[1], [_made(f"-{right}", is_open, right, is_open)]
            return size[1], [
                _made(r"-\infty", True, f"-{right}", is_open),
                _made(right, is_open, r"\infty", True),
            ]
        if re.fullmatch(_VARIABLE, left):
            variable, bound, sign = left, right, signs[0]
        elif re.fullmatch(_VARIABLE, right):
            variable, bound, sign = right, left, _MIRRORED.get(signs[0], signs[0])
        else:
            return None
        if variable in bound.replace("\\", " "):
            return None
        if sign == r"\ne":
            return variable, list(_around([bound]))
        if sign in ("<", r"\le"):
            return variable, [_made(r"-\infty", True, bound, sign == "<")]
        return variable, [_made(bound, sign == ">", r"\infty", True)]
    low, variable, high = sides
    if not re.fullmatch(_VARIABLE, variable) or r"\ne" in signs:
        return None
    rising = [sign in ("<", r"\le") for sign in signs]
    if rising[0] != rising[1]:
        return None
    opens = [sign in ("<", ">") for sign in signs]
    if not rising[0]:
        low, high, opens = high, low, opens[::-1]
    return variable, [_made(low, opens[0], high, opens[1])]


def _around(points: Sequence[str]) -> tuple[Interval, ...]:
    """All numbers but these; in rising order where they are numbers."""
    values = [(number.value, point) for point in points if (number := read_number(point))]
    if len(values) == len(points):
        points = [point for _, point in sorted(values)]
    ends = [r"-\infty", *points, r"\infty"]
    return tuple(Interval(low, True, high, True) for low, high in pairwise(ends))


@lru_cache(maxsize=4096)
def read_chain(text: str) -> tuple[tuple[str, ...], tuple[bool, ...]] | None:
    r"""The sides of `a < b \le c`, from the least, and which signs are strict; None for others."""
    signs = [match[0] for match in _RELATION.finditer(text)]
    sides = [side.strip() for side in _RELATION.split(text)]
    rising = {sign in ("<", r"\le") for sign in signs}
    if len(signs) < 2 or len(rising) > 1 or r"\ne" in signs or not all(sides):
        return None
    strict = [sign in ("<", ">") for sign in signs]
    step = 1 if True in rising else -1
    return tuple(sides[::step]), tuple(strict[::step])


def same_intervals(gold: Sequence[Interval], found: Sequence[Interval], same: Same) -> bool:
    """Whether the unions hold the same intervals."""

    def equal(one: Interval, other: Interval) -> bool:
        if (one.low_is_open, one.high_is_open) != (other.low_is_open, other.high_is_open):
            return False
        return all(
            a == b or ("infty" not in a + b and same(a, b))
            for a, b in ((one.low, other.low), (one.high, other.high))
        )

    left = list(found)
    if len(gold) != len(found):
        return False
    for interval in gold:
        match = next((place for place, other in enumerate(left) if equal(interval, other)), None)
        if match is None:
            return False
        del left[match]
    return True
