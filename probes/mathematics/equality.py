r"""Whether two mathematical answers are one, and what was read of them.

Both are in one notation (`canonical`). An answer is read as what the gold is: text (`words`), a
plain number with its unit (`numbers`, `units`), intervals or a list (`sets`), and else an
expression (`symbolic`, where math-verify decides).

Every regular expression of this module takes time linear in its text; math-verify's do not.
"""

import re
from functools import lru_cache

from probes.mathematics.notation import canonical, text_unwrapped
from probes.mathematics.numbers import Number, read_number, same_number, same_value
from probes.mathematics.sets import (
    SEPARATORS,
    Collection,
    read_chain,
    read_collection,
    read_intervals,
    same_intervals,
    same_parts,
    split_parts,
)
from probes.mathematics.symbolic import (
    gold_expression,
    irrational_value,
    read_expression,
    same_expression,
)
from probes.mathematics.undone import is_left_undone, operations
from probes.mathematics.units import UnitPowers, split_unit, units_differ
from probes.mathematics.words import as_words, is_text, same_text

_NAME = (
    r"(?:[A-Za-z](?:_\s?\{?\s?\w{1,5}\s?\}?)?'?|\\[A-Za-z]+(?:_\s?\{?\s?\w{1,5}\s?\}?)?"
    r"|[A-Za-z]\s?\(\s?[A-Za-z0-9, ]{1,9}\s?\)|\(\s?[A-Za-z](?:\s?,\s?[A-Za-z]){1,4}\s?\))"
)
_SIDES = re.compile(r"(?<![<>!\\=])=(?!=)")
_APPROXIMATELY = re.compile(r"\\approx(?![A-Za-z])")
_TUPLE_OF_NAMES = re.compile(r"\(\s?([A-Za-z](?:\s?,\s?[A-Za-z]){1,4})\s?\)\s?=\s?(\(.+\))")
_CONSTANT = re.compile(r"\+\s?[Cc]$")
_DECIMAL_COMMA = re.compile(r"(-?\d+),(\d+)")
_IRRATIONAL = re.compile(
    r"\\(?:sqrt|pi|ln|log|sin|cos|tan|arcsin|arccos|arctan)(?![A-Za-z])|(?<![A-Za-z\\])e(?![A-Za-z])"
)
_MEMBER_OF = re.compile(rf"^\s*{_NAME}\s?\\in(?![A-Za-z])\s?")
_SPACE = re.compile(r"(?<!\d)\s|\s(?!\d)")
_LABELLED = re.compile(rf"\s*({_NAME})\s*")
_CHOICE = re.compile(
    r"(?:\\text(?:bf|rm)?\s?\{\s?\(?([A-J])\)?\s?[.):]?\s?\}|\(([A-J])\)|([A-J])[.):](?=\s))\s*(.+)"
)


@lru_cache(maxsize=16384)
def read_quantity(text: str) -> tuple[Number, UnitPowers | None] | None:
    """The plain number with its unit that a text is; None for all else."""
    plain = " ".join(text_unwrapped(text).split())
    for form in (text, plain) if plain != text else (text,):
        number = read_number(form)
        if number is not None:
            return number, None
        quantity = split_unit(form)
        if quantity.has_unit and (number := read_number(quantity.value)) is not None:
            return number, quantity.unit
    return None


def _before_approximation(text: str) -> tuple[str, str | None]:
    r"""`x = a \approx b` as `x = a` and b; `x \approx b` as `x = b`."""
    exact, *rounded = _APPROXIMATELY.split(text)
    if not rounded:
        return text, None
    if _LABELLED.fullmatch(exact):
        return f"{exact.strip()} = {rounded[-1].strip()}", None
    return exact.strip(), rounded[-1].strip()


@lru_cache(maxsize=16384)
def read_sides(text: str) -> tuple[str | None, str]:
    """The name that is said to equal, in small letters, and what the last side says."""
    text, _ = _before_approximation(text)
    sides = _SIDES.split(text)
    if len(sides) == 1 or any(len(split_parts(side, SEPARATORS)) > 1 for side in sides[:-1]):
        return None, text
    if len(sides) > 2 and len(split_parts(sides[1], SEPARATORS)) > 1:
        return None, text  # x = 1, y = 2 is a list
    name = _LABELLED.fullmatch(sides[0])
    result = sides[-1].strip()
    if _LABELLED.fullmatch(result) and len(sides) == 2 and read_quantity(sides[0].strip()):
        return result, sides[0].strip()  # 5 = x
    return (re.sub(r"[\s{}]", "", name[1]) if name else ""), result


def _names_differ(one: str | None, other: str | None) -> bool:
    return bool(one and other) and one.casefold() != other.casefold()  # type: ignore[union-attr]


def _squeezed(text: str) -> str:
    r"""The text without `\text{…}` and the spaces that separate no digits."""
    return _SPACE.sub("", " ".join(text_unwrapped(text).split()))


