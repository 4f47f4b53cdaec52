"""`curate order`: every strategy is a permutation, stable, seeded, and what its words say."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import curate
from curate.errors import UsageError
from curate.tagged.orders import ORDERS, order_rows
from recipes.recipe import Recipe
from recipes.train.items import TaggedItem, select_items
from recipes.train.prompts import TrainingItem
from tests.tag_runs import read_jsonl, run_curate
from tests.tagged_files import TAGS, some_rows, write_tagged_file

_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "trainability": st.sampled_from([*TAGS, None]),
            "pass_rate": st.none() | st.floats(0, 1) | st.just(float("nan")),
            "forecast_pass_rate": st.none() | st.floats(0, 1),
            "teaching": st.none() | st.floats(-10, 10),
            "gradient_similarity": st.none() | st.floats(-1, 1),
        }
    ),
    max_size=60,
)


@pytest.mark.parametrize("by", ORDERS)
@given(rows=_ROWS, seed=st.integers(0, 3))
def test_every_order_is_a_permutation_and_the_same_again(
    by: str, rows: list[dict[str, Any]], seed: int
) -> None:
    places = order_rows(rows, by, seed)
    assert sorted(places) == list(range(len(rows)))
    assert order_rows(rows, by, seed) == places
    tags = [rows[place]["trainability"] for place in places]
    # Rows that were not tagged come last.
    assert None not in tags[: len(tags) - tags.count(None)]


@pytest.mark.parametrize("by", [name for name in ORDERS if name != "interleave"])
def test_equal_rows_keep_their_order(by: str) -> None:
    rows = [{"trainability": "easy", "pass_rate": 0.5, "gradient_similarity": 0.1}] * 50
    assert order_rows(rows, by, seed=3) == list(range(50))


def _row(
    tag: str, rate: float | None, similarity: float | None = None, **values: float | None
) -> dict[str, Any]:
    return {"trainability": tag, "pass_rate": rate, "gradient_similarity": similarity, **values}


def test_each_order_is_what_its_words_say() -> None:
    rows = [
        _row("no_positive", 0.0),
        _row("learnable", 0.03, 0.2),
        _row("easy", 0.2, 0.4),
        _row("undetermined", None, None),
        _row("unlearnable", 0.05, -0.1),
        _row("learnable", 0.06, 0.1),
        _row("easy", 0.8, 0.3),
        _row("undetermined", 0.09, 0.05),
    ]
    assert order_rows(rows, "curriculum") == [6, 2, 5, 1, 7, 4, 0, 3]
    assert order_rows(rows, "pass_rate") == [6, 2, 7, 5, 4, 1, 0, 3]
    assert order_rows(rows, "similarity") == [2, 6, 1, 5, 7, 4, 0, 3]
    assert order_rows(rows, "learnable-first") == [5, 1, 7, 3, 6, 2, 4, 0]


def test_by_forecast_is_by_what_is_gained_and_by_teaching_by_what_others_gain() -> None:
    rows = [
        _row("easy", 0.8, forecast_pass_rate=0.95, teaching=-0.2),
        _row("learnable", 0.05, forecast_pass_rate=0.4, teaching=0.1),
        _row("undetermined", 0.0, forecast_pass_rate=None, teaching=None),
        {"trainability": None, "pass_rate": 0.0, "forecast_pass_rate": 1.0, "teaching": 5.0},
        _row("undetermined", None, forecast_pass_rate=0.9, teaching=3.0),
        _row("learnable", 0.02, forecast_pass_rate=0.5, teaching=0.0),
        _row("unlearnable", 0.05, forecast_pass_rate=0.02, teaching=0.3),
        _row("easy", 0.1, forecast_pass_rate=0.9),
    ]
    assert order_rows(rows, "forecast") == [7, 5, 1, 0, 6, 2, 4, 3]
    assert order_rows(rows, "teaching") == [4, 6, 1, 5, 0, 2, 7, 3]


@given(
    sizes=st.lists(st.integers(0, 40), min_size=5, max_size=5),
    seed=st.integers(0, 5),
)
def test_interleaved_stretches_hold_the_tags_in_the_proportions_of_the_whole(
    sizes: list[int], seed: int
) -> None:
    rows = [_row(tag, 0.1) for tag, size in zip(TAGS, sizes, strict=True) for _ in range(size)]
    tags = [rows[place]["trainability"] for place in order_rows(rows, "interleave", seed)]
    for end in range(len(tags)):
        found = Counter(tags[:end])
        for tag, size in zip(TAGS, sizes, strict=True):
            assert abs(found[tag] - end * size / len(tags)) <= len(TAGS) / 2


def test_interleaving_draws_within_a_tag_by_its_seed() -> None:
    rows = [_row("easy", 0.5)] * 30
    orders = [order_rows(rows, "interleave", seed) for seed in (0, 1)]
    assert orders[0] != orders[1] != list(range(30))


def test_an_unknown_order_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="'similarty'; did you mean similarity"):
        order_rows([], "similarty")


def test_recipes_train_in_the_same_curriculum() -> None:
    items = [
        TaggedItem(TrainingItem(str(n), (1,), "1"), row["trainability"], row["pass_rate"])
        for n, row in enumerate(some_rows())
        if row["trainability"]
    ]
    chosen = select_items(Recipe("r", order="curriculum"), items, seed=0)
    assert chosen == [items[n] for n in order_rows([each.row for each in items], "curriculum")]
    assert [each.trainability for each in chosen[:8]] == ["easy"] * 4 + ["learnable"] * 4


@pytest.mark.parametrize("by", ORDERS)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_command_writes_every_row_once_in_that_order(
    tmp_path: Path, suffix: str, by: str
) -> None:
    rows = some_rows()
    file = write_tagged_file(tmp_path / f"t{suffix}", rows)
    out = tmp_path / f"o{suffix}"
    ran = run_curate("order", file, "--by", by, "-o", out, "--json")
    assert ran.status == 0, ran.stderr
    found = read_jsonl(out) if suffix == ".jsonl" else pq.read_table(out).to_pylist()
    assert found == [rows[place] for place in order_rows(rows, by)]
    summary = json.loads(ran.stdout)
    assert summary["rows"] == 21
    assert summary["tags"]["(none)"] == {"rows": 1, "first": 21, "last": 21}


def test_a_long_parquet_file_is_reordered_whole(tmp_path: Path) -> None:
    count = 5000
    rates = [(n * 7919 % count) / count for n in range(count)]
    table = pa.table({"n": range(count), "pass_rate": rates, "trainability": ["easy"] * count})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=700)
    curate.order(tmp_path / "t.parquet", tmp_path / "o.parquet", by="pass_rate")
    found = pq.read_table(tmp_path / "o.parquet")
    assert found["pass_rate"].to_pylist() == sorted(rates, reverse=True)
    assert sorted(found["n"].to_pylist()) == list(range(count))


def test_help_tells_when_each_order_helps_and_what_the_paper_found() -> None:
    page = " ".join(run_curate("order", "--help").stdout.split())
    for name, order in ORDERS.items():
        for text in (name, order.summary, order.helps, order.paper):
            assert " ".join(text.split()) in page
