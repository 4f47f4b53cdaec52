"""The tagged dataset holds all that the source held, as it stood, and the tags beside it."""

import csv
import datetime
import json
import math
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.datasets.layouts import read_question, recognise_layout
from curate.datasets.source import open_source
from curate.errors import RunError, UsageError
from curate.files import atomic_writer, write_atomically
from curate.tagged.fill import set_columns
from curate.tagged.write import check_columns, check_out, write_tagged

SCHEMA = pa.schema(
    [("item_id", pa.string()), ("pass_rate", pa.float64()), ("total_rollouts", pa.int64())]
)
TAGS = '"item_id": "id1", "pass_rate": 0.5, "total_rollouts": 32'


def annotations(count: int) -> list[dict[str, object]]:
    return [
        {"item_id": f"id{n}", "pass_rate": 0.5, "total_rollouts": 32} for n in range(1, count + 1)
    ]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def tag(path: Path, out: Path, count: int, **options: bool) -> Path:
    assert write_tagged(open_source(path), out, annotations(count), SCHEMA, **options) == count
    return out


def json_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


# --- JSON to JSON ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "tagged"),
    [
        (b'{"b": 1, "a": 2}', '{"b": 1, "a": 2, ' + TAGS + "}"),
        (b'{"n":NaN,"x":1e5,"i":1.0}', '{"n":NaN,"x":1e5,"i":1.0, ' + TAGS + "}"),
        (b'{"i": ' + b"9" * 4000 + b"}", '{"i": ' + "9" * 4000 + ", " + TAGS + "}"),
        (b'{"i": ' + b"9" * 5000 + b"}", '{"i": ' + "9" * 5000 + ", " + TAGS + "}"),
        (b'{"s": "}{\\u00e9\\ud800"}', '{"s": "}{\\u00e9\\ud800", ' + TAGS + "}"),
        ('{"s": "é\u2028\x7f"}'.encode(), '{"s": "é\u2028\x7f", ' + TAGS + "}"),
        (b'{"a": 1, "a": 2}', '{"a": 1, "a": 2, ' + TAGS + "}"),
        (b' { "a" : { } } \r', ' { "a" : { } , ' + TAGS + "} \r"),
        (b"{}", "{" + TAGS + "}"),
        (b"{ }", "{ " + TAGS + "}"),
        (b"[1]", "{" + TAGS + "}"),
        (b"{not json}", "{" + TAGS + "}"),
        (b'{"caf\xe9": 1}', "{" + TAGS + "}"),
        (b'{"a": ' * 100_000, "{" + TAGS + "}"),
    ],
)
def test_json_lines_keep_their_own_text(tmp_path: Path, line: bytes, tagged: str) -> None:
    path = write(tmp_path / "a.jsonl", line + b'\n\n{"good": 1}')
    out = tag(path, tmp_path / "out.jsonl", 2)
    first, second, rest = out.read_bytes().split(b"\n")
    assert first == tagged.encode("utf-8")
    assert json.loads(second) == {"good": 1, **annotations(2)[1]}
    assert not rest


def test_missing_and_undefined_tags_are_null(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n')
    for suffix in ("jsonl", "parquet"):
        out = tmp_path / f"out.{suffix}"
        write_tagged(open_source(path), out, [{"pass_rate": math.nan, "other": 3}], SCHEMA)
        row = json_rows(out)[0] if suffix == "jsonl" else pq.read_table(out).to_pylist()[0]
        assert row == {"a": 1, "item_id": None, "pass_rate": None, "total_rollouts": None}


def test_a_json_array_stays_one_and_becomes_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[\n  {\n "x": 1e5\n },\n {"y": NaN}, 3]')
    out = tag(path, tmp_path / "out.json", 3)
    assert [list(row) for row in json.loads(out.read_text())] == [
        ["x", *SCHEMA.names],
        ["y", *SCHEMA.names],
        SCHEMA.names,
    ]
    assert '"x": 1e5' in out.read_text()
    lines = tag(path, tmp_path / "out.jsonl", 3).read_text().splitlines()
    assert len(lines) == 3
    assert '"x": 1e5' in lines[0]


# --- Parquet -----------------------------------------------------------------------------------


def rich_table() -> pa.Table:
    schema = pa.schema(
        [
            pa.field("question", pa.large_string(), nullable=False),
            pa.field("n", pa.int16(), metadata={"unit": "pens"}),
            pa.field("at", pa.timestamp("us", tz="UTC")),
            pa.field("price", pa.decimal128(10, 2)),
            pa.field("blob", pa.binary()),
            pa.field("tags", pa.list_(pa.struct([("k", pa.string())]))),
            pa.field("kind", pa.dictionary(pa.int8(), pa.string())),
            pa.field("map", pa.map_(pa.string(), pa.int32())),
            pa.field("score", pa.float32()),
        ],
        metadata={"made_by": "test"},
    )
    at = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)
    row = ["q", 7, at, Decimal("1.50"), b"\xff\x00", [{"k": "v"}], "easy", [("a", 1)], math.nan]
    empty = ["r", *[None] * 8]
    return pa.Table.from_arrays(
        [
            pa.array(pair, field.type)
            for pair, field in zip(zip(row, empty, strict=True), schema, strict=True)
        ],
        schema=schema,
    )


