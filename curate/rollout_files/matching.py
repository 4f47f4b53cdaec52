"""Whose a logged rollout is: the item of a run that it is of, by id, token ids or prompt.

Tried in this order, the first that finds the item: its `item_id`; a value in a column of the
dataset; the token ids of the prompt as they were probed; its text as it was probed, without special
tokens and space, which a trainer that decodes tokens leaves out; and the item's question, its last
turn of the user, as the last one in the logged prompt, so that another system prompt, template or
instruction makes no difference. Several items with one prompt are told apart by their gold answers.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curate.datasets.fields import RowRejected
from curate.datasets.layouts import Layout, read_question, run_layout
from curate.datasets.messages import read_messages
from curate.datasets.source import Source
from curate.errors import UsageError
from curate.rollout_files.record import LoggedRollout
from curate.run.questions import run_source
from curate.run.run import Run
from curate.run.tables import ITEMS

# `<|im_end|>`, `<｜User｜>`, `</s>`, `<start_of_turn>`, `[INST]`.
_SPECIAL = re.compile(
    r"<[|｜][^<>|｜]{1,40}[|｜]>|</?s>|<(?:bos|eos|pad|(?:start|end)_of_turn)>|\[/?INST\]"
)
_SPACE = re.compile(r"\s+")
_ANCHOR = 24
# What templates put behind a question without space, once its special tokens are left out.
_AFTER = ("assistant", "model")
_SHOWN = 60


@dataclass
class ItemMatcher:
    """Finds the item of logged rollouts.

    Attributes:
        ways: how many rollouts were matched by what.
        unmatched: how many were not.
        example: the first that was not.
    """

    ids: Sequence[str]
    prompts: Sequence[str]
    prompt_token_ids: Sequence[Sequence[int]]
    answers: Sequence[str]
    questions: Mapping[int, str]
    """The last turn of the user, by the position of the item; perhaps not of all."""
    names: Mapping[str, int] = field(default_factory=dict)
    """Items by what a column of the dataset calls them."""
    ways: Counter[str] = field(default_factory=Counter)
    unmatched: int = 0
    example: str = ""

    def __post_init__(self) -> None:
        """Index the items."""
        self._by_id = {item_id: row for row, item_id in enumerate(self.ids)}
        self._by_tokens: dict[tuple[int, ...], list[int]] = defaultdict(list)
        self._by_text: dict[str, list[int]] = defaultdict(list)
        self._by_anchor: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        self._question = {row: _spaced(each) for row, each in self.questions.items()}
        for row, (prompt, tokens) in enumerate(
            zip(self.prompts, self.prompt_token_ids, strict=True)
        ):
            self._by_tokens[tuple(tokens)].append(row)
            self._by_text[_bare(prompt)].append(row)
        for row, question in self._question.items():
            if question:
                anchor = question[:_ANCHOR]
                self._by_anchor[len(anchor)][anchor].append(row)
        self._found: dict[Hashable, tuple[str, list[int]]] = {}

    def find(self, rollout: LoggedRollout, number: int = 1) -> int | None:
        """The position of the item that a rollout, or so many, are of; None where none is found."""
        way, rows = self._candidates(rollout)
        if len(rows) > 1:
            gold = (rollout.answer or "").strip()
            rows = [row for row in rows if self.answers[row].strip() == gold]
        if len(rows) == 1:
            self.ways[way] += number
            return rows[0]
        self.unmatched += number
        self.example = self.example or shown(rollout)
        return None

    def _candidates(self, rollout: LoggedRollout) -> tuple[str, list[int]]:
        name = rollout.item_id
        if name is not None and name in self._by_id:
            return "item_id", [self._by_id[name]]
        if name is not None and name in self.names:
            return "column", [self.names[name]]
        if rollout.prompt_token_ids:
            rows = self._by_tokens.get(tuple(rollout.prompt_token_ids), [])
            if rows:
                return "token ids", rows
        if not rollout.prompt:
            return "", []
        prompt = rollout.prompt if isinstance(rollout.prompt, str) else _turns(rollout.prompt)
        if prompt not in self._found:
            self._found[prompt] = self._by_words(prompt)
        return self._found[prompt]

    def _by_words(self, prompt: str) -> tuple[str, list[int]]:
        rows = self._by_text.get(_bare(prompt), [])
        return ("prompt", rows) if rows else ("question", self._last_question(_spaced(prompt)))

    def _last_question(self, prompt: str) -> list[int]:
        """The items whose question ends last in a prompt, of several the longest."""
        best: tuple[int, int] = (0, 0)
        rows: list[int] = []
        for start in range(len(prompt)):
            if start and prompt[start - 1].isalnum() and prompt[start].isalnum():
                continue
            for length, anchors in self._by_anchor.items():
                for row in anchors.get(prompt[start : start + length], ()):
                    question = self._question[row]
                    end = start + len(question)
                    if not prompt.startswith(question, start) or not _ends(prompt, end):
                        continue
                    if (end, len(question)) > best:
                        best, rows = (end, len(question)), []
                    if (end, len(question)) == best:
                        rows.append(row)
        return rows


def item_matcher(run: Run, id_column: str = "") -> ItemMatcher:
    """Prepare to find the items of a run.

    Args:
        id_column: a column of the dataset by whose values a log names the items.

    Raises:
        UsageError: the dataset has no such column.
        RunError: a file of the run is damaged.
    """
    items = run.columns(ITEMS, "prompt", "prompt_token_ids", "answer").to_pydict()
    questions: dict[int, str] = {}
    try:
        source = run_source(run)
        questions = last_turns(source, run_layout(source, run.config), run.row_of)
    except UsageError:
        # The dataset was moved: prompts are known as they were rendered.
        pass
    return ItemMatcher(
        run.ids.to_pylist(),
        items["prompt"],
        items["prompt_token_ids"],
        items["answer"],
        questions,
        _names_in(run, id_column) if id_column else {},
    )


def last_turns(source: Source, layout: Layout, row_of: Mapping[str, int]) -> dict[int, str]:
    """The last turn of the user in the prompts of a dataset's items, by their position."""
    found: dict[int, str] = {}
    for row in source.rows():
        try:
            question = read_question(row.value or {}, layout)
        except RowRejected:
            continue
        user = [content for role, content in question.messages if role == "user"]
        if user and (place := row_of.get(question.item_id)) is not None:
            found.setdefault(place, user[-1])
    return found


