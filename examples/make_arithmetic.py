"""Write examples/arithmetic.jsonl: arithmetic of mixed difficulty for a very small model.

Run: .venv/bin/python examples/make_arithmetic.py (needs the extra `demo`: reasoning-gym).
"""

import json
from pathlib import Path

import reasoning_gym

SEED = 7
# (task, how many, settings of its reasoning-gym generator)
TASKS = [
    ("products", 16, {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}),
    ("chain_sum", 16, {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    ("fraction_simplification", 12, {"min_value": 1, "max_value": 20, "styles": ("plain",)}),
    ("gcd", 10, {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 40}),
    ("letter_counting", 10, {"min_words": 3, "max_words": 6}),
]


def main() -> None:
    """Generate every task's items and write them as one JSONL file."""
    rows = []
    for task, size, settings in TASKS:
        generator = reasoning_gym.create_dataset(task, size=size, seed=SEED, **settings)
        rows += [
            {"question": item["question"], "answer": item["answer"], "task": task}
            for item in generator
        ]
    path = Path(__file__).parent / "arithmetic.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows)} items")


if __name__ == "__main__":
    main()
