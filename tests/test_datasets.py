"""Every format opens and streams; what is broken is one line or one row, never a crash."""

import base64
import gzip
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.datasets.json_rows import MAX_NESTING
from curate.datasets.layouts import read_question, recognise_layout
from curate.datasets.row import RAW_LIMIT, SourceRow, json_text
from curate.datasets.source import open_source
from curate.errors import RunError, UsageError
from curate.tagged.write import check_out

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY.parent / "shared" / "data"
ROWS = [{"question": "2 + 2?", "answer": "4"}, {"question": "3 + 3?", "answer": "6"}]


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def jsonl(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


def write_format(folder: Path, kind: str) -> Path:
    """ROWS in one of the formats."""
    path = folder / f"few.{kind}"
    if kind in ("jsonl", "ndjson"):
        return write(path, jsonl(ROWS))
    if kind == "jsonl.zst":
        return write(path, zstd(jsonl(ROWS).encode()))
    if kind.startswith("utf-16"):
        _, _, suffix = kind.partition(" ")
        plain = write_format(folder, suffix)
        return write(plain, plain.read_text("utf-8").encode("utf-16"))
    if kind == "folder of parquet":
        path = folder / "few" / "data"
        path.mkdir(parents=True)
        for number, row in enumerate(ROWS):
            name = f"train-{number:05d}-of-00002.parquet"
            pq.write_table(pa.Table.from_pylist([row]), path / name)
        write(folder / "few" / "README.md", "# few")
        return folder / "few"
    if kind in ("jsonl.gz", "ndjson.gz"):
        return write(path, gzip.compress(jsonl(ROWS).encode()))
    if kind == "json":
        return write(path, json.dumps(ROWS, indent=2))
    if kind == "csv":
        return write(path, "question,answer\n2 + 2?,4\n3 + 3?,6\n")
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return path
    import datasets

    path = folder / "few"
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


FORMATS = [
    *("jsonl", "ndjson", "jsonl.gz", "ndjson.gz", "jsonl.zst", "json", "csv", "parquet", "folder"),
    *("utf-16 jsonl", "utf-16 json", "utf-16 csv", "folder of parquet"),
]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_rows_again_and_again(tmp_path: Path, kind: str) -> None:
    source = open_source(write_format(tmp_path, kind))
    for _ in range(2):
        rows = list(source.rows())
        assert [row.value for row in rows] == ROWS
        assert [row.row for row in rows] == [1, 2]
    assert source.name == "few"
    assert source.columns == ("question", "answer")
    assert source.fingerprint


def test_the_fingerprint_is_that_of_the_bytes(tmp_path: Path) -> None:
    first = open_source(write(tmp_path / "a.jsonl", jsonl(ROWS)))
    second = open_source(write(tmp_path / "b.jsonl", jsonl(ROWS)))
    other = open_source(write(tmp_path / "c.jsonl", jsonl(ROWS) + "\n"))
    assert first.fingerprint == second.fingerprint != other.fingerprint
    assert len(first.fingerprint) == 64


def test_a_file_that_changed_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(ROWS))
    source = open_source(path)
    source.check_unchanged()
    write(path, jsonl(ROWS[::-1]))
    with pytest.raises(RunError, match="changed"):
        source.check_unchanged()
    path.unlink()
    source.check_unchanged()  # Gone is not changed: what was streamed stays true.


