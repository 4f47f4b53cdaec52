"""Recognising how a dataset lays out its prompts and gold answers, and reading them from a row.

Known without options:

- `prompt`, `question` or `problem` with `answer`, `ground_truth` or `solution`. A gold answer may
  be marked in longer text: GSM8K's `#### 72`, or `\\boxed{72}`. A `solution` must mark it.
- the same with a conversational `prompt`: a list of messages, each with a `role` and a `content`.
- `messages`, or ShareGPT's `conversations` with its `system`, with an answer column, or else with
  the last assistant message as the gold text.
- verl, and what was made for it (DAPO-Math, Eurus, Skywork-OR1): `prompt` with
  `reward_model.ground_truth`.
- SYNTHETIC-1 and -2, INTELLECT-2: `prompt` with the `ground_truth` in `verification_info`, JSON.
- Open-Reasoner-Zero: a list of two messages a row, the second with the ground truth.
- multiple choice: `curate.datasets.choices`.
- programming problems with tests: `curate.datasets.code_tests`.

Texts are untrusted and may be long: everything here takes time linear in their length.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from curate.config import AUTO, TagConfig
from curate.datasets import choices
from curate.datasets.code_tests import (
    CodeTests,
    code_tests,
    find_code_field,
    is_code_gold,
    own_solutions,
)
from curate.datasets.fields import (
    MISSING,
    RowRejected,
    columns_line,
    first_filled,
    given_field,
    lookup,
)
from curate.datasets.golds import marked_gold, read_gold
from curate.datasets.messages import (
    Messages,
    ends_with_reply,
    read_calls,
    read_messages,
    refuse_media,
)
from curate.datasets.source import Source
from curate.errors import UsageError

INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."
"""The suffix of the paper's runs (verl's instruction for mathematics)."""

CODE_INSTRUCTION = "Write the solution in Python, in one ```python block at the end."
"""What a programming problem asks for in the place of `INSTRUCTION`."""

Message = dict[str, Any]
"""One turn of a conversation: `role`, `content`, and calls of tools where it has any."""

# Open-Reasoner-Zero's file is a list of lists, which is read as an object of positions.
_ORZ = ("0.value", "1.ground_truth.value")
_CONVERSATIONS = ("messages", "conversations")
_PROMPT_FIELDS = (
    *("prompt", "question", "problem", *_CONVERSATIONS),
    *("Question", "Problem", "question_content", _ORZ[0]),
)
_ANSWER_FIELDS = (
    "reward_model.ground_truth",
    "answer",
    "ground_truth",
    "verification_info.ground_truth",
    *("expected_answer", "final_answer"),
    *("answerKey", "Correct Answer", "Answer"),
    _ORZ[1],
)
# A text in which the answer is marked; of a programming problem, the program.
_SOLUTION_FIELD = "solution"
_NAMES = {
    "reward_model.ground_truth": "verl",
    "verification_info.ground_truth": "prime-rl",
    _ORZ[1]: "Open-Reasoner-Zero",
    "Correct Answer": "GPQA",
}
# What asks for the form of the answer already: a box, or DAPO-Math's last line.
_ASKS_FOR_FORM = re.compile(r"\\boxed|own line after \"Answer:\"|form:? Answer: \$Answer")
_ASKS_FOR_BLOCK = re.compile(
    r"(?i)code block|```python\s+#\s*your|(?:in|within|between|enclosed by)[^.\n]{0,30}```"
    r"|delimiters"
)
# Rows that are looked at to recognise a layout.
_SAMPLE_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, as (role, content) pairs of which the last is no assistant's, and its gold answer.

    A prompt that is a plain string is one message of the user.
    """

    messages: Messages
    answer: str
    is_plain_text: bool = dataclasses.field(default=False, compare=False)
    """Whether the dataset gave the prompt as a plain string."""
    solutions: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """Programs that the dataset gives as right ones, where the gold answer is tests."""
    calls: str = ""
    """Tools, and calls of them in the prompt: `curate.datasets.messages.read_calls`."""

    @property
    def item_id(self) -> str:
        """16 hex digits that depend on the prompt and the answer only, not on file or layout.

        Space around contents and answer makes no difference.
        """
        stripped = [[role, content.strip()] for role, content in self.messages]
        parts = [stripped, self.answer.strip(), *([self.calls] if self.calls else [])]
        canonical = json.dumps(parts, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]

    def conversation(self) -> list[Message]:
        """The prompt in the form that chat templates take."""
        turns = json.loads(self.calls).get("turns", {}) if self.calls else {}
        return [
            {"role": role, "content": content, **turns.get(str(place), {})}
            for place, (role, content) in enumerate(self.messages)
        ]

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """Descriptions of the tools that the prompt offers, as chat templates take them."""
        return json.loads(self.calls).get("tools") if self.calls else None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a dataset keeps its prompts and gold answers; the fields may be dotted paths.

    Without an `answer_field` the gold text is the conversation's last assistant message. Where an
    answer is a position or a letter, `choices` is the column of the choices, or the first of their
    columns, and `first_choice` the position that the first has. With `gold_optional` a row without
    a gold answer is a question all the same, whose answer is "".
    """

    name: str
    prompt_field: str
    answer_field: str | None
    choices: str | None = None
    first_choice: int = 0
    gold_optional: bool = False


def recognise_layout(
    rows_sample: Iterable[Mapping[str, Any]],
    prompt_field: str | None = None,
    answer_field: str | None = None,
    *,
    gold_optional: bool = False,
) -> Layout:
    """Find the layout of the rows, of which the first few hundred are sample enough.

    A field that is given wins. Raises UsageError where a given field is in none of the rows, or
    where no known field is, naming the columns that there are.
    """
    rows = list(rows_sample)
    known = first_filled(rows, _PROMPT_FIELDS)
    prompt = given_field(rows, prompt_field, "--prompt-field", known) or known
    if prompt is None:
        raise UsageError(
            f"no prompt column is known among {columns_line(rows)}; name it with --prompt-field"
            " (and the gold answer's with --answer-field)"
        )
    known = (
        first_filled(rows, [field for field in _ANSWER_FIELDS if field != prompt])
        or find_code_field(rows)
        or first_filled(rows, [_SOLUTION_FIELD])
    )
    answer = given_field(rows, answer_field, "--answer-field", known) or known
    has_replies = answer is None and any(ends_with_reply(lookup(row, prompt)) for row in rows)
    if answer is None and not has_replies and gold_optional:
        return Layout(prompt, prompt, None, gold_optional=True)
    if answer is None and not has_replies:
        raise UsageError(
            f"no gold answer column is known among {columns_line(rows)}; name it with"
            " --answer-field (and the prompt's with --prompt-field)"
        )
    if answer is None or _last_part(prompt) in _CONVERSATIONS:
        name = "messages"
    else:
        name = _NAMES.get(answer, f"{prompt}/{answer}")
    if answer is None:
        return Layout(name, prompt, answer, gold_optional=gold_optional)
    layout = Layout(name, prompt, answer, gold_optional=gold_optional)
    return _with_choices(layout, rows, answer)


def _with_choices(layout: Layout, rows: list[Mapping[str, Any]], answer: str) -> Layout:
    for column in choices.COLUMNS:
        if choices.need_choices(rows, column, answer):
            first = choices.first_position(rows, column, answer)
            return dataclasses.replace(layout, choices=column, first_choice=first)
    return layout


def run_layout(source: Source, config: TagConfig) -> Layout:
    """The layout of a run's dataset.

    Raises:
        UsageError: as `choose_layout`.
    """
    return choose_layout(
        source,
        config.prompt_field,
        config.answer_field,
        gold_optional=config.golds == "optional",
    )


def choose_layout(
    source: Source, prompt_field: str, answer_field: str, *, gold_optional: bool = False
) -> Layout:
    """Recognise the layout from the first rows, or take it from the options.

    Raises:
        UsageError: no known layout, or an option that names a column that is not there.
    """
    rows = islice((row.value for row in source.rows() if row.value is not None), _SAMPLE_ROWS)
    return recognise_layout(
        list(rows), prompt_field or None, answer_field or None, gold_optional=gold_optional
    )


def choices_line(layout: Layout, verifier: str) -> str:
    """What becomes of answers that are positions or letters of choices, in a line."""
    line = (
        f"answers are positions or letters of the choices in {layout.choices!r}: prompts that do "
        "not show them get them, lettered from A, and the gold is the letter"
    )
    if layout.first_choice:
        line += f" (positions count from {layout.first_choice})"
    return line if verifier == "choice" else f"{line}; --verifier choice judges letters"


def read_question(value: Mapping[str, Any], layout: Layout) -> Question:
    """Read a row's prompt and gold answer. Raises RowRejected with the reason where it cannot."""
    prompt = lookup(value, layout.prompt_field)
    if prompt is MISSING or prompt is None:
        raise RowRejected(f"no prompt: {layout.prompt_field!r} is missing or null")
    messages, is_plain_text = read_messages(prompt)
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
    refuse_media(value, messages, layout.prompt_field)
    calls = read_calls(value, prompt)
    system = value.get("system")
    is_sharegpt = _last_part(layout.prompt_field) == _CONVERSATIONS[1]
    if is_sharegpt and not calls and isinstance(system, str) and system.strip():
        messages = (("system", system), *messages)
    if layout.answer_field is None:
        if reply is None and layout.gold_optional:
            return Question(messages, "", is_plain_text=is_plain_text, calls=calls)
        if reply is None:
            raise RowRejected("no gold answer: the last message is not the assistant's")
        gold = marked_gold(reply, must_be_marked=False)
        return Question(messages, gold, is_plain_text=False, calls=calls)
    found = code_tests(value, layout.answer_field)
    if found is not None:
        tests, gold = found
        messages = (*messages[:-1], (role, _with_names(content, tests, value)))
        return Question(
            messages,
            gold,
            is_plain_text=is_plain_text,
            solutions=own_solutions(value),
            calls=calls,
        )
    answer = lookup(value, layout.answer_field)
    chosen = None
    if layout.choices:
        chosen = choices.letter_of(value, layout.choices, answer, content, layout.first_choice)
    if chosen:
        listed, gold = chosen
        messages = (*messages[:-1], (role, content.rstrip() + listed if listed else content))
    else:
        is_solution = _last_part(layout.answer_field) == "solution"
        try:
            gold = read_gold(answer, layout.answer_field, must_be_marked=is_solution)
        except RowRejected:
            if not layout.gold_optional:
                raise
            gold = ""
    return Question(messages, gold, is_plain_text=is_plain_text, calls=calls)


