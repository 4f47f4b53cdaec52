"""Kinds of rows of which a filter leaves none, and the note that says so."""

import json
from pathlib import Path
from typing import Any

import pytest

from curate.datasets.kinds import MOST_KINDS, KindCounts
from tests.tag_runs import run_curate
from tests.tagged_files import tagged_row, write_tagged_file

TAGS = ["easy"] * 6 + ["no_positive"] * 6


def _lost(rows: list[dict[str, Any]], kept: list[int], *left_out: str) -> list[str]:
    counts = KindCounts(left_out)
    assert list(counts.noting(iter(rows))) == rows
    return counts.lost(kept)


def _rows(*names: str | None, each: int = 5) -> list[dict[str, Any]]:
    return [{} if name is None else {"task": name} for name in names for _ in range(each)]


def test_kinds_without_a_row_are_named_with_their_rows() -> None:
    rows = _rows("sums", "gcd", "words")
    assert _lost(rows, list(range(15))) == _lost(rows, [0, 5, 10]) == []
    (note,) = _lost(rows, [0, 1])
    assert note.startswith("no row is left of task 'gcd' (5 rows), 'words' (5 rows):")
    (note,) = _lost(rows, [5])
    assert "'sums' (5 rows), 'words' (5 rows)" in note and "gcd" not in note


def test_rows_without_the_column_count_nowhere() -> None:
    rows = [*_rows(None), *_rows("sums", None, "gcd"), {"task": None}, {"task": "sums"}, {}]
    (note,) = _lost(rows, [15, 19])
    assert "'sums' (6 rows)" in note and "gcd" not in note
    (note,) = _lost(rows, [21])
    assert "'gcd' (5 rows)" in note and "sums" not in note
    # Nothing of either is left: the last row ends after the column does.
    (note,) = _lost(rows, [0, 22])
    assert "'sums' (6 rows), 'gcd' (5 rows)" in note


def test_few_rows_are_not_worth_a_note() -> None:
    assert _lost([*_rows("sums"), *_rows("gcd", each=4)], [0]) == []


@pytest.mark.parametrize(
    "rows",
    [
        _rows(*(f"task {number}" for number in range(MOST_KINDS + 1))),
        _rows("sums", "x" * 81),
        [*_rows("sums", "gcd"), {"task": 3}, *_rows("gcd")],
        _rows("sums"),
        [{"answer": row["task"]} for row in _rows("sums", "gcd")],
    ],
    ids=["too many", "texts", "numbers", "one", "answers"],
)
def test_columns_that_name_no_kinds_are_passed_over(rows: list[dict[str, Any]]) -> None:
    assert _lost(rows, [0]) == []


def test_a_column_that_is_left_out_is_passed_over_and_many_names_are_cut() -> None:
    rows = _rows(*(f"task {number}" for number in range(MOST_KINDS)))
    assert _lost(rows, [0], "task") == []
    (note,) = _lost(rows, [0])
    assert note.count("(5 rows)") == 5 and "and 14 more" in note


def test_filter_says_which_kinds_it_drops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        tagged_row(number, tag, task="sums" if tag == "easy" else "odd\x1b[31m")
        for number, tag in enumerate(TAGS)
    ]
    tagged = write_tagged_file(tmp_path / "sums.tagged.jsonl", rows)
    ran = run_curate("filter", tagged, "--keep", "easy", "-o", tmp_path / "out.jsonl")
    assert "note: no row is left of task 'odd\\x1b[31m' (6 rows):" in ran.stderr
    ran = run_curate("filter", tagged, "--keep", "easy", "-o", tmp_path / "out.jsonl", "--json")
    (note,) = json.loads(ran.stdout)["notes"]
    assert "task" in note
    # Who chooses by the column knows what it drops, and who keeps some of each has none to name.
    by_task = ("--expr", "task == 'sums'")
    for options in (by_task, ()):
        ran = run_curate("filter", tagged, *options, "-o", tmp_path / "out.jsonl")
        assert (ran.status, "no row is left" in ran.stderr) == (0, False)
