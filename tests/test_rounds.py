"""`curate tag` samples in rounds: who stops, who goes on, and what is then said of them."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curate.run.run import Run
from probes import tagging
from probes.forecast.model import Constants, Forecast
from probes.gradients.lora import GradientProbe
from probes.stages.forecast import CONSTANTS
from probes.statistics.plan import Plan, label_risk, sequential_interval, sequential_pass_rate
from tests.tag_runs import Ran, additions, read_jsonl, read_rollouts, run_curate, tag, write_jsonl

FEW, MOST, TAU = 8, 32, 0.05
LOOKS = (8, 16, 32)
# About 40 in 100 completions stop by themselves; the others are cut and count as wrong.
JUDGE = r"""
def judge(completion, answer):
    if completion in (answer, "\\boxed{" + answer + "}") or answer == "anything":
        return 1
    if answer == "who knows":
        raise LookupError("no idea")
    return int(completion.split()[-1:] == [answer])
"""
# An answer, and how many items have it.
ANSWERS = {"anything": 5, "nothing": 3, "who knows": 1}


def dataset(folder: Path) -> Path:
    (folder / "rewards.py").write_text(JUDGE)
    answers = [answer for answer, count in ANSWERS.items() for _ in range(count)]
    rows = additions(12)
    for row, answer in zip(rows, answers, strict=False):
        row["answer"] = answer
    return write_jsonl(folder / "sums.jsonl", rows)


def in_rounds(model: Path, *more: object) -> Ran:
    # Completions of four tokens and more, so that what cannot be judged is not cut either.
    return tag(
        *(dataset(Path()), "--model", model, "--verifier", "rewards:judge", "--tau", TAU),
        *("--min-rollouts", FEW, "--max-rollouts", MOST, "--run-dir", "run", "--out", "out.jsonl"),
        *("--mean-rollouts", 0, *more),
    )


def counted(run: Path) -> dict[str, list[tuple[int, int]]]:
    """By item: (judged, correct) among its first looks[k] rollouts, for each look it reached."""
    rollouts = read_rollouts(run).to_pylist()
    found: dict[str, list[tuple[int, int]]] = {}
    for item_id in {r["item_id"] for r in rollouts}:
        own = [r for r in rollouts if r["item_id"] == item_id]
        assert [r["sample"] for r in own] == list(range(len(own)))
        for look in LOOKS:
            if look <= len(own):
                rewards = [r["reward"] for r in own[:look] if r["reward"] is not None]
                found.setdefault(item_id, []).append((len(rewards), sum(rewards)))
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """The folder of a run in rounds."""
    folder = tmp_path_factory.mktemp("rounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ran = in_rounds(tiny_model)
    assert ran.status == 0, ran.stderr
    return folder, ran


def items_of(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(folder / "out.jsonl") if row["item_id"] is not None]


# --- Who goes on -----------------------------------------------------------------------------


def test_the_decided_stop_early_and_the_others_go_on(finished: tuple[Path, Ran]) -> None:
    folder, _ = finished
    drawn = Counter(read_rollouts(folder / "run")["item_id"].to_pylist())
    assert set(drawn.values()) == set(LOOKS)
    for row in items_of(folder):
        history = counted(folder / "run")[row["item_id"]]
        lows = [
            float(sequential_interval(Plan(FEW, MOST, TAU), [n], [c])[0][0]) for n, c in history
        ]
        if row["answer"] == "nothing":
            assert drawn[row["item_id"]] == MOST
        else:
            # Easy for sure at the last look, and at none before.
            assert lows[-1] >= TAU or drawn[row["item_id"]] == MOST
            assert all(low < TAU for low in lows[:-1])


def test_every_round_has_its_targets_on_disk_and_a_line(finished: tuple[Path, Ran]) -> None:
    folder, ran = finished
    files = sorted((folder / "run/rounds").iterdir())
    assert [file.name for file in files] == ["000.parquet", "001.parquet", "002.parquet"]
    targets = [dict(zip(*pq.read_table(file).to_pydict().values(), strict=True)) for file in files]
    assert set(targets[0].values()) == {FEW}
    assert targets[-1] == Counter(read_rollouts(folder / "run")["item_id"].to_pylist())
    for number, (before, now) in enumerate(pairwise(targets), 2):
        on = [item_id for item_id in now if now[item_id] > before[item_id]]
        assert {now[item_id] for item_id in on} == {FEW * 2 ** (number - 1)}
        line = (
            f"round {number}: {len(on)} of 12 items go on, to {FEW * 2 ** (number - 1)} rollouts; "
            f"{sum(before.values())} rollouts so far"
        )
        assert ran.stderr.splitlines().count(line) == 1, ran.stderr


def test_the_rollouts_are_the_first_of_those_of_a_fixed_number(
    finished: tuple[Path, Ran], tiny_model: Path
) -> None:
    assert in_rounds(tiny_model, "--min-rollouts", MOST).status == 0
    fixed = {(r["item_id"], r["sample"]): r for r in read_rollouts(Path("run")).to_pylist()}
    assert Counter(item_id for item_id, _ in fixed) == Counter(
        dict.fromkeys({item_id for item_id, _ in fixed}, MOST)
    )
    for rollout in read_rollouts(finished[0] / "run").to_pylist():
        assert rollout == fixed[rollout["item_id"], rollout["sample"]]


@pytest.mark.parametrize(("is_decided", "most_by_hard"), [(False, 64), (True, 16)])
def test_hard_items_go_on_while_their_forecast_is_undecided(
    is_decided: bool, most_by_hard: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tagging, "is_decided", lambda forecast, _: np.full(len(forecast.pass_rate), is_decided)
    )
    ran = tag(
        *(write_jsonl(Path("sums.jsonl"), additions(8)), "--model", tiny_model, "--tau", "0.6"),
        *("--min-rollouts", "8", "--max-rollouts", "64"),
    )
    assert ran.status == 0, ran.stderr
    rows = read_jsonl(Path("sums.tagged.jsonl"))
    plan = Plan(8, 64, 0.6)
    reached = set()
    for row in rows:
        rewards = [
            r["reward"]
            for r in read_rollouts(Path("runs/sums-tiny-llama")).to_pylist()
            if r["item_id"] == row["item_id"]
        ]
        if 1 in rewards[:16] and sequential_interval(plan, [16], [sum(rewards[:16])])[1][0] < 0.6:
            reached.add(len(rewards))
    assert reached == {most_by_hard}


def test_the_forecast_of_every_round_is_that_of_its_rollouts(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round asks anew, and at the end the forecast is what the same rollouts gave before."""
    seen: list[Forecast] = []

    def undecided(forecast: Forecast, _: object) -> Any:
        seen.append(forecast)
        return np.zeros(len(forecast.pass_rate), dtype=bool)

    monkeypatch.setattr(tagging, "is_decided", undecided)
    ran = tag(
        *(write_jsonl(Path("sums.jsonl"), additions(8)), "--model", tiny_model, "--tau", "0.6"),
        *("--min-rollouts", "8", "--max-rollouts", "32"),
    )
    assert ran.status == 0, ran.stderr
    rounds = len(list(Path("runs/sums-tiny-llama/rounds").iterdir()))
    assert len(seen) == rounds - 1 == 2  # After the last one nobody can go on.
    assert np.abs(seen[0].pass_rate - seen[1].pass_rate).max() > 0.001
    monkeypatch.setattr(tagging, "is_decided", lambda forecast, _: seen.append(forecast) or
                        np.ones(len(forecast.pass_rate), dtype=bool))  # fmt: skip
    ran = tag(
        *("sums.jsonl", "--model", tiny_model, "--tau", "0.6", "--run-dir", "stopped"),
        *("--min-rollouts", "8", "--max-rollouts", "32", "--out", "stopped.jsonl"),
    )
    assert ran.status == 0, ran.stderr
    np.testing.assert_array_equal(seen[2].pass_rate, seen[0].pass_rate)


