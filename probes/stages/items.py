"""The reading stage: every row of a dataset becomes an item or a reject with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from curate.datasets.fields import RowRejected
from curate.datasets.layouts import Layout, Question, read_question
from curate.datasets.source import Source
from curate.errors import UsageError
from curate.files import atomic_writer
from curate.run.names import REJECTS
from curate.run.tables import ROWS, Folder
from curate.tagged.csv_files import check_reads_back
from probes.verifiers.by_row import RowVerifiers

CheckGolds = Callable[[Sequence[str], Sequence[str], Sequence[Sequence[str]]], list[str | None]]
CheckColumns = Callable[[Iterable[str]], None]


@dataclass(frozen=True, slots=True)
class Item:
    """One distinct question of the dataset, and the first row that asks it."""

    item_id: str
    row: int
    question: Question
    verifier: str
    """What judges its answers."""


def read_items(
    source: Source,
    layout: Layout,
    limit: int,
    run: Folder,
    *,
    verifiers: RowVerifiers,
    check_columns: CheckColumns,
    check_golds: CheckGolds,
    into_csv: bool = False,
) -> tuple[list[Item], dict[str, int]]:
    """Read the dataset into `rows.parquet` and `rejects.jsonl`; return its items and counts.

    `rows.parquet` has a line for every row of the dataset: row, item_id (null where it is not
    probed) and reason (why not). Rows with the same prompt and answer share one item.

    Args:
        verifiers: which verifier judges the answers to a row.
        check_columns: raises UsageError for column names that cannot be tagged. A JSON row can have
            columns that no row before it had, and the time to refuse them is before sampling.
        check_golds: says of each gold answer why its verifier, named in the second list, does not
            accept it against itself, or the programs of the third list; None where it does.
        into_csv: whether the tagged file will be CSV and the dataset is not.

    Raises:
        UsageError: not one row can be used, what `check_columns` raises, or a question that could
            not be read again from CSV.
    """
    items: dict[str, Item] = {}
    rows: list[int] = []
    item_ids: list[str | None] = []
    reasons: list[str | None] = []
    for row, found, verifier in _questions(
        source, layout, limit, verifiers, check_columns, into_csv
    ):
        rows.append(row)
        item_ids.append(None)
        reasons.append(None)
        if isinstance(found, Question):
            item_id = found.item_id
            item_ids[-1] = items.setdefault(item_id, Item(item_id, row, found, verifier)).item_id
        else:
            reasons[-1] = found
    golds = list(dict.fromkeys(_gold(item) for item in items.values()))
    why_not = check_golds(
        [gold for gold, _, _ in golds], [name for _, name, _ in golds], [own for _, _, own in golds]
    )
    refused = {gold: why for gold, why in zip(golds, why_not, strict=True) if why is not None}
    for index, found_id in enumerate(item_ids):
        why = refused.get(_gold(items[found_id])) if found_id else None
        if why is not None:
            item_ids[index], reasons[index] = None, why
    items = {i: item for i, item in items.items() if _gold(item) not in refused}
    probed = len(rows) if not limit else min(limit, len(rows))
    if not items:
        first = next((reason for reason in reasons if reason), "no rows")
        raise UsageError(f"{source.name}: none of its {probed} rows can be used; first: {first}")
    ROWS.write(
        run,
        pa.table(
            {
                "row": pa.array(rows, pa.int64()),
                "item_id": pa.array(item_ids, pa.string()),
                "reason": pa.array(reasons, pa.string()),
            }
        ),
    )
    rejected = {row: why for row, why in zip(rows[:probed], reasons, strict=False) if why}
    write_rejects(run, source, rejected)
    counts = {
        "rows": len(rows),
        "rows_probed": probed - len(rejected),
        "rows_rejected": len(rejected),
        "items": len(items),
    }
    return list(items.values()), counts


def _gold(item: Item) -> tuple[str, str, tuple[str, ...]]:
    """What its verifier is to accept: the answer, or tests with programs that pass them."""
    return item.question.answer, item.verifier, item.question.solutions


def _questions(
    source: Source,
    layout: Layout,
    limit: int,
    verifiers: RowVerifiers,
    check_columns: CheckColumns,
    into_csv: bool,
) -> Iterator[tuple[int, Question | str, str]]:
    """Yield every row's number, its question or the reason why it has none, and its verifier."""
    for position, row in enumerate(source.rows()):
        found: Question | str
        verifier = ""
        check_columns(row.value or ())
        if limit and position >= limit:
            found = f"not probed: beyond --limit {limit}"
        elif row.value is None:
            found = row.problem or "cannot be read"
        else:
            try:
                verifier = verifiers.of(row.value)
                found = read_question(row.value, layout)
                found = verifiers.why_no_answer(verifier, found.answer) or found
            except RowRejected as error:
                found = str(error)
            else:
                if into_csv and isinstance(found, Question):
                    check_reads_back(row.row, row.value, found, layout)
        yield row.row, found, verifier


def write_rejects(run: Folder, source: Source, rejected: dict[int, str]) -> None:
    """Write `rejects.jsonl`: row, reason and raw text of each rejected row."""
    with atomic_writer(run / REJECTS, "w") as file:
        for row in source.rows() if rejected else ():
            if row.row in rejected:
                entry = {"row": row.row, "reason": rejected[row.row], "raw": row.raw}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def reject_items(run: Folder, source: Source, refused: dict[str, str]) -> int:
    """Turn items that a later stage cannot use into rejects; return how many rows that were."""
    table = ROWS.read(run)
    rows, item_ids = table["row"].to_pylist(), table["item_id"].to_pylist()
    reasons = table["reason"].to_pylist()
    changed = 0
    for index, item_id in enumerate(item_ids):
        if item_id in refused:
            item_ids[index], reasons[index] = None, refused[item_id]
            changed += 1
    columns = {"row": rows, "item_id": item_ids, "reason": reasons}
    ROWS.write(run, pa.table(columns, schema=table.schema))
    rejected = {
        row: why
        for row, why in zip(rows, reasons, strict=True)
        if why and not why.startswith("not probed")
    }
    write_rejects(run, source, rejected)
    return changed
