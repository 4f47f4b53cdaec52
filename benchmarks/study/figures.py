"""Collect the figures of a study: a confirmed run of `curate tag`, as one JSON document."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.study.scores import StudyItems, tried_scores
from curate.run.tables import REWARDS
from curate.run.validated import FinishedSeeds, finished_seeds, read_training_table
from curate.tags import Trainability
from recipes.confirm.embedding import semantic_similarity
from recipes.recipe import Recipe

WINDOW = 5
"""Steps that a point of a reward curve is averaged over: a step has few groups of each kind."""
GOAL = 0.9
"""The AUROC that the study is to reach."""
# What the summary of `curate confirm` says in its own words.
_FROM_SUMMARY = (
    *("hard_items", "auroc", "auroc_low", "auroc_high", "auroc_all", "auroc_all_low"),
    *("auroc_all_high", "auroc_pass_rate", "auroc_semantic", "average_precision"),
    *("average_precision_low", "average_precision_high", "expected_calibration_error"),
    *("expected_calibration_error_low", "expected_calibration_error_high", "too_few", "table1"),
    *("confusion", "tau_sweep", "agreement", "agreement_all", "tau", "recipe", "seeds"),
    *("items", "confirmed", "interventions", "payoff", "notes"),
)


def study_figures(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Everything that the page of a study tells, from the files of its folder.

    Args:
        folder: with `items.jsonl`, which names each item's `task`, and `run`.
        summary: of `curate confirm`.
    """
    run = folder / "run"
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    found = finished_seeds(run, summary["recipe"])
    items, rows = _read_items(folder)
    runs = found.runs.values()
    seconds = {
        "probe": sum(stage.get("seconds", 0.0) for stage in manifest["stages"].values()),
        **{
            step: sum(each.get("seconds", {}).get(step, 0.0) for each in runs)
            for step in ("training", "evaluation")
        },
    }
    settings = _settings(run, found)
    devices = sorted({str(each.get("device")) for each in runs})
    return {
        "model": manifest["model"]["name"],
        "device": ", ".join(devices),
        "seconds": round(sum(seconds.values()), 1),
        **{name: summary[name] for name in _FROM_SUMMARY},
        "goal": GOAL,
        "size": _size(devices, settings),
        "seconds_by_step": {step: round(value, 1) for step, value in seconds.items()},
        "rollouts": _rollouts(manifest, found),
        "training": settings,
        "probe": _probe_settings(run),
        "forecast": manifest["forecast"],
        "weight_hash": manifest["model"]["weight_hash"],
        "dataset_fingerprint": manifest["dataset"]["fingerprint"],
        "versions": manifest["versions"]
        | {name: version for each in runs for name, version in each.get("versions", {}).items()},
        "machine": manifest["machine"],
        "tasks": _tasks(items, rows),
        "tried": tried_scores(run, items, summary["tau"]),
        "reward_curves": _reward_curves(
            found, {row["item_id"]: row["confirmed_trainability"] for row in rows}
        ),
        "item_table": rows,
    }


def _read_items(folder: Path) -> tuple[StudyItems, list[dict[str, Any]]]:
    """The items as arrays, and as the rows that the page draws."""
    run = folder / "run"
    lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
    task_of_row = [json.loads(line)["task"] for line in lines]
    table = pq.read_table(run / "items.parquet", columns=["item_id", "row"])
    item_ids = table["item_id"].to_pylist()
    # The tables of a run have its items in one order.
    rates = pq.read_table(run / "pass_rates.parquet")
    similar = pq.read_table(run / "similarity.parquet")
    confirmed = pq.read_table(run / "validation" / "confirmed.parquet")
    tags = np.array(confirmed["confirmed_trainability"].to_pylist())
    is_unlearnable = tags == Trainability.UNLEARNABLE
    p = confirmed["p_unlearnable"].to_numpy()
    semantic = np.full(len(tags), np.nan)
    easy, hard = (np.flatnonzero((tags == Trainability.EASY) == which) for which in (True, False))
    embeddings = run / "validation" / "prompt_embeddings.npy"
    if embeddings.exists():
        semantic[hard] = semantic_similarity(np.load(embeddings, allow_pickle=False), hard, easy)
    items = StudyItems(
        item_ids,
        np.array([task_of_row[row - 1] for row in table["row"].to_pylist()]),
        rates["total_rollouts"].to_numpy(),
        rates["total_correct_rollouts"].to_numpy(),
        rates["pass_rate"].to_numpy(),
        rates["pass_rate_low"].to_numpy(),
        similar["gradient_similarity"].to_numpy(),
        p,
        semantic,
        confirmed["final_pass_rate"].to_numpy(),
        tags == Trainability.EASY,
        (is_unlearnable | (tags == Trainability.LEARNABLE)) & np.isfinite(p),
        is_unlearnable,
    )
    columns = {
        "pass_rate": items.pass_rate,
        "similarity": items.similarity,
        "similarity_low": similar["gradient_similarity_low"].to_numpy(),
        "similarity_high": similar["gradient_similarity_high"].to_numpy(),
        "p_unlearnable": p,
        "semantic_similarity": semantic,
    }
    rows = [
        {
            "item_id": item_id,
            "task": str(items.tasks[place]),
            "total_rollouts": int(items.total[place]),
            "total_correct_rollouts": int(items.correct[place]),
            **{name: _rounded(column[place]) for name, column in columns.items()},
            "trainability": confirmed["trainability"][place].as_py(),
            "confirmed_trainability": str(tags[place]),
            "final_pass_rates": confirmed["final_pass_rates"][place].as_py(),
        }
        for place, item_id in enumerate(item_ids)
    ]
    return items, rows


