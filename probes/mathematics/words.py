r"""Answers that are compared as text: words, labels, times of day, dates, ranges, numerals.

To math-verify a word is a product of letters, so that anagrams are equal, and `3-5` is -2. Here a
gold in words ("Monday", `\text{no solution}`), in other letters than Latin ones (是), in capitals
(AB, IX), a letter with digits (B2), a time (9 a.m.), a date (2020-01-05, May 5), a range or score
(3-5), a ratio of three (1:2:3), or a numeral with its base (`1001_2`) equals what says the same.

Every regular expression of this module takes time linear in its text.
"""

import re
from functools import lru_cache

from probes.mathematics.notation import text_unwrapped

NO_WORDS = frozenset(  # letters that are mathematics and not a word
    """and or sin cos tan sec csc cot arcsin arccos arctan log exp sqrt inf infty infinity mod gcd
    lcm max min det sinh cosh tanh circ times cdot""".split()  # noqa: SIM905
)
_SHORT_WORDS = frozenset(
    [
        "no",
        "up",
        "on",
        "in",
        "at",
        "by",
        "go",
        "if",
        "it",
        "me",
        "so",
        "to",
        "us",
        "we",
        "he",
        "my",
        "of",
        "or",
        "do",
        "is",
    ]
)
_WORDS = re.compile(r"[^\W\d_]+(?:[ ,.;:!?'\"()&-]+[^\W\d_]+)*[ ,.;:!?'\"()&-]*")
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2}))?(?::\d{2})?\s{0,3}(?:([ap])\.?\s?m\.?)?")
_BASE = re.compile(r"\(?(\d[0-9A-Za-z, ]*|[0-9A-Z, ]+)\)?_\s?(?:\{\s?(\d{1,2})\s?\}|(\d))")
_LABEL = re.compile(r"[A-Z]{2,4}|[A-Za-z]{1,3}_?\{?\d{1,4}\}?")
_NO_LABELS = frozenset(
    [
        "YES",
        "NO",
        "TRUE",
        "NONE",
        "BOTH",
        "ALL",
        "EVEN",
        "ODD",
        "ZERO",
        "EAST",
        "WEST",
        "LEFT",
        "MAX",
        "MIN",
        "SIN",
        "COS",
    ]
)
_RANGE = re.compile(r"(\d+(?:\.\d+)?)\s?(?:-|--|–|to)\s?(\d+(?:\.\d+)?)")
_RATIO = re.compile(r"\d+(?:/\d+){2,8}|\d+(?:\.\d+)?(?:\s?:\s?\d+(?:\.\d+)?){2,8}")
_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            *("january jan", "february feb", "march mar", "april apr", "may", "june jun"),
            *("july jul", "august aug", "september sep sept", "october oct", "november nov"),
            "december dec",
        ),
        1,
    )
    for name in names.split()
}
_ISO_DATE = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})|(\d{4})年(\d{1,2})月(\d{1,2})日?")
_DIGIT_DATE = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4}|\d{2})")
_MONTH_FIRST = re.compile(r"([a-z]{3,9})\.?\s(\d{1,2})(?:st|nd|rd|th)?(?:,?\s(\d{4}))?")
_DAY_FIRST = re.compile(
    r"(?:the )?(\d{1,2})(?:st|nd|rd|th)?(?: of)?\s([a-z]{3,9})\.?(?:,?\s(\d{4}))?"
)
_ARTICLES = frozenset(("the", "a", "an"))


def as_words(text: str) -> str | None:
    """The words for comparison, without case, stops and articles; None for mathematics."""
    plain = text_unwrapped(text)
    if "\\" in plain:
        if not re.search(r"(?<![\\A-Za-z])[A-Za-z]{3,}", plain):
            return None
        plain = plain.replace("\\", "")
    plain = plain.strip(" .*'\"!?")
    if not _WORDS.fullmatch(plain):
        return None
    words = re.findall(r"[^\W\d_]+", plain)
    if len(words) == 1 and _is_product(words[0]):
        return None
    words = [word.casefold() for word in words]
    if NO_WORDS & set(words) or not any(
        len(word) > 2 or word in _SHORT_WORDS or not word.isascii() for word in words
    ):
        return None
    kept = [word for word in words if word not in _ARTICLES] or words
    return " ".join(kept)


