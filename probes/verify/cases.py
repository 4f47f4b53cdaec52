"""The answers that `curate verify` judges: of a file, of a run's rollouts, or golds alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curate.datasets.code_tests import (
    code_tests,
    find_code_field,
    is_code_gold,
    own_solutions,
)
from curate.datasets.fields import RowRejected, first_filled, given_field, lookup
from curate.datasets.golds import read_gold
from curate.datasets.layouts import choose_layout, read_question
from curate.datasets.source import Source, open_source
from curate.errors import UsageError
from curate.run.rollouts import rollout_shards
from curate.run.tables import ITEMS, read_parquet

if TYPE_CHECKING:
    from probes.verify.command import Verify

_COMPLETIONS = (
    *("completion", "completions", "response", "responses", "generation", "generations"),
    *("output", "prediction", "model_output", "model_answer"),
)
_GOLDS = ("gold", "gold_answer", "reference_answer")
_DATASET_GOLDS = ("reward_model.ground_truth", "ground_truth", "answer")
_SOLUTIONS = ("solution",)
_SAMPLE_ROWS = 1000


@dataclass(frozen=True)
class Case:
    """An answer with its gold, or what is in the way of judging it."""

    row: int
    """Line or row of the file from 1; of a run the number of the rollout, from 1."""
    completion: str | None
    """None: the gold is judged against itself."""
    gold: str = ""
    problem: str | None = None
    """Why there is nothing to judge."""
    recorded: float | None = None
    """The reward that the file or the run has."""
    is_cut: bool = False
    """Whether it was cut at --max-tokens, and so is wrong whatever it says."""
    verifier: str | None = None
    """What judges it, where that is not the verifier of all."""
    item_id: str | None = None
    sample: int | None = None


def file_cases(wanted: Verify) -> Iterator[Case]:
    """Read the answers of its file; without a column of answers its golds.

    A column is one that an option names, or else the first known one: `completion`, `response`, …
    with `gold`, `ground_truth`, `answer`, …; `answer` is the completion where a `gold` stands
    beside it. A list of texts is several answers, a conversation its last message.

    Raises:
        UsageError: the file cannot be read, or has no gold.
    """
    path = wanted.source
    source = open_source(path, split=wanted.split, subset=wanted.subset or None)
    filled = (each.value for each in source.rows() if each.value)
    rows: list[Mapping[str, Any]] = list(islice(filled, _SAMPLE_ROWS))
    given_field(rows, wanted.prompt_field or None, "--prompt-field")
    completion = _field(rows, wanted.completion_field, "--completion-field", _COMPLETIONS)
    golds = [name for name in (*_GOLDS, *_DATASET_GOLDS) if name != completion]
    gold = _field(rows, wanted.answer_field, "--answer-field", golds) or find_code_field(rows)
    gold = gold or first_filled(rows, [name for name in _SOLUTIONS if name != completion])
    if completion is None and gold in _GOLDS:
        completion = first_filled(rows, ["answer"])
    if completion is None or gold is None:
        if completion is not None:
            raise UsageError(
                f"{path}: no column of golds is known beside {completion!r}; name it with "
                "--answer-field"
            )
        yield from _golds(source, wanted.prompt_field, gold or "")
        return
    for row in source.rows():
        if row.value is None:
            yield Case(row.row, None, problem=row.problem or "cannot be read")
            continue
        recorded = _number(row.value.get("reward"))
        try:
            answer = _gold(row.value, gold)
            texts = _texts(lookup(row.value, completion), completion)
        except RowRejected as error:
            yield Case(row.row, None, problem=str(error))
            continue
        yield from (Case(row.row, text, answer, recorded=recorded) for text in texts)


def _golds(source: Source, prompt_field: str, field: str) -> Iterator[Case]:
    """The golds of a dataset, as `curate tag` reads them: without prompts where it can be."""
    layout = choose_layout(source, prompt_field, field) if prompt_field or not field else None
    for row in source.rows():
        try:
            if row.value is None:
                raise RowRejected(row.problem or "cannot be read")
            if layout is None:
                gold, solutions = _gold(row.value, field), own_solutions(row.value)
            else:
                question = read_question(row.value, layout)
                gold, solutions = question.answer, question.solutions
            if not is_code_gold(gold):
                yield Case(row.row, None, gold)
            elif solutions:
                yield Case(row.row, solutions[0], gold)
            else:
                raise RowRejected("it has tests, and no solution of its own to try them on")
        except RowRejected as error:
            yield Case(row.row, None, problem=str(error))


def _field(
    rows: list[Mapping[str, Any]], given: str, option: str, known: Iterable[str]
) -> str | None:
    """The field that an option names, or else the first of the known ones that any row fills."""
    first = first_filled(rows, known)
    return given_field(rows, given or None, option, first) or first


def _gold(row: Mapping[str, Any], field: str) -> str:
    found = code_tests(row, field)
    if found is not None:
        return found[1]
    is_solution = field.rpartition(".")[2] == "solution"
    return read_gold(lookup(row, field), field, must_be_marked=is_solution)


def _texts(value: Any, field: str) -> list[str]:
    """The completions that a cell holds."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [str(value)]
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value):
            return value
        last = value[-1]
        if isinstance(last, Mapping) and isinstance(last.get("content"), str):
            return [last["content"]]
    raise RowRejected(f"no completion: {field!r} is missing, or no text")


def _number(value: Any) -> float | None:
    return None if isinstance(value, bool) or not isinstance(value, int | float) else value


def run_cases(run: Path, is_mixed: bool) -> Iterator[Case]:
    """The rollouts of a run that were judged, in the order in which they were drawn.

    Args:
        run: the folder.
        is_mixed: whether its items are judged by verifiers of their own.

    Raises:
        UsageError: the run has none yet.
        RunError: a file is missing or damaged.
    """
    files = rollout_shards(run)
    if not files:
        raise UsageError(f"{run} has no rollouts yet: continue it with its `curate tag` command")
    items = ITEMS.read(run, "item_id", "answer", *(["verifier"] if is_mixed else []))
    of = {row["item_id"]: row for row in items.to_pylist()}
    names = ["item_id", "sample", "completion", "finish_reason", "reward", "verdict"]
    row = 0
    for file in files:
        table: pa.Table = read_parquet(file, names)
        for found in table.to_pylist():
            row += 1
            if found["verdict"] is not None:
                yield Case(
                    row,
                    found["completion"],
                    of[found["item_id"]]["answer"],
                    verifier=of[found["item_id"]].get("verifier"),
                    recorded=found["reward"],
                    is_cut=found["finish_reason"] == "length",
                    item_id=found["item_id"],
                    sample=found["sample"],
                )
