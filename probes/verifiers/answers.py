r"""What a completion answers, as every verifier finds it.

What a completion answers is, in this order: what stands in its last `<answer>` tag, its last closed
`\boxed{}` (neighbouring boxes joined by a comma, "and" or "or" are one answer), the rest of the
line after its last `####`, the answer that it announces ("the answer is …"), and else what each
verifier says. A thought is no answer: where a completion holds `</think>` or its like, what stands
behind the last one counts, and one that ends within a thought has none. Empty boxes and tags, and
those that only repeat the instruction (`\boxed{answer}`), are passed over; `####` before prose is a
heading.

Every regular expression of this module takes time linear in its text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from probes.mathematics.boxes import boxed_answer, says_something

# --- thoughts -------------------------------------------------------------------------------------

_THOUGHT = re.compile(
    r"<(?P<end>/?)(?:think|thinking|thoughts?|reasoning|scratchpad)>"
    r"|\[(?P<mistral_end>/?)THINK\]"
    r"|<\|(?:begin|(?P<sky_end>end))_of_thought\|>"
    r"|◁(?P<kimi_end>/?)think▷",
    re.IGNORECASE,
)


def spoken(text: str) -> str:
    """What stands behind the last thought; all of it where there is none, "" within a thought."""
    start, thinking = 0, False
    for mark in _THOUGHT.finditer(text):
        thinking = not any(mark.groups())
        if not thinking:
            start = mark.end()
    if thinking:
        return ""
    return text[start:] if start else text


# --- boxes, tags and marks ------------------------------------------------------------------------

_ANSWER_TAG = re.compile(r"<(/?)(?:final_)?answer\s?>", re.IGNORECASE)
_STATES = re.compile(
    r"(?:[=≡≈]|(?<![A-Za-z])(?:equals?|is|are|be|get|gives?|yields?))[\s$*(\\{]*\Z"
)


def is_stated(answer: str, text: str) -> bool:
    """Whether a text says that something is the answer, or says nothing else.

    So that what only happens to stand before an empty box is none: "8 x 0 is".
    """
    if text.strip(" \n.,;:$*_`()\\[]") == answer.strip(" \n.,;:$*_`()\\[]"):
        return True
    return any(
        _STATES.search(text[max(0, place.start() - 40) : place.start()])
        for place in re.finditer(re.escape(answer), text)
    )


def _tagged(text: str) -> str | None:
    """What stands in the last `<answer>` tag; a stop string may have taken the closing one."""
    answer, start = None, None
    for mark in _ANSWER_TAG.finditer(text):
        if not mark[1]:
            start = mark.end()
        elif start is not None:
            content, start = text[start : mark.start()].strip(), None
            answer = content if says_something(content) else answer
    if answer is None and start is not None and says_something(text[start:]):
        answer = text[start:].strip()
    return answer


_HEADING = re.compile(
    r"[*_\s]*(?:\d{1,2}[.):]\s+(?=[A-Za-z*])|(?i:step|part|case|solution|explanation|conclusion|"
    r"summary|verification|check|approach|problem|question|method|note)\b)"
)
_ANSWER_HEADING = re.compile(
    r"(?i)[*_\s]*(?:the )?(?:final |correct )?(?:answer|result)(?: is)?[*_\s]*[:：]?[*_\s]*"
)
_LETTERS = re.compile(r"[^\W\d_]{3,}")


def _marked(text: str) -> str | None:
    """What follows the last `####` that is no heading, as GSM8K writes its answers."""
    end = len(text)
    for _ in range(20):  # headings that are passed over
        place = text.rfind("####", 0, end)
        if place < 0:
            return None
        end = place
        lines = text[place + 4 :].lstrip(" \t#").split("\n", 1)
        line, rest = lines[0].strip(), lines[1] if len(lines) > 1 else ""
        said = _ANSWER_HEADING.match(line)
        if said:
            line = line[said.end() :].strip("*_ \t")
        if not line:  # its answer is on the next line
            line = next((part.strip() for part in rest[:2000].splitlines() if part.strip()), "")
        if not line or _HEADING.match(line):
            continue
        words = _LETTERS.findall(re.sub(r"\\[A-Za-z]+|\$[^$]*\$", "", line[:400]))
        begins_as_value = re.match(r"[-+−*$\\(\[{.€£¥₹]{0,4}\s?(?:\d|\\?[a-z]+\s?[{=])", line)
        if words and rest.strip() and not said and not begins_as_value:
            continue
        return line
    return None


def given_answer(text: str) -> str | None:
    """The answer that a completion sets apart, by a tag, a box or `####`; thoughts not counted."""
    text = spoken(text)
    tagged = _tagged(text) if "<" in text else None
    if tagged is not None:
        text = tagged
    found = boxed_answer(text)
    if found is None and "####" in text:
        found = _marked(text)
    if found is None and tagged is not None and "\n" in tagged:
        said = next((one.phrase for one in announced(tagged) if not one.is_denied), None)
        return said or last_line(tagged)
    return tagged if found is None else found


def last_line(text: str) -> str | None:
    """The last line; None where there is none."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


