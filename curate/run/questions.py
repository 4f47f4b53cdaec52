"""The items of a run as questions, read again from the dataset or from the tagged file."""

from __future__ import annotations

from pathlib import Path

from curate.datasets.fields import RowRejected
from curate.datasets.layouts import Question, read_question, run_layout
from curate.datasets.source import Source, open_source
from curate.errors import UsageError
from curate.run.run import Run


def read_questions(run: Run) -> dict[str, Question]:
    """Read the question of every item of a run.

    From the dataset where it is still there, else from the tagged file, which has all its columns.

    Returns:
        by item_id, in the order of the rows.

    Raises:
        UsageError: neither is there, or its items are others.
    """
    source = run_source(run)
    layout = run_layout(source, run.config)
    wanted = set(run.ids.to_pylist())
    found: dict[str, Question] = {}
    for row in source.rows():
        try:
            question = read_question(row.value or {}, layout)
        except RowRejected:
            continue
        if question.item_id in wanted:
            found.setdefault(question.item_id, question)
    if len(found) < len(wanted):
        raise UsageError(
            f"{source.name} has only {len(found):,} of the {len(wanted):,} items of {run.path}: it "
            "is not the dataset that was tagged"
        )
    return found


def run_source(run: Run) -> Source:
    """The dataset, or the tagged file where the dataset is a file that was moved away."""
    config = run.config
    is_gone = not Path(config.dataset).exists() and Path(config.out).exists()
    if is_gone:
        return open_source(config.out)
    return open_source(config.dataset, split=config.split, subset=config.subset or None)
