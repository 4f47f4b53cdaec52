"""The facts of a report, the JSON in its page, and what `curate report` says of bad input."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curate
from cards.report import facts as report_facts
from cards.report import gaps
from cards.report import gradients as gradient_facts
from cards.report import page_items as shown
from cards.report.items import TAGS, read_report_items, sample_by_tag
from cards.report.report import embedded_json, render_report, report_run
from curate import compare, report
from curate.run.run import Run
from curate.run.tables import REWARDS
from probes.lift.gradients import LiftInputs, measure_lift
from probes.stages.lift import write_teaching
from tests.made.report import (
    DIM,
    ROLLOUTS,
    as_of_an_earlier_version,
    item_id,
    with_lengths,
    write_report_run,
)
from tests.made.run import write_quality, write_training
from tests.tag_runs import run_curate

ITEMS = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report_run(tmp_path_factory.mktemp("report") / "run", ITEMS)


@pytest.fixture(scope="module")
def facts(run: Path) -> dict[str, Any]:
    return report(run)


def blocks_of(page: Path) -> dict[str, Any]:
    """The three blocks of JSON in a page."""
    found = re.findall(
        r'<script type="application/json" id="(\w+)-data">(.*?)</script>',
        page.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    return {name: json.loads(text) for name, text in found}


# --- The numbers -----------------------------------------------------------------------------


def test_json_is_what_the_page_draws(run: Path) -> None:
    ran = run_curate("report", run, "--json")
    assert ran.status == 0, ran.stderr
    printed = json.loads(ran.stdout)
    assert printed.pop("file") == str(run / "report.html")
    assert printed == blocks_of(run / "report.html")["facts"]


def test_the_numbers_add_up(facts: dict[str, Any]) -> None:
    dataset, certainty = facts["dataset"], facts["certainty"]
    assert dataset["items"] == ITEMS
    assert [each["items"] for each in dataset["tags"]] == [12] * 5
    bins = dataset["pass_rates"]["bins"]
    assert sum(each["items"] for each in bins) == ITEMS
    assert all(sum(each["tags"].values()) == each["items"] for each in bins)
    assert bins[0]["tags"]["no_positive"] == bins[0]["items"] == 12  # Not one correct rollout.
    assert bins[1]["tags"]["undetermined"] == 12  # 1 of 32 lies below 0.05.
    (column,) = dataset["sources"]["columns"]
    assert column["column"] == "task"
    assert {each["value"]: each["items"] for each in column["values"]} == {
        "sums": 20, "products": 20, "words": 20,
    }  # fmt: skip
    by_tag, (first,) = certainty["rollouts"]["by_tag"], certainty["rollouts"]["by_round"]
    assert sum(each["rollouts"] for each in by_tag) == first["rollouts"] == ITEMS * ROLLOUTS
    assert first["tags"] == {each["tag"]: each["rollouts"] for each in by_tag}
    similar = certainty["similarities"]
    assert similar["measured"] == similar["points"]["of"] == len(similar["points"]["item"]) == 36
    assert similar["with_one_correct_rollout"] == similar["without_correct_rollout"] == 12
    forecast = certainty["forecast"]
    assert forecast["hard_items"] == 48 and forecast["without_forecast"] == 0
    # learnable; unlearnable and no_positive; undetermined.
    assert [forecast[name] for name in ("reach_tau", "stay_below", "undecided")] == [12, 24, 12]
    assert forecast["points"]["of"] == len(forecast["points"]["item"]) == ITEMS
    assert forecast["lift"]["items"] == 48 and forecast["lift"]["source"] == "gradients"
    assert forecast["outcomes"] is None and forecast["why_none"] is None


def test_the_points_of_the_forecast_are_the_items(run: Path, facts: dict[str, Any]) -> None:
    points = facts["certainty"]["forecast"]["points"]
    tags = pq.read_table(run / "tags.parquet").to_pydict()
    for at, (item, name) in enumerate(zip(points["item"], points["item_id"], strict=True)):
        assert tags["item_id"][item] == name and tags["trainability"][item] == points["tag"][at]
        for end, column in (("", "pass_rate"), ("_low", "low"), ("_high", "high")):
            expected = tags[f"forecast_{column}"][item]
            assert points[f"forecast{end}"][at] == pytest.approx(expected, abs=1e-4)
    words = facts["run"]["forecast"]
    assert "the gradients of its rollouts" in words and "gain 1.5" in words


def test_teachers_add_up_to_what_the_others_teach(tmp_path: Path) -> None:
    """Four items can be trained on, so that the three teachers of each are all the others."""
    run = write_report_run(tmp_path / "run", 5)
    rates = pq.read_table(run / "pass_rates.parquet")
    correct = rates["total_correct_rollouts"].to_numpy()
    rows = [(item, right) for item in (0, 1, 2, 4) for right in (True, True, False, False)]
    item, is_correct = (np.array(values) for values in zip(*rows, strict=True))
    noise = np.random.default_rng(0).normal(size=(len(rows), DIM))
    inputs = LiftInputs(
        # Right answers point one way and wrong ones the other, so that every item helps all.
        features=np.where(is_correct, 1.0, -1.0)[:, None] + 0.2 * noise,
        item=item,
        weights=np.ones(len(rows), np.int64),
        is_correct=is_correct,
        tokens=np.full(len(rows), 3),
        judged=rates["total_rollouts"].to_numpy(),
        correct=correct,
        pass_rate=(correct + 0.5) / (ROLLOUTS + 1),
    )
    raw = measure_lift(inputs, correct < 4, with_pairs=True)
    write_teaching(run, pa.chunked_array([[item_id(n) for n in range(5)]]), raw, 2.0)
    shown_pairs = blocks_of(report_run(run)[0])["items"]["pairs"]["teachers"]
    for at, expected in enumerate(raw.from_others / 2):
        assert len(shown_pairs[at]) == (0 if at == 3 else 3)
        if at != 3:
            assert sum(part for _, part in shown_pairs[at]) == pytest.approx(expected, rel=2e-3)


def test_outcomes_stand_beside_what_was_expected(tmp_path: Path) -> None:
    run = write_report_run(tmp_path / "run", 20)
    final = {0: 0.9, 1: 0.5, 2: 0.0, 3: 0.0, 4: 0.2}
    final_of = [0.05 if each == 1 else final[each % 5] for each in range(20)]
    (run / "validation").mkdir()
    table = {
        "item_id": [item_id(each) for each in range(20)],
        "final_pass_rate": final_of,
        "confirmed_trainability": [None] * 20,
    }
    schema = {"confirmed_trainability": pa.string()}
    arrays = [pa.array(values, schema.get(name)) for name, values in table.items()]
    file = run / "validation/confirmed.parquet"
    pq.write_table(pa.Table.from_arrays(arrays, names=list(table)), file)
    found = report(run)["certainty"]["forecast"]
    assert found["outcomes"] == {
        "hard_items": 16,
        "reach_tau": {"items": 4, "reached_tau": 3},  # One of them came to 0.05.
        "stay_below": {"items": 8, "reached_tau": 0},
        "undecided": {"items": 4, "reached_tau": 4},
    }
    assert found["points"]["final_pass_rate"] == [final_of[at] for at in found["points"]["item"]]


def test_a_run_of_an_earlier_version_has_no_forecast(tmp_path: Path) -> None:
    run = as_of_an_earlier_version(write_report_run(tmp_path / "run", 10))
    ran = run_curate("report", run, "--json")
    assert ran.status == 0, ran.stderr
    found = json.loads(ran.stdout)
    words = "tagged by an earlier version of curate: no forecast"
    assert found["run"]["forecast"] == found["certainty"]["forecast"]["why_none"] == words
    assert found["certainty"]["forecast"]["points"]["of"] == 0
    assert any(words in text for text in found["not_measured"])
    assert found["certainty"]["similarities"]["measured"] == 6
    columns = blocks_of(run / "report.html")["items"]["columns"]
    assert "forecast" not in columns and "lift" not in columns and len(columns["similarity"]) == 10


def test_no_lift_is_told_with_its_reason(tmp_path: Path) -> None:
    run = write_report_run(tmp_path / "run", 10)
    lift = pq.read_table(run / "lift.parquet")
    unknown = [lift["item_id"], *[pa.nulls(10, pa.float64())] * (lift.num_columns - 1)]
    pq.write_table(pa.Table.from_arrays(unknown, names=lift.column_names), run / "lift.parquet")
    facts = {"source": "checkpoint", "checkpoint": "/home/me/step-50", "why_none": "it is noise"}
    (run / "lift.json").write_text(json.dumps(facts))
    found = report(run)
    assert "lift: it is noise" in found["not_measured"]
    assert found["certainty"]["forecast"]["lift"]["checkpoint"] == "step-50"


def test_what_is_missing_is_what_gaps_finds(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_lengths = shutil.copytree(run, tmp_path / "run")
    page, facts = report_run(with_lengths(of_lengths))
    found = facts["certainty"]["gaps"]
    expected = curate.gaps(of_lengths, tmp_path / "gaps.jsonl")
    assert found["items"] == expected["items"] > 0 and found["why_none"] is None
    assert {each["reason"]: each["certain"] for each in found["reasons"]} == {
        reason: count
        for reason, count in expected["reasons"].items()
        if count or expected["likely"][reason]
    }
    table = blocks_of(page)["items"]
    lines = [json.loads(line) for line in (tmp_path / "gaps.jsonl").read_text().splitlines()]
    sentences = {table["columns"]["id"][int(at)]: words for at, words in table["gaps"].items()}
    assert sentences == {line["item_id"]: line["gap_reason"] for line in lines}
    ids = table["columns"]["id"]
    of_clusters = [[ids[at] for at in each["examples"]] for each in found["clusters"]]
    assert of_clusters and of_clusters == [each["item_ids"][:5] for each in expected["clusters"]]
    monkeypatch.setattr(gaps, "MOST_GRADIENTS", 10)
    many = report_run(of_lengths, tmp_path / "many.html")[1]
    assert "`curate gaps` tells" in many["certainty"]["gaps"]["why_none"]
    # Without lengths nothing can be told, and the page says so.
    none = report_run(run, tmp_path / "none.html")[1]
    assert "no gradients of rollouts with their lengths" in none["certainty"]["gaps"]["why_none"]
    assert any(each.startswith("what is missing") for each in none["not_measured"])


def test_cosines_are_those_of_the_gradients(run: Path, facts: dict[str, Any]) -> None:
    found = facts["certainty"]["gradients"]
    assert found["groups_from"] == "trainability"
    assert found["blocks"]["groups"] == ["easy", "learnable", "unlearnable"]
    assert found["blocks"]["items"] == [12, 12, 12]
    cosine = np.array(found["blocks"]["cosine"])
    # Each group has a direction of its own, so its items agree with each other alone.
    assert (np.diag(cosine) > 0.9).all() and (np.abs(cosine - np.diag(np.diag(cosine))) < 0.7).all()
    features = np.load(run / "gradients/rollouts.npy")
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    ids = pq.read_table(run / "gradients/rollouts.parquet")["item_id"].to_pylist()
    items = found["items"]
    assert items["noise"] == DIM**-0.5
    means = [
        np.mean([unit for unit, each in zip(units, ids, strict=True) if each == item], axis=0)
        for item in items["item_id"]
    ]
    expected = np.array(means) @ np.array(means).T
    measured = np.array(items["cosine"], dtype=float)
    assert np.isnan(np.diag(measured)).all()
    off = ~np.eye(len(means), dtype=bool)
    assert np.allclose(measured[off], expected[off], atol=1e-3)
    assert items["group"] == sorted(items["group"], key=TAGS.index)


def test_rounds_count_what_each_drew(tmp_path: Path) -> None:
    run = write_report_run(tmp_path / "run", 10)
    more = {"item_id": [item_id(3), item_id(4)], "rollouts": pa.array([64, 128], pa.int64())}
    pq.write_table(pa.table(more), run / "rounds/001.parquet")
    rounds = report(run)["certainty"]["rollouts"]["by_round"]
    assert [each["rollouts"] for each in rounds] == [10 * ROLLOUTS, 32 + 96]
    assert rounds[1]["tags"]["no_positive"] == 32 and rounds[1]["tags"]["undetermined"] == 96


def test_what_was_not_measured_is_named(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    shutil.rmtree(bare / "gradients")
    shutil.rmtree(bare / "rounds")
    for name in ("run.jsonl", "run.tagged.parquet"):
        config = (bare / "config.toml").read_text()
        (bare / "config.toml").write_text(config.replace(name, f"gone-{name}"))
    found = report(bare)
    assert found["certainty"]["gradients"] is None
    assert found["certainty"]["rollouts"]["by_round"] is None
    text = "\n".join(found["not_measured"])
    for words in (
        "not confirmed by GRPO",
        "rewards in training",
        "gradients were removed",
        "no rounds",
        "reasoning quality",
        "neither the dataset nor the tagged file",
    ):
        assert words in text


def test_training_and_confirmation_are_told(tmp_path: Path) -> None:
    run = write_report_run(tmp_path / "run", 10)
    groups = {"easy": 0.5, "learnable": 0.25}
    for seed in (1, 2):
        folder = write_training(run, "baseline-small", seed)
        rewards = [
            {
                "step": step, "item_id": item_id(TAGS.index(tag)), "rollouts": 8,
                "mean_reward": reward if step < 40 else None, "truncated_fraction": 0.0,
                "clipped_fraction": None, "trained": True,
            }
            for step in range(1, 41) for tag, reward in groups.items() for _ in range(3)
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rewards, REWARDS.schema), folder / "rewards.parquet")
    (found,) = report(run)["certainty"]["rewards"]
    assert found["seeds"] == [1, 2] and found["groups_from"] == "trainability"
    assert found["steps_per_window"] == 2 and found["last_step"][-1] == 40
    for curve in found["groups"]:
        expected = groups[curve["group"]]
        assert curve["mean_reward"] == curve["mean_reward_low"] == [expected] * 20
        assert curve["rollout_groups"] == [12] * 19 + [6]  # Nothing was judged in step 40.
        assert curve["mean_reward_by_seed"] == [[expected] * 20] * 2
    assert run_curate("report", run).status == 0


def test_reasoning_quality_is_told_where_it_was_judged(tmp_path: Path) -> None:
    run = write_report_run(tmp_path / "run", 10)
    write_quality(run, {item_id(n): 4.0 if n % 2 == 0 else 2.0 for n in range(10)})
    found = report(run)
    groups = found["certainty"]["reasoning_quality"]["groups"]
    assert groups[0] | {"group": "easy", "items": 2, "mean": 3.0} == groups[0]
    agreement = {"rollouts": 9, "equal": 0.5, "weighted_kappa": None}
    summary = {"model": "/home/me/judges/strict", "agreement": agreement}
    (run / "judging/summary.json").write_text(json.dumps(summary))
    told = report(run)["certainty"]["reasoning_quality"]
    assert (told["judge"], told["agreement"]) == ("strict", agreement)
    assert not any("reasoning" in text for text in found["not_measured"])


def test_comparisons_are_told_without_paths(tmp_path: Path) -> None:
    base, step50 = (write_report_run(tmp_path / name, 10) for name in ("base", "step50"))
    for name, score in ((base, 1.0), (step50, 3.0)):
        write_quality(name, {item_id(each): score for each in range(5)})
    assert report(step50)["certainty"]["comparisons"] == []
    compare(base, step50)
    (found,) = report(step50)["certainty"]["comparisons"]
    assert found["before"]["run"] == "base" and found["after"]["run"] == "step50"
    easy = found["groups"][0]
    assert easy["group"] == "easy" and easy["items"] == 2
    assert easy["reasoning_quality"] == {
        "items": 1, "before": 1, "after": 3, "change": 2, "low": None, "high": None
    }  # fmt: skip
    assert any("regression to the mean" in text for text in found["warnings"])
    assert str(tmp_path) not in (step50 / "report.html").read_text()
    file = step50 / "comparison/base.json"
    # One of an earlier version has no reasoning quality.
    summary = json.loads(file.read_text())
    for group in summary["groups"]:
        del group["reasoning_quality"]
    file.write_text(json.dumps(summary))
    (found,) = report(step50)["certainty"]["comparisons"]
    assert "reasoning_quality" not in found["groups"][0]
    for damage in ("{", "[]", json.dumps(summary | {"groups": [{"group": "easy"}]})):
        file.write_text(damage)
        ran = run_curate("report", step50)
        assert ran.status == 1 and "base.json is damaged" in ran.last_line


def test_no_path_of_this_machine_is_in_the_page(run: Path, facts: dict[str, Any]) -> None:
    assert str(run.parent) not in (run / "report.html").read_text()


# --- The page --------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    pages = [report_run(run, tmp_path / f"{name}.html")[0] for name in "ab"]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_embedded_json_cannot_leave_its_block() -> None:
    value = {"</script>": "<!--<script>&\u2028\u2029", "half": "\ud800"}
    text = embedded_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value
    with pytest.raises(ValueError):
        embedded_json(float("nan"))
    page = render_report(value, {}, {}).decode("utf-8")  # Half a pair of surrogates is no UTF-8.
    assert f'"facts-data">{text.replace(chr(0xD800), chr(92) + "ud800")}</script>' in page


def test_reasons_come_back_from_pattern_and_numbers(run: Path) -> None:
    items = read_report_items(Run.open(run))
    found = shown.shown_items(items)["reasons"]
    assert len(found["patterns"]) == 1
    for line, reason in zip(found["lines"], items.reason.to_pylist(), strict=True):
        pattern, *numbers = line.split("|")
        parts = found["patterns"][int(pattern)].split(found["place"])
        assert len(parts) == len(numbers) + 1
        assert "".join(sum(zip(parts, [*numbers, ""], strict=True), ())) == reason


def test_what_all_prompts_share_is_kept_once(run: Path) -> None:
    found = blocks_of(report_run(run)[0])["items"]
    assert found["prompt_start"] == "<|user|>\n"
    assert found["prompt_end"] == "\nAnswer briefly.\n<|assistant|>\n"
    assert found["columns"]["prompt"][3] == "What is 3 + 3?"
    assert found["cut_prompts"] == {}


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        (["same\n", "same\n"], ("same\n", "")),
        (["a"], ("", "")),
        (["q: 1", "q: 2"], ("", "")),
        (["s\na\ne", "s\nb\ne"], ("s\n", "\ne")),
        (["\n", "\n\n"], ("\n", "")),
    ],
)
def test_common_ends_are_whole_lines(texts: list[str], ends: tuple[str, str]) -> None:
    start, end = shown.common_ends(pa.array(texts))
    assert (start, end) == ends
    assert all(text.startswith(start) and text[len(start) :].endswith(end) for text in texts)


def test_what_is_left_out_is_bounded_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_report_run(tmp_path / "run", 40, completions=["x" * 5000, "y" * 5000])
    monkeypatch.setattr(shown, "MOST_WITH_ROLLOUTS", 10)
    monkeypatch.setattr(shown, "_PROMPT_RANGE", (5, 12))
    blocks = blocks_of(report_run(run)[0])
    rollouts = blocks["rollouts"]
    assert rollouts["of_items"] == len(rollouts["items"]) == 10
    tags = [int(at) % 5 for at in rollouts["items"]]
    assert sorted(tags) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for found in rollouts["items"].values():
        kinds = [each[0] for each in found]
        assert kinds == sorted(kinds) and max(kinds.count(0), kinds.count(1)) <= 4
    assert blocks["items"]["cut_prompts"]["0"] == len("What is 0 + 0?")
    monkeypatch.setattr(shown, "MOST_WITH_ROLLOUTS", 40)
    first = blocks_of(report_run(run)[0])["rollouts"]["items"]["0"]
    assert [(each[6], len(each[5])) for each in first[:1]] == [(5000, 4000)]


def test_of_too_many_items_the_table_has_a_sample_and_what_charts_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_report_run(tmp_path / "run", 40)
    whole = blocks_of(report_run(run)[0])
    assert "positions" not in whole["items"] and whole["items"]["of_items"] == 40
    monkeypatch.setattr(shown, "MOST_ITEMS", 10)
    monkeypatch.setattr(report_facts, "SHOWN_POINTS", 6)
    monkeypatch.setattr(gradient_facts, "SHOWN_PER_GROUP", 1)
    blocks = blocks_of(report_run(run)[0])
    facts, table = blocks["facts"], blocks["items"]
    positions = table["positions"]
    certainty = facts["certainty"]
    linked = {
        *certainty["forecast"]["points"]["item"],
        *certainty["similarities"]["points"]["item"],
        *certainty["gradients"]["items"]["item"],
    }
    assert len(linked) >= 6 and linked <= set(positions)
    assert 10 <= table["items"] == len(positions) < 20 and table["of_items"] == 40
    assert facts["dataset"]["items"] == 40
    assert facts["dataset"]["tags"] == whole["facts"]["dataset"]["tags"]
    for at, position in enumerate(positions):
        for name in ("id", "row", "prompt", "tag", "correct", "forecast", "lift"):
            assert table["columns"][name][at] == whole["items"]["columns"][name][position], name
        assert table["sources"][0]["codes"][at] == whole["items"]["sources"][0]["codes"][position]
        found = whole["rollouts"]["items"][str(position)]
        assert blocks["rollouts"]["items"][str(at)] == found


def test_a_sample_has_as_many_of_each_tag_and_is_always_the_same(run: Path) -> None:
    items = read_report_items(Run.open(run))
    among = items.tag != 4
    chosen = sample_by_tag(items, among, 21)
    assert sorted(np.bincount(items.tag[chosen], minlength=5)) == [0, 5, 5, 5, 6]
    assert np.array_equal(chosen, sample_by_tag(items, among, 21))
    assert len(sample_by_tag(items, among, 10**6)) == 48


# --- Bad input -------------------------------------------------------------------------------


def test_bad_usage_is_one_line_and_status_2(run: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ([tmp_path], "no run folder"),
        ([run, "-o", tmp_path / "report.txt"], "must end in .html"),
        ([run, "-o", tmp_path], "must end in .html"),
    ):
        ran = run_curate("report", *arguments)
        assert (ran.status, ran.stdout) == (2, "") and words in ran.last_line
        assert ran.stderr.count("\n") == 1
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    manifest = json.loads((unfinished / "manifest.json").read_text())
    manifest["stages"]["tags"]["state"] = "started"
    (unfinished / "manifest.json").write_text(json.dumps(manifest))
    ran = run_curate("report", unfinished)
    assert ran.status == 2 and "has no tags yet" in ran.last_line


@pytest.mark.parametrize(
    "file",
    [
        *("items.parquet", "rows.parquet", "pass_rates.parquet", "similarity.parquet"),
        *("lift.parquet", "lift.json", "teaching.parquet"),
        *("tags.parquet", "rounds/000.parquet", "rollouts/00001.parquet"),
        *("gradients/rollouts.npy", "gradients/rollouts.parquet", "validation/summary.json"),
    ],
)
def test_a_damaged_file_is_named(run: Path, tmp_path: Path, file: str) -> None:
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    (damaged / file).parent.mkdir(exist_ok=True)
    (damaged / file).write_bytes(b"PAR1 no more")
    ran = run_curate("report", damaged, "-o", tmp_path / "page.html")
    assert ran.status == 1 and Path(file).name in ran.last_line, ran.stderr
    assert ran.stderr.count("\n") == 1 and not (tmp_path / "page.html").exists()
