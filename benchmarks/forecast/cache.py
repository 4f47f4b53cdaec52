"""What `benchmarks/forecast/data.py` keeps of a world, so that it is computed once.

In a folder of its own: the rewards of all rollouts, the first rollouts of either outcome of each
item, as many as `curate tag` differentiates, with their gradients, and the gold probabilities.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.run.rollouts import rollout_shards
from curate.run.tables import GOLD, read_parquet
from probes.forecast.pass_probability import GoldEvidence
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.gradients.tap import Adapter
from probes.models.files import resolve_model
from probes.models.load import Policy, load_policy, load_tokenizer
from probes.stages.gold import read_gold, score_golds
from probes.verifiers.pool import VerifierPool

Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]

KEPT = 64
"""Correct rollouts of an item whose completion is known, as many as a pilot scores."""
_ARRAYS = ("item", "sample", "correct", "tokens", "completion")
_UNJUDGED = -1


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
        return Draws(*(getattr(self, name)[chosen] for name in _ARRAYS))


@dataclass(frozen=True)
class Cache:
    """What is kept of a world."""

    reward: NDArray[np.int8]
    """(items, rollouts): 1, 0, or -1 where it could not be judged."""
    features: NDArray[np.float32]
    """(completions, dim): a completion's number is its row; those without a gradient come after."""
    draws: Draws
    gold: GoldEvidence


def read_cache(folder: Path, run: Path, config: TagConfig) -> Cache:
    """Read what is kept in a folder, or compute it.

    Args:
        folder: of the cache.
        run: a finished run.
        config: as a newcomer would probe; its model and verifier are the run's.
    """
    digest = hashlib.sha256()
    for file in rollout_shards(run):
        digest.update(file.read_bytes())
    # A world that was made anew has other rollouts.
    folder = folder / digest.hexdigest()[:16]
    file = folder / "rollouts.npz"
    if not file.exists() or not (folder / GOLD.file).exists():
        folder.mkdir(parents=True, exist_ok=True)
        policy = load_policy(resolve_model(config.model))
        _write_rollouts(file, run, config, policy)
        _write_gold(folder, run, config, policy)
    with np.load(file, allow_pickle=False) as kept:
        columns = [kept[name] for name in _ARRAYS]
        return Cache(kept["reward"], kept["features"], Draws(*columns), read_gold(folder))


def _write_gold(folder: Path, run: Path, config: TagConfig, policy: Policy) -> None:
    """Score the golds; the stage writes beside the rollouts that it reads."""
    rollouts = folder / "rollouts"
    if not rollouts.exists():
        rollouts.symlink_to((run / "rollouts").resolve())
    items = read_parquet(run / "items.parquet").combine_chunks()
    row_of = {item_id: row for row, item_id in enumerate(items["item_id"].to_pylist())}
    score_golds(
        folder,
        items,
        row_of,
        load_tokenizer(resolve_model(config.model)),
        policy,
        VerifierPool(config.verifier, workers=1),
        most_prefixes=config.gold_prefixes,
        temperature=config.temperature,
    )


def _write_rollouts(file: Path, run: Path, config: TagConfig, policy: Policy) -> None:
    """Read the rollouts, and differentiate those that a probe of any size may need."""
    items = read_parquet(run / "items.parquet", ["item_id", "prompt_token_ids"])
    ids = items["item_id"].combine_chunks()
    found: list[tuple[Counts, Counts, NDArray[np.int8], pa.Array]] = []
    for shard_file in rollout_shards(run):
        table = read_parquet(shard_file, ["item_id", "sample", "reward", "completion_token_ids"])
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
    probe = GradientProbe(policy, Adapter.from_config(config))
    features = np.zeros((len(keys), config.gradient_dim), dtype=np.float32)
    rollouts = [TokenizedRollout(prompts[row], list(text)) for row, text in keys]
    for positions, batch in probe.gradients(rollouts):
        features[positions] = batch
    part = file.with_name("part.npz")
    np.savez(
        part,
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
    part.replace(file)
