"""Runs of several models on one small dataset, of which everything is known."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curate.datasets.layouts import Question
from tests.made.run import Items, made_run
from tests.tag_runs import read_jsonl, write_jsonl

ROLLOUTS = 32
# Of each model how many of 32 rollouts are right for each question.
SMALL = (30, 2, 1, 0, 0, 0)
LARGE = (32, 31, 20, 3, 0, 0)


def a_dataset(file: Path, questions: int = 6, level: str = "grade") -> Path:
    """A row a question, then the first again, then a row without an answer."""
    rows: list[dict[str, Any]] = [
        {"question": f"what is {n} + 1 ?", "answer": str(n + 1), "extra": {level: n % 2}}
        for n in range(questions)
    ]
    rejected = {"question": "what is no answer", "answer": "", "extra": None}
    return write_jsonl(file, [*rows, rows[0], rejected])


def item_of(number: int) -> str:
    """The id of a question."""
    return Question((("user", f"what is {number} + 1 ?"),), str(number + 1)).item_id


def tag_of(correct: int) -> str:
    """What a model makes of an item."""
    if correct >= ROLLOUTS / 2:
        return "easy"
    return "learnable" if correct else "no_positive"


def run_on(
    dataset: Path,
    run: Path,
    correct: Sequence[int],
    model: str,
    *,
    numbers: Sequence[int] = (),
    tables: Mapping[str, Mapping[str, Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    """A finished run of a model on a dataset of `a_dataset`.

    Args:
        dataset: its file.
        run: the folder.
        correct: rollouts of 32, of each item.
        model: its path or id.
        numbers: of the questions; all in their order if none.
        tables, settings, manifest: as in `made_run`.
    """
    ids = [item_of(number) for number in numbers or range(len(correct))]
    lift = [count / 10 if count else None for count in correct]
    rows, reasons = [], []
    for row in read_jsonl(dataset):
        item_id = Question((("user", row["question"]),), row["answer"]).item_id
        rows.append(item_id if item_id in ids else None)
        not_probed = "not probed: beyond --limit" if row["answer"] else "no answer"
        reasons.append(None if item_id in ids else not_probed)
    facts = {
        "dataset": {
            "fingerprint": hashlib.sha256(dataset.read_bytes()).hexdigest(),
            "id": str(dataset),
            "name": dataset.stem,
            "format": "jsonl",
            "prompt_field": "question",
            "answer_field": "answer",
        },
        "model": {
            **{"name": model, "id": model, "revision": None, "dtype": "float32"},
            "weight_hash": hashlib.sha256(model.encode()).hexdigest(),
        },
        "counts": {
            **{"rows": len(rows), "rows_probed": len(rows) - 1, "rows_rejected": 1},
            **{"items": len(ids), "rollouts_drawn": ROLLOUTS * len(ids)},
            **{"rollouts_judged": ROLLOUTS * len(ids), "rollouts_correct": sum(correct)},
            "rollouts_truncated": 0,
        },
        "versions": {"curate": "0.1.0"},
    }
    return made_run(
        run,
        Items(
            ids, correct, [tag_of(each) for each in correct],
            rollouts=ROLLOUTS, lift=lift, forecast=[0.5] * len(ids),
        ),
        tables={
            **dict(tables or {}),
            "items": {"answer": [str(number + 1) for number in numbers or range(len(correct))]},
            "rows": {
                "item_id": rows,
                "row": list(range(1, len(rows) + 1)),
                "reason": reasons,
            },
        },
        settings={
            **{"dataset": str(dataset), "model": model, "out": str(run / "no.jsonl")},
            **{"run_dir": str(run), "k": (1,), **(settings or {})},
        },
        manifest={**facts, **(manifest or {})},
    )  # fmt: skip
