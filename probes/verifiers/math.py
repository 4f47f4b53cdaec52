r"""The `math` verifier: equality of mathematical answers, by math-verify.

math-verify is by Kydlíček (https://github.com/huggingface/Math-Verify); it runs with its time-outs
off (whoever calls bounds the time). What is here departs from its defaults where those accept a
wrong answer or pass over a right one:

- Units are split off here. math-verify drops any trailing unit it knows, single letters included,
  so that `3c` equals `3`, and 5 m equals 5 cm. Here `\text{…}` and known unit words are dropped,
  and two known units that differ are wrong.
- A base is compared: to math-verify `1001_2` equals `1001_3`.
- An equation that has no real solutions, or no unknown, makes no gold: math-verify compares the
  solutions of two equations, and finds any two empty lists equal. Nor does `\gcd` or `\lcm` of
  unknowns, which SymPy evaluates to a number.
- Arithmetic must be done. To math-verify `7 * 8` equals 56 and `222/1406` equals `3/19`, so that
  repeating the problem is right, which GRPO finds within ten steps. Where the gold is a plain
  number, the answer must be one too: no sums, products or powers of numbers, and fractions in
  lowest terms. OpenAI's grader for MATH (https://github.com/openai/prm800k) asks the same.
- A gold in words ("Monday", `\text{no solution}`) or a time of day is compared as text; to
  math-verify a word is a product of letters, so that anagrams are equal.

Every regular expression of this module takes time linear in its text; math-verify's do not.
"""

import ast
import logging
import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from probes.verifiers.answers import (
    NO_ANSWER,
    Verdict,
    bare,
    given_answer,
    judged,
    last_line,
    unjudged,
    unwrapped,
)

TAIL_CHARACTERS = 4_000  # an answer that is neither boxed nor marked stands near the end

_NO_WORDS = frozenset(  # letters that are mathematics and not a word
    """and or sin cos tan sec csc cot arcsin arccos arctan log exp sqrt inf infinity mod gcd lcm
    max min det""".split()  # noqa: SIM905 (a list of words reads best as words)
)
_WORDS = re.compile(r"[^\W\d_]+(?:[ ,.;:!?'’\"()&-]+[^\W\d_]+)*[ ,.;:!?'’\"()&-]*")
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2}))?\s{0,3}(?:([ap])\.?\s?m\.?)?")
_BASE = re.compile(r"\(?(\d[0-9A-Za-z, ]*|[0-9A-Z, ]+)\)?_(?:\{(\d{1,2})\}|(\d))")
_SPACES = r"(?:\s|~|\\[ ,;:!]){0,6}"
_POWER = r"(?:\s?\^\s?\{?\d\}?)?"
_UNIT_TEXT = re.compile(_SPACES + r"\\(?:text|textrm|mathrm|mbox)\s?\{([^{}]*)\}" + _POWER + r"\Z")
_UNIT_WORD = re.compile(_SPACES + r"(?<![A-Za-z\\])([A-Za-z]{2,})" + _POWER + r"\Z")
_COUNT = re.compile(r"((?:\\?\$)?-?[\d.,/]+)((?:\s[A-Za-z]{3,}){1,4})")
_NOT_COUNTED = _NO_WORDS | frozenset(  # words that change the number before them
    """hundred thousand million billion trillion dozen dozens half third quarter percent squared
    cubed plus minus times over divided point choose factorial""".split()  # noqa: SIM905
)
_EVALUATED = re.compile(r"\\gcd|\\lcm|\\operatorname\{(?:gcd|lcm)\}")

# Names of one unit on a line. What differs here is wrong; what is not here is not compared.
_UNITS = {
    name: number
    for number, names in enumerate(
        """mm millimeter millimeters
        cm centimeter centimeters
        m meter meters metre metres
        km kilometer kilometers kilometre kilometres
        in inch inches
        ft foot feet
        yd yard yards
        mi mile miles
        mg milligram milligrams
        g gram grams
        kg kilogram kilograms
        lb lbs pound pounds
        oz ounce ounces
        ml milliliter milliliters
        l liter liters litre litres
        s sec secs second seconds
        min mins minute minutes
        h hr hrs hour hours
        day days
        week weeks
        month months
        year years
        cent cents
        dollar dollars
        degree degrees""".splitlines()
    )
    for name in names.split()
}