def _names_apart(text: str) -> str:
    """`(x, y) = (1, 2)` as `x = 1, y = 2`."""
    match = _TUPLE_OF_NAMES.fullmatch(text)
    if match is None:
        return text
    names, values = match[1].split(","), read_collection(match[2])
    if values is None or len(values.parts) != len(names):
        return text
    return ", ".join(
        f"{name.strip()} = {value}" for name, value in zip(names, values.parts, strict=True)
    )


def _choice_of(text: str) -> tuple[str | None, str]:
    """The letter that stands before an answer, as in `(A) 5`, and the answer."""
    match = _CHOICE.fullmatch(text)
    return (match[1] or match[2] or match[3], match[4]) if match else (None, text)


@lru_cache(maxsize=16384)  # the completions of one item share a few answers
def same_answer(gold: str, found: str) -> bool:
    """Whether two texts in canonical notation are one answer; letters of choices count."""
    if not found or len(found) > 10_000:
        return False
    (letter, value), (found_letter, found_value) = _choice_of(gold), _choice_of(found)
    if letter and (found_letter or re.fullmatch(r"\(?[A-J]\)?", found)):
        return letter == (found_letter or found.strip("()"))
    return _same(gold, found) or (bool(letter or found_letter) and _same(value, found_value))


@lru_cache(maxsize=16384)
def _same(gold: str, found: str) -> bool:
    """Whether two texts in canonical notation say the same."""
    gold, found = _names_apart(gold), _names_apart(found)
    if _squeezed(gold) == _squeezed(found):
        return True
    if _CONSTANT.search(gold):  # of integration
        gold, found = _CONSTANT.sub("+ C", gold), _CONSTANT.sub("+ C", found)
    name, value = read_sides(gold)
    quantity = read_quantity(value if name != "" else gold)
    if quantity is not None:
        return _same_quantity(quantity, name, found)
    if (comma := _DECIMAL_COMMA.fullmatch(gold)) and read_quantity(found):
        return _same(f"{comma[1]}.{comma[2]}", found)
    text = same_text(gold, found)
    if text is not None:
        return text
    if is_left_undone(found, gold):
        return False
    return _same_parts(gold, found)


def _same_quantity(gold: tuple[Number, UnitPowers | None], name: str | None, found: str) -> bool:
    found_name, value = read_sides(found)
    if _names_differ(name, found_name):
        return False
    value = _MEMBER_OF.sub("", value)
    read = read_quantity(value)
    if read is None and (comma := _DECIMAL_COMMA.fullmatch(value)):
        read = read_quantity(f"{comma[1]}.{comma[2]}")
    if _equals(gold, read) if read is not None else _is_irrational_value(gold, value):
        return True
    rounded = read_quantity(_before_approximation(found)[1] or "")
    if rounded is None or (read is not None and not _is_near(read[0], rounded[0])):
        return False
    return _equals(gold, rounded)


def _is_near(one: Number, other: Number) -> bool:
    """Whether one may be the other rounded."""
    return abs(one.value - other.value) * 100 <= abs(one.value)


def _is_irrational_value(gold: tuple[Number, UnitPowers | None], found: str) -> bool:
    r"""Whether a decimal gold is the value of what has no plain number, such as `\sqrt{17}`."""
    (wanted, unit), given = gold, split_unit(found)
    if wanted.is_exact or wanted.is_percent or not _IRRATIONAL.search(given.value):
        return False
    if any(operations(found)) or units_differ(unit, given.unit):
        return False
    value = irrational_value(given.value)
    return value is not None and same_value(wanted.value, value, is_exact=False)


def _equals(
    gold: tuple[Number, UnitPowers | None], found: tuple[Number, UnitPowers | None]
) -> bool:
    (wanted, unit), (number, found_unit) = gold, found
    if (number.is_percent and unit is not None) or (wanted.is_percent and found_unit is not None):
        return False
    return same_number(wanted, number) and not units_differ(unit, found_unit)


def _same_parts(gold: str, found: str) -> bool:
    """Intervals, collections, and what is left for SymPy."""
    intervals = read_intervals(gold)
    if intervals is not None:
        found_intervals = read_intervals(found)
        if found_intervals is not None:
            if _names_differ(intervals[0], found_intervals[0]):
                return False
            if same_intervals(intervals[1], found_intervals[1], _same):
                return True
    parts = read_collection(gold)
    if parts is not None and _is_list(parts):
        return _same_collection(parts, found)
    chain, found_chain = read_chain(gold), read_chain(found)
    if chain is not None and found_chain is not None:
        return chain[1] == found_chain[1] and same_parts(
            chain[0], found_chain[0], _same, ordered=True
        )
    if intervals is not None and intervals[1] and not intervals[2]:
        return False
    name, value = read_sides(gold)
    found_name, found_value = read_sides(found)
    if name:
        if found_name and found_name != name:
            return False
        if found_name != "" and _same(value, found_value):
            return True
        if found_name is None:
            return False
        return same_expression(_value_of(gold), _value_of(found))
    if name is None and found_name is not None:
        return _same(gold, found_value)
    if name == "" and found_name is None:
        return False
    return _same_expressions(gold, found)


