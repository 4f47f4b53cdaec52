r"""Plain numbers, read exactly, and when two of them are equal.

Read are integers and decimals (with thousands commas), `a/b`, `\frac{a}{b}`, mixed numbers
(`1 1/2`), powers of ten (`1e-5`, `1.5 \times 10^{3}`, `10^6`), repeating decimals
(`0.\overline{3}`, `0.1(6)`, `0.333…`), ratios (`3:2`), numbers in words (`5 million`,
`twenty-one`, `1st`), and a percent sign. All else is no plain number: arithmetic that is left
undone among it.

Two numbers are equal exactly, or, where one of them is a decimal, to 6 places: to 1e-6, and below 1
to a relative 1e-6, so that 1/3 equals 0.333333 and 1e-31 does not equal 1e-34. A percent sign on
one side only counts as the other's: 50% equals 50 and 0.5.

Every regular expression of this module takes time linear in its text.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MOST_CHARACTERS = 1_000
MOST_EXPONENT = 5_000
TOLERANCE = Fraction(1, 10**6)


@dataclass(frozen=True, slots=True)
class Number:
    """A plain number."""

    value: Fraction
    """Before any percent sign."""
    is_exact: bool
    """Whether it is no decimal, which may be rounded."""
    is_percent: bool
    is_done: bool
    """False for a fraction or ratio that is not in lowest terms."""
    is_ratio: bool = False
    """Written with a colon."""


_MULTIPLIERS = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "lakh": 10**5,
    "crore": 10**7,
    "dozen": 12,
    "十": 10,
    "百": 10**2,
    "千": 10**3,
    "万": 10**4,
    "萬": 10**4,
    "亿": 10**8,
    "億": 10**8,
    "тысяч": 10**3,
    "миллион": 10**6,
}
_UNITS_IN_WORDS = {
    word: number
    for number, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
}
_TENS_IN_WORDS = {
    word: 10 * number
    for number, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2
    )
}

_UNSIGNED = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_POWER = r"(?:\{{\s?(?P<{0}>[-+]?\s?\d{{1,5}})\s?\}}|(?P<{0}_digits>[-+]?\d{{1,5}}))"
_MULTIPLIER = (
    "hundred|thousand|million|billion|trillion|lakh|crore|dozen|[十百万萬亿億]|千(?![米克瓦卡])|"
    "тысяч[аи]?|миллион(?:а|ов)?"
)
# To be compiled with re.VERBOSE; `number_of` reads its matches.
NUMBER_PATTERN = rf"""(?P<sign>[-+]?)\s?
    (?: \\frac\s?(?:\{{\s?(?P<over>[-+]?\s?{_UNSIGNED})\s?\}}|(?P<over_digit>\d))\s?
            (?:\{{\s?(?P<under>[-+]?\s?{_UNSIGNED})\s?\}}|(?P<under_digit>\d))
      | (?P<mixed>\d+)\s?
            (?:(?:and|\+)?\s?\\frac\s?(?:\{{\s?(?P<part>\d+)\s?\}}|(?P<part_digit>\d))\s?
                (?:\{{\s?(?P<whole>\d+)\s?\}}|(?P<whole_digit>\d))
            |(?:\sand)?\s(?P<slash_part>\d+)/(?P<slash_whole>\d+))
      | (?P<fixed>\d*)\.(?P<fixed_places>\d*)
            (?:\\(?:overline|bar|dot)\s?\{{?\s?(?P<block>\d+)\s?\}}?|\((?P<round_block>\d+)\)
            |(?:\.\.\.|\\[lc]?dots)(?P<dots>))
      | (?P<decimal>{_UNSIGNED})
        (?: \s?(?P<colon>[/:])\s?(?P<divisor>[-+]?(?:{_UNSIGNED}))
          | [eE](?P<exponent>[-+]?\d{{1,5}})(?!\d)
          | \s?(?:\\times|\\cdot|[*x])\s?10\s?\^\s?{_POWER.format("power")}
          | \s?\^\s?{_POWER.format("of_ten")}
        )?
    )
    (?:(?:st|nd|rd|th)(?![A-Za-z])|\s?(?P<multiplier>{_MULTIPLIER})(?![A-Za-z]))?
    (?P<percent>\s?(?:\\?%|per\s?cent(?:age)?(?![A-Za-z])|pct(?![A-Za-z])))?"""
_NUMBER = re.compile(NUMBER_PATTERN, re.VERBOSE)
_WORD_NUMBER = re.compile(r"(minus |negative )?([a-z]+(?:[ -](?:and )?[a-z]+){0,11})")


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", "").removesuffix("."))


def _is_whole(text: str) -> bool:
    return "." not in text


@lru_cache(maxsize=16384)
def read_number(text: str) -> Number | None:
    """The number that a text in canonical notation is; None for all else."""
    if len(text) > MOST_CHARACTERS:
        return None
    for _ in range(3):  # (5) and {5}
        if text[:1] in ("(", "{") and _closes_at_end(text):
            text = text[1:-1].strip()
        elif text.startswith(r"\{") and text.endswith(r"\}") and "{" not in text[2:]:
            text = text[2:-2].strip()
    match = _NUMBER.fullmatch(text)
    if match is None:
        return _in_words(text)
    return number_of(match)


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that opens a text is closed by its last character, and not before."""
    depth = 0
    for place, character in enumerate(text):
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(character, 0)
        if depth == 0:
            return place == len(text) - 1 and {"(": ")", "{": "}"}[text[0]] == character
    return False


