"""`curate filter`: what stays, what is dropped and why, and where it goes."""

import contextlib
import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curate
from curate.datasets.source import open_source
from curate.errors import UsageError
from curate.tagged.expressions import parse_expression
from curate.tagged.rules import Bound, Rules, filter_rows
from tests.tag_runs import Ran, read_jsonl, run_curate, write_jsonl
from tests.tagged_files import some_rows, tagged_row, write_run_of, write_tagged_file

ROW = {
    "pass_rate": 0.5,
    "n": 3,
    "tag": "easy",
    "nothing": None,
    "nan": math.nan,
    "level": "4",
    "word": "high",
    "topics": ["algebra", "sums"],
    "info": {"level": 2, "deep": {"x": 1}},
    "odd name": 7,
    "flag": True,
}


@pytest.fixture
def tagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_tagged_file(tmp_path / "sums.tagged.jsonl", some_rows())


def _filter(*arguments: object) -> Ran:
    return run_curate("filter", *arguments)


def _matches(text: str) -> bool:
    return parse_expression(text, ROW.keys()).matches(ROW)


# --- Expressions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pass_rate < 0.9 and n > 2", True),
        ("pass_rate < 0.9 and not n > 2", False),
        ("pass_rate > 0.9 or tag == 'easy'", True),
        ("0.1 <= pass_rate < 0.5", False),
        ("0.1 <= pass_rate <= 0.5", True),
        ("tag in ('easy', 'learnable')", True),
        ("tag not in ['easy']", False),
        ("'algebra' in topics", True),
        ("'asy' in tag", True),
        ("n in {1, 2, 3}", True),
        ("n > -1", True),
        ("flag == true", True),
        ("info.level == 2 and info.deep.x == 1", True),
        ("info.missing is null", True),
        ('column("odd name") == 7', True),
        # Text that is a number is compared as one.
        ("level > 3", True),
        ("level == 4", True),
        ("word == 4", False),
        ("word != 4", True),
        # Null is unknown: every comparison with it is false, `not` of one is true.
        ("nothing < 1", False),
        ("nothing >= 1", False),
        ("nothing == 1", False),
        ("nothing != 1", False),
        ("nothing in (1, 2)", False),
        ("nothing not in (1, 2)", False),
        ("not nothing < 1", True),
        ("nothing is None", True),
        ("n is not null", True),
        ("nan is null", True),
        ("nan != 1", False),
        # `and` goes from the left, so that a comparison can be guarded.
        ("word != 'high' and word > 3", False),
    ],
)
def test_an_expression_means_what_it_says(text: str, expected: bool) -> None:
    assert _matches(text) is expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pas_rate < 1", "no column 'pas_rate'; did you mean 'pass_rate'?"),
        ("infos.level < 1", "no column 'infos'; did you mean 'info'?"),
        ("pass_rate", "'pass_rate' is no comparison"),
        ("pass_rate <", "cannot be read: invalid syntax"),
        ("", "cannot be read"),
        ("nothing == None", "write `is None`"),
        ("null != n", "write `is None`"),
        ("n is 3", "only None can"),
        ("n + 1 > 2", "'n + 1' is neither a column nor a number nor a text"),
        ("n > 2 if n else n > 3", "is no comparison"),
        ("__import__('os').system('true')", "is no comparison"),
        ("n == __import__('os')", "cannot be called"),
        ("n == (lambda: 1)", "is neither"),
        ("topics[0] == 1", "is neither"),
        ("n == f'{n}'", "is neither"),
        ("n == 1j", "is neither"),
        ("n == b'1'", "is neither"),
        ("n in [x for x in topics]", "is neither"),
        ("(n := 1) == 1", "is neither"),
        ("n.__class__ == 1 and ().__class__ == 2", "is no column"),
        ("(" * 300 + "n < 1" + ")" * 300, "cannot be read"),
        ("not " * 40 + "n < 1", "nested deeper"),
        ("n < 1 or " * 150 + "n < 1", "more than 500 parts"),
        ("n < 1 or " * 1000 + "n < 1", "longer than 2,000 characters"),
    ],
)
def test_what_is_no_such_expression_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match="--expr") as refused:
        _matches(text)
    assert said in str(refused.value)


