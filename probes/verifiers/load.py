r"""Verifiers: pure functions that judge one completion against one gold answer.

Each takes `(completion, gold)` and gives a `Verdict`. What a completion answers is what
`probes.verifiers.answers` finds set apart in it, and else what each verifier below says; `math` has
a module of its own, `probes.verifiers.math`.

Every regular expression of this module takes time linear in its text.
"""

import difflib
import importlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from curate.errors import UsageError
from probes.verifiers.answers import given_answer, last_line, unwrapped
from probes.verifiers.code import judge_code
from probes.verifiers.math import judge_math
from probes.verifiers.sandbox import why_no_sandbox
from probes.verifiers.verdict import NO_ANSWER, Verdict, judged, reaches, unjudged

__all__ = ["VERIFIERS", "Verdict", "VerifierFunction", "load_verifier"]

VerifierFunction = Callable[[str, str], Verdict]

# --- exact ----------------------------------------------------------------------------------------


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def judge_exact(completion: str, gold: str) -> Verdict:
    """Text equality, blind to case and to the amount of white space.

    The answer is the box, the `####` line, or the last line that is not empty.
    """
    if not gold.strip():
        return unjudged("finds the gold empty")
    found = given_answer(completion)
    if found is None:
        found = last_line(completion)
    return judged(_folded(found) == _folded(gold), found) if found else NO_ANSWER


def read_exact(text: str) -> str:
    """What `exact` compares of an answer or a gold."""
    return _folded(text)


# --- numeric --------------------------------------------------------------------------------------

RELATIVE_TOLERANCE = 1e-6

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+−]?)(?:\\?[$€£])?(?P<sign_after>-?)
    (?: \\[dt]?frac\{{(?P<over>-?{_DECIMAL})\}}\{{(?P<under>{_DECIMAL})\}}
      | (?P<decimal>{_DECIMAL})
        (?: /(?P<divisor>{_DECIMAL})
          | [eE](?P<exponent>[-+]?\d{{1,4}})(?!\d)
          | \s?(?:\\times|\\cdot|×|\*)\s?10(?:\^|\*\*)\{{?(?P<power>[-+−]?\d{{1,4}})\}}? )?
    )
    (?P<percent>\s?\\?%)?""",
    re.VERBOSE,
)


def _last_number(text: str) -> tuple[str, float, bool] | None:
    """The last number: as written, its value before any percent sign, and whether it has one."""
    match = None
    for match in _NUMBER.finditer(text):  # noqa: B007 (only the last one counts)
        pass
    if match is None:
        return None
    groups = {name: (part or "").replace("−", "-") for name, part in match.groupdict().items()}

    def number(part: str) -> float:
        return float(part.replace(",", ""))

    value = number(groups["over"] or groups["decimal"])
    under = groups["under"] or groups["divisor"]
    if under:
        value = value / number(under) if number(under) else math.nan
    exponent = groups["exponent"] or groups["power"]
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


def read_numeric(text: str) -> str:
    """The number that `numeric` reads in an answer or a gold; empty where there is none."""
    number = _last_number(text)
    return "" if number is None else f"{number[1]:.12g}{'%' if number[2] else ''}"


def judge_numeric(completion: str, gold: str) -> Verdict:
    r"""Equality of numbers, to a relative 1e-6.

    The answer is the last number of the box, of the `####` line, or of the whole completion.
    Read are thousands commas, a currency sign, `a/b`, `\frac{a}{b}`, `1e3`, `2 \times 10^{3}` and
    `%`: where one side has a percent sign and the other none, 50% equals both 50 and 0.5.
    """
    wanted = _last_number(gold)
    if wanted is None or not math.isfinite(wanted[1]):
        return unjudged("finds no finite number in the gold")
    given = given_answer(completion)
    found = _last_number(completion if given is None else given)
    if found is None:
        return NO_ANSWER if given is None else judged(False, given)

    def close(a: float, b: float) -> bool:
        return abs(a - b) <= RELATIVE_TOLERANCE * abs(b)

    accepted = close(found[1], wanted[1])
    if found[2] and not wanted[2]:
        accepted = accepted or close(found[1] / 100, wanted[1])
    if wanted[2] and not found[2]:
        accepted = accepted or close(found[1], wanted[1] / 100)
    return judged(accepted, found[0])


# --- choice ---------------------------------------------------------------------------------------

_LETTER = re.compile(r"[\s$*({\[]{0,6}([A-Ja-j])(?:[)}\].:,][\s\S]*|\s*)")
_LONE_LETTER = re.compile(r"[\s$*({\[]{0,6}([A-Ja-j])[\s$*)}\].:]{0,6}")
_SAID_LETTER = re.compile(
    r"(?i:\banswer(?: is| would be)?(?: option| choice)?):?[\s*]{0,3}(?i:option |choice )?"
    r"(?:\\text\{|\$)?(?:\(([A-J])\)|([A-HJ]|I(?!\s[a-z]))(?![A-Za-z0-9'’]))"
)
_LAST_LETTER = re.compile(r"(?<![A-Za-z0-9'’])(?:\(([A-J])\)|([A-HJ]))[\s.*$]{0,6}\Z")


def _choice_said(completion: str) -> str | None:
    given = given_answer(completion)
    if given is not None:
        match = _LETTER.fullmatch(unwrapped(given))
        return match[1] if match else given
    said = None
    for said in _SAID_LETTER.finditer(completion):  # noqa: B007 (only the last one counts)
        pass
    if said is None:
        lone = _LONE_LETTER.fullmatch(last_line(completion) or "")
        if lone:
            return lone[1]
        said = _LAST_LETTER.search(completion[-40:])
    return (said[1] or said[2]) if said else None


def read_choice(text: str) -> str:
    """The letter that `choice` reads in an answer or a gold, or the text where it is none."""
    match = _LETTER.fullmatch(unwrapped(text))
    return match[1].upper() if match else text.strip()


def judge_choice(completion: str, gold: str) -> Verdict:
    """Multiple choice, letters A to J; the gold is `B` or `(B)`.

    The answer is the letter that the box or the `####` line begins with (`B`, `(B)`, `B. 12 cm`),
    the last "answer is (B)" or "answer: B", a last line that is one letter, or the capital letter
    that the completion ends in.
    """
    wanted = _LONE_LETTER.fullmatch(unwrapped(gold))
    if wanted is None:
        return unjudged("finds no letter from A to J in the gold")
    found = _choice_said(completion)
    return judged(found.upper() == wanted[1].upper(), found) if found else NO_ANSWER


# --- a user's function, and the choice of verifier ------------------------------------------------

VERIFIERS: dict[str, VerifierFunction] = {
    "math": judge_math,
    "exact": judge_exact,
    "numeric": judge_numeric,
    "choice": judge_choice,
    "code": judge_code,
}
"""All but users' own, by name."""


