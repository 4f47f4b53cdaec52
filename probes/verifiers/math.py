r"""The `math` verifier: equality of mathematical answers.

An answer is put into one notation (`notation`), and then read as what the gold is: text (`words`),
a plain number with its unit (`numbers`, `units`), intervals or a list (`sets`), and else an
expression (`symbolic`, where math-verify decides). `docs/data.md` says what is equal to what. The
answer is what `answers` finds; where a completion sets none apart and announces none, it is what
math-verify finds in the end of the text.

Two rules are not mathematics. Arithmetic must be done: where the gold is a plain number, the answer
must be one too, fractions in lowest terms (`undone`), as OpenAI's grader for MATH asks
(https://github.com/openai/prm800k). And a gold that no bare answer can equal is not judged by.

Every regular expression of this module takes time linear in its text; math-verify's do not.
"""

import re
from functools import lru_cache

from probes.verifiers.answers import (
    NO_ANSWER,
    Verdict,
    announced,
    given_answer,
    is_stated,
    judged,
    last_line,
    spoken,
    unjudged,
    without_empty_boxes,
)
from probes.verifiers.endings import last_found
from probes.verifiers.notation import canonical, text_unwrapped
from probes.verifiers.numbers import Number, read_number, same_number
from probes.verifiers.sets import (
    SEPARATORS,
    Collection,
    read_collection,
    read_intervals,
    same_intervals,
    same_parts,
    split_parts,
)
from probes.verifiers.symbolic import gold_expression, same_expression
from probes.verifiers.undone import is_left_undone, is_too_large
from probes.verifiers.units import UnitPowers, split_unit, units_differ
from probes.verifiers.words import NO_WORDS, as_words, is_text, same_text

TAIL_CHARACTERS = 4_000  # an answer that is neither boxed nor marked stands near the end

# --- comparing ------------------------------------------------------------------------------------

_NAME = (
    r"(?:[A-Za-z](?:_\s?\{?\s?\w{1,5}\s?\}?)?'?|\\[A-Za-z]+(?:_\s?\{?\s?\w{1,5}\s?\}?)?"
    r"|[A-Za-z]\s?\(\s?[A-Za-z0-9, ]{1,9}\s?\)|\(\s?[A-Za-z](?:\s?,\s?[A-Za-z]){1,4}\s?\))"
)
_SIDES = re.compile(r"(?<![<>!\\=])=(?!=)|\\approx(?![A-Za-z])")
_MEMBER_OF = re.compile(rf"^\s*{_NAME}\s?\\in(?![A-Za-z])\s?")
_SPACE = re.compile(r"(?<!\d)\s|\s(?!\d)")
_LABELLED = re.compile(rf"\s*({_NAME})\s*")
_CHOICE = re.compile(
    r"(?:\\text(?:bf|rm)?\s?\{\s?\(?([A-J])\)?\s?[.):]?\s?\}|\(([A-J])\)|([A-J])[.):](?=\s))\s*(.+)"
)


@lru_cache(maxsize=16384)
def _quantity(text: str) -> tuple[Number, UnitPowers | None] | None:
    """The plain number with its unit that a text is; None for all else."""
    plain = " ".join(text_unwrapped(text).split())
    for form in (text, plain) if plain != text else (text,):
        number = read_number(form)
        if number is not None:
            return number, None
        quantity = split_unit(form)
        if quantity.has_unit and (number := read_number(quantity.value)) is not None:
            return number, quantity.unit
    return None


@lru_cache(maxsize=16384)
def _sides(text: str) -> tuple[str | None, str]:
    """The name that is said to equal, in small letters, and what the last side says."""
    sides = _SIDES.split(text)
    if len(sides) == 1 or any(len(split_parts(side, SEPARATORS)) > 1 for side in sides[:-1]):
        return None, text
    if len(sides) > 2 and len(split_parts(sides[1], SEPARATORS)) > 1:
        return None, text  # x = 1, y = 2 is a list
    name = _LABELLED.fullmatch(sides[0])
    result = sides[-1].strip()
    if _LABELLED.fullmatch(result) and len(sides) == 2 and _quantity(sides[0].strip()):
        return result, sides[0].strip()  # 5 = x
    return (re.sub(r"[\s{}]", "", name[1]) if name else ""), result


def _names_differ(one: str | None, other: str | None) -> bool:
    return bool(one and other) and one.casefold() != other.casefold()  # type: ignore[union-attr]


def _is_equation(text: str) -> bool:
    """Whether it is an equation whose left side is no mere name."""
    name, _ = _sides(text)
    return name == ""