def test_parquet_keeps_its_schema_and_values(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(rich_table(), path)
    original = pq.read_table(path)
    tagged = pq.read_table(tag(path, tmp_path / "out.parquet", 2))
    assert tagged.column_names == [*original.column_names, *SCHEMA.names]
    kept = tagged.select(original.column_names)
    assert kept.schema.equals(original.schema, check_metadata=True)
    assert kept.drop(["score"]).equals(original.drop(["score"]))
    assert math.isnan(kept["score"][0].as_py())
    assert tagged.select(SCHEMA.names).to_pylist() == annotations(2)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_parquet_s_own_types_do_not_crash_text_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(rich_table(), path)
    out = tag(path, tmp_path / f"out.{suffix}", 2)
    if suffix == "csv":
        first = next(csv.DictReader(out.open(newline="")))
        assert first["at"] == "2024-05-01T12:00:00+00:00"
        assert first["price"] == "1.50"
        assert first["tags"] == '[{"k": "v"}]'
        assert first["score"] == ""
        return
    first = json.loads(out.read_text())[0] if suffix == "json" else json_rows(out)[0]
    assert first == {
        "question": "q",
        "n": 7,
        "at": "2024-05-01T12:00:00+00:00",
        "price": "1.50",
        "blob": "/wA=",
        "tags": [{"k": "v"}],
        "kind": "easy",
        "map": [["a", 1]],
        "score": None,
        **annotations(1)[0],
    }


def test_large_parquet_files_are_copied_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(5000)}), path, row_group_size=700)
    tagged = pq.read_table(tag(path, tmp_path / "out.parquet", 5000))
    assert tagged["n"].to_pylist() == list(range(5000))
    assert tagged["item_id"].to_pylist() == [f"id{n}" for n in range(1, 5001)]


def test_a_saved_dataset_becomes_parquet_that_datasets_loads(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"question": datasets.Value("string"), "level": datasets.ClassLabel(names=["low", "high"])}
    )
    dataset = datasets.Dataset.from_list([{"question": "q", "level": 1}] * 3, features=features)
    dataset.save_to_disk(str(tmp_path / "saved"))
    out = tag(tmp_path / "saved", tmp_path / "out.parquet", 3)
    loaded = datasets.load_dataset(
        "parquet", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.features["level"].names == ["low", "high"]
    assert loaded["item_id"] == ["id1", "id2", "id3"]


def test_loose_rows_become_parquet_with_one_type_a_column(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"i": 1, "mixed": 72, "number": 1, "late": None, "deep": [{"a": 1}], "e": {}, "l": []},
        {"i": None, "mixed": "72", "number": 1.5, "deep": [{"b": "x"}], "big": 2**63, "odd": 1},
        {"i": 3, "mixed": [1], "late": True, "deep": [], "big": 1, "odd": [1], "never": None},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows) + "junk\n"
    table = pq.read_table(tag(write(tmp_path / "a.jsonl", lines), tmp_path / "out.parquet", 4))
    assert table.schema.field("i").type == pa.int64()
    assert table.schema.field("late").type == pa.bool_()
    deep = pa.list_(pa.struct([("a", pa.int64()), ("b", pa.string())]))
    assert table.schema.field("deep").type.equals(deep)
    columns = table.to_pydict()
    assert columns["i"] == [1, None, 3, None]
    assert columns["mixed"] == ["72", "72", "[1]", None]
    assert columns["number"] == ["1", "1.5", None, None]
    assert columns["big"] == [None, str(2**63), "1", None]
    assert columns["odd"] == [None, "1", "[1]", None]
    assert columns["e"] == ["{}", None, None, None]
    assert columns["l"] == [[], None, None, None]
    assert columns["never"] == [None] * 4
    assert columns["item_id"] == ["id1", "id2", "id3", "id4"]


