"""`curate join`: several models on one dataset in one file, and what other commands make of it."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

import curate
from curate.tagged.joined import is_model_name, joined_models, model_name
from recipes.statistics.agreement import confusion
from recipes.statistics.kappa import tag_agreement
from tests.made.joined import LARGE, SMALL, a_dataset, item_of, run_on, tag_of
from tests.tag_runs import Ran, read_jsonl, run_curate, write_jsonl

OWN = ["question", "answer", "extra"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A small and a large model on eight rows of six items, in the folder `runs` from here."""
    monkeypatch.chdir(tmp_path)
    data = a_dataset(tmp_path / "sums.jsonl")
    return (
        run_on(data, Path("runs/small"), SMALL, "org/Small-1.5B"),
        run_on(data, Path("runs/large"), LARGE, "org/Large-7B-Instruct"),
    )


def _join(*arguments: object, out: str = "both.jsonl") -> dict[str, Any]:
    ran = run_curate("join", *arguments, "-o", out, "--name", "small", "--name", "large", "--json")
    assert ran.status == 0, ran.stderr
    summary: dict[str, Any] = json.loads(ran.stdout)
    return summary


def _refused(*arguments: object) -> str:
    ran = run_curate(*arguments)
    assert ran.status == 2 and ran.stdout == "", ran
    assert ran.stderr.count("\n") == 1
    return ran.stderr


# --- The file --------------------------------------------------------------------------------


