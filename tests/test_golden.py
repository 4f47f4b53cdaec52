"""Every command still writes and says what it did: see tests/golden.py, which also writes it anew.

To accept a change that is meant, and then read what changed:

    OMP_NUM_THREADS=1 python -m tests.golden --write
    git diff tests/data/golden
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.golden import GROUPS, Recorder, differences, expected_groups, record, told
from tests.golden_contents import Reader, compare, restored, shortened, write_json


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return record()


@pytest.mark.parametrize("group", expected_groups())
def test_commands_write_and_say_what_they_did(group: str, recorder: Recorder) -> None:
    different = differences(group, recorder)
    if different:
        pytest.fail(told(different), pytrace=False)


def test_every_command_is_recorded(recorder: Recorder) -> None:
    assert not recorder.unfinished, recorder.unfinished[0]
    assert set(recorder.found) == set(expected_groups()) == set(GROUPS)


# --- What counts as the same ---------------------------------------------------------------------


def _told(expected: Any, found: Any) -> list[str]:
    return [str(each) for each in compare(expected, found, "x")]


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (0.25, 0.2501),
        (0.0, 4e-6),
        (0.0333, 0.0334),
        ([0.00312, 2.5], [0.0032, 2.5]),
        ("0.50 (0.21 to 0.79)   0.074", "0.51 (0.21 to 0.79)   0.075"),
        ({"auroc": 0.62}, {"auroc": 0.63}),
        ("AUROC 0.730 (0.520 to 0.920)", "AUROC 0.731 (0.520 to 0.920)"),
        ({"a": [1.0, None, "nan"]}, {"a": [1.0001, None, "nan"]}),
    ],
)
def test_the_last_digits_of_floats_may_differ(expected: Any, found: Any) -> None:
    assert _told(expected, found) == []


@pytest.mark.parametrize(
    ("expected", "found", "words"),
    [
        (0.25, 0.251, "x: expected 0.25, found 0.251"),
        (1, 1.0, "expected 1, found 1.0"),
        (3, 4, "expected 3, found 4"),
        (0.5, None, "expected 0.5, found null"),
        ("12 rows", "13 rows", 'expected "12 rows", found "13 rows"'),
        ("τ = 0.1", "τ = 0.2", "τ = 0.2"),
        ("0.730 of it", "0.732 of it", "0.732"),
        ("at 0.25", "at 0.26", "0.26"),
        ("at 0.1", "at 0.10", "0.10"),
        ("0.50 (0.21 to 0.79)   0.074", "0.52 (0.21 to 0.79)   0.074", "0.52"),
        ([0.0031, 0.25], [0.0032, 0.25], "x[0]: expected 0.0031, found 0.0032"),
        ("1,280 rollouts", "1280 rollouts", "1280"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "order of names"),
        ({"a": 1}, {"a": 1, "b": 2}, "x, b: expected nothing, found 2"),
        (["a", "b", "c", "d"], ["a", "c", "d"], 'x[1]: expected "b", found nothing'),
        (["a", "b 1", "c"], ["new", "a", "b 1", "c"], 'x[0]: expected nothing, found "new"'),
        (["one", "two"], ["one"], 'x[1]: expected "two", found nothing'),
    ],
)
def test_other_differences_are_told(expected: Any, found: Any, words: str) -> None:
    (line,) = _told(expected, found)
    assert words in line


def _table(path: Path, **columns: Any) -> Any:
    pq.write_table(pa.table(columns), path)
    return Reader({}).file(path)


def test_a_table_is_told_by_column_and_row(tmp_path: Path) -> None:
    short = _table(tmp_path / "a.parquet", item_id=["a", "b"], rate=[0.5, 0.25])
    assert _told(short, _table(tmp_path / "b.parquet", item_id=["a", "b"], rate=[0.5, 0.75])) == [
        "x, column rate, row 2: expected 0.25, found 0.75"
    ]
    other_type = _table(
        tmp_path / "c.parquet", item_id=["a", "b"], rate=pa.array([0.5, 0.25], "float")
    )
    assert _told(short, other_type) == ['x, types, rate: expected "double", found "float"']
    other_order = _table(tmp_path / "d.parquet", rate=[0.5, 0.25], item_id=["a", "b"])
    assert "order of names" in _told(short, other_order)[0]
    numbers = list(range(200))
    long = _table(tmp_path / "e.parquet", n=numbers, x=[each / 7 for each in numbers])
    numbers[130], floats = 0, [each / 7 + 10 * (each == 70) for each in numbers]
    lines = _told(long, _table(tmp_path / "f.parquet", n=numbers, x=floats))
    assert lines[0].startswith("x, column n, rows 129 to 192: expected ")
    assert [line.partition("[")[0] for line in lines[1:]] == ["x, column x, rows 65 to 128"] * 2


def test_cells_of_csv_are_numbers_where_they_are_decimals(tmp_path: Path) -> None:
    def read(cell: str) -> Any:
        path = tmp_path / "rows.csv"
        path.write_text(f"item_id,rate\na,{cell}\n")
        return Reader({}).file(path)

    assert _told(read("0.3524821"), read("0.35251")) == []
    assert _told(read("0.3524821"), read("0.36")) == [
        "x, column rate, row 1: expected 0.35248, found 0.36"
    ]
    assert _told(read("3"), read("3.0")) == ['x, column rate, row 1: expected "3", found 3.0']


def test_lines_of_json_are_told_by_row_and_by_their_own_text(tmp_path: Path) -> None:
    def read(text: str) -> Any:
        path = tmp_path / "rows.jsonl"
        path.write_text(text)
        return Reader({}).file(path)

    rows = '{"a": 1, "b": 0.25}\n{"a": 2}\nnone\n'
    assert _told(read(rows), read(rows.replace('"a": 2', '"a": 3'))) == [
        "x, column a, row 2: expected 2, found 3"
    ]
    assert any("none" in line for line in _told(read(rows), read(rows.replace("none", "nine"))))
    assert ["written" in line for line in _told(read(rows), read(rows.replace(": 1", ":  1")))] == [
        True
    ]


def test_what_is_of_the_moment_is_left_out() -> None:
    reader = Reader({"/tmp/abc": "<folder>"})
    first, second = (
        reader.lines(
            f"sampling: 1,280 rollouts in {time}\nat {rate} tokens/s in /tmp/abc, 12 of 20"
        )
        for time, rate in (("4 s", "32,052"), ("1 min 12 s", "7.5"))
    )
    assert (
        first
        == second
        == ["sampling: 1,280 rollouts in <time>", "at <number> tokens/s in <folder>, 12 of 20"]
    )
    assert reader.lines("sampling: 640 of 1,280 rollouts, 32/s, 20 s left") == []
    assert reader.value({"seconds": 3.2, "items": 4, "sha256": None}) == {
        "seconds": "<left out>", "items": 4, "sha256": None,
    }  # fmt: skip


def test_what_was_said_already_is_not_said_again_and_comes_back() -> None:
    before = {"a.jsonl": {"rows": 1, "values": {"x": [1], "y": [2]}}}
    page = {"page": ["<html>"], "json": {"facts": [3] * 50}}
    files = {
        "a.jsonl": {"rows": 1, "values": {"x": [1], "y": [3]}},
        "b.jsonl": {"rows": 1, "values": {"x": [1], "y": [3]}},
        "c.html": page,
        "d.html": page | {"page": ["<html>", "more"]},
        "e.txt": ["a text"],
        "f.json": {"json": {"x": None}, "written": "a line"},
    }
    short = shortened(files, before)
    assert short["a.jsonl"]["values"] == {"x": "as before", "y": [3]}
    assert short["b.jsonl"] == "the same as a.jsonl"
    assert short["d.html"]["json"] == {"facts": "the same as in c.html"}
    assert restored(short, files, before) == files
    # A copy that is none any more is seen.
    changed = files | {"b.jsonl": {"rows": 1, "values": {"x": [7], "y": [3]}}}
    assert [str(each) for each in compare(restored(short, changed, before), changed)] == [
        "b.jsonl, column x, row 1: expected 1, found 7"
    ]


def test_what_is_written_is_read_back() -> None:
    value = {"a": [1.5, None, "ü" * 50] * 9, "b": {"c": list(range(90)), "d": []}, "e": ["x"] * 40}
    assert json.loads(write_json(value)) == value
    assert max(map(len, write_json(value).splitlines())) <= 100
