"""The commands as library functions, for notebooks and scripts.

Beside the command line this is the only module here that reaches up to `probes`, and like it only
when a function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate.config import config_from_mapping
from curate.errors import UsageError


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
    missing = [name for name in ("trl", "peft", "accelerate") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"training needs {', '.join(missing)}: pip install 'rl-curate[train]' installs it"
        )
    # TRL takes seconds to import, so what can be wrong with a recipe shows before.
    from recipes.validation import Wanted, validate_run

    wanted = Wanted(model=str(model), held_out=str(held_out), keep=keep)
    return [
        folder / "outcomes.parquet" for folder in validate_run(Path(path), chosen, seeds, wanted)
    ]


def confirm(run: str | Path, recipe: str = "") -> dict[str, Any]:
    """Confirm the tags of a run by its GRPO runs, as `curate confirm` does.

    Args:
        run: the run folder.
        recipe: whose outcomes confirm; by default `baseline`, or `baseline-small`, or the only one.

    Returns:
        the summary: what `validation/summary.json` of the run folder then holds.

    Raises:
        UsageError: not a run folder, nothing validated, or outcomes of other items.
        RunError: a file is damaged, or the disk is full.
    """
    from recipes.confirmation import confirm_run

    return confirm_run(Path(run), recipe)


def calibrate(
    run: str | Path, *more_runs: str | Path, out: str | Path | None = None
) -> dict[str, Any]:
    """Fit a predictor of unlearnable items on confirmed runs, as `curate calibrate` does.

    Args:
        run: a run folder of `curate tag`, confirmed by `curate confirm`.
        more_runs: others, whose items are pooled with its own.
        out: the predictor file; `validation/predictor.json` in the first run if None.

    Returns:
        what the file holds, with its name as `file`: the coefficients, what they were fitted on,
        and under `cross_validation` how well they predict other items.

    Raises:
        UsageError: a run is not confirmed, the runs do not go together, or there are too few items.
        RunError: a file of a run is missing or damaged.
    """
    from recipes.calibration import calibrate_run

    return calibrate_run(
        [Path(each) for each in (run, *more_runs)], Path(out) if out is not None else None
    )


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


def report(run: str | Path, out: str | Path | None = None) -> dict[str, Any]:
    """Write the report of a run as one HTML file, as `curate report` does.

    Args:
        run: the run folder.
        out: the file, ending in .html; `report.html` in the run folder if None.

    Returns:
        the numbers of every chart in it, with its name as `file`.

    Raises:
        UsageError: no run folder, one that is not finished, or a bad name for the file.
        RunError: a file of the run is missing or damaged, or the disk is full.
    """
    from cards.report import report_run

    file, facts = report_run(Path(run), None if out is None else Path(out))
    return {"file": str(file), **facts}


def _with_types(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give the tag columns their types, which a CSV or JSON file does not keep."""
    for field in schema:
        column = table[field.name]
        if pa.types.is_string(column.type):  # In CSV null is an empty cell.
            column = pc.if_else(pc.equal(column, ""), None, column)
        place = table.schema.get_field_index(field.name)
        table = table.set_column(place, field, column.cast(field.type))
    return table
