"""The gradient stage: features of rollouts, a file for each shard of rollouts, then one.

While rounds of sampling go on, each shard of rollouts gets its features as soon as it is verified,
in `gradients/shard-*`; `gathered` shows them as one array. After the last round `join` makes one
array of them for good, and the shards go.

Of an item are differentiated its first correct rollouts, and its first wrong ones from the file on
that holds its first correct one: an item that is never right teaches nothing and is not taught by
its gradients. Where a user's function gives other rewards than 0 and 1, rollouts teach as soon as
their rewards differ, so that the first wrong ones are differentiated from there on. What is chosen
in a file thus depends on this file and those before it alone, so that a run that goes on, and the
parts of a merged one, choose alike. A rollout that does not fit into memory is left out, and with
it all that are as long; the item's next shorter one takes its place.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from curate.files import atomic_writer
from curate.progress import Progress, say
from curate.run.features import RolloutFeatures, features_of, joined
from curate.run.folder import RunFolder
from curate.run.names import GRADIENTS, ITEM_FEATURES, ROLLOUT_FEATURES
from curate.run.rollouts import item_rows, read_outcomes, rollout_outcomes, rollout_shards
from curate.run.tables import (
    ITEM_INDEX,
    ROLLOUT_INDEX,
    read_array,
    read_parquet,
    write_parquet,
)
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.stages.sample import Advance

_JOINED_COLUMNS = ("item_id", "sample", "weight", "tokens", "completion_tokens", "reward")
# One that an earlier shard differentiated already.
_REPEATED = -1


_Chosen = tuple[Path, NDArray[np.int64], NDArray[np.int64]]
"""A file of rollouts, the lines of it to differentiate, and the positions of their items."""


@dataclass
class _Draw:
    """A completion of an item and how often its shard has it."""

    item: int
    sample: int
    reward: float
    is_correct: bool
    rollout: TokenizedRollout
    weight: int = 0
    feature_row: int = _REPEATED


@dataclass(frozen=True)
class GradientShard:
    """The completions to differentiate of one file of rollouts, and the file's number."""

    number: int
    rollouts: Sequence[TokenizedRollout]
    weights: Sequence[int]
    """How often each was drawn."""


DifferentiateShards = Callable[
    [Iterable[GradientShard], Advance], Iterator[tuple[int, NDArray[np.float32]]]
]
"""Differentiates shards, in any order: yields the number of each and (rollouts, dim) features.

Those of a rollout that does not fit into memory are NaN.
"""


