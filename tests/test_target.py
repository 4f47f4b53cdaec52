"""`curate tag --target`: similarity to the items of an evaluation."""

import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curate
from probes.gradients.similarity import measure_similarity
from tests.tag_runs import additions, read_jsonl, tag, write_jsonl


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_target_gives_each_item_its_similarity_to_it(tiny_model: Path) -> None:
    rows = additions(12)
    write_jsonl(Path("sums.jsonl"), rows)
    # Three of the training items, and six of its own, in another layout.
    other = [{"prompt": f"{r['question']} =", "answer": r["answer"]} for r in rows[:6]]
    target = [{"prompt": r["question"], "answer": r["answer"]} for r in rows[:3]] + other
    write_jsonl(Path("target.jsonl"), target)
    options = ("sums.jsonl", "--model", tiny_model, "--run-dir", "run", "--min-rollouts", "64")
    ran = tag(*options, "--target", "target.jsonl")
    assert ran.status == 0, ran.stderr
    tagged = read_jsonl(Path("sums.tagged.jsonl"))
    known = [row for row in tagged if row["target_similarity"] is not None]
    assert len(known) >= 4
    for row in known:
        assert row["target_similarity_low"] <= row["target_similarity"]
        assert row["target_similarity"] <= row["target_similarity_high"]
        assert -1 < row["target_similarity"] < 1
        assert row["total_correct_rollouts"] >= 2
    assert (Path("run/target/gradients/rollouts.npy")).exists()
    # The command without the target, in another folder, gives the same of everything else.
    plain = tag(*options[:3], "--run-dir", "plain", *options[5:], "--out", "plain.jsonl")
    assert plain.status == 0, plain.stderr
    for with_target, without in zip(tagged, read_jsonl(Path("plain.jsonl")), strict=True):
        # Teaching is for the target's items where there is one.
        shared = {k: v for k, v in with_target.items() if not k.startswith("target_")}
        assert without | {"teaching": 0} == shared | {"teaching": 0}


def test_through_csv_the_library_gives_numbers_too(tiny_model: Path) -> None:
    write_jsonl(Path("sums.jsonl"), additions(6))
    write_jsonl(Path("target.jsonl"), additions(3))
    files = ("sums.jsonl", "--model", tiny_model, "--run-dir", "run", "--out", "sums.csv")
    ran = tag(*files, "--target", "target.jsonl", "--min-rollouts", "32")
    assert ran.status == 0, ran.stderr
    settings = tomllib.loads(Path("run/config.toml").read_text())
    table = curate.tag(**settings)
    for end in ("", "_low", "_high"):
        assert table.schema.field(f"target_similarity{end}").type == pa.float64()
    assert any(table["target_similarity"].to_pylist())


def test_where_nothing_was_right_there_is_no_similarity(tiny_model: Path) -> None:
    write_jsonl(Path("sums.jsonl"), [row | {"answer": "31337"} for row in additions(6)])
    write_jsonl(Path("target.jsonl"), [row | {"answer": "31337"} for row in additions(3)])
    files = ("sums.jsonl", "--model", tiny_model, "--run-dir", "run", "--min-rollouts", "8")
    ran = tag(*files, "--target", "target.jsonl")
    assert ran.status == 0, ran.stderr
    rows = read_jsonl(Path("sums.tagged.jsonl"))
    assert {row["target_similarity"] for row in rows} == {None}
    assert {row["trainability"] for row in rows} <= {"no_positive", "undetermined"}


def test_the_target_similarity_is_that_of_the_estimator_with_the_target_as_references(
    tiny_model: Path,
) -> None:
    write_jsonl(Path("sums.jsonl"), additions(6))
    target = [{"question": f"{row['question']} =", "answer": row["answer"]} for row in additions(8)]
    write_jsonl(Path("target.jsonl"), target)
    options = ("sums.jsonl", "--model", tiny_model, "--run-dir", "run", "--min-rollouts", "64")
    assert tag(*options, "--target", "target.jsonl").status == 0
    parts, items = [], 0
    for folder in (Path("run"), Path("run/target")):
        order = pq.read_table(folder / "items.parquet")["item_id"].to_pylist()
        rollouts = pq.read_table(folder / "gradients/rollouts.parquet").to_pylist()
        index = np.array([items + order.index(row["item_id"]) for row in rollouts])
        # Of wrong rollouts none counts.
        weights = np.array([row["weight"] * row["reward"] for row in rollouts])
        assert not weights.all()
        parts.append((np.load(folder / "gradients/rollouts.npy"), index, weights))
        items += len(order)
    features, index, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    expected = measure_similarity(features, index, weights, np.arange(items) >= 6)
    found = pq.read_table("run/similarity.parquet")
    for column, values in (("", expected.similarity), ("_low", expected.low)):
        np.testing.assert_allclose(
            found[f"target_similarity{column}"].to_numpy(), values[:6], atol=1e-6
        )


def test_a_target_that_cannot_be_read_stops_before_anything_is_spent(tiny_model: Path) -> None:
    write_jsonl(Path("sums.jsonl"), additions(4))
    options = ("sums.jsonl", "--model", tiny_model, "--run-dir", "run")
    missing = tag(*options, "--target", "nowhere.jsonl")
    assert missing.status == 2 and "nowhere.jsonl" in missing.last_line
    write_jsonl(Path("odd.jsonl"), [{"a": "b"}])
    assert tag(*options, "--target", "odd.jsonl").status == 2
    assert not list(Path("run").glob("rollouts/*"))