def number_of(match: re.Match[str]) -> Number | None:
    """The number of a match of `NUMBER_PATTERN`; None where it divides by 0 or is too large."""
    groups = {name: part for name, part in match.groupdict().items() if part is not None}
    try:
        read = _magnitude(groups)
    except (ZeroDivisionError, ValueError):
        return None
    if read is None:
        return None
    value, is_exact, is_done = read
    if multiplier := groups.get("multiplier"):
        stem = next(name for name in _MULTIPLIERS if multiplier.startswith(name))
        value *= _MULTIPLIERS[stem]
    if groups["sign"] == "-":
        value = -value
    return Number(value, is_exact, "percent" in groups, is_done, groups.get("colon") == ":")


def _magnitude(groups: dict[str, str]) -> tuple[Fraction, bool, bool] | None:
    """The value, and whether it is exact and done."""
    over = groups.get("over") or groups.get("over_digit")
    under = groups.get("under") or groups.get("under_digit")
    if over and under:
        return _quotient(over, under)
    if "mixed" in groups:
        part = groups.get("part") or groups.get("part_digit") or groups["slash_part"]
        whole = groups.get("whole") or groups.get("whole_digit") or groups["slash_whole"]
        share, is_exact, is_done = _quotient(part, whole)
        return int(groups["mixed"]) + share, is_exact, is_done and share < 1
    if "fixed_places" in groups:
        return _repeating(groups)
    value = _fraction(groups["decimal"])
    if divisor := groups.get("divisor"):
        return _quotient(groups["decimal"], divisor)
    exponent = groups.get("exponent") or groups.get("power") or groups.get("power_digits")
    of_ten = groups.get("of_ten") or groups.get("of_ten_digits")
    if of_ten is not None:
        if value != 10:
            return None  # arithmetic
        value, exponent = Fraction(1), of_ten
    if exponent is not None:
        power = int(exponent.replace(" ", ""))
        if abs(power) > MOST_EXPONENT:
            return None
        # A power of ten is a way to write a number, whose digits may be rounded.
        value *= Fraction(10) ** power
    return value, _is_whole(groups["decimal"]) and exponent is None, True


def _quotient(over: str, under: str) -> tuple[Fraction, bool, bool]:
    is_exact = _is_whole(over) and _is_whole(under)
    a, b = _fraction(over), _fraction(under)
    is_done = is_exact and math.gcd(a.numerator, b.numerator) == 1
    return a / b, is_exact, is_done


def _repeating(groups: dict[str, str]) -> tuple[Fraction, bool, bool]:
    whole, places = groups["fixed"] or "0", groups["fixed_places"]
    block = groups.get("block") or groups.get("round_block")
    if block is None:  # 0.333…: the end repeats at least three times, or a longer block twice
        for size in range(1, len(places) // 2 + 1):
            times = 3 if size == 1 else 2
            block = places[-size:]
            if places.endswith(block * times):
                places = places[:-size]
                break
        else:
            return _fraction(f"{whole}.{places or 0}"), False, True
    fixed = Fraction(int(whole + places), 10 ** len(places))
    share = Fraction(int(block), (10 ** len(block) - 1) * 10 ** len(places))
    return fixed + share, True, True


def _in_words(text: str) -> Number | None:
    match = _WORD_NUMBER.fullmatch(text.lower()) if len(text) <= 100 else None
    if match is None:
        return None
    total, current, last = 0, 0, ""
    for word in match[2].replace("-", " ").split():
        if word == "and" and last:
            continue
        if word in _UNITS_IN_WORDS and last in ("", *_TENS_IN_WORDS, *_MULTIPLIERS):
            current += _UNITS_IN_WORDS[word]
        elif word in _TENS_IN_WORDS and last in ("", *_MULTIPLIERS):
            current += _TENS_IN_WORDS[word]
        elif word == "hundred" and 0 < current < 10:
            current *= 100
        elif word in ("thousand", "million", "billion") and current:
            total, current = total + current * _MULTIPLIERS[word], 0
        else:
            return None
        last = word
    value = Fraction(total + current)
    return Number(-value if match[1] else value, True, False, True)


def same_number(gold: Number, found: Number) -> bool:
    """Whether they are equal, by the rules at the top."""
    if not found.is_done and gold.is_done:
        return False
    if found.is_ratio and not gold.is_ratio and gold.value.denominator == 1:
        return False  # 112 : 2 is a division
    wanted, value = gold.value, found.value
    close = same_value(wanted, value, gold.is_exact and found.is_exact)
    if gold.is_percent == found.is_percent:
        return close
    exact = gold.is_exact and found.is_exact
    if gold.is_percent:
        return close or same_value(wanted / 100, value, exact and gold.value.denominator == 1)
    return close or same_value(wanted, value / 100, exact)


def same_value(wanted: Fraction, value: Fraction, is_exact: bool) -> bool:
    """Whether two values are equal exactly, or to 6 places."""
    if wanted == value:
        return True
    if is_exact:
        return False
    return abs(wanted - value) <= TOLERANCE * min(Fraction(1), abs(wanted))
