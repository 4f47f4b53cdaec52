"""Rewards that are not 0 or 1: the run keeps the numbers, a threshold says what is correct."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from curate import Run
from curate.run.features import joined
from curate.run.folder import read_run_config
from curate.run.rollouts import (
    as_numbers,
    count_outcomes,
    real_rewards,
    rollout_outcomes,
)
from probes.stages.lift import measured_lift, read_rewards
from tests.tag_runs import Ran, additions, read_jsonl, read_rollouts, tag, write_jsonl

FUNCTIONS = '''
import re

def parts(completion, answer):
    """A quarter for a number at all, three for one that is off by one, all for the answer."""
    if completion.startswith("\\\\boxed"):
        completion = completion[7:-1]
    found = re.findall(r"\\d", completion)
    if not found:
        return 0
    return max(1 - abs(int(found[-1]) - int(answer)) / 4, 0.25)

def whole(completion, answer):
    return int(parts(completion, answer) >= 0.75)

def three(completion, answer):
    return 3 * parts(completion, answer)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "real_rewards.py").write_text(FUNCTIONS)
    write_jsonl(folder / "sums.jsonl", additions(12))
    return folder


def run_tag(folder: Path, model: Path, name: str, *options: object) -> tuple[Ran, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ran = tag(
            "sums.jsonl", "--model", model, "--run-dir", name, "--out", f"{name}.jsonl", *options
        )
    return ran, folder / name


@pytest.fixture(scope="module")
def real(folder: Path, tiny_model: Path) -> Path:
    ran, run = run_tag(
        folder, tiny_model, "real",
        "--verifier", "real_rewards:parts", "--pass-threshold", "0.75", "--tau", "0.9",
    )  # fmt: skip
    assert ran.status == 0, ran.stderr
    return run


@pytest.fixture(scope="module")
def binary(folder: Path, tiny_model: Path) -> Path:
    ran, run = run_tag(
        folder, tiny_model, "binary", "--verifier", "real_rewards:whole", "--tau", "0.9"
    )
    assert ran.status == 0, ran.stderr
    return run


def test_rollouts_keep_the_number_and_the_threshold_makes_correct(real: Path, binary: Path) -> None:
    rollouts, whole = read_rollouts(real), read_rollouts(binary)
    assert rollouts["reward"].type == pa.float64()
    assert whole["reward"].type == pa.int8()
    rewards = rollouts["reward"].to_numpy()
    assert len(np.unique(rewards)) > 3
    for reward, verdict, finish in zip(
        rewards, rollouts["verdict"].to_pylist(), rollouts["finish_reason"].to_pylist(), strict=True
    ):
        expected = "truncated" if finish == "length" else "correct" if reward >= 0.75 else "wrong"
        assert verdict == expected
        assert finish != "length" or reward == 0
    np.testing.assert_array_equal(rollout_outcomes(rollouts), whole["reward"].to_numpy())
    assert Run.open(real).rollouts("reward")["reward"].type == pa.float64()


def test_counts_rates_and_tags_are_those_of_the_threshold(real: Path, binary: Path) -> None:
    names = ["total_rollouts", "total_correct_rollouts", "pass_rate", "pass_at_8"]
    tables = [pq.read_table(run / "pass_rates.parquet") for run in (real, binary)]
    assert tables[0].select(names).equals(tables[1].select(names))
    assert pc.sum(tables[0]["total_correct_rollouts"]).as_py() > 0


def test_an_item_has_the_mean_and_spread_of_its_rewards(real: Path) -> None:
    rollouts = read_rollouts(real).to_pylist()
    rows = read_jsonl(real.with_name("real.jsonl"))
    for row in rows:
        own = [r["reward"] for r in rollouts if r["item_id"] == row["item_id"]]
        assert row["reward_mean"] == pytest.approx(np.mean(own))
        assert row["reward_std"] == pytest.approx(np.std(own, ddof=1))
    assert any(row["reward_std"] > 0 for row in rows)


def test_features_know_reward_and_correctness(real: Path) -> None:
    row_of = Run.open(real).row_of
    found = joined(real, row_of)
    index = pq.read_table(real / "gradients/rollouts.parquet")
    assert index["reward"].type == pa.float64()
    np.testing.assert_array_equal(found.is_correct, index["reward"].to_numpy() >= 0.75)
    assert found.correct.is_correct.all() and not found.wrong.is_correct.any()
    # Rollouts of items that are never right teach too, where their rewards differ.
    right = set(found.correct.item.tolist())
    spread = pq.read_table(real / "pass_rates.parquet")["reward_std"].to_numpy()
    teaching = set(found.wrong.item.tolist()) - right
    assert teaching == {at for at in range(12) if spread[at] > 0 and at not in right}


def test_the_lift_goes_by_the_rewards_themselves(real: Path, binary: Path) -> None:
    row_of = Run.open(real).row_of
    rewards = read_rewards(real, row_of)
    assert rewards is not None and read_rewards(binary, row_of) is None
    assert rewards.values.sum() == pytest.approx(pc.sum(read_rollouts(real)["reward"]).as_py())
    features = joined(real, row_of)
    found = count_outcomes(real, row_of)
    config = read_run_config(real)
    lift, raw, _ = measured_lift(features, found, config, rewards=rewards)
    kept = pq.read_table(real / "lift.parquet")["lift"].to_numpy()
    np.testing.assert_allclose(lift.lift, kept, rtol=1e-6)
    whole = dataclasses.replace(features, reward=features.is_correct.astype(float), accepted=None)
    _, by_counts, _ = measured_lift(whole, found, config)
    known = np.isfinite(raw.lift)
    assert known.any() and (np.isfinite(by_counts.lift) == known).all()
    assert not np.allclose(raw.lift[known], by_counts.lift[known], rtol=0.05)
    # Without a correct rollout no lift is measured, but rewards that differ teach.
    never = (found.correct == 0) & (raw.weight > 0)
    assert never.any() and not known[never].any()
    teaching = pq.read_table(real / "teaching.parquet")["teaching"].to_numpy()
    assert np.isfinite(teaching[never]).all()


def test_gradients_of_binary_rewards_say_nothing_new(binary: Path) -> None:
    index = pq.read_table(binary / "gradients/rollouts.parquet")
    assert index["reward"].type == pa.int8()
    assert "correct" not in index.column_names


def test_one_file_with_numbers_makes_numbers_of_all(tmp_path: Path) -> None:
    def write(number: int, rewards: list[float | None], verdicts: list[str], kind: Any) -> None:
        table = pa.table(
            {
                "item_id": ["a"] * len(rewards),
                "reward": pa.array(rewards, kind),
                "verdict": verdicts,
            }
        )
        (tmp_path / "rollouts").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"rollouts/{number:05d}.parquet")

    write(0, [1, 0, None], ["correct", "wrong", "error"], pa.int8())
    as_numbers(tmp_path)
    assert not real_rewards(tmp_path)
    write(1, [0.8, 0.5, None], ["correct", "wrong", "timeout"], pa.float64())
    before = count_outcomes(tmp_path, {"a": 0})
    assert (before.judged[0], before.correct[0]) == (4, 2)
    as_numbers(tmp_path)
    types = [pq.read_schema(f).field("reward").type for f in sorted(tmp_path.glob("rollouts/*"))]
    assert types == [pa.float64()] * 2
    after = count_outcomes(tmp_path, {"a": 0})
    assert (after.drawn[0], after.judged[0], after.correct[0]) == (6, 4, 2)


def test_a_reward_beyond_the_maximum_is_refused_before_anything_is_spent(
    folder: Path, tiny_model: Path
) -> None:
    ran, run = run_tag(folder, tiny_model, "beyond", "--verifier", "real_rewards:three")
    assert ran.status == 2
    assert "above 1, its maximum: give --pass-threshold" in ran.last_line
    assert not (run / "rollouts").exists()
    ran, _ = run_tag(folder, tiny_model, "beyond", "--verifier", "math", "--pass-threshold", "1")
    assert ran.status == 2
    assert "--pass-threshold is for --verifier MODULE:FUNCTION; math gives 0 or 1" in ran.last_line


def test_another_threshold_is_another_run(folder: Path, real: Path, tiny_model: Path) -> None:
    ran, _ = run_tag(
        folder, tiny_model, "real",
        "--verifier", "real_rewards:parts", "--pass-threshold", "0.5", "--tau", "0.9",
    )  # fmt: skip
    assert ran.status == 2
    assert "pass_threshold: 0.75 -> 0.5" in ran.last_line
