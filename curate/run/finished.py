"""A finished run folder of `curate tag`, read back: what it says of the items that one asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.errors import RunError, UsageError
from curate.run.features import RolloutFeatures, joined
from curate.run.folder import read_manifest, read_parquet, read_run_config
from curate.run.quality import QUALITY_FILE, read_reasoning_quality
from curate.tags import REASONING_QUALITY, Trainability

RATE_COLUMNS = {
    "total_rollouts": pa.int64(),
    "total_correct_rollouts": pa.int64(),
    "pass_rate": pa.float64(),
    "pass_rate_low": pa.float64(),
    "pass_rate_high": pa.float64(),
}
SIMILARITY_COLUMNS = {
    "gradient_similarity": pa.float64(),
    "gradient_similarity_low": pa.float64(),
    "gradient_similarity_high": pa.float64(),
    "standard_error": pa.float64(),
    "degrees_of_freedom": pa.float64(),
}
# What runs of earlier versions do not have.
FORECAST_COLUMNS = {
    name: pa.float64() for name in ("forecast_pass_rate", "forecast_low", "forecast_high")
}
LIFT_COLUMNS = {name: pa.float64() for name in ("lift", "lift_low", "lift_high")}
QUALITY_COLUMNS = {field.name: field.type for field in REASONING_QUALITY}
_WORDS = {str(tag) for tag in Trainability}


@dataclass(frozen=True)
class FinishedRun:
    """What a run found. Every reader raises RunError where its file is missing or damaged."""

    path: Path
    config: TagConfig
    manifest: Mapping[str, Any]

    @cached_property
    def ids(self) -> pa.Array:
        """The item_id of every item, in the run's order."""
        ids = self._read("items.parquet", {"item_id": pa.string()})["item_id"].combine_chunks()
        if ids.null_count or len(ids.unique()) < len(ids):
            raise RunError(f"{self.path / 'items.parquet'} is damaged: item_id is not unique")
        return ids

    @property
    def weight_hash(self) -> str | None:
        """Of the policy."""
        value: str | None = self.manifest.get("model", {}).get("weight_hash")
        return value

    @property
    def facts(self) -> dict[str, Any]:
        """Who was probed, in plain values."""
        return {
            "path": str(self.path),
            "dataset": self.config.dataset,
            "model": self.config.model,
            "weight_hash": self.weight_hash,
            "items": len(self.ids),
            "tau": self.config.tau,
            "lift": self.manifest.get("forecast", {}).get("source"),
        }

    def prompts(self, ids: pa.Array) -> pa.Array:
        """Return the prompts of these items as they were rendered."""
        return self.columns(ids, "items.parquet", {"prompt": pa.string()})[
            "prompt"
        ].combine_chunks()

    def tags(self, ids: pa.Array) -> list[str]:
        """Return the predicted tags of these items."""
        table = self.columns(ids, "tags.parquet", {"trainability": pa.string()})
        return self._words("tags.parquet", table["trainability"])

    def groups(self, ids: pa.Array) -> tuple[list[str | None], str]:
        """Return what `confirm` made of these items, or else their tags; and where that stands.

        None for an item that is not there, or has no confirmed tag.
        """
        file, name = "validation/confirmed.parquet", "confirmed_trainability"
        if not (self.path / file).exists():
            file, name = "tags.parquet", "trainability"
        table = self._read(file, {"item_id": pa.string(), name: pa.string()})
        words = table[name].take(pc.index_in(ids, value_set=table["item_id"]))
        return self._words(file, words), f"{name} in {self.path / file}"

    def measured(self, ids: pa.Array) -> dict[str, NDArray[Any]]:
        """Return `RATE_COLUMNS`, `SIMILARITY_COLUMNS`, `FORECAST_COLUMNS`, `LIFT_COLUMNS` and
        `QUALITY_COLUMNS`, each (items,).

        nan is unknown; without `curate judge` all of the quality is, and forecast and lift of a run
        of an earlier version.
        """
        files = {"pass_rates.parquet": RATE_COLUMNS, "similarity.parquet": SIMILARITY_COLUMNS}
        later = {"tags.parquet": FORECAST_COLUMNS, "lift.parquet": LIFT_COLUMNS}
        tables = [self.columns(ids, file, columns) for file, columns in files.items()]
        tables += [self.later_columns(ids, file, columns) for file, columns in later.items()]
        found = {name: table[name].to_numpy() for table in tables for name in table.column_names}
        judged = read_reasoning_quality(self.path, ids)
        for name in QUALITY_COLUMNS:
            unknown = np.full(len(ids), np.nan)
            found[name] = unknown if judged is None else judged[name].to_numpy()
        return found

    @property
    def has_forecast(self) -> bool:
        """Whether the run was tagged by a version that forecasts."""
        return self.manifest.get("forecast") is not None

    @property
    def is_judged(self) -> bool:
        """Whether `curate judge` has scored reasoning in this run."""
        return (self.path / QUALITY_FILE).exists()

    def features(self) -> RolloutFeatures | None:
        """Open the gradients of the correct rollouts; None where they were removed."""
        if not (self.path / "gradients" / "rollouts.npy").exists():
            return None
        try:
            row_of = {each: row for row, each in enumerate(self.ids.to_pylist())}
            return joined(self.path, row_of).correct
        except KeyError as error:
            raise RunError(
                f"{self.path / 'gradients' / 'rollouts.parquet'} is damaged: "
                f"item {error} is not in items.parquet"
            ) from error

    def _words(self, file: str, column: pa.ChunkedArray) -> list[Any]:
        unknown = set(column.unique().to_pylist()) - {None, *_WORDS}
        if unknown:
            raise RunError(f"{self.path / file} is damaged: {unknown.pop()!r} is no tag")
        words: list[Any] = column.to_pylist()
        return words

    def columns(self, ids: pa.Array, file: str, columns: Mapping[str, pa.DataType]) -> pa.Table:
        """Return columns of a file that has a row for every item, in the order of `ids`."""
        table = self._read(file, {"item_id": pa.string(), **columns})
        places = pc.index_in(ids, value_set=table["item_id"])
        if places.null_count:
            missing = ids.filter(pc.is_null(places))[0]
            raise RunError(f"{self.path / file} is damaged: item {missing} is not in it")
        return table.select(list(columns)).take(places)

    def later_columns(
        self, ids: pa.Array, file: str, columns: Mapping[str, pa.DataType]
    ) -> pa.Table:
        """Return columns that runs have since there are forecasts, as `columns` does.

        Null throughout in a run of an earlier version.
        """
        if self.has_forecast:
            return self.columns(ids, file, columns)
        return pa.table({name: pa.nulls(len(ids), kind) for name, kind in columns.items()})

    def _read(self, file: str, columns: Mapping[str, pa.DataType]) -> pa.Table:
        path = self.path / file
        try:
            return read_parquet(path, list(columns)).cast(pa.schema(list(columns.items())))
        except (pa.ArrowException, ValueError) as error:
            raise RunError(f"{path} is damaged: {error}") from error


def open_finished_run(path: Path) -> FinishedRun:
    """Open a run folder whose items have tags.

    Raises:
        UsageError: it is no run folder, or has not come that far.
    """
    manifest = read_manifest(path)
    if manifest["stages"].get("tags", {}).get("state") != "done":
        raise UsageError(f"{path} has no tags yet: continue it with its `curate tag` command")
    return FinishedRun(path, read_run_config(path), manifest)
