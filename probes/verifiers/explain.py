"""Verdicts that say what was compared, and why they are what they are.

This costs about as much as judging and is for people: `curate verify` asks for it, `curate tag`
does not.
"""

from collections.abc import Callable
from dataclasses import replace

from probes.mathematics.boxes import boxed_answer
from probes.verifiers.answers import given_answer
from probes.verifiers.choice import read_choice
from probes.verifiers.load import VerifierFunction, read_exact
from probes.verifiers.math import read_math, read_math_gold, why_unequal
from probes.verifiers.numeric import read_numeric
from probes.verifiers.verdict import Verdict, shortened

_READERS: dict[str, Callable[[str], str]] = {
    "math": read_math,
    "exact": read_exact,
    "numeric": read_numeric,
    "choice": read_choice,
}
_ELSEWHERE = {
    "math": "the answer in its text",
    "exact": "its last line",
    "numeric": "the number in its text",
    "choice": "the letter in its text",
}
"""Where an answer was found that the completion does not set apart."""


def explaining(
    name: str, verifier: VerifierFunction, pass_threshold: float | None
) -> VerifierFunction:
    """The same verifier, whose verdicts have a reason, and what was read of answer and gold.

    Args:
        name: of the verifier.
        verifier: loaded under that name.
        pass_threshold: as it was loaded with.
    """

    def judge(completion: str, gold: str) -> Verdict:
        verdict = verifier(completion, gold)
        if verdict.reward is None:
            return verdict
        if name == "code":
            passed = f"passes all {verdict.tests_total} tests"
            no_program = "no Python program was found in the completion"
            found = passed if verdict.is_correct else verdict.reason or no_program
            return replace(verdict, reason=found)
        if name not in _READERS:
            return replace(verdict, reason=_of_function(verdict, pass_threshold))
        read = _READERS[name]
        gold_read = shortened(read_math_gold(gold) if name == "math" else read(gold))
        if verdict.answer_found is None:
            reason = verdict.reason or "no answer was found in the completion"
            return replace(verdict, gold_read=gold_read, reason=reason)
        answer_read = shortened(read(verdict.answer_found))
        reason = verdict.reason or _of_answer(name, completion, gold, verdict)
        return replace(verdict, answer_read=answer_read, gold_read=gold_read, reason=reason)

    return judge


def _of_function(verdict: Verdict, pass_threshold: float | None) -> str:
    limit = "its maximum" if pass_threshold is None else f"--pass-threshold {pass_threshold:g}"
    how = "which reaches" if verdict.is_correct else "below"
    return f"returned {verdict.reward:g}, {how} {limit}"


def _of_answer(name: str, completion: str, gold: str, verdict: Verdict) -> str:
    assert verdict.answer_found is not None
    if boxed_answer(completion) is not None:
        place = "its last box"
    elif given_answer(completion) is not None:
        place = "the answer that it marks"
    else:
        place = _ELSEWHERE[name]
    if verdict.is_correct:
        return f"{place} equals the gold"
    why = why_unequal(verdict.answer_found, gold) if name == "math" else ""
    return f"{place} does not equal the gold{f': {why}' if why else ''}"
