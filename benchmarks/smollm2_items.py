"""The items of the SmolLM2 study: six kinds of arithmetic, for training and held out."""

import json
from pathlib import Path

SEED = 11
# (task, for training, held out, settings of its reasoning-gym generator)
TASKS = [
    ("products", 48, 20, {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}),
    ("chain_sum", 48, 20, {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    ("fraction_simplification", 36, 20, {"min_value": 1, "max_value": 20, "styles": ("plain",)}),
    (
        "basic_arithmetic",
        36,
        20,
        {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    ),
    ("gcd", 36, 20, {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 60}),
    ("letter_counting", 36, 20, {"min_words": 8, "max_words": 14}),
]


def write_items(folder: Path) -> None:
    """Write items.jsonl and held_out.jsonl; no prompt is in both, or twice in one."""
    import reasoning_gym  # Of the extra `demo`; the page of the study does without it.

    folder.mkdir(parents=True, exist_ok=True)
    training, held_out = [], []
    for task, size, size_held_out, settings in TASKS:
        generator = reasoning_gym.create_dataset(task, size=10_000, seed=SEED, **settings)
        seen: set[str] = set()
        for item in generator:
            if item["question"] in seen:
                continue
            seen.add(item["question"])
            row = {"question": item["question"], "answer": item["answer"], "task": task}
            if len(seen) <= size:
                training.append(row)
            elif len(seen) <= size + size_held_out:
                held_out.append(row)
            else:
                break
    for name, rows in (("items", training), ("held_out", held_out)):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{file}: {len(rows)} items")
