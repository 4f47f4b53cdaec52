"""The gold answer in the place of the one that a rollout gave.

A rollout is a prefix, an answer and what stands behind it. With the gold put in the answer's place,
and one token behind it (the end, a brace, …) to close it, every prefix gives a beginning of a
correct completion, and the policy's probability of that beginning is one forward pass:

    b = (s, g):   s the prefix, g the gold's tokens and the next one,    pi(b) = pi(s) pi(g | s)

Two such beginnings exclude each other or one begins with the other. Of the latter the longer is
dropped; the rest are events that exclude each other, so that

    p >= sum over b of pi(s) pi(g | s),

up to what follows the answer, which is taken not to matter. pi(s) is estimated by the share of the
item's rollouts that begin with s. So every rollout r has a value, and their mean is the estimate,

    v_r = sum over the b with r beginning with s of pi(g | s).

This is a Rao–Blackwell estimate: the chance of the answer, given what was written before it, is
computed and no longer drawn. For direct answers, choices and labels s is empty, and it is the pass
probability itself; for long reasoning every prefix is seen once, and it says little more than the
counts. It is low where the gold has other forms that are right as well, and where an answer that
did not come in these rollouts has another place; `probes.forecast.pass_probability` calibrates it.

Departure: the plain mean of pi(g | s) over rollouts, s the rollout's own prefix, lacks the rollouts
that begin with s and go on otherwise, those that were cut among them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.verifiers.answers import bare, given_answer
from probes.verifiers.verdict import SHOWN_CHARACTERS

# A few tokens around the one that bisection finds: bytes of one character decode one by one.
_SLACK = 4
_SAME = 1e-12
_MARKS = re.compile(r"\\(?:boxed|fbox)\s*\{")
_WRAPPED = ("$", r"\(", r"\[", r"\boxed")

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class AnswerPlace:
    """Where in a completion its answer stands."""

    first_token: int
    """The token in which the answer begins."""
    end_token: int
    """The token behind the one in which it ends."""
    lead: str
    """Text of the first token before the answer, such as a space."""
    tail: str
    """Text of the last token behind the answer, such as a brace."""


@dataclass(frozen=True)
class GoldCompletion:
    """A completion with the gold in the place of its answer."""

    prefix: Tokens
    """Token ids before the gold, as they were sampled."""
    scored: Tokens
    """The gold's, and the one behind it where there is one."""
    rest: Tokens
    """Those behind, as they were sampled."""
    text: str
    """The whole, without special tokens."""

    @property
    def token_ids(self) -> Tokens:
        """All of them."""
        return self.prefix + self.scored + self.rest


@dataclass(frozen=True)
class GoldProbability:
    """What an item's gold completions say of its pass probability."""

    probability: float
    """Of a correct completion, at most 1."""
    standard_error: float
    """Of the mean over rollouts; 0 where all have the same prefixes."""
    weights: NDArray[np.float64]
    """(completions,): what each adds to the probability; 0 for those that another one holds."""


def answer_place(
    completion_token_ids: Sequence[int], tokenizer: Any, completion: str, answer_found: str
) -> AnswerPlace | None:
    """Find the tokens of the answer that the verifier found.

    Text is mapped to tokens by decoding beginnings of the token ids.

    Args:
        completion_token_ids: of the rollout.
        tokenizer: the policy's.
        completion: their text, without special tokens.
        answer_found: as the verifier extracted it.

    Returns:
        None where the text does not hold it, or the tokens do not give the text.
    """
    start = _answer_start(completion, answer_found)
    if start is None:
        return None
    end = start + len(answer_found)
    ids = list(completion_token_ids)
    texts: dict[int, str] = {}

    def text(count: int) -> str:
        if count not in texts:
            texts[count] = decoded(tokenizer, ids[:count])
        return texts[count]

    def is_cut_cleanly(count: int) -> bool:
        return completion.startswith(text(count))

    if text(len(ids)) != completion:
        return None
    first = min(_bisect(text, start, len(ids)) + _SLACK, len(ids))
    while len(text(first)) > start or not is_cut_cleanly(first):
        first -= 1  # Ends at 0, the empty text.
    last = max(_bisect(text, end - 1, len(ids)) - _SLACK, first)
    while len(text(last)) < end or not is_cut_cleanly(last):
        last += 1  # Ends at all tokens, the whole text.
    return AnswerPlace(
        first, last, completion[len(text(first)) : start], completion[end : len(text(last))]
    )


