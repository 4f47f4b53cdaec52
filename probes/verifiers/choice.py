r"""The `choice` verifier: multiple choice, letters A to J.

The answer is the one letter that the tag, the box or the `####` line holds or begins with (`B`,
`(B)`, `B. 12 cm`, `Option B`), the last announced one ("the answer is (B)"), "B is correct", a
first or last line that is a letter with or without its text, or the capital letter that the
completion ends in. Several letters are no choice, and a denied one ("not B") is none.

Every regular expression of this module takes time linear in its text.
"""

import re

from probes.mathematics.boxes import without_empty_boxes
from probes.mathematics.notation import in_ascii, text_unwrapped
from probes.verifiers.answers import DENIAL, announced, given_answer, spoken
from probes.verifiers.verdict import NO_ANSWER, Verdict, judged, unjudged

_DRESS = r"[\s$*_`({\[\"'<]{0,8}"
_UNDRESS = r"[\s$*_`)}\].:,\"'>]{0,8}"
_NAME = r"(?i:option|choice|answer|letter|statement|选项|選項|选择|选)[\s:]{0,3}"
_NAMED_LETTER = re.compile(rf"{_DRESS}(?:{_NAME}){{0,2}}{_DRESS}([A-Ja-j]){_UNDRESS}")
_LEADING_LETTER = re.compile(
    rf"{_DRESS}(?:{_NAME}){{0,2}}{_DRESS}(?:\(?([A-Ja-j])\s?[)}}\].:,]+[\s\S]*"
    r"|([A-HJ])(?:[\s*]+[-–—:=]?\s?(?![a-z]{1,12}\s[a-z])\S[\s\S]*))"
)
_MORE_LETTERS = re.compile(
    r"[\s*_)}\].:]{0,4}(?:,|/|;|&|\+|\band\b|\bor\b|\bund\b|\boder\b|和|或|、|\s)[\s*_$({\[]{0,6}(?:\\text\s?\{)?"
    r"(?i:and |or |option |choice )?[\s*_$({\[]{0,6}([A-J])(?![A-Za-z0-9'’])"
)
_SAID_LETTER = re.compile(
    rf"{_DRESS}(?:{_NAME}){{0,2}}{_DRESS}(?:\\(?:text|mathrm|textbf|mathbf|boxed)\s?\{{\s?)?"
    r"(?:\(([A-Ja-j])\)|\[([A-J])\]|([A-HJ]|I(?!\s[a-z]))(?![A-Za-z0-9'’])"
    r"|([a-j])(?=[\s]{0,2}(?:[).:]|\Z)))"
)
_LETTER_IS_RIGHT = re.compile(
    r"(?i:\b(?:option|choice|answer|statement)\s{0,2}|(?<![A-Za-z0-9]))[*_\s(]{0,4}([A-J])"
    r"[)*_\s]{0,4}\s"
    r"(?i:is|must be|would be|seems|appears to be)\s(?i:therefore |thus |clearly |definitely )?"
    r"(?i:the )?(?i:only |best |most )?(?i:correct|right|true|answer|appropriate)(?![a-z])"
)
_CHOSEN = re.compile(
    r"(?i:\b(?:choose|select|pick|go with|choosing|选择|故?选)\s?[:：]?\s?(?:is |the )?"
    r"(?:option |choice |answer )?)"
    r"[*_\s(]{0,4}([A-J])(?![A-Za-z0-9'’])"
)
_LAST_LETTER = re.compile(r"(?<![A-Za-z0-9'’])(?:\(([A-J])\)|([A-HJ]))[\s.*$]{0,6}\Z")
_FORMULA_MARK = re.compile(r"\\[()\[\]]")
_DENIED = re.compile(
    r"(?i)\b(?:not|isn't|cannot|neither|nor|except|never|rule out|eliminate|exclude)\s"
    r"(?:\w{1,9}\s)?[*_\s(]{0,4}\Z"
)


