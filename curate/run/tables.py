"""What lies in a run folder: every table with its columns, and where everything else lies.

Everything that reads or writes a run goes by this list; docs/files.md tells what each is for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import RunError
from curate.files import atomic_writer
from curate.run.names import GRADIENTS, JUDGING, VALIDATION
from curate.tags import REASONING_QUALITY


class Folder(Protocol):
    """A run folder: a path, or one that is locked for writing."""

    def __truediv__(self, name: str, /) -> Path:
        """The path of what lies in it."""


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table aside, sync it and rename it into place.

    Raises:
        RunError: the disk is full or the folder is gone.
    """
    try:
        with atomic_writer(path) as file:
            pq.write_table(table, file, compression="zstd")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a table.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path} is missing or damaged: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: the file is missing, damaged, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is missing or damaged: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it is not a JSON object")
    return value


@dataclass(frozen=True, eq=False)
class Table:
    """A Parquet file of a run folder, or of a folder in it."""

    file: str
    columns: Mapping[str, pa.DataType]
    """Those that are read back; `pass_rates.parquet` has a pass@k for every `--k` too."""
    later: tuple[str, ...] = ()
    """Columns that runs of versions without a forecast do not have."""

    @property
    def schema(self) -> pa.Schema:
        """Of all columns, in their order."""
        return pa.schema(list(self.columns.items()))

    def path(self, run: Folder) -> Path:
        """Where it lies."""
        return run / self.file

    def is_in(self, run: Folder) -> bool:
        """Whether it was written."""
        return self.path(run).exists()

    def read(self, run: Folder, *names: str) -> pa.Table:
        """Read some columns, or all that there are.

        Raises:
            RunError: the file is missing or damaged.
        """
        return read_parquet(self.path(run), list(names) or None)

    def write(self, run: Folder, table: pa.Table) -> None:
        """Write it, at one stroke.

        Raises:
            RunError: the disk is full or the folder is gone.
        """
        write_parquet(self.path(run), table)


@dataclass(frozen=True, eq=False)
class NumberedTables:
    """Parquet files of one kind in a folder of a run, named by numbers."""

    folder: str
    digits: int
    columns: Mapping[str, pa.DataType]

    @property
    def schema(self) -> pa.Schema:
        """Of all columns, in their order."""
        return pa.schema(list(self.columns.items()))

    def path(self, run: Folder, number: int) -> Path:
        """Where one lies."""
        return run / self.folder / f"{number:0{self.digits}d}.parquet"

    def files(self, run: Folder) -> list[Path]:
        """All that there are, by number."""
        return sorted((run / self.folder).glob("*.parquet"), key=lambda file: int(file.stem))


def gradient_shard(run: Folder, number: int, suffix: str) -> Path:
    """The features of one file of rollouts (.npy), or whose they are (.parquet), until joined."""
    return run / GRADIENTS / f"shard-{number:05d}.{suffix}"


def _all(kind: pa.DataType, *names: str) -> dict[str, pa.DataType]:
    """Columns of one type."""
    return dict.fromkeys(names, kind)


# --- Of `curate tag` ----------------------------------------------------------------------------

ROWS = Table("rows.parquet", {"row": pa.int64(), "item_id": pa.string(), "reason": pa.string()})
"""A row for every row of the dataset: its item, null where it is not probed, and why not."""

ITEMS = Table(
    "items.parquet",
    {
        "item_id": pa.string(),
        "row": pa.int64(),
        "prompt": pa.string(),
        "prompt_token_ids": pa.list_(pa.int32()),
        "answer": pa.string(),
    },
)
"""A row for every distinct question; all tables of items have its order."""

ROUNDS = NumberedTables("rounds", 3, {"item_id": pa.string(), "rollouts": pa.int64()})
"""How many rollouts each item is to have after a round."""

ROLLOUTS = NumberedTables(
    "rollouts",
    5,
    {
        "item_id": pa.string(),
        "sample": pa.int32(),
        "completion": pa.string(),
        "completion_token_ids": pa.list_(pa.int32()),
        "finish_reason": pa.string(),
        "reward": pa.int8(),
        "verdict": pa.string(),
        "answer_found": pa.string(),
        "log_probability": pa.float32(),
    },
)

PASS_RATES = Table(
    "pass_rates.parquet",
    {
        "item_id": pa.string(),
        "total_rollouts": pa.int64(),
        "total_correct_rollouts": pa.int64(),
        **_all(pa.float64(), "pass_rate", "pass_rate_low", "pass_rate_high"),
        "unjudged_rollouts": pa.int64(),
        "truncated_rollouts": pa.int64(),
        "mean_completion_tokens": pa.float64(),
    },
)

ROLLOUT_INDEX = Table(
    f"{GRADIENTS}/rollouts.parquet",
    {
        "item_id": pa.string(),
        **_all(pa.int32(), "sample", "weight", "tokens", "completion_tokens"),
        "reward": pa.int8(),
    },
)
"""Whose each row of `rollouts.npy` is."""

ITEM_INDEX = Table(
    f"{GRADIENTS}/index.parquet",
    {
        "item_id": pa.string(),
        "feature_row": pa.int64(),
        "rollouts_used": pa.int64(),
        "mean_squared_norm": pa.float64(),
    },
)
"""Whose each row of `features.npy` is."""

