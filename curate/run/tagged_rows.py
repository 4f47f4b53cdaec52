"""Whether a tagged file is a run's: what the run says of every row, beside what the file says."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate.config import read_config_file
from curate.datasets.source import Source
from curate.errors import CurateError, UsageError
from curate.run.names import CONFIG
from curate.run.tables import PASS_RATES, ROWS, TAGS

# Settings that a trainer's file is made by.
_PROMPTS = (
    *("instruction", "system", "chat_template", "chat_template_kwargs"),
    *("prompt_field", "answer_field", "verifier", "dataset"),
)
_KEYS = ("item_id", "trainability", "total_correct_rollouts")


def tagged_rows(run: Path) -> pa.Table:
    """item_id, trainability and total_correct_rollouts of every row of a run's dataset, in order.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    ids = ROWS.read(run, "item_id")["item_id"]
    found = {"item_id": ids}
    for table, name in ((TAGS, "trainability"), (PASS_RATES, "total_correct_rollouts")):
        read = table.read(run, "item_id", name)
        found[name] = read[name].take(pc.index_in(ids, value_set=read["item_id"]))
    return pa.table(found)


def why_untagged(reason: str) -> str:
    """The tag_reason of a row without an item, of the reason in `rows.parquet`."""
    return reason if reason.startswith("not probed") else f"rejected: {reason}"


def check_written_by(source: Source, run: Path) -> None:
    """Refuse a tagged file whose rows are not those of the run: another run may have written it.

    Args:
        source: the file, with the tag columns in their types.
        run: the folder of a finished run.

    Raises:
        UsageError: so it is; names the first row.
        RunError: a file of the run is missing or damaged.
    """
    expected = tagged_rows(run)
    names = [name for name in _KEYS if name in source.columns]
    here = zip(*(expected[name].to_pylist() for name in names), strict=True)
    for number, (row, known) in enumerate(zip_longest(source.rows(), here), 1):
        if row is None or known is None:
            raise _not_this(source, run, "it has another number of rows")
        value: Any = row.value or {}
        for name, wanted in zip(names, known, strict=True):
            if value.get(name) != wanted:
                what = f"{name} of row {number} is {value.get(name)!r}, and {wanted!r} in the run"
                raise _not_this(source, run, what)


def run_of_rows(source: Source) -> Path | None:
    """The run in `./runs` that tagged all rows of a file that have an item, such as a part of its
    tagged file; None where there is none, or several whose prompts differ.
    """
    names = [name for name in _KEYS if name in source.columns]
    if "item_id" not in names:
        return None
    values = (row.value or {} for row in source.rows())
    wanted = {
        tuple(_comparable(value.get(name)) for name in names)
        for value in values
        if value.get("item_id")
    }
    found: dict[str, Path] = {}
    for config in sorted(Path("runs").glob(f"*/{CONFIG}")):
        try:
            rows = tagged_rows(config.parent)
            settings = read_config_file(config)
        except CurateError:
            continue  # Unfinished or damaged: it is not where this file is from, as far as is seen.
        tagged = set(zip(*(rows[name].to_pylist() for name in names), strict=True))
        if wanted and wanted <= tagged:
            prompts = repr([settings.get(name) for name in _PROMPTS])
            found.setdefault(prompts, config.parent)
    return next(iter(found.values())) if len(found) == 1 else None


def _comparable(value: Any) -> Any:
    """A cell as it can be looked up: a file that somebody changed may hold lists or objects."""
    return repr(value) if isinstance(value, list | dict) else value


def _not_this(source: Source, run: Path, what: str) -> UsageError:
    return UsageError(
        f"{source.path} is not the file that {run} wrote: {what}; the same `curate tag` with "
        "another --out writes it anew"
    )