def _alone(letter: str, rest: str) -> str | None:
    """The letter, unless others stand beside it."""
    more = _MORE_LETTERS.match(rest)
    return letter if more is None or more[1].upper() == letter.upper() else None


def _letter_given(given: str) -> str | None:
    """The letter of an answer that is set apart; None where it is no single one."""
    text = text_unwrapped(in_ascii(given)).replace(r"\ ", " ").replace(r"\,", " ").replace("~", " ")
    text = re.sub(r"^(?i:\s*(?:the )?(?:final |correct )?answer(?: is)?\s*[:：]?\s*)", "", text)
    if DENIAL.match(text):
        return None
    if match := _NAMED_LETTER.fullmatch(text):
        return match[1]
    match = _LEADING_LETTER.fullmatch(text)
    if match is None:
        return None
    place = match.start(1 if match[1] else 2)
    return _alone(text[place], text[place + 1 :])


def _letters_said(text: str) -> tuple[str | None, str | None]:
    """The letter that is announced last, and the text without what is denied.

    The text is None where what is announced last is several letters.
    """
    for said in announced(text):
        if said.is_denied:
            text = said.blanked(text)
            continue
        match = _SAID_LETTER.match(said.phrase)
        if match is None:
            continue
        letter = next(part for part in match.groups() if part)
        if _alone(letter, said.phrase[match.end() :]) is None:
            return None, None
        return letter, text
    return None, text


def _choice_said(completion: str) -> str | None:
    given = given_answer(completion)
    if given is not None:
        return _letter_given(given) or given
    text = in_ascii(without_empty_boxes(spoken(completion)))
    text = _FORMULA_MARK.sub("$", text)
    letter, left = _letters_said(text)
    if letter is not None or left is None:
        return letter
    text = left
    for pattern in (_LETTER_IS_RIGHT, _CHOSEN):
        matches = [
            match
            for match in pattern.finditer(text)
            if not _DENIED.search(text[max(0, match.start(1) - 30) : match.start(1)])
        ]
        if matches:
            return matches[-1][1]
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return None
    for line in (lines[-1], lines[0]):
        if lone := _NAMED_LETTER.fullmatch(line.strip()):
            return lone[1]
    for line in (lines[0], lines[-1]):
        bare = re.match(rf"{_DRESS}([A-J])(?:[).:]|\s[-–—])\s?\S", line.strip())
        others = [
            other
            for other in lines
            if re.match(rf"{_DRESS}([A-J])[).:]", other.strip()) and other is not line
        ]
        if bare and not others and _alone(bare[1], line.strip()[bare.end(1) :]):
            return bare[1]
    said = _LAST_LETTER.search(text[-40:])
    if said is None or _DENIED.search(text[-70:][: -len(said[0])]):
        return None
    letter = said[1] or said[2]
    before = text[-40:][: said.start()]
    if re.search(r"(?:\b[A-J]\)?,?\s?(?:or|and|,|/|&)\s?(?:option )?)\(?\Z", before):
        return None
    return letter


def judge_choice(completion: str, gold: str) -> Verdict:
    """Multiple choice, letters A to J; the gold is `B`, `(B)`, or a letter before its text."""
    wanted = _NAMED_LETTER.fullmatch(text_unwrapped(gold)) or re.fullmatch(
        rf"{_DRESS}([A-J])[).:]\s[\s\S]*|\(([A-J])\)[\s\S]*", text_unwrapped(gold)
    )
    if wanted is None:
        return unjudged("finds no letter from A to J in the gold")
    found = _choice_said(completion)
    letter = next(part for part in wanted.groups() if part).upper()
    return judged(found.upper() == letter, found) if found else NO_ANSWER


def read_choice(text: str) -> str:
    """The letter that `choice` reads in an answer or a gold, or the text where it is none."""
    letter = _letter_given(text)
    return letter.upper() if letter else text.strip()
