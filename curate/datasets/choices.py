"""Multiple choice: answers that are positions or letters, and the choices that they need.

MMLU's `choices` with a position, MMLU-Pro's `options` with a letter, ARC's `choices` of texts and
labels with `answerKey`, C-Eval's columns A to D, MedQA's object of letters, and GPQA's columns of
right and wrong answers. Such an answer means nothing without the choices, so they are put into a
prompt that does not show them, lettered, and the gold is the letter. An answer that is a text, as
one that is right in its own words, leaves the prompt as it is.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curate.datasets.fields import MISSING, RowRejected, lookup, object_in

LETTERS = string.ascii_uppercase[:10]
"""Of choices, as the verifier `choice` knows them."""
COLUMNS = ("choices", "options", "A", "Incorrect Answer 1")
"""Where choices may stand: in one column, or in columns of which this is the first."""

_ASKS = "Answer with the letter of one choice."
_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_LETTER = re.compile(r"\s*[(\[]?([A-Ja-j])[)\].:]?\s*")
_SHOWN_LETTER = re.compile(r"(?:^|[\s(\[*])A[).:\]*]")


@dataclass(frozen=True, slots=True)
class _Choices:
    """The texts, and what each is called where the dataset has names of its own."""

    texts: Sequence[str]
    labels: Sequence[str] = ()
    is_from_text: bool = False
    """Whether they stand in the row as text, as in CSV, where positions are text as well."""


def letter_of(
    row: Mapping[str, Any], column: str, answer: Any, prompt: str, first: int
) -> tuple[str, str] | None:
    """What has to follow a prompt, which may be nothing, and the letter that is the gold.

    Args:
        column: one of `COLUMNS`.
        answer: as it stands in the row.
        prompt: the turn that the choices would end.
        first: the position that the first choice has.

    Returns:
        None where the answer is a text of its own, or the row has no choices.

    Raises:
        RowRejected: the answer is a position that no choice has.
    """
    choices = _read(row, column, answer, prompt)
    if choices is None:
        return None
    place = _place(choices, answer, first, is_right=column == _WRONG[0])
    if place is None:
        return None
    if not 0 <= place < len(choices.texts):
        raise RowRejected(
            f"the gold answer is choice {answer!r} of {len(choices.texts)}, counted from {first}"
        )
    squeezed = _squeezed(prompt)
    if all(_squeezed(text) in squeezed for text in choices.texts):
        # Shown already: which letter or number each has there is the prompt's own.
        if isinstance(answer, str) or not _SHOWN_LETTER.search(prompt):
            return None
        return "", LETTERS[place]
    listed = (f"{letter}. {text}" for letter, text in zip(LETTERS, choices.texts, strict=False))
    return "\n\n" + "\n".join(listed) + f"\n\n{_ASKS}", LETTERS[place]


def first_position(rows: Sequence[Mapping[str, Any]], column: str, answer_field: str) -> int:
    """From what positions count: from 1 where one is the number of choices and none is 0."""
    positions = [
        (answer, len(choices.texts))
        for row in rows
        if isinstance(answer := lookup(row, answer_field), int)
        and not isinstance(answer, bool)
        and (choices := _read(row, column, answer, ""))
    ]
    ends = any(answer == count for answer, count in positions)
    return 1 if ends and all(answer > 0 for answer, _ in positions) else 0


def need_choices(rows: Sequence[Mapping[str, Any]], column: str, answer_field: str) -> bool:
    """Whether the answers of some rows are positions or letters of choices in a column."""
    is_right = column == _WRONG[0]
    read = [(answer := lookup(row, answer_field), _read(row, column, answer, "")) for row in rows]
    named = [
        (str(answer).strip(), choices)
        for answer, choices in read
        if choices and _place(choices, answer, 0, is_right=is_right) is not None
    ]
    # Numbers that all stand among the choices are no positions, but what is right.
    return bool(named) and (
        is_right or not all(answer in choices.texts for answer, choices in named)
    )


def _read(row: Mapping[str, Any], column: str, answer: Any, prompt: str) -> _Choices | None:
    """The choices of a row; None where it has none that one could list."""
    if column == "A":
        texts = [row.get(letter) for letter in LETTERS[: _columns_in(row)]]
        return _listable(texts)
    if column == _WRONG[0]:
        texts = [answer, *(row.get(name) for name in _WRONG)]
        # The right one must not always stand first; which it is depends on the row alone.
        order = sorted(texts, key=lambda t: hashlib.sha256(f"{prompt}\0{t}".encode()).digest())
        return _listable(order)
    found = row.get(column)
    is_text = False
    if isinstance(found, str):
        is_text, found = True, object_in(found)
    if isinstance(found, Mapping) and isinstance(found.get("text"), list):
        labels = found.get("label")
        listed = _listable(found["text"])
        if listed and isinstance(labels, list) and len(labels) == len(listed.texts):
            return _Choices(listed.texts, [str(label) for label in labels])
        return listed
    if is_text and isinstance(found, list):
        listed = _listable(found)
        return listed and _Choices(listed.texts, is_from_text=True)
    if isinstance(found, Mapping):
        names = sorted(name for name, text in found.items() if text is not None)
        if names != list(LETTERS[: len(names)]):
            return None
        return _listable([found[name] for name in names])
    return _listable(found) if isinstance(found, list) else None


def _columns_in(row: Mapping[str, Any]) -> int:
    filled = (row.get(letter) not in (None, "") for letter in LETTERS)
    return next((place for place, is_there in enumerate(filled) if not is_there), len(LETTERS))


def _listable(texts: Sequence[Any]) -> _Choices | None:
    if not 2 <= len(texts) <= len(LETTERS):
        return None
    if not all(isinstance(text, str | int | float) for text in texts):
        return None
    return _Choices([str(text).strip() for text in texts])


def _place(choices: _Choices, answer: Any, first: int, *, is_right: bool) -> int | None:
    """Which choice an answer names by position, label or letter; None where it is a text."""
    if answer is MISSING or answer is None or isinstance(answer, bool):
        return None
    if is_right:
        return list(choices.texts).index(str(answer).strip())
    if isinstance(answer, int):
        return answer - first
    if isinstance(answer, float) and answer.is_integer():  # As pandas writes it beside nulls.
        return int(answer) - first
    if not isinstance(answer, str):
        return None
    stripped = answer.strip()
    if stripped in choices.labels:
        return list(choices.labels).index(stripped)
    if stripped in choices.texts:
        return None
    letter = _LETTER.fullmatch(answer)
    if letter:
        return LETTERS.index(letter[1].upper())
    is_position = choices.is_from_text and re.fullmatch(r"\d{1,2}", stripped, re.ASCII)
    return int(stripped) - first if is_position else None


def _squeezed(text: str) -> str:
    return " ".join(text.split()).casefold()
