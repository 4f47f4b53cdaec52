"""Runs whose items were trained on, with effects of a known size: what `calibrate` reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.made.run import Items, made_run

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


def write_confirmed_run(
    run: Path,
    world: World,
    *,
    weight_hash: str = "a" * 64,
    settings: Mapping[str, Any] | None = None,
    lift_source: str = "gradients",
) -> Path:
    """Write a confirmed run of the hard items, and of easy ones that set the scale."""

    def with_easy(values: NDArray[Any], easy: float) -> NDArray[Any]:
        return np.concatenate([values, np.full(EASY, easy)])

    item_ids = [*world.item_ids, *(f"easy-{n}" for n in range(EASY))]
    correct, tokens = with_easy(world.correct, 50), with_easy(world.tokens, 30)
    items = Items(
        item_ids,
        correct,
        rollouts=ROLLOUTS,
        similarity=with_easy(world.similarity, EASY_SIMILARITY),
        similarity_error=with_easy(world.standard_error, 0.01),
        lift=with_easy(world.lift, 1.0),
        lift_error=with_easy(world.lift_error, 0.1),
    )
    rate = correct / ROLLOUTS
    kinds = [*np.where(world.is_unlearnable, "unlearnable", "learnable").tolist(), *["easy"] * EASY]
    outcomes = dict(zip(item_ids, kinds, strict=True)) | world.outcomes
    right = [
        {"item_id": each, "completion_token_ids": [1] * int(length), "reward": 1}
        for each, count, length in zip(item_ids, correct, tokens, strict=True)
        for _ in range(count)
    ]
    wrong = {"item_id": item_ids[0], "completion_token_ids": [1] * 10, "reward": 0}
    return made_run(
        run,
        items,
        tables={
            "pass_rates": {"mean_completion_tokens": rate * tokens + (1 - rate) * 10},
            "validation/confirmed": {
                "final_pass_rates": [FINAL[outcome] for outcome in outcomes.values()],
                "confirmed_trainability": list(outcomes.values()),
            },
        },
        rollouts=[right, [wrong]],
        settings=settings,
        manifest={"model": {"name": "made-up-model", "weight_hash": weight_hash}},
        lift_source=lift_source,
    )