# --- Any to any --------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["jsonl", "json", "csv", "parquet", "folder"])
@pytest.mark.parametrize("wanted", ["jsonl", "json", "csv", "parquet"])
def test_any_format_becomes_any_other_with_the_same_item_ids(
    tmp_path: Path, given: str, wanted: str
) -> None:
    rows = [{"question": f"What, {n}?\n", "answer": f'so "{n}"\n#### {n}'} for n in range(3)]
    path = tmp_path / f"a.{given}"
    if given == "jsonl":
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    elif given == "json":
        write(path, json.dumps(rows, indent=1))
    elif given == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["question", "answer"])
            writer.writeheader()
            writer.writerows(rows)
    elif given == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    out = open_source(tag(path, tmp_path / f"out.{wanted}", 3))

    values = [row.value for row in out.rows()]
    assert [{name: value[name] for name in rows[0]} for value in values if value] == rows
    layout = recognise_layout(rows)
    ids = [read_question(value, layout).item_id for value in values if value]
    assert ids == [read_question(row, layout).item_id for row in rows]
    assert out.columns == ("question", "answer", *SCHEMA.names)


def test_csv_stays_csv_and_a_bad_record_has_only_tags(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'q,a\n"x,\ny",1\nbad\n')
    out = tag(path, tmp_path / "out.csv", 2)
    assert list(csv.reader(out.open(newline=""))) == [
        ["q", "a", *SCHEMA.names],
        ["x,\ny", "1", "id1", "0.5", "32"],
        ["", "", "id2", "0.5", "32"],
    ]


def test_a_lone_carriage_return_in_a_cell_is_quoted(tmp_path: Path) -> None:
    rows = [{"q": "a\rb", "a\r": "c"}, {"q": "d\r\ne", "a\r": "\r"}]
    given = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    out = tag(given, tmp_path / "out.csv", 2)
    assert [list(row)[:2] for row in csv.reader(out.open(newline=""))] == [
        ["q", "a\r"],
        ["a\rb", "c"],
        ["d\r\ne", "\r"],
    ]
    again = [row.value for row in open_source(out).rows()]
    assert [{name: value[name] for name in rows[0]} for value in again if value] == rows
    set_columns(out, pa.schema([("pass_rate", pa.float64())]), [("id1", {}), ("id2", {})])
    assert [row["q"] for row in csv.DictReader(out.open(newline=""))] == ["a\rb", "d\r\ne"]


def test_what_is_no_number_is_an_empty_cell_of_csv(tmp_path: Path) -> None:
    numbers = [float("inf"), float("-inf"), float("nan"), None, 0.00001, 1.5]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"q": list("abcdef"), "n": numbers}), path)
    out = tag(path, tmp_path / "out.csv", 6)
    assert [row["n"] for row in csv.DictReader(out.open(newline=""))] == [
        *("", "", "", "", "0.00001", "1.5")
    ]


def test_a_csv_record_that_looks_like_json_is_not_taken_for_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "q\n{}\n")
    assert json_rows(tag(path, tmp_path / "out.jsonl", 1))[0]["q"] == "{}"


# --- Tags that are there already ---------------------------------------------------------------


def test_check_columns_names_the_clash_and_the_remedy() -> None:
    check_columns(["a", "b"], SCHEMA, False)
    check_columns(["item_id"], SCHEMA, True)
    with pytest.raises(UsageError, match=r"^--replace-columns .*: item_id, pass_rate$"):
        check_columns(["a", "pass_rate", "item_id"], SCHEMA, False)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_retagging_needs_consent_and_then_replaces(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"q": 1}\nbad\n{"q": 2}\n')
    once = tag(path, tmp_path / f"once.{suffix}", 3)
    source = open_source(once)
    with pytest.raises(UsageError, match="--replace-columns"):
        write_tagged(source, tmp_path / f"no.{suffix}", annotations(3), SCHEMA)
    assert not (tmp_path / f"no.{suffix}").exists()
    newer = [{**old, "item_id": "new"} for old in annotations(3)]
    twice = tmp_path / f"twice.{suffix}"
    write_tagged(source, twice, newer, SCHEMA, replace_columns=True)
    old_rows = [row.value for row in source.rows()]
    new_rows = [row.value for row in open_source(twice).rows()]
    assert new_rows == [{**row, "item_id": "new"} for row in old_rows if row]


