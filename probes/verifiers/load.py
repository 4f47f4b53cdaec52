"""Verifiers: pure functions that judge one completion against one gold answer.

Each takes `(completion, gold)` and gives a `Verdict`. What a completion answers is what
`probes.verifiers.answers` finds set apart in it, and else what each verifier says; `math`,
`numeric` and `choice` have modules of their own.

Every regular expression of this module takes time linear in its text.
"""

import difflib
import importlib
from collections.abc import Callable

from curate.errors import UsageError
from probes.mathematics.notation import text_unwrapped
from probes.verifiers.answers import (
    NO_ANSWER,
    Verdict,
    given_answer,
    judged,
    last_line,
    spoken,
    unjudged,
)
from probes.verifiers.choice import judge_choice
from probes.verifiers.math import judge_math
from probes.verifiers.numeric import judge_numeric

__all__ = ["VERIFIERS", "Verdict", "VerifierFunction", "load_verifier"]

VerifierFunction = Callable[[str, str], Verdict]

# --- exact ----------------------------------------------------------------------------------------


def _folded(text: str) -> str:
    return " ".join(text_unwrapped(text).split()).casefold()


def judge_exact(completion: str, gold: str) -> Verdict:
    r"""Text equality, blind to case, to the amount of white space and to `\text{}`.

    The answer is the tag, the box, the `####` line, or the last line that is not empty.
    """
    if not gold.strip():
        return unjudged("finds the gold empty")
    found = given_answer(completion)
    if found is None:
        found = last_line(spoken(completion))
    return judged(_folded(found) == _folded(gold), found) if found else NO_ANSWER


def read_exact(text: str) -> str:
    """What `exact` compares of an answer or a gold."""
    return _folded(text)


# --- a user's function, and the choice of verifier ------------------------------------------------

VERIFIERS: dict[str, VerifierFunction] = {
    "math": judge_math,
    "exact": judge_exact,
    "numeric": judge_numeric,
    "choice": judge_choice,
}
"""All but users' own, by name."""


def _user_verifier(name: str) -> VerifierFunction:
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

    def judge(completion: str, gold: str) -> Verdict:
        try:
            value = function(completion, gold)
            value = value.item() if hasattr(value, "item") else value  # NumPy and torch scalars
        except Exception as error:  # noqa: BLE001 (the verifier's edge; recorded in the verdict)
            return unjudged(f"raised {type(error).__name__}: {error}")
        if value is None:
            return unjudged("returned None")
        if isinstance(value, bool | int | float) and value in (0, 1):
            return Verdict(int(value), "correct" if value else "wrong")
        return unjudged(f"returned {value!r:.80}: a reward is 0, 1 or None")

    return judge


def load_verifier(name: str) -> VerifierFunction:
    """The verifier of that name: math, exact, numeric, choice, or a user's MODULE:FUNCTION.

    The user's function is called as `function(completion, answer)` and returns True, 1, False, 0,
    or None for "cannot be judged"; any other value, and an exception, give None, verdict "error".

    Raises UsageError for an unknown name, a module that cannot be imported, a missing function.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    module_name, colon, function_name = name.partition(":")
    if colon and module_name and function_name:
        return _user_verifier(name)
    nearest = difflib.get_close_matches(name, VERIFIERS, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    known = ", ".join(VERIFIERS)
    raise UsageError(f"unknown verifier {name!r}: {hint}known are {known} and MODULE:FUNCTION")
