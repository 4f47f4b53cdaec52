r"""Expressions and equations, read by latex2sympy2_extended and compared by math-verify.

math-verify is by Kydlíček (https://github.com/huggingface/Math-Verify); it runs with its time-outs
off (whoever calls bounds the time). What is here departs from its defaults where those accept a
wrong answer:

- Letters keep their case: to math-verify m/M is 1. I is a letter, y' is not y, and A^T is not A.
- No units are dropped: to math-verify `3c` equals `3`, and 5 m equals 5 cm.
- What it finds equal must be equal in numbers as well: it compares differences that round to 0, so
  that 10^{-34} equals 10^{-31}.
- An equation that has no real solutions, or no unknown, makes no gold: math-verify compares the
  solutions of two equations, and finds any two empty lists equal. Nor does `\gcd` or `\lcm` of
  unknowns, which SymPy evaluates to a number.
- What `probes.mathematics.undone` finds too large is not read, so that nothing computes it.

Every regular expression of this module takes time linear in its text; math-verify's do not.
"""

import logging
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from probes.mathematics.undone import is_too_large

_EVALUATED = re.compile(r"\\gcd|\\lcm|\\operatorname\{(?:gcd|lcm)\}")
_EQUATIONS = re.compile(r"(?<!\\|<|!|>)=")
_CURRENT = re.compile(r"(\\[A-Za-z]+)|I")
_RAISED_TO_T = re.compile(r"\^\s?(?:\{\s?T\s?\}|T(?![A-Za-z]))")
_PRIME = re.compile(r"([A-Za-z])\s?(\^\s?\{?\s?(?:\\prime\s?)+\}?|'{1,4})")
_BRACKET = re.compile(r"[(){}\[\]]")
MOST_DEPTH = 40  # of brackets, which slow the parser down
MOST_CHARACTERS = 2_000  # of an expression; reading takes a millisecond for some ten of them


@lru_cache(maxsize=1)
def _libraries() -> tuple[Callable[..., Any], ...]:
    """math-verify's `verify`, and what reads LaTeX; imported when first used."""
    from latex2sympy2_extended import NormalizationConfig
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy, normalize_latex
    from math_verify import verify
    from math_verify.grader import should_treat_as_complex

    # It warns at every start that its time-outs are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    form = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    conversion = ConversionConfig(lowercase_symbols=False)

    def normalized(text: str) -> str:
        return str(normalize_latex(text, config=form))

    def converted(latex: str) -> Any:
        return latex2sympy(
            latex,
            is_real=not should_treat_as_complex(latex),
            convert_degrees=False,
            normalization_config=None,
            conversion_config=conversion,
        )

    return verify, normalized, converted


def _primes(text: str) -> int:
    return text.count("'") + text.count("prime")


def _letters_apart(text: str) -> str:
    r"""I, an exponent T and y' as letters: i, a transpose and y are what they are read as else."""
    text = _PRIME.sub(lambda match: f"{match[1]}_{{{'prime' * _primes(match[2])}}}", text)
    text = _RAISED_TO_T.sub("^{T_{letter}}", text)
    return _CURRENT.sub(lambda match: match[1] or r"\iota ", text)


def _depth(text: str) -> int:
    """How deep brackets are nested."""
    depth = most = 0
    for mark in _BRACKET.findall(text):
        depth += 1 if mark in "({[" else -1
        most = max(most, depth)
    return most


@lru_cache(maxsize=16384)
def read_expression(text: str) -> Any:
    """The SymPy object of a text in canonical notation; None where it cannot be read."""
    if not text or len(text) > MOST_CHARACTERS or _depth(text) > MOST_DEPTH or is_too_large(text):
        return None
    _, normalized, converted = _libraries()
    latex = normalized(_letters_apart(text))
    try:
        return converted(latex)
    except MemoryError:
        raise  # it is no verdict, and a cache must not keep it
    except Exception:  # noqa: BLE001 (its own way of saying that it cannot read the text)
        pass
    parts = _EQUATIONS.split(latex)
    if len(parts) < 3 or "," in latex or ";" in latex:
        return None
    try:
        return converted(parts[-1])
    except MemoryError:
        raise  # it is no verdict, and a cache must not keep it
    except Exception:  # noqa: BLE001
        return None