SIMILARITY = Table(
    "similarity.parquet",
    {
        "item_id": pa.string(),
        **_all(
            pa.float64(),
            "gradient_similarity",
            "gradient_similarity_low",
            "gradient_similarity_high",
            "standard_error",
            "degrees_of_freedom",
            "gradient_reliability",
        ),
        "rollouts_used": pa.int64(),
        "similarity_easy": pa.float64(),
        "similarity_hard": pa.float64(),
        "nearest": pa.list_(pa.string()),
    },
)

GOLD = Table(
    "gold.parquet",
    {
        "item_id": pa.string(),
        "gold_probability": pa.float64(),
        "standard_error": pa.float64(),
        **_all(pa.int32(), "prefixes", "distinct_prefixes", "seen_rollouts", "seen_correct"),
    },
)

_LIFT = _all(pa.float64(), "lift", "lift_low", "lift_high", "standard_error", "from_others")
LIFT = Table("lift.parquet", {"item_id": pa.string(), **_LIFT}, later=tuple(_LIFT))

PAIRS = ("teachers", "helps", "hurts")
_TEACHING = {
    "teaching": pa.float64(),
    **{name: pa.list_(pa.string()) for name in PAIRS},
    **{f"{name}_by": pa.list_(pa.float64()) for name in PAIRS},
}
TEACHING = Table("teaching.parquet", {"item_id": pa.string(), **_TEACHING}, later=tuple(_TEACHING))

FORECAST = ("forecast_pass_rate", "forecast_low", "forecast_high")
TAGS = Table(
    "tags.parquet",
    {
        "item_id": pa.string(),
        "trainability": pa.string(),
        "p_unlearnable": pa.float64(),
        **dict.fromkeys(FORECAST, pa.float64()),
        "tag_reason": pa.string(),
    },
    later=FORECAST,
)

# --- Of `curate validate` and `curate confirm` ----------------------------------------------------

REWARDS = Table(
    "rewards.parquet",
    {
        "step": pa.int32(),
        "item_id": pa.string(),
        "rollouts": pa.int32(),
        **_all(pa.float64(), "mean_reward", "truncated_fraction", "clipped_fraction"),
        "trained": pa.bool_(),
    },
)
"""A row for every group that was generated, in the order of generation.

mean_reward is null where nothing could be judged; truncated_fraction is the share of its rollouts
that were cut at the length limit, clipped_fraction that of its tokens whose probability ratio was
clipped in the loss, null for a group that did not reach it; trained tells that it did, with unequal
rewards.
"""

OUTCOMES = Table(
    "outcomes.parquet",
    {
        "item_id": pa.string(),
        "initial_pass_rate": pa.float64(),
        "initial_rollouts": pa.int64(),
        "initial_correct": pa.int64(),
        "final_pass_rate": pa.float64(),
        "final_rollouts": pa.int64(),
        "final_correct": pa.int64(),
        "positive_in_training": pa.bool_(),
        "ever_positive": pa.bool_(),
        "visits": pa.int32(),
    },
)
"""A row for every item of the run, in its order.

ever_positive: a correct rollout in training or in the probe of the initial policy; visits: groups
generated for it in training.
"""

HELD_OUT = Table(
    "held_out.parquet",
    {
        "step": pa.int32(),
        "rollouts": pa.int64(),
        "item_id": pa.string(),
        "total_rollouts": pa.int64(),
        "total_correct_rollouts": pa.int64(),
    },
)
"""A row for every held-out item each time that it was evaluated; rollouts: spent on training."""

TRAINED = Table("trained.parquet", {"item_id": pa.string(), "sample": pa.int32()})
"""The rollouts of the probe that a pilot's first step was trained on."""

SCORED = Table(
    "log_probabilities.parquet",
    {
        "item_id": pa.string(),
        "sample": pa.int32(),
        "reward": pa.int8(),
        "tokens": pa.int32(),
        "weight": pa.int32(),
        "log_probability": pa.float64(),
    },
)
"""Distinct rollouts of the probe, scored under the policy of a pilot."""

EMBEDDING_INDEX = Table(f"{VALIDATION}/prompt_embeddings.parquet", {"item_id": pa.string()})
"""Whose each row of `prompt_embeddings.npy` is."""

CONFIRMED = Table(
    f"{VALIDATION}/confirmed.parquet",
    {
        "item_id": pa.string(),
        "initial_pass_rate": pa.float64(),
        "final_pass_rates": pa.list_(pa.float64()),
        "final_pass_rate": pa.float64(),
        "trainability": pa.string(),
        "p_unlearnable": pa.float64(),
        "confirmed_trainability": pa.string(),
    },
)

# --- Of `curate judge` ----------------------------------------------------------------------------

SCORES = Table(
    f"{JUDGING}/scores.parquet",
    {
        "item_id": pa.string(),
        **_all(pa.int32(), "sample", "pass", "score"),
        "reason": pa.string(),
        "problem": pa.string(),
    },
)
"""Each score with the judge's reason, or why there is none."""

QUALITY = Table(
    f"{JUDGING}/quality.parquet",
    {"item_id": pa.string(), **{field.name: field.type for field in REASONING_QUALITY}},
)
"""A row an item: the mean score, 0 to 5, of its correct rollouts that were judged, over both
passes, null where none was; and how many were."""
