r"""The `math` verifier: equality of mathematical answers.

An answer is put into one notation, read as what the gold is, and compared: `probes.mathematics`,
and `docs/data.md` says what is equal to what. The answer is what `answers` finds; where a
completion sets none apart and announces none, it is what math-verify finds in the end of the text.

Two rules are not mathematics. Arithmetic must be done: where the gold is a plain number, the answer
must be one too, fractions in lowest terms, as OpenAI's grader for MATH asks
(https://github.com/openai/prm800k). And a gold that no bare answer can equal is not judged by.

Every regular expression of this module takes time linear in its text; math-verify's do not.
"""

import re
from functools import lru_cache

from probes.mathematics.boxes import without_empty_boxes
from probes.mathematics.equality import (
    is_comparable,
    read_quantity,
    read_sides,
    same_answer,
    shown_answer,
    why_unequal,
)
from probes.mathematics.notation import canonical, text_unwrapped
from probes.mathematics.numbers import read_number
from probes.mathematics.undone import is_too_large
from probes.mathematics.units import split_unit
from probes.mathematics.words import NO_WORDS, as_words, is_text
from probes.verifiers.answers import announced, given_answer, is_stated, last_line, spoken
from probes.verifiers.endings import last_found
from probes.verifiers.verdict import NO_ANSWER, Verdict, judged, unjudged

__all__ = ["judge_math", "read_gold", "read_math", "read_math_gold", "why_unequal"]

TAIL_CHARACTERS = 4_000  # an answer that is neither boxed nor marked stands near the end

# --- golds ----------------------------------------------------------------------------------------

_SENTENCE_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
_CONGRUENCE = re.compile(r"\\(?:equiv|pmod)(?![A-Za-z])")
_NOTHING = "finds no answer in the gold that it can compare"
_SENTENCE = "finds a sentence in the gold, which no bare answer equals"
_HUGE = "finds a number in the gold that is too large to compute"


def _marked(gold: str) -> str:
    """The answer that a gold marks, or all of it."""
    text = given_answer(gold) if ("####" in gold or r"\boxed" in gold or "<" in gold) else None
    return text or gold


@lru_cache(maxsize=4096)
def read_gold(gold: str) -> tuple[str, str | None]:
    """A gold in canonical notation, and why nothing can be judged by it (None where it can).

    Of a sentence that announces its answer, the answer.
    """
    text = canonical(_marked(gold))
    if not text:
        return text, _NOTHING
    if _is_prose(text):
        said = next((one.phrase for one in announced(gold) if not one.is_denied), None)
        said = canonical(said) if said else _after_verb(text)
        if said and not _is_prose(said) and is_comparable(said):
            return said, None
        return text, _SENTENCE
    if _CONGRUENCE.search(text):
        return text, _NOTHING
    if is_too_large(text) and read_number(text) is None:
        return text, _HUGE
    return text, None if is_comparable(text) else _NOTHING


def _is_prose(text: str) -> bool:
    """Whether words say something about numbers, or there are too many words for an answer."""
    words = _SENTENCE_WORD.findall(text_unwrapped(text))
    words = [word for word in words if word.casefold() not in NO_WORDS]
    if len(words) > 8:
        return True
    is_mixed = any(character.isdigit() for character in text)
    return is_mixed and len(words) > 3 and read_quantity(text) is None and not is_text(text)


_VERB = re.compile(r"\s(?:is|are|equals|was|costs?|has|have|=)\s")


def _after_verb(text: str) -> str | None:
    """What a short sentence says that something is, where that is a plain number."""
    parts = _VERB.split(text)
    return parts[1].strip() if len(parts) == 2 and read_quantity(parts[1].strip()) else None


# --- finding --------------------------------------------------------------------------------------

