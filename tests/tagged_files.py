"""Tagged datasets with made-up tags, and run folders that say they wrote them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.datasets.layouts import Question
from tests.made.run import write_config, write_table
from tests.tag_runs import read_jsonl, write_jsonl

TAGS = ("easy", "learnable", "unlearnable", "no_positive", "undetermined")


def tagged_row(number: int, tag: str | None, **values: Any) -> dict[str, Any]:
    """A row as `curate tag` leaves it; without a tag it is a reject."""
    question, answer = f"what is {number} + 1 ?", str(number + 1)
    item_id = Question((("user", question),), answer).item_id
    return {
        "question": question,
        "answer": answer,
        "item_id": item_id if tag else None,
        "trainability": tag,
        "p_unlearnable": None,
        "forecast_pass_rate": None,
        "pass_rate": None,
        "lift": None,
        "teaching": None,
        "gradient_similarity": None,
        "gradient_reliability": None,
        "tag_reason": "made up" if tag else "rejected: empty prompt",
        "confirmed_trainability": None,
        **values,
    }


def some_rows() -> list[dict[str, Any]]:
    """Four of each tag with falling evidence, and one reject in the middle."""
    rates = {"easy": 0.9, "learnable": 0.08, "unlearnable": 0.06, "no_positive": 0.0}
    rows = []
    for number in range(20):
        tag = TAGS[number * 3 % 5]
        rows.append(
            tagged_row(
                number,
                tag,
                pass_rate=rates.get(tag, 0.05) * (1 - number / 100),
                p_unlearnable=number / 20 if tag in ("learnable", "unlearnable") else None,
                forecast_pass_rate=0.9 - number / 25,
                lift=None if tag == "no_positive" else 2 - number / 5,
                teaching=None if tag == "no_positive" else (number - 8) / 10,
                gradient_similarity=None if tag == "no_positive" else 0.3 - number / 100,
                gradient_reliability=None if tag == "no_positive" else number / 20,
                source="odd" if number % 2 else "even",
            )
        )
    rows.insert(7, tagged_row(99, None, source="odd"))
    return rows


def write_tagged_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines or Parquet."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    return write_jsonl(path, rows)


def write_run_of(tagged: Path, run: Path, **settings: Any) -> Path:
    """A run folder that wrote this file, as far as filtering it needs one."""
    write_config(run, **{"out": str(tagged), "dataset": "org/sums", **settings})
    manifest: Mapping[str, Any] = {"stages": {"write": {"state": "done"}}, "counts": {}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    is_parquet = tagged.suffix == ".parquet"
    rows = pq.read_table(tagged).to_pylist() if is_parquet else read_jsonl(tagged)
    items = [row for row in rows if row["item_id"]]
    ids = [row["item_id"] for row in items]
    write_table(run / "rows.parquet", {"item_id": [row["item_id"] for row in rows]})
    tags = {"item_id": ids, "trainability": [row["trainability"] for row in items]}
    write_table(run / "tags.parquet", tags)
    correct = [row.get("total_correct_rollouts") for row in items]
    counts = {"item_id": ids, "total_correct_rollouts": correct}
    write_table(run / "pass_rates.parquet", counts)
    return run
