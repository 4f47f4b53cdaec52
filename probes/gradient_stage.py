"""The gradient stage: features of correct rollouts, a file for each shard of rollouts, then one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib.format import open_memmap

from curate.errors import RunError
from curate.files import atomic_writer
from curate.progress import Progress
from curate.run_folder import RunFolder, read_parquet, write_parquet
from probes.gradients import GradientProbe, TokenizedRollout
from probes.sampling import rollout_shards

_FOLDER = "gradients"


@dataclass(frozen=True)
class _Draw:
    """A correct completion of an item and how often it was drawn."""

    item_id: str
    sample: int
    weight: int
    completion_token_ids: tuple[int, ...]


def differentiate(
    run: RunFolder, prompts: Mapping[str, Sequence[int]], probe: GradientProbe, most: int
) -> dict[str, Any]:
    """Differentiate the first `most` correct rollouts of every item; return the stage's counts.

    A completion that was drawn several times is differentiated once and counts as often as it was
    drawn. Writes

    - `gradients/rollouts.npy` (draws, dim) float32 and `gradients/rollouts.parquet`
      (item_id, sample, weight, tokens), a row a distinct completion;
    - `gradients/features.npy` (items, dim) float32 and `gradients/index.parquet` (item_id,
      feature_row, rollouts_used, mean_squared_norm), a row an item with a correct rollout.
    """
    tokens = 0
    shards = _chosen(run, most)
    names = [name for name, _ in shards]
    joined = (run / _FOLDER / "index.parquet").exists()
    total = sum(len(draws) for _, draws in shards)
    done = sum(len(draws) for name, draws in shards if joined or _is_written(run, name))
    with Progress("gradients", total, "rollouts", done=done) as progress:
        for name, draws in shards:
            if joined or _is_written(run, name):
                continue
            rollouts = [TokenizedRollout(prompts[d.item_id], d.completion_token_ids) for d in draws]
            features = np.zeros((len(draws), probe.dim), dtype=np.float32)
            for positions, batch in probe.gradients(rollouts):
                features[positions] = batch
                tokens += sum(rollouts[position].tokens for position in positions)
                progress.advance(len(positions), f"{tokens / progress.seconds:,.0f} tokens/s")
            _write_array(run / _FOLDER / f"{name}.npy", features)
            # The table is written last: where it is, the features are.
            write_parquet(run / _FOLDER / f"{name}.parquet", _table(draws, rollouts))
    if not joined:
        _join(run, names, probe.dim)
    _remove(run, names)
    return {
        "rollouts_differentiated": total,
        "tokens_this_time": tokens,
        "seconds_this_time": progress.seconds,
    }


def _is_written(run: RunFolder, name: str) -> bool:
    return (run / _FOLDER / f"{name}.parquet").exists()


def _chosen(run: RunFolder, most: int) -> list[tuple[str, list[_Draw]]]:
    """Choose the draws of each shard of rollouts; a shard's name is `shard-` and its number."""
    taken: dict[str, int] = defaultdict(int)
    chosen = []
    columns = ["item_id", "sample", "reward", "completion_token_ids"]
    for file in rollout_shards(run):
        table = read_parquet(file, columns)
        table = table.filter(pa.compute.equal(table["reward"], 1))
        distinct: dict[tuple[str, tuple[int, ...]], _Draw] = {}
        for item_id, sample, ids in zip(
            table["item_id"].to_pylist(),
            table["sample"].to_pylist(),
            table["completion_token_ids"].to_pylist(),
            strict=True,
        ):
            if taken[item_id] >= most:
                continue
            taken[item_id] += 1
            key = (item_id, tuple(ids))
            first = distinct.get(key) or _Draw(item_id, sample, 0, key[1])
            distinct[key] = _Draw(item_id, first.sample, first.weight + 1, key[1])
        chosen.append((f"shard-{file.stem}", list(distinct.values())))
    return chosen


def _table(draws: Sequence[_Draw], rollouts: Sequence[TokenizedRollout]) -> pa.Table:
    return pa.table(
        {
            "item_id": pa.array([draw.item_id for draw in draws], pa.string()),
            "sample": pa.array([draw.sample for draw in draws], pa.int32()),
            "weight": pa.array([draw.weight for draw in draws], pa.int32()),
            "tokens": pa.array([rollout.tokens for rollout in rollouts], pa.int32()),
        }
    )


def _write_array(path: Path, array: np.ndarray) -> None:
    with atomic_writer(path) as file:
        np.save(file, array, allow_pickle=False)


def _join(run: RunFolder, names: Sequence[str], dim: int) -> None:
    """Join the shards into one array of draws and one of item means."""
    folder = run / _FOLDER
    table = pa.concat_tables([read_parquet(folder / f"{name}.parquet") for name in names])
    item_ids = table["item_id"].to_pylist()
    row_of = {item_id: row for row, item_id in enumerate(dict.fromkeys(item_ids))}
    weights = table["weight"].to_numpy()
    used = np.zeros(len(row_of))
    squared_norms = np.zeros(len(row_of))
    # Written in place under other names, because a memmap cannot be written aside as a stream.
    draws_aside, means_aside = folder / ".rollouts.npy.tmp", folder / ".features.npy.tmp"
    shape = (len(item_ids), dim)
    draws = open_memmap(draws_aside, mode="w+", dtype=np.float32, shape=shape)
    means = open_memmap(means_aside, mode="w+", dtype=np.float32, shape=(len(row_of), dim))
    start = 0
    for name in names:
        features = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for offset, feature in enumerate(features):
            row, weight = row_of[item_ids[start + offset]], weights[start + offset]
            draws[start + offset] = feature
            means[row] += weight * feature
            used[row] += weight
            squared_norms[row] += weight * float(feature.astype(np.float64) @ feature)
        start += len(features)
    for row in range(len(row_of)):
        means[row] /= used[row]
    draws.flush()
    means.flush()
    del draws, means
    draws_aside.replace(folder / "rollouts.npy")
    means_aside.replace(folder / "features.npy")
    write_parquet(folder / "rollouts.parquet", table)
    index = {
        "item_id": pa.array(list(row_of), pa.string()),
        "feature_row": pa.array(range(len(row_of)), pa.int64()),
        "rollouts_used": pa.array(used.astype(np.int64)),
        "mean_squared_norm": pa.array(squared_norms / np.maximum(used, 1)),
    }
    # Written last: where it is, everything is joined and the shards may go.
    write_parquet(folder / "index.parquet", pa.table(index))


def _remove(run: RunFolder, names: Sequence[str]) -> None:
    for name in names:
        for suffix in ("parquet", "npy"):
            (run / _FOLDER / f"{name}.{suffix}").unlink(missing_ok=True)


def read_features(run: RunFolder) -> np.ndarray:
    """Open `gradients/rollouts.npy`, (draws, dim) float32, without reading it into memory.

    Raises:
        RunError: the file is missing or damaged.
    """
    path = run / _FOLDER / "rollouts.npy"
    try:
        features: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is missing or damaged: {error}") from error
    return features
