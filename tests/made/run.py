"""Finished run folders made out of a few numbers an item, without a model: the truth is known.

They are written by the formats, and not by the code under test.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from curate.config import TagConfig
from curate.run.tables import HELD_OUT, OUTCOMES, ROLLOUTS
from probes.statistics.pass_rates import pass_rate_interval

FORECAST: dict[str, Any] = {
    "source": "gradients",
    "horizon": 1.0,
    "constants": {"drift": 0.3, "gain": 1.5, "spread": 1.0},
    "pass_probability": {"items": 7, "items_with_gold": 0, "gold_used": False},
}


@dataclass
class Items:
    """What a run says of its items: all have the order of `ids`, and None or nan is unknown."""

    ids: Sequence[str]
    correct: ArrayLike
    tags: Sequence[str] | None = None
    """None: the run has no table of tags."""
    rollouts: int = 32
    similarity: ArrayLike | None = None
    similarity_error: ArrayLike = 0.05
    lift: ArrayLike | None = None
    lift_error: ArrayLike = 0.25
    p_unlearnable: ArrayLike | None = None
    forecast: ArrayLike | None = None
    """Expected pass rate after training."""
    prompts: Sequence[str] | None = None
    gradients: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None
    """Of the rollouts, and the position in `ids` of each."""

    def tables(self) -> dict[str, dict[str, Any]]:
        """The columns of every table but `item_id`, by its name; intervals are of 2 errors."""
        correct, total = np.array(self.correct), np.full(len(self.ids), self.rollouts)
        similarity, lift = self._floats(self.similarity), self._floats(self.lift)
        known = np.where(np.isnan(similarity), np.nan, 1.0)
        lift_error = np.where(np.isnan(lift), np.nan, self.lift_error)
        forecast = self._floats(self.forecast)
        tables = {
            "items": {
                "row": np.arange(len(self.ids)) + 1,
                "prompt": self.prompts or [f"prompt of {each}" for each in self.ids],
            },
            "pass_rates": {
                "total_rollouts": total,
                "total_correct_rollouts": correct,
                "pass_rate": correct / total,
                **_interval("pass_rate", *pass_rate_interval(correct, total)),
                "unjudged_rollouts": np.zeros_like(total),
                "truncated_rollouts": np.zeros_like(total),
            },
            "similarity": {
                "gradient_similarity": similarity,
                **_around("gradient_similarity", similarity, self.similarity_error),
                "standard_error": self.similarity_error * known,
                "degrees_of_freedom": 100 * known,
                "gradient_reliability": 0.5 * known,
                "rollouts_used": np.minimum(correct, 16),
            },
            "lift": {
                "lift": lift,
                **_around("lift", lift, lift_error),
                "standard_error": lift_error,
                "from_others": lift / 2,
            },
        }
        if self.tags is not None:
            tables["tags"] = {
                "trainability": self.tags,
                "p_unlearnable": self._floats(self.p_unlearnable),
                "forecast_pass_rate": forecast,
                **_interval("forecast", forecast / 2, (1 + forecast) / 2),
                "tag_reason": [f"made up to be {tag}" for tag in self.tags],
            }
        return tables

    def _floats(self, values: ArrayLike | None) -> NDArray[np.float64]:
        return np.full(len(self.ids), np.nan) if values is None else np.array(values, dtype=float)


def _interval(name: str, low: Any, high: Any) -> dict[str, Any]:
    return {f"{name}_low": low, f"{name}_high": high}


def _around(name: str, values: Any, error: ArrayLike) -> dict[str, Any]:
    return _interval(name, values - 2 * np.array(error), values + 2 * np.array(error))


def made_run(
    run: Path,
    items: Items,
    *,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
    rollouts: Sequence[Sequence[Mapping[str, Any]]] = (),
    settings: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    lift_source: str = "gradients",
) -> Path:
    """Write a run folder as `curate tag` leaves it.

    Args:
        run: the folder.
        items: of the run.
        tables: columns in the place of those made of the items, or beside them; also whole tables.
        rollouts: the rows of each file of rollouts; what they do not say is null.
        settings: of `curate tag`.
        manifest: entries in the place of the usual ones.
        lift_source: gradients, pilot or checkpoint.

    Returns:
        the folder.
    """
    of_items = items.tables()
    for name in {**of_items, **(tables or {})}:
        columns = {**of_items.get(name, {}), **(tables or {}).get(name, {})}
        write_table(run / f"{name}.parquet", {"item_id": list(items.ids), **columns})
    for number, rows in enumerate(rollouts):
        file = run / f"rollouts/{number:05d}.parquet"
        file.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], ROLLOUTS.schema), file)
    if items.gradients:
        features, item = items.gradients
        index = {"item_id": [items.ids[n] for n in item], "weight": np.ones(len(item), np.int32)}
        write_table(run / "gradients/rollouts.parquet", index)
        np.save(run / "gradients/rollouts.npy", features)
    facts = {"source": lift_source, "group_size": 8, "policy_loss": "grpo", "unit": 0.25}
    (run / "lift.json").write_text(json.dumps(facts))
    counts = {"min_rollouts": items.rollouts, "max_rollouts": items.rollouts}
    write_config(run, **counts | dict(settings or {}))
    usual = {
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"curate": "0.1.0"},
        "dataset": {"name": "made-up", "fingerprint": "d" * 64},
        "model": {"name": "made-up-model", "weight_hash": "a" * 64, "revision": None},
        "seeds": {"sampling": 0, "adapter": 42},
        "forecast": FORECAST,
        "predictor": {"sha256": None},
        "stages": {"tags": {"state": "done", "seconds": 1.0}},
        "counts": {"items": len(items.ids), "expected_label_changes": 0.0},
    }
    (run / "manifest.json").write_text(json.dumps({**usual, **(manifest or {})}))
    return run


def write_config(run: Path, **settings: Any) -> None:
    """Write a run's settings."""
    run.mkdir(parents=True, exist_ok=True)
    config = TagConfig().replace(**{"dataset": "items.jsonl", "model": "made-up", **settings})
    (run / "config.toml").write_text(config.to_toml())


