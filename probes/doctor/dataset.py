"""What `curate doctor` says of a dataset: how it is read, and what in it is not used."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from curate.config import TagConfig
from curate.datasets.fields import RowRejected
from curate.datasets.golds import why_no_answer
from curate.datasets.layouts import Layout, choices_line, choose_layout, read_question
from curate.datasets.rates import rates_line, told_rates
from curate.datasets.source import Source, open_source
from curate.errors import UsageError
from curate.tags import tag_schema
from probes.doctor.finding import Finding

_ROWS_READ = 1000
_OURS = frozenset(tag_schema([], target=True, judged=True).names)


def look_at_dataset(config: TagConfig) -> tuple[int, list[Finding]]:
    """Count the rows that a run would probe, and read the first of them.

    Raises:
        UsageError: the dataset cannot be opened.
    """
    source = open_source(config.dataset, split=config.split, subset=config.subset or None)
    rows = sum(1 for _ in source.rows())
    items = min(rows, config.limit) if config.limit else rows
    try:
        layout = choose_layout(source, config.prompt_field, config.answer_field)
    except UsageError as error:
        return items, [Finding("dataset", "blocks", str(error), "name the columns")]
    return items, [_read(source, layout, rows), *_answers(source, layout, config), *_rates(source)]


def _read(source: Source, layout: Layout, rows: int) -> Finding:
    answer = layout.answer_field or "the last assistant turn"
    return Finding(
        "dataset", "ok",
        f"{source.name}, {rows:,} rows of {source.format}, layout {layout.name}: prompt in "
        f"{layout.prompt_field}, answer in {answer}",
    )  # fmt: skip


def _answers(source: Source, layout: Layout, config: TagConfig) -> Iterator[Finding]:
    """What the first rows would be rejected for, and what becomes of choices."""
    if layout.choices:
        yield Finding("choices", "limit", choices_line(layout, config.verifier))
    problems = []
    read = 0
    for row in islice(source.rows(), _ROWS_READ):
        read += 1
        why = row.problem
        if row.value is not None:
            try:
                question = read_question(row.value, layout)
                why = why_no_answer(question.answer) if ":" not in config.verifier else None
            except RowRejected as error:
                why = str(error)
        if why:
            problems.append(f"row {row.row}: {why}")
    if problems:
        yield Finding(
            "rows", "limit",
            f"{len(problems):,} of the first {read:,} rows would be rejected, first {problems[0]}",
            "every reject stays in the tagged file with its reason",
        )  # fmt: skip


def _rates(source: Source) -> Iterator[Finding]:
    rows = (row.value for row in source.rows() if row.value is not None)
    line = rates_line(*told_rates(islice(rows, _ROWS_READ), _OURS))
    if line:
        yield Finding("hints", "ok", line)