def _bisect(text: Any, length: int, most: int) -> int:
    """The most tokens, up to `most`, whose text has at most `length` characters."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(text(middle)) <= length else (low, middle - 1)
    return low


def _answer_start(completion: str, answer: str) -> int | None:
    """Where the answer stands: in the last box or behind the last `####`, else at the end."""
    if not answer or len(answer) >= SHOWN_CHARACTERS:
        return None
    given = given_answer(completion)
    if given is not None and answer in given:
        boxes = [mark.end() for mark in _MARKS.finditer(completion)]
        marks = boxes or [completion.rfind("####") + 4]
        # A box that was begun after the last closed one holds no answer.
        for mark in reversed(marks):
            start = completion.find(given, mark)
            if start >= 0:
                return start + given.rfind(answer)
    start = completion.rfind(answer)
    return start if start >= 0 else None


def placed_form(gold: str, answer_found: str | None) -> str:
    r"""Write the gold as a policy writes an answer: without dollars, a box, words around a number.

    Args:
        gold: of the item.
        answer_found: what the verifier finds in `\boxed{gold}`; None where it does not accept that,
            or does not say.
    """
    text = gold if answer_found is None or len(answer_found) >= SHOWN_CHARACTERS else answer_found
    text = text.strip()
    return bare(text) if text.startswith(_WRAPPED) else text


def gold_completion(
    completion_token_ids: Sequence[int],
    place: AnswerPlace,
    tokenizer: Any,
    completion: str,
    gold: str,
) -> GoldCompletion | None:
    """Put the gold in the place of a completion's answer.

    Args:
        completion_token_ids: of the rollout.
        place: of its answer.
        tokenizer: the policy's.
        completion: the rollout's text, without special tokens.
        gold: as it is to be written (`placed_form`).

    Returns:
        None where no token ids of the tokenizer give that text.
    """
    ids = [int(token) for token in completion_token_ids]
    prefix, behind = ids[: place.first_token], ids[place.end_token :]
    before = decoded(tokenizer, prefix)
    piece = place.lead + gold + place.tail
    answer_end = len(decoded(tokenizer, ids[: place.end_token]))
    wanted = before + piece + completion[answer_end:]
    # As the policy would go on from its own tokens, where that can be told; else by itself.
    together = encoded(tokenizer, before + piece)
    written = [together[len(prefix) :]] if together[: len(prefix)] == prefix else []
    for tokens in (*written, encoded(tokenizer, piece)):
        if tokens and decoded(tokenizer, prefix + tokens + behind) == wanted:
            scored = (*tokens, *behind[:1])
            return GoldCompletion(tuple(prefix), scored, tuple(behind[1:]), wanted)
    return None


def decoded(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """The text of a completion, as the sampling stage writes it."""
    return str(
        tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    )


def encoded(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text, with nothing added."""
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def gold_probability(
    rollouts: Sequence[Tokens],
    completions: Sequence[GoldCompletion],
    log_probabilities: Sequence[float],
    sure: Sequence[bool],
) -> GoldProbability:
    """Estimate an item's pass probability from its gold completions.

    Args:
        rollouts: token ids of every rollout looked at, one at least, with those that gave no
            answer or were cut.
        completions: those with distinct (prefix, scored).
        log_probabilities: log pi(scored | prompt, prefix) of each.
        sure: of each rollout, whether it is correct and its answer could not be located: what it
            wrote before the answer is all of it then, and its value is 1.
    """
    beginnings = [one.prefix + one.scored for one in completions]
    probabilities = np.exp(np.minimum(np.array(log_probabilities, dtype=np.float64), 0.0))
    is_least = [
        not any(len(other) < len(mine) and mine[: len(other)] == other for other in beginnings)
        for mine in beginnings
    ]
    reaches = np.array(
        [[rollout[: len(one.prefix)] == one.prefix for one in completions] for rollout in rollouts],
        dtype=np.float64,
    ).reshape(len(rollouts), len(completions))
    values = np.where(sure, 1.0, reaches @ (probabilities * is_least))
    # Sums of the same numbers in another order.
    is_one_value = float(np.ptp(values)) < _SAME
    error = 0.0 if is_one_value else float(values.std(ddof=1)) / len(values) ** 0.5
    return GoldProbability(
        min(float(values.mean()), 1.0),
        error,
        np.asarray(reaches.mean(axis=0) * probabilities * is_least),
    )
