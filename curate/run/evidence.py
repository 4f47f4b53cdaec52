"""All that a run knows of its items in one table, a row an item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import RunError
from curate.run.quality import run_schema
from curate.run.tables import (
    CONFIRMED,
    GOLD,
    ITEM_ANSWERS,
    ITEMS,
    LIFT,
    PASS_RATES,
    QUALITY,
    SIMILARITY,
    TAGS,
    TEACHING,
    Table,
)

if TYPE_CHECKING:
    from curate.run.run import Run

_TABLES = (TAGS, PASS_RATES, ITEM_ANSWERS, LIFT, TEACHING, SIMILARITY, GOLD)
_LATER = {CONFIRMED: ("confirmed_trainability", "final_pass_rate"), QUALITY: ()}
"""Tables of other commands, and which of their columns; all if none is named."""
_OPTIONAL = (ITEM_ANSWERS, TEACHING, GOLD, *_LATER)
"""Tables that a finished run need not have."""
_OF_OPTIONS = {PASS_RATES: ("pass_at_", "reward_"), SIMILARITY: ("target_similarity",)}
"""How columns begin that are there by the settings of the run."""
_BEFORE = {LIFT: "lift_", SIMILARITY: "similarity_", GOLD: "gold_"}
"""What stands before the names of columns that say too little beside those of other tables."""
_UNCLEAR = {
    "standard_error",
    *("degrees_of_freedom", "rollouts_used", "nearest", "from_others"),
    *("prefixes", "distinct_prefixes", "seen_rollouts", "seen_correct"),
}


def item_evidence(run: Run) -> pa.Table:
    """Every item with its prompt, its answer, its tag, and what all tables of the run say of it.

    Returns:
        item_id, row, prompt (as rendered), answer, then the columns of the tables, in the order of
        the items. What a table of the run does not know of an item is null, and so are all columns
        of a table that the run does not have. `standard_error` and others whose names are clear in
        their own table only have its name before them: `lift_standard_error`.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    of_items = ["row", "prompt", "answer"]
    if run.config.verifier_field:
        of_items.append("verifier")
    columns = _columns(run.columns(ITEMS, *of_items))
    for table in _TABLES:
        named = [name for name in table.columns if name != "item_id"]
        found = _columns(_known(run, table, named)) | _columns(_by_options(run, table))
        before = _BEFORE.get(table, "")
        columns |= {
            f"{before}{name}" if name in _UNCLEAR else name: values
            for name, values in found.items()
        }
    for table, names in _LATER.items():
        columns |= _columns(_known(run, table, list(names or table.columns)))
    return pa.table({"item_id": run.ids, **columns})


def tag_evidence(run: Run) -> pa.Table:
    """Every item with the columns that the tagged file has of it, in their types and order.

    Returns:
        of `run_schema`, in the order of the items; what the run does not know of an item is null.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    schema = run_schema(run.path, run.config)
    columns = {"item_id": pa.chunked_array([run.ids])}
    for table in (*_TABLES, *_LATER):
        of_table = _LATER.get(table) or table.columns
        named = [name for name in of_table if name in schema.names and name != "item_id"]
        columns |= _columns(_known(run, table, named)) if named else {}
        found = _columns(_by_options(run, table))
        columns |= {name: values for name, values in found.items() if name in schema.names}
    if run.config.verifier_field:
        columns["verified_by"] = run.columns(ITEMS, "verifier")["verifier"]
    unknown = pa.nulls(len(run.ids))
    return pa.table(
        {field.name: columns.get(field.name, unknown).cast(field.type) for field in schema}
    )


def in_order_of(ids: pa.Array, read: pa.Table, where: object) -> pa.Table:
    """The rows of a table that has all of these items, in their order.

    Raises:
        RunError: an item is not in it; names `where`.
    """
    places = pc.index_in(ids, value_set=read["item_id"])
    if places.null_count:
        missing = ids.filter(pc.is_null(places))[0]
        raise RunError(f"{where} is damaged: item {missing} is not in it")
    return read.take(places)


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    columns = dict(zip(table.column_names, table.columns, strict=True))
    return {name: values for name, values in columns.items() if name != "item_id"}


def _known(run: Run, table: Table, names: list[str]) -> pa.Table:
    """Columns of the list; null throughout where the run has no such table."""
    if table in _OPTIONAL and not table.is_in(run.path):
        return pa.table({name: pa.nulls(len(run.ids), table.columns[name]) for name in names})
    if table is QUALITY:
        quality = run.quality(run.ids)
        assert quality is not None
        return quality
    return run.columns(table, *names)


def _by_options(run: Run, table: Table) -> pa.Table:
    """Columns that are there by the settings of the run."""
    if table not in _OF_OPTIONS:
        return pa.table({})
    read = table.read(run.path)
    names = [name for name in read.column_names if name.startswith(_OF_OPTIONS[table])]
    if not names:
        return pa.table({})
    return in_order_of(run.ids, read.select(["item_id", *names]), table.path(run.path))