def _is_product(word: str) -> bool:
    """Whether it is letters that are multiplied (mgh, xyz, nRT) rather than a word."""
    return word.isascii() and (
        not re.search("[aeiouyAEIOUY]", word)
        or set(word) <= set("xyz")
        or (word[1:] != word[1:].lower() and word != word.upper())
    )


def _as_clock(text: str) -> tuple[int, int, str] | None:
    match = _CLOCK.fullmatch(text_unwrapped(text).casefold().removesuffix("."))
    if match is None or not (match[2] or match[3]):
        return None
    return int(match[1]), int(match[2] or 0), match[3] or ""


def _as_numeral(text: str) -> tuple[str, int] | None:
    """The digits and the base of `1001_2` or `AA6_{11}`; None for `a_1` and all else."""
    match = _BASE.fullmatch(text)
    if match is None or not any(character.isdigit() for character in match[1]):
        return None
    return _digits(match[1]), int(match[2] or match[3])


def _digits(text: str) -> str:
    return text.strip("() ").replace(",", "").replace(" ", "").casefold()


def _as_date(text: str) -> tuple[int, int, int] | None:
    """Year (0 where it is not said), month and day; of `5/6/2020` as in month/day/year."""
    text = text_unwrapped(text).casefold().strip(" .")
    if match := _ISO_DATE.fullmatch(text):
        year, month, day = (int(part) for part in match.groups() if part)
        return year, month, day
    if match := _DIGIT_DATE.fullmatch(text):
        first, second, year = int(match[1]), int(match[3]), int(match[4])
        return (year, second, first) if first > 12 else (year, first, second)
    if (match := _MONTH_FIRST.fullmatch(text)) and match[1] in _MONTHS:
        return int(match[3] or 0), _MONTHS[match[1]], int(match[2])
    if (match := _DAY_FIRST.fullmatch(text)) and match[2] in _MONTHS:
        return int(match[3] or 0), _MONTHS[match[2]], int(match[1])
    return None


def as_label(text: str) -> str | None:
    """A name of capitals, or a letter with digits behind it; None for all else."""
    text = text_unwrapped(text)
    text = text.replace(" ", "") if text.replace(" ", "").isalpha() else text
    if text in _NO_LABELS or not _LABEL.fullmatch(text):
        return None
    return re.sub("[_{}]", "", text)


def _as_range(text: str) -> tuple[str, str] | None:
    match = _RANGE.fullmatch(text_unwrapped(text))
    return (match[1], match[2]) if match else None


def _as_ratio(text: str) -> str | None:
    return text.replace(" ", "") if _RATIO.fullmatch(text) else None


@lru_cache(maxsize=4096)
def is_text(gold: str) -> bool:
    """Whether a gold in canonical notation is compared as text."""
    return bool(
        as_words(gold)
        or _as_numeral(gold)
        or _as_clock(gold)
        or _as_date(gold)
        or as_label(gold)
        or _as_range(gold)
        or _as_ratio(gold)
    )


def same_text(gold: str, found: str) -> bool | None:
    """Whether both say the same, in canonical notation; None where the gold is mathematics."""
    if label := as_label(gold):
        return as_label(found) == label
    if words := as_words(gold):
        return as_words(found) == words
    if date := _as_date(gold):
        found_date = _as_date(found)
        if found_date is None or 0 in (date[0], found_date[0]):  # the year may be left unsaid
            return found_date is not None and found_date[1:] == date[1:]
        return found_date == date
    if clock := _as_clock(gold):
        found_clock = _as_clock(found)
        if clock[2] or found_clock == clock:  # without am or pm, 3:20 may be a ratio
            return found_clock == clock
    if numeral := _as_numeral(gold):  # the base may be left unsaid
        return numeral == (_as_numeral(found) or (_digits(found), numeral[1]))
    if pair := _as_range(gold):
        return _as_range(found) == pair
    if ratio := _as_ratio(gold):
        return _as_ratio(found) == ratio
    return False if as_label(found) and any(c.isdigit() for c in found) else None
