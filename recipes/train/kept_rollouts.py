"""Rollouts that the probe kept, in the place of those that the first step of GRPO would sample.

At its first step a policy is still the one that was probed, so the probe's rollouts are on-policy
there, and a pilot of a few steps need not sample that step again. Which rollouts make up a group
depends on the seed, the item and the epoch alone: an item's rollouts are put into a random order,
and each epoch takes the next ones. So no rollout is in two groups, every process of a training
decides the same, and a run taken up again trains on what it had trained on. Only the rollouts that
every item was given are used: that an item got further ones depends on what the first ones gave.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.run.rollouts import rollout_shards
from curate.run.tables import read_parquet
from probes.engines.base import Rollout

_COLUMNS = ["item_id", "sample", "completion_token_ids", "finish_reason"]


class KeptRollouts:
    """The rollouts on disk of a run, handed out in groups.

    Args:
        run: the run folder.
        first: rollouts of an item that are used, from its first on: those that every item has.
        items: of an epoch of the training: a place in the stream of prompts tells its epoch.
        seed: of the random order.
        max_tokens: of a completion in training; a longer one is cut there, as the sampler would
            have cut it.
    """

    def __init__(self, run: Path, items: int, *, first: int, seed: int, max_tokens: int) -> None:
        self.run = run
        self.first = first
        self.items = items
        self.seed = seed
        self.max_tokens = max_tokens

    def take(self, places: Mapping[int, str], size: int) -> dict[int, list[Rollout]]:
        """Give the groups of some places in the stream of prompts.

        Args:
            places: the item_id at each place.
            size: rollouts of a group.

        Returns:
            by place, `size` rollouts, whose `sample` is their number in the probe; a place whose
            item has too few is left out.

        Raises:
            RunError: a file of rollouts is missing or damaged.
        """
        wanted = pa.array(sorted(set(places.values())), pa.string())
        rows: dict[str, list[Rollout]] = {}
        for file in rollout_shards(self.run):
            for rollout in self._read(file, wanted):
                rows.setdefault(rollout.item_id, []).append(rollout)
        found = {}
        for place, item_id in places.items():
            mine = sorted(rows.get(item_id, []), key=lambda rollout: rollout.sample)
            start = place // self.items * size
            chosen = self._order(item_id, len(mine))[start : start + size]
            if len(chosen) == size:
                found[place] = [mine[i] for i in chosen.tolist()]
        return found

    def _read(self, file: Path, wanted: pa.Array) -> Iterator[Rollout]:
        """The rollouts of some items in a file, of those that are used."""

        def is_wanted(table: pa.Table) -> pa.ChunkedArray:
            is_used = pc.less(table["sample"], self.first)
            return pc.and_(pc.is_in(table["item_id"], value_set=wanted), is_used)

        # Most files hold none, and the tokens are nearly all of a file.
        if not pc.any(is_wanted(read_parquet(file, ["item_id", "sample"]))).as_py():
            return
        table = read_parquet(file, _COLUMNS)
        columns = table.filter(is_wanted(table)).to_pydict().values()
        for item_id, sample, ids, reason in zip(*columns, strict=True):
            reason = "length" if len(ids) > self.max_tokens else reason
            yield Rollout(item_id, sample, ids[: self.max_tokens], reason)

    def _order(self, item_id: str, count: int) -> NDArray[np.int64]:
        key = hashlib.sha256(f"{self.seed}\0{item_id}".encode()).digest()[:8]
        return np.random.default_rng(int.from_bytes(key, "little")).permutation(count)
