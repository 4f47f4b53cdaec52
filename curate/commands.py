"""The commands as library functions, for notebooks and scripts.

Beside the command line this is the only module here that reaches up to `probes`, and like it only
when a function is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate.config import config_from_mapping


def tag(dataset: str | Path, model: str | Path, **settings: Any) -> pa.Table:
    """Probe every item of a dataset and write the tagged dataset, as `curate tag` does.

    Args:
        dataset: a file, folder or Hub id.
        model: a model folder, a Hub id (`org/name@revision`) or a .gguf file.
        settings: the options of `curate tag`, with underscores: `min_rollouts=64`.

    Returns:
        the tagged dataset, a row for every row of the input, as it stands in the tagged file.

    Raises:
        UsageError: bad input or settings.
        RunError: a stage failed; the same call continues.
    """
    from curate.datasets import open_source
    from curate.tagged import read_table
    from curate.tags import tag_schema
    from probes.tagging import tag_dataset

    values = {"dataset": dataset, "model": model, **settings}
    config, out = tag_dataset(config_from_mapping(values, "tag()"))
    return _with_types(read_table(open_source(out)), tag_schema(config.k))


def compare(
    run_a: str | Path,
    run_b: str | Path,
    *,
    groups_from: str | Path | None = None,
    out: str | Path | None = None,
) -> tuple[pa.Table, dict[str, Any]]:
    """Compare two probes of the same items by two policies, as `curate compare` does.

    Args:
        run_a: run folder of `curate tag`: the policy before.
        run_b: the same: the policy after.
        groups_from: the run folder whose tags, or confirmed tags, make the groups; default `run_a`.
        out: a Parquet file for the items, with the summary beside it as `.json`; by default
            `RUN_B/comparison/<name of RUN_A>.parquet`.

    Returns:
        the items that both runs have (`recipes.comparison.COMPARISON_SCHEMA`), and the summary.

    Raises:
        UsageError: bad input, or no item is in both.
        RunError: a file of a run is missing or damaged.
    """
    from cards.comparison import comparison_file, write_comparison
    from recipes.comparison import compare_runs

    a, b = Path(run_a), Path(run_b)
    file = comparison_file(a, b, None if out is None else Path(out))
    comparison = compare_runs(a, b, None if groups_from is None else Path(groups_from))
    write_comparison(file, comparison)
    return comparison.items, comparison.summary


def _with_types(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give the tag columns their types, which a CSV or JSON file does not keep."""
    for field in schema:
        column = table[field.name]
        if pa.types.is_string(column.type):  # In CSV null is an empty cell.
            column = pc.if_else(pc.equal(column, ""), None, column)
        place = table.schema.get_field_index(field.name)
        table = table.set_column(place, field, column.cast(field.type))
    return table