def _always_equal(expression: Any) -> bool:
    """Whether math-verify would take this gold for equal to unlike equations (see the top)."""
    from sympy import Eq, solve

    equations = [e for e in (expression, *getattr(expression, "args", ())) if isinstance(e, Eq)]
    try:
        # With several unknowns solving takes minutes, and has a solution: any unknown by the rest.
        return any(
            len(unknowns := e.free_symbols) < 2 and not solve(e, list(unknowns)) for e in equations
        )
    except MemoryError:
        raise  # it is no verdict, and a cache must not keep it
    except Exception:  # noqa: BLE001 (what SymPy cannot solve, math-verify does not accept either)
        return False


@lru_cache(maxsize=4096)
def gold_expression(gold: str) -> Any:
    """What to compare with; None where the gold has nothing that can be compared."""
    read = read_expression(gold)
    if read is None or isinstance(read, bool) or _always_equal(read):
        return None
    if _EVALUATED.search(gold) and not getattr(read, "free_symbols", ()):
        return None
    return read


def same_expression(gold: str, found: str) -> bool:
    """Whether math-verify finds them equal, and their values do not say otherwise."""
    wanted = gold_expression(gold)
    given = read_expression(found) if wanted is not None else None
    if wanted is None or given is None:
        return False
    # As math-verify says, after up to some seconds of `simplify`; or should say (see the top).
    if _is_no_constant(given, wanted) or _values_differ(wanted, given):
        return False
    verify = _libraries()[0]
    return bool(verify(wanted, given, timeout_seconds=None, allow_set_relation_comp=True))


def irrational_value(text: str) -> Fraction | None:
    """The real value of an expression to 40 digits; None where it has none, or a rational one."""
    from sympy import Expr, nsimplify

    read = read_expression(text)
    if not isinstance(read, Expr) or read.free_symbols:
        return None
    try:
        value = read.doit()
        digits = value.evalf(40)
        if value.is_rational or not digits.is_real:
            return None
        nearest = nsimplify(digits, rational=True, tolerance=1e-30)
        return None if nearest.q < 10**8 else Fraction(str(digits))
    except MemoryError:
        raise  # it is no verdict, and a cache must not keep it
    except Exception:  # noqa: BLE001 (an expression that has no value)
        return None


def _values_differ(wanted: Any, given: Any) -> bool:
    """Whether the values differ at some point; False where they have none."""
    from sympy import Expr, Float, Rational

    if not (isinstance(wanted, Expr) and isinstance(given, Expr)):
        return False
    try:
        letters = sorted(wanted.free_symbols | given.free_symbols, key=str)
        has_float = wanted.has(Float) or given.has(Float)
        tolerance = 1e-6 if has_float else 1e-12
        for seed in (1, 2) if letters else (1,):
            point = {
                letter: Rational(137 + 61 * place + 17 * seed, 101 + 7 * place * seed)
                for place, letter in enumerate(letters)
            }
            one, other = wanted.evalf(40, subs=point), given.evalf(40, subs=point)
            if not (one.is_number and other.is_number and one.is_finite and other.is_finite):
                continue
            size = max(abs(one), abs(other))
            if size and abs(one - other) > tolerance * (min(1, size) if has_float else size):
                return True
    except MemoryError:
        raise  # it is no verdict, and a cache must not keep it
    except Exception:  # noqa: BLE001 (an expression that has no value, such as an integral)
        return False
    return False


def _is_no_constant(expression: Any, gold: Any) -> bool:
    """Whether it is a letter times what does not depend on it, as words are, and the gold none.

    So it has no fixed value, unless it is 0 throughout.
    """
    from sympy import E, Mul, Rational, Symbol

    if not isinstance(expression, Mul) or getattr(gold, "free_symbols", True):
        return False
    others = [factor for factor in expression.args if not isinstance(factor, Symbol)]
    if gold == 0 and not all(f == E or (isinstance(f, Rational) and f != 0) for f in others):
        return False
    return any(
        isinstance(letter, Symbol) and not any(other.has(letter) for other in others)
        for letter in expression.args
    )