def _typed(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, cells of CSV as JSON where they are."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.suffix == ".json":
        rows: list[dict[str, Any]] = json.loads(path.read_text())
        return rows
    with path.open(newline="") as file:
        return [
            {name: _cell(name, text) for name, text in row.items()} for row in csv.DictReader(file)
        ]


def _cell(name: str, text: str) -> Any:
    if text == "":
        return "" if name == "answer" else None
    try:
        return text if name == "answer" else json.loads(text)
    except ValueError:
        return text


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_each_models_columns_stand_beside_the_rows_of_the_dataset(
    suffix: str, runs: tuple[Path, Path]
) -> None:
    _join(*runs, out=f"both.{suffix}")
    rows = _typed(Path(f"both.{suffix}"))
    own = read_jsonl(Path("sums.jsonl"))
    assert [{name: row[name] for name in OWN} for row in rows] == own
    assert list(rows[0])[:5] == [*OWN, "item_id", "small.trainability"]
    assert Counter(name.partition(".")[0] for name in rows[0])["small"] == len(
        [name for name in rows[0] if name.startswith("large.")]
    )
    numbers = [*range(6), 0]
    for row, number in zip(rows, numbers, strict=False):
        assert row["item_id"] == item_of(number)
        for name, correct in (("small", SMALL[number]), ("large", LARGE[number])):
            assert row[f"{name}.trainability"] == tag_of(correct)
            assert row[f"{name}.pass_rate"] == correct / 32
            assert row[f"{name}.pass_rate_low"] <= correct / 32 <= row[f"{name}.pass_rate_high"]
            assert row[f"{name}.total_correct_rollouts"] == correct
            assert row[f"{name}.lift"] == (correct / 10 if correct else None)
            assert row[f"{name}.forecast_pass_rate"] == 0.5
            assert row[f"{name}.tag_reason"] == f"made up to be {tag_of(correct)}"
    last = rows[-1]
    assert last["item_id"] is None and last["large.trainability"] is None
    assert last["small.tag_reason"] == last["large.tag_reason"] == "rejected: no answer"


def test_rows_of_json_keep_their_text(runs: tuple[Path, Path]) -> None:
    _join(*runs)
    for before, after in zip(
        Path("sums.jsonl").read_text().splitlines(),
        Path("both.jsonl").read_text().splitlines(),
        strict=True,
    ):
        assert after.startswith(before[:-1] + ', "item_id": ')


def test_of_a_dataset_that_is_gone_the_tagged_file_has_the_rows(runs: tuple[Path, Path]) -> None:
    small, _ = runs
    tags = [*(tag_of(each) for each in SMALL), tag_of(SMALL[0]), None]
    correct = [*SMALL, SMALL[0], None]
    own = read_jsonl(Path("sums.jsonl"))
    ids = [*(item_of(number) for number in range(6)), item_of(0), None]
    names = ("item_id", "trainability", "total_correct_rollouts")
    tagged = [
        {**row, **dict(zip(names, values, strict=True)), "lift": 7}
        for row, *values in zip(own, ids, tags, correct, strict=True)
    ]
    write_jsonl(small / "no.jsonl", tagged)
    manifest = json.loads((small / "manifest.json").read_text())
    manifest["stages"]["write"] = {"state": "done"}
    (small / "manifest.json").write_text(json.dumps(manifest))
    _join(*runs)
    expected = Path("both.jsonl").read_text()
    Path("sums.jsonl").unlink()
    _join(*runs, out="again.jsonl")
    assert Path("again.jsonl").read_text() == expected
    shutil.rmtree("again.jsonl", ignore_errors=True)
    # Nor is a dataset taken that has changed since.
    Path("sums.jsonl").write_text('{"question": "what else", "answer": "1"}\n')
    _join(*runs, out="again.jsonl")
    assert Path("again.jsonl").read_text() == expected
    (small / "no.jsonl").unlink()
    said = _refused("join", *runs, "-o", "more.jsonl")
    assert "neither its dataset" in said and not Path("more.jsonl").exists()


def test_files_of_other_programs_read_the_names(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for suffix, kind in (("jsonl", "json"), ("csv", "csv"), ("parquet", "parquet")):
        _join(*runs, out=f"both.{suffix}")
        loaded = datasets.load_dataset(
            kind, data_files=f"both.{suffix}", split="train", cache_dir=str(tmp_path / "cache")
        )
        assert loaded["large.total_correct_rollouts"][:6] == list(LARGE)


# --- What is said ----------------------------------------------------------------------------


def test_the_summary_counts_tags_pairs_and_who_solves_what(runs: tuple[Path, Path]) -> None:
    summary = _join(*runs)
    assert json.loads(Path("both.jsonl.join.json").read_text()) == summary
    assert summary["rows"] == 8 and summary["rows_without_item"] == 1
    assert summary["items"] == {"rows": 6, "in_all": 6}
    small, large = summary["models"]
    assert (small["name"], small["model"], small["path"]) == (
        "small", "org/Small-1.5B", "runs/small",
    )  # fmt: skip
    assert small["tags"] == {
        "easy": 1, "learnable": 2, "unlearnable": 0, "no_positive": 3, "undetermined": 0,
    }  # fmt: skip
    assert small["mean_pass_rate"] == pytest.approx(sum(SMALL) / 32 / 6)
    assert large["items_missing"] == large["items_beyond"] == 0
    (pair,) = summary["pairs"]
    assert (pair["first"], pair["second"], pair["items"]) == ("small", "large", 6)
    assert pair["equal"] == 3 / 6
    # By chance: easy 1/6 · 3/6, learnable 2/6 · 1/6, no_positive 3/6 · 2/6.
    assert pair["kappa"] == pytest.approx((1 / 2 - 11 / 36) / (1 - 11 / 36))
    assert pair["tags"]["learnable"]["easy"] == 2 and pair["tags"]["easy"]["learnable"] == 0
    # 2 and 1 of 32 against 31 and 20; 0 against 3 is within the errors.
    assert (pair["first_higher"], pair["second_higher"]) == (0, 2)
    solved = summary["solved"]
    assert (solved["by_all"], solved["only"]["small"]["items"]) == (1, 0)
    assert solved["only"]["large"] == {
        "items": 2,
        "sure": 2,
        "examples": [
            {
                "item_id": item_of(number),
                "prompt": f"what is {number} + 1 ?",
                "pass_rates": {"small": SMALL[number] / 32, "large": LARGE[number] / 32},
            }
            for number in (1, 2)
        ],
    }
    assert (solved["by_none"]["items"], solved["never_right"]) == (3, 2)
    assert summary["settings"] == {} and summary["notes"] == []
    assert summary["suspect_golds"]["items"] == 0


def test_what_chance_could_have_done_and_golds_that_all_doubt_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = a_dataset(tmp_path / "sums.jsonl")
    # Easy is from 16 of 32 on.
    counts = {"small": (15, 3, 30, 0, 0, 0), "large": (16, 30, 31, 0, 0, 0)}
    doubts = {"small": [3, 4], "large": [4, 5]}
    runs = []
    for name, correct in counts.items():
        answers = {
            **{"answers": [32] * 6, "majority_answer": ["0"] * 6, "majority_share": [0.9] * 6},
            **{"majority_low": [0.8] * 6, "majority_high": [1.0] * 6},
            "suspect_gold": [number in doubts[name] for number in range(6)],
            "no_positive_kind": [None] * 5 + ["another_answer"],
        }
        tables = {"answers": answers}
        runs.append(run_on(data, Path(name), correct, name, tables=tables))
    summary = _join(*runs)
    alone = summary["solved"]["only"]["large"]
    assert (alone["items"], alone["sure"]) == (2, 1)
    # First what the model is ahead in most.
    assert [each["item_id"] for each in alone["examples"]] == [item_of(1), item_of(0)]
    assert summary["suspect_golds"]["items"] == 1
    assert summary["suspect_golds"]["examples"][0]["item_id"] == item_of(4)
    ran = run_curate("join", *runs, "-o", "both.jsonl")
    assert "golds that look wrong by the answers of every model: 1\n" in ran.stdout
    assert "solved by large alone: 2 (1 beyond the errors)\n" in ran.stdout
    assert read_jsonl(Path("both.jsonl"))[5]["small.no_positive_kind"] == "another_answer"
    assert "(`suspect_gold`): 1 items." in _card()


def test_the_table_for_a_reader(runs: tuple[Path, Path]) -> None:
    ran = run_curate("join", *runs, "-o", "both.jsonl")
    lines = ran.stdout.splitlines()
    assert lines[0] == "small_1_5b: org/Small-1.5B, runs/small"
    assert "tag               small_1_5b  large_7b_instruct" in lines
    assert "easy                       1                  3" in lines
    assert "solved by large_7b_instruct alone: 2 (2 beyond the errors)" in lines
    assert "    small_1_5b 0.062, large_7b_instruct 0.969: what is 1 + 1 ?" in lines
    assert lines[-1] == "summary: both.jsonl.join.json" and ran.stderr == ""


def test_settings_that_differ_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = a_dataset(tmp_path / "sums.jsonl")
    runs = (
        run_on(data, Path("a"), SMALL, "m"),
        run_on(
            data, Path("b"), LARGE, "m",
            settings={"temperature": 0.6, "instruction": "Think.", "rollouts": "x.jsonl"},
        ),
    )  # fmt: skip
    summary = _join(*runs)
    assert summary["settings"] == {
        "temperature": {"small": 1.0, "large": 0.6},
        "instruction": {"small": "auto", "large": "Think."},
    }
    ran = run_curate("join", *runs, "-o", "both.jsonl")
    assert "note: temperature is 1.0 for a, 0.6 for b: " in ran.stderr
    assert "note: the rollouts of b were taken from files, and what drew them is not known" in (
        ran.stderr
    )
    assert "note: a and b are the same weights: " in ran.stderr


def test_what_a_run_lacks_or_has_beyond_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = a_dataset(tmp_path / "sums.jsonl")
    other = a_dataset(tmp_path / "more.jsonl", questions=8, level="level")
    all_of_it = run_on(data, Path("a"), SMALL, "m")
    with_limit = run_on(data, Path("b"), LARGE[:4], "n", numbers=range(4))
    of_another = run_on(other, Path("c"), (1, 1, 1, 1, 1), "o", numbers=range(2, 7))
    names = ("--name", "a", "--name", "b", "--name", "c", "--json", "-o", "all.jsonl")
    ran = run_curate("join", all_of_it, with_limit, of_another, *names)
    summary = json.loads(ran.stdout)
    counts = [(each["items_missing"], each["items_beyond"]) for each in summary["models"]]
    assert counts == [(0, 0), (2, 0), (2, 1)]
    assert summary["items"] == {"rows": 6, "in_all": 2}
    assert [pair["items"] for pair in summary["pairs"]] == [4, 4, 2]
    assert "the datasets are not the same file: rows are those of a" in summary["notes"][0]
    rows = read_jsonl(Path("all.jsonl"))
    assert rows[5]["b.trainability"] is None and rows[5]["c.trainability"] == "learnable"
    assert rows[5]["b.tag_reason"] == "not probed: beyond --limit"
    assert rows[0]["c.tag_reason"] == "not in the run of this model"
    text = run_curate("join", all_of_it, with_limit, of_another, *names[:6], "-o", "all.jsonl")
    assert (
        "c: 2 items of a are not in its run; 1 of its own are not among these rows\n" in text.stdout
    )


def test_runs_without_a_common_item_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = a_dataset(tmp_path / "sums.jsonl")
    runs = [
        run_on(data, Path("a"), (1, 1), "m", numbers=(0, 1)),
        run_on(data, Path("b"), (1, 1), "n", numbers=(2, 3)),
    ]
    assert "a, b have no item in common: " in _refused("join", *runs, "-o", "x.jsonl")
    assert not list(tmp_path.glob("x*"))


def test_kappa_of_tags() -> None:
    def agreement(first: str, second: str) -> dict[str, Any]:
        words = {"e": "easy", "l": "learnable", "u": "unlearnable"}
        return tag_agreement(confusion([words[c] for c in first], [words[c] for c in second]))

    assert agreement("elu", "elu") == {"items": 3, "equal": 1.0, "kappa": 1.0}
    # Cohen 1960: 0.6 equal, 0.5 by chance.
    assert agreement("eeeeelllll", "eeellleell")["kappa"] == pytest.approx(0.2)
    assert agreement("eell", "llee")["kappa"] == pytest.approx(-1.0)
    assert agreement("eee", "eee") == {"items": 3, "equal": 1.0, "kappa": None}
    assert agreement("", "") == {"items": 0, "equal": None, "kappa": None}


# --- Names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen2.5-7B-Instruct", "qwen2_5_7b_instruct"),
        ("7B", "m_7b"),
        ("éé", "model"),
        ("in", "m_in"),
        ("null", "m_null"),
        ("../../etc", "etc"),
        ("a" * 99, "a" * 40),
        ("x|`<b>\n", "x_b"),
    ],
)
def test_names_are_made_safe(text: str, name: str) -> None:
    assert model_name(text) == name and is_model_name(name)