def _as_words(text: str) -> str | None:
    """The text for comparison where it is words, and None where it is mathematics."""
    plain = unwrapped(text).replace("\\ ", " ").strip(" .*'\"")
    words = re.findall(r"[^\W\d_]+", plain) if _WORDS.fullmatch(plain) else []
    folded = [word.casefold() for word in words]
    if not any(len(word) > 2 or word == "no" for word in folded) or _NO_WORDS & set(folded):
        return None
    return " ".join(folded)


def _as_clock(text: str) -> tuple[int, int, str] | None:
    match = _CLOCK.fullmatch(unwrapped(text).casefold().removesuffix("."))
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


def _split_unit(text: str) -> tuple[str, int | None]:
    """The text without its trailing unit, and which known unit it was."""
    counted = _COUNT.fullmatch(text)  # 12 red apples
    end = text[-80:]  # bounds the search, and no unit is longer
    match = counted or _UNIT_TEXT.search(end) or _UNIT_WORD.search(end)
    if match is None:
        return text, None
    words = re.findall("[a-z]+", match[2 if counted else 1].casefold())
    if _NOT_COUNTED & set(words):
        return text, None
    known = [_UNITS[word] for word in words if word in _UNITS]
    if match.re is _UNIT_WORD and not known:  # a product of variables
        return text, None
    value = match[1] if counted else text[: len(text) - len(end) + match.start()]
    value = value.removesuffix("square").removesuffix("cubic").rstrip()  # 5 square feet
    if not any(character.isalnum() for character in value):
        return text, None
    return value, known[-1] if known else None