def _names_in(run: Run, column: str) -> dict[str, int]:
    """Items by the values of a column of the dataset; those that name two items are left out."""
    rows = run.rows("row", "item_id").to_pydict()
    item_of = dict(zip(rows["row"], rows["item_id"], strict=True))
    found: dict[str, set[int]] = defaultdict(set)
    is_there = False
    for row in run_source(run).rows():
        item_id = item_of.get(row.row)
        if row.value is not None and column in row.value:
            is_there = True
            if item_id in run.row_of:
                found[str(row.value[column])].add(run.row_of[item_id])
    if not is_there:
        raise UsageError(f"--id-column: the dataset has no column {column!r}")
    return {name: rows.pop() for name, rows in found.items() if len(rows) == 1}


def _turns(messages: Sequence[Any]) -> str:
    """The contents of messages, a line each; empty where they are no text."""
    try:
        return "\n".join(content for _, content in read_messages(list(messages))[0])
    except RowRejected:
        return ""


def _bare(prompt: str) -> str:
    """A text without special tokens and space."""
    return _SPACE.sub("", _SPECIAL.sub("", prompt))


def _spaced(prompt: str) -> str:
    """A text with single spaces, also in the place of special tokens."""
    return _SPACE.sub(" ", _SPECIAL.sub(" ", prompt)).strip()


def _ends(prompt: str, end: int) -> bool:
    """Whether a question that ends there does not end within a word."""
    after = prompt[end : end + 1]
    inside = after.isalnum() and prompt[end - 1].isalnum()
    return not inside or prompt.startswith(_AFTER, end)


def shown(rollout: LoggedRollout) -> str:
    """Whose a rollout says that it is, for a reader."""
    if rollout.item_id is not None:
        return f"item {rollout.item_id!r}"
    if rollout.prompt:
        words = rollout.prompt if isinstance(rollout.prompt, str) else _turns(rollout.prompt)
        return repr(words[-_SHOWN:]) if words else "a prompt that is not of text"
    return "a prompt of token ids" if rollout.prompt_token_ids else "a rollout without a prompt"
