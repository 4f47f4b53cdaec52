"""Run folders with made-up items and rollouts for a report to show, as `curate tag` leaves them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.config import TagConfig, config_to_toml
from curate.run.tables import ROLLOUTS as ROLLOUT_TABLES
from curate.tags import Trainability

TAGS = [str(tag) for tag in Trainability]
ROLLOUTS = 32
DIM = 16
# By tag: lift, p_unlearnable and the expected pass rate.
LIFTS = np.array([1.5, 2.0, -0.5, np.nan, 0.4])
P_UNLEARNABLE = np.array([np.nan, 0.02, 0.97, 0.95, 0.5])
FORECASTS = np.array([0.8, 0.4, 0.02, 0.01, 0.1])
LIFT_UNIT = 0.25
FORECAST: dict[str, Any] = {
    "source": "gradients",
    "horizon": 1.0,
    "constants": {"drift": 0.3, "gain": 1.5, "spread": 1.0},
    "pass_probability": {"items": 60, "items_with_gold": 0, "gold_used": False},
}


def item_id(number: int) -> str:
    """A hash as ids are, so that their order says nothing."""
    return f"{(number + 1) * 0x9E3779B97F4A7C15 % 2**64:016x}"


def write_report_run(
    run: Path,
    items: int = 60,
    *,
    prompts: Sequence[str] = (),
    completions: Sequence[str] = (),
    names: dict[str, str] | None = None,
    tasks: Sequence[str] = ("sums", "products", "words"),
    rollouts_of: int | None = None,
) -> Path:
    """Write a finished run, and beside it its dataset with a column `task`.

    Args:
        run: the folder.
        items: how many; tags take turns.
        prompts: of the first items, in place of made-up ones.
        completions: of the first item, in place of made-up ones; the even ones are correct.
        names: of the dataset and the model.
        tasks: take turns.
        rollouts_of: items with a row for each rollout; all if None.
    """
    number = np.arange(items)
    ids = [item_id(each) for each in range(items)]
    tag = number % len(TAGS)
    # easy, learnable, unlearnable, no_positive, undetermined
    correct = np.array([16, 3, 2, 0, 1])[tag] + np.where(tag == 0, number % 7, 0)
    rate = correct / ROLLOUTS
    has_gradient = correct > 1
    similarity = np.where(has_gradient, np.array([0.3, 0.2, -0.2, 0, 0])[tag], np.nan)
    similarity = similarity + 0.01 * (number % 11)
    lift = LIFTS[tag]
    has_lift = np.isfinite(lift)
    questions = [f"What is {each} + {each % 9}?" for each in number]
    questions[: len(prompts)] = prompts
    rendered = [f"<|user|>\n{question}\nAnswer briefly.\n<|assistant|>\n" for question in questions]
    run.mkdir(parents=True)
    (run / "rollouts").mkdir()
    (run / "rounds").mkdir()
    (run / "gradients").mkdir()
    easy = [ids[each] for each in np.flatnonzero(tag == 0)[:3]]
    tables: dict[str, dict[str, Any]] = {
        "items": {"item_id": ids, "row": number + 1, "prompt": rendered,
                  "prompt_token_ids": [[1] * (len(each) // 4) for each in rendered],
                  "answer": [str(each + each % 9) for each in number]},
        "rows": {"row": number + 1, "item_id": ids, "reason": pa.nulls(items, pa.string())},
        "pass_rates": {
            "item_id": ids, "total_rollouts": np.full(items, ROLLOUTS),
            "total_correct_rollouts": correct, "pass_rate": rate,
            "pass_rate_low": rate * 0.5, "pass_rate_high": np.minimum(1, rate * 1.5 + 0.1),
            "unjudged_rollouts": np.zeros(items, np.int64),
            "truncated_rollouts": np.where(tag == 3, 4, 0),
        },
        "similarity": {
            "item_id": ids, "gradient_similarity": similarity,
            "gradient_similarity_low": similarity - 0.1,
            "gradient_similarity_high": similarity + 0.1,
            "standard_error": np.where(has_gradient, 0.05, np.nan),
            "degrees_of_freedom": np.where(has_gradient, 9.0, np.nan),
            "gradient_reliability": np.where(has_gradient, 0.5, np.nan),
            "rollouts_used": correct, "nearest": [easy if each else [] for each in has_gradient],
        },
        "tags": {
            "item_id": ids, "trainability": [TAGS[each] for each in tag],
            "p_unlearnable": P_UNLEARNABLE[tag],
            "forecast_pass_rate": FORECASTS[tag], "forecast_low": FORECASTS[tag] / 2,
            "forecast_high": (1 + FORECASTS[tag]) / 2,
            "tag_reason": [f"pass rate {r:.3g} ({c} of {ROLLOUTS} rollouts)"
                           for r, c in zip(rate, correct, strict=True)],
        },
        "lift": {
            "item_id": ids, "lift": lift, "lift_low": lift - 0.5, "lift_high": lift + 0.5,
            "standard_error": lift * 0 + 0.25, "from_others": lift / 2,
        },
        "teaching": {
            "item_id": ids, "teaching": 4 * lift,
            "teachers": [easy if each else [] for each in has_lift],
            "teachers_by": [[300.0, 200.0, 100.0][:len(easy)] if each else [] for each in has_lift],
            "helps": [[ids[1 % items]] if each else [] for each in has_lift],
            "helps_by": [[250.0] if each else [] for each in has_lift],
            "hurts": pa.array([[]] * items, pa.list_(pa.string())),
            "hurts_by": pa.array([[]] * items, pa.list_(pa.float64())),
        },
        "rounds/000": {"item_id": ids, "rollouts": np.full(items, ROLLOUTS, np.int64)},
    }  # fmt: skip
    for name, columns in tables.items():
        arrays = {key: pa.array(values, from_pandas=True) for key, values in columns.items()}
        pq.write_table(pa.table(arrays), run / f"{name}.parquet")
    facts = {"source": "gradients", "group_size": 8, "policy_loss": "grpo", "unit": LIFT_UNIT}
    (run / "lift.json").write_text(json.dumps(facts))
    _write_rollouts(run, ids, correct, completions, items if rollouts_of is None else rollouts_of)
    _write_gradients(run, ids, tag, np.flatnonzero(has_gradient)[:400])
    dataset = run.parent / f"{run.name}.jsonl"
    dataset.write_text(
        "".join(
            json.dumps({"question": q, "answer": str(n), "task": tasks[n % len(tasks)]}) + "\n"
            for n, q in enumerate(questions)
        )
    )
    tagged = run.parent / f"{run.name}.tagged.parquet"
    columns = {"item_id": ids, "task": [tasks[n % len(tasks)] for n in number]}
    pq.write_table(pa.table(columns), tagged)
    config = TagConfig(dataset=str(dataset), model="made-up", out=str(tagged), max_rollouts=32)
    (run / "config.toml").write_text(config_to_toml(config))
    names = {"dataset": "made-up", "model": "made-up-model"} | (names or {})
    manifest = {
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"curate": "0.1.0"},
        "dataset": {"name": names["dataset"], "fingerprint": "d" * 64},
        "model": {"name": names["model"], "weight_hash": "a" * 64, "revision": None},
        "forecast": FORECAST,
        "stages": {"tags": {"state": "done", "seconds": 1.0}},
        "counts": {"expected_label_changes": 0.0},
    }
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


def as_of_an_earlier_version(run: Path) -> Path:
    """Take out of a run folder what there was not before there were forecasts."""
    for name in ("lift.parquet", "lift.json", "teaching.parquet"):
        (run / name).unlink()
    tags = pq.read_table(run / "tags.parquet")
    later = [name for name in tags.column_names if name.startswith("forecast_")]
    pq.write_table(tags.drop_columns(later), run / "tags.parquet")
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["forecast"]
    manifest["similarity_threshold"] = {"value": 0.05, "source": "a third of the median"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text('similarity_threshold = "auto"\n' + config)
    return run


def _write_rollouts(
    run: Path, ids: list[str], correct: Any, completions: Sequence[str], items: int
) -> None:
    """Two shards; an item's correct rollouts come first."""
    rows: list[dict[str, Any]] = []
    for each in range(items):
        for sample in range(ROLLOUTS):
            is_correct = sample < correct[each]
            text = f"Completion {sample} of item {each}."
            if each == 0 and sample < len(completions):
                text, is_correct = completions[sample], sample % 2 == 0
            rows.append(
                {
                    "item_id": ids[each], "sample": sample, "completion": text,
                    "completion_token_ids": [1], "finish_reason": "stop",
                    "reward": int(is_correct), "verdict": "correct" if is_correct else "wrong",
                    "answer_found": str(sample),
                }
            )  # fmt: skip
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        table = pa.Table.from_pylist(part, ROLLOUT_TABLES.schema)
        pq.write_table(table, run / f"rollouts/{number:05d}.parquet")


def _write_gradients(run: Path, ids: list[str], tag: Any, items: Any) -> None:
    """Two draws an item around a direction of its tag."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(len(TAGS), DIM))
    which = np.repeat(items, 2)
    features = directions[tag[which]] + 0.5 * random.normal(size=(len(which), DIM))
    np.save(run / "gradients/rollouts.npy", features.astype(np.float32))
    table = {"item_id": [ids[each] for each in which], "weight": np.ones(len(which), np.int32)}
    pq.write_table(pa.table(table), run / "gradients/rollouts.parquet")