def _squeezed(text: str) -> str:
    """The text without the spaces that separate no digits."""
    return _SPACE.sub("", text)


def _choice(text: str) -> tuple[str | None, str]:
    """The letter that stands before an answer, as in `(A) 5`, and the answer."""
    match = _CHOICE.fullmatch(text)
    return (match[1] or match[2] or match[3], match[4]) if match else (None, text)


@lru_cache(maxsize=16384)  # the completions of one item share a few answers
def _same_answer(gold: str, found: str) -> bool:
    """Whether two texts in canonical notation are one answer; letters of choices count."""
    if not found or len(found) > 10_000:
        return False
    (letter, value), (found_letter, found_value) = _choice(gold), _choice(found)
    if letter and (found_letter or re.fullmatch(r"\(?[A-J]\)?", found)):
        return letter == (found_letter or found.strip("()"))
    return _same(gold, found) or (bool(letter or found_letter) and _same(value, found_value))


@lru_cache(maxsize=16384)
def _same(gold: str, found: str) -> bool:
    """Whether two texts in canonical notation say the same."""
    if _squeezed(gold) == _squeezed(found):
        return True
    name, value = _sides(gold)
    quantity = _quantity(value if name != "" else gold)
    if quantity is not None:
        return _same_quantity(quantity, name, found)
    text = same_text(gold, found)
    if text is not None:
        return text
    if is_left_undone(found, gold):
        return False
    return _same_parts(gold, found)


def _same_quantity(gold: tuple[Number, UnitPowers | None], name: str | None, found: str) -> bool:
    found_name, value = _sides(found)
    if _names_differ(name, found_name):
        return False
    read = _quantity(_MEMBER_OF.sub("", value))
    if read is None:
        return False
    (wanted, unit), (number, found_unit) = gold, read
    if (number.is_percent and unit is not None) or (wanted.is_percent and found_unit is not None):
        return False
    return same_number(wanted, number) and not units_differ(unit, found_unit)


def _same_parts(gold: str, found: str) -> bool:
    """Intervals, collections, and what is left for SymPy."""
    intervals = read_intervals(gold)
    if intervals is not None:
        found_intervals = read_intervals(found)
        if found_intervals is not None:
            if _names_differ(intervals[0], found_intervals[0]):
                return False
            if same_intervals(intervals[1], found_intervals[1], _same):
                return True
    parts = read_collection(gold)
    if parts is not None and _is_comparable_list(parts):
        return _same_collection(parts, found)
    if intervals is not None and intervals[1] and not intervals[2]:
        return False
    name, value = _sides(gold)
    found_name, found_value = _sides(found)
    if name:
        if found_name and found_name != name:
            return False
        if found_name != "" and _same(value, found_value):
            return True
        if found_name is None:
            return False
        return same_expression(_value_of(gold), _value_of(found))
    if name is None and found_name is not None:
        return _same(gold, found_value)
    if name == "" and found_name is None:
        return False
    return same_expression_with_unit(gold, found)


def _value_of(text: str) -> str:
    return split_unit(text).value


def same_expression_with_unit(gold: str, found: str) -> bool:
    """Whether expressions with their units are equal."""
    wanted, given = split_unit(gold), split_unit(found)
    if units_differ(wanted.unit, given.unit):
        return False
    if given.has_unit and not wanted.has_unit and same_expression(gold, found):
        return True
    return same_expression(wanted.value, given.value)


def _is_comparable_list(parts: Collection) -> bool:
    return len(parts.parts) > 1 or parts.kind == "set"


def _same_collection(gold: Collection, found: str) -> bool:
    found = _MEMBER_OF.sub("", found)
    _, value = _sides(found) if found.count("=") == 1 else (None, found)
    given = read_collection(value) or read_collection(found)
    if given is None:
        grouped = re.split(r",\s?", value)  # 100,200 may be a number or a list
        if len(grouped) == len(gold.parts) > 1:
            given = Collection("list", tuple(grouped))
        elif len(gold.parts) == 1:
            given = Collection("list", (value,))
        else:
            return False
    if len(given.parts) == 1 and len(gold.parts) > 1 and (inner := read_collection(given.parts[0])):
        given = inner
    if gold.kind == "brackets" and len(gold.parts) == 2 and given.kind != "brackets":
        return False  # an interval with its ends
    if given.kind == "brackets" and len(given.parts) == 2 and gold.kind in ("tuple", "set"):
        return False
    if gold.kind == given.kind == "set":
        return same_parts(_distinct(gold.parts), _distinct(given.parts), _same, ordered=False)
    names = [_sides(part)[0] for part in gold.parts]
    found_names = [_sides(part)[0] for part in given.parts]
    is_named = all(names) and len(set(names)) == len(names)
    ordered = gold.kind in ("tuple", "brackets") or (is_named and not all(found_names))
    if gold.kind == "tuple" and all(found_names):  # x = 1, y = 2 for (1, 2)
        ordered = True
    return same_parts(gold.parts, given.parts, _same, ordered=ordered)