def test_models_of_one_name_are_called_by_their_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = a_dataset(tmp_path / "sums.jsonl")
    models = ("/x/Extra.gguf", "org/M@main", "/y/M", "other/m")
    runs = [
        run_on(data, Path(folder), SMALL, model)
        for folder, model in zip(("one", "hot", "a/cold", "b/cold"), models, strict=True)
    ]
    # The dataset has a column `extra`.
    assert [m["name"] for m in curate.join(runs, "x.jsonl")["models"]] == [
        *("extra_2", "hot", "cold", "cold_2")
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a b", "c"), "a_b would do"),
        (("in", "c"), "m_in would do"),
        (("A", "a"), "two models have this name"),
        (("extra", "c"), "the dataset has a column 'extra'"),
        (("a",), "--name is given 1 times for 2 runs"),
    ],
)
def test_names_that_would_not_do_are_refused(
    names: tuple[str, ...], said: str, runs: tuple[Path, Path]
) -> None:
    given = [word for name in names for word in ("--name", name)]
    assert said in _refused("join", *runs, "-o", "x.jsonl", *given)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("runs/small", "-o", "x.jsonl"), "give two run folders"),
        (("runs/small", "runs/../runs/small", "-o", "x.jsonl"), "are one run folder"),
        (("runs/small", "runs/nowhere", "-o", "x.jsonl"), "runs/nowhere is no run folder"),
        (("runs/small", "runs/large", "-o", "x.txt"), "the suffix must be one of"),
        (("runs/small", "runs/large", "-o", "sums.jsonl"), "is the dataset itself"),
        (("runs/small", "runs/large", "-o", "runs/large/no.jsonl"), "is a file of runs/large"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], said: str, runs: tuple[Path, Path]
) -> None:
    assert said in _refused("join", *arguments)
    assert not Path("x.jsonl").exists()