# --- announced answers ----------------------------------------------------------------------------

MOST_ANNOUNCEMENTS = 50  # the last ones; no completion needs more

_ANSWER_NAMES = (*("answer", "antwort", "respuesta", "réponse", "risposta", "resposta", "ответ"),
                 "答案", "答え", "答：", "답")  # fmt: skip
_ANNOUNCED = re.compile(
    r"(?i:(?<![A-Za-z])(?:answers?|antwort|respuesta|réponse|risposta|resposta|ответ)(?![A-Za-z])"
    r"[*_`]{0,3}(?:[^\n.:=?!：]{0,60}?(?<![A-Za-z])"
    r"(?:is|are|equals|be|ist|lautet|es|est|è|é)(?![A-Za-z])[\s*_]{0,4}[:：]?|\s?[:=：—])"
    r"|(?i:(?:^|(?<=\n))[ \t#*_]{0,8}(?:the )?(?:final )?answer[ \t*_]{0,4}(?=\n))"
    r"|(?:答案|答え|답)\s?(?:是|为|為|应为|は|：|:|[:：]|은|는)[:：]?|答[:：])"
)
_SET_APART = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_PHRASE_END = re.compile(
    r"(?<!\b[ap])(?<!\b[ap]\.m)[.!?](?=\s|$|[*_\"')])|;\s|[。；！？（]|，(?=\D)"
    r"|\s\((?=[A-Za-z])|,?\s(?:because|since|which|where|when|whereas|so that|but|I hope)\b"
    r"|,\s(?:so|as|and not|not|with|for|if|then|thus|hence|this|the|that|it)\b|因为|\n"
)
DENIAL = re.compile(
    r"(?i)[\s*_]*(?:definitely |certainly |clearly )?(?:not|neither|isn't|never)\b|\s*(?:不是|不)"
)
_DENIED_BEFORE = re.compile(r"(?i)\b(?:not|cannot|never)\b|n't\b|不")


_EMPHASIS_END = re.compile(r"(?<=[^\s*_`])[*_`]+$")  # 5**, and not 5 **


@dataclass(frozen=True, slots=True)
class Announcement:
    """What an "the answer is …" says."""

    phrase: str
    start: int
    """Where it begins in the text."""
    is_denied: bool
    """Whether it says what the answer is not."""

    def blanked(self, text: str) -> str:
        """The text without the phrase, at its length."""
        end = self.start + len(self.phrase)
        return text[: self.start] + " " * len(self.phrase) + text[end:]


def announced(text: str) -> Iterator[Announcement]:
    """What each "the answer is …" says, from the last to the first.

    A phrase goes to the end of its sentence; `$…$` right behind the words is a phrase of its own,
    with what else stands on its line up to there.
    """
    lowered = text.casefold()
    if not any(name in lowered for name in _ANSWER_NAMES):
        return
    for match in reversed(list(_ANNOUNCED.finditer(text))[-MOST_ANNOUNCEMENTS:]):
        rest = text[match.end() : match.end() + 2000]
        start = len(rest) - len(rest.lstrip(' \t\n*_:：`"'))
        phrase = _phrase(rest[start:])
        if phrase:
            is_denied = bool(DENIAL.match(phrase) or _DENIED_BEFORE.search(match[0]))
            yield Announcement(phrase, match.end() + start, is_denied)


def _phrase(rest: str) -> str:
    end = 0
    for left, right in _SET_APART:
        if rest.startswith(left):
            end = max(rest.find(right, len(left)), 0)
            end += len(right) if end else 0
            break
    mark = _PHRASE_END.search(rest, end or 1)
    phrase = rest[: mark.start() if mark else len(rest)].strip()
    return _EMPHASIS_END.sub("", phrase).strip(' "')


_DEGREES = re.compile(r"\^?\{?°\}?")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;! ]|\s)(?=\d{3}(?!\d))")  # math-verify: 1\,080 is 81


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
