"""Run folders with made-up evidence and outcomes, as `tag` and `confirm` leave them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate.config import TagConfig, config_to_toml
from curate.run.tables import ROLLOUTS as ROLLOUT_TABLES

ROLLOUTS = 100
EASY, EASY_SIMILARITY = 20, 0.3
THRESHOLD = EASY_SIMILARITY / 3
FINAL = {
    "easy": [0.9, 0.8, 1.0],
    "learnable": [0.3, 0.5, 0.1],
    "unlearnable": [0.0, 0.05, 0.09],
    "undetermined": [0.3, 0.05, 0.2],
    "no_positive": [0.0, 0.0, 0.0],
}
"""Final pass rates in the seeds, by confirmed tag."""


@dataclass
class World:
    """Hard items: arrays of shape (items,). nan similarities are unknown."""

    is_unlearnable: NDArray[np.bool_]
    similarity: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    correct: NDArray[np.int64]
    tokens: NDArray[np.int64]
    """Of every correct rollout of the item; a wrong one has 10."""
    lift: NDArray[np.float64]
    lift_error: NDArray[np.float64]
    prefix: str = "hard"
    outcomes: dict[str, str] = field(default_factory=dict)
    """Other words than is_unlearnable says, by item_id."""

    @property
    def item_ids(self) -> list[str]:
        return [f"{self.prefix}-{n}" for n in range(len(self.correct))]


def make_world(
    items: int = 120,
    *,
    seed: int = 0,
    similarity_effect: float = 1.0,
    length_effect: float = 0.0,
    similarity_shift: float = 0.0,
    singles: int = 10,
    prefix: str = "hard",
) -> World:
    """Items of which half are unlearnable; effects are in standard deviations between the classes.

    Similarity and lift, which is a function of it, are lower, and correct rollouts are longer, for
    unlearnable items. `singles` of the items have one correct rollout, no similarity and no lift.
    """
    random = np.random.default_rng(seed)
    is_unlearnable = np.arange(items) % 2 == 0
    noise = random.normal(size=(2, items))
    sign = np.where(is_unlearnable, 0.5, -0.5)
    correct = random.integers(2, 9, size=items)
    similarity = THRESHOLD + 0.05 * (noise[0] - similarity_effect * sign + similarity_shift)
    alone = random.permutation(items)[:singles]
    correct[alone], similarity[alone] = 1, np.nan
    return World(
        is_unlearnable,
        similarity,
        np.where(np.isnan(similarity), np.nan, 0.08 / np.sqrt(correct)),
        correct,
        np.round(np.exp(3.5 + 0.3 * (noise[1] + length_effect * sign))).astype(np.int64),
        # 0.5 takes 5 of 100 to about τ, by the built-in constants.
        0.5 + (similarity - THRESHOLD) / 0.05,
        np.where(np.isnan(similarity), np.nan, 0.3),
        prefix,
    )


def write_run(
    run: Path,
    world: World,
    *,
    weight_hash: str = "a" * 64,
    settings: Mapping[str, Any] = {},
    lift_source: str = "gradients",
) -> Path:
    """Write a run folder of the hard items, and of easy ones that set the scale."""
    hard, items = len(world.correct), len(world.correct) + EASY
    item_ids = [*world.item_ids, *(f"easy-{n}" for n in range(EASY))]
    correct = np.concatenate([world.correct, np.full(EASY, 50)])
    similarity = np.concatenate([world.similarity, np.full(EASY, EASY_SIMILARITY)])
    error = np.concatenate([world.standard_error, np.full(EASY, 0.01)])
    tokens = np.concatenate([world.tokens, np.full(EASY, 30)])
    lift = np.concatenate([world.lift, np.full(EASY, 1.0)])
    lift_error = np.concatenate([world.lift_error, np.full(EASY, 0.1)])
    unknown = np.isnan(similarity)
    (run / "validation").mkdir(parents=True)
    (run / "rollouts").mkdir()
    rate = correct / ROLLOUTS
    tables = {
        "items": {"item_id": item_ids},
        "pass_rates": {
            "item_id": item_ids,
            "total_rollouts": np.full(items, ROLLOUTS),
            "total_correct_rollouts": correct,
            "pass_rate": rate,
            "pass_rate_low": rate / 2,
            "pass_rate_high": rate * 2,
            "unjudged_rollouts": np.zeros(items, np.int64),
            "mean_completion_tokens": rate * tokens + (1 - rate) * 10,
        },
        "similarity": {
            "item_id": item_ids,
            "gradient_similarity": similarity,
            "gradient_similarity_low": similarity - 2 * error,
            "gradient_similarity_high": similarity + 2 * error,
            "standard_error": error,
            "degrees_of_freedom": np.where(unknown, np.nan, 30.0),
            "gradient_reliability": np.where(unknown, np.nan, 0.4),
            "rollouts_used": np.minimum(correct, 16),
        },
        "lift": {
            "item_id": item_ids,
            "lift": lift,
            "lift_low": lift - 2 * lift_error,
            "lift_high": lift + 2 * lift_error,
            "standard_error": lift_error,
            "from_others": lift / 2,
        },
    }
    for name, columns in tables.items():
        arrays = {n: pa.array(values, from_pandas=True) for n, values in columns.items()}
        pq.write_table(pa.table(arrays), run / f"{name}.parquet")
    which = np.repeat(np.arange(items), correct)
    rows = {
        "item_id": [item_ids[n] for n in which],
        "completion_token_ids": [[1] * int(tokens[n]) for n in which],
        "reward": np.ones(len(which), np.int8),
    }
    wrong = {"item_id": [item_ids[0]], "completion_token_ids": [[1] * 10], "reward": [0]}
    for number, part in enumerate((rows, wrong)):
        table = {n: part.get(n, [None] * len(part["item_id"])) for n in ROLLOUT_TABLES.schema.names}
        pq.write_table(
            pa.table(table, ROLLOUT_TABLES.schema), run / f"rollouts/{number:05d}.parquet"
        )
    outcomes = dict(
        zip(
            item_ids,
            [*np.where(world.is_unlearnable, "unlearnable", "learnable"), *["easy"] * EASY],
            strict=True,
        )
    )
    outcomes |= world.outcomes
    confirmed = {
        "item_id": list(outcomes),
        "final_pass_rates": [FINAL[outcome] for outcome in outcomes.values()],
        "confirmed_trainability": list(outcomes.values()),
    }
    pq.write_table(pa.table(confirmed), run / "validation/confirmed.parquet")
    (run / "lift.json").write_text(json.dumps({"source": lift_source, "unit": 1.0}))
    (run / "config.toml").write_text(config_to_toml(TagConfig().replace(**settings)))
    manifest = {
        "dataset": {"name": "made-up", "fingerprint": "d" * 64},
        "model": {"name": "made-up-model", "weight_hash": weight_hash},
        "seeds": {"sampling": 0, "adapter": 42},
        "predictor": {"sha256": None},
        "stages": {"tags": {"state": "done", "seconds": 1.0}},
        "counts": {"items": hard + EASY},
    }
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run
