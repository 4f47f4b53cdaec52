"""A finished run of `curate tag`, read back: what is known of its items, and what was made of them.

Commands ask a `Run`; what they compute from its columns is theirs. The stages of `curate tag`
itself, which work on a run that is not finished, go by `curate.run.tables`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.errors import RunError, UsageError
from curate.notebook import run_html
from curate.run.evidence import in_order_of, item_evidence
from curate.run.features import RolloutFeatures, joined
from curate.run.folder import find_run, read_manifest, read_run_config
from curate.run.names import COMPARISONS, CONFIRMATION, JUDGEMENT, LIFT_FACTS, ROLLOUT_FEATURES
from curate.run.quality import read_reasoning_quality
from curate.run.rollouts import real_rewards, rollout_shards
from curate.run.tables import (
    CONFIRMED,
    FORECAST,
    ITEMS,
    LIFT,
    PASS_RATES,
    QUALITY,
    ROLLOUT_INDEX,
    ROLLOUT_TESTS,
    ROLLOUT_TURNS,
    ROLLOUTS,
    ROUNDS,
    ROWS,
    SIMILARITY,
    TAGS,
    Table,
    read_json,
    read_parquet,
    read_schema,
)
from curate.run.validated import FinishedSeeds, finished_recipes, finished_seeds
from curate.settings import did_you_mean
from curate.tags import REASONING_QUALITY, Trainability

MEASURED = {
    PASS_RATES: (
        *("total_rollouts", "total_correct_rollouts"),
        *("pass_rate", "pass_rate_low", "pass_rate_high"),
    ),
    SIMILARITY: (
        *("gradient_similarity", "gradient_similarity_low", "gradient_similarity_high"),
        *("standard_error", "degrees_of_freedom"),
    ),
    TAGS: FORECAST,
    LIFT: ("lift", "lift_low", "lift_high"),
}
"""Columns of numbers that tell of every item."""
_ROWS_AT_ONCE = 4096
_WORDS = {str(tag) for tag in Trainability}


@dataclass(frozen=True, repr=False)
class Run:
    """What a run found. Every reader raises RunError where its file is missing or damaged."""

    path: Path
    config: TagConfig = None  # type: ignore[assignment]  # Refused below.
    manifest: Mapping[str, Any] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Refuse a bare path.

        Raises:
            UsageError: settings or manifest are missing: `open` reads them.
        """
        if self.config is None or self.manifest is None:
            raise UsageError(f"Run.open({str(self.path)!r}) opens a run, not Run(...)")

    def __repr__(self) -> str:
        """Where it is, how many items it has, and their tags, as far as they can be read."""
        try:
            tags = ", ".join(f"{tag}: {count}" for tag, count in Counter(self.tags()).items())
            return f"Run({str(self.path)!r}, {len(self.ids):,} items: {tags})"
        except RunError as error:
            return f"Run({str(self.path)!r}, {error})"

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run whose items have tags: its folder, or the tagged file that it wrote.

        The run of a file is looked for in `./runs`.

        Raises:
            UsageError: it is no run folder and no tagged file, or has not come that far.
        """
        path = Path(path)
        path = find_run(path) if path.is_file() else path
        manifest = read_manifest(path)
        if manifest["stages"].get("tags", {}).get("state") != "done":
            raise UsageError(
                f"{path} is not finished, it has no tags yet: continue it with its `curate tag` "
                "command"
            )
        return cls(path, read_run_config(path), manifest)

    def _repr_html_(self) -> str:
        """What was probed, by which model, and the bar of tags, for a notebook."""
        return run_html(self.facts, self.tags())

    # --- Items ----------------------------------------------------------------------------------

    @cached_property
    def ids(self) -> pa.Array:
        """The item_id of every item, in the run's order."""
        ids = self._read(ITEMS, "item_id")["item_id"].combine_chunks()
        if ids.null_count or len(ids.unique()) < len(ids):
            raise RunError(f"{ITEMS.path(self.path)} is damaged: item_id is not unique")
        return ids

    def items(self) -> pa.Table:
        """All that is known of the items, a row each: see `item_evidence`."""
        return item_evidence(self)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Position of each item by item_id."""
        return {item_id: row for row, item_id in enumerate(self.ids.to_pylist())}

    def columns(self, table: Table, *names: str, ids: pa.Array | None = None) -> pa.Table:
        """Columns of a table that has a row for every item, in the order of the run's, or of `ids`.

        What only runs of later versions have is null throughout in one of an earlier version.
        """
        ids = self.ids if ids is None else ids
        if table is ITEMS:
            unknown: Sequence[str] = table.lacks(self.path, *names)
        else:
            unknown = () if self.has_forecast else table.later
        there = [name for name in names if name not in unknown]
        read = pa.table({})
        if there:
            read = self._read(table, *dict.fromkeys(("item_id", *there)))
            read = in_order_of(ids, read, table.path(self.path))
        return pa.table(
            {
                name: read[name] if name in there else pa.nulls(len(ids), table.columns[name])
                for name in names
            }
        )

    def _read(self, table: Table, *names: str) -> pa.Table:
        try:
            schema = pa.schema([(name, table.columns[name]) for name in names])
            return table.read(self.path, *names).cast(schema)
        except (pa.ArrowException, ValueError) as error:
            raise RunError(f"{table.path(self.path)} is damaged: {error}") from error

    def prompts(self, ids: pa.Array) -> pa.Array:
        """The prompts of these items as they were rendered."""
        return self.columns(ITEMS, "prompt", ids=ids)["prompt"].combine_chunks()

    def tags(self, ids: pa.Array | None = None) -> list[str]:
        """The predicted tags of all items, or of these."""
        return self._words(TAGS, self.columns(TAGS, "trainability", ids=ids)["trainability"])

    def groups(self, ids: pa.Array) -> tuple[list[str | None], str]:
        """What `curate confirm` made of these items, or else their tags; and where that stands.

        None for an item that is not there, or has no confirmed tag.
        """
        table, name = TAGS, "trainability"
        if self.is_confirmed:
            table, name = CONFIRMED, "confirmed_trainability"
        read = self._read(table, "item_id", name)
        words = read[name].take(pc.index_in(ids, value_set=read["item_id"]))
        return self._words(table, words), f"{name} in {table.path(self.path)}"

    def _words(self, table: Table, column: pa.ChunkedArray) -> list[Any]:
        unknown = set(column.unique().to_pylist()) - {None, *_WORDS}
        if unknown:
            raise RunError(f"{table.path(self.path)} is damaged: {unknown.pop()!r} is no tag")
        words: list[Any] = column.to_pylist()
        return words

    def measured(self, ids: pa.Array) -> dict[str, NDArray[Any]]:
        """The columns of `MEASURED` and the judged quality by name, each (items,).

        nan is unknown; without `curate judge` all of the quality is, and forecast and lift of a run
        of an earlier version.
        """
        tables = [self.columns(table, *names, ids=ids) for table, names in MEASURED.items()]
        found = {name: table[name].to_numpy() for table in tables for name in table.column_names}
        judged = self.quality(ids)
        for name in REASONING_QUALITY.names:
            unknown = np.full(len(ids), np.nan)
            found[name] = unknown if judged is None else judged[name].to_numpy()
        return found

    def quality(self, ids: pa.Array) -> pa.Table | None:
        """The judged reasoning of items, of `QUALITY.schema`; None where the run was not judged."""
        return read_reasoning_quality(self.path, ids)

    # --- Rows and rollouts ----------------------------------------------------------------------

    def rows(self, *names: str) -> pa.Table:
        """A row for every row of the dataset: its item, or why it was not probed.

        Args:
            names: of the columns; all if none is named.
        """
        return ROWS.read(self.path, *names)

    def rollouts(self, *names: str) -> pa.Table:
        """All rollouts, in the order in which they were drawn.

        Args:
            names: of the columns; all if none is named. Completions take most of the memory.

        Raises:
            UsageError: a column is unknown; names the nearest.
        """
        more = {**ROLLOUT_TESTS, **ROLLOUT_TURNS}
        columns = {**ROLLOUTS.columns, **more}
        if not names:
            files = rollout_shards(self.path)
            there = read_schema(files[0]).names if files else []
            names = (*ROLLOUTS.columns, *(name for name in more if name in there))
        for name in names:
            if name not in columns:
                hint = did_you_mean(name, columns) or f"; known: {', '.join(columns)}"
                raise UsageError(f"rollouts have no column {name!r}{hint}")
        schema = pa.schema([(name, columns[name]) for name in names])
        if "reward" in schema.names and real_rewards(self.path):
            place = schema.get_field_index("reward")
            schema = schema.set(place, pa.field("reward", pa.float64()))
        batches = (batch.cast(schema) for batch in self.rollout_batches(*schema.names))
        return pa.Table.from_batches(batches, schema=schema)

    def rollout_batches(self, *names: str) -> Iterator[pa.RecordBatch]:
        """Columns of the rollouts, some at a time, in the order in which they were drawn."""
        for file in rollout_shards(self.path):
            try:
                with pq.ParquetFile(file) as shard:
                    yield from shard.iter_batches(_ROWS_AT_ONCE, columns=list(names))
            except (OSError, KeyError, pa.ArrowException) as error:
                raise RunError(f"{file} is missing or damaged: {error}") from error

    def rounds(self) -> Iterator[pa.Table]:
        """How many rollouts each item was to have after each round."""
        for file in ROUNDS.files(self.path):
            table = read_parquet(file, list(ROUNDS.columns))
            if table.column_names != list(ROUNDS.columns):
                raise RunError(
                    f"{file} is damaged: it has no columns {' and '.join(ROUNDS.columns)}"
                )
            yield table

    def features(self) -> RolloutFeatures | None:
        """The gradients of the correct rollouts; None where they were removed."""
        if not (self.path / ROLLOUT_FEATURES).exists():
            return None
        try:
            return joined(self.path, self.row_of).correct
        except KeyError as error:
            raise RunError(
                f"{ROLLOUT_INDEX.path(self.path)} is damaged: item {error} is not in {ITEMS.file}"
            ) from error

    # --- The run as a whole ---------------------------------------------------------------------

    @property
    def weight_hash(self) -> str | None:
        """Of the policy."""
        value: str | None = self.manifest.get("model", {}).get("weight_hash")
        return value

    @property
    def drawn_by(self) -> str | None:
        """Who drew rollouts that existed, by the settings or their files; None: not known."""
        taken = self.manifest.get("rollouts") or {}
        policy: str | None = (taken.get("drawn") or {}).get("policy")
        return self.config.rollouts_by or policy

    @property
    def facts(self) -> dict[str, Any]:
        """Who was probed, in plain values."""
        return {
            "path": str(self.path),
            "dataset": self.config.dataset,
            "model": self.config.model or self.drawn_by or "a policy that is not known",
            "weight_hash": self.weight_hash,
            "items": len(self.ids),
            "tau": self.config.tau,
            "lift": self.manifest.get("forecast", {}).get("source"),
        }

    @property
    def has_forecast(self) -> bool:
        """Whether the run was tagged by a version that forecasts."""
        return self.manifest.get("forecast") is not None

    def lift_facts(self) -> dict[str, Any]:
        """Where the lift of the items comes from."""
        return read_json(self.path / LIFT_FACTS)

    @property
    def is_judged(self) -> bool:
        """Whether `curate judge` has scored reasoning in this run."""
        return QUALITY.is_in(self.path)

    @property
    def is_confirmed(self) -> bool:
        """Whether `curate confirm` has said what became of the items."""
        return CONFIRMED.is_in(self.path)

    # --- What other commands left in it -----------------------------------------------------------

    def seeds(self, recipe: str = "") -> FinishedSeeds:
        """The finished trainings by a recipe; see `finished_seeds`."""
        return finished_seeds(self.path, recipe)

    def recipes(self) -> dict[str, FinishedSeeds]:
        """The recipes with a finished training, by name."""
        return finished_recipes(self.path)

    def confirmation(self) -> dict[str, Any] | None:
        """The summary of `curate confirm`; None where it has not run."""
        file = self.path / CONFIRMATION
        if not file.exists():
            return None
        try:
            return read_json(file)
        except RunError as error:
            raise RunError(f"{error}; `curate confirm {self.path}` writes it anew") from error

    def judgement(self) -> dict[str, Any]:
        """What `curate judge` tells of its work, empty where there is nothing to be read.

        `model` is the judge, `rubric_sha256` what it graded by, `agreement` how far its passes
        agree.
        """
        try:
            return read_json(self.path / JUDGEMENT)
        except RunError:
            return {}

    def comparisons(self) -> list[Path]:
        """The summaries of `curate compare` with this run as the second."""
        return sorted((self.path / COMPARISONS).glob("*.json"))
