"""open-r1 and its kin: a row a problem, with a list of `generations`.

OpenR1-Math has `problem`, `answer`, `generations`, `finish_reasons`, and a list of true and false
for each judge: `correctness_math_verify`, `correctness_llama`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from curate.errors import UsageError
from curate.rollout_files.record import (
    Format,
    LoggedRollout,
    Row,
    gold,
    known_item,
    last_text,
    number,
    text,
)

_PROMPTS = ("messages", "prompt", "problem", "question")


def _is_row(row: Row) -> bool:
    return isinstance(row.get("generations"), list)


def _read(row: Row, columns: Mapping[str, str]) -> Iterator[LoggedRollout]:
    generations = row["generations"] or []
    names = (columns["prompt"],) if "prompt" in columns else ("problem", *_PROMPTS)
    prompt = next((row[name] for name in names if isinstance(row.get(name), str | list)), None)
    rewards = _rewards(row, columns, len(generations))
    reasons: Any = row.get("finish_reasons")
    for place, generation in enumerate(generations):
        is_told = isinstance(reasons, list) and place < len(reasons)
        yield LoggedRollout(
            item_id=known_item(row, columns),
            prompt=prompt,
            completion=last_text(generation),
            reward=number(rewards[place]) if rewards else None,
            answer=gold(row, columns),
            finish_reason=text(reasons[place]) if is_told else None,
        )


def _rewards(row: Row, columns: Mapping[str, str], size: int) -> list[Any] | None:
    """The list of rewards that was named, or else the only one; None without any."""
    if name := columns.get("reward"):
        if name not in row:
            raise UsageError(f"there is no column {name!r}")
        found = row[name]
        return found if isinstance(found, list) and len(found) == size else None
    lists = {
        name: value
        for name, value in row.items()
        if name.startswith(("correctness", "reward"))
        and isinstance(value, list)
        and len(value) == size
    }
    if len(lists) > 1:
        raise UsageError(
            f"there are {len(lists)} judges ({', '.join(lists)}): name one with "
            "--column reward=NAME"
        )
    return next(iter(lists.values()), None)


OPEN_R1 = Format("open-r1", _is_row, _read)
