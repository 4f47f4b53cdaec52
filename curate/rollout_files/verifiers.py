"""verifiers and prime-rl: traces (version 1), and the results of earlier versions.

`traces.jsonl` holds an episode a line, `rollouts/step_N/train_rollouts.jsonl` of prime-rl a trace a
line. A trace is a graph of messages: `sampled` tells which the policy wrote, `token_ids` and `mask`
what it read and wrote; its reward is the sum of `score * weight` over `rewards`, and none where the
scoring of any did not run. Results of earlier versions (`results.jsonl`) have `prompt`,
`completion`, `reward` and `example_id`; `metadata.json` beside them tells what drew them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from curate.rollout_files.record import (
    Drawn,
    Format,
    LoggedRollout,
    Row,
    gold,
    has,
    known_item,
    last_text,
    listed,
    number,
    reward_of,
    sampled_turns,
    text,
    token_ids,
    whole,
)


def _read_episode(row: Row, columns: Mapping[str, str]) -> Iterator[LoggedRollout]:
    step = whole(_at(row, "run", "work", "step"))
    for trace in listed(row["traces"]):
        # Other agents are not the policy.
        if isinstance(trace, Mapping) and _at(trace, "agent", "trainable") is not False:
            yield _trace(trace, columns, step)


def _read_trace(row: Row, columns: Mapping[str, str]) -> Iterator[LoggedRollout]:
    yield _trace(row, columns, whole(_at(row, "info", "prime_rl", "step")))


def _trace(trace: Row, columns: Mapping[str, str], step: int | None) -> LoggedRollout:
    nodes = [node for node in listed(trace.get("nodes")) if isinstance(node, Mapping)]
    sampled = [place for place, node in enumerate(nodes) if node.get("sampled")]
    data = _at(trace, "task", "data")
    data = data if isinstance(data, Mapping) else {}
    path = _path(nodes, sampled[0]) if sampled else []
    read, written = _tokens(path) if len(sampled) == 1 else (None, None)
    prompt: Any = [node.get("message") for node in path[:-1]] or data.get("prompt")
    return LoggedRollout(
        item_id=known_item(data, columns),
        prompt=prompt if isinstance(prompt, str | list) else None,
        prompt_token_ids=read,
        completion=last_text([nodes[sampled[-1]].get("message")]) if sampled else None,
        completion_token_ids=written,
        reward=_reward(trace, columns),
        step=step,
        answer=gold(data, columns),
        finish_reason=_finish_reason(trace),
        turns=max(1, len(sampled)),
    )


def _reward(trace: Row, columns: Mapping[str, str]) -> float | None:
    rewards = trace.get("rewards")
    if not isinstance(rewards, Mapping) or not rewards or trace.get("errors"):
        return None
    if name := columns.get("reward"):
        return number(_at(rewards, name, "score"))
    parts = []
    for reward in rewards.values():
        score = number(_at({"": reward}, "", "score"))
        weight = number(reward.get("weight", 1.0)) if isinstance(reward, Mapping) else None
        if score is None or weight is None:
            return None
        parts.append(score * weight)
    return sum(parts)


def _path(nodes: list[Row], place: int) -> list[Row]:
    """The nodes from the root to one, by their parents."""
    found: list[Row] = []
    at: int | None = place
    while at is not None and 0 <= at < len(nodes) and len(found) <= len(nodes):
        found.append(nodes[at])
        at = whole(nodes[at].get("parent"))
    return found[::-1]


def _tokens(path: list[Row]) -> tuple[list[int] | None, list[int] | None]:
    """What the policy read and wrote of a single turn; the mask tells them apart."""
    read: list[int] = []
    written: list[int] = []
    for node in path:
        ids, mask = token_ids(node.get("token_ids")), node.get("mask")
        if ids is None or not isinstance(mask, list) or len(mask) != len(ids):
            return None, None
        for token, is_sampled in zip(ids, mask, strict=True):
            (written if is_sampled else read).append(token)
    return (read or None), (written or None)


def _finish_reason(trace: Row) -> str | None:
    calls = trace.get("calls")
    last = calls[-1] if isinstance(calls, list) and calls else {}
    return text(last.get("finish_reason")) if isinstance(last, Mapping) else None


def _at(value: Any, *names: str) -> Any:
    """A value in nested objects; None where there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def drawn_beside(file: Path) -> Drawn:
    """What the metadata beside results tell of their policy and the settings of sampling."""
    try:
        told = json.loads((file.parent / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return Drawn()
    settings = ("sampling_args", "temperature"), ("sampling_args", "max_tokens")
    temperature, most = (_at(told, *names) for names in settings)
    return Drawn(text(_at(told, "model")), number(temperature), whole(most))


def _read_result(row: Row, columns: Mapping[str, str]) -> Iterator[LoggedRollout]:
    prompt, completion = row["prompt"], row["completion"]
    yield LoggedRollout(
        item_id=known_item(row, columns),
        prompt=prompt if isinstance(prompt, str | list) else None,
        completion=last_text(completion),
        # What ended in an error has a reward of 0 that nothing earned.
        reward=None if row.get("error") else reward_of(row, columns, "reward"),
        answer=gold(row, columns),
        finish_reason="length" if row.get("is_truncated") else None,
        turns=sampled_turns(completion),
    )


EPISODES = Format("verifiers", has("traces", "task"), _read_episode)
TRACES = Format("prime-rl", has("nodes", "rewards", "task"), _read_trace)
RESULTS = Format(
    "verifiers (results of earlier versions)",
    has("prompt", "completion", "reward", "example_id"),
    _read_result,
)