def test_json_lines_are_numbered_as_in_an_editor(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf\r\n" + b'{"a": 1}\r\n\n   \n[]\n{"a": 2}'
    rows = list(open_source(write(tmp_path / "a.jsonl", content)).rows())
    assert [(row.row, row.value) for row in rows] == [(2, {"a": 1}), (5, None), (6, {"a": 2})]


def test_a_file_of_several_zstd_frames_is_read_whole(tmp_path: Path) -> None:
    lines = [json.dumps({"n": n, "text": "x" * 500}) + "\n" for n in range(5000)]
    frames = [zstd("".join(lines[n : n + 1000]).encode()) for n in range(0, 5000, 1000)]
    path = write(tmp_path / "a.jsonl.zst", b"".join(frames))
    assert [(row.value or {})["n"] for row in open_source(path).rows()] == list(range(5000))
    write(path, b"".join(frames)[:-100])
    with pytest.raises(UsageError, match="not a whole zstd file"):
        list(open_source(path).rows())


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_half_a_surrogate_pair_of_utf_16_spoils_its_row_only(tmp_path: Path, order: str) -> None:
    text = '\ufeff{"a": "\U0001f600"}\n{"a": "\ud83d"}\n{"a": "\u0a0a"}\n'
    path = write(tmp_path / "a.jsonl", text.encode(order, "surrogatepass"))
    rows = list(open_source(path).rows())
    assert [row.value for row in rows] == [{"a": "\U0001f600"}, None, {"a": "\u0a0a"}]
    assert "invalid UTF-8" in str(rows[1].problem)
    table = write(tmp_path / "a.csv", "\ufeffa\n\ud83d\n1\n".encode(order, "surrogatepass"))
    assert [row.value for row in open_source(table).rows()] == [None, {"a": "1"}]


def test_json_lines_named_json_are_read(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.json", "\ufeff" + jsonl(ROWS)))
    assert [row.value for row in source.rows()] == ROWS
    assert source.format == "jsonl"


def test_a_json_array_keeps_each_row_s_own_text(tmp_path: Path) -> None:
    content = '\ufeff\n [ {"a": 1e5,\n "b": NaN} , 7, {"a": 2}\n]\n'
    rows = list(open_source(write(tmp_path / "a.json", content)).rows())
    assert rows[0].text == '{"a": 1e5,\n "b": NaN}'
    assert rows[1].problem == "not a JSON object but a number"
    assert rows[2].value == {"a": 2}


def test_csv_cells_may_hold_line_ends_commas_and_a_megabyte(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    content = f'\ufeffquestion,answer\r\n"a,\r\n""b""",4\r\n\r\n{long},5\r\n'
    rows = list(open_source(write(tmp_path / "a.csv", content)).rows())
    assert [row.value for row in rows] == [
        {"question": 'a,\r\n"b"', "answer": "4"},
        {"question": long, "answer": "5"},
    ]
    assert rows[0].raw == '"a,\r\n""b""",4'


def test_parquet_streams_batch_by_batch(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(5000)}), path)
    source = open_source(path)
    assert [row.value for row in source.rows()] == [{"n": n} for n in range(5000)]
    assert max(batch.num_rows for batch in source.batches()) == 1024
    assert source.schema.names == ["n"]


def test_views_of_polars_and_duckdb_become_plain_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    turn = pa.struct([("role", pa.string_view()), ("content", pa.string_view())])
    table = pa.table(
        {
            "q": pa.array(["a", None], pa.string_view()),
            "b": pa.array([b"a", b"b"], pa.binary_view()),
            "m": pa.array([{"role": "user", "content": "x"}, None], turn),
        }
    ).replace_schema_metadata({"made": "by us"})
    pq.write_table(table, path)
    source = open_source(path)
    assert source.schema is not None
    assert source.schema.field("q").type == pa.string()
    assert source.schema.metadata[b"made"] == b"by us"
    taken = [batch.take(pa.array([1, 0])).to_pylist() for batch in source.batches()]
    assert taken == [table.to_pylist()[::-1]]


@pytest.mark.parametrize("listed", [pa.list_, pa.large_list])
def test_views_inside_of_messages_do_too(tmp_path: Path, listed: Any) -> None:
    def schema(text: pa.DataType) -> pa.Schema:
        turn = pa.struct([("role", text), ("content", text)])
        return pa.schema([("messages", listed(turn)), ("answer", text)])

    rows = [{"messages": [{"role": "user", "content": str(n)}], "answer": "1"} for n in range(3)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema(pa.string())), path)
    # Arrow cannot write these itself: the note of its types in the file is another's.
    ours = pq.read_metadata(path).metadata[b"ARROW:schema"]
    theirs = base64.b64encode(schema(pa.string_view()).serialize().to_pybytes())
    assert len(ours) == len(theirs)
    path.write_bytes(path.read_bytes().replace(ours, theirs))
    assert pq.read_schema(path).field("answer").type == pa.string_view()
    source = open_source(path)
    assert [row.value for row in source.rows()] == rows
    (batch,) = source.batches()
    assert batch.take(pa.array([2, 0])).to_pylist() == [rows[2], rows[0]]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16()])
