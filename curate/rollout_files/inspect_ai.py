"""inspect_ai: logs of evaluations, `.eval` (a zip archive of JSON) and `.json`, whole or dumped.

A row is a sample in one epoch: `id`, `epoch`, `input`, `target`, the `messages` of the whole
conversation, the `output` of its last turn, and `scores` by the names of scorers, whose `value` is
a number or a letter: C correct, I incorrect, P partly, N no answer. Of several scorers one has to
be named. What ended in an error has no reward. The header tells the model and its settings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from curate.datasets.json_rows import json_row
from curate.datasets.row import SourceRow
from curate.errors import UsageError
from curate.rollout_files.bounded_zip import BoundedZip
from curate.rollout_files.record import (
    Drawn,
    Format,
    LoggedRollout,
    Row,
    known_item,
    last_text,
    listed,
    number,
    text,
    whole,
)

ENDING = ".eval"
_HEAD = re.compile(r'\s*\{\s*"version":\s*\d+,\s*"status":\s*"\w+",\s*"eval":\s*\{')
_HEAD_CHARACTERS = 256
_LETTERS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
_CUT = ("max_tokens", "model_length")
_SAMPLES = re.compile(r"samples/[^/]+\.json")
_ATTACHMENT = "attachment://"


def is_log(path: Path) -> bool:
    """Whether a file is such a log, by its name or how it begins."""
    if path.suffix.lower() == ENDING:
        return True
    if path.suffix.lower() != ".json":
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return _HEAD.match(file.read(_HEAD_CHARACTERS)) is not None


def log_rows(path: Path) -> Iterator[SourceRow]:
    """The samples of a log, in its order.

    Raises:
        UsageError: the log is damaged, or was written without its samples.
    """
    rows: Iterator[SourceRow]
    if path.suffix.lower() == ENDING:
        archive = BoundedZip(path)
        found = [name for name in archive.names() if _SAMPLES.fullmatch(name)]
        rows = (_sample(archive, name, place) for place, name in enumerate(found, 1))
    else:
        found = listed(_whole_log(path).get("samples"))
        rows = (json_row(place, each, json.dumps(each)) for place, each in enumerate(found, 1))
    if not found:
        raise UsageError(f"{path} has no samples: it was written with --no-log-samples, or cut off")
    yield from rows


def _sample(archive: BoundedZip, name: str, place: int) -> SourceRow:
    """A sample, or else what is wrong with it: one that is too large spoils no others."""
    try:
        value = archive.read_json(name)
    except UsageError as error:
        return SourceRow(place, None, str(error))
    return json_row(place, value, json.dumps(value))


def drawn_by(path: Path) -> Drawn:
    """What the header of a log tells of its policy and the settings of sampling."""
    if path.suffix.lower() == ENDING:
        archive = BoundedZip(path)
        # A log that was cut off has only what was known at its start.
        found = [n for n in ("header.json", "_journal/start.json") if n in archive.names()]
        header = archive.read_json(found[0]) if found else {}
    else:
        header = _whole_log(path)
    about = _object(_object(header).get("eval"))
    plan = _object(_object(header).get("plan"))
    settings = _object(plan.get("config")) | _object(about.get("model_generate_config"))
    return Drawn(
        text(about.get("model")),
        number(settings.get("temperature")),
        whole(settings.get("max_tokens")),
    )


def _whole_log(path: Path) -> dict[str, Any]:
    try:
        return _object(json.loads(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no readable log of inspect_ai: {error}") from error


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_row(row: Row) -> bool:
    return {"id", "epoch", "input", "target", "scores"} <= set(row)


def _read(row: Row, columns: Mapping[str, str]) -> Iterator[LoggedRollout]:
    attachments = _object(row.get("attachments"))
    messages = [
        _attached(each, attachments)
        for each in listed(row.get("messages"))
        if isinstance(each, Mapping)
    ]
    # Examples within the prompt are the assistant's too, and were not generated.
    sampled = [n for n, each in enumerate(messages) if each.get("source") == "generate"]
    prompt: Any = messages[: sampled[0]] if sampled else row["input"]
    output = _object(row.get("output"))
    choices = output.get("choices")
    choice = _object(choices[0]) if isinstance(choices, list) and choices else {}
    limit = _object(row.get("limit")).get("type")
    is_cut = choice.get("stop_reason") in _CUT or limit == "token"
    target = row["target"]
    if isinstance(target, list) and len(target) == 1:
        target = target[0]
    name = columns.get("answer")
    yield LoggedRollout(
        item_id=known_item(row, columns),
        prompt=prompt if isinstance(prompt, str | list) else None,
        completion=last_text([_object(choice.get("message"))]) if choice else None,
        reward=_reward(row, columns),
        answer=text(row.get(name) if name else target),
        finish_reason="length" if is_cut else None,
        turns=max(1, len(sampled)),
    )


def _attached(message: Mapping[str, Any], attachments: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content stands in it, and not among the sample's attachments."""
    content = message.get("content")
    if isinstance(content, str) and content.startswith(_ATTACHMENT):
        content = attachments.get(content.removeprefix(_ATTACHMENT), content)
    return {**message, "content": content}


def _reward(row: Row, columns: Mapping[str, str]) -> float | None:
    scores = _object(row.get("scores"))
    if row.get("error") or not scores:
        return None
    name = columns.get("reward")
    if name is None and len(scores) > 1:
        raise UsageError(
            f"there are {len(scores)} scorers ({', '.join(scores)}): say which tells right from "
            "wrong with --column reward=NAME"
        )
    if name is not None and name not in scores:
        raise UsageError(f"there is no scorer {name!r}, only {', '.join(scores)}")
    score = scores[name] if name is not None else next(iter(scores.values()))
    value = _object(score).get("value")
    return _LETTERS.get(value) if isinstance(value, str) else number(value)


INSPECT = Format("inspect_ai", _is_row, _read)