def _with_names(content: str, tests: CodeTests, row: Mapping[str, Any]) -> str:
    """A prompt with the names that its tests ask for, where it does not say them."""
    starter = row.get("starter_code")
    if isinstance(starter, str) and starter.strip() and starter.strip() not in content:
        content = f"{content.rstrip()}\n\nStart from this code:\n```python\n{starter.rstrip()}\n```"
    missing = [name for name in tests.names() if name not in content]
    if missing:
        content = f"{content.rstrip()}\n\nTests will call {', '.join(f'`{n}`' for n in missing)}."
    return content


def instruct(question: Question, instruction: str) -> list[Message]:
    """Return the conversation with the instruction added to its last turn.

    A prompt that is a conversation in the dataset is complete as it stands: with `auto` only plain
    text, which became a single user turn, gets the instruction, and only where it does not ask for
    the answer's form itself.
    """
    conversation = question.conversation()
    if instruction == AUTO:
        is_code = is_code_gold(question.answer)
        form, asked = (_ASKS_FOR_BLOCK if is_code else _ASKS_FOR_FORM), conversation[-1]["content"]
        is_complete = not question.is_plain_text or form.search(asked)
        wanted = CODE_INSTRUCTION if is_code else INSTRUCTION
        instruction = "" if is_complete else wanted
    if instruction:
        last = conversation[-1]
        conversation[-1] = {**last, "content": f"{last['content']} {instruction}"}
    return conversation


def _last_part(field: str) -> str:
    return field.rpartition(".")[2]
