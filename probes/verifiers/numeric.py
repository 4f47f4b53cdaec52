r"""The `numeric` verifier: equality of numbers, to a relative 1e-6.

Every regular expression of this module takes time linear in its text.
"""

import math
import re

from probes.mathematics.boxes import without_empty_boxes
from probes.mathematics.notation import canonical, in_ascii, text_unwrapped
from probes.mathematics.numbers import read_number
from probes.mathematics.sets import read_collection
from probes.mathematics.units import split_unit
from probes.verifiers.answers import announced, given_answer, is_stated, spoken
from probes.verifiers.verdict import NO_ANSWER, Verdict, judged, unjudged

RELATIVE_TOLERANCE = 1e-6

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)(?:\\?[$€£₹¥])?(?P<sign_after>-?)
    (?: (?P<mixed>\d+)(?:\s?\\[dt]?frac\{{(?P<part>\d+)\}}\{{(?P<whole>\d+)\}}
            |\s(?P<slash_part>\d+)/(?P<slash_whole>\d+)(?!\d))
      | \\[dt]?frac\s?\{{(?P<over>-?{_DECIMAL})\}}\s?\{{(?P<under>{_DECIMAL})\}}
      | \\[dt]?frac\s?(?P<over_digit>\d)\s?(?P<under_digit>\d)
      | 10\s?(?:\^|\*\*)\s?\{{?(?P<of_ten>[-+]?\d{{1,4}})\}}?
      | (?P<decimal>{_DECIMAL})
        (?: /(?P<divisor>{_DECIMAL})
          | [eE](?P<exponent>[-+]?\d{{1,4}})(?!\d)
          | \s?(?:\\times|\\cdot|\*|x)\s?10\s?(?:\^|\*\*)\s?\{{?(?P<power>[-+]?\d{{1,4}})\}}? )?
    )
    (?P<percent>\s?\\?%)?""",
    re.VERBOSE,
)
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;:!]|\{,\})(?=\d{3}(?!\d))")
_OPERATIONS = re.compile(
    r"\\(?:sqrt|sum|int|prod|binom|log|ln|sin|cos|tan|lfloor|lceil|pi|times|cdot|div|gcd|max|min|"
    r"pmod|mod|lim|exp)(?![A-Za-z])|[√!^*×÷π]|[\d)}]\s?[-+/]\s?[\d({\\]|(?<=\d)\s?\("
)


def _last_number(text: str) -> tuple[str, float, bool] | None:
    """The last number: as written, its value before any percent sign, and whether it has one."""
    match = None
    for match in _NUMBER.finditer(text):  # noqa: B007 (only the last one counts)
        pass
    if match is None:
        return None
    groups = {name: part or "" for name, part in match.groupdict().items()}

    def number(part: str) -> float:
        return float(part.replace(",", ""))

    under = groups["under"] or groups["divisor"] or groups["under_digit"]
    under = under or groups["whole"] or groups["slash_whole"]
    over = groups["over"] or groups["over_digit"] or groups["part"] or groups["slash_part"]
    value = 1.0 if groups["of_ten"] else number(over or groups["decimal"])
    if under:
        value = value / number(under) if number(under) else math.nan
    if groups["mixed"]:
        value += number(groups["mixed"])
    exponent = groups["exponent"] or groups["power"] or groups["of_ten"]
    if exponent:
        try:
            value *= 10.0 ** int(exponent)
        except OverflowError:
            value = math.inf
    # A dash that follows a digit or a letter is a minus between two things, or a hyphen.
    negative = groups["sign_after"] == "-" or (
        groups["sign"] == "-" and not text[: match.start()][-1:].isalnum()
    )
    return match[0].strip(), -value if negative else value, bool(groups["percent"])


def _as_float(text: str) -> tuple[str, float, bool] | None:
    """The number that a short answer is, with its unit split off; None for all else."""
    form = canonical(text)
    sides = form.rsplit("=", 1)[-1].strip()
    plain = " ".join(text_unwrapped(sides).split())
    for candidate in (sides, plain, split_unit(sides).value, split_unit(plain).value):
        number = read_number(candidate)
        if number is not None:
            shown = candidate if candidate in text else text.strip()
            try:
                return shown, float(number.value), number.is_percent
            except OverflowError:
                return shown, math.inf, number.is_percent
    return None


def _number_in(answer: str) -> tuple[str, float, bool] | None:
    """The number of an answer that is set apart; None where it is arithmetic or has none."""
    if len(answer) <= 200:
        if (number := _as_float(answer)) is not None:
            return number
        parts = read_collection(canonical(answer))
        if parts is not None and len(parts.parts) > 1:
            return None
        if _OPERATIONS.search(in_ascii(answer).rpartition("=")[2]):
            return None
    return _last_number(_THOUSANDS.sub("", in_ascii(answer)))


def judge_numeric(completion: str, gold: str) -> Verdict:
    r"""Equality of numbers, to a relative 1e-6.

    The answer is the number of the tag, the box, of the `####` line or of the announced answer, or
    the last one of the whole completion. Where an answer is set apart, it must be one number and no
    arithmetic. Read is what `probes.mathematics.numbers` reads, also with a unit. Where
    one side has a percent sign and the other none, 50% equals both 50 and 0.5.
    """
    wanted = _number_in(gold)
    if wanted is None or not math.isfinite(wanted[1]):
        return unjudged("finds no finite number in the gold")
    given = given_answer(completion)
    if given is not None:
        found = _number_in(given)
        if found is None:
            return judged(False, given)
    else:
        whole = spoken(completion)
        text = without_empty_boxes(whole)
        found = _number_said(text)
        if found is None or (text != whole and not is_stated(found[0], text)):
            return NO_ANSWER

    def close(a: float, b: float) -> bool:
        return abs(a - b) <= RELATIVE_TOLERANCE * abs(b)

    accepted = close(found[1], wanted[1])
    if found[2] and not wanted[2]:
        accepted = accepted or close(found[1] / 100, wanted[1])
    if wanted[2] and not found[2]:
        accepted = accepted or close(found[1], wanted[1] / 100)
    return judged(accepted, found[0])


def _number_said(text: str) -> tuple[str, float, bool] | None:
    """The number that is announced last, and else the last one."""
    for said in announced(text):
        if said.is_denied:
            text = said.blanked(text)
            continue
        if len(said.phrase) <= 200 and (number := _as_float(said.phrase)) is not None:
            return number
    return _last_number(_THOUSANDS.sub("", in_ascii(text)))


def read_numeric(text: str) -> str:
    """The number that `numeric` reads in an answer or a gold; empty where there is none."""
    number = _number_in(text)
    return "" if number is None else f"{number[1]:.12g}{'%' if number[2] else ''}"
