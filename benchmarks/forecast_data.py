"""A grown world as a probe of any number of rollouts would have found it.

The worlds of `benchmarks/grown_worlds.py` have many rollouts of every item, numbered in the order
in which they were drawn. So the first n of an item are what a probe of n would have drawn: its
counts, and the gradients of its first correct and wrong rollouts (as many as `curate tag` takes).
Those gradients are taken once and kept in the world's folder, `benchmark.npz`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.grown_worlds import TAU, TRAINING_SEEDS
from curate.config import TagConfig
from curate.run_folder import read_parquet
from probes.counting import Outcomes
from probes.forecast import Constants
from probes.forecast_stage import is_decided, run_forecast
from probes.gradient_stage import RolloutFeatures
from probes.gradients import Adapter, GradientProbe, TokenizedRollout
from probes.lift_stage import measured_lift
from probes.models import load_policy, resolve_model
from probes.pass_probability import fit_pass_probability
from probes.plan import Plan, next_round
from probes.sampling import rollout_shards

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]

ROUNDS = "rounds"
BUDGETS = (16, 32, 64, 128, 256, ROUNDS)
LOWEST_RATE = 0.001
"""Items that are right more seldom than this over all rollouts are not judged."""
KEPT = 64
"""Correct rollouts of an item whose completion is known, as many as a pilot scores."""
_CACHE = "benchmark.npz"
_UNJUDGED = -1
_ARRAYS = ("reward", "item", "sample", "correct", "tokens", "completion")


@dataclass(frozen=True)
class Draws:
    """Some rollouts of a world, in the order of item and sample: arrays (draws,)."""

    item: Counts
    sample: Counts
    correct: Flags
    tokens: Counts
    """Length of the completion."""
    completion: Counts
    """Number of the distinct completion: equal numbers are equal completions of an item."""

    def part(self, chosen: Flags) -> Draws:
        """Some of them."""
        return Draws(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


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


def read_world(folder: Path) -> World:
    """Read a finished world; takes the gradients the first time.

    Raises:
        FileNotFoundError: the world is not finished.
        UsageError, RunError: a file of its run is damaged.
    """
    if not (folder / "DONE").exists():
        raise FileNotFoundError(
            f"{folder} is not finished: make it with `python -m benchmarks.grown_worlds`"
        )
    run = folder / "run"
    config = TagConfig(model=str(folder / "model"), tau=TAU)
    items = read_parquet(run / "items.parquet", ["item_id", "row", "prompt_token_ids"])
    item_ids = tuple(items["item_id"].to_pylist())
    lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
    skills = np.array([json.loads(lines[row - 1])["skill"] for row in items["row"].to_pylist()])
    final = []
    for seed in TRAINING_SEEDS:
        table = pq.read_table(run / f"validation/world/{seed}/outcomes.parquet")
        places = pc.index_in(items["item_id"], value_set=table["item_id"].combine_chunks())
        final.append(table["final_pass_rate"].take(places).to_numpy())
    cache, made_from = folder / _CACHE, _fingerprint(run)
    if not _is_of(cache, made_from):
        _write_cache(cache, made_from, run, config, items)
    with np.load(cache, allow_pickle=False) as kept:
        reward, *columns = (kept[name] for name in _ARRAYS)
        features = kept["features"]
    return World(
        name=folder.name,
        run=run,
        config=config,
        item_ids=item_ids,
        skills=skills,
        reward=reward,
        final=np.array(final, dtype=np.float64),
        features=features,
        draws=Draws(*columns),
    )


def _fingerprint(run: Path) -> str:
    """Of the rollouts: a world that was made anew has others."""
    digest = hashlib.sha256()
    for file in rollout_shards(run):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _is_of(cache: Path, made_from: str) -> bool:
    if not cache.exists():
        return False
    with np.load(cache, allow_pickle=False) as kept:
        return "made_from" in kept and str(kept["made_from"]) == made_from


def _write_cache(
    cache: Path, made_from: str, run: Path, config: TagConfig, items: pa.Table
) -> None:
    """Read the rollouts, and differentiate those that a probe of any size may need."""
    ids = items["item_id"].combine_chunks()
    found: list[tuple[Counts, Counts, NDArray[np.int8], pa.Array]] = []
    for file in rollout_shards(run):
        table = read_parquet(file, ["item_id", "sample", "reward", "completion_token_ids"])
        rows = pc.index_in(table["item_id"], value_set=ids).to_numpy().astype(np.int64)
        reward = pc.fill_null(table["reward"], _UNJUDGED).to_numpy().astype(np.int8)
        tokens = table["completion_token_ids"].combine_chunks()
        found.append((rows, table["sample"].to_numpy().astype(np.int64), reward, tokens))
    rows, samples, rewards = (np.concatenate([part[i] for part in found]) for i in range(3))
    reward = np.full((len(ids), samples.max() + 1), _UNJUDGED, dtype=np.int8)
    reward[rows, samples] = rewards
    correct_rank, wrong_rank = ((reward == value).cumsum(axis=1) - 1 for value in (1, 0))
    rank = np.where(reward == 1, correct_rank, wrong_rank)[rows, samples]
    most_wrong = config.gradient_wrong_rollouts
    kept = ((rewards == 1) & (rank < KEPT)) | ((rewards == 0) & (rank < most_wrong))
    is_used = (rewards == 0) | (rank < config.gradient_rollouts)
    order = np.flatnonzero(kept)
    order = order[np.lexsort((samples[order], rows[order]))]
    starts = np.cumsum([0, *(len(part[0]) for part in found)])
    texts: list[tuple[int, ...]] = []
    for line in order.tolist():
        shard = int(np.searchsorted(starts, line, side="right")) - 1
        texts.append(tuple(found[shard][3][line - int(starts[shard])].as_py()))
    # Completions with a gradient come first, so that their numbers are rows of the features.
    numbers: dict[tuple[int, tuple[int, ...]], int] = {}
    for wanted in (True, False):
        for line, text in zip(order.tolist(), texts, strict=True):
            if is_used[line] == wanted:
                numbers.setdefault((int(rows[line]), text), len(numbers))
        if wanted:
            keys = list(numbers)
    prompts = items["prompt_token_ids"].to_pylist()
    policy = load_policy(resolve_model(config.model))
    probe = GradientProbe(policy, Adapter.from_config(config))
    features = np.zeros((len(keys), config.gradient_dim), dtype=np.float32)
    rollouts = [TokenizedRollout(prompts[row], list(text)) for row, text in keys]
    for positions, batch in probe.gradients(rollouts):
        features[positions] = batch
    part = cache.with_name("part-" + cache.name)
    np.savez(
        part,
        made_from=np.array(made_from),
        features=features,
        reward=reward,
        item=rows[order],
        sample=samples[order],
        correct=rewards[order] == 1,
        tokens=np.array([len(text) for text in texts]),
        completion=np.array(
            [
                numbers[int(rows[line]), text]
                for line, text in zip(order.tolist(), texts, strict=True)
            ]
        ),
    )
    part.replace(cache)


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
        lift, _, _ = measured_lift(probe.features, found, config)
        probability = fit_pass_probability(found.judged, found.correct)
        forecast = run_forecast(
            found, lift, constants, probability, tau=config.tau, horizon=config.horizon
        )
        decided = is_decided(forecast, constants)
        extra = next_round(plan, found.judged, found.correct, decided, drawn=drawn, ties=ties)
        if not extra.any():
            return probe
        drawn = drawn + extra
