"""The items as the page of a report holds them: compact columns, and rollouts within a size.

What is left out is counted, so that the page can say so: 100,000 items with all their rollouts
would be gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cards.report.items import TAGS, Floats, Ints, ReportItems, sample_by_tag
from curate.run.rollouts import rollout_outcomes
from curate.run.run import Run

# Characters of all prompts, all answers and all rollouts in the page.
_PROMPT_CHARACTERS = 12_000_000
_ANSWER_CHARACTERS = 4_000_000
_ROLLOUT_CHARACTERS = 12_000_000
_PROMPT_RANGE = (120, 8_000)
_ANSWER_RANGE = (40, 1_000)
_ROLLOUT_RANGE = (800, 4_000)
# With so many a browser is still quick: benchmarks/report/page.py.
MOST_ITEMS = 100_000
MOST_WITH_ROLLOUTS = 2_000
MOST_OF_EACH = 4
_KINDS = ("correct", "wrong", "not judged")
_PAIRS = ("teachers", "helps", "hurts")
_COLUMNS = ["item_id", "sample", "completion", "finish_reason", "reward", "verdict", "answer_found"]
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_PLACE = "\x1a"  # Stands for a number in the pattern of a reason.


def items_in_table(items: ReportItems, linked: Iterable[int]) -> Ints:
    """Positions of the items that the page holds: all, or of more than 100,000 a sample.

    Args:
        items: of the run.
        linked: positions of those that a chart opens, which are always among them.
    """
    sample = sample_by_tag(items, np.ones(len(items), dtype=bool), MOST_ITEMS)
    return np.union1d(sample, np.array([*linked], dtype=np.int64))


def shown_items(
    items: ReportItems, of_items: int | None = None, groups: float = float("nan")
) -> dict[str, Any]:
    """Columns of all items, as the page's table searches, sorts and opens them.

    Args:
        items: those in the page.
        of_items: how many the run has; None: just these.
        groups: what the effects of teachers are divided by, `forecast_facts.groups_of_a_unit`.

    Returns:
        `items` and `of_items`; `columns` by name, each with a value an item; `prompt` without what
        all prompts begin and end with, which is `prompt_start` and `prompt_end`; `cut_prompts` and
        `cut_answers`: the full length, by position, of those that were cut; `reasons`: patterns,
        and for each item the number of its pattern and the numbers that fill it, joined by "|";
        `pairs`: by name, for each item lists of a position (null where the page does not hold the
        item) and the part of the lift; `sources`: columns of the dataset as codes.
    """
    start, end = common_ends(items.prompt)
    middles = [text[len(start) : len(text) - len(end)] for text in items.prompt.to_pylist()]
    prompts, cut_prompts = _cut(middles, _limit(_PROMPT_CHARACTERS, len(items), _PROMPT_RANGE))
    answers, cut_answers = _cut(
        items.answer.to_pylist(), _limit(_ANSWER_CHARACTERS, len(items), _ANSWER_RANGE)
    )
    position = pa.array(items.ids)
    columns: dict[str, Any] = {
        "id": items.ids.tolist(),
        "row": items.row.tolist(),
        "prompt": prompts,
        "answer": answers,
        "tag": items.tag.tolist(),
        "judged": items.judged.tolist(),
        "correct": items.correct.tolist(),
        "unjudged": items.unjudged.tolist(),
        "truncated": items.truncated.tolist(),
        "gradients": items.gradients.tolist(),
        "nearest": _parts(pc.index_in(items.nearest.flatten(), value_set=position), items.nearest),
    }
    numbers = items.measured | {"p_unlearnable": items.p_unlearnable}
    if np.isfinite(items.forecast).any():
        numbers |= items.expected
        numbers |= {"from_others": items.from_others, "teaching": items.teaching}
    if items.confirmed is not None and items.final_pass_rate is not None:
        columns["confirmed"] = items.confirmed.tolist()
        numbers["final_pass_rate"] = items.final_pass_rate
    if items.majority is not None:
        columns["majority"] = items.majority.to_pylist()
    if items.reasoning_quality is not None:
        numbers["reasoning_quality"] = items.reasoning_quality
    columns |= {name: _short(values) for name, values in numbers.items()}
    return {
        "tags": list(TAGS),
        "items": len(items),
        "of_items": len(items) if of_items is None else of_items,
        "prompt_start": start,
        "prompt_end": end,
        "cut_prompts": cut_prompts,
        "cut_answers": cut_answers,
        "columns": columns,
        "pairs": {name: _pairs(items, name, position, groups) for name in _PAIRS},
        "reasons": _reasons(items.reason.to_pylist()),
        "sources": [
            {"name": each.name, "values": each.values, "codes": each.codes.tolist()}
            for each in items.sources
        ],
    }


def _parts(flat: pa.Array, lists: pa.Array) -> list[list[Any]]:
    """Values of all lists, one after the other, as a list an item."""
    offsets = np.append(0, np.cumsum(pc.fill_null(pc.list_value_length(lists), 0)))
    values = flat.to_pylist()
    return [values[offsets[at] : offsets[at + 1]] for at in range(len(lists))]


def _pairs(
    items: ReportItems, name: str, position: pa.Array, groups: float
) -> list[list[tuple[int | None, float | None]]]:
    """Of each item its teachers, or whom it helps or hurts, with the part of the lift."""
    names, effects = getattr(items, name), getattr(items, f"{name}_by")
    places = _parts(pc.index_in(names.flatten(), value_set=position), names)
    parts = _parts(pa.array(_short(_floats(effects.flatten()) / groups)), effects)
    return [list(zip(*each, strict=True)) for each in zip(places, parts, strict=True)]


def _floats(values: pa.Array) -> Floats:
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def common_ends(texts: pa.Array) -> tuple[str, str]:
    """Whole lines that all texts begin with, and those that all end with.

    A chat template, mostly: it says nothing of the item, and would fill the table.
    """
    if len(texts) < 2:
        return "", ""
    # What the first and the last in order share, all share.
    ends = pc.min_max(texts).as_py()
    start = _shared_start(ends["min"], ends["max"])
    start = start[: start.rfind("\n") + 1]
    rest = pc.utf8_reverse(pc.utf8_slice_codeunits(texts, len(start)))
    ends = pc.min_max(rest).as_py()
    end = _shared_start(ends["min"], ends["max"])[::-1]
    # The last line of the item's own text keeps its line end out of what is shown.
    return start, end[end.find("\n") :] if "\n" in end else ""


def _shared_start(one: str, other: str) -> str:
    length = min(len(one), len(other))
    differ = (at for at in range(length) if one[at] != other[at])
    return one[: next(differ, length)]


def _limit(characters: int, texts: int, between: tuple[int, int]) -> int:
    least, most = between
    return max(least, min(most, characters // max(texts, 1)))


def _cut(texts: list[str], limit: int) -> tuple[list[str], dict[int, int]]:
    cut = {at: len(text) for at, text in enumerate(texts) if len(text) > limit}
    return [text[:limit] for text in texts], cut


def _short(values: Floats) -> list[float | None]:
    """Four significant digits; None for what is unknown."""
    finite = np.isfinite(values)
    return [
        float(f"{value:.4g}") if known else None
        for value, known in zip(values.tolist(), finite.tolist(), strict=True)
    ]


def _reasons(reasons: list[str]) -> dict[str, Any]:
    """Take the numbers out of the reasons: what is left are a few patterns."""
    patterns: dict[str, int] = {}
    lines = []
    for reason in reasons:
        pattern = _NUMBER.sub(_PLACE, reason.replace(_PLACE, "\ufffd"))
        number = patterns.setdefault(pattern, len(patterns))
        lines.append("|".join([str(number), *_NUMBER.findall(reason)]))
    return {"place": _PLACE, "patterns": list(patterns), "lines": lines}


def shown_rollouts(run: Run, items: ReportItems) -> dict[str, Any]:
    """Some rollouts of each item, or of 2,000 items where there are more, as many of each tag.

    Of an item the first 4 different correct, wrong and unjudged completions; a long one is cut.

    Returns:
        `items`: by position, lists of kind (position in `kinds`), sample, verdict, finish reason,
        answer found, completion, and its full length where it was cut, else 0. `of_items`,
        `most_of_each`, `characters`: the bounds that the page names.

    Raises:
        RunError: a file of rollouts is missing or damaged.
    """
    chosen = sample_by_tag(items, np.ones(len(items), dtype=bool), MOST_WITH_ROLLOUTS)
    limit = _limit(_ROLLOUT_CHARACTERS, len(chosen) * 2 * MOST_OF_EACH, _ROLLOUT_RANGE)
    found: dict[int, list[list[Any]]] = {at: [] for at in chosen.tolist()}
    texts: dict[int, set[str]] = {at: set() for at in found}
    room = np.full((len(chosen), len(_KINDS)), MOST_OF_EACH, dtype=np.int64)
    ids = pa.array(items.ids[chosen])
    for batch in run.rollout_batches(*_COLUMNS):
        places = pc.fill_null(pc.index_in(batch["item_id"], value_set=ids), -1).to_numpy()
        outcome = rollout_outcomes(batch)
        kind = np.where(outcome == 1, 0, np.where(outcome == 0, 1, 2))
        wanted = np.flatnonzero((places >= 0) & (room[places, kind] > 0))
        for line, row in zip(
            wanted.tolist(), batch.take(pa.array(wanted)).to_pylist(), strict=True
        ):
            place, which = int(places[line]), int(kind[line])
            at = int(chosen[place])
            text = row["completion"] or ""
            if not room[place, which] or text in texts[at]:
                continue
            room[place, which] -= 1
            texts[at].add(text)
            found[at].append(
                [
                    which,
                    row["sample"],
                    row["verdict"],
                    row["finish_reason"],
                    _shorter(row["answer_found"]),
                    text[:limit],
                    len(text) if len(text) > limit else 0,
                ]
            )
    for rollouts in found.values():
        rollouts.sort(key=lambda each: (each[0], each[1]))
    return {
        "kinds": list(_KINDS),
        "of_items": len(chosen),
        "most_of_each": MOST_OF_EACH,
        "characters": limit,
        "items": found,
    }


def _shorter(answer: str | None) -> str | None:
    return None if answer is None else answer[:200]