def test_a_short_float_is_the_number_that_was_meant(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    numbers = np.array([0.1, 2.5, -3, np.nan], kind.to_pandas_dtype())
    pq.write_table(pa.table({"n": pa.array([*numbers, None], kind)}), path)
    found = [(row.value or {})["n"] for row in open_source(path).rows()]
    assert found[:3] == [0.1, 2.5, -3.0]
    assert np.isnan(found[3]) and found[4] is None


# --- Folders of files --------------------------------------------------------------------------


def put(folder: Path, *names: str) -> None:
    """A file of one row of each name, which tells the name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        row = {"question": name, "answer": "4"}
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist([row]), folder / name)
        else:
            write(folder / name, jsonl([row]))


@pytest.mark.parametrize(
    ("names", "split", "subset", "found"),
    [
        (["b.jsonl", "a.jsonl"], "train", None, ["a.jsonl", "b.jsonl"]),
        (["train-0.jsonl", "test-0.jsonl"], "test", None, ["test-0.jsonl"]),
        (["train.jsonl", "test.jsonl", "trained.jsonl"], "train", None, ["train.jsonl"]),
        (["data/train-0.parquet", "data/test-0.parquet"], "train", None, ["data/train-0.parquet"]),
        (["train/0.parquet", "test/0.parquet"], "test", None, ["test/0.parquet"]),
        (
            ["main/train-0.parquet", "more/train-0.parquet"],
            "train",
            "more",
            ["more/train-0.parquet"],
        ),
        (["only/0.parquet"], "train", None, ["only/0.parquet"]),
        (["a/train/0.parquet", "b/train/0.parquet"], "train", "b", ["b/train/0.parquet"]),
    ],
)
def test_the_files_of_a_folder_are_one_dataset(
    tmp_path: Path, names: list[str], split: str, subset: str | None, found: list[str]
) -> None:
    put(tmp_path, *names)
    write(tmp_path / "README.md", "# It")
    write(tmp_path / "dataset_infos.json", "{}")
    write(tmp_path / ".hidden.jsonl", "{}")
    source = open_source(tmp_path, split=split, subset=subset)
    assert [(row.row, (row.value or {})["question"]) for row in source.rows()] == [
        (number, name) for number, name in enumerate(found, 1)
    ]
    assert source.name == tmp_path.name


@pytest.mark.parametrize(
    ("names", "split", "subset", "message"),
    [
        (["train-0.jsonl"], "test", None, "no split 'test'; it has 'train'"),
        (["a.jsonl"], "test", None, "no split 'test'"),
        (["train/0.jsonl"], "test", None, "no split 'test'; it has 'train'"),
        (["x/a.jsonl", "y/a.jsonl"], "train", None, "the subsets x, y: choose one with --subset"),
        (["x/a.jsonl"], "train", "z", "no subset 'z'; it has 'x'"),
        (["a.jsonl", "b.parquet"], "train", None, "several formats"),
        (["notes.txt"], "train", None, "not a readable dataset folder"),
    ],
)
def test_a_folder_of_which_no_dataset_can_be_told_is_one_clear_line(
    tmp_path: Path, names: list[str], split: str, subset: str | None, message: str
) -> None:
    put(tmp_path, *names)
    with pytest.raises(UsageError, match=message) as caught:
        open_source(tmp_path, split=split, subset=subset)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"q": ["a"], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": [1.5], "q": ["b"]}), tmp_path / "b.parquet")
    source = open_source(tmp_path)
    assert [row.value for row in source.rows()] == [{"q": "a", "n": 1}, {"n": 1.5, "q": "b"}]
    batches = pa.Table.from_batches(source.batches(), schema=source.schema)
    assert batches.to_pylist() == [{"q": "a", "n": 1.0}, {"q": "b", "n": 1.5}]
    pq.write_table(pa.table({"q": [["c"]], "n": [1]}), tmp_path / "b.parquet")
    with pytest.raises(UsageError, match="different types"):
        open_source(tmp_path)
    pq.write_table(pa.table({"q": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(UsageError, match="has other columns than"):
        open_source(tmp_path)


def test_a_file_of_a_folder_that_changed_is_noticed(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "b.jsonl")
    source = open_source(tmp_path)
    source.check_unchanged()
    assert open_source(tmp_path).fingerprint == source.fingerprint
    put(tmp_path / "c", "b.jsonl")
    write(tmp_path / "b.jsonl", jsonl(ROWS))
    assert open_source(tmp_path).fingerprint != source.fingerprint
    with pytest.raises(RunError, match=r"b\.jsonl changed"):
        source.check_unchanged()
    with pytest.raises(UsageError, match="among the files of the dataset"):
        check_out(source, tmp_path / "out.jsonl")


def test_a_dataset_dict_needs_a_split_that_it_has(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "both"
    dataset = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=dataset, test=dataset.select([1])).save_to_disk(str(path))
    assert len(list(open_source(path).rows())) == 2
    assert [row.value for row in open_source(path, split="test").rows()] == ROWS[1:]
    with pytest.raises(UsageError, match="no split 'dev'; it has 'train', 'test'"):
        open_source(path, split="dev")


def test_a_single_saved_dataset_opens_whatever_its_split_was_called(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "one"
    datasets.Dataset.from_list(ROWS, split="test").save_to_disk(str(path))
    assert len(list(open_source(path).rows())) == 2
    assert len(list(open_source(path, split="test").rows())) == 2
    with pytest.raises(UsageError, match="no split 'dev'"):
        open_source(path, split="dev")


def test_a_file_has_no_split_and_no_subset(tmp_path: Path) -> None:
    path = write_format(tmp_path, "jsonl")
    with pytest.raises(UsageError, match="no split 'test'"):
        open_source(path, split="test")
    with pytest.raises(UsageError, match="no subset 'main'"):
        open_source(path, subset="main")


# --- Rows that cannot be read ------------------------------------------------------------------

GOOD = b'{"question": "q", "answer": 1}'
BAD_LINES = {
    "truncated": (b'{"question": "q', "not JSON"),
    "no braces": (b"question: q", "not JSON: Expecting value at character 1"),
    "single quotes": (b"{'question': 'q'}", "not JSON"),
    "trailing comma": (b'{"question": "q",}', "not JSON"),
    "two objects": (b'{"a": 1} {"b": 2}', "not JSON: Extra data"),
    "array": (b'["q", "a"]', "not a JSON object but an array"),
    "string": (b'"q"', "not a JSON object but a string"),
    "number": (b"3.5", "not a JSON object but a number"),
    "null": (b"null", "not a JSON object but null"),
    "bool": (b"true", "not a JSON object but true or false"),
    "latin-1": (b'{"question": "caf\xe9"}', "invalid UTF-8 at byte 18"),
    "surrogate bytes": (b'{"question": "\xed\xa0\x80"}', "invalid UTF-8"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "invalid UTF-8"),
    "NUL bytes": (b"\0" * 100, "not JSON"),
    "NUL in a string": (b'{"question": "a\0b"}', "not JSON"),
    "raw tab": (b'{"question": "a\tb"}', "not JSON"),
    "a lone surrogate": (b'{"question": "\\ud800"}', "surrogate"),
    "a lone surrogate as key": (b'{"\\udfff": 1}', "surrogate"),
    "a surrogate deep inside": (b'{"a": [{"b": "\\uDC00 x"}]}', "surrogate"),
    "long integer": (b'{"answer": ' + b"9" * 5000 + b"}", "too long"),
    "deep": (b'{"a": ' * 200_000, "nested too deep"),
    "deep but whole": (b'{"a": ' + b"[" * 2_000 + b"]" * 2_000 + b"}", "nested too deep"),
    "just too deep": (
        b'{"a": ' + b"[" * MAX_NESTING + b"]" * MAX_NESTING + b"}",
        "more than 100 levels",
    ),
    "PNG": (b"\x89PNG\r", "invalid UTF-8"),
    "markup": (b"<html>", "not JSON"),
    "git conflict": (b"<<<<<<< HEAD", "not JSON"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1", "not JSON"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_never_stops_the_others(tmp_path: Path, case: str) -> None:
    line, problem = BAD_LINES[case]
    path = write(tmp_path / "a.jsonl", b"\n".join([GOOD, line, GOOD]))
    first, bad, last = open_source(path).rows()
    assert first.value == last.value == {"question": "q", "answer": 1}
    assert bad.value is None
    assert bad.row == 2
    assert problem in str(bad.problem)
    assert "\n" not in str(bad.problem)
    bad.raw.encode("utf-8")
    assert len(bad.raw) <= RAW_LIMIT


def test_json_that_is_odd_but_right_is_read(tmp_path: Path) -> None:
    nested = "[" * (MAX_NESTING - 1) + "]" * (MAX_NESTING - 1)
    lines = [
        '{"a": NaN, "b": -Infinity, "c": 1e5}',
        '{"a": "\\ud83d\\ude00", "b": "\\u0000"}',
        '{"a": ' + "9" * 4000 + "}",
        '{"a": ' + nested + "}",
        '{"a": "' + "{" * 1_000_000 + '"}',
        "{}",
    ]
    rows = list(open_source(write(tmp_path / "a.jsonl", "\n".join(lines))).rows())
    assert [row.problem for row in rows] == [None] * len(lines)
    assert [row.text for row in rows] == lines


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (b"only one", "1 cells where the header has 2"),
        (b"a,b,c", "3 cells where the header has 2"),
        (b'"a"x,b', "not CSV"),
        (b"caf\xe9,4", "invalid UTF-8 at character 4"),
        (b"a\0,4", "a NUL byte"),
    ],
)
def test_a_bad_csv_record_never_stops_the_others(
    tmp_path: Path, record: bytes, problem: str
) -> None:
    path = write(tmp_path / "a.csv", b"question,answer\nq,1\n" + record + b"\nq,2\n")
    first, bad, last = open_source(path).rows()
    assert first.value == {"question": "q", "answer": "1"}
    assert last.value == {"question": "q", "answer": "2"}
    assert bad.value is None
    assert problem in str(bad.problem)
    bad.raw.encode("utf-8")


def test_a_csv_quote_never_closed_is_a_problem_of_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'question,answer\nq,1\nq,"2\nq,3\n')
    first, bad = open_source(path).rows()
    assert first.value == {"question": "q", "answer": "1"}
    assert "unexpected end of data" in str(bad.problem)


def test_a_parquet_cell_that_is_no_text_spoils_its_row_only(tmp_path: Path) -> None:
    cells = pa.array([b"good", b"caf\xe9", b"fine"]).view(pa.string())
    pq.write_table(pa.table({"question": cells}), tmp_path / "a.parquet")
    first, bad, last = open_source(tmp_path / "a.parquet").rows()
    assert first.value == {"question": "good"}
    assert last.value == {"question": "fine"}
    assert "invalid UTF-8" in str(bad.problem)


def test_raw_is_bounded_and_made_for_typed_rows_too() -> None:
    assert len(SourceRow(1, None, "bad", "x" * 1_000_000).raw) == RAW_LIMIT
    assert SourceRow(1, {"a": 1}).raw == '{"a": 1}'


# --- What cannot be read as a whole ------------------------------------------------------------

BAD_FILES = {
    "empty.jsonl": (b"", "is empty"),
    "blank.jsonl": (b"\n \n\n", "has no rows"),
    "png.jsonl": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 50, "no row can be read"),
    "html.jsonl": (b"<html>\n</html>\n", "no row can be read as jsonl; row 1: not JSON"),
    "bad.jsonl.gz": (b"not gzip", "not a whole gzip file"),
    "cut.jsonl.gz": (gzip.compress(os.urandom(1000) + b"\n")[:-20], "not a whole gzip file"),
    "cut.json": (b'[{"a": 1}, {"a": ', "not a whole JSON array: .*line 1"),
    "comma.json": (b'[{"a": 1},]', "not a whole JSON array"),
    "no comma.json": (b'[{"a": 1} {"a": 2}]', "expecting ',' or ']'"),
    "more.json": (b'[{"a": 1}] [2]', "extra data"),
    "none.json": (b" [ ] ", "has no rows"),
    "numbers.json": (b"[1, 2]", "no row can be read as json; row 1: not a JSON object"),
    "long.json": (b"[" + b"9" * 5000 + b"]", "number too long"),
    "deep.json": (b"[" * 100_000, "nested too deep"),
    "latin.json": (b'[{"a": "caf\xe9"}]', "invalid UTF-8 at byte 12"),
    "pretty.json": (b'{\n"data": [\n{"a": 1}\n]\n}', "neither a JSON array nor one object a line"),
    "header.csv": (b"question,answer\n", "has no rows"),
    "twice.csv": (b"a,a\n1,2\n", "names 'a' more than once"),
    "blank.csv": (b"\n\n", "no header"),
    "junk.csv": (b"\xfe\x00\x01\n\xff\n", "header cannot be read"),
    "cut16.csv": ("a,b\n1,2\n".encode("utf-16")[:-1], "not whole UTF-16"),
    "cut16.jsonl": ('{"a": 1}\n'.encode("utf-16")[:-1], "not whole UTF-16"),
    "cut16.json": ('[{"a": 1}]'.encode("utf-16")[:-1], "UTF-16"),
    "cut.jsonl.zst": (b"\x28\xb5\x2f\xfd\x04", "not a whole zstd file"),
    "junk.jsonl.zst": (b"no zstd at all", "not a whole zstd file"),
    "junk.parquet": (b"not parquet", "not a readable Parquet file"),
    "cut.parquet": (b"PAR1" + b"\0" * 100, "not a readable Parquet file"),
    "notes.txt": (b"hello", "unknown format '.txt'; give .jsonl"),
    "noname": (b"hello", "unknown format"),
    "table.csv.gz": (b"hello", "unknown format '.csv.gz'"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_an_unreadable_file_is_one_clear_line(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    with pytest.raises(UsageError, match=message) as caught:
        open_source(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_damaged_parquet_page_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [str(n) * 50 for n in range(3000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:2000] = b"\xff" * 1996
    with pytest.raises(UsageError, match="is damaged"):
        open_source(write(path, bytes(content)))


def test_a_parquet_file_without_rows_or_with_twin_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), path)
    with pytest.raises(UsageError, match="has no rows"):
        open_source(path)
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), path)
    with pytest.raises(UsageError, match="more than once"):
        open_source(path)


@pytest.mark.parametrize(
    "name",
    ["missing.jsonl", "./missing", "/missing/x", "a/b/c", "data/x.parquet", "x.txt", "a\0b", "a b"],
)
def test_a_missing_file_is_said_to_be_missing(name: str) -> None:
    with pytest.raises(UsageError, match="no such file"):
        open_source(name)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a readable dataset folder"):
        open_source(tmp_path)
    saved = write_format(tmp_path, "folder")
    write(saved / "state.json", "{")
    with pytest.raises(UsageError, match="damaged"):
        open_source(saved)
    write(saved / "state.json", "{}")
    with pytest.raises(UsageError, match="damaged"):
        open_source(saved)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    # /proc/self/mem opens but cannot be read from its start, by root either.
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(UsageError, match=r"cannot read|is empty"):
        open_source(tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match="not a regular file"):
        open_source("/dev/null")
    with pytest.raises(UsageError, match="cannot read"):
        open_source("x" * 5000)


def test_permission_denied_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write_format(tmp_path, "jsonl")
    monkeypatch.setattr(Path, "open", refuse)  # The tests may run as root, whom no mode stops.
    with pytest.raises(UsageError, match=r"cannot read .*few.jsonl: Permission denied"):
        open_source(path)


# --- The Hub, without a network ----------------------------------------------------------------


def test_a_hub_dataset_is_loaded_with_subset_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load(path: str, **options: object) -> datasets.Dataset:
        calls.append((path, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source("openai/gsm8k", split="test", subset="main")
    assert calls == [("openai/gsm8k", {"name": "main", "split": "test"})]  # No remote code.
    assert [row.value for row in source.rows()] == ROWS
    assert (source.name, source.format, source.path) == ("gsm8k", "hub", None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach"), "Hub cannot be reached"),
        (FileNotFoundError("Dataset 'a/b' is a gated\ndataset"), "is a gated dataset"),
        (ValueError("Unknown split \"dev\". Should be one of ['train']."), "one of \\['train'\\]"),
        (RuntimeError("Dataset scripts are no longer supported"), "scripts are no longer"),
    ],
)
def test_a_hub_failure_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    import datasets

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UsageError, match=message) as caught:
        open_source("a/b")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["json", "parquet", "pandas", "text"])
def test_a_reader_of_the_datasets_library_is_no_hub_id(name: str) -> None:
    with pytest.raises(UsageError, match="no such file"):
        open_source(name)  # It would read any such file of the working folder.


def test_local_files_import_no_datasets_library(tmp_path: Path) -> None:
    path = write_format(tmp_path, "jsonl")
    code = f"""
        import sys
        from curate.datasets.source import open_source
        list(open_source({str(path)!r}).rows())
        assert not {{"datasets", "torch", "probes"}} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=REPOSITORY)


