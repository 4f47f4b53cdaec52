"""What a finished run's folder says of its dataset: the facts of a dataset card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate.config import TagConfig
from curate.errors import RunError, UsageError
from curate.run.folder import read_manifest, read_parquet, read_run_config
from curate.tags import Trainability

MEASURES = (
    *("pass_rate", "forecast_pass_rate", "p_unlearnable", "lift"),
    *("gradient_similarity", "gradient_reliability"),
)
"""Columns whose medians a card shows for every tag."""


@dataclass(frozen=True)
class RunFacts:
    """A finished run. Every reader raises RunError where its file is missing or damaged."""

    path: Path
    manifest: Mapping[str, Any]
    config: TagConfig
    summary: Mapping[str, Any] | None
    """What `curate confirm` found; None where it was not run."""

    @cached_property
    def rows(self) -> pa.Table:
        """Every row of the dataset, in its order: `item_id` and `trainability`, null if not probed.

        Rows of one item, which is what repeated rows are, share its tag.
        """
        item_ids = read_parquet(self.path / "rows.parquet", ["item_id"])["item_id"]
        tags = self._tags
        places = pc.index_in(item_ids, value_set=tags["item_id"])
        if pc.sum(pc.and_(pc.is_null(places), pc.is_valid(item_ids))).as_py():
            raise RunError(f"{self.path}: rows.parquet names items that tags.parquet lacks")
        return pa.table({"item_id": item_ids, "trainability": tags["trainability"].take(places)})

    def rows_by_tag(self) -> dict[Trainability, int]:
        """How many rows each tag has, every tag named."""
        return {tag: self._count(self.rows, tag) for tag in Trainability}

    def items_by_tag(self) -> dict[Trainability, int]:
        """How many items each tag has, every tag named."""
        return {tag: self._count(self._tags, tag) for tag in Trainability}

    def medians(self) -> dict[Trainability, dict[str, tuple[float | None, int]]]:
        """Median of each of `MEASURES` for each tag, and over how many items; None over none."""
        tags = self._tags
        columns = {"p_unlearnable": tags["p_unlearnable"]}
        files = {
            "pass_rates": ["pass_rate"],
            "similarity": ["gradient_similarity", "gradient_reliability"],
        }
        if self.manifest.get("forecast") is not None:
            files |= {"tags": ["forecast_pass_rate"], "lift": ["lift"]}
        else:  # Of an earlier version.
            unknown = pa.chunked_array([pa.nulls(len(tags), pa.float64())])
            columns |= {"forecast_pass_rate": unknown, "lift": unknown}
        for name, measures in files.items():
            table = read_parquet(self.path / f"{name}.parquet", ["item_id", *measures])
            if not table["item_id"].equals(tags["item_id"]):
                raise RunError(f"{self.path}: {name}.parquet and tags.parquet are of other items")
            columns |= {measure: table[measure] for measure in measures}
        found: dict[Trainability, dict[str, tuple[float | None, int]]] = {}
        for tag in Trainability:
            is_tag = pc.equal(tags["trainability"], str(tag))
            found[tag] = {name: _median(columns[name].filter(is_tag)) for name in MEASURES}
        return found

    @cached_property
    def _tags(self) -> pa.Table:
        return read_parquet(
            self.path / "tags.parquet", ["item_id", "trainability", "p_unlearnable"]
        ).combine_chunks()

    @staticmethod
    def _count(table: pa.Table, tag: Trainability) -> int:
        return int(pc.sum(pc.equal(table["trainability"], str(tag))).as_py() or 0)


def read_run_facts(path: Path) -> RunFacts:
    """Read what a card says of a run.

    Raises:
        UsageError: not a run folder, or a run that is not finished.
        RunError: a file of it is damaged.
    """
    manifest = read_manifest(path)
    if manifest["stages"].get("tags", {}).get("state") != "done":
        raise UsageError(f"{path} is not finished: the same `curate tag` continues it")
    return RunFacts(path, manifest, read_run_config(path), _read_summary(path))


def _read_summary(path: Path) -> dict[str, Any] | None:
    file = path / "validation" / "summary.json"
    if not file.exists():
        return None
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file} cannot be read: {error}; `curate confirm` writes it anew"
        ) from error
    if not isinstance(summary, dict):
        raise RunError(f"{file} is not a summary; `curate confirm` writes it anew")
    return summary


def _median(values: pa.ChunkedArray) -> tuple[float | None, int]:
    known = values.drop_null()
    if not len(known):
        return None, 0
    return float(pc.quantile(known, 0.5)[0].as_py()), len(known)
