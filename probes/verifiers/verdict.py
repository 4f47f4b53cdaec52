"""What a verifier says of one completion."""

from dataclasses import dataclass

SHOWN_CHARACTERS = 1_000  # of an answer that is kept; a hostile one can be a megabyte


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one completion."""

    reward: float | None
    """The reward: 1 or 0, or what a user's function returned; None where it could not be judged
    (never 0 for unknown)."""
    verdict: str
    """correct, wrong, no_answer, truncated, timeout, crashed or error."""
    answer_found: str | None = None
    """The answer as it stands in the completion, shortened to 1,000 characters."""
    reason: str | None = None
    """Why, in one line: always where it could not be judged, else where the pool explains."""
    answer_read: str | None = None
    """What was compared of the answer, where the pool explains."""
    gold_read: str | None = None
    """What was compared of the gold, where the pool explains."""

    @property
    def is_correct(self) -> bool:
        """Whether it was accepted: of a user's function, whether it reached the threshold."""
        return self.verdict == "correct"


THRESHOLD_TOLERANCE = 1e-6
"""0.7 + 0.2 + 0.1 is below 1 in floating point, and float32's 0.7 below 0.7."""


def reaches(reward: float, threshold: float) -> bool:
    """Whether a reward is at a threshold, up to rounding, or above it."""
    return reward >= threshold - THRESHOLD_TOLERANCE * max(1.0, abs(threshold))


def judged(accepted: bool, found: str) -> Verdict:
    """The verdict on an answer that was found."""
    return Verdict(int(accepted), "correct" if accepted else "wrong", shortened(found))


def unjudged(reason: str) -> Verdict:
    """The verdict where it could not be judged."""
    return Verdict(None, "error", None, reason)


def shortened(text: str) -> str:
    """The text, or what is kept of a longer one."""
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


NO_ANSWER = Verdict(0, "no_answer")