# --- What filter and order do with it ----------------------------------------------------------


def _kept(ran: Ran, out: str) -> list[str]:
    assert ran.status == 0, ran.stderr
    rows = _typed(Path(out))
    return [row["question"].removeprefix("what is ").removesuffix(" + 1 ?") for row in rows]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_an_expression_reaches_every_model(suffix: str, runs: tuple[Path, Path]) -> None:
    _join(*runs, out=f"both.{suffix}")
    out = f"chosen.{suffix}"
    ran = run_curate(
        "filter", f"both.{suffix}", "-o", out,
        "--expr", "large.trainability == 'easy' and small.trainability == 'learnable'",
    )  # fmt: skip
    assert _kept(ran, out) == ["1", "2"]
    assert "tags of all models           rows     kept\n" in ran.stdout
    assert "        1  rejected\n" in ran.stdout
    ran = run_curate("filter", out, "-o", f"again.{suffix}", "--expr", "large.pass_rate > 0.9")
    assert _kept(ran, f"again.{suffix}") == ["1"]
    # The rows are as they were.
    everything = {row["question"]: row for row in _typed(Path(f"both.{suffix}"))}
    assert _typed(Path(f"again.{suffix}")) == [everything["what is 1 + 1 ?"]]


def test_a_column_that_is_not_there_is_named(runs: tuple[Path, Path]) -> None:
    _join(*runs)
    said = _refused("filter", "both.jsonl", "-o", "x.jsonl", "--expr", "large.pas_rate > 0")
    assert said.endswith("no column 'large.pas_rate'; did you mean 'large.pass_rate'?\n")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_tags_of_a_named_model_count(suffix: str, runs: tuple[Path, Path]) -> None:
    _join(*runs, out=f"both.{suffix}")
    file, out = f"both.{suffix}", f"out.{suffix}"
    ran = run_curate(
        "filter", file, "--model", "small", "--keep", "learnable", "--max-pass-rate", "0.05",
        "--expr", "pass_rate < large.pass_rate", "-o", out, "--json",
    )  # fmt: skip
    assert _kept(ran, out) == ["2"]
    found = json.loads(ran.stdout)
    assert found["tag_column"] == "small.trainability"
    assert found["tags"]["learnable"] == {"rows": 2, "kept": 1}
    ran = run_curate("order", file, "--model", "large", "--by", "learnable-first", "-o", out)
    assert _kept(ran, out)[:2] == ["3", "0"]
    assert list(_typed(Path(out))[0]) == list(_typed(Path(file))[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("filter", "--keep", "easy"), "whose tags --keep goes by (small, large)"),
        (("filter", "--min-lift", "1"), "whose tags a bound on lift goes by (small, large)"),
        (("filter", "--balance"), "whose tags --balance goes by (small, large)"),
        (("filter", "--by", "confirmed"), "whose tags --by goes by (small, large)"),
        (("order",), "whose tags the order goes by (small, large)"),
        (("order", "--model", "larg"), "has no model 'larg'; did you mean 'large'?"),
    ],
)
def test_a_model_must_be_named_where_tags_count(
    arguments: tuple[str, ...], said: str, runs: tuple[Path, Path]
) -> None:
    _join(*runs)
    command, *rest = arguments
    assert said in _refused(command, "both.jsonl", *rest, "-o", "x.jsonl")


