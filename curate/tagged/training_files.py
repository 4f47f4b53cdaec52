"""Writing what one trains on: some rows of a tagged dataset, or all of them in an order."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.datasets.fields import RowRejected
from curate.datasets.kinds import KindCounts
from curate.datasets.layouts import choose_layout, read_question
from curate.datasets.source import Source
from curate.errors import UsageError
from curate.tagged.csv_files import check_reads_back
from curate.tagged.expressions import parse_expression, unknown_column
from curate.tagged.joined import column_of, columns_of_model
from curate.tagged.orders import READ, order_rows
from curate.tagged.rows import (
    TaggedDataset,
    open_tagged,
    tag_columns,
    take_rows,
    with_other_names,
)
from curate.tagged.rules import CONFIRMED, PREDICTED, Drop, Row, Rules, filter_rows
from curate.tagged.trainers import check_format, make_formatter
from curate.tagged.training_file import TrainingFile
from curate.tagged.write import check_out, write_tagged
from curate.tags import Trainability

_REASON = pa.schema([("dropped_reason", pa.string())])
NO_TAG = "(none)"
"""What rows without a tag are counted under."""


def filter_file(
    wanted: TrainingFile, rules: Rules, expression: str = "", dropped: Path | None = None
) -> dict[str, Any]:
    """Write the rows of a tagged dataset that rules keep, and those that they drop.

    Args:
        wanted: the tagged dataset, and the file to be written.
        rules: all but the expression, which is parsed here, where the columns are known.
        dropped: where dropped rows go, each with its `dropped_reason`; None: nowhere.

    What is returned and raised is told in `curate.tagged.filter`.
    """
    tagged, suffix = open_to_choose(wanted, dropped)
    rules = _checked(rules, expression, tagged)
    tags: list[str] = []
    kinds = KindCounts(no_kinds(tagged, expression))
    rows = kinds.noting(tagged.values())
    decisions = filter_rows(_noting_tags(rows, rules.tag_column, tags), rules)
    found = write_decided(wanted, tagged, suffix, decisions, dropped)
    notes, kept = found.pop("notes"), kept_places(decisions)
    return found | {
        **counted_tags(tagged, rules.tag_column, tags, kept),
        "notes": [*notes, *kinds.lost(kept)],
    }


def open_to_choose(wanted: TrainingFile, dropped: Path | None = None) -> tuple[TaggedDataset, str]:
    """Open a tagged dataset of which some rows will be written, and check where they go.

    Args:
        wanted: the tagged dataset, and the file to be written.
        dropped: where the other rows go; None: nowhere.

    Returns:
        the dataset, and the suffix whose kind of file is written.

    Raises:
        UsageError: the dataset cannot be read, or a file cannot be written.
    """
    out = Path(wanted.out)
    suffix = check_format(wanted.format, out)
    tagged = open_tagged(wanted.tagged, wanted.model)
    check_out(tagged.source, out, suffix)
    if dropped is not None:
        check_out(tagged.source, dropped)
        if dropped.resolve() == out.resolve():
            raise UsageError(f"{out} cannot hold both the rows that stay and those dropped")
    return tagged, suffix


def kept_places(decisions: Sequence[Drop | None]) -> list[int]:
    """The places of the rows that stay, counted from 0."""
    return [place for place, drop in enumerate(decisions) if drop is None]


def write_decided(
    wanted: TrainingFile,
    tagged: TaggedDataset,
    suffix: str,
    decisions: Sequence[Drop | None],
    dropped: Path | None = None,
) -> dict[str, Any]:
    """Write the rows that stay, and those that do not with their reasons; the counts of both.

    Args:
        wanted: the file to be written.
        tagged: where the rows are from.
        suffix: the kind of file.
        decisions: of every row, in order: None for one that stays, or why it does not.
        dropped: where dropped rows go, each with its `dropped_reason`; None: nowhere.

    Raises:
        UsageError: no row stays; nothing was written.
    """
    source = tagged.source
    drops = {place: drop for place, drop in enumerate(decisions) if drop is not None}
    kept = kept_places(decisions)
    reasons = dict(Counter(drop.rule for drop in drops.values()).most_common())
    if not kept:
        why = "; ".join(f"{count:,}: {rule}" for rule, count in reasons.items())
        raise UsageError(f"no row of {len(decisions):,} is left: {why}")
    notes = write_places(tagged, kept, suffix, wanted)
    if dropped is not None:
        why_dropped = ({"dropped_reason": drop.reason} for drop in drops.values())
        write_tagged(
            take_rows(source, list(drops)), dropped, why_dropped, _REASON, replace_columns=True
        )
    return {
        "tagged_file": str(source.path or source.name),
        "out": str(wanted.out),
        "dropped_file": None if dropped is None else str(dropped),
        "rows": len(decisions),
        "kept": len(kept),
        "dropped": len(drops),
        "reasons": reasons,
        "notes": notes,
    }


def order_file(wanted: TrainingFile, by: str, seed: int = 0) -> dict[str, Any]:
    """Write the rows of a tagged dataset in the order of a strategy; every row stays.

    What is returned and raised is told in `curate.tagged.order`.
    """
    order_rows([], by)  # What is wrong with the name shows before anything is read.
    out = Path(wanted.out)
    suffix = check_format(wanted.format, out)
    tagged = open_tagged(wanted.tagged, wanted.model)
    check_out(tagged.source, out, suffix)
    tagged.check_tags("the order")
    rows = [{name: value.get(name) for name in READ} for value in tagged.values()]
    places = order_rows(rows, by, seed)
    notes = write_places(tagged, places, suffix, wanted)
    where: dict[str, list[int]] = {}
    for number, place in enumerate(places, 1):
        where.setdefault(str(rows[place]["trainability"] or NO_TAG), []).append(number)
    return {
        "tagged_file": str(tagged.source.path or tagged.source.name),
        "out": str(out),
        "by": by,
        "seed": seed,
        "rows": len(rows),
        "tags": {
            tag: {"rows": len(where[tag]), "first": where[tag][0], "last": where[tag][-1]}
            for tag in _in_usual_order(where)
        },
        "notes": notes,
    }


def write_places(
    tagged: TaggedDataset, places: Sequence[int], suffix: str, wanted: TrainingFile
) -> list[str]:
    """Write the rows at these places; what the user should know about the file."""
    chosen = take_rows(tagged.source, places)
    formatter = make_formatter(wanted.format, tagged, chosen, wanted)
    out = Path(wanted.out)
    if formatter is None:
        if (suffix or out.suffix.lower()) == ".csv":
            _check_csv(tagged, chosen)
        write_tagged(chosen, out, repeat({}, len(places)), pa.schema([]), suffix=suffix)
        return []
    write_tagged(
        with_other_names(chosen, formatter.set_aside),
        out,
        formatter.annotations(chosen),
        formatter.schema,
        replace_columns=True,
        suffix=suffix,
    )
    return list(formatter.notes)


def _check_csv(tagged: TaggedDataset, chosen: Source) -> None:
    """Refuse CSV where a row's question could not be read again from it.

    Raises:
        UsageError: so it is; names the row.
    """
    config = tagged.config
    if chosen.format == "csv":
        return
    try:
        layout = choose_layout(
            tagged.source,
            config.prompt_field if config else "",
            config.answer_field if config else "",
        )
    except UsageError:
        return  # Nobody could read a question from its rows before either.
    for row in chosen.rows():
        value = row.value or {}
        if value.get("item_id"):
            with contextlib.suppress(RowRejected):
                check_reads_back(row.row, value, read_question(value, layout), layout)


def _checked(rules: Rules, expression: str, tagged: TaggedDataset) -> Rules:
    """The rules with their expression, once all that they name is known to be there."""
    if rules.keep:
        tagged.check_tags("--keep")
    if rules.bounds:
        tagged.check_tags(f"a bound on {rules.bounds[0].column}")
    if rules.tag_column == CONFIRMED or rules.balance_by == rules.tag_column:
        tagged.check_tags("--by" if rules.tag_column == CONFIRMED else "--balance")
    source = tagged.source
    known = [str(tag) for tag in Trainability]
    for tag in rules.keep:
        if tag not in known:
            raise UsageError(f"no tag is named {tag!r}; the tags are {', '.join(known)}")
    columns = tagged.columns()
    if rules.tag_column not in columns and not (tagged.models and not tagged.model):
        raise UsageError(f"{source.name} has no column {rules.tag_column}")
    if rules.tag_column == CONFIRMED and not any(
        value.get(CONFIRMED) is not None for value in tagged.values()
    ):
        raise UsageError(
            f"{source.name}: no row has a {CONFIRMED}; `curate validate` and `curate confirm` "
            f"make them, and without --by confirmed the predicted tags in {PREDICTED} count"
        )
    for bound in rules.bounds:
        if any(limit is not None and math.isnan(limit) for limit in (bound.minimum, bound.maximum)):
            raise UsageError(f"a bound on {bound.column} is no number")
        if bound.column not in columns:
            raise UsageError(f"{source.name}: {unknown_column(bound.column, columns)}")
    if rules.balance_by and rules.balance_by not in columns:
        raise UsageError(f"--balance-by: {unknown_column(rules.balance_by, columns)}")
    if not expression:
        return rules
    return dataclasses.replace(rules, expression=parse_expression(expression, columns))


def _noting_tags(rows: Iterator[dict[str, Any]], column: str, tags: list[str]) -> Iterator[Row]:
    for row in rows:
        tags.append(str(row.get(column) or NO_TAG))
        yield row


def no_kinds(tagged: TaggedDataset, chosen_by: str) -> list[str]:
    """Columns that sort no rows, or that the user chooses by: names that stand in that text."""
    columns = tagged.source.columns
    # The names under which the rows of several models are looked at.
    plain = [*columns_of_model(columns, tagged.model), PREDICTED, "tag_reason"]
    config = tagged.config
    fields = (config.prompt_field, config.answer_field) if config else ()
    return [
        *tag_columns(columns),
        *(plain if tagged.models else ()),
        *(field.partition(".")[0] for field in fields),
        *(name for name in columns if name in chosen_by),
    ]


def counted_tags(
    tagged: TaggedDataset, column: str, tags: Sequence[str], kept: Sequence[int]
) -> dict[str, Any]:
    """Rows by tag; of several models none of which was named, no tag is the row's."""
    if tagged.models and not tagged.model:
        return {"tag_column": None, "tags": {}}
    column = column_of(tagged.model, column) if tagged.model else column
    return {"tag_column": column, "tags": by_tag(tags, kept)}


def by_tag(tags: Sequence[str], kept: Sequence[int]) -> dict[str, dict[str, int]]:
    """How many rows of each tag there are, and how many of them stay."""
    rows, left = Counter(tags), Counter(tags[place] for place in kept)
    return {tag: {"rows": rows[tag], "kept": left[tag]} for tag in _in_usual_order(rows)}


def _in_usual_order(tags: Any) -> list[str]:
    usual = [str(tag) for tag in Trainability]
    return [*(tag for tag in usual if tag in tags), *(tag for tag in tags if tag not in usual)]