def _rounded(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _tasks(items: StudyItems, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each task its items by confirmed tag, and mean pass rates before and after."""
    found = {}
    for task in dict.fromkeys(items.tasks.tolist()):
        of_task = [row for row in rows if row["task"] == task]
        by_seed = [
            _mean(list(rates))
            for rates in zip(*(row["final_pass_rates"] for row in of_task), strict=True)
        ]
        counts = {
            str(tag): sum(row["confirmed_trainability"] == tag for row in of_task)
            for tag in Trainability
        }
        found[task] = {
            "items": len(of_task),
            "hard_items": len(of_task) - counts[Trainability.EASY],
            "learned_items": counts[Trainability.LEARNABLE],
            "initial_pass_rate": _mean(
                [
                    row["total_correct_rollouts"] / row["total_rollouts"]
                    for row in of_task
                    if row["total_rollouts"]
                ]
            ),
            "final_pass_rate": _mean(by_seed),
            "final_pass_rates": by_seed,
            "confirmed": counts,
        }
    return found


def _rollouts(manifest: dict[str, Any], found: FinishedSeeds) -> dict[str, int]:
    rewards = [read_training_table(path, REWARDS) for path in found.folders.values()]
    finals = [pq.read_table(path / "outcomes.parquet") for path in found.folders.values()]
    return {
        "probe": manifest["counts"]["rollouts_drawn"],
        "probe_correct": manifest["counts"]["rollouts_correct"],
        "training": sum(sum(table["rollouts"].to_pylist()) for table in rewards),
        "evaluation": sum(sum(table["final_rollouts"].to_pylist()) for table in finals),
    }


def _settings(run: Path, found: FinishedSeeds) -> dict[str, Any]:
    recipe = tomllib.loads(
        (run / "validation" / found.recipe / "recipe.toml").read_text(encoding="utf-8")
    )
    names = (
        *("max_steps", "prompts_per_step", "num_generations", "learning_rate", "lora_rank"),
        *("beta", "dynamic_sampling", "evaluation_rollouts"),
    )
    return {name: recipe[name] for name in names if name in recipe}


def _size(devices: list[str], settings: dict[str, Any]) -> str:
    """Say how large the training is, and that it is small where there was no GPU."""
    full = Recipe("the paper's")
    text = (
        f"{settings['max_steps']} steps of {settings['prompts_per_step']} prompts x "
        f"{settings['num_generations']} rollouts; the paper's: {full.max_steps} steps of "
        f"{full.prompts_per_step} x {full.num_generations}"
    )
    if any(device.startswith("CPU") for device in devices):
        text = f"a small run, on the CPU for want of a GPU: {text}"
    return text


def _probe_settings(run: Path) -> dict[str, Any]:
    config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    names = (
        *("instruction", "min_rollouts", "max_rollouts", "rollout_budget", "temperature"),
        *("max_tokens", "seed", "tau", "gradient_rollouts", "gradient_dim", "gradient_rank"),
    )
    return {name: config[name] for name in names if name in config}


def _reward_curves(found: FinishedSeeds, tag_of: dict[str, str]) -> dict[str, Any]:
    """For each confirmed tag the mean reward of its groups around each step.

    Returns:
        `window`, `steps`, and under `groups` for each tag with a training group `mean_reward` (the
        mean over the seeds), `by_seed`, and `groups`, how many there were in all; null where there
        was none around the step, for the mean in any seed.
    """
    tables = [read_training_table(path, REWARDS).to_pylist() for path in found.folders.values()]
    steps = sorted({row["step"] for table in tables for row in table})
    curves: dict[str, Any] = {}
    for tag in Trainability:
        by_seed = []
        count = 0
        for table in tables:
            rows = [
                row
                for row in table
                if tag_of.get(row["item_id"]) == tag and row["mean_reward"] is not None
            ]
            count += len(rows)
            by_seed.append([_around(rows, step) for step in steps])
        if count:
            mean = [
                None if None in points else _mean(list(points))
                for points in zip(*by_seed, strict=True)
            ]
            curves[str(tag)] = {"mean_reward": mean, "by_seed": by_seed, "groups": count}
    return {"window": WINDOW, "steps": steps, "groups": curves}


def _around(rows: list[dict[str, Any]], step: int) -> float | None:
    near = [row for row in rows if abs(row["step"] - step) <= WINDOW // 2]
    rollouts = sum(row["rollouts"] for row in near)
    if not rollouts:
        return None
    return round(sum(row["mean_reward"] * row["rollouts"] for row in near) / rollouts, 6)
