"""One rollout as a trainer or an evaluation logged it, and what a format is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from curate.datasets.fields import object_in
from curate.errors import UsageError

Row = Mapping[str, Any]
COLUMNS = (
    *("item_id", "prompt", "completion", "reward", "step", "rollouts", "answer"),
    "finish_reason",
)
"""What `--column WHAT=NAME` may name."""
# Where datasets keep what travels along with a prompt.
_CARRIERS = ("info", "extra_info", "metadata")
_LARGEST = 2**31 - 1
_TRUTHS = {"true": 1.0, "false": 0.0}
_ANSWERS = ("answer", "ground_truth", "ground_truths", "expected_answer", "gts", "solution")


@dataclass(frozen=True, slots=True)
class LoggedRollout:
    """A rollout, or the mean of several of one prompt at one step. None is unknown."""

    item_id: str | None = None
    """Who the item is, as the log calls it."""
    prompt: str | list[Any] | None = None
    """Text, perhaps rendered by a chat template, or messages."""
    prompt_token_ids: list[int] | None = None
    completion: str | None = None
    """Its text; of several turns, that of the last."""
    completion_token_ids: list[int] | None = None
    reward: float | None = None
    step: int | None = None
    rollouts: int = 1
    """How many the reward is the mean of."""
    answer: str | None = None
    finish_reason: str | None = None
    turns: int = 1
    """Turns that the policy sampled."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Who drew rollouts, and how, as far as their files tell. None is unknown."""

    policy: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    """Where a completion was cut."""


def _nothing(_: Any) -> str:
    return ""


@dataclass(frozen=True)
class Format:
    """How one program writes rollouts.

    Attributes:
        name: as people call it.
        is_row: whether a row of a file looks like one of it.
        read: the rollouts of a row, by what `--column` names.
        drawn: what a row tells of who drew it, and how.
        version: where the same rollouts stand in a file several times, told in several ways, which
            of them a row is.
        wanted_version: which one `--column` names; "" for none, where there must be only one.
    """

    name: str
    is_row: Callable[[Row], bool]
    read: Callable[[Row, Mapping[str, str]], Iterable[LoggedRollout]]
    drawn: Callable[[Row], Drawn] = lambda row: Drawn()
    version: Callable[[Row], str] = _nothing
    wanted_version: Callable[[Mapping[str, str]], str] = _nothing


def has(*names: str) -> Callable[[Row], bool]:
    """Whether a row has all of some columns."""
    return lambda row: set(names) <= set(row)


def number(value: Any) -> float | None:
    """A finite number, or true and false as 1 and 0; None for all else."""
    if not isinstance(value, bool | int | float | Decimal):
        return None
    try:
        found = float(value)
    except OverflowError:  # More digits than any float has.
        return None
    return found if math.isfinite(found) else None


def number_in(value: Any) -> float | None:
    """The same where it stands as text, as in every cell of a CSV file."""
    if not isinstance(value, str):
        return number(value)
    if value.strip().lower() in _TRUTHS:
        return _TRUTHS[value.strip().lower()]
    try:
        return number(float(value))
    except ValueError:
        return None


def whole(value: Any) -> int | None:
    """A whole number of at most 32 bits, perhaps as text; None for all else."""
    found = number_in(value)
    is_one = found is not None and found.is_integer() and abs(found) <= _LARGEST
    return int(found) if found is not None and is_one else None


def listed(value: Any) -> list[Any]:
    """A list as it is; an empty one for all else."""
    return value if isinstance(value, list) else []


def text(value: Any) -> str | None:
    """Text, or a number as text; None for what is neither, or empty."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def token_ids(value: Any) -> list[int] | None:
    """A list of token ids; None for what is none, or empty."""
    if isinstance(value, list) and value and all(_is_token_id(each) for each in value):
        return value
    return None


def _is_token_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def known_item(row: Row, columns: Mapping[str, str]) -> str | None:
    """The item of a row: its column `item_id`, or what travels along in `info` or `extra_info`."""
    if "item_id" in columns:
        return text(row.get(columns["item_id"]))
    if found := text(row.get("item_id")):
        return found
    for name in _CARRIERS:
        carried = row.get(name)
        carried = object_in(carried) if isinstance(carried, str) else carried
        if isinstance(carried, Mapping) and (found := text(carried.get("item_id"))):
            return found
    return None


def gold(row: Row, columns: Mapping[str, str]) -> str | None:
    """The gold answer of a row."""
    names = (columns["answer"],) if "answer" in columns else _ANSWERS
    return next((found for name in names if (found := text(row.get(name)))), None)


def reward_of(row: Row, columns: Mapping[str, str], usual: str) -> float | None:
    """The reward of a row, of the column that was named or else the usual one.

    Raises:
        UsageError: the row has no such column.
    """
    name = columns.get("reward", usual)
    if name not in row:
        raise UsageError(f"there is no column {name!r}: name it with --column reward=NAME")
    return number_in(row[name])


def last_text(messages: Any) -> str | None:
    """The text of a completion: of the last message of the assistant where it is a conversation."""
    if isinstance(messages, str):
        return messages
    for message in reversed(listed(messages)):
        if isinstance(message, Mapping) and message.get("role") == "assistant":
            content = message.get("content")
            if isinstance(content, list):
                parts = [each.get("text") for each in content if isinstance(each, Mapping)]
                content = "".join(each for each in parts if isinstance(each, str))
            return content if isinstance(content, str) else None
    return None


def sampled_turns(messages: Any) -> int:
    """How many turns of a completion the policy sampled."""
    if not isinstance(messages, list):
        return 1
    roles = [each.get("role") for each in messages if isinstance(each, Mapping)]
    return max(1, roles.count("assistant"))
