"""What lies in a run folder: every table with its columns, and where everything else lies.

Everything that reads or writes a run goes by this list; docs/files.md tells what each is for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

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


def read_schema(path: Path) -> pa.Schema:
    """Read which columns a file has.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path} is missing or damaged: {error}") from error


def read_array(path: Path, *, mapped: bool = False) -> NDArray[np.float32]:
    """Read an array; mapped: only what is looked at of it.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        found: NDArray[np.float32] = np.load(
            path, mmap_mode="r" if mapped else None, allow_pickle=False
        )
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path} is missing or damaged: {error}") from error
    return found


def count_values(path: Path, column: str) -> tuple[int, int]:
    """Count rows, and those with a value in a column, by what the end of the file says of them.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        found = pq.read_metadata(path)
        number = found.schema.names.index(column)
        groups = [found.row_group(n).column(number) for n in range(found.num_row_groups)]
        nulls = sum(group.statistics.null_count for group in groups)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RunError(f"{path} is missing or damaged: {error}") from error
    return found.num_rows, found.num_rows - nulls


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
    """Columns that runs of earlier versions do not have."""

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

    def lacks(self, run: Folder, *names: str) -> list[str]:
        """Those of the columns that only later versions write and the file does not have.

        Raises:
            RunError: the file is missing or damaged.
        """
        later = [name for name in names if name in self.later]
        if not later:
            return []
        stored = read_schema(self.path(run)).names
        return [name for name in later if name not in stored]

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


# Types of columns.
TEXT, TEXTS, FLAG = pa.string(), pa.list_(pa.string()), pa.bool_()
INT8, INT32, INT, INTS = pa.int8(), pa.int32(), pa.int64(), pa.list_(pa.int32())
FLOAT32, FLOAT, FLOATS = pa.float32(), pa.float64(), pa.list_(pa.float64())


# --- Of `curate tag` ----------------------------------------------------------------------------

ROWS = Table("rows.parquet", {"row": INT, "item_id": TEXT, "reason": TEXT})
"""A row for every row of the dataset: its item, null where it is not probed, and why not."""

ITEMS = Table("items.parquet", {
    "item_id": TEXT, "row": INT, "prompt": TEXT, "prompt_token_ids": INTS, "answer": TEXT,
    "verifier": TEXT,
}, later=("verifier",))  # fmt: skip
"""A row for every distinct question; all tables of items have its order.

verifier is what judges its answers where rows have verifiers of their own, else null.
"""

ROUNDS = NumberedTables("rounds", 3, {"item_id": TEXT, "rollouts": INT})
"""How many rollouts each item is to have after a round."""

ROLLOUTS = NumberedTables("rollouts", 5, {
    "item_id": TEXT, "sample": INT32, "completion": TEXT, "completion_token_ids": INTS,
    "finish_reason": TEXT, "reward": INT8, "verdict": TEXT, "answer_found": TEXT,
    "log_probability": FLOAT32,
})  # fmt: skip

ROLLOUT_TESTS: Mapping[str, pa.DataType] = {"tests_passed": INT32, "tests_total": INT32}
"""Further columns of rollouts in runs of which some items are programming problems."""

ROLLOUT_TURNS: Mapping[str, pa.DataType] = {"turns": INT32}
"""A further column of rollouts that were taken from files: the turns that the policy sampled."""

PASS_RATES = Table("pass_rates.parquet", {
    "item_id": TEXT, "total_rollouts": INT, "total_correct_rollouts": INT,
    "pass_rate": FLOAT, "pass_rate_low": FLOAT, "pass_rate_high": FLOAT,
    "unjudged_rollouts": INT, "truncated_rollouts": INT, "mean_completion_tokens": FLOAT,
})  # fmt: skip

ITEM_ANSWERS = Table("answers.parquet", {
    "item_id": TEXT, "answers": INT, "majority_answer": TEXT, "majority_share": FLOAT,
    "majority_low": FLOAT, "majority_high": FLOAT, "suspect_gold": FLAG, "no_positive_kind": TEXT,
})  # fmt: skip
"""What the judged rollouts of each item answered; not there in runs of earlier versions."""

ROLLOUT_INDEX = Table(f"{GRADIENTS}/rollouts.parquet", {
    "item_id": TEXT, "sample": INT32, "weight": INT32, "tokens": INT32,
    "completion_tokens": INT32, "reward": INT8,
})  # fmt: skip
"""Whose each row of `rollouts.npy` is."""

ITEM_INDEX = Table(f"{GRADIENTS}/index.parquet", {
    "item_id": TEXT, "feature_row": INT, "rollouts_used": INT, "mean_squared_norm": FLOAT,
})  # fmt: skip
"""Whose each row of `features.npy` is."""