def test_of_one_model_none_is_named(runs: tuple[Path, Path]) -> None:
    _join(*runs)
    rows = [
        {"question": row["question"], "answer": row["answer"], "item_id": row["item_id"],
         "trainability": row["small.trainability"]}
        for row in read_jsonl(Path("both.jsonl"))
    ]  # fmt: skip
    write_jsonl(Path("one.jsonl"), rows)
    said = _refused("order", "one.jsonl", "--model", "small", "-o", "x.jsonl")
    assert "--model small: one.jsonl is of one model" in said
    # A dataset with such a column of its own is no file of several models.
    assert joined_models(["question", "x.trainability"]) == ()


def test_a_file_for_a_trainer_has_the_columns_of_all(runs: tuple[Path, Path]) -> None:
    _join(*runs)
    ran = run_curate(
        "filter", "both.jsonl", "--model", "small", "--keep", "learnable",
        "--format", "prime-rl", "-o", "train.jsonl",
    )  # fmt: skip
    assert ran.status == 0, ran.stderr
    first = read_jsonl(Path("train.jsonl"))[0]
    info = json.loads(first["info"])
    assert info["small.trainability"] == "learnable" and info["large.trainability"] == "easy"
    assert info["item_id"] == item_of(1)


def test_rows_that_no_item_is_in_are_left_out_by_a_command_that_works(
    runs: tuple[Path, Path],
) -> None:
    _join(*runs)
    said = _refused(
        "order", "both.jsonl", "--model", "small", "--format", "trl", "-o", "train.jsonl"
    )
    assert "row 8 has no item to train on: rejected: no answer; " in said
    *_, command = said.rpartition(": curate ")
    assert run_curate(*command.split()).status == 0
    ran = run_curate(
        "order", "train.chosen.jsonl", "--model", "small", "--format", "trl", "-o", "train.jsonl"
    )
    assert ran.status == 0 and len(read_jsonl(Path("train.jsonl"))) == 7