def test_values_that_have_no_order_name_the_row() -> None:
    rules = Rules(expression=parse_expression("word > 3", ["word"]))
    rows = [{"trainability": "easy", "word": word} for word in (4, "high")]
    with pytest.raises(UsageError, match="row 2: 'high' and 3 cannot be put in order"):
        filter_rows(rows, rules)


# --- Rules -----------------------------------------------------------------------------------


def _kept(rows: list[dict[str, Any]], rules: Rules) -> list[int]:
    return [place for place, drop in enumerate(filter_rows(rows, rules)) if drop is None]


def test_without_rules_every_tagged_row_stays() -> None:
    rows = some_rows()
    assert _kept(rows, Rules()) == [place for place in range(21) if place != 7]


def test_bounds_hold_themselves_and_null_is_not_within_them() -> None:
    rows = [tagged_row(n, "easy", pass_rate=rate) for n, rate in enumerate((0.1, 0.5, 0.9, None))]
    drops = filter_rows(rows, Rules(bounds=(Bound("pass_rate", 0.1, 0.5),)))
    assert [drop and drop.reason for drop in drops] == [
        None,
        None,
        "pass_rate above 0.5: 0.9",
        "no pass_rate",
    ]
    assert drops[2] is not None and drops[2].rule == "pass_rate above 0.5"


