r"""What a completion answers, as every verifier finds it.

What a completion answers is, in this order: its last closed `\boxed{}` (neighbouring boxes joined
by a comma, "and" or "or" are one answer), the rest of the line after its last `####`, and else what
each verifier says.

Every regular expression of this module takes time linear in its text.
"""

import re

from probes.verifiers.verdict import NO_ANSWER, Verdict, judged, unjudged

__all__ = [
    "NO_ANSWER",
    "Verdict",
    "bare",
    "boxed_answer",
    "given_answer",
    "judged",
    "last_line",
    "unjudged",
    "unwrapped",
]

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_JOINS = re.compile(r"[\s$.,;()\[\]\\]*(?:text\{)?\s*(?:and|or)?[\s}$.,;()\[\]\\]*")


def boxed_answer(text: str) -> str | None:
    """The content of the last closed box, with the neighbours that are part of the same answer."""
    boxes: list[tuple[int, int, int]] = []  # start of the command, start and end of the content
    open_braces: list[tuple[bool, int, int]] = []
    for mark in _BRACES.finditer(text):
        if mark[0] == "}":
            if open_braces:
                is_box, start, content = open_braces.pop()
                if is_box:
                    while boxes and boxes[-1][0] > start:  # a box inside this one
                        boxes.pop()
                    boxes.append((start, content, mark.start()))
        elif mark[0][-1] == "{" and mark[0] != r"\{":
            open_braces.append((len(mark[0]) > 1, mark.start(), mark.end()))
    if not boxes:
        return None
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


def _marked(text: str) -> str | None:
    """What follows the last `####` on its line, as GSM8K writes its answers."""
    _, mark, rest = text.rpartition("####")
    lines = rest.strip().splitlines()
    return lines[0].strip() if mark and lines else None


def given_answer(text: str) -> str | None:
    """The answer that a completion sets apart, by a box or by `####`."""
    boxed = boxed_answer(text)
    return boxed if boxed is not None else _marked(text)


def last_line(text: str) -> str | None:
    """The last line; None where there is none."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


_TEXT_COMMANDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox)\s?\{([^{}]*)\}"
)
_DEGREES = re.compile(r"\^?\{?°\}?")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;! ]|\s)(?=\d{3}(?!\d))")  # math-verify: 1\,080 is 81


def unwrapped(text: str) -> str:
    r"""The text without its outer dollars, `\(…\)`, `\boxed{}`, and its `\text{}` commands."""
    text = bare(text)
    return _TEXT_COMMANDS.sub(r"\1", text).strip()


def bare(text: str) -> str:
    """The text without its outer dollars or box, degrees and thousands written in one way."""
    text = text.strip()
    if text.startswith(r"\boxed") and text.endswith("}"):
        text = (boxed_answer(text) or text).strip()
    for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        inner = text[len(left) : -len(right)]
        if text.startswith(left) and text.endswith(right) and inner and left not in inner:
            text = inner.strip()
            break
    text = _DEGREES.sub(r"^\\circ", text.rstrip(". "))
    return _THOUSANDS.sub("", text).replace("−", "-")