@lru_cache(maxsize=1)
def _math_verify() -> tuple[Callable[..., Any], Callable[..., Any], Any, Any]:
    """math-verify's `parse` and `verify`, and the extraction configs; imported when first used."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    # It warns at every start that its time-outs are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    latex = LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all"
        ),
    )
    return parse, verify, latex, ExprExtractionConfig()


@lru_cache(maxsize=16384)
def _expressions(text: str) -> tuple[Any, ...]:
    """What math-verify reads in an answer that stands alone; empty where it reads nothing."""
    parse, _, latex, _ = _math_verify()
    boxed = rf"\boxed{{{text}}}"
    return tuple(parse(boxed, [latex], fallback_mode="no_fallback", parsing_timeout=None))


def _verify(gold: tuple[Any, ...], found: tuple[Any, ...]) -> bool:
    if (
        len(gold) == len(found) == 1
        and _is_rational(gold[0])
        and _is_no_constant(found[0], gold[0])
    ):
        return False  # as math-verify says, after up to some seconds of `simplify`
    return bool(found) and bool(_math_verify()[1](list(gold), list(found), timeout_seconds=None))


def _is_rational(expression: Any) -> bool:
    from sympy import Rational

    return isinstance(expression, Rational)


def _is_no_constant(expression: Any, gold: Any) -> bool:
    """Whether it is a letter times what does not depend on it, as math-verify reads most words.

    So it has no fixed value, unless it is 0 throughout.
    """
    from sympy import E, Mul, Rational, Symbol

    if not isinstance(expression, Mul):
        return False
    others = [factor for factor in expression.args if not isinstance(factor, Symbol)]
    if gold == 0 and not all(f == E or (isinstance(f, Rational) and f != 0) for f in others):
        return False
    return any(
        isinstance(letter, Symbol) and not any(other.has(letter) for other in others)
        for letter in expression.args
    )


def _always_equal(expression: Any) -> bool:
    """Whether math-verify would take this gold for equal to unlike equations (see the top)."""
    from sympy import Eq, solve

    equations = [e for e in (expression, *getattr(expression, "args", ())) if isinstance(e, Eq)]
    try:
        # With several unknowns solving takes minutes, and has a solution: any unknown by the rest.
        return any(
            len(unknowns := e.free_symbols) < 2 and not solve(e, list(unknowns)) for e in equations
        )
    except Exception:  # noqa: BLE001 (what SymPy cannot solve, math-verify does not accept either)
        return False


@lru_cache(maxsize=4096)
def _gold_expressions(gold: str) -> tuple[Any, ...]:
    """What to compare with; empty where the gold has nothing that can be compared."""
    value = _split_unit(bare(gold))[0]
    read = _expressions(value)
    unsound = any(_always_equal(expression) for expression in read) or (
        _EVALUATED.search(value) is not None and any(not e.free_symbols for e in read)
    )
    return () if unsound else read


@lru_cache(maxsize=16384)  # the completions of one item share a few answers
def _same_answer(found: str, gold: str) -> bool:
    found, gold = bare(found), bare(gold)
    if _is_left_undone(found) and not _is_left_undone(gold):
        return False
    if words := _as_words(gold):
        return _as_words(found) == words
    if clock := _as_clock(gold):
        found_clock = _as_clock(found)
        if clock[2] or found_clock == clock:  # without am or pm, 3:20 may be a ratio
            return found_clock == clock
    if numeral := _as_numeral(gold):  # the base may be left unsaid
        return numeral == (_as_numeral(found) or (_digits(found), numeral[1]))
    (found_value, found_unit), (_, gold_unit) = _split_unit(found), _split_unit(gold)
    if None not in (found_unit, gold_unit) and found_unit != gold_unit:
        return False
    compared = _compared(found_value.replace("×", "*").replace("÷", "/"), gold)
    if compared is None:
        return _verify(_gold_expressions(gold), _expressions(found_value))
    return compared


# --- math: arithmetic that is left undone -----------------------------------------------------

_PLAIN_SIGNS = [
    (re.compile(pattern), sign)
    for pattern, sign in (
        (r"\\(?:times|cdot|ast)(?![A-Za-z])|[×·⋅∗]", "*"),
        (r"\\div(?![A-Za-z])|÷", "/"),
        # The fraction of a mixed number: 1\frac{1}{2}.
        (r"(?<=\d)\s?\\[dt]?frac\s?(?:\{\d+\}\s?\{\d+\}|\d\s?\d)", ""),
        (r"\\[dt]?frac\s?\{([-+]?[\d.]+)\}\s?\{([\d.]+)\}", r"(\1/\2)"),
        (r"\\[dt]?frac\s?(\d)\s?(\d)", r"(\1/\2)"),
        (r"\\(?:left|right)(?![A-Za-z])|\\[,;:! ]", " "),
        (r"\^\s?\{([-+]?\d+)\}", r"^\1"),
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),
    )
]


@lru_cache(maxsize=16384)
def _is_left_undone(text: str) -> bool:
    """Whether the text is arithmetic on numbers, other than one number or a fraction in its terms.

    Of an equation it is the right side that counts. `a × 10^b` is a number.
    """
    text = _split_unit(text.rpartition("=")[2].strip(" .$"))[0]
    for pattern, sign in _PLAIN_SIGNS:
        text = pattern.sub(sign, text)
    if not _ARITHMETIC.fullmatch(text):
        return False
    # Leading zeros are no Python: 007.
    source = re.sub(r"(?<![\d.])0+(?=\d)", "", text.replace("^", "**"))
    try:
        node = ast.parse(" ".join(source.split()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return not _is_done(node)


def _is_done(node: ast.expr) -> bool:
    match node:
        case ast.Constant():
            return True
        case ast.UnaryOp(operand=operand):
            return _is_done(operand)
        case ast.BinOp(left=left, op=ast.Div(), right=ast.Constant(value=int() as under)):
            over = left.operand if isinstance(left, ast.UnaryOp) else left
            return (
                isinstance(over, ast.Constant)
                and isinstance(over.value, int)
                and math.gcd(over.value, under) == 1
            )
        case ast.BinOp(left=ast.Constant(), op=ast.Mult(), right=ast.BinOp() as power):
            return _is_power_of_ten(power)
        case ast.BinOp():
            return _is_power_of_ten(node)
    return False


def _is_power_of_ten(node: ast.BinOp) -> bool:
    return (
        isinstance(node.op, ast.Pow)
        and isinstance(node.left, ast.Constant)
        and node.left.value == 10
    )


# --- math, without SymPy ----------------------------------------------------------------------
#
# Most completions of simple problems end in a number or in arithmetic, which SymPy takes a
# millisecond to read and to find unequal. What follows knows what math-verify would say.

_ARITHMETIC = re.compile(r"[0-9.+\-*/^()×÷\s]{1,80}")


def _value(text: str) -> tuple[Fraction, Fraction] | None:
    """The value of + - * / arithmetic, and the largest number it can pass through.

    None for other text. Raises SyntaxError for what is written in the same characters and is no
    Python, so that SymPy, which leaves the parsing to Python, cannot read it either.
    """
    if not _ARITHMETIC.fullmatch(text):
        return None
    source = " ".join(text.replace("^", "**").split())
    return _evaluated(ast.parse(source, mode="eval").body)


def _evaluated(node: ast.expr) -> tuple[Fraction, Fraction] | None:
    match node:
        case ast.Constant(value=int() | float() as number):
            return Fraction(number), Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand) if inner := _evaluated(operand):
            return -inner[0], inner[1]
        # By a number only: the error of a difference, divided by, has no bound.
        case ast.BinOp(
            left=left, op=ast.Div(), right=ast.Constant(value=int() | float() as number)
        ):
            if number and (a := _evaluated(left)):
                divisor = Fraction(number)
                return a[0] / divisor, max(a[1], a[1] / divisor)
        case ast.BinOp(left=left, op=operator, right=right):
            if (a := _evaluated(left)) and (b := _evaluated(right)):
                match operator:
                    case ast.Add():
                        return a[0] + b[0], a[1] + b[1]
                    case ast.Sub():
                        return a[0] - b[0], a[1] + b[1]
                    case ast.Mult():
                        return a[0] * b[0], (a[1] + 1) * (b[1] + 1)
    return None


@lru_cache(maxsize=16384)
def _compared(text: str, gold: str) -> bool | None:
    """What math-verify says of arithmetic and a rational gold; None where only SymPy can tell.

    It compares rational numbers exactly, and decimals by six places, in floating point with an
    error of some 1e-16 of the largest number in play: the margin is far beyond both. The text may
    have lost a percent sign.
    """
    try:
        value = _value(text)
    except SyntaxError:
        return None
    wanted = _gold_expressions(gold)
    if value is None or len(wanted) != 1 or not _is_rational(wanted[0]):
        return None
    exact = Fraction(int(wanted[0].p), int(wanted[0].q))
    if value[0] == exact and "." not in text:
        return True
    margin = Fraction(1, 10**5) + max(abs(exact), value[1]) / 10**9
    far = abs(value[0] - exact) > margin and abs(value[0] / 100 - exact) > margin
    return False if far else None


@lru_cache(maxsize=1)
def _patterns() -> tuple[list[re.Pattern[str]], list[list[re.Pattern[str]]]]:
    """math-verify's patterns: those that every LaTeX it finds matches, and those of plain text.

    Those of plain text are in the groups that it tries in turn.
    """
    from math_verify.parser import lazy_expr_regex, lazy_latex_regex

    _, _, latex, plain = _math_verify()
    groups: dict[int, list[re.Pattern[str]]] = {}
    for pattern, priority in lazy_expr_regex(plain):
        groups.setdefault(priority, []).append(pattern)
    return (
        [pattern for pattern, _ in lazy_latex_regex(latex) if "answer" not in pattern.pattern],
        [groups[priority] for priority in sorted(groups)],
    )


def _holds_latex(text: str) -> bool:
    return any(sign in text for sign in "$\\[") and any(
        pattern.search(text) for pattern in _patterns()[0]
    )


def _plain_finds(text: str) -> Iterator[tuple[str, bool]]:
    """What math-verify finds in a text without LaTeX, in its order, and whether it is a number."""
    has_answer = "answer" in text.casefold()
    for patterns in _patterns()[1]:
        matches = [
            match
            for pattern in patterns
            if has_answer or "answer" not in pattern.pattern
            for match in pattern.finditer(text)
        ]
        for match in sorted(matches, key=lambda found: (found.end(), -found.start()), reverse=True):
            groups = match.groupdict()
            integer, decimal = (
                next((part for name, part in groups.items() if part and name.startswith(kind)), "")
                for kind in ("integer", "decimal")
            )
            if integer or decimal:
                integer = integer.replace(",", "").replace(" ", "").lstrip("0") or "0"
                yield integer + decimal.replace(",", "."), True
            else:
                yield groups.get("expr") or "", False


def _judge_plain(text: str, gold: str) -> Verdict | None:
    """The verdict on a text without LaTeX; None where only SymPy can tell.

    math-verify's answer is the text that it found first, and the value of the first that it read.
    """
    first = ""
    for found, is_number in _plain_finds(text):
        first = first or found
        if _compared(found, gold) is False:
            break
        try:
            known = _value(found) is not None
        except SyntaxError:
            if is_number:
                return None
            continue
        return judged(True, first) if known and _same_answer(first, gold) else None
    if not first:
        return NO_ANSWER
    return judged(_same_answer(first, gold), first)


@lru_cache(maxsize=4096)
def _gold_kind(gold: str) -> tuple[bool, bool]:
    """Whether a gold is compared as text, and whether it can be compared at all."""
    as_text = bool(_as_words(gold) or _as_clock(gold))
    return as_text, as_text or bool(_as_numeral(bare(gold)) or _gold_expressions(gold))


def judge_math(completion: str, gold: str) -> Verdict:
    r"""Equality of mathematical answers, by math-verify.

    The answer is the box or the `####` line; without them it is what math-verify finds in the last
    4,000 characters (LaTeX, then plain expressions, "the answer is" first), and for a gold in
    words what follows "answer" on the last line. The gold is the bare answer, with or without
    dollars or a box. A gold that holds nothing to compare gives None, verdict "error".
    """
    as_text, comparable = _gold_kind(gold)
    if not comparable:
        return unjudged("finds no answer in the gold that it can compare")
    found = given_answer(completion)
    if found is None and as_text:
        line = last_line(completion)
        found = re.split(r"(?i)answer(?: is)?:?", line)[-1].strip() if line else None
    if found is not None:
        return judged(_same_answer(found, gold), found) if found else NO_ANSWER
    tail = completion[-TAIL_CHARACTERS:]
    if len(completion) > TAIL_CHARACTERS:  # not to begin within a number
        tail = tail.split(maxsplit=1)[-1] if len(tail.split(maxsplit=1)) > 1 else ""
    if not _holds_latex(tail) and (verdict := _judge_plain(tail, gold)):
        return verdict
    parse, _, latex, expr = _math_verify()
    read = parse(tail, [latex, expr], parsing_timeout=None)
    if not read:
        return NO_ANSWER
    extracted = next((part for part in read if isinstance(part, str)), str(read[0]))
    expressions = tuple(part for part in read if not isinstance(part, str))
    # The text has its unit split off; the expression has what the text lacks, a percent sign.
    accepted = _same_answer(extracted, gold) or (
        _verify(_gold_expressions(gold), expressions)
        and (_is_left_undone(bare(gold)) or not _is_left_undone(bare(extracted)))
    )
    return judged(accepted, extracted)


# --- math: what was read, for people ----------------------------------------------------------


def read_math(text: str) -> str:
    """What is compared of an answer or a gold: words, a time, digits with their base, or values."""
    plain = bare(text)
    if words := _as_words(plain):
        return words
    if (clock := _as_clock(plain)) and clock[2]:
        return f"{clock[0]}:{clock[1]:02} {clock[2]}m"
    if numeral := _as_numeral(plain):
        return f"{numeral[0]} in base {numeral[1]}"
    value, unit = _split_unit(plain)
    expressions = [part for part in _expressions(value) if not isinstance(part, str)]
    read = ", ".join(map(str, expressions)) or value
    named = plain[len(value) :].strip() if unit is not None else ""
    return f"{read} {named}".strip()


def why_unequal(found: str, gold: str) -> str:
    """What is in the way of an answer beside its value; empty where it is the value alone."""
    found, gold = bare(found), bare(gold)
    if _is_left_undone(found) and not _is_left_undone(gold):
        return "arithmetic is left undone"
    if _as_words(gold):
        return "compared as text"
    found_unit, gold_unit = _split_unit(found)[1], _split_unit(gold)[1]
    if None not in (found_unit, gold_unit) and found_unit != gold_unit:
        return "another unit"
    return ""
