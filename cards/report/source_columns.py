"""Columns of a dataset that sort its items into few kinds, such as task, source or level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.datasets.kinds import MOST_KINDS, WORK_COLUMNS, is_kind_name
from curate.datasets.row import SourceRow
from curate.datasets.source import Source, open_source
from curate.errors import CurateError
from curate.run.run import Run
from curate.tags import tag_schema

MOST_COLUMNS = 6


@dataclass(frozen=True)
class SourceColumn:
    """A column of strings with few values."""

    name: str
    values: list[str]
    """Most frequent first."""
    codes: NDArray[np.int64]
    """(items,): position in `values`; −1 where the row has none."""


def read_source_columns(
    run: Run, ids: pa.Array, row: NDArray[np.int64]
) -> tuple[list[SourceColumn], str | None]:
    """Find the columns of strings with 2 to 20 values, each shared by two items on average.

    They are read from the dataset, or else from the tagged file: whichever is still there and is
    this run's. Nothing is fetched: a Hub dataset is known by its tagged file alone.

    Args:
        run: whose dataset.
        ids: of the items.
        row: (items,): the row of the dataset that each item stands for.

    Returns:
        the columns, at most 6 in the order of the dataset; and why there are none.
    """
    found = _open_dataset(run, row) or _open_tagged(run, ids)
    if found is None:
        return [], "neither the dataset nor the tagged file of this run was found from here"
    source, position_of = found
    try:
        columns = _few_valued(source, position_of, len(ids), _own_columns(run))
    except CurateError as error:
        return [], str(error)
    if not columns:
        return [], f"no column of the dataset holds 2 to {MOST_KINDS} different short texts"
    return columns[:MOST_COLUMNS], None


def _open_dataset(
    run: Run, row: NDArray[np.int64]
) -> tuple[Source, Callable[[SourceRow], int | None]] | None:
    config, known = run.config, run.manifest.get("dataset", {})
    if not config.dataset or not Path(config.dataset).exists():
        return None
    try:
        source = open_source(config.dataset, split=config.split, subset=config.subset or None)
    except CurateError:
        return None
    if source.fingerprint != known.get("fingerprint"):
        return None
    position = {number: at for at, number in enumerate(row.tolist())}
    return source, lambda each: position.get(each.row)


def _open_tagged(
    run: Run, ids: pa.Array
) -> tuple[Source, Callable[[SourceRow], int | None]] | None:
    if not run.config.out or not Path(run.config.out).is_file():
        return None
    try:
        source = open_source(run.config.out)
    except CurateError:
        return None
    if "item_id" not in source.columns:
        return None
    position = {item_id: at for at, item_id in enumerate(ids.to_pylist())}

    def position_of(each: SourceRow) -> int | None:
        item_id = (each.value or {}).get("item_id")
        return position.get(item_id) if isinstance(item_id, str) else None

    return source, position_of


def _own_columns(run: Run) -> set[str]:
    """Columns that say nothing of kinds: the question, the answer, and what tagging adds."""
    known = run.manifest.get("dataset", {})
    fields = (known.get(name) for name in ("prompt_field", "answer_field"))
    return {
        *WORK_COLUMNS,
        *tag_schema(run.config.k, target=True, judged=True, mixed=True, rewards=True).names,
        *(str(field).partition(".")[0] for field in fields if field),
    }


def _few_valued(
    source: Source,
    position_of: Callable[[SourceRow], int | None],
    items: int,
    left_out: set[str],
) -> list[SourceColumn]:
    """Read the rows once, forgetting each column as soon as it has too many values."""
    codes: dict[str, NDArray[np.int64]] = {}
    values: dict[str, dict[str, int]] = {}
    dropped = set(left_out)
    for row in source.rows():
        at = position_of(row)
        if at is None:
            continue
        for name, value in (row.value or {}).items():
            if name in dropped or value is None:
                continue
            if (
                not is_kind_name(value)
                or len(values.setdefault(name, {}) | {value: 0}) > MOST_KINDS
            ):
                dropped.add(name)
                codes.pop(name, None)
                values.pop(name, None)
                continue
            if name not in codes:
                codes[name] = np.full(items, -1, dtype=np.int64)
            if codes[name][at] < 0:  # Rows with one prompt and answer are one item: the first.
                codes[name][at] = values[name].setdefault(value, len(values[name]))
    return [
        _ordered(name, list(values[name]), column)
        for name, column in codes.items()
        if 2 <= len(values[name]) <= items / 2
    ]


def _ordered(name: str, values: list[str], codes: NDArray[np.int64]) -> SourceColumn:
    """Put the most frequent value first."""
    counts = np.bincount(codes[codes >= 0], minlength=len(values))
    order = np.argsort(-counts, kind="stable")
    rank = np.append(np.argsort(order), -1)
    return SourceColumn(name, [values[each] for each in order], rank[codes])
