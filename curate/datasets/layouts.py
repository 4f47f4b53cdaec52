"""Recognising how a dataset lays out its prompts and gold answers, and reading them from a row.

Known without options:

- `prompt`, `question` or `problem` with `answer`, `ground_truth` or `solution`. A gold answer may
  be marked in longer text: GSM8K's `#### 72`, or `\\boxed{72}`. A `solution` must mark it.
- the same with a conversational `prompt`: a list of messages, each with a `role` and a `content`.
- `messages`, with an answer column, or else with the last assistant message as the gold text.
- verl: `prompt` with `reward_model.ground_truth`.

Texts are untrusted and may be long: everything here takes time linear in their length.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any

from curate.config import AUTO
from curate.datasets.source import Source
from curate.errors import UsageError

INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."
"""The suffix of the paper's runs (verl's instruction for mathematics)."""

Message = dict[str, str]
"""One turn of a conversation: `role` and `content`."""

_PROMPT_FIELDS = ("prompt", "question", "problem", "messages")
_ANSWER_FIELDS = ("reward_model.ground_truth", "answer", "ground_truth", "solution")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
# A box opens, an escaped character (a brace among them) is passed over, a brace opens or closes.
_BOX_TOKEN = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_MISSING = object()
# Rows that are looked at to recognise a layout.
_SAMPLE_ROWS = 1000


class RowRejected(Exception):
    """A row that cannot be used. Its text is the reason, one line that a person can read."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, as (role, content) pairs of which the last is no assistant's, and its gold answer.

    A prompt that is a plain string is one message of the user.
    """

    messages: tuple[tuple[str, str], ...]
    answer: str
    is_plain_text: bool = dataclasses.field(default=False, compare=False)
    """Whether the dataset gave the prompt as a plain string."""

    @property
    def item_id(self) -> str:
        """16 hex digits that depend on the prompt and the answer only, not on file or layout.

        Space around contents and answer makes no difference.
        """
        stripped = [[role, content.strip()] for role, content in self.messages]
        canonical = json.dumps([stripped, self.answer.strip()], separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]

    def conversation(self) -> list[Message]:
        """The prompt in the form that chat templates take."""
        return [{"role": role, "content": content} for role, content in self.messages]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a dataset keeps its prompts and gold answers; the fields may be dotted paths.

    Without an `answer_field` the gold text is the conversation's last assistant message.
    """

    name: str
    prompt_field: str
    answer_field: str | None


def recognise_layout(
    rows_sample: Iterable[Mapping[str, Any]],
    prompt_field: str | None = None,
    answer_field: str | None = None,
) -> Layout:
    """Find the layout of the rows, of which the first few hundred are sample enough.

    A field that is given wins. Raises UsageError where a given field is in none of the rows, or
    where no known field is, naming the columns that there are.
    """
    rows = list(rows_sample)
    prompt = _given(rows, prompt_field, "--prompt-field") or _known(rows, _PROMPT_FIELDS)
    if prompt is None:
        raise UsageError(
            f"no prompt column is known among {_columns_line(rows)}; name it with --prompt-field"
            " (and the gold answer's with --answer-field)"
        )
    answer = _given(rows, answer_field, "--answer-field") or _known(
        rows, [field for field in _ANSWER_FIELDS if field != prompt]
    )
    if answer is None and not any(_ends_with_reply(_lookup(row, prompt)) for row in rows):
        raise UsageError(
            f"no gold answer column is known among {_columns_line(rows)}; name it with"
            " --answer-field (and the prompt's with --prompt-field)"
        )
    if answer is None or _last_part(prompt) == "messages":
        name = "messages"
    elif answer == "reward_model.ground_truth":
        name = "verl"
    else:
        name = f"{prompt}/{answer}"
    return Layout(name, prompt, answer)


