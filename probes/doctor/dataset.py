"""What `curate doctor` says of a dataset: how it is read, and what in it is not used."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from curate.config import TagConfig
from curate.datasets.fields import RowRejected
from curate.datasets.layouts import Layout, choices_line, choose_layout, read_question
from curate.datasets.rates import rates_line, told_rates
from curate.datasets.source import Source, open_source
from curate.errors import UsageError
from curate.tags import tag_schema
from probes.doctor.finding import Finding
from probes.verifiers.by_row import RowVerifiers, hints

_ROWS_READ = 1000
_OURS = frozenset(tag_schema([], target=True, judged=True, mixed=True, rewards=True).names)


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
    findings = [_read(source, layout, rows), *_answers(source, layout, config)]
    return items, [*findings, *_kinds(source, config), *_rates(source)]


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
    verifiers = RowVerifiers(config)
    problems = []
    read = 0
    for row in islice(source.rows(), _ROWS_READ):
        read += 1
        why = row.problem
        if row.value is not None:
            try:
                verifier = verifiers.of(row.value)
                question = read_question(row.value, layout)
                why = verifiers.why_no_answer(verifier, question.answer)
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


def _kinds(source: Source, config: TagConfig) -> Iterator[Finding]:
    for line in [] if config.verifier_field else hints(source):
        yield Finding("kinds", "limit", line)


def _rates(source: Source) -> Iterator[Finding]:
    rows = (row.value for row in source.rows() if row.value is not None)
    line = rates_line(*told_rates(islice(rows, _ROWS_READ), _OURS))
    if line:
        yield Finding("hints", "ok", line)
