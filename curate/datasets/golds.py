r"""Reading a gold answer from a value of a row: a number, a text, or a text that marks it.

A text marks its gold as GSM8K does (`#### 72`) or as `\boxed{72}`. A list, also one written as JSON
text as Skywork-OR1 does, must be of one answer. Numbers are written out, because what is judged is
text: 0.00001 is no "1e-05".

Texts are untrusted and may be long: everything here takes time linear in their length.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

from curate.datasets.code_tests import is_code_gold
from curate.datasets.fields import MISSING, RowRejected, object_in, type_name

_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
# A box opens, an escaped character (a brace among them) is passed over, a brace opens or closes.
_BOX_TOKEN = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# Powers of ten beyond which a number is no longer written out.
_SMALLEST_POWER, _LARGEST_POWER = -20, 30
# What NuminaMath-1.5 has in the place of an answer.
_NO_ANSWERS = frozenset({"proof", "notfound"})
_TESTS = ({"inputs", "outputs"}, {"test_cases"}, {"fn_name"}, {"input_output"}, {"assert_case"})
_CONSTRAINTS = ({"func_name"}, {"instruction_id"}, {"instruction_id_list"})


def read_gold(answer: Any, field: str, *, must_be_marked: bool) -> str:
    """The gold answer that the value of a field holds.

    Args:
        field: where it stands, for the reason.
        must_be_marked: whether it is a solution, in which the gold must be marked.

    Raises:
        RowRejected: there is none, or there are several.
    """
    return marked_gold(_answer_text(answer, field), must_be_marked=must_be_marked)


def _answer_text(answer: Any, field: str) -> str:
    if isinstance(answer, str) and answer.lstrip().startswith('["'):
        listed = _texts_in(answer)
        answer = answer if listed is None else listed
    if isinstance(answer, list):
        if len(answer) != 1:
            raise RowRejected(f"the gold answer is a list of {len(answer)}, not one answer")
        answer = answer[0]
    if answer is MISSING or answer is None:
        raise RowRejected(f"no gold answer: {field!r} is missing or null")
    if isinstance(answer, float | Decimal):
        if not math.isfinite(answer):
            raise RowRejected(f"no gold answer: it is {answer}")
        return decimal_text(answer)
    if not isinstance(answer, str | int):
        raise RowRejected(f"the gold answer is {type_name(answer)}, not text or a number")
    return str(answer)


def _texts_in(text: str) -> list[str] | None:
    """The strings of a list that is written as JSON; None where it is another thing."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list) and all(isinstance(each, str) for each in found):
        return found
    return None


def decimal_text(number: float | Decimal) -> str:
    """A finite number as one writes it: 0.00001, and LaTeX's power of ten where it is very long."""
    exact = number if isinstance(number, Decimal) else Decimal(repr(number))
    if not exact or _SMALLEST_POWER <= exact.adjusted() <= _LARGEST_POWER:
        return format(exact, "f")
    mantissa = exact.scaleb(-exact.adjusted()).normalize()
    return f"{mantissa:f} \\times 10^{{{exact.adjusted()}}}"


def marked_gold(text: str, *, must_be_marked: bool) -> str:
    """The gold that a text marks, or else the text itself.

    Raises:
        RowRejected: it is empty, or must be marked and is not.
    """
    gold = extract_gold(text)
    if gold is None:
        if must_be_marked:
            raise RowRejected("no gold answer: the solution has neither \\boxed{} nor ####")
        gold = text.strip()
    if not gold:
        raise RowRejected("no gold answer: it is empty")
    return gold


def why_no_answer(gold: str) -> str | None:
    """Why a text in an answer's place is none that a verifier of answers could judge; else None."""
    if gold in _NO_ANSWERS:
        return f"no gold answer: the dataset has {gold!r} in its place"
    if is_code_gold(gold):
        return "its gold answer is tests of a program, which verifiers of answers cannot judge"
    if gold[:1] not in ("{", "["):
        return None
    found = object_in(gold)
    if isinstance(found, list) and found:
        if all(isinstance(each, str) and each.startswith("assert ") for each in found):
            return "its gold answer is tests of a program, which verifiers of answers cannot judge"
        found = found[0] if isinstance(found[0], dict) else object_in(str(found[0]))
    if not isinstance(found, dict):
        return None
    names = set(found)
    if any(each <= names for each in _TESTS):
        return "its gold answer is tests of a program, which verifiers of answers cannot judge"
    if any(each <= names for each in _CONSTRAINTS):
        return "its gold answer is constraints on the wording, which no verifier here judges"
    return None


def extract_gold(text: str) -> str | None:
    r"""The gold answer that a text marks, stripped: GSM8K's `#### 72`, or `\boxed{72}`; else None.

    The last mark counts. Thousands commas are dropped from a number after `####`. A `####` with
    more than one line after it is taken for a heading if the text has a box.
    """
    _, mark, tail = text.rpartition("####")
    tail = tail.strip()
    is_heading = "\n" in tail
    boxed = last_boxed(tail if mark and not is_heading else text)
    if boxed is not None:
        return boxed
    if not mark:
        return None
    return tail.replace(",", "") if _THOUSANDS.fullmatch(tail) else tail


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` or `\fbox{…}` whose braces balance; None if none does.

    Of nested boxes the inner counts.
    """
    opened: list[tuple[int, bool]] = []  # Where the inside of each open brace starts; a box?
    inside = None
    for token in _BOX_TOKEN.finditer(text):
        symbol = token.group()
        if symbol.endswith("{") and symbol != r"\{":
            opened.append((token.end(), symbol != "{"))
        elif symbol == "}" and opened:
            start, is_box = opened.pop()
            if is_box and (inside is None or start > inside[0]):
                inside = (start, token.start())
    return None if inside is None else text[inside[0] : inside[1]].strip()
