"""Runs with made-up items and rollouts for a report to show, and their dataset beside them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.tags import Trainability
from tests.made.run import Items, made_run, write_table
from tests.tag_runs import write_jsonl

TAGS = [str(tag) for tag in Trainability]
ROLLOUTS = 32
DIM = 16
# By tag: lift, p_unlearnable and the expected pass rate.
LIFTS = np.array([1.5, 2.0, -0.5, np.nan, 0.4])
P_UNLEARNABLE = np.array([np.nan, 0.02, 0.97, 0.95, 0.5])
FORECASTS = np.array([0.8, 0.4, 0.02, 0.01, 0.1])


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
    has_gradient = correct > 1
    similarity = np.where(has_gradient, np.array([0.3, 0.2, -0.2, 0, 0])[tag], np.nan)
    lift = LIFTS[tag]
    questions = [f"What is {each} + {each % 9}?" for each in number]
    questions[: len(prompts)] = prompts
    made = Items(
        ids,
        correct,
        [TAGS[each] for each in tag],
        similarity=similarity + 0.01 * (number % 11),
        lift=lift,
        p_unlearnable=P_UNLEARNABLE[tag],
        forecast=FORECASTS[tag],
        prompts=[f"<|user|>\n{each}\nAnswer briefly.\n<|assistant|>\n" for each in questions],
        gradients=_gradients(tag, np.flatnonzero(has_gradient)[:400]),
    )
    easy = [ids[each] for each in np.flatnonzero(tag == 0)[:3]]
    answers = [str(each + each % 9) for each in number]
    rates = zip(correct / ROLLOUTS, correct, strict=True)
    reasons = [f"pass rate {rate:.3g} ({c} of {ROLLOUTS} rollouts)" for rate, c in rates]
    nobody = pa.array([[]] * items, pa.list_(pa.string()))
    teaching = {
        "teaching": 4 * lift,
        "teachers": _where(np.isfinite(lift), easy),
        "teachers_by": _where(np.isfinite(lift), [300.0, 200.0, 100.0][: len(easy)]),
        "helps": _where(np.isfinite(lift), [ids[1 % items]]),
        "helps_by": _where(np.isfinite(lift), [250.0]),
        "hurts": nobody,
        "hurts_by": nobody.cast(pa.list_(pa.float64())),
    }
    dataset, tagged = (run.parent / f"{run.name}{end}" for end in (".jsonl", ".tagged.parquet"))
    names = {"dataset": "made-up", "model": "made-up-model"} | (names or {})
    made_run(
        run,
        made,
        tables={
            "items": {
                "answer": answers,
                "prompt_token_ids": [[1] * (len(each) // 4) for each in made.prompts or ()],
            },
            "rows": {"row": number + 1, "reason": pa.nulls(items, pa.string())},
            "pass_rates": {"truncated_rollouts": np.where(tag == 3, 4, 0)},
            "similarity": {"nearest": _where(has_gradient, easy)},
            "tags": {"tag_reason": reasons},
            "teaching": teaching,
            "rounds/000": {"rollouts": np.full(items, ROLLOUTS, np.int64)},
        },
        rollouts=_rollouts(ids[:rollouts_of], correct, completions),
        settings={"dataset": str(dataset), "out": str(tagged)},
        manifest={
            "dataset": {"name": names["dataset"], "fingerprint": "d" * 64},
            "model": {"name": names["model"], "weight_hash": "a" * 64, "revision": None},
        },
    )
    task_of = [tasks[each % len(tasks)] for each in number]
    rows = zip(questions, number, task_of, strict=True)
    write_jsonl(dataset, [{"question": q, "answer": str(n), "task": task} for q, n, task in rows])
    write_table(tagged, {"item_id": ids, "task": task_of})
    return run


def with_lengths(run: Path) -> Path:
    """Tell of each gradient how long its rollout was and that it was correct, as a probe does."""
    file = run / "gradients/rollouts.parquet"
    table = pq.read_table(file)
    made = {"completion_tokens": pa.int32(), "reward": pa.int8()}
    table = table.drop_columns([name for name in made if name in table.column_names])
    for name, kind in made.items():
        values = [5 if name == "completion_tokens" else 1] * len(table)
        table = table.append_column(name, pa.array(values, kind))
    pq.write_table(table, file)
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


def _where(condition: Any, values: list[Any]) -> list[list[Any]]:
    """The values for every item of which the condition holds."""
    return [values if holds else [] for holds in condition]


def _rollouts(ids: list[str], correct: Any, completions: Sequence[str]) -> list[list[Any]]:
    """Two shards; an item's correct rollouts come first."""
    rows: list[dict[str, Any]] = []
    for each, name in enumerate(ids):
        for sample in range(ROLLOUTS):
            is_correct = sample < correct[each]
            text = f"Completion {sample} of item {each}."
            if each == 0 and sample < len(completions):
                text, is_correct = completions[sample], sample % 2 == 0
            rows.append(
                {
                    "item_id": name, "sample": sample, "completion": text,
                    "completion_token_ids": [1], "finish_reason": "stop",
                    "reward": int(is_correct), "verdict": "correct" if is_correct else "wrong",
                    "answer_found": str(sample),
                }
            )  # fmt: skip
    return [rows[: len(rows) // 2], rows[len(rows) // 2 :]]


def _gradients(tag: Any, items: Any) -> tuple[Any, Any]:
    """Two draws an item around a direction of its tag."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(len(TAGS), DIM))
    which = np.repeat(items, 2)
    features = directions[tag[which]] + 0.5 * random.normal(size=(len(which), DIM))
    return features.astype(np.float32), which
