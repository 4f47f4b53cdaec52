"""Verifiers: pure functions that judge one completion against one gold answer.

Each takes `(completion, gold)` and gives a `Verdict`. What a completion answers is what
`probes.verifiers.answers` finds set apart in it, and else what each verifier says; `math`,
`numeric` and `choice` have modules of their own.

Every regular expression of this module takes time linear in its text.
"""

import difflib
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from curate.errors import UsageError
from probes.mathematics.notation import text_unwrapped
from probes.verifiers.answers import given_answer, last_line, spoken
from probes.verifiers.choice import judge_choice
from probes.verifiers.math import judge_math
from probes.verifiers.numeric import judge_numeric
from probes.verifiers.verdict import NO_ANSWER, Verdict, judged, reaches, unjudged

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
    """The verifier of that name: math, exact, numeric, choice, or a user's MODULE:FUNCTION.

    The user's function is called as `function(completion, answer)` and returns a finite number,
    True or False, or None for "cannot be judged"; any other value, and an exception, give None,
    verdict "error".

    Args:
        name: of the verifier.
        pass_threshold: the reward of a user's function from which on a completion is correct. None:
            the maximum, which is 1, or what the function's attribute `max_reward` says; a reward
            beyond it cannot be judged.

    Raises:
        UsageError: an unknown name, a module that cannot be imported, a missing function, or a
            threshold for a verifier whose rewards are 0 and 1.
    """
    check_threshold([name], pass_threshold)
    module_name, colon, function_name = name.partition(":")
    if colon and module_name and function_name:
        return _user_verifier(name, pass_threshold)
    if name in VERIFIERS:
        return VERIFIERS[name]
    nearest = difflib.get_close_matches(name, VERIFIERS, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    known = ", ".join(VERIFIERS)
    raise UsageError(f"unknown verifier {name!r}: {hint}known are {known} and MODULE:FUNCTION")
