r"""What stands in the boxes of a text: `\boxed{}` with its neighbours, and not the empty ones.

Every regular expression of this module takes time linear in its text.
"""

import re

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_JOINS = re.compile(r"(?:[\s$.,;()\[\]{}]|\\q?quad|\\text|\\|and|or)*")
_BARE_BOX = re.compile(r"\\boxed\s?(-?\d[\d.,/]{0,30}|[A-Za-z](?![A-Za-z]))")
_EMPTY = re.compile(
    r"(?:[\s.…_?$~{}*-]|\\(?:[,;:! ]|text|mathrm|l?dots|cdots|quad|qquad|square|hspace)(?![A-Za-z])"
    r"|\\[,;:! ])*"
)
_INSTRUCTION = re.compile(
    r"[\s\[{<(*]*(?:\\text\{)?\s?(?:your |the |insert )?(?:final |numeric(?:al)? )?"
    r"(?:answer|result)(?: here)?[\s\]}>)*.]*",
    re.IGNORECASE,
)


def says_something(answer: str) -> bool:
    """Whether it holds an answer, and is neither empty nor the instruction again."""
    short = answer[:200]
    return not (_EMPTY.fullmatch(short) or _INSTRUCTION.fullmatch(short))


def boxed_answer(text: str) -> str | None:
    """The content of the last closed box, with the neighbours that are part of the same answer."""
    boxes: list[tuple[int, int, int]] = []  # start of the command, start and end of the content
    open_braces: list[tuple[bool, int, int]] = []
    for mark in _BRACES.finditer(text) if r"\boxed" in text or r"\fbox" in text else ():
        if mark[0] == "}":
            if open_braces:
                is_box, start, content = open_braces.pop()
                if is_box:
                    while boxes and boxes[-1][0] > start:  # a box inside this one
                        boxes.pop()
                    boxes.append((start, content, mark.start()))
        elif mark[0][-1] == "{" and mark[0] != r"\{":
            open_braces.append((len(mark[0]) > 1, mark.start(), mark.end()))
    boxes = [box for box in boxes if says_something(text[box[1] : box[2]])]
    if not boxes:
        bare_box = None
        for bare_box in _BARE_BOX.finditer(text):  # noqa: B007 (only the last one counts)
            pass
        return bare_box[1].rstrip(".,/") if bare_box else None
    after, content, end = boxes.pop()
    answers = [text[content:end].strip()]
    while boxes:
        start, content, end = boxes.pop()
        if after - end > 40 or not _JOINS.fullmatch(text, end + 1, after):
            break
        after, answer = start, text[content:end].strip()
        if answer != answers[-1]:
            answers.append(answer)
    return ",".join(reversed(answers))


_HOLLOW_BOX = re.compile(r"\\(?:boxed|fbox)\s?\{((?:[^{}]|\{[^{}]{0,40}\}){0,60})\}")


def without_empty_boxes(text: str) -> str:
    """The text without the boxes that are passed over, each as long a blank."""
    if "box" not in text:
        return text
    return _HOLLOW_BOX.sub(
        lambda match: match[0] if says_something(match[1]) else " " * len(match[0]), text
    )