def _user_function(name: str) -> tuple[Callable[[str, str], Any], float]:
    """A user's function, and the maximum of its rewards."""
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        raise UsageError(
            f"verifier {name!r}: cannot import {module_name!r}: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"verifier {name!r}: module {module_name!r} has no such function")
    most = getattr(function, "max_reward", 1)
    if isinstance(most, bool) or not isinstance(most, int | float) or not math.isfinite(most):
        raise UsageError(f"verifier {name!r}: max_reward is {most!r}; it must be a number")
    return function, most


def _user_verifier(name: str, pass_threshold: float | None) -> VerifierFunction:
    function, most = _user_function(name)
    threshold = most if pass_threshold is None else pass_threshold

    def judge(completion: str, gold: str) -> Verdict:
        try:
            value = function(completion, gold)
            value = value.item() if hasattr(value, "item") else value  # NumPy and torch scalars
        except Exception as error:  # noqa: BLE001 (the verifier's edge; recorded in the verdict)
            return unjudged(f"raised {type(error).__name__}: {error}")
        if value is None:
            return unjudged("returned None")
        if not isinstance(value, bool | int | float) or not math.isfinite(value):
            return unjudged(f"returned {value!r:.80}: a reward is a finite number or None")
        if pass_threshold is None and value > most and not reaches(most, value):
            return unjudged(
                f"returned {value!r:.80}, above {most:g}, its maximum: give --pass-threshold, or "
                f"set max_reward of the function"
            )
        reward = int(value) if value in (0, 1) else float(value)
        return Verdict(reward, "correct" if reaches(value, threshold) else "wrong")

    return judge


def check_threshold(names: Sequence[str], pass_threshold: float | None) -> None:
    """Refuse a threshold that is no number, or where no verifier has other rewards than 0 and 1.

    Raises:
        UsageError: it is one of these.
    """
    if pass_threshold is None:
        return
    if not math.isfinite(pass_threshold):
        raise UsageError(f"--pass-threshold is {pass_threshold}; it must be a finite number")
    if not any(":" in name for name in names):
        raise UsageError(
            f"--pass-threshold is for --verifier MODULE:FUNCTION; {names[0]} gives 0 or 1"
        )


def reward_threshold(name: str, pass_threshold: float | None) -> float:
    """From which reward on a completion is correct, of a verifier that can be loaded."""
    if ":" not in name:
        return 1
    return _user_function(name)[1] if pass_threshold is None else pass_threshold


def load_verifier(name: str, pass_threshold: float | None = None) -> VerifierFunction:
    """The verifier of that name: math, exact, numeric, choice, code, or a user's MODULE:FUNCTION.

    The user's function is called as `function(completion, answer)` and returns a finite number,
    True or False, or None for "cannot be judged"; any other value, and an exception, give None,
    verdict "error".

    Args:
        name: of the verifier.
        pass_threshold: the reward of a user's function from which on a completion is correct. None:
            the maximum, which is 1, or what the function's attribute `max_reward` says; a reward
            beyond it cannot be judged.

    Raises:
        UsageError: an unknown name, a module that cannot be imported, a missing function, a
            threshold for a verifier whose rewards are 0 and 1, or `code` where programs have no
            sandbox.
    """
    check_threshold([name], pass_threshold)
    module_name, colon, function_name = name.partition(":")
    if colon and module_name and function_name:
        return _user_verifier(name, pass_threshold)
    if name == "code" and (missing := why_no_sandbox()):
        raise UsageError(f"verifier code: {missing[0]}; {missing[1]}")
    if name in VERIFIERS:
        return VERIFIERS[name]
    nearest = difflib.get_close_matches(name, VERIFIERS, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    known = ", ".join(VERIFIERS)
    raise UsageError(f"unknown verifier {name!r}: {hint}known are {known} and MODULE:FUNCTION")
