"""The commands as library functions, for notebooks and scripts.

Beside the command line this is the only module here that reaches up to `probes`, and like it only
when a function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def validate(
    path: str | Path,
    *,
    recipe: str | Sequence[str] = "baseline",
    seeds: Sequence[int] = (1, 42, 37),
    model: str | Path = "",
    extra_items: str | Path = "",
    held_out: str | Path = "",
    keep: str = "none",
) -> list[Path]:
    """Train by recipes on the items of a run and write every item's outcome.

    Args:
        path: a run folder of `tag`, or its tagged file.
        recipe: names, paths of TOML files, or lists such as `all-small`.
        seeds: each recipe is trained once with each.
        model, extra_items: what the recipes `mid-trained` and `augment-...` ask for.
        held_out: a dataset of items that are evaluated on the way and not trained on.
        keep: weights that stay: none, policy or all.

    Returns:
        the `outcomes.parquet` of every recipe and seed.

    Raises:
        UsageError: bad input; nothing was spent.
        RunError: a step failed; the same call continues.
    """
    from recipes.recipe import read_recipes, with_options

    names = [recipe] if isinstance(recipe, str) else recipe
    chosen = [
        with_options(each, model=str(model), extra_items=str(extra_items))
        for each in read_recipes(names)
    ]
    # TRL takes seconds to import, so what can be wrong with a recipe shows before.
    from recipes.validation import Wanted, validate_run

    wanted = Wanted(model=str(model), held_out=str(held_out), keep=keep)
    return [
        folder / "outcomes.parquet" for folder in validate_run(Path(path), chosen, seeds, wanted)
    ]


def _with_types(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give the tag columns their types, which a CSV or JSON file does not keep."""
    for field in schema:
        column = table[field.name]
        if pa.types.is_string(column.type):  # In CSV null is an empty cell.
            column = pc.if_else(pc.equal(column, ""), None, column)
        place = table.schema.get_field_index(field.name)
        table = table.set_column(place, field, column.cast(field.type))
    return table
