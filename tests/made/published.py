"""A run with a tagged file, of settings and facts in plenty: what `card` and `push` read."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.tags import tag_schema
from tests.made.run import FORECAST as USUAL_FORECAST
from tests.made.run import Items, made_run, write_table
from tests.tag_runs import write_jsonl

# Of each tag how many items, as tuples of: correct rollouts, similarity, p_unlearnable, forecast,
# lift.
ITEMS: dict[str, list[tuple[int, float | None, float | None, float, float | None]]] = {
    "easy": [(8, 0.3, None, 0.6, 1.0), (16, 0.2, None, 0.8, 1.5), (32, 0.4, None, 0.9, 2.0)],
    "learnable": [(2, 0.25, 0.01, 0.4, 1.2), (3, 0.35, 0.02, 0.5, 1.4)],
    "no_positive": [(0, None, 0.95, 0.01, None)],
    "undetermined": [(1, None, 0.3, 0.2, 0.5)],
}
FORECAST = USUAL_FORECAST | {"horizon": 2.0}


def write_published_run(
    folder: Path, *, settings: dict[str, Any] | None = None, manifest: dict[str, Any] | None = None
) -> Path:
    """Write `run/` and `tagged.jsonl` into a folder; returns the run.

    Of 9 rows, one repeats an easy item, and the last was rejected.
    """
    run, out = folder / "run", folder / "tagged.jsonl"
    evidence = [(tag, n, *each) for tag, found in ITEMS.items() for n, each in enumerate(found)]
    tags, numbers, correct, similarity, p, forecast, lift = zip(*evidence, strict=True)
    ids = [f"{tag}-{n}" for tag, n in zip(tags, numbers, strict=True)]
    items = Items(
        ids, correct, tags,
        similarity=similarity, p_unlearnable=p, forecast=forecast, lift=lift,
    )  # fmt: skip
    facts: dict[str, Any] = {
        "versions": {"curate": "0.1.0", "torch": "2.13.0"},
        "dataset": {
            "fingerprint": "d" * 64,
            "id": "/home/somebody/train.jsonl",
            "name": "train",
            "format": "jsonl",
            "prompt_field": "question",
            "answer_field": "answer",
        },
        "model": {
            "weight_hash": "a" * 64,
            "dtype": "float32",
            "id": "/home/somebody/models/tiny",
            "name": "tiny",
            "revision": None,
        },
        "seeds": {"sampling": 7, "adapter": 42},
        "device": "CPU",
        "engine": {"name": "transformers"},
        "forecast": FORECAST,
        "counts": {
            **{"rows": 9, "rows_probed": 8, "rows_rejected": 1, "items": 7},
            **{"rollouts_drawn": 224, "rollouts_judged": 220},
            **{"rollouts_correct": 62, "rollouts_truncated": 10},
        },
    }
    of_rows = [*range(len(ids)), 0, None]
    made_run(
        run,
        items,
        rollouts=[[{"item_id": each, "completion": "x"} for each in ids]],
        settings={
            **{"dataset": facts["dataset"]["id"], "model": facts["model"]["id"]},
            **{"out": str(out), "run_dir": str(run), "k": (1,), "instruction": "Think."},
            **(settings or {}),
        },
        manifest=facts | (manifest or {}),
    )
    write_table(
        run / "rows.parquet",
        {
            "row": range(1, len(of_rows) + 1),
            "item_id": [None if n is None else ids[n] for n in of_rows],
            "reason": ["no answer" if n is None else None for n in of_rows],
        },
    )
    _write_tagged(out, items, of_rows)
    return run


def _write_tagged(out: Path, items: Items, of_rows: list[int | None]) -> None:
    """Write the tagged file: all columns of all tables, and the rows' own."""
    columns: dict[str, Any] = {"item_id": items.ids}
    for table in items.tables().values():
        columns |= table
    columns |= {"pass_at_1": columns["pass_rate"], "teaching": 4 * columns["lift"]}
    names = [name for name in tag_schema([1]).names if name in columns]
    values = {name: pa.array(columns[name], from_pandas=True).to_pylist() for name in names}
    nothing = dict.fromkeys(tag_schema([1]).names)
    rejected = {"tag_reason": "rejected: no answer"}
    write_jsonl(
        out,
        [
            {"question": f"row {row}?", "answer": str(row), "level": row if row % 2 else None}
            | nothing
            | (rejected if n is None else {name: values[name][n] for name in names})
            for row, n in enumerate(of_rows)
        ],
    )