def test_json_text_is_strict_json() -> None:
    import datetime
    from decimal import Decimal

    value = {
        "nan": float("nan"),
        "list": [float("inf"), 1.5],
        "day": datetime.date(2024, 5, 1),
        "time": datetime.datetime(2024, 5, 1, 12),
        "decimal": Decimal("1.10"),
        "text": b"caf\xc3\xa9",
        "bytes": b"\xff",
        "é": None,
    }
    assert json.loads(json_text(value), parse_constant=pytest.fail) == {
        "nan": None,
        "list": [None, 1.5],
        "day": "2024-05-01",
        "time": "2024-05-01T12:00:00",
        "decimal": "1.10",
        "text": "café",
        "bytes": "/w==",
        "é": None,
    }


# --- Size --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [("gsm8k_train", 7473), ("math_similar", 4763), ("math_subproblems", 2936)],
)
def test_the_shared_data_load_without_a_reject(name: str, count: int) -> None:
    path = DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    source = open_source(path)
    assert source.name == name
    rows = [row.value for row in source.rows()]
    layout = recognise_layout([row for row in rows[:200] if row])
    questions = [read_question(row, layout) for row in rows if row is not None]
    assert len(questions) == len(rows) == count
    if name == "gsm8k_train":
        assert questions[0].answer == "72"
        assert all(question.answer.lstrip("-").replace(".", "").isdigit() for question in questions)