def choose_layout(source: Source, prompt_field: str, answer_field: str) -> Layout:
    """Recognise the layout from the first rows, or take it from the options.

    Raises:
        UsageError: no known layout, or an option that names a column that is not there.
    """
    rows = islice((row.value for row in source.rows() if row.value is not None), _SAMPLE_ROWS)
    return recognise_layout(list(rows), prompt_field or None, answer_field or None)


def read_question(value: Mapping[str, Any], layout: Layout) -> Question:
    """Read a row's prompt and gold answer. Raises RowRejected with the reason where it cannot."""
    prompt = _lookup(value, layout.prompt_field)
    if prompt is _MISSING or prompt is None:
        raise RowRejected(f"no prompt: {layout.prompt_field!r} is missing or null")
    messages = _read_messages(prompt)
    reply = None
    if layout.name == "messages" and messages[-1][0] == "assistant":
        reply = messages[-1][1]
        messages = messages[:-1]
    if not messages:
        raise RowRejected("no prompt: nothing stands before the assistant's message")
    role, content = messages[-1]
    if role not in ("user", "tool"):
        raise RowRejected(f"the prompt ends with the turn of {role!r}, not of the user")
    if not content.strip():
        raise RowRejected("empty prompt")
    if layout.answer_field is None:
        if reply is None:
            raise RowRejected("no gold answer: the last message is not the assistant's")
        return Question(messages, _gold(reply, must_be_marked=False))
    answer = _answer_text(_lookup(value, layout.answer_field), layout.answer_field)
    gold = _gold(answer, must_be_marked=_last_part(layout.answer_field) == "solution")
    return Question(messages, gold, is_plain_text=isinstance(prompt, str))


def instruct(question: Question, instruction: str) -> list[Message]:
    """Return the conversation with the instruction added to its last turn.

    A prompt that is a conversation in the dataset is complete as it stands: with `auto` only plain
    text, which became a single user turn, gets the instruction.
    """
    conversation = question.conversation()
    if instruction == AUTO:
        instruction = INSTRUCTION if question.is_plain_text else ""
    if instruction:
        last = conversation[-1]
        conversation[-1] = {**last, "content": f"{last['content']} {instruction}"}
    return conversation