def test_every_order_of_a_tagged_file_goes_by_its_column(runs: tuple[Path, Path]) -> None:
    tags = ("learnable", "easy", "learnable")
    numbers = {"forecast_pass_rate": (0.1, 0.9, 0.5), "teaching": (1, 3, 2)}
    rows = [
        {
            **{"question": f"q{n}", "answer": "1", "item_id": str(n), "pass_rate": 0.1},
            **{"trainability": tag, **{name: values[n] for name, values in numbers.items()}},
        }
        for n, tag in enumerate(tags)
    ]
    write_jsonl(Path("tagged.jsonl"), rows)
    for by in ("forecast", "teaching"):
        assert run_curate("order", "tagged.jsonl", "--by", by, "-o", "o.jsonl").status == 0
        assert [row["question"] for row in read_jsonl(Path("o.jsonl"))] == ["q1", "q2", "q0"]


# --- The other commands ------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["report", "push", "confirm", "compare"])
def test_commands_for_one_run_say_so(command: str, runs: tuple[Path, Path]) -> None:
    _join(*runs)
    options = {"push": ("--repo", "me/x", "--dry-run"), "compare": ("runs/small",)}
    said = _refused(command, "both.jsonl", *options.get(command, ()))
    assert "both.jsonl is of several models" in said


def test_it_is_a_function_of_the_library(runs: tuple[Path, Path]) -> None:
    summary = curate.join(list(runs), "both.jsonl", name=["small", "large"])
    assert summary == json.loads(Path("both.jsonl.join.json").read_text())
    kept = curate.filter("both.jsonl", "one.jsonl", model="small", keep="easy")
    assert kept["kept"] == 2


def _card(file: str = "both.jsonl", *arguments: object) -> str:
    ran = run_curate("card", file, *arguments)
    assert ran.status == 0, ran.stderr
    return Path(ran.stdout.removeprefix("card: ").rstrip("\n")).read_text(encoding="utf-8")


def test_the_card_tells_of_all_models(runs: tuple[Path, Path]) -> None:
    _join(*runs)
    card = _card("both.jsonl", "--license", "mit", "--repo", "me/sums")
    assert Path("both.md").read_text() == card
    assert DatasetCard(card).data.to_dict() == {
        "license": "mit",
        "tags": ["rlvr", "reinforcement-learning", "grpo", "trainability", "curate"],
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "both.jsonl"}],
            }
        ],
    }
    for line in (
        "# `sums`, tagged by trainability for 2 models",
        "- `small`: `org/Small-1.5B`",
        "| `easy` | 1 | 3 | right in at least 10% of rollouts already: pass rate at least 0.1 |",
        "| mean pass rate | 0.172 | 0.448 | of the 6 items that all models were probed on |",
        "| `learnable` | 2 | 0 | 0 |",
        "### How `large` was measured",
        'rows = load_dataset("me/sums", split="train")',
        "- Verifier, sampling settings and instruction were the same for all models; chat "
        "templates are each model's own.",
    ):
        assert f"\n{line}\n" in card, line
    assert "none 3; on 2 of these no rollout of any model was right" in card
    assert "(Cohen's kappa: 0.28)" in card
    # Between its markers it is written anew, and the rest stays.
    Path("both.md").write_text(f"{card}\nMine.\n")
    assert _card() == f"{card}\nMine.\n".replace("me/sums", "OWNER/NAME")


