"""The rescoring stage: kept rollouts of every item, scored anew under a policy.

Of each item its first `most_correct` correct and first `most_wrong` wrong rollouts are taken, in
the order in which they were drawn, whatever they say: so means over them are means over draws. A
completion that was drawn several times is scored once and counts as often as it was drawn. In the
tables here `reward` is 1 for a correct rollout and 0 for a wrong one, whatever number it was given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.progress import Progress
from curate.run.rollouts import item_rows, read_outcomes, rollout_outcomes, rollout_shards
from curate.run.tables import Folder, read_parquet, write_parquet
from probes.gradients.batch import TokenizedRollout
from probes.models.load import Policy
from probes.rescoring.teacher_forcing import log_probabilities

_SCORED = pa.schema(
    [
        ("item_id", pa.string()),
        ("sample", pa.int32()),
        ("reward", pa.int8()),
        ("tokens", pa.int32()),
        ("weight", pa.int32()),
        ("completion_key", pa.uint64()),
        ("log_probability", pa.float64()),
    ]
)
# What a file must agree in to be that of the same rollouts.
_CHOICE = ["item_id", "sample", "reward", "weight", "completion_key"]


@dataclass
class _Draw:
    """A completion of an item, and how often it is among the chosen of its file."""

    item_id: str
    sample: int
    reward: int
    rollout: TokenizedRollout
    weight: int = 0


def rescore_run(
    run: Folder,
    items: pa.Table,
    row_of: Mapping[str, int],
    policy: Policy,
    *,
    most_correct: int | NDArray[np.int64],
    most_wrong: int | NDArray[np.int64],
    folder: Path | None = None,
    leave_out: Mapping[str, Collection[int]] = MappingProxyType({}),
    label: str = "rescoring",
) -> pa.Table:
    """Score chosen rollouts of every item under a policy, at temperature 1.

    Args:
        run: its `rollouts/*.parquet` are judged; a rollout without a reward is not chosen.
        items: of `items.parquet`: item_id and prompt_token_ids.
        row_of: position of each item by item_id.
        policy: scores them; its tokenizer is the one that the rollouts were drawn with.
        most_correct, most_wrong: rollouts of an item; or of each item, (items,).
        folder: of this policy: gets `shard-N.parquet` for each file of rollouts, and those that an
            earlier try wrote for the same rollouts are not scored again. None: nothing is kept.
        leave_out: by item_id, the numbers of rollouts that do not count, such as those that the
            policy was trained on. Others do not take their places, so that what is scored is also
            scored without leaving any out.
        label: of the progress line.

    Returns:
        a line for each distinct completion of an item, in the items' order: item_id, sample (its
        first chosen one), reward, tokens (of the completion), weight (how often it was drawn and
        not left out) and log_probability in nats.
    """
    chosen = list(_chosen(run, row_of, most_correct, most_wrong))
    total = sum(len(lines) for _, lines in chosen)
    tables = []
    known: dict[int, float] = {}
    with Progress(label, total, "rollouts") as progress:
        for file, lines in chosen:
            draws = _draws(file, lines, items, row_of, leave_out)
            kept = folder / f"shard-{int(file.stem):05d}.parquet" if folder else None
            table = _earlier(kept, draws)
            if table is not None:
                progress.skip(len(lines))
            else:
                fresh = [key for key in draws if key not in known]
                scores = log_probabilities(
                    policy, [draws[key].rollout for key in fresh], advance=progress.advance
                )
                known |= zip(fresh, scores.tolist(), strict=True)
                progress.advance(len(lines) - len(fresh))
                table = _table(draws, [known[key] for key in draws])
                if kept:
                    write_parquet(kept, table)
            keys, values = table["completion_key"], table["log_probability"]
            known |= zip(keys.to_pylist(), values.to_pylist(), strict=True)
            tables.append(table)
    return _joined(tables, row_of)


def _chosen(
    run: Folder,
    row_of: Mapping[str, int],
    most_correct: int | NDArray[np.int64],
    most_wrong: int | NDArray[np.int64],
) -> Iterator[tuple[Path, NDArray[np.int64]]]:
    """Choose the lines of each file of rollouts, ascending."""
    bounds = {1: most_correct, 0: most_wrong}
    most_of = {reward: np.broadcast_to(most, len(row_of)) for reward, most in bounds.items()}
    taken = {reward: np.zeros(len(row_of), dtype=np.int64) for reward in (0, 1)}
    for file in rollout_shards(run):
        table = read_outcomes(file, "item_id")
        rows = item_rows(table, row_of)
        rewards = rollout_outcomes(table)
        lines = []
        for reward, most in most_of.items():
            of_reward = np.flatnonzero(rewards == reward)
            earlier = taken[reward][rows[of_reward]] + _rank_within(rows[of_reward])
            first = of_reward[earlier < most[rows[of_reward]]]
            np.add.at(taken[reward], rows[first], 1)
            lines.append(first)
        yield file, np.sort(np.concatenate(lines))


def _rank_within(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier entries are of the same group, shape (entries,)."""
    order = np.argsort(groups, kind="stable")
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, counts)
    return ranks


