"""What a finished run's folder says of its dataset: the facts of a dataset card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import RunError
from curate.run.run import Run
from curate.run.tables import LIFT, PASS_RATES, ROWS, SIMILARITY, TAGS
from curate.tags import Trainability

MEASURES = {
    "pass_rate": PASS_RATES,
    "forecast_pass_rate": TAGS,
    "p_unlearnable": TAGS,
    "lift": LIFT,
    "gradient_similarity": SIMILARITY,
    "gradient_reliability": SIMILARITY,
}
"""Columns whose medians a card shows for every tag."""


@dataclass(frozen=True)
class RunFacts:
    """A finished run. Every reader raises RunError where its file is missing or damaged."""

    run: Run
    summary: Mapping[str, Any] | None
    """What `curate confirm` found; None where it was not run."""

    @cached_property
    def rows(self) -> pa.Table:
        """Every row of the dataset, in its order: `item_id` and `trainability`, null if not probed.

        Rows of one item, which is what repeated rows are, share its tag.
        """
        item_ids = self.run.rows("item_id")["item_id"]
        tags = self._tags
        places = pc.index_in(item_ids, value_set=tags["item_id"])
        if pc.sum(pc.and_(pc.is_null(places), pc.is_valid(item_ids))).as_py():
            raise RunError(f"{self.run.path}: {ROWS.file} names items that {TAGS.file} lacks")
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
        columns = {name: self.run.columns(table, name)[name] for name, table in MEASURES.items()}
        found: dict[Trainability, dict[str, tuple[float | None, int]]] = {}
        for tag in Trainability:
            is_tag = pc.equal(tags["trainability"], str(tag))
            found[tag] = {name: _median(columns[name].filter(is_tag)) for name in MEASURES}
        return found

    @cached_property
    def _tags(self) -> pa.Table:
        return pa.table({"item_id": self.run.ids, "trainability": self.run.tags()})

    @staticmethod
    def _count(table: pa.Table, tag: Trainability) -> int:
        return int(pc.sum(pc.equal(table["trainability"], str(tag))).as_py() or 0)


def read_run_facts(path: Path) -> RunFacts:
    """Read what a card says of a run.

    Raises:
        UsageError: not a run folder, or a run that is not finished.
        RunError: a file of it is damaged.
    """
    run = Run.open(path)
    return RunFacts(run, run.confirmation())


def _median(values: pa.ChunkedArray) -> tuple[float | None, int]:
    known = values.drop_null()
    if not len(known):
        return None, 0
    return float(pc.quantile(known, 0.5)[0].as_py()), len(known)