_COMMAND = re.compile(r"\\[A-Za-z]+")
_LONG_WORD = re.compile(r"[^\W\d_]{3,}")
_COUNT_PHRASE = re.compile(
    r"(?:(?:approximately|about|exactly|equal to|around|roughly|only|just)\s)?(.+)"
)
_BOUND = re.compile(r"(?:between|from|at (?:least|most)|(?:more|less|greater|fewer) than)\s")
_SAID_LAST = re.compile(r"\s(?:is|are|equals|be)\s(?:approximately |about |exactly |equal to )?")
_NONE_SAID = re.compile(
    r"(?i)(?:unknown|undefined|undetermined|indeterminate|impossible|none|nothing|infinite|no "
    r"(?:real )?solutions?|(?:does|do) not exist|can(?:no|')t be (?:determined|found|computed)|"
    r"cannot be (?:determined|found|computed)|not (?:defined|known|possible))\b.{0,40}"
)
_HEADING_LINE = re.compile(
    r"(?mi)^\s{0,3}#{1,6}\s?[*_]{0,3}(?:step|part|case|problem|question|exercise|example)\b[^\n]*$"
)
_CLUSTER = re.compile(
    r"(?<![\d./:\w])"
    r"(-?\d{1,3}(?:[ ,]\d{3})+\s\d+/\d+|-?\d+\s\d+/\d+|-?\d*\s?[½⅓⅔¼¾⅕⅛⅜⅝⅞]|"
    r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+|\s?[×x*·]\s?10\s?(?:\^\{?[-+−]?\d+\}?|[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))|"
    r"\d+\s?:\s?\d+)"
    r"(?![\d/:])(?=\D*\Z)"
)


def _readable(phrase: str) -> str | None:
    """The answer in what is announced; None where it is prose."""
    phrase = phrase.strip().rstrip(".").strip()
    if len(phrase) > 300:
        return None
    if _BOUND.match(phrase) and any(character.isdigit() for character in phrase):
        return phrase  # no number, but not prose either
    for _ in range(2):
        match = _COUNT_PHRASE.fullmatch(phrase)
        if match:
            phrase = match[1]
        if _is_mathematics(phrase):
            return phrase
        parts = _SAID_LAST.split(phrase)
        if len(parts) == 1:
            break
        phrase = parts[-1]
    return None


@lru_cache(maxsize=4096)
def _is_mathematics(phrase: str) -> bool:
    text = canonical(phrase)
    if not text:
        return False
    if read_quantity(read_sides(text)[1]) is not None:
        return True
    words = _LONG_WORD.findall(_COMMAND.sub(" ", split_unit(text).value))
    if any(word.casefold() not in NO_WORDS for word in words):
        return False
    return is_comparable(text)


def _announced_answer(text: str, as_text: bool) -> tuple[str | None, str]:
    """The answer that is announced last, and the text without what is denied."""
    for said in announced(text):
        phrase = said.phrase
        if said.is_denied:
            text = said.blanked(text)
            continue
        if _NONE_SAID.fullmatch(phrase):
            return phrase, text
        if as_text and len(phrase) <= 100 and as_words(canonical(phrase)):
            return phrase, text
        if readable := _readable(phrase):
            return readable, text
    return None, _HEADING_LINE.sub("", text) if "#" in text else text


def judge_math(completion: str, gold: str) -> Verdict:
    r"""Equality of mathematical answers.

    The answer is the tag, the box, the `####` line or the announced one; without them it is what
    math-verify finds in the last 4,000 characters (LaTeX, then plain expressions, "the answer is"
    first). The gold is the bare answer, with or without dollars or a box. A gold that holds nothing
    to compare, or a sentence, gives None, verdict "error".
    """
    wanted, why_not = read_gold(gold)
    if why_not is not None:
        return unjudged(why_not)
    found = given_answer(completion)
    if found is not None:
        return judged(same_answer(wanted, canonical(found)), found) if found else NO_ANSWER
    whole = spoken(completion)
    text = without_empty_boxes(whole)
    has_empty_box = text != whole
    tail = text[-TAIL_CHARACTERS:]
    if len(text) > TAIL_CHARACTERS:  # not to begin within a number
        tail = tail.split(maxsplit=1)[-1] if len(tail.split(maxsplit=1)) > 1 else ""
    as_text = is_text(wanted) and read_number(wanted) is None
    found, tail = _announced_answer(tail, as_text)
    if found is None and as_text:
        line = last_line(tail)
        found = re.split(r"(?i)answer(?: is)?:?", line)[-1].strip() if line else None
        return judged(same_answer(wanted, canonical(found)), found) if found else NO_ANSWER
    if found is None and (cluster := _CLUSTER.search(tail[-200:])):
        found = cluster[1]
    if found is None:
        found = last_found(tail)
        if found and has_empty_box and not is_stated(found, tail):
            found = None
    return judged(same_answer(wanted, canonical(found)), found) if found else NO_ANSWER


def read_math_gold(gold: str) -> str:
    """What is compared of a gold: of one that marks its answer, that."""
    return read_math(_marked(gold))


def read_math(text: str) -> str:
    """What is compared of an answer or a gold: a number with its unit, words, parts, or values."""
    return shown_answer(text)