def test_replacing_keeps_the_text_of_the_other_members(tmp_path: Path) -> None:
    line = '{ "item_id" :"old","x":1e5 , "s": "a, \\"b\\"}", "pass_rate" : [{"y": 1}], "n":NaN }'
    out = tag(
        write(tmp_path / "a.jsonl", line + '\n{"item_id": 1}\n'),
        tmp_path / "out.jsonl",
        2,
        replace_columns=True,
    )
    first, second = out.read_text().splitlines()
    assert first == '{"x":1e5, "s": "a, \\"b\\"}", "n":NaN, ' + TAGS + "}"
    assert json.loads(second) == annotations(2)[1]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_clash_in_a_later_row_is_found_too(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"q": 1}\n{"q": 2, "item_id": "x"}\n')
    out = write(tmp_path / f"out.{suffix}", "old")
    with pytest.raises(UsageError, match="item_id"):
        write_tagged(open_source(path), out, annotations(2), SCHEMA)
    assert out.read_text() == "old"
    assert not leftovers(tmp_path)


# --- Where it is written -----------------------------------------------------------------------


def test_the_dataset_itself_is_never_written_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"q": 1}\n')
    (tmp_path / "link.jsonl").symlink_to(path)
    source = open_source(path)
    for out in (path, tmp_path / "link.jsonl", tmp_path / "x" / ".." / "a.jsonl"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match="is the dataset itself"):
            write_tagged(source, out, annotations(1), SCHEMA)
    assert path.read_text() == '{"q": 1}\n'


def test_places_that_cannot_be_written_are_one_clear_line(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.jsonl", '{"q": 1}\n'))
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "null.jsonl").symlink_to("/dev/null")
    for out, message in [
        ("out.txt", "the suffix must be one of .jsonl"),
        ("out", "the suffix must be"),
        ("folder.jsonl", "not a regular file"),
        ("null.jsonl", "not a regular file"),
        ("a.jsonl/out.jsonl", "cannot write"),
        ("x" * 300 + ".jsonl", "cannot write"),
    ]:
        with pytest.raises(UsageError, match=message):
            check_out(source, tmp_path / out)
    check_out(source, tmp_path / "new" / "folder" / "out.jsonl")
    tag(tmp_path / "a.jsonl", tmp_path / "new" / "folder" / "out.jsonl", 1)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_rows_and_annotations_must_match_in_number(tmp_path: Path, suffix: str, count: int) -> None:
    for given in ("jsonl", "parquet"):
        path = tmp_path / f"a.{given}"
        if given == "jsonl":
            write(path, '{"q": 1}\n{"q": 2}\n')
        else:
            pq.write_table(pa.table({"q": [1, 2]}), path)
        out = tmp_path / f"out.{suffix}"
        with pytest.raises(RunError, match="tagged"):
            write_tagged(open_source(path), out, annotations(count), SCHEMA)
        assert not out.exists()
        assert not leftovers(tmp_path)


def test_a_source_that_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"q": 1}\n')
    source = open_source(path)
    write(path, '{"q": 2}\n')
    with pytest.raises(RunError, match="changed"):
        write_tagged(source, tmp_path / "out.jsonl", annotations(1), SCHEMA)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_full_disk_is_a_run_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    source = open_source(write(tmp_path / "a.jsonl", '{"q": 1}\n'))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        write_tagged(source, tmp_path / "out.jsonl", annotations(1), SCHEMA)
    assert not leftovers(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    def interrupted() -> Iterator[dict[str, object]]:
        yield annotations(1)[0]
        raise KeyboardInterrupt

    path = write(tmp_path / "a.jsonl", '{"q": 1}\n{"q": 2}\n')
    for suffix in ("jsonl", "json", "csv", "parquet"):
        out = write(tmp_path / f"out.{suffix}", "old")
        with pytest.raises(KeyboardInterrupt):
            write_tagged(open_source(path), out, interrupted(), SCHEMA)
        assert out.read_text() == "old"
        assert not leftovers(tmp_path)


# --- files -------------------------------------------------------------------------------------


def test_an_atomic_write_replaces_whole_and_keeps_mode_and_link(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    write_atomically(target, "é\r\n")
    assert target.read_bytes() == b"\xc3\xa9\r\n"
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask
    target.chmod(0o600)
    (tmp_path / "link").symlink_to(target)
    with atomic_writer(tmp_path / "link", "w") as file:
        file.write("ü\n")
        assert target.read_bytes() == b"\xc3\xa9\r\n"
    assert target.read_bytes() == b"\xc3\xbc\n"
    assert (tmp_path / "link").is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600


def test_an_atomic_write_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    target = write(tmp_path / "file", "old")
    with pytest.raises(ZeroDivisionError), atomic_writer(target) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(OSError, match="not a regular file"):
        write_atomically("/dev/null", b"")