def test_a_million_rows_are_read_in_small_memory(tmp_path: Path) -> None:
    path = tmp_path / "million.jsonl"
    question = "A shop sells pens. " * 10
    with path.open("w") as file:
        for start in range(0, 1_000_000, 10_000):
            file.writelines(
                f'{{"question": "{question}{n}?", "answer": "So much. #### {n}"}}\n'
                for n in range(start, start + 10_000)
            )
    code = """
        import sys
        from pathlib import Path
        from curate.config import TagConfig
        from curate.datasets.source import open_source
        from curate.datasets.layouts import choose_layout
        from probes.stages.items import read_items
        from probes.verifiers.by_row import RowVerifiers
        from curate.run.folder import open_run
        source = open_source(sys.argv[1])
        with open_run(Path(sys.argv[2]), TagConfig(), {}) as run:
            items, counts = read_items(
                source,
                choose_layout(source, "", ""),
                0,
                run,
                check_columns=lambda names: None,
                verifiers=RowVerifiers(TagConfig()),
                check_golds=lambda golds, names, solutions: [None] * len(golds),
            )
        assert counts["rows"] == counts["items"] == len(items)
        # Not ru_maxrss, which includes that of the process that forked this one.
        lines = Path("/proc/self/status").read_text().splitlines()
        (highest,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        print(len(items), highest // 1024)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path), str(tmp_path / "run")],
        check=True,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    count, mebibytes = map(int, result.stdout.split())
    print(f"a million rows: {mebibytes} MiB at most")
    assert count == 1_000_000
    assert mebibytes < 1500
