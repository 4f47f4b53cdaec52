"""Finished run folders with a tagged file, made up without a model: what `card` and `push` read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.config import TagConfig, config_to_toml
from curate.tags import tag_schema
from tests.tag_runs import write_jsonl

ROLLOUTS = 32
# Of each tag how many items, as tuples of: correct rollouts, similarity, p_unlearnable, forecast,
# lift.
ITEMS: dict[str, list[tuple[int, float | None, float | None, float, float | None]]] = {
    "easy": [(8, 0.3, None, 0.6, 1.0), (16, 0.2, None, 0.8, 1.5), (32, 0.4, None, 0.9, 2.0)],
    "learnable": [(2, 0.25, 0.01, 0.4, 1.2), (3, 0.35, 0.02, 0.5, 1.4)],
    "no_positive": [(0, None, 0.95, 0.01, None)],
    "undetermined": [(1, None, 0.3, 0.2, 0.5)],
}
FORECAST: dict[str, Any] = {
    "source": "gradients",
    "horizon": 2.0,
    "constants": {"drift": 0.3, "gain": 1.5, "spread": 1.0},
    "pass_probability": {"items": 7, "items_with_gold": 0, "gold_used": False},
}


def write_run(
    folder: Path, *, settings: dict[str, Any] | None = None, manifest: dict[str, Any] | None = None
) -> Path:
    """Write `run/` and `tagged.jsonl` into a folder; returns the run.

    Of 9 rows, one repeats an easy item, and the last was rejected.
    """
    run = folder / "run"
    run.mkdir(parents=True)
    items = [
        {
            "item_id": f"{tag}-{number}",
            "trainability": tag,
            "p_unlearnable": p,
            "forecast_pass_rate": forecast,
            "forecast_low": forecast / 2,
            "forecast_high": (1 + forecast) / 2,
            "total_rollouts": ROLLOUTS,
            "total_correct_rollouts": correct,
            "pass_rate": correct / ROLLOUTS,
            "pass_rate_low": correct / ROLLOUTS / 2,
            "pass_rate_high": (correct + 3) / (ROLLOUTS + 3),
            "pass_at_1": correct / ROLLOUTS,
            "lift": lift,
            "lift_low": lift and lift - 0.5,
            "lift_high": lift and lift + 0.5,
            "teaching": lift and 4 * lift,
            "gradient_similarity": similarity,
            "gradient_similarity_low": similarity and similarity - 0.1,
            "gradient_similarity_high": similarity and similarity + 0.1,
            "gradient_reliability": similarity and 0.5,
            "tag_reason": f"made up to be {tag}",
            "confirmed_trainability": None,
        }
        for tag, evidence in ITEMS.items()
        for number, (correct, similarity, p, forecast, lift) in enumerate(evidence)
    ]
    schema = tag_schema([1])
    _write(run / "items.parquet", items, schema, "item_id")
    _write(
        run / "tags.parquet",
        items,
        schema,
        *("item_id", "trainability", "p_unlearnable"),
        *("forecast_pass_rate", "forecast_low", "forecast_high"),
    )
    _write(run / "lift.parquet", items, schema, "item_id", "lift", "lift_low", "lift_high")
    _write(run / "pass_rates.parquet", items, schema, "item_id", "pass_rate")
    _write(
        run / "similarity.parquet",
        items,
        schema,
        *("item_id", "gradient_similarity", "gradient_reliability"),
    )
    of_rows = [*items, items[0], None]
    item_ids = [row and row["item_id"] for row in of_rows]
    rows = {"row": range(1, len(item_ids) + 1), "item_id": item_ids}
    reasons = [None if item_id else "no answer" for item_id in item_ids]
    pq.write_table(pa.table(rows | {"reason": reasons}), run / "rows.parquet")
    nothing = dict.fromkeys(schema.names)
    rejected = nothing | {"tag_reason": "rejected: no answer"}
    write_jsonl(
        folder / "tagged.jsonl",
        [
            {"question": f"row {n}?", "answer": str(n), "level": n if n % 2 else None}
            | {name: (row or rejected)[name] for name in schema.names}
            for n, row in enumerate(of_rows)
        ],
    )
    (run / "rollouts").mkdir()
    rollouts = pa.table(
        {"item_id": [item["item_id"] for item in items], "completion": ["x"] * len(items)}
    )
    pq.write_table(rollouts, run / "rollouts/00000.parquet")
    config = TagConfig(
        dataset="/home/somebody/train.jsonl",
        model="/home/somebody/models/tiny",
        out=str(folder / "tagged.jsonl"),
        run_dir=str(run),
        max_rollouts=ROLLOUTS,
        k=(1,),
        instruction="Think.",
    ).replace(**settings or {})
    (run / "config.toml").write_text(config_to_toml(config))
    counts = {
        "rows": len(of_rows),
        "rows_probed": len(of_rows) - 1,
        "rows_rejected": 1,
        "items": len(items),
        "rollouts_drawn": 224,
        "rollouts_judged": 220,
        "rollouts_correct": 62,
        "rollouts_truncated": 10,
    }
    facts = {
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"curate": "0.1.0", "torch": "2.13.0"},
        "dataset": {
            "fingerprint": "d" * 64,
            "id": config.dataset,
            "name": "train",
            "format": "jsonl",
            "prompt_field": "question",
            "answer_field": "answer",
        },
        "model": {
            "weight_hash": "a" * 64,
            "dtype": "float32",
            "id": config.model,
            "name": "tiny",
            "revision": None,
        },
        "seeds": {"sampling": 7, "adapter": 42},
        "device": "CPU",
        "engine": {"name": "transformers"},
        "forecast": FORECAST,
        "predictor": {"sha256": None},
        "stages": {"tags": {"state": "done", "seconds": 1.0}},
        "counts": counts,
    }
    (run / "manifest.json").write_text(json.dumps(facts | (manifest or {})))
    return run


def _write(path: Path, items: list[dict[str, Any]], schema: pa.Schema, *names: str) -> None:
    fields = pa.schema([schema.field(name) for name in names])
    rows = [{name: item[name] for name in names} for item in items]
    pq.write_table(pa.Table.from_pylist(rows, fields), path)