def differentiate_here(probe: Callable[[], GradientProbe]) -> DifferentiateShards:
    """Differentiate shards one after the other in this process; `probe` is called when needed."""

    def run(
        shards: Iterable[GradientShard], advance: Advance
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for shard in shards:
            yield shard.number, differentiate_shard(shard, probe(), advance)

    return run


def differentiate_shard(
    shard: GradientShard, probe: GradientProbe, advance: Advance
) -> NDArray[np.float32]:
    """Differentiate one shard: features of shape (rollouts, dim), NaN where memory ran out."""
    features = np.full((len(shard.rollouts), probe.dim), np.nan, dtype=np.float32)
    for positions, batch in probe.gradients(shard.rollouts):
        features[positions] = batch
        advance(
            sum(shard.weights[position] for position in positions),
            sum(shard.rollouts[position].tokens for position in positions),
        )
    return features


def differentiate(
    run: RunFolder,
    items: pa.Table,
    row_of: Mapping[str, int],
    differentiate_shards: DifferentiateShards,
    most: int,
    most_wrong: int,
) -> dict[str, Any]:
    """Differentiate the first correct and wrong rollouts of every item; return the stage's counts.

    Only shards of rollouts that have no features yet. A completion that was drawn several times,
    in one shard or in several, is differentiated once and counts as often as it was drawn.

    Args:
        run: all rollouts have a verdict.
        items: of `items.parquet`: item_id and prompt_token_ids.
        row_of: position of each item by item_id.
        differentiate_shards: does the work.
        most: correct rollouts of an item.
        most_wrong: wrong rollouts of an item that has a correct one in the same file or before.
    """
    if _is_joined(run):
        return {"rollouts_this_time": 0, "tokens_this_time": 0, "seconds_this_time": 0.0}
    before = time.monotonic()
    prompts = pc.list_value_length(items["prompt_token_ids"]).to_numpy()

    def choose(longest: float) -> list[_Chosen]:
        return list(_chosen(run, row_of, prompts, most, most_wrong, longest))

    longest = _longest(run)
    chosen = choose(longest)
    total = sum(len(lines) for _, lines, _ in chosen)
    done = sum(len(lines) for file, lines, _ in chosen if _is_written(run, file))
    tokens = 0
    with Progress("gradients", total, "rollouts", done=done) as progress:

        def advance(rollouts: int, new_tokens: int) -> None:
            nonlocal tokens
            tokens += new_tokens
            progress.advance(rollouts, f"{tokens / progress.seconds:,.0f} tokens/s")

        def work() -> None:
            _differentiate_chosen(
                run, items, row_of, chosen, differentiate_shards, progress, advance
            )

        work()
        while (shorter := _longest(run)) < longest:
            # Others take the places of those that did not fit, also in files that are done.
            longest, chosen = shorter, choose(shorter)
            work()
    return {
        "rollouts_this_time": total - done,
        "tokens_this_time": tokens,
        "seconds_this_time": time.monotonic() - before,
    }


def _differentiate_chosen(
    run: RunFolder,
    items: pa.Table,
    row_of: Mapping[str, int],
    chosen: Sequence[_Chosen],
    differentiate_shards: DifferentiateShards,
    progress: Progress,
    advance: Advance,
) -> None:
    """Differentiate what is chosen and has no features yet; note what did not fit."""
    # Of shards that are being differentiated; without the completions, which take much room.
    asked: dict[int, tuple[pa.Table, list[int]]] = {}

    def wanted() -> Iterator[GradientShard]:
        for file, draws in _unwritten(run, items, row_of, chosen):
            number = int(file.stem)
            fresh = [draw for draw in draws.values() if draw.feature_row != _REPEATED]
            asked[number] = _table(draws, items["item_id"]), [d.rollout.tokens for d in fresh]
            progress.skip(sum(d.weight for d in draws.values() if d.feature_row == _REPEATED))
            yield GradientShard(number, [d.rollout for d in fresh], [d.weight for d in fresh])

    for number, features in differentiate_shards(wanted(), advance):
        table, lengths = asked.pop(number)
        is_there = np.asarray(~np.isnan(features).any(axis=1))
        if not is_there.all():
            table = _note_too_long(run, table, np.array(lengths), is_there)
        _write_shard(run, f"shard-{number:05d}", features[is_there], table)


def _longest(run: RunFolder) -> float:
    """Tokens from which on a rollout does not fit into memory; infinite as long as all did."""
    return float(run.manifest.get("too_long", {}).get("tokens", np.inf))


def _note_too_long(
    run: RunFolder, table: pa.Table, lengths: NDArray[np.int64], is_there: NDArray[np.bool_]
) -> pa.Table:
    """Note in the manifest what did not fit into memory; return the table of the others."""
    rows = table["feature_row"].to_numpy()
    left_out = (rows != _REPEATED) & ~is_there[rows]
    shortest, earlier = int(lengths[~is_there].min()), run.manifest.get("too_long", {})
    count = int(table["weight"].to_numpy()[left_out].sum())
    run.update(
        too_long={
            "tokens": min(shortest, int(earlier.get("tokens", shortest))),
            "rollouts": count + int(earlier.get("rollouts", 0)),
        }
    )
    rollouts = "1 rollout" if count == 1 else f"{count:,} rollouts"
    say(
        f"out of memory on the gradients of {rollouts} of {shortest:,} tokens or more: shorter "
        "ones take their places"
    )
    kept_row = np.cumsum(is_there) - 1
    renumbered = np.where(rows == _REPEATED, _REPEATED, kept_row[rows]).astype(np.int32)
    table = table.set_column(
        table.column_names.index("feature_row"), "feature_row", pa.array(renumbered)
    )
    return table.filter(pa.array(~left_out))


def _write_shard(run: RunFolder, name: str, features: NDArray[np.float32], table: pa.Table) -> None:
    """Write a shard's features, behind those that it has; the table last, as a sign."""
    path = run / GRADIENTS / f"{name}.npy"
    if _table_path(run, name).exists():
        earlier = read_array(path)
        rows = table["feature_row"].to_numpy()
        moved = np.where(rows == _REPEATED, _REPEATED, rows + len(earlier)).astype(np.int32)
        table = table.set_column(
            table.column_names.index("feature_row"), "feature_row", pa.array(moved)
        )
        features = np.concatenate([earlier, features])
        tables = [read_parquet(_table_path(run, name)), table]
        table = pa.concat_tables(tables, promote_options="permissive")
    _write_array(path, features)
    write_parquet(_table_path(run, name), table)


def _unwritten(
    run: RunFolder,
    items: pa.Table,
    row_of: Mapping[str, int],
    chosen: Sequence[_Chosen],
) -> Iterator[tuple[Path, dict[int, _Draw]]]:
    """Yield each shard that lacks features, and the draws it lacks, those to be taken numbered.

    A shard that has features lacks some where one that did not fit made room for another.
    """
    all_fit = np.isinf(_longest(run))
    in_shards = np.zeros(len(row_of), dtype=np.int64)
    for _, _, rows in chosen:
        in_shards[np.unique(rows)] += 1
    # Completions of the items that are in several shards: only theirs can come again.
    known: dict[int, set[int]] = {}
    for file, lines, rows in chosen:
        is_written, has = _is_written(run, file), set()
        if is_written:
            keys = read_parquet(_table_path(run, _name(file)), ["item_id", "completion_key"])
            has = set(keys["completion_key"].to_pylist())
            _remember(known, in_shards, item_rows(keys, row_of), keys["completion_key"].to_pylist())
        if is_written and all_fit:
            continue
        draws = _draws(file, lines, rows, items)
        draws = {key: draw for key, draw in draws.items() if key not in has}
        fresh = [draw for key, draw in draws.items() if key not in known.get(draw.item, ())]
        for feature_row, draw in enumerate(fresh):
            draw.feature_row = feature_row
        if draws or not is_written:
            yield file, draws
        _remember(known, in_shards, [draw.item for draw in draws.values()], draws)


def _remember(
    known: dict[int, set[int]],
    in_shards: NDArray[np.int64],
    rows: Iterable[int],
    keys: Iterable[int],
) -> None:
    """Remember the completions of the items that are in several shards."""
    for row, key in zip(rows, keys, strict=True):
        if in_shards[row] > 1:
            known.setdefault(row, set()).add(key)


def _name(file: Path) -> str:
    """Name the features of a file of rollouts."""
    return f"shard-{file.stem}"


def _table_path(run: RunFolder, name: str) -> Path:
    return run / GRADIENTS / f"{name}.parquet"


def _is_written(run: RunFolder, file: Path) -> bool:
    return _table_path(run, _name(file)).exists()


def _is_joined(run: RunFolder) -> bool:
    return ITEM_INDEX.is_in(run)


def _chosen(
    run: RunFolder,
    row_of: Mapping[str, int],
    prompts: NDArray[np.int64],
    most: int,
    most_wrong: int,
    longest: float,
) -> Iterator[_Chosen]:
    """Choose the rollouts of each shard, of those below `longest` tokens.

    Args:
        run: all rollouts have a verdict.
        row_of: position of each item by item_id.
        prompts: (items,) tokens of each prompt, which count as well.
        most, most_wrong: correct and wrong rollouts of an item.
        longest: tokens.
    """
    correct, wrong = np.zeros((2, len(row_of)), dtype=np.int64)
    lowest, highest = np.full(len(row_of), np.inf), np.full(len(row_of), -np.inf)
    # Of files of rollouts some may have none, such as those of several turns.
    has_tokenless = "rollouts" in run.manifest
    needs_length = has_tokenless or np.isfinite(longest)
    names = ("item_id", "completion_token_ids") if needs_length else ("item_id",)
    for file in rollout_shards(run):
        table = read_outcomes(file, *names)
        # One that could not be judged is neither.
        outcome = rollout_outcomes(table)
        rows = item_rows(table, row_of)
        if needs_length:
            lengths = pc.list_value_length(table["completion_token_ids"]).to_numpy()
            fits = (lengths > 0) & (lengths + prompts[rows] < longest)
            outcome = np.where(fits, outcome, -1)
        reward = np.asarray(pc.fill_null(table["reward"].cast(pa.float64()), np.nan))
        np.fmin.at(lowest, rows, reward)
        np.fmax.at(highest, rows, reward)
        chosen = _first_of_items(rows, outcome == 1, correct, most)
        is_wrong = (outcome == 0) & ((correct > 0) | (highest > lowest))[rows]
        chosen |= _first_of_items(rows, is_wrong, wrong, most_wrong)
        yield file, np.flatnonzero(chosen), rows[chosen]


def _first_of_items(
    rows: NDArray[np.int64], among: NDArray[np.bool_], taken: NDArray[np.int64], most: int
) -> NDArray[np.bool_]:
    """Tell which lines are among the first `most` of their item.

    Args:
        rows: (lines,), position of the item.
        among: (lines,), those that count.
        taken: (items,), lines of earlier shards; those told are added.
    """
    lines = np.flatnonzero(among)
    items = rows[lines]
    order = np.argsort(items, kind="stable")
    _, starts, counts = np.unique(items[order], return_index=True, return_counts=True)
    earlier = np.empty(len(items), dtype=np.int64)
    earlier[order] = np.arange(len(items)) - np.repeat(starts, counts)
    lines = lines[taken[items] + earlier < most]
    np.add.at(taken, rows[lines], 1)
    told = np.zeros(len(rows), dtype=bool)
    told[lines] = True
    return told


def _draws(
    file: Path, lines: NDArray[np.int64], rows: NDArray[np.int64], items: pa.Table
) -> dict[int, _Draw]:
    """The distinct completions among some lines of a shard, by a key of item and completion."""
    table = read_outcomes(file, "sample", "completion_token_ids").take(pa.array(lines))
    samples, rewards = table["sample"].to_pylist(), table["reward"].to_pylist()
    is_correct = (rollout_outcomes(table) == 1).tolist()
    completions = table["completion_token_ids"]
    ids, prompts = items["item_id"], items["prompt_token_ids"]
    draws: dict[int, _Draw] = {}
    for line, row in enumerate(rows.tolist()):
        completion = completions[line].values.to_numpy()
        key = _key(ids[row].as_py(), completion, rewards[line])
        if key not in draws:
            prompt = prompts[row].values.to_numpy()
            rollout = TokenizedRollout(prompt.tolist(), completion.tolist())
            draws[key] = _Draw(row, samples[line], rewards[line], is_correct[line], rollout)
        draws[key].weight += 1
    return draws


def _key(item_id: str, completion: NDArray[np.int32], reward: float) -> int:
    """64 bits of a hash: among a million completions two are alike with probability 3e-8."""
    # A user's own verifier may judge the same completion now so, now so.
    salt = bytes([1 - int(reward)]) if reward in (0, 1) else struct.pack("<d", reward)
    hashed = hashlib.blake2b(item_id.encode(), digest_size=8, salt=salt)
    hashed.update(np.ascontiguousarray(completion, dtype="<i4").tobytes())
    return int.from_bytes(hashed.digest(), "little")


def _table(draws: Mapping[int, _Draw], item_ids: pa.ChunkedArray) -> pa.Table:
    found = list(draws.values())
    is_whole = all(draw.reward == draw.is_correct for draw in found)
    table = pa.table(
        {
            "item_id": pa.array([item_ids[draw.item].as_py() for draw in found], pa.string()),
            "sample": pa.array([draw.sample for draw in found], pa.int32()),
            "weight": pa.array([draw.weight for draw in found], pa.int32()),
            "tokens": pa.array([draw.rollout.tokens for draw in found], pa.int32()),
            "completion_tokens": pa.array(
                [len(draw.rollout.completion_token_ids) for draw in found], pa.int32()
            ),
            "reward": pa.array(
                [draw.reward for draw in found], pa.int8() if is_whole else pa.float64()
            ),
            "completion_key": pa.array(list(draws), pa.uint64()),
            "feature_row": pa.array([draw.feature_row for draw in found], pa.int32()),
        }
    )
    if is_whole:
        return table
    return table.append_column("correct", pa.array([draw.is_correct for draw in found]))


def _write_array(path: Path, array: NDArray[np.float32]) -> None:
    with atomic_writer(path) as file:
        np.save(file, array, allow_pickle=False)


@contextmanager
def gathered(run: RunFolder, row_of: Mapping[str, int], dim: int) -> Iterator[RolloutFeatures]:
    """Show the features of all shards so far as one array, in a file that goes at the end."""
    # The name is that of a file written aside, so that what a kill leaves is removed.
    path = run / GRADIENTS / ".gathered.npy.tmp"
    try:
        with path.open("wb") as file:
            table = _gather(run, row_of, dim, file)
        yield features_of(path, table, row_of)
    finally:
        path.unlink(missing_ok=True)


def _gather(run: RunFolder, row_of: Mapping[str, int], dim: int, file: IO[bytes]) -> pa.Table:
    """Write the features of all shards as one array; return their table.

    The correct completions come first, then the wrong ones, in both an item's together.

    Draws of one completion in several shards become one with the sum of their weights.
    """
    names = [_name(shard) for shard in rollout_shards(run)]
    columns = [*_JOINED_COLUMNS, "completion_key", "feature_row"]
    tables = [_shard_table(_table_path(run, name), columns) for name in names]
    if not any(pa.types.is_floating(table["reward"].type) for table in tables):
        tables = [table.drop_columns("correct") for table in tables]
    shard = np.repeat(np.arange(len(names)), [table.num_rows for table in tables])
    table = pa.concat_tables(tables, promote_options="permissive")
    _, inverse = np.unique(table["completion_key"].to_numpy(), return_inverse=True)
    weights = np.bincount(inverse, table["weight"].to_numpy()).astype(np.int32)[inverse]
    feature_row = table["feature_row"].to_numpy()
    lines = np.flatnonzero(feature_row != _REPEATED)
    is_correct = table["correct" if "correct" in table.column_names else "reward"]
    is_wrong = np.asarray(is_correct).astype(np.int64)[lines] == 0
    lines = lines[np.lexsort((item_rows(table, row_of)[lines], is_wrong))]
    _write_header(file, (len(lines), dim))
    start, row_bytes = file.tell(), 4 * dim
    order = np.argsort(shard[lines], kind="stable")
    bounds = np.searchsorted(shard[lines][order], np.arange(len(names) + 1))
    for name, (first, end) in zip(names, pairwise(bounds), strict=True):
        places = order[first:end]
        if not len(places):
            continue
        features = read_array(run / GRADIENTS / f"{name}.npy")
        for place, row in zip(places.tolist(), feature_row[lines[places]].tolist(), strict=True):
            file.seek(start + place * row_bytes)
            file.write(features[row].tobytes())
    file.flush()
    table = table.set_column(2, "weight", pa.array(weights))
    kept = [name for name in (*_JOINED_COLUMNS, "correct") if name in table.column_names]
    return table.select(kept).take(pa.array(lines))


def _shard_table(path: Path, columns: Sequence[str]) -> pa.Table:
    """The table of a shard, with `correct`: whether a completion was accepted."""
    table = read_parquet(path, list(columns))
    if pa.types.is_floating(table["reward"].type):
        correct = read_parquet(path, ["correct"])["correct"]
    else:
        correct = pc.equal(table["reward"], 1)
    return table.append_column("correct", correct)


def _write_header(file: IO[bytes], shape: tuple[int, int]) -> None:
    write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


def join(run: RunFolder, row_of: Mapping[str, int], dim: int) -> dict[str, Any]:
    """Join the shards into one array of draws and one of item means; return the counts.

    Writes

    - `gradients/rollouts.npy` (draws, dim) float32 and `gradients/rollouts.parquet`
      (item_id, sample, weight, tokens, completion_tokens, reward, and where rewards are other
      numbers than 0 and 1 correct), a row a distinct completion:
      the correct ones, an item's together, and after them the wrong ones, likewise;
    - `gradients/features.npy` (items, dim) float32 and `gradients/index.parquet` (item_id,
      feature_row, rollouts_used, mean_squared_norm), a row an item with a correct rollout.
    """
    if not _is_joined(run):
        with atomic_writer(run / ROLLOUT_FEATURES) as file:
            table = _gather(run, row_of, dim, file)
        ROLLOUT_INDEX.write(run, table)
        # Written last: where it is, everything is joined and the shards may go.
        ITEM_INDEX.write(run, _write_means(run, joined(run.path, row_of), row_of))
    _remove_shards(run)
    is_correct = joined(run.path, row_of).is_correct
    return {
        "rollouts_differentiated": len(is_correct),
        "wrong_rollouts_differentiated": int((~is_correct).sum()),
    }


def _write_means(run: RunFolder, every: RolloutFeatures, row_of: Mapping[str, int]) -> pa.Table:
    """Write the items' mean features of correct rollouts; return the index of them."""
    draws = every.correct
    items, starts = np.unique(draws.item, return_index=True)
    dim = draws.features.shape[1]
    used, squared_norms = np.zeros(len(items), dtype=np.int64), np.zeros(len(items))
    with (
        (run / ROLLOUT_FEATURES).open("rb") as rollouts,
        atomic_writer(run / ITEM_FEATURES) as file,
    ):
        # The correct ones come first.
        rollouts.seek(every.features.offset)  # type: ignore[attr-defined]
        _write_header(file, (len(items), dim))
        bounds = np.append(starts, len(draws.item)).tolist()
        for row, (start, end) in enumerate(pairwise(bounds)):
            # Read, not mapped: the pages of a mapped file would count as this process's memory.
            block = np.fromfile(rollouts, dtype=np.float32, count=(end - start) * dim)
            features = block.reshape(end - start, dim).astype(np.float64)
            weights = draws.weights[start:end]
            used[row] = weights.sum()
            squared_norms[row] = weights @ np.einsum("rd,rd->r", features, features) / used[row]
            file.write((weights @ features / used[row]).astype("<f4").tobytes())
    ids = pa.array(list(row_of), pa.string())
    return pa.table(
        {
            "item_id": ids.take(pa.array(items)),
            "feature_row": pa.array(range(len(items)), pa.int64()),
            "rollouts_used": used,
            "mean_squared_norm": squared_norms,
        }
    )


def _remove_shards(run: RunFolder) -> None:
    for file in (run / GRADIENTS).glob("shard-*"):
        file.unlink(missing_ok=True)
