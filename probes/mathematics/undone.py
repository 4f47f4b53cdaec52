r"""Arithmetic that is left undone: operations that an answer only names.

To math-verify `7 * 8` equals 56 and `\sum_{k=1}^{10} k` equals 55, so that repeating the problem is
right, which GRPO finds within ten steps. Where the gold is a plain number the answer must be one
too (`probes.mathematics.numbers` reads no arithmetic). Here is what an answer may not leave to do
where the gold is another expression: sums, products, integrals, limits and derivatives never, and
factorials, binomials, gcd, floors, extrema, determinants and remainders where the gold has no
letters; unless the gold leaves the same undone itself. And what is never computed at all: towers of
powers and factorials beyond all use.

Every regular expression of this module takes time linear in its text.
"""

import math
import re

_ALWAYS = re.compile(
    r"\\(?P<name>i{1,3}nt|oint|sum|prod|lim|bigcup|bigcap)(?![A-Za-z])"
    r"|(?P<derivative>\\frac\s?\{\s?(?:d|\\partial)(?:\^\{?\d\}?)?[^{}]{0,20}\}\s?\{\s?"
    r"(?:d|\\partial)\s?[A-Za-z])"
)
_OF_NUMBERS = re.compile(
    r"\\(?P<name>binom|choose|gcd|lcm|max|min|mod|pmod|lfloor|lceil|det)(?![A-Za-z])"
    r"|(?P<factorial>[\d)}A-Za-z]\s?!(?!=))|(?P<matrix>\\begin\{vmatrix\})"
    r"|(?<![A-Za-z\\])(?P<word>gcd|lcm|max|min|floor|ceil|mod|binom|choose)(?![A-Za-z])"
)
_COMMANDS = re.compile(r"\\[A-Za-z]+|(?<![A-Za-z])(?:gcd|lcm|max|min|floor|ceil|mod|choose)\b")
_LETTERS = re.compile(r"[A-DF-HJ-Za-df-hj-z]|\\(?:alpha|beta|gamma|theta|lambda|mu|nu|sigma|omega)")
_TOWER = re.compile(r"(\d{1,9}|[A-Za-z)}])\s?\^\s?\{?\s?\(?-?(\d{1,9})\s?\^\s?\{?\s?\(?(\d{1,9})")
_HIGH_TOWER = re.compile(r"\^\s?\{?\s?\d+\s?\^\s?\{?\s?\d+\s?\^")
_LARGE_POWER = re.compile(r"\d\s?[)}]?\s?\^\s?[{(]?\s?[-+]?\d{5,}|\d[)}]?\s?\^\s?\{[^{}]*!")
_LARGE_FACTORIAL = re.compile(
    r"\d{5,}\s?\)?\s?!|!\s?\)?\s?\^|\^\s?\{[^{}]*\}\s?\)?\s?!|\)\s?!\s?\)?\s?!|!\s?!\s?!"
)
_LARGE_BINOMIAL = re.compile(r"\\binom\s?\{\s?\d{6,}")


def operations(text: str) -> tuple[set[str], set[str]]:
    """The operations that are never an answer, and those that are none on numbers."""
    always = {(match.lastgroup == "name" and match[1]) or "derivative" for match in
              _ALWAYS.finditer(text)}  # fmt: skip
    of_numbers = {
        match[match.lastgroup] if match.lastgroup in ("name", "word") else str(match.lastgroup)
        for match in _OF_NUMBERS.finditer(text)
    }
    return always, of_numbers


def is_left_undone(found: str, gold: str) -> bool:
    """Whether an answer in canonical notation leaves to do what the gold has done."""
    always, of_numbers = operations(found)
    if not always and not of_numbers:
        return False
    gold_always, gold_of_numbers = operations(gold)
    if always - gold_always:
        return True
    return bool(of_numbers - gold_of_numbers) and not _LETTERS.search(_COMMANDS.sub("", gold))


def is_too_large(text: str) -> bool:
    """Whether computing it could take more than an answer is worth; nothing is computed here."""
    for match in _TOWER.finditer(text):
        base, exponent = int(match[2]), int(match[3])
        if base > 1 and exponent * math.log10(base) > 3.5:
            return True
    return bool(
        _LARGE_POWER.search(text)
        or _LARGE_FACTORIAL.search(text)
        or _LARGE_BINOMIAL.search(text)
        or _HIGH_TOWER.search(text)
        or text.count("^") > 40
        or len(re.findall(r"\^\s?\{?\s?-?\d+\s?\^", text)) > 2
        or len(re.findall(r"\d{400,}", text)) > 0
    )