SIMILARITY = Table("similarity.parquet", {
    "item_id": TEXT, "gradient_similarity": FLOAT, "gradient_similarity_low": FLOAT,
    "gradient_similarity_high": FLOAT, "standard_error": FLOAT, "degrees_of_freedom": FLOAT,
    "gradient_reliability": FLOAT, "rollouts_used": INT, "similarity_easy": FLOAT,
    "similarity_hard": FLOAT, "nearest": TEXTS,
})  # fmt: skip

GOLD = Table("gold.parquet", {
    "item_id": TEXT, "gold_probability": FLOAT, "standard_error": FLOAT, "prefixes": INT32,
    "distinct_prefixes": INT32, "seen_rollouts": INT32, "seen_correct": INT32,
})  # fmt: skip

_LIFT = ("lift", "lift_low", "lift_high", "standard_error", "from_others")
LIFT = Table("lift.parquet", {"item_id": TEXT, **dict.fromkeys(_LIFT, FLOAT)}, later=_LIFT)

PAIRS = ("teachers", "helps", "hurts")
_TEACHING = {"teaching": FLOAT, **dict.fromkeys(PAIRS, TEXTS)}
_TEACHING |= dict.fromkeys((f"{name}_by" for name in PAIRS), FLOATS)
TEACHING = Table("teaching.parquet", {"item_id": TEXT, **_TEACHING}, later=tuple(_TEACHING))

FORECAST = ("forecast_pass_rate", "forecast_low", "forecast_high")
TAGS = Table("tags.parquet", {
    "item_id": TEXT, "trainability": TEXT, "p_unlearnable": FLOAT,
    **dict.fromkeys(FORECAST, FLOAT), "tag_reason": TEXT,
}, later=FORECAST)  # fmt: skip

# --- Of trainings: in the folder of a seed ------------------------------------------------------

REWARDS = Table("rewards.parquet", {
    "step": INT32, "item_id": TEXT, "rollouts": INT32, "mean_reward": FLOAT,
    "truncated_fraction": FLOAT, "clipped_fraction": FLOAT, "trained": FLAG,
    "correct_rollouts": INT32,
})  # fmt: skip
"""A row for every group that was generated, in the order of generation.

mean_reward is null where nothing could be judged; truncated_fraction is the share of its rollouts
that were cut at the length limit, clipped_fraction that of its tokens whose probability ratio was
clipped in the loss, null for a group that did not reach it; trained tells that it did, with unequal
rewards; correct_rollouts is null in trainings of earlier versions.
"""

OUTCOMES = Table("outcomes.parquet", {
    "item_id": TEXT, "initial_pass_rate": FLOAT, "initial_rollouts": INT, "initial_correct": INT,
    "final_pass_rate": FLOAT, "final_rollouts": INT, "final_correct": INT,
    "positive_in_training": FLAG, "ever_positive": FLAG, "visits": INT32,
})  # fmt: skip
"""A row for every item of the run, in its order.

ever_positive: a correct rollout in training or in the probe of the initial policy; visits: groups
generated for it in training. Where nothing is known of the training, as with `curate score`,
positive_in_training and visits are null, and ever_positive is of the probe and final rollouts.
"""

HELD_OUT = Table("held_out.parquet", {
    "step": INT32, "rollouts": INT, "item_id": TEXT, "total_rollouts": INT,
    "total_correct_rollouts": INT,
})  # fmt: skip
"""A row for every held-out item each time that it was evaluated; rollouts: spent on training."""

TRAINED = Table("trained.parquet", {"item_id": TEXT, "sample": INT32})
"""The rollouts of the probe that a pilot's first step was trained on."""

SCORED = Table("log_probabilities.parquet", {
    "item_id": TEXT, "sample": INT32, "reward": INT8, "tokens": INT32, "weight": INT32,
    "log_probability": FLOAT,
})  # fmt: skip
"""Distinct rollouts of the probe, scored under the policy of a pilot."""

# --- Of other commands ----------------------------------------------------------------------------

EMBEDDING_INDEX = Table(f"{VALIDATION}/prompt_embeddings.parquet", {"item_id": TEXT})
"""Whose each row of `prompt_embeddings.npy` is."""

CONFIRMED = Table(f"{VALIDATION}/confirmed.parquet", {
    "item_id": TEXT, "initial_pass_rate": FLOAT, "final_pass_rates": FLOATS,
    "final_pass_rate": FLOAT, "trainability": TEXT, "p_unlearnable": FLOAT,
    "confirmed_trainability": TEXT,
})  # fmt: skip

SCORES = Table(f"{JUDGING}/scores.parquet", {
    "item_id": TEXT, "sample": INT32, "pass": INT32, "score": INT32, "reason": TEXT,
    "problem": TEXT,
})  # fmt: skip
"""Each score of `curate judge` with the judge's reason, or why there is none."""

QUALITY = Table(f"{JUDGING}/quality.parquet", {
    "item_id": TEXT, **{field.name: field.type for field in REASONING_QUALITY},
})  # fmt: skip
"""A row an item: the mean score, 0 to 5, of its correct rollouts that were judged, over both
passes, null where none was; and how many were."""