def _draws(
    file: Path,
    lines: NDArray[np.int64],
    items: pa.Table,
    row_of: Mapping[str, int],
    leave_out: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> dict[int, _Draw]:
    """The distinct completions among some lines of a file, by a key of item and completion."""
    table = read_parquet(file).take(pa.array(lines))
    rows = item_rows(table, row_of).tolist()
    samples, rewards = table["sample"].to_pylist(), rollout_outcomes(table).tolist()
    completions = table["completion_token_ids"]
    ids, prompts = items["item_id"], items["prompt_token_ids"]
    draws: dict[int, _Draw] = {}
    for line, row in enumerate(rows):
        item_id = ids[row].as_py()
        completion = completions[line].values.to_numpy()
        key = _key(item_id, rewards[line], completion)
        if key not in draws:
            rollout = TokenizedRollout(prompts[row].values.to_numpy().tolist(), completion.tolist())
            draws[key] = _Draw(item_id, samples[line], rewards[line], rollout)
        draws[key].weight += samples[line] not in leave_out.get(item_id, ())
    return draws


def _key(item_id: str, reward: int, completion: NDArray[np.int32]) -> int:
    """64 bits of a hash: among a million completions two are alike with probability 3e-8."""
    hashed = hashlib.blake2b(f"{reward}\0{item_id}\0".encode(), digest_size=8)
    hashed.update(np.ascontiguousarray(completion, dtype="<i4").tobytes())
    return int.from_bytes(hashed.digest(), "little")


def _table(draws: Mapping[int, _Draw], scores: list[float]) -> pa.Table:
    found = list(draws.values())
    return pa.table(
        {
            "item_id": [draw.item_id for draw in found],
            "sample": [draw.sample for draw in found],
            "reward": [draw.reward for draw in found],
            "tokens": [len(draw.rollout.completion_token_ids) for draw in found],
            "weight": [draw.weight for draw in found],
            "completion_key": list(draws),
            "log_probability": scores,
        },
        schema=_SCORED,
    )


def _earlier(file: Path | None, draws: Mapping[int, _Draw]) -> pa.Table | None:
    """What an earlier try wrote, if it is of these rollouts."""
    if file is None or not file.exists():
        return None
    table = read_parquet(file)
    wanted = _table(draws, [0.0] * len(draws))
    same = table.schema == wanted.schema and table.select(_CHOICE) == wanted.select(_CHOICE)
    return table if same else None


def _joined(tables: list[pa.Table], row_of: Mapping[str, int]) -> pa.Table:
    """Join the files' tables; a completion that is in several becomes one line."""
    table = pa.concat_tables([_SCORED.empty_table(), *tables])
    groups = table.group_by(["item_id", "completion_key"], use_threads=False)
    merged = groups.aggregate(
        [
            *((name, "min") for name in ("sample", "reward", "tokens", "log_probability")),
            ("weight", "sum"),
        ]
    )
    names = [name for name in _SCORED.names if name != "completion_key"]
    renamed = merged.rename_columns(
        [name.removesuffix("_min").removesuffix("_sum") for name in merged.column_names]
    ).select(names)
    renamed = renamed.filter(pc.greater(renamed["weight"], 0))
    order = np.lexsort((renamed["sample"].to_numpy(), item_rows(renamed, row_of)))
    schema = pa.schema([_SCORED.field(name) for name in names])
    return renamed.take(pa.array(order)).cast(schema)