def _distinct(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.replace(" ", "") for part in parts))


# --- golds ----------------------------------------------------------------------------------------

_SENTENCE_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
_CONGRUENCE = re.compile(r"\\(?:equiv|pmod)(?![A-Za-z])")
_NOTHING = "finds no answer in the gold that it can compare"
_SENTENCE = "finds a sentence in the gold, which no bare answer equals"
_HUGE = "finds a number in the gold that is too large to compute"


@lru_cache(maxsize=4096)
def read_gold(gold: str) -> tuple[str, str | None]:
    """A gold in canonical notation, and why nothing can be judged by it (None where it can).

    Of a sentence that announces its answer, the answer.
    """
    text = given_answer(gold) if ("####" in gold or r"\boxed" in gold or "<" in gold) else None
    text = canonical(text or gold)
    if not text:
        return text, _NOTHING
    if _is_prose(text):
        said = next((one.phrase for one in announced(gold) if not one.is_denied), None)
        said = canonical(said) if said else _after_verb(text)
        if said and not _is_prose(said) and _is_comparable(said):
            return said, None
        return text, _SENTENCE
    if _CONGRUENCE.search(text):
        return text, _NOTHING
    if is_too_large(text) and read_number(text) is None:
        return text, _HUGE
    return text, None if _is_comparable(text) else _NOTHING


def _is_prose(text: str) -> bool:
    """Whether words say something about numbers, or there are too many words for an answer."""
    words = _SENTENCE_WORD.findall(text_unwrapped(text))
    words = [word for word in words if word.casefold() not in NO_WORDS]
    if len(words) > 8:
        return True
    is_mixed = any(character.isdigit() for character in text)
    return is_mixed and len(words) > 3 and _quantity(text) is None and not is_text(text)


_VERB = re.compile(r"\s(?:is|are|equals|was|costs?|has|have|=)\s")


def _after_verb(text: str) -> str | None:
    """What a short sentence says that something is, where that is a plain number."""
    parts = _VERB.split(text)
    return parts[1].strip() if len(parts) == 2 and _quantity(parts[1].strip()) else None


@lru_cache(maxsize=4096)
def _is_comparable(text: str) -> bool:
    text = _choice(text)[1]
    name, value = _sides(text)
    if (_quantity(value if name != "" else text)) or is_text(text) or read_intervals(text):
        return True
    parts = read_collection(text)
    if parts is not None and _is_comparable_list(parts):
        return all(_is_comparable(part) for part in parts.parts)
    if name:
        return _is_comparable(value) or gold_expression(text) is not None
    value = split_unit(text).value
    return gold_expression(text) is not None or gold_expression(value) is not None


# --- finding --------------------------------------------------------------------------------------

_COMMAND = re.compile(r"\\[A-Za-z]+")
_LONG_WORD = re.compile(r"[^\W\d_]{3,}")
_COUNT_PHRASE = re.compile(
    r"(?:(?:approximately|about|exactly|equal to|around|roughly|only|just)\s)?(.+)"
)
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
    r"(?<![\d./:\w])(-?\d+\s\d+/\d+|-?\d*\s?[½⅓⅔¼¾⅕⅛⅜⅝⅞]|\d+\s?:\s?\d+)(?![\d/:])(?=\D*\Z)"
)


def _readable(phrase: str) -> str | None:
    """The answer in what is announced; None where it is prose."""
    phrase = phrase.strip().rstrip(".").strip()
    if len(phrase) > 300:
        return None
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
    if _quantity(_sides(text)[1]) is not None:
        return True
    words = _LONG_WORD.findall(_COMMAND.sub(" ", split_unit(text).value))
    if any(word.casefold() not in NO_WORDS for word in words):
        return False
    return _is_comparable(text)


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
        return judged(_same_answer(wanted, canonical(found)), found) if found else NO_ANSWER
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
        return judged(_same_answer(wanted, canonical(found)), found) if found else NO_ANSWER
    if found is None and (cluster := _CLUSTER.search(tail[-200:])):
        found = cluster[1]
    if found is None:
        found = last_found(tail)
        if found and has_empty_box and not is_stated(found, tail):
            found = None
    return judged(_same_answer(wanted, canonical(found)), found) if found else NO_ANSWER