def _value_of(text: str) -> str:
    return split_unit(text).value


def _same_expressions(gold: str, found: str) -> bool:
    """Whether expressions with their units are equal."""
    wanted, given = split_unit(gold), split_unit(found)
    if units_differ(wanted.unit, given.unit):
        return False
    if given.has_unit and not wanted.has_unit and same_expression(gold, found):
        return True
    return same_expression(wanted.value, given.value)


def _is_list(parts: Collection) -> bool:
    return len(parts.parts) > 1 or parts.kind == "set"


def _same_collection(gold: Collection, found: str) -> bool:
    found = _MEMBER_OF.sub("", found)
    _, value = read_sides(found) if found.count("=") == 1 else (None, found)
    given = read_collection(value) or read_collection(found)
    if given is None:
        grouped = re.split(r",\s?", value)  # 100,200 may be a number or a list
        if len(grouped) == len(gold.parts) > 1:
            given = Collection("list", tuple(grouped))
        elif len(gold.parts) == 1:
            given = Collection("list", (value,))
        else:
            return False
    if len(given.parts) == 1 and len(gold.parts) > 1 and (inner := read_collection(given.parts[0])):
        given = inner
    if gold.kind == "brackets" and len(gold.parts) == 2 and given.kind != "brackets":
        return False  # an interval with its ends
    if given.kind == "brackets" and len(given.parts) == 2 and gold.kind in ("tuple", "set"):
        return False
    if gold.kind == given.kind == "set":
        return same_parts(_distinct(gold.parts), _distinct(given.parts), _same, ordered=False)
    names = [read_sides(part)[0] for part in gold.parts]
    found_names = [read_sides(part)[0] for part in given.parts]
    is_named = all(names) and len(set(names)) == len(names)
    ordered = gold.kind in ("tuple", "brackets") or (is_named and not all(found_names))
    if gold.kind == "tuple" and all(found_names):  # x = 1, y = 2 for (1, 2)
        ordered = True
    return same_parts(gold.parts, given.parts, _same, ordered=ordered)


def _distinct(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.replace(" ", "") for part in parts))


@lru_cache(maxsize=4096)
def is_comparable(text: str) -> bool:
    """Whether a gold in canonical notation has something that an answer can be compared with."""
    text = _choice_of(text)[1]
    name, value = read_sides(text)
    if (read_quantity(value if name != "" else text)) or is_text(text) or read_intervals(text):
        return True
    parts = read_collection(text)
    if parts is not None and _is_list(parts):
        return all(is_comparable(part) for part in parts.parts)
    if name:
        return is_comparable(value) or gold_expression(text) is not None
    value = split_unit(text).value
    return gold_expression(text) is not None or gold_expression(value) is not None


def can_be_computed(text: str) -> bool:
    """Whether a text in canonical notation is a number or an expression, and no words."""
    return read_quantity(text) is not None or (
        not is_text(text) and read_expression(text) is not None
    )


def shown_answer(text: str) -> str:
    """What is compared of an answer or a gold: a number with its unit, words, parts, or values."""
    form = _choice_of(canonical(text))[1]
    name, value = read_sides(form)
    quantity = read_quantity(value if name != "" else form)
    if quantity is not None:
        number, unit = quantity
        read = str(number.value) + ("%" if number.is_percent else "")
        return " ".join([read, *(_shown_unit(unit) if unit else ())])
    if words := as_words(form):
        return words
    if is_text(form):
        return form
    intervals = read_intervals(form)
    if intervals is not None:
        return " or ".join(map(str, intervals[1]))
    parts = read_collection(form)
    if parts is not None and _is_list(parts):
        return f"{parts.kind} of " + "; ".join(map(shown_answer, parts.parts))
    expression = read_expression(split_unit(form).value)
    return form if expression is None else str(expression)


def _shown_unit(unit: UnitPowers) -> list[str]:
    return [name if power == 1 else f"{name}^{power}" for name, power in unit]


def why_unequal(found: str, gold: str) -> str:
    """What is in the way of an answer beside its value; empty where it is the value alone."""
    wanted, given = canonical(gold), canonical(found)
    name, value = read_sides(wanted)
    found_name, found_value = read_sides(given)
    if _names_differ(name, found_name):
        return "another name"
    quantity = read_quantity(value if name != "" else wanted)
    found_quantity = read_quantity(found_value)
    if quantity is not None and found_quantity is not None:
        if units_differ(quantity[1], found_quantity[1]):
            return "another unit"
        return "" if found_quantity[0].is_done else "the fraction is not in lowest terms"
    if quantity is not None:
        is_words = as_words(found_value) is not None
        return "no number" if is_words else "arithmetic is left undone"
    if is_text(wanted):
        return "compared as text"
    return "arithmetic is left undone" if is_left_undone(given, wanted) else ""
