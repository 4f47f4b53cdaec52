"""A grown world as a probe of any number of rollouts would have found it.

The worlds of `benchmarks/forecast/grown_worlds.py` have many rollouts of every item, numbered in
the order in which they were drawn. So the first n of an item are what a probe of n would have
drawn: its counts, and the gradients of its first correct and wrong rollouts
(`benchmarks/forecast/cache.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.forecast.cache import Draws, read_cache
from benchmarks.forecast.grown_worlds import TAU, TRAINING_SEEDS
from curate.config import TagConfig
from curate.run.features import RolloutFeatures
from curate.run.rollouts import Outcomes
from curate.run.tables import read_parquet
from probes.forecast.model import Constants
from probes.forecast.pass_probability import GoldEvidence, PassProbability, fit_pass_probability
from probes.stages.forecast import is_decided, run_forecast
from probes.stages.lift import GRADIENTS, ItemLift, measured_lift
from probes.statistics.plan import Plan, next_round

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]

ROUNDS = "rounds"
BUDGETS = (16, 32, 64, 128, 256, ROUNDS)
LOWEST_RATE = 0.001
"""Items that are right more seldom than this over all rollouts are not judged."""


@dataclass(frozen=True)
class World:
    """What is known of a world after probe and training; arrays are (items, ...)."""

    name: str
    run: Path
    config: TagConfig
    """The settings of a newcomer's run; the world's own took a fixed number of rollouts."""
    item_ids: tuple[str, ...]
    skills: NDArray[np.str_]
    reward: NDArray[np.int8]
    """(items, rollouts): 1, 0, or -1 where it could not be judged."""
    final: Floats
    """(seeds, items): pass rate after training."""
    features: NDArray[np.float32]
    """(completions, dim): gradients of those that a probe may need."""
    draws: Draws
    """The first rollouts of either outcome of each item."""
    gold: GoldEvidence
    """From the first rollouts of each item, no more than the smallest budget has."""

    @property
    def rollouts(self) -> int:
        """Of every item."""
        return int(self.reward.shape[1])

    @property
    def pass_rate(self) -> Floats:
        """(items,): over all rollouts."""
        judged = np.maximum((self.reward >= 0).sum(axis=1), 1)
        return np.asarray((self.reward == 1).sum(axis=1) / judged)

    @property
    def is_learned(self) -> Flags:
        """(seeds, items)."""
        return np.asarray(self.final >= self.config.tau)

    @property
    def learned_by_all(self) -> Flags:
        """(items,): learned by every seed."""
        return np.asarray(self.is_learned.all(axis=0))

    @property
    def is_hard(self) -> Flags:
        """(items,): hard over all rollouts, but right now and then."""
        rate = self.pass_rate
        return np.asarray((rate < self.config.tau) & (rate >= LOWEST_RATE))

    @property
    def is_judged(self) -> Flags:
        """(items,): hard, and all seeds say the same of it."""
        return np.asarray(self.is_hard & (self.learned_by_all | ~self.is_learned.any(axis=0)))


@dataclass(frozen=True)
class Probe:
    """A world as the first rollouts of each item show it."""

    world: World
    drawn: Counts
    """(items,): rollouts that it took."""
    found: Outcomes
    features: RolloutFeatures

    @property
    def pass_rate(self) -> Floats:
        """(items,): (c + 1/2) / (n + 1)."""
        return np.asarray((self.found.correct + 0.5) / (self.found.judged + 1))

    @cached_property
    def probability(self) -> PassProbability:
        """Posterior of the pass rates from counts and gold, as the product has it."""
        return fit_pass_probability(self.found.judged, self.found.correct, self.world.gold)

    @cached_property
    def lift(self) -> ItemLift:
        """By gradients, as the product measures it."""
        return measured_lift(self.features, self.found, self.world.config)[0]


def read_world(folder: Path) -> World:
    """Read a finished world; takes the gradients the first time.

    Raises:
        FileNotFoundError: the world is not finished.
        UsageError, RunError: a file of its run is damaged.
    """
    if not (folder / "DONE").exists():
        raise FileNotFoundError(
            f"{folder} is not finished: make it with `python -m benchmarks.forecast.grown_worlds`"
        )
    run = folder / "run"
    config = TagConfig(model=str(folder / "model"), verifier="exact", tau=TAU)
    items = read_parquet(run / "items.parquet", ["item_id", "row"])
    item_ids = tuple(items["item_id"].to_pylist())
    lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
    skills = np.array([json.loads(lines[row - 1])["skill"] for row in items["row"].to_pylist()])
    final = []
    for seed in TRAINING_SEEDS:
        table = pq.read_table(run / f"validation/world/{seed}/outcomes.parquet")
        places = pc.index_in(items["item_id"], value_set=table["item_id"].combine_chunks())
        final.append(table["final_pass_rate"].take(places).to_numpy())
    kept = read_cache(folder / "benchmark", run, config)
    return World(
        name=folder.name,
        run=run,
        config=config,
        item_ids=item_ids,
        skills=skills,
        reward=kept.reward,
        final=np.array(final, dtype=np.float64),
        features=kept.features,
        draws=kept.draws,
        gold=kept.gold,
    )


def first_rollouts(world: World, drawn: int | Counts) -> Probe:
    """The probe that draws so many rollouts, of every item or of each, (items,)."""
    drawn = np.broadcast_to(np.asarray(drawn, dtype=np.int64), (len(world.item_ids),))
    inside = np.arange(world.rollouts) < drawn[:, None]
    judged = ((world.reward >= 0) & inside).sum(axis=1)
    correct = ((world.reward == 1) & inside).sum(axis=1)
    draws, config = world.draws, world.config
    rank = np.zeros(len(draws.item), dtype=np.int64)
    for is_correct in (True, False):
        same = draws.correct == is_correct
        starts = np.searchsorted(draws.item[same], draws.item[same])
        rank[same] = np.arange(same.sum()) - starts
    most = np.where(draws.correct, config.gradient_rollouts, config.gradient_wrong_rollouts)
    chosen = draws.part(
        (draws.sample < drawn[draws.item]) & (correct[draws.item] > 0) & (rank < most)
    )
    distinct, first, weights = np.unique(chosen.completion, return_index=True, return_counts=True)
    order = np.lexsort((distinct, chosen.item[first], ~chosen.correct[first]))
    at = first[order]
    return Probe(
        world=world,
        drawn=drawn,
        found=Outcomes(drawn, judged, correct),
        features=RolloutFeatures(
            features=world.features[distinct[order]],
            item=chosen.item[at],
            weights=weights[order],
            reward=chosen.correct[at].astype(np.int64),
            completion_tokens=chosen.tokens[at],
        ),
    )


def probe_at(world: World, budget: int | str, constants: Constants) -> Probe:
    """The probe of a budget: so many rollouts of every item, or the product's rounds.

    Args:
        world: the world.
        budget: one of `BUDGETS`.
        constants: of the forecast that ends the rounds.
    """
    if budget != ROUNDS:
        return first_rollouts(world, int(budget))
    config = world.config
    plan = Plan(
        min_rollouts=config.min_rollouts,
        max_rollouts=min(config.max_rollouts, world.rollouts),
        tau=config.tau,
    )
    ties = np.array([int(item_id, 16) for item_id in world.item_ids], dtype=np.uint64)
    drawn = np.full(len(world.item_ids), plan.min_rollouts)
    while True:
        probe = first_rollouts(world, drawn)
        found = probe.found
        forecast = run_forecast(
            found,
            probe.lift,
            GRADIENTS,
            constants,
            probe.probability,
            tau=config.tau,
            horizon=config.horizon,
        )
        decided = is_decided(forecast, constants)
        extra = next_round(plan, found.judged, found.correct, decided, drawn=drawn, ties=ties)
        if not extra.any():
            return probe
        drawn = drawn + extra