def test_balance_and_sample_draw_blindly_and_alike_every_time() -> None:
    rows = [tagged_row(n, "easy" if n % 3 else "learnable") for n in range(300)]
    for rules in (Rules(balance_by="trainability"), Rules(sample=40)):
        drawn = [_kept(rows, rules)] + [
            _kept(rows, Rules(balance_by=rules.balance_by, sample=rules.sample, seed=seed))
            for seed in (0, 1)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        assert all(sorted(each) == each for each in drawn)
    counts = Counter(rows[n]["trainability"] for n in _kept(rows, Rules(balance_by="trainability")))
    assert counts == {"easy": 100, "learnable": 100}
    assert len(_kept(rows, Rules(sample=40))) == 40
    assert len(_kept(rows, Rules(sample=400))) == 300
    # Every row has the same chance: 40 of 300 in 500 draws.
    often = Counter(n for seed in range(500) for n in _kept(rows, Rules(sample=40, seed=seed)))
    assert len(often) == 300 and max(often.values()) < 120


# --- The command -----------------------------------------------------------------------------


def test_rows_stay_as_they_are_and_every_other_goes_to_dropped(tagged: Path) -> None:
    ran = _filter(
        *(tagged, "--keep", "easy", "--keep", "learnable", "--max-pass-rate", 0.8),
        *("-o", "kept.jsonl", "--dropped", "dropped.jsonl", "--json"),
    )
    assert ran.status == 0, ran.stderr
    lines = tagged.read_text().splitlines()
    rows = some_rows()
    expected = [
        line
        for line, row in zip(lines, rows, strict=True)
        if row["trainability"] in ("easy", "learnable") and row["pass_rate"] <= 0.8
    ]
    assert Path("kept.jsonl").read_text().splitlines() == expected
    dropped = read_jsonl(Path("dropped.jsonl"))
    assert len(expected) + len(dropped) == len(rows)
    assert [{k: v for k, v in row.items() if k != "dropped_reason"} for row in dropped] == [
        row for row, line in zip(rows, lines, strict=True) if line not in expected
    ]
    summary = json.loads(ran.stdout)
    assert summary["rows"] == 21
    assert summary["kept"] == len(expected)
    assert sum(summary["reasons"].values()) == summary["dropped"] == len(dropped)
    assert summary["reasons"]["rejected"] == 1
    assert summary["reasons"]["trainability is no_positive"] == 4
    assert summary["tags"]["learnable"] == {"rows": 4, "kept": 4}
    assert "rejected: empty prompt" in [row["dropped_reason"] for row in dropped]


def test_every_option_of_the_command_reaches_its_rule(tagged: Path) -> None:
    options = {
        ("--min-pass-rate", 0.05): "pass_rate >= 0.05",
        ("--max-pass-rate", 0.05): "pass_rate <= 0.05",
        ("--min-forecast", 0.5): "forecast_pass_rate >= 0.5",
        ("--max-forecast", 0.5): "forecast_pass_rate <= 0.5",
        ("--min-lift", 0.4): "lift >= 0.4",
        ("--min-teaching", 0): "teaching >= 0",
        ("--min-similarity", 0.2): "gradient_similarity >= 0.2",
        ("--min-reliability", 0.5): "gradient_reliability >= 0.5",
        ("--max-p-unlearnable", 0.5): "not p_unlearnable > 0.5",
    }
    for option, expression in options.items():
        assert _filter(tagged, *option, "-o", "a.jsonl").status == 0
        assert _filter(tagged, "--expr", expression, "-o", "b.jsonl").status == 0
        kept = Path("a.jsonl").read_text()
        assert kept == Path("b.jsonl").read_text()
        assert 0 < kept.count("\n") < 20
    assert _filter(tagged, "--balance", "--keep", "easy", "-o", "a.jsonl").status == 0
    assert _filter(tagged, "--balance-by", "source", "-o", "a.jsonl").status == 0
    assert Counter(row["source"] for row in read_jsonl(Path("a.jsonl"))) == {"odd": 10, "even": 10}
    assert _filter(tagged, "--sample", 3, "--seed", 5, "-o", "a.jsonl").status == 0
    assert len(read_jsonl(Path("a.jsonl"))) == 3


def test_confirmed_tags_are_looked_at_when_asked_for(tmp_path: Path) -> None:
    rows = [
        tagged_row(0, "easy", confirmed_trainability="easy"),
        tagged_row(1, "learnable", confirmed_trainability="unlearnable"),
        tagged_row(2, "unlearnable", confirmed_trainability="learnable"),
        tagged_row(3, "learnable"),
    ]
    file = write_tagged_file(tmp_path / "t.jsonl", rows)
    out = tmp_path / "out.jsonl"
    summary = curate.filter(file, out, keep="learnable", by="confirmed")
    assert [row["item_id"] for row in read_jsonl(out)] == [rows[2]["item_id"]]
    assert summary["reasons"]["no confirmed_trainability"] == 1
    assert summary["tags"]["(none)"] == {"rows": 1, "kept": 0}
    unconfirmed = write_tagged_file(tmp_path / "u.jsonl", some_rows())
    with pytest.raises(UsageError, match="no row has a confirmed_trainability"):
        curate.filter(unconfirmed, out, keep="learnable", by="confirmed")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("of", [".jsonl", ".parquet", ".csv"])
def test_every_kind_of_file_gives_every_other(tmp_path: Path, of: str, suffix: str) -> None:
    rows = some_rows()
    first = write_tagged_file(tmp_path / f"t{'.jsonl' if of == '.csv' else of}", rows)
    if of == ".csv":
        with (tmp_path / "t.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0] | rows[1])
            writer.writeheader()
            writer.writerows(rows)
        first = tmp_path / "t.csv"
    out = tmp_path / f"out{suffix}"
    summary = curate.filter(
        first, out, keep=["easy"], expr="pass_rate < 0.88", dropped=tmp_path / "d.jsonl"
    )
    expected = [row for row in rows if row["trainability"] == "easy" and row["pass_rate"] < 0.88]
    assert summary["kept"] == len(expected) > 1
    found: list[dict[str, Any]]
    if suffix == ".parquet":
        found = pq.read_table(out).to_pylist()
    elif suffix == ".csv":
        found = list(csv.DictReader(out.open(newline="")))
    else:
        found = read_jsonl(out) if suffix == ".jsonl" else json.loads(out.read_text())
    assert [row["item_id"] for row in found] == [row["item_id"] for row in expected]
    assert [float(row["pass_rate"]) for row in found] == [row["pass_rate"] for row in expected]
    if suffix != ".csv":  # The evidence has its types, whatever it came from.
        assert [row["pass_rate"] for row in found] == [row["pass_rate"] for row in expected]
        assert {row["p_unlearnable"] for row in found} == {None}


def test_parquet_keeps_its_own_types_in_the_order_of_its_rows(tmp_path: Path) -> None:
    count = 3000  # More than one batch.
    table = pa.table(
        {
            "small": pa.array(range(count), pa.int32()),
            "kind": pa.array(["a"] * count).dictionary_encode(),
            "trainability": ["easy", "learnable"] * (count // 2),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    curate.filter(tmp_path / "t.parquet", tmp_path / "o.parquet", keep="learnable")
    found = pq.read_table(tmp_path / "o.parquet")
    assert found.schema.field("small").type == pa.int32()
    assert found["small"].to_pylist() == list(range(1, count, 2))


def test_text_that_only_this_file_has_survives(tmp_path: Path) -> None:
    line = '{"question": "a",  "answer": 1e5, "big": ' + "9" * 40 + ', "trainability": "easy"}'
    file = tmp_path / "t.jsonl"
    file.write_text(line + "\n")
    curate.filter(file, tmp_path / "o.jsonl")
    assert (tmp_path / "o.jsonl").read_text() == line + "\n"


def test_a_run_folder_stands_for_its_tagged_file(tagged: Path) -> None:
    run = write_run_of(tagged, Path("runs/sums"))
    assert _filter(run, "-o", "a.jsonl").status == 0
    assert _filter(tagged, "-o", "b.jsonl").status == 0
    assert Path("a.jsonl").read_text() == Path("b.jsonl").read_text()
    tagged.rename("moved.jsonl")
    ran = _filter(run, "-o", "a.jsonl")
    assert ran.status == 2 and "which is not there" in ran.last_line


@pytest.mark.parametrize("command", [curate.filter, curate.order])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"item_id": "another"}, "item_id of row 1 is 'another'"),
        ({"trainability": "undetermined"}, "trainability of row 1 is 'undetermined', and 'easy'"),
        ({"total_correct_rollouts": 7}, "total_correct_rollouts of row 1 is 7, and 3 in the run"),
        (None, "it has another number of rows"),
    ],
)
def test_a_run_folder_whose_file_another_run_wrote_is_refused(
    tmp_path: Path, command: Any, changed: dict[str, Any] | None, said: str
) -> None:
    rows = [{**row, "total_correct_rollouts": 3 if row["item_id"] else None} for row in some_rows()]
    tagged = write_tagged_file(tmp_path / "sums.tagged.jsonl", rows)
    run = write_run_of(tagged, tmp_path / "one")
    command(run, tmp_path / "a.jsonl")
    write_tagged_file(tagged, rows[:-1] if changed is None else [rows[0] | changed, *rows[1:]])
    with pytest.raises(UsageError) as refused:
        command(run, tmp_path / "b.jsonl")
    assert f"{tagged} is not the file that {run} wrote: {said}" in str(refused.value)
    assert "--out" in str(refused.value) and not (tmp_path / "b.jsonl").exists()


def test_a_wrong_run_folder_names_those_that_are_here(
    tagged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hub(*_: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("curate.datasets.source._open_hub", no_hub)
    Path("runs").mkdir()
    with pytest.raises(UsageError, match=r"^no such run folder or tagged file: runs/sum$"):
        curate.filter("runs/sum", "o.jsonl")
    write_run_of(tagged, Path("runs/sums"))
    said = "runs/sum; did you mean 'runs/sums'? runs here: runs/sums"
    for command in (curate.filter, curate.order):
        with pytest.raises(UsageError) as refused:
            command("runs/sum", "o.jsonl")
        assert str(refused.value).endswith(said)
    with pytest.raises(UsageError, match=r"runs/sum is no run folder: .*did you mean 'runs/sums'"):
        curate.report("runs/sum")
    with pytest.raises(UsageError, match="no such file: 'runs/sum'"):
        open_source("runs/sum")
    with pytest.raises(AssertionError, match="the Hub was asked"):
        open_source("org/sum")


def test_a_misspelt_keyword_names_the_nearest(tagged: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^filter\(\): unknown setting 'keeep'; did you mean 'keep'"
    ):
        curate.filter(tagged, "o.jsonl", keeep=["easy"])  # type: ignore[call-arg]


def test_what_is_wrong_is_one_line_and_writes_nothing(tagged: Path) -> None:
    untagged = write_jsonl(Path("plain.jsonl"), [{"question": "a", "answer": "b"}])
    for arguments, said in (
        ((tagged, "--keep", "hard"), "no tag is named 'hard'"),
        ((tagged, "--sample", "0"), "--sample is 0"),
        ((tagged, "--sample", "3", "--seed", "-1"), "--seed is -1"),
        ((tagged, "--max-pass-rate", "nan"), "a bound on pass_rate is no number"),
        ((tagged, "--balance-by", "sorce"), "did you mean 'source'?"),
        ((tagged, "--min-pass-rate", "2"), "no row of 21 is left: 20: pass_rate below 2; 1: rej"),
        ((tagged, "--expr", "x < 1"), "no column 'x'"),
        ((tagged, "--by", "confirmed"), "no row has a confirmed_trainability"),
        ((tagged, "--format", "tlr"), "did you mean trl?"),
        ((tagged, "--format", "parquet"), "parquet files end in .parquet"),
        ((tagged, "--dropped", "out.jsonl"), "cannot hold both"),
        ((tagged, "--dropped", tagged), "is the dataset itself"),
        ((untagged,), "is no tagged dataset: it has no column trainability"),
        (("nowhere.jsonl",), "no such file"),
    ):
        ran = _filter(*arguments, "-o", "out.jsonl")
        assert ran.status == 2 and said in ran.last_line, ran.stderr
        assert ran.stderr.count("\n") == 1
        assert not Path("out.jsonl").exists()
    ran = _filter(tagged, "-o", tagged)
    assert ran.status == 2 and "is the dataset itself" in ran.last_line


def test_odd_values_of_a_file_are_no_traceback(tmp_path: Path) -> None:
    rows = [
        tagged_row(0, "easy", pass_rate="much"),
        tagged_row(1, "easy", pass_rate=[1]),
        {"trainability": ["easy"], "pass_rate": "0.5"},
        {"trainability": "\x1b[31mred", "pass_rate": math.inf},
    ]
    file = write_tagged_file(tmp_path / "t.jsonl", rows)
    with pytest.raises(UsageError, match="row 1: pass_rate is 'much', not a number"):
        curate.filter(file, tmp_path / "o.jsonl", min_pass_rate=0.1)
    ran = _filter(file, "-o", tmp_path / "o.jsonl")
    assert ran.status == 0 and "\x1b" not in ran.stdout
    # Beside a run, of which the rows could be.
    write_run_of(
        write_tagged_file(tmp_path / "whole.jsonl", [tagged_row(0, "easy")]), tmp_path / "runs/one"
    )
    rows = [
        tagged_row(0, "easy", item_id=[1], pass_rate=0.5, teaching=1, forecast_pass_rate=0.6),
        tagged_row(1, "easy", pass_rate=0.5, teaching=10**400, forecast_pass_rate=0.6),
    ]
    write_tagged_file(file, rows)
    with contextlib.chdir(tmp_path):
        assert _filter(file, "-o", tmp_path / "o.jsonl").status == 0
        ran = run_curate("select", file, "--budget", "1", "-o", "o.jsonl")
        assert ran.status == 2 and "row 2: teaching is 1000" in ran.last_line
        ran = run_curate("order", file, "--by", "teaching", "-o", "o.jsonl")
        assert ran.status == 0, ran.stderr
        write_tagged_file(file, rows[:1])
        ran = run_curate("select", file, "--budget", "1", "-o", "o.jsonl")
        assert ran.status == 0, ran.stderr
        write_tagged_file(file, [{**rows[0], "pass_rate": 1.5}])
        ran = run_curate("order", file, "--by", "schedule", "-o", "o.jsonl")
        assert "row 1: pass_rate is 1.5, not from 0 to 1" in ran.last_line


def test_csv_that_another_program_wrote_again_is_read(tagged: Path) -> None:
    """pandas writes True, and every number of a column with an empty cell with a point."""
    rows = [
        tagged_row(0, "easy", pass_rate=0.5, total_rollouts=32, suspect_gold=True),
        tagged_row(1, None, total_rollouts=None, suspect_gold=None),
    ]
    Path("t.csv").write_text(pd.DataFrame(rows).to_csv(index=False))
    assert ",32.0,True" in Path("t.csv").read_text()
    ran = _filter("t.csv", "--expr", "total_rollouts == 32 and suspect_gold == true", "-o", "o.csv")
    assert ran.status == 0, ran.stderr
    (row,) = csv.DictReader(Path("o.csv").read_text().splitlines())
    assert row["item_id"] == rows[0]["item_id"] and float(row["total_rollouts"]) == 32
    Path("t.csv").write_text(Path("t.csv").read_text().replace(",32.0,", ",32.5,"))
    ran = _filter("t.csv", "-o", "o.csv")
    assert ran.status == 2 and "total_rollouts is '32.5', not a whole number" in ran.last_line
