"""The items of the SmolLM2 studies: two sets of 240 from six kinds of arithmetic, none in both."""

import json
from pathlib import Path
from typing import Any

# The rule for `p_unlearnable` was made when the outcomes of the first set were known. The second
# was drawn after that, and shares no question with the first: it is the test of the rule.
SEEDS = {"first": 11, "second": 23}
# (task, items, settings of its reasoning-gym generator)
TASKS: list[tuple[str, int, dict[str, Any]]] = [
    ("products", 48, {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}),
    ("chain_sum", 48, {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    ("fraction_simplification", 36, {"min_value": 1, "max_value": 20, "styles": ("plain",)}),
    ("basic_arithmetic", 36, {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    ("gcd", 36, {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 60}),
    ("letter_counting", 36, {"min_words": 8, "max_words": 14}),
]


def write_items(folder: Path, chosen: str) -> None:
    """Write items.jsonl: the set `chosen`, "first" or "second"."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = item_rows(chosen)
    file = folder / "items.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{file}: {len(rows)} items")


def item_rows(chosen: str) -> list[dict[str, str]]:
    """The items of a set: question, answer and task."""
    taken: set[str] = set()
    first = _draw(SEEDS["first"], taken)
    return first if chosen == "first" else _draw(SEEDS["second"], taken)


def _draw(seed: int, taken: set[str]) -> list[dict[str, str]]:
    """Of each task the first questions that are not `taken`, which takes them."""
    import reasoning_gym  # Of the extra `demo`; the page of a study does without it.

    rows = []
    for task, size, settings in TASKS:
        left = size
        for item in reasoning_gym.create_dataset(task, size=10_000, seed=seed, **settings):
            if item["question"] not in taken and left:
                taken.add(item["question"])
                left -= 1
                rows.append({"question": item["question"], "answer": item["answer"], "task": task})
    return rows