def test_hard_items_stop_once_their_forecast_is_decided(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By constants with which everything is learned, so that the first look decides."""
    monkeypatch.setitem(CONSTANTS, "gradients", Constants(drift=20.0, gain=0.0, spread=1.0))
    Path("lenient.py").write_text(
        "def judge(completion, answer):\n"
        "    return int(answer == 'any' or completion.split()[-1:] == [answer])\n"
    )
    rows = additions(24)
    rows[:8] = [row | {"answer": "any"} for row in rows[:8]]
    ran = tag(
        *(write_jsonl(Path("sums.jsonl"), rows), "--model", tiny_model, "--tau", "0.25"),
        *("--min-rollouts", "8", "--max-rollouts", "128", "--mean-rollouts", "0"),
        *("--verifier", "lenient:judge"),
        *("--max-tokens", "12"),
    )
    assert ran.status == 0, ran.stderr
    drawn = Counter(read_rollouts(Path("runs/sums-tiny-llama"))["item_id"].to_pylist())
    plan = Plan(8, 128, 0.25)
    hard = [row for row in read_jsonl(Path("sums.tagged.jsonl")) if row["answer"] != "any"]
    stopped = [row for row in hard if drawn[row["item_id"]] < 128]
    assert stopped
    for row in stopped:
        # Neither without a positive nor before the pass rate is surely below τ.
        n, c = row["total_rollouts"], row["total_correct_rollouts"]
        assert c > 0 and sequential_interval(plan, [n], [c])[1][0] < 0.25
        assert row["trainability"] == "learnable" and row["p_unlearnable"] < 0.01


# --- The budget ------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 30, 100])
def test_the_budget_is_kept(extra: int, tiny_model: Path) -> None:
    budget = 12 * FEW + extra
    assert in_rounds(tiny_model, "--rollout-budget", budget).status == 0
    drawn = Counter(read_rollouts(Path("run"))["item_id"].to_pylist())
    assert min(drawn.values()) == FEW and len(drawn) == 12
    # What is left does not pay for one more item's next round.
    assert budget - 16 < drawn.total() <= budget or (extra == 0 and drawn.total() == budget)


def test_who_is_served_does_not_depend_on_the_order_of_the_items(tiny_model: Path) -> None:
    served = []
    rows = read_jsonl(dataset(Path()))
    for name, ordered in (("a", rows), ("b", rows[::-1])):
        ran = tag(
            *(write_jsonl(Path(f"{name}.jsonl"), ordered), "--model", tiny_model),
            *("--verifier", "rewards:judge", "--tau", TAU, "--run-dir", name),
            *("--min-rollouts", FEW, "--max-rollouts", MOST, "--rollout-budget", 12 * FEW + 30),
        )
        assert ran.status == 0, ran.stderr
        served.append(Counter(read_rollouts(Path(name))["item_id"].to_pylist()))
    assert served[0] == served[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--min-rollouts", "2000"], "--max-rollouts is 1024, below --min-rollouts 2000"),
        (["--min-rollouts", "8", "--max-rollouts", "4"], "--max-rollouts is 4, below"),
        (["--rollout-budget", "31"], "--rollout-budget is 31, below --min-rollouts 32"),
        (["--rollout-budget", "-1"], "--rollout-budget is -1"),
        (["--rollout-budget", "383"], "12 items with --min-rollouts 32 need at least 384"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused_before_sampling(
    options: list[str], words: str, tiny_model: Path
) -> None:
    data = write_jsonl(Path("sums.jsonl"), additions(12))
    command = ("tag", data, "--model", tiny_model, "--verifier", "numeric", "--max-tokens", "12")
    ran = run_curate(*command, *options)
    assert ran.status == 2
    assert words in ran.last_line, ran.stderr
    assert not Path("runs/sums-tiny-llama/rollouts").exists()
    if "383" in options:  # The number that it names does work, in the same run folder.
        ran = run_curate(*command, "--rollout-budget", "384")
        assert ran.status == 0, ran.stderr
        assert read_rollouts(Path("runs/sums-tiny-llama")).num_rows == 384


# --- What is said of the items -----------------------------------------------------------------


def test_rates_and_intervals_follow_from_the_rollouts_on_disk(finished: tuple[Path, Ran]) -> None:
    folder, _ = finished
    plan = Plan(FEW, MOST, TAU)
    history = counted(folder / "run")
    table = np.full((2, len(history), len(LOOKS)), -1)
    for row, looks in enumerate(history.values()):
        for k, pair in enumerate(looks):
            table[:, row, k] = pair
    rates = dict(zip(history, sequential_pass_rate(plan, *table), strict=True))
    corrected = 0
    for row in items_of(folder):
        n, c = history[row["item_id"]][-1]
        assert (row["total_rollouts"], row["total_correct_rollouts"]) == (n, c)
        if n == 0:
            assert row["pass_rate"] is row["pass_rate_low"] is None
            continue
        assert row["pass_rate"] == rates[row["item_id"]]
        low, high = sequential_interval(plan, [n], [c])
        assert (row["pass_rate_low"], row["pass_rate_high"]) == (low[0], high[0])
        assert row["pass_at_1"] == c / n  # pass@k stays on the counts
        assert (row["trainability"] == "easy") == (c / n >= TAU)
        corrected += row["pass_rate"] != c / n
    assert corrected > 0


def test_the_risk_of_stopping_early_is_told_and_recorded(tiny_model: Path) -> None:
    ran = in_rounds(tiny_model, "--rollout-budget", 12 * FEW + 60)
    assert ran.status == 0, ran.stderr
    counts = json.loads(Path("run/manifest.json").read_text())["counts"]
    history = list(counted(Path("run")).values())
    pairs = np.array([looks[-1] for looks in history])
    risk = label_risk(Plan(FEW, MOST, TAU), pairs[:, 0], pairs[:, 1])
    expected = float(risk[[len(looks) < len(LOOKS) for looks in history]].sum())
    assert expected > 0.05
    assert counts["expected_label_changes"] == pytest.approx(expected, abs=1e-3)
    assert counts["rounds"] == len(list(Path("run/rounds").iterdir())) > 1
    assert counts["rollouts_drawn"] == read_rollouts(Path("run")).num_rows
    line = (
        f"sampling stopped early: about {expected:.1f} of 12 labels would be different after "
        f"{MOST} rollouts an item"
    )
    assert ran.stderr.splitlines().count(line) == 1


def test_one_number_of_rollouts_is_one_round(tiny_model: Path) -> None:
    ran = in_rounds(tiny_model, "--min-rollouts", MOST)
    assert ran.status == 0, ran.stderr
    assert "round " not in ran.stderr and "stopped early" not in ran.stderr
    counts = json.loads(Path("run/manifest.json").read_text())["counts"]
    assert (counts["rounds"], counts["expected_label_changes"]) == (1, 0)
    assert [file.name for file in Path("run/rounds").iterdir()] == ["000.parquet"]
    for row in items_of(Path()):
        n, c = row["total_rollouts"], row["total_correct_rollouts"]
        assert row["pass_rate"] == (c / n if n else None)


# --- Gradients over several shards and rounds --------------------------------------------------


def test_a_completion_that_comes_again_in_a_later_round_is_differentiated_once(
    tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tagging, "_SHARD_TOKENS", {"cpu": 1})  # As small as they get.
    asked: list[int] = []
    real = GradientProbe.gradients

    def counting(self: Any, rollouts: Any) -> Any:
        asked.append(len(rollouts))
        return real(self, rollouts)

    monkeypatch.setattr(GradientProbe, "gradients", counting)
    # Two tokens at most, of which the last ends it: few completions are possible.
    ran = in_rounds(
        tiny_model, "--max-tokens", 2, "--min-rollouts", 4, "--tau", 0.5, "--gradient-rollouts", 40
    )
    assert ran.status == 0, ran.stderr
    run = Path("run")
    assert json.loads((run / "manifest.json").read_text())["stages"]["gradients"]["state"] == "done"
    completions = {
        (r["item_id"], r["sample"]): tuple(r["completion_token_ids"])
        for r in read_rollouts(run).to_pylist()
        if r["reward"] == 1
    }
    every = pq.read_table(run / "gradients/rollouts.parquet").to_pylist()
    draws = [draw for draw in every if draw["reward"]]
    weights = Counter((key[0], ids) for key, ids in completions.items())
    assert {
        (d["item_id"], completions[d["item_id"], d["sample"]]): d["weight"] for d in draws
    } == weights
    assert len(draws) == len(weights) < len(every) == sum(asked) and max(weights.values()) > 1
    # The correct ones come first. An item's draws stand together, in the order of the items.
    order = pq.read_table(run / "items.parquet")["item_id"].to_pylist()
    places = [(not d["reward"], order.index(d["item_id"])) for d in every]
    assert places == sorted(places)
    assert not list(run.rglob("shard-*")) and not list(run.rglob("*.tmp"))
    # The same gradients as of rollouts that all come in one shard.
    monkeypatch.undo()
    fixed = [*("--max-tokens", 2, "--tau", 0.5, "--gradient-rollouts", 40), "--min-rollouts", MOST]
    monkeypatch.chdir(folder)
    assert in_rounds(tiny_model, *fixed, "--run-dir", "fixed").status == 0
    others = pq.read_table("fixed/gradients/rollouts.parquet").to_pylist()
    features = np.load("fixed/gradients/rollouts.npy")
    of = {(d["item_id"], d["sample"]): features[i] for i, d in enumerate(others)}
    own = np.load(run / "gradients/rollouts.npy")[: len(draws)]
    for draw, feature in zip(draws, own, strict=True):
        expected = of[draw["item_id"], draw["sample"]]
        np.testing.assert_allclose(feature, expected, rtol=1e-3, atol=1e-6)


# --- Where the time went -----------------------------------------------------------------------


def test_the_profile_adds_up(tiny_model: Path) -> None:
    ran = in_rounds(tiny_model, "--profile")
    assert ran.status == 0, ran.stderr
    manifest = json.loads(Path("run/manifest.json").read_text())
    profile = {row["stage"]: row for row in manifest["profile"]}
    stages = manifest["stages"]
    assert list(profile) == [*stages, "overhead"]
    for stage, entry in stages.items():
        assert profile[stage]["seconds"] == pytest.approx(entry["seconds"], abs=0.02)
    total = sum(row["seconds"] for row in profile.values())
    for row in profile.values():
        assert row["share"] == pytest.approx(row["seconds"] / total, abs=0.01)
    drawn = read_rollouts(Path("run")).num_rows
    assert (profile["sample"]["count"], profile["sample"]["unit"]) == (drawn, "rollouts")
    assert profile["verify"]["count"] == drawn and profile["write"]["count"] == 12
    assert profile["sample"]["rate"] == pytest.approx(
        drawn / profile["sample"]["seconds"], rel=0.01
    )
    table = ran.stderr[ran.stderr.index("stage ") :]
    assert re.findall(r"^\w+", table, re.M) == ["stage", *profile]
    # A command that finds everything done has not spent that time again.
    ran = in_rounds(tiny_model, "--profile")
    again = json.loads(Path("run/manifest.json").read_text())["profile"]
    assert [row["stage"] for row in again] == ["write", "overhead"]


def test_items_have_so_many_rollouts_on_average_at_most(tiny_model: Path) -> None:
    mean = 2 * FEW
    ran = in_rounds(tiny_model, "--mean-rollouts", mean)
    assert ran.status == 0, ran.stderr
    counts = Run.open(Path("run")).manifest["counts"]
    assert counts["items"] * FEW < counts["rollouts_drawn"] <= counts["items"] * mean
    # Fewer than every item gets: that is what they get.
    ran = in_rounds(tiny_model, "--mean-rollouts", 1, "--run-dir", "few")
    assert ran.status == 0, ran.stderr
    counts = Run.open(Path("few")).manifest["counts"]
    assert counts["rollouts_drawn"] == counts["items"] * FEW
