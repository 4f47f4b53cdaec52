"""lm-evaluation-harness: `samples_TASK_DATE.jsonl` of `--log_samples`.

A row is a document as one filter reads the answers to it: `doc`, `target`, `arguments` (the prompt
and the settings of sampling), `resps` (what was answered, a list for each request), `filter`, and
the value of each of its `metrics`. The same answers stand there again for every filter, so that of
several one has to be named: `--column reward=METRIC,FILTER`, as the harness itself calls a result.
Where a request was repeated, the metric is of what the filter made of all answers, and no reward
of any one. Choices that were compared by their likelihood have a reward and no completion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from curate.datasets.fields import MISSING, lookup
from curate.errors import UsageError
from curate.rollout_files.record import (
    Drawn,
    Format,
    LoggedRollout,
    Row,
    has,
    known_item,
    number,
    text,
    whole,
)

_OWN = (
    *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
    *("doc_hash", "prompt_hash", "target_hash"),
)


def _read(row: Row, columns: Mapping[str, str]) -> Iterator[LoggedRollout]:
    doc = row["doc"] if isinstance(row["doc"], Mapping) else {}
    prompt: Any = _request(row)[0]
    if "prompt" in columns:
        prompt = lookup(row, columns["prompt"])
        prompt = None if prompt is MISSING else prompt
    answer = lookup(row, columns.get("answer", "target"))
    requests = row["resps"] if isinstance(row["resps"], list) else []
    repeats = requests[0] if requests and isinstance(requests[0], list) else []
    metric = _metric(row, columns)
    rewards: list[Any] = metric if isinstance(metric, list) else [metric]
    if len(requests) == 1 and len(rewards) != len(repeats):
        rewards = [None] * len(repeats)
    for place, reward in enumerate(rewards):
        written = repeats[place] if len(requests) == 1 else None
        yield LoggedRollout(
            item_id=known_item(row, columns) or known_item(doc, {}),
            prompt=prompt if isinstance(prompt, str | list) else None,
            completion=written if isinstance(written, str) else None,
            reward=number(reward),
            answer=text(answer),
        )


def _request(row: Row) -> tuple[Any, Mapping[str, Any]]:
    """The prompt of the first request, and the settings that it was sent with."""
    given = row["arguments"]
    first = next(iter(given.values()), None) if isinstance(given, Mapping) else None
    if first is None and isinstance(given, list) and given:
        first = dict(enumerate(given[0])) if isinstance(given[0], list) else None
    values = list(first.values()) if isinstance(first, Mapping) else []
    prompt = values[0] if values else None
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]  # A conversation, as JSON text.
    settings = values[1] if len(values) > 1 and isinstance(values[1], Mapping) else {}
    return prompt, settings


def _metric(row: Row, columns: Mapping[str, str]) -> Any:
    told = row.get("metrics")
    names = [str(name) for name in told] if isinstance(told, list) else [
        name for name, value in row.items() if name not in _OWN and number(value) is not None
    ]  # fmt: skip
    name = columns.get("reward", "").partition(",")[0]
    if name and name not in row:
        raise UsageError(f"there is no metric {name!r}, only {', '.join(names) or 'none'}")
    if not name and len(names) != 1:
        raise UsageError(
            f"there are {len(names)} metrics ({', '.join(names)}): say which tells right from "
            "wrong with --column reward=NAME"
        )
    return row.get(name or names[0])


def _drawn(row: Row) -> Drawn:
    """What a row tells; greedy where it says so, which the harness writes as a flag."""
    settings = _request(row)[1]
    temperature = number(settings.get("temperature"))
    if settings.get("do_sample") is False:
        temperature = 0.0
    return Drawn(None, temperature, whole(settings.get("max_gen_toks")))


LM_EVAL = Format(
    "lm-eval",
    has("doc", "target", "arguments", "resps"),
    _read,
    drawn=_drawn,
    version=lambda row: text(row.get("filter")) or "",
    wanted_version=lambda columns: columns.get("reward", "").partition(",")[2],
)