def test_models_of_the_hub_are_linked_and_the_card_is_added_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = a_dataset(tmp_path / "sums.jsonl")
    runs = []
    for name, correct in (("small", SMALL), ("large", LARGE)):
        run = run_on(data, Path(name), correct, f"org/{name}@main")
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["model"] |= {"revision": "c" * 40, "id": f"org/{name}"}
        (run / "manifest.json").write_text(json.dumps(manifest))
        runs.append(run)
    _join(*runs, out="both.parquet")
    other = "---\nconfigs:\n- config_name: other\n  data_files: x.parquet\n---\n\n# Mine\n"
    Path("mine.md").write_text(other)
    card = _card("both.parquet", "--merge", "mine.md")
    data_of_card = DatasetCard(card).data.to_dict()
    assert data_of_card["base_model"] == ["org/small", "org/large"]
    assert [each["config_name"] for each in data_of_card["configs"]] == ["other", "models"]
    assert "# Mine" in card and 'load_dataset("OWNER/NAME", "models", split="train")' in card


def test_what_others_named_is_no_markup_in_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = "x`\n# <b>![a](http://e.vil/a.png)|"
    data = a_dataset(tmp_path / "sums.jsonl")
    runs = [
        run_on(data, Path("a"), SMALL, odd, settings={"instruction": odd}),
        run_on(data, Path("b"), LARGE, "/home/somebody/secret/model", settings={"system": odd}),
    ]
    ran = run_curate("join", *runs, "-o", "both.jsonl")
    assert ran.status == 0 and "\n# <b>" not in ran.stdout + ran.stderr
    card = _card()
    tokens = list(MarkdownIt("commonmark").enable("table").parse(card.partition("\n---\n")[2]))
    inline = [child for token in tokens for child in token.children or ()]
    kinds = Counter(token.type for token in (*tokens, *inline))
    assert kinds["image"] == 0 and kinds["html_inline"] == 0
    assert kinds["html_block"] == 2  # The markers.
    assert not any(
        "e.vil" in token.content for token in inline if token.type not in ("code_inline", "text")
    )
    headings = [tokens[n + 1].content for n, t in enumerate(tokens) if t.type == "heading_open"]
    assert not any("<b>" in heading for heading in headings)


def test_a_card_of_other_runs_than_the_file_is_refused(runs: tuple[Path, Path]) -> None:
    _join(*runs)
    shutil.rmtree("runs/small")
    shutil.copytree("runs/large", "runs/small")
    assert "runs/small is not the run that both.jsonl was made of" in _refused("card", "both.jsonl")
    shutil.rmtree("runs/small")
    assert "runs/small is no run folder" in _refused("card", "both.jsonl")
    summary = json.loads(Path("both.jsonl.join.json").read_text())
    summary["models"][0]["name"] = "`<b>`"
    Path("both.jsonl.join.json").write_text(json.dumps(summary))
    ran = run_curate("card", "both.jsonl")
    assert ran.status == 1 and "both.jsonl.join.json is damaged; `curate join`" in ran.stderr


def test_a_part_of_the_file_has_no_card(runs: tuple[Path, Path]) -> None:
    _join(*runs)
    run_curate("filter", "both.jsonl", "-o", "part.jsonl", "--expr", "large.pass_rate > 0.9")
    said = "part.jsonl is a file without the summary that `curate join` writes beside it"
    assert said in _refused("card", "part.jsonl")
    # Nor where it takes the place of the whole, whose counts it does not have.
    Path("part.jsonl").replace("both.jsonl")
    said = "both.jsonl is not the file that both.jsonl.join.json tells of"
    assert said in _refused("card", "both.jsonl")


@pytest.mark.parametrize("damage", [{"rows": "x"}, {"items": []}, {"notes": None}, {"models": 5}])
def test_a_summary_that_somebody_changed_is_said_to_be_damaged(
    runs: tuple[Path, Path], damage: dict[str, Any]
) -> None:
    summary = _join(*runs) | damage
    Path("both.jsonl.join.json").write_text(json.dumps(summary))
    ran = run_curate("card", "both.jsonl")
    assert ran.status == 1 and "both.jsonl.join.json is damaged; `curate join`" in ran.stderr