def write_table(file: Path, columns: Mapping[str, Any]) -> None:
    """Write columns; nan is null."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), file)


def planted_gradients(
    rng: np.random.Generator, alignment: Sequence[float], draws: Sequence[int], dim: int = 256
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Gradients of rollouts, (rollouts, dim), and the item of each, (rollouts,).

    The expected gradients of items i and j have the cosine √(alignment_i alignment_j); the noise of
    a rollout is twice as long as they are.
    """
    common = np.zeros(dim)
    common[0] = 1
    rows, item = [], []
    for each, (share, k) in enumerate(zip(alignment, draws, strict=True)):
        own = rng.normal(size=dim)
        own[0] = 0
        mean = np.sqrt(share) * common + np.sqrt(1 - share) * own / np.linalg.norm(own)
        rows.append(mean + 2 * rng.normal(size=(k, dim)) / np.sqrt(dim))
        item += [each] * k
    return np.concatenate(rows).astype(np.float32), np.array(item, dtype=np.int64)


# --- What later commands leave in it --------------------------------------------------------------


def write_probe_of_two(run: Path, *, tau: float = 0.1) -> Path:
    """Write what is asked of the probe when its trainings are told: two items of 64 rollouts."""
    return made_run(run, Items(["a", "b"], [0, 0], rollouts=64), settings={"tau": tau})


def write_quality(run: Path, scores: Mapping[str, float | None], judged: int = 4) -> Path:
    """Write `judging/quality.parquet`: each item's score, None for one without a judged rollout."""
    file = run / "judging" / "quality.parquet"
    counts = [0 if score is None else judged for score in scores.values()]
    values = pa.array(list(scores.values()), pa.float64())
    columns = {"reasoning_quality": values, "reasoning_quality_n": counts}
    write_table(file, {"item_id": pa.array(list(scores), pa.string()), **columns})
    return file


def write_training(
    run: Path,
    recipe: str,
    seed: int | str,
    *,
    outcomes: Sequence[Mapping[str, Any]] = (),
    held_out: Sequence[Mapping[str, Any]] = (),
    state: str = "done",
    hypothesis: str = "it helps",
) -> Path:
    """Write one training; each row of outcomes needs item_id and final_pass_rate."""
    folder = run / "validation" / recipe / str(seed)
    folder.mkdir(parents=True)
    (folder.parent / "recipe.toml").write_text(f'hypothesis = "{hypothesis}"\n')
    (folder / "run.json").write_text(json.dumps({"state": state, "recipe": recipe, "seed": seed}))
    usual: dict[str, Any] = {
        **{"initial_pass_rate": 0.05, "initial_rollouts": 64, "initial_correct": 3},
        **{"final_rollouts": 32, "final_correct": 0},
        **{"positive_in_training": True, "ever_positive": True, "visits": 4},
    }
    if outcomes:
        table = pa.Table.from_pylist([usual | row for row in outcomes], OUTCOMES.schema)
        pq.write_table(table, folder / "outcomes.parquet")
    if held_out:
        table = pa.Table.from_pylist([dict(row) for row in held_out], HELD_OUT.schema)
        pq.write_table(table, folder / "held_out.parquet")
    return folder
