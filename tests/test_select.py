"""`curate select`: what is worth most is chosen, within its quotas, and all else says why not."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import curate
from curate.errors import UsageError
from curate.tagged.quotas import read_shares, share_out
from recipes.select.choose import Candidates, choose_items, worth
from recipes.select.duplicates import same_gradients, same_prompts
from recipes.select.select import Budget
from recipes.select.teaching import Taught
from tests.made.run import Items, made_run, write_table
from tests.tag_runs import Ran, read_jsonl, run_curate
from tests.tagged_files import tagged_row, write_tagged_file


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- Budget and quotas -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rollouts", "rows"),
    [
        ("12", None, 12),
        ("0.25", None, 50),
        ("25%", None, 50),
        ("100%", None, 200),
        ("0.0001", None, 1),
        ("", 100, 6),
    ],
)
def test_a_budget_is_a_number_a_share_or_rollouts(
    text: str, rollouts: int | None, rows: int
) -> None:
    assert Budget.read(text, rollouts, epochs=2).of(200, group_size=8) == rows


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "0%", "120%", "many", "nan", "inf"])
def test_another_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="it must be a number of rows, or a share"):
        Budget.read(text, None)


def test_one_of_budget_and_rollouts_is_given_and_is_enough_for_a_row() -> None:
    for text, rollouts in (("", None), ("3", 3)):
        with pytest.raises(UsageError, match="one of --budget and --rollouts"):
            Budget.read(text, rollouts)
    with pytest.raises(UsageError, match="--rollouts 15 is less than the 16 of a single row"):
        Budget.read("", 15, group_size=16).of(10, 8)


@given(
    places=st.integers(0, 60),
    kinds=st.dictionaries(
        st.sampled_from("abcdef"), st.tuples(st.floats(0, 5), st.integers(0, 20)), min_size=1
    ),
)
def test_places_are_shared_out_whole_and_none_is_left_that_could_be_filled(
    places: int, kinds: dict[str, tuple[float, int]]
) -> None:
    weights = {kind: weight for kind, (weight, _) in kinds.items()}
    most = {kind: count for kind, (_, count) in kinds.items()}
    given_ = share_out(places, weights, most)
    room = sum(most[kind] for kind in kinds if weights[kind] > 0)
    assert sum(given_.values()) == min(places, room)
    for kind in kinds:
        assert 0 <= given_[kind] <= most[kind]
    # Where nothing is short, each is within one of its exact share.
    total = sum(weights.values())
    if total > 1e-3 and all(most[kind] >= places for kind in kinds):
        for kind in kinds:
            assert abs(given_[kind] - places * weights[kind] / total) < 1 + 1e-6


def test_named_shares_leave_the_rest_to_the_others_in_their_proportions() -> None:
    counts = {"math": 60, "code": 30, "logic": 10}
    assert read_shares(["code=0.5"], counts, "domain") == pytest.approx(
        {"math": 0.5 * 60 / 70, "code": 0.5, "logic": 0.5 * 10 / 70}
    )
    assert read_shares(["math=0.7", "code=0.3"], counts, "domain")["logic"] == 0
    with pytest.raises(UsageError, match="no row has 'maths' in domain; did you mean 'math'"):
        read_shares(["maths=0.5"], counts, "domain")
    with pytest.raises(UsageError, match="it must be VALUE=X with X from 0 to 1"):
        read_shares(["math=2"], counts, "domain")
    with pytest.raises(UsageError, match="together, more than 1"):
        read_shares(["math=0.6", "code=0.5"], counts, "domain")


# --- Worth -----------------------------------------------------------------------------------


def test_both_is_the_mean_of_the_ranks_and_what_is_unknown_is_worth_nothing() -> None:
    gain, teaching = np.array([0.1, 0.3, 0.2, 0.0]), np.array([50.0, np.nan, -2.0, 1.0])
    assert worth("gain", gain, teaching).tolist() == gain.tolist()
    assert np.argsort(-worth("teaching", gain, teaching)).tolist() == [0, 3, 2, 1]
    assert worth("both", gain, teaching).tolist() == [0.625, 0.5, 0.5, 0.375]


def _planted(sizes: tuple[int, int], dim: int = 6) -> tuple[NDArray[np.float32], list[int]]:
    """Items of two skills, each its own direction; the skill of each."""
    skill = [0] * sizes[0] + [1] * sizes[1]
    gradients = np.zeros((len(skill), dim), dtype=np.float32)
    gradients[np.arange(len(skill)), skill] = 1
    return gradients, skill


def _candidates(items: int, **values: Any) -> Candidates:
    usual: dict[str, Any] = {
        "gain": np.zeros(items),
        "teaching": np.zeros(items),
        "pass_rate": np.full(items, 0.3),
        "kind": [""] * items,
    }
    return Candidates(**{**usual, **values})


def test_what_is_taught_already_counts_less() -> None:
    gradients, skill = _planted((8, 7))
    room, own = np.full(15, 0.25), np.arange(15)
    taught = Taught(gradients, gradients, room, size=4, own=own)
    alone = taught.worth_of_one_more()
    # Of eight pupils an item of the skill is itself one, and teaches the others.
    assert alone.tolist() == pytest.approx([0.25 * 7] * 8 + [0.25 * 6] * 7)
    candidates = _candidates(15, teaching=alone)
    by_column = choose_items(candidates, "teaching", {"": 4}, 0)
    assert [skill[n] for n in np.flatnonzero(by_column.chosen)] == [0, 0, 0, 0]
    together = choose_items(candidates, "teaching", {"": 4}, 0, taught)
    assert sorted(skill[n] for n in np.flatnonzero(together.chosen)) == [0, 0, 0, 1]


def test_worth_of_one_more_is_the_slope_of_what_a_set_is_worth() -> None:
    rng = np.random.default_rng(0)
    step, pupil = rng.normal(size=(2, 7, 5)).astype(np.float32)
    room, size = rng.uniform(0, 0.25, 7), 3
    effects = step.astype(float) @ pupil.T.astype(float)
    np.fill_diagonal(effects, 0)
    scale = 1 / (size * np.abs(pupil @ step.mean(axis=0)).mean())

    def value(lift: NDArray[np.float64]) -> float:
        return float(room @ (np.sign(lift) * np.log1p(0.3 * np.abs(lift)) / 0.3))

    taught = Taught(step, pupil, room, size, own=np.arange(7))
    lift = np.zeros(7)
    for item in (2, 5):
        taught.add(np.array([item]))
        lift += scale * effects[item]
    little = 1e-6
    slope = [(value(lift + little * effects[n]) - value(lift)) / little for n in range(7)]
    assert taught.worth_of_one_more() == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_pupils_of_a_target_are_taught_by_every_item_itself_too() -> None:
    step = np.eye(3, dtype=np.float32)
    pupil = np.array([[0, 2, 0]], dtype=np.float32)
    taught = Taught(step, pupil, np.array([0.1]), size=1)
    assert taught.worth_of_one_more() == pytest.approx([0, 0.2, 0])


@given(
    rates=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    easy_share=st.floats(0, 1),
    budget=st.integers(1, 30),
    seed=st.integers(0, 5),
)
def test_solved_items_have_their_share_and_the_others_are_those_worth_most(
    rates: list[float], easy_share: float, budget: int, seed: int
) -> None:
    gain = np.random.default_rng(seed).normal(size=len(rates))
    candidates = _candidates(len(rates), gain=gain, pass_rate=np.array(rates))
    places = min(budget, len(rates))
    found = choose_items(candidates, "gain", {"": places}, easy_share)
    assert found.chosen.sum() == places
    solved = candidates.is_solved
    assert (found.chosen & solved).sum() >= min(round(easy_share * places), solved.sum())
    unsolved = gain[~solved]
    assert min(gain[found.chosen & ~solved], default=np.inf) >= max(
        gain[~found.chosen & ~solved], default=-np.inf
    )
    assert len(unsolved) + solved.sum() == len(rates)


# --- Duplicates ------------------------------------------------------------------------------


def test_prompts_that_differ_in_a_number_are_no_duplicates() -> None:
    story = "A farmer has {} hens and buys {} more at the market on a rainy Monday. How many now?"
    texts = [
        story.format(3, 4),
        story.format(3, 5),
        story.format(3, 4).upper() + " ",
        story.format(3, 4).replace("rainy", "sunny"),
        "Something else altogether?",
    ]
    found = same_prompts(texts, range(len(texts)))
    assert found[2] == 0 and 1 not in found and 4 not in found
    assert same_prompts(texts, [2, 0, 1, 3, 4])[0] == 2


@pytest.mark.parametrize("dim", [64, 4096])
def test_gradients_that_go_the_same_way_are_found(dim: int) -> None:
    rng = np.random.default_rng(1)
    gradients = rng.normal(size=(600, dim)).astype(np.float32)
    gradients[599] = 3 * gradients[4] + 0.1 * gradients[5]
    gradients[598] = -gradients[7]
    gradients[10] = 0
    found = same_gradients(gradients, range(600), 0.95)
    assert list(found) == [599] and found[599][0] == 4
    exact = gradients[599] @ gradients[4] / np.prod(np.linalg.norm(gradients[[599, 4]], axis=1))
    assert found[599][1] == pytest.approx(exact, abs=1e-5)


# --- The command -----------------------------------------------------------------------------


def _rows() -> list[dict[str, Any]]:
    """Twenty items of two sources with known gains, a duplicate, one not judged, and a reject."""
    rows = [
        tagged_row(
            n,
            "easy" if n >= 14 else "undetermined",
            pass_rate=0.95 if n >= 16 else 0.02 * n,
            forecast_pass_rate=0.96 if n >= 16 else 0.02 * n + 0.5 - n / 50,
            teaching=n / 10,
            source="rare" if n % 5 == 0 else "common",
        )
        for n in range(20)
    ]
    rows.append({**rows[0]})
    rows.append(tagged_row(50, "undetermined", source="common"))
    rows.append(tagged_row(99, None, source="common"))
    return rows


def _select(*arguments: object) -> Ran:
    return run_curate("select", "t.jsonl", *arguments)


def test_what_gains_most_is_written_and_everything_else_says_why_not(folder: Path) -> None:
    rows = _rows()
    write_tagged_file(folder / "t.jsonl", rows)
    ran = _select(
        "--budget", "6", "--by", "gain", "-o", "o.jsonl", "--dropped", "d.jsonl", "--json"
    )
    assert ran.status == 0, ran.stderr
    # A twentieth of six is no row.
    assert read_jsonl(folder / "o.jsonl") == rows[:6]
    summary = json.loads(ran.stdout)
    assert summary["reasons"] == {
        "worth less than those chosen": 14,
        "the same item as another row": 1,
        "no forecast, so that no gain is known": 1,
        "rejected": 1,
    }
    dropped = read_jsonl(folder / "d.jsonl")
    assert [row["item_id"] for row in dropped] == [row["item_id"] for row in rows[6:]]
    assert dropped[0]["dropped_reason"] == "worth less than those chosen: place 7 of 20 by gain"
    assert dropped[14]["dropped_reason"] == "the same item as row 1"
    assert summary["means"]["gain"]["kept"] == pytest.approx(
        np.mean([0.5 - n / 50 for n in range(6)])
    )
    assert summary["solved"] == {"rows": 4, "kept": 0}


def test_solved_rows_keep_the_share_that_is_asked_for(folder: Path) -> None:
    write_tagged_file(folder / "t.jsonl", _rows())
    found = curate.select("t.jsonl", "o.jsonl", budget=8, by="gain", easy_share=0.25)  # type: ignore[arg-type]
    assert found["solved"] == {"rows": 4, "kept": 2}
    kept = [row["pass_rate"] for row in read_jsonl(folder / "o.jsonl")]
    assert kept == pytest.approx([0.02 * n for n in range(6)] + [0.95, 0.95])


def test_a_quota_keeps_the_proportions_or_those_that_are_named(folder: Path) -> None:
    write_tagged_file(folder / "t.jsonl", _rows())
    arguments = ("--budget", "50%", "--by", "gain", "--quota", "source", "-o", "o.jsonl", "--json")
    summary = json.loads(_select(*arguments).stdout)
    assert summary["budget"] == 11
    assert summary["kinds"] == {
        "common": {"rows": 18, "kept": 9},
        "rare": {"rows": 5, "kept": 2},
    }
    assert summary["reasons"]["worth less than the 2 chosen of source rare"] == 2
    ran = _select(*arguments, "--share", "rare=0.5")
    summary = json.loads(ran.stdout)
    # Four distinct rare rows are all that there are.
    assert summary["kinds"]["rare"]["kept"] == 4 and summary["kept"] == 11
    assert "note: rare has 4 rows for 6 places: the others fill them" in ran.stderr


def test_the_budget_is_filled_as_far_as_rows_go_and_the_note_says_so(folder: Path) -> None:
    write_tagged_file(folder / "t.jsonl", _rows())
    ran = _select("--budget", "100", "-o", "o.jsonl")
    assert ran.status == 0, ran.stderr
    assert "note: 20 rows are all that can be chosen, of the 100 asked for" in ran.stderr
    assert "all                            23       20" in ran.stdout


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_other_files_give_the_same_rows(folder: Path, suffix: str) -> None:
    rows = _rows()
    write_tagged_file(folder / "t.jsonl", rows)
    # As a file that was filtered before, without the rows that nothing is known of.
    curate.filter("t.jsonl", f"t{suffix}", expr="pass_rate is not None")
    found = curate.select(f"t{suffix}", f"o{suffix}", rollouts=64, by="both", easy_share=0)
    assert found["kept"] == 8
    curate.select("t.jsonl", "expected.jsonl", budget="8", by="both", easy_share=0)
    expected = [row["item_id"] for row in read_jsonl(folder / "expected.jsonl")]
    if suffix == ".parquet":
        assert pq.read_table(f"o{suffix}")["item_id"].to_pylist() == expected
    else:
        text = (folder / "o.csv").read_text()
        assert [line for line in expected if line in text] == expected
        assert text.count("\n") == 9


def test_what_is_asked_for_must_be_there(folder: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "teaching"} for row in _rows()]
    write_tagged_file(folder / "t.jsonl", rows)
    ran = _select("--budget", "3", "-o", "o.jsonl")
    assert ran.status == 2
    assert "has no column teaching, by which --by both goes; --by gain does" in ran.last_line
    write_tagged_file(folder / "t.jsonl", [{**row, "teaching": None} for row in _rows()])
    assert "(teaching) is known of none" in _select("--budget", "3", "-o", "o.jsonl").last_line
    for arguments, said in (
        (("--share", "rare=1"), "--share needs --quota COLUMN"),
        (("--quota", "sourse"), "did you mean 'source'"),
        (("--easy-share", "2"), "from 0 to 1"),
        (("--by", "gian"), "gain or teaching or both"),
    ):
        assert said in _select("--budget", "3", "-o", "o.jsonl", *arguments).last_line
    assert not (folder / "o.jsonl").exists()


# --- From a run folder -----------------------------------------------------------------------


def _run_with_gradients(folder: Path, target: bool = False) -> list[dict[str, Any]]:
    """A run of two skills, eight items and seven; by the column the first teaches most."""
    gradients, skill = _planted((8, 7), dim=8)
    rng = np.random.default_rng(0)
    rows = [
        tagged_row(
            n, "easy", pass_rate=0.5, forecast_pass_rate=0.5, total_correct_rollouts=16,
            teaching=8.0 if skill[n] == 0 else 6.0,
        )
        for n in range(len(skill))
    ]  # fmt: skip
    file = write_tagged_file(folder / "t.jsonl", rows)
    ids = [row["item_id"] for row in rows]
    items = Items(ids, [16] * 15, ["easy"] * 15, forecast=[0.5] * 15)
    stages = {"tags": {"state": "done"}, "write": {"state": "done"}}
    run = made_run(folder / "run", items, settings={"out": str(file)}, manifest={"stages": stages})
    write_table(run / "rows.parquet", {"item_id": ids})
    _write_gradients(run, ids, gradients, rng)
    if target:
        own = [f"of the target {n}" for n in range(5)]
        made_run(run / "target", Items(own, [16] * 5, ["easy"] * 5))
        _write_gradients(run / "target", own, gradients[-5:], rng)
    return rows


def _write_gradients(
    run: Path, ids: list[str], gradients: NDArray[np.float32], rng: np.random.Generator
) -> None:
    """Two correct rollouts an item along its skill, and two wrong ones against it, with noise."""
    count = len(ids)
    features = np.concatenate([-gradients, -gradients, gradients, gradients])
    features += 0.02 * rng.normal(size=features.shape)
    (run / "gradients").mkdir(exist_ok=True)
    np.save(run / "gradients/rollouts.npy", features.astype(np.float32))
    order = [*range(count)] * 2
    index = {
        "item_id": [ids[n] for n in order * 2],
        "sample": np.zeros(4 * count, np.int32),
        "weight": np.ones(4 * count, np.int32),
        "tokens": np.full(4 * count, 5, np.int32),
        "completion_tokens": np.full(4 * count, 5, np.int32),
        "reward": np.array([1] * 2 * count + [0] * 2 * count, np.int8),
    }
    # Correct rollouts first, each in the order of the items.
    place = np.lexsort((np.array(order * 2), -index["reward"]))
    np.save(run / "gradients/rollouts.npy", features.astype(np.float32)[place])
    write_table(
        run / "gradients/rollouts.parquet",
        {name: [values[n] for n in place] for name, values in index.items()},
    )


def test_a_run_folder_says_what_a_set_of_items_teaches_together(folder: Path) -> None:
    rows = _run_with_gradients(folder)
    skills = Counter[int]()
    found = curate.select("run", "o.jsonl", budget="4", by="teaching", alike=1, easy_share=0)
    assert found["teaching_from"] == "gradients"
    order = [row["item_id"] for row in rows]
    for row in read_jsonl(folder / "o.jsonl"):
        skills[order.index(row["item_id"]) >= 8] += 1
    assert skills[0] and skills[1]
    # What the file alone says is one skill.
    found = curate.select("t.jsonl", "p.jsonl", budget="4", by="teaching", easy_share=0)
    assert found["teaching_from"] == "column"
    assert {order.index(row["item_id"]) < 8 for row in read_jsonl(folder / "p.jsonl")} == {True}
    assert found["reasons"] == {"worth less than those chosen": 11}


def test_items_with_one_gradient_are_one_unless_that_is_left_out(folder: Path) -> None:
    _run_with_gradients(folder)
    ran = run_curate("select", "run", "--budget", "9", "--by", "gain", "-o", "o.jsonl", "--json")
    summary = json.loads(ran.stdout)
    assert summary["kept"] == 2
    assert summary["reasons"] == {"nearly the same gradient as another row": 13}
    assert "note: 2 rows are all that can be chosen" in ran.stderr
    without = curate.select("run", "o.jsonl", budget="9", by="gain", alike=1.0)
    assert without["kept"] == 9


def test_teaching_is_for_the_items_of_a_target_where_the_run_has_one(folder: Path) -> None:
    rows = _run_with_gradients(folder, target=True)
    curate.select("run", "o.jsonl", budget="4", by="teaching", alike=1, easy_share=0)
    order = [row["item_id"] for row in rows]
    chosen = [order.index(row["item_id"]) for row in read_jsonl(folder / "o.jsonl")]
    assert min(chosen) >= 8  # The second skill, which is the target's.


def test_without_its_gradients_a_run_says_that_the_column_is_what_counts(folder: Path) -> None:
    _run_with_gradients(folder)
    (folder / "run/gradients/rollouts.npy").unlink()
    ran = run_curate("select", "run", "--budget", "3", "-o", "o.jsonl", "--json")
    assert ran.status == 0, ran.stderr
    assert json.loads(ran.stdout)["teaching_from"] == "column"
    assert "note: run has no gradients of rollouts" in ran.stderr


# --- Of several models -----------------------------------------------------------------------


def test_of_several_models_the_one_that_is_named_counts(folder: Path) -> None:
    plain = ("question", "answer", "item_id", "source")
    rows = [
        {
            **{name: row[name] for name in plain},
            **{f"small.{name}": value for name, value in row.items() if name not in plain},
            **{f"large.{name}": value for name, value in row.items() if name not in plain},
            "large.pass_rate": 0.9,
            "large.forecast_pass_rate": None if n < 10 else 1.0,
        }
        for n, row in enumerate(_rows()[:20])
    ]
    write_tagged_file(folder / "t.jsonl", rows)
    arguments = ("--budget", "6", "--by", "gain", "-o", "o.jsonl")
    assert "--model says whose tags the choice goes by" in _select(*arguments).last_line
    assert _select(*arguments, "--model", "small").status == 0
    assert read_jsonl(folder / "o.jsonl") == rows[:6]
    assert _select(*arguments, "--model", "large").status == 0
    assert read_jsonl(folder / "o.jsonl") == rows[10:16]
    order = ("order", "t.jsonl", "--by", "schedule", "-o", "o.jsonl")
    assert "--model says whose tags the schedule goes by" in run_curate(*order).last_line
    assert run_curate(*order, "--model", "small").status == 0
    assert sorted(row["item_id"] for row in read_jsonl(folder / "o.jsonl")) == sorted(
        row["item_id"] for row in rows
    )