def extract_gold(text: str) -> str | None:
    r"""The gold answer that a text marks, stripped: GSM8K's `#### 72`, or `\boxed{72}`; else None.

    The last mark counts. Thousands commas are dropped from a number after `####`. A `####` with
    more than one line after it is taken for a heading if the text has a box.
    """
    _, mark, tail = text.rpartition("####")
    tail = tail.strip()
    is_heading = "\n" in tail
    boxed = last_boxed(tail if mark and not is_heading else text)
    if boxed is not None:
        return boxed
    if not mark:
        return None
    return tail.replace(",", "") if _THOUSANDS.fullmatch(tail) else tail


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` or `\fbox{…}` whose braces balance; None if none does.

    Of nested boxes the inner counts.
    """
    opened: list[tuple[int, bool]] = []  # Where the inside of each open brace starts; a box?
    inside = None
    for token in _BOX_TOKEN.finditer(text):
        symbol = token.group()
        if symbol.endswith("{") and symbol != r"\{":
            opened.append((token.end(), symbol != "{"))
        elif symbol == "}" and opened:
            start, is_box = opened.pop()
            if is_box and (inside is None or start > inside[0]):
                inside = (start, token.start())
    return None if inside is None else text[inside[0] : inside[1]].strip()


def find_field(
    rows: Sequence[Mapping[str, Any]], given: str, option: str, known: Iterable[str]
) -> str | None:
    """The field that an option names, or else the first of the known ones that any row fills.

    Raises:
        UsageError: the option names a field that is in none of the rows.
    """
    return _given(list(rows), given or None, option) or _known(list(rows), known)


def read_field(value: Mapping[str, Any], field: str) -> Any:
    """The value at a dotted path of a row; None where there is none."""
    found = _lookup(value, field)
    return None if found is _MISSING else found


def read_gold(value: Mapping[str, Any], field: str) -> str:
    """Read the gold answer of a row, marked or bare. Raises RowRejected where there is none."""
    answer = _answer_text(_lookup(value, field), field)
    return _gold(answer, must_be_marked=_last_part(field) == "solution")


# --- Fields ----------------------------------------------------------------------------------


def _lookup(row: Mapping[str, Any], field: str) -> Any:
    """The value at a dotted path, _MISSING where there is none; a column so named comes first."""
    if field in row:
        return row[field]
    value: Any = row
    for part in field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _last_part(field: str) -> str:
    return field.rpartition(".")[2]


def _known(rows: list[Mapping[str, Any]], fields: Iterable[str]) -> str | None:
    """The first of the fields that any row fills."""
    for field in fields:
        if any(_lookup(row, field) not in (_MISSING, None) for row in rows):
            return field
    return None


def _given(rows: list[Mapping[str, Any]], field: str | None, option: str) -> str | None:
    if field is None or any(_lookup(row, field) is not _MISSING for row in rows):
        return field
    paths = _paths(rows)
    nearest = difflib.get_close_matches(field, paths, n=1, cutoff=0.0)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise UsageError(f"{option} {field!r}: no such column among {_columns_line(rows)}{hint}")


def _paths(rows: list[Mapping[str, Any]]) -> list[str]:
    """The columns, and the fields inside them one level down."""
    paths: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            paths[name] = None
            if isinstance(value, Mapping):
                paths.update(dict.fromkeys(f"{name}.{inner}" for inner in value))
    return list(paths)


def _columns_line(rows: list[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = ", ".join(repr(name) for name in columns[:30])
    return "the columns " + shown + (", …" if len(columns) > 30 else "") if columns else "no column"


# --- Prompts ---------------------------------------------------------------------------------


def _ends_with_reply(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and isinstance(prompt[-1], Mapping)
        and prompt[-1].get("role") == "assistant"
    )


def _read_messages(prompt: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(prompt, str):
        return (("user", prompt),)
    if not isinstance(prompt, list):
        raise RowRejected(f"the prompt is {_type_name(prompt)}, not text or a list of messages")
    if not prompt:
        raise RowRejected("empty prompt")
    return tuple(_read_message(message, number) for number, message in enumerate(prompt, 1))


def _read_message(message: Any, number: int) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise RowRejected(f"message {number} of the prompt is {_type_name(message)}, not an object")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise RowRejected(f"message {number} of the prompt has no role")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_read_part(part, number) for part in content)
    if not isinstance(content, str):
        raise RowRejected(f"message {number} of the prompt has no text as its content")
    return role, content


def _read_part(part: Any, number: int) -> str:
    """The text of one part of a multimodal content; only text can be used."""
    kind = part.get("type") if isinstance(part, Mapping) else _type_name(part)
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RowRejected(f"message {number} of the prompt holds {kind!r}, not only text")
    return str(part["text"])


# --- Answers ---------------------------------------------------------------------------------


def _answer_text(answer: Any, field: str) -> str:
    if isinstance(answer, list):
        if len(answer) != 1:
            raise RowRejected(f"the gold answer is a list of {len(answer)}, not one answer")
        answer = answer[0]
    if answer is _MISSING or answer is None:
        raise RowRejected(f"no gold answer: {field!r} is missing or null")
    if isinstance(answer, float | Decimal) and not math.isfinite(answer):
        raise RowRejected(f"no gold answer: it is {answer}")
    if not isinstance(answer, str | int | float | Decimal):
        raise RowRejected(f"the gold answer is {_type_name(answer)}, not text or a number")
    return str(answer)


def _gold(text: str, must_be_marked: bool) -> str:
    gold = extract_gold(text)
    if gold is None:
        if must_be_marked:
            raise RowRejected("no gold answer: the solution has neither \\boxed{} nor ####")
        gold = text.strip()
    if not gold:
        raise RowRejected("no gold answer: it is empty")
    return gold


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number"}
    names |= {float: "a number", str: "a string", type(None): "null"}
    return names.get(type(value), f"of type {type(value).__name__}")
