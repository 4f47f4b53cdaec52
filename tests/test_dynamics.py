"""Rewards and clipped tokens of groups in training: by hand, in JSON, and for a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.config import TagConfig
from curate.errors import RunError
from curate.run.run import Run
from curate.run.tables import REWARDS
from recipes.confirm.dynamics import training_dynamics
from recipes.confirm.dynamics_text import dynamics_text
from tests.made.run import write_training

TAGS = {"a": "easy", "b": "learnable", "c": "unlearnable", "d": None}


def write_rewards(
    run: Path, seed: int, rows: Sequence[Mapping[str, Any]], recipe: str = "r"
) -> Path:
    """Write a seed whose groups of rollouts have these step, item_id and measures."""
    usual = {"rollouts": 8, "truncated_fraction": 0.0, "trained": True}
    file = write_training(run, recipe, seed) / "rewards.parquet"
    pq.write_table(pa.Table.from_pylist([usual | dict(row) for row in rows], REWARDS.schema), file)
    return file


def follow(run: Path) -> list[dict[str, Any]]:
    return training_dynamics(Run(run, TagConfig(), {}), pa.array(list(TAGS)), list(TAGS.values()))


def curves(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {group["group"]: group for group in recipe["groups"]}


def test_means_are_those_of_the_groups_in_each_window_over_all_seeds(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    every = []
    for seed in (1, 2):
        rows = [
            {
                "step": step, "item_id": item, "mean_reward": random.random(),
                "clipped_fraction": random.random() / 100 if item == "b" else None,
            }
            for step in range(1, 46) for item in "abbc"
        ]  # fmt: skip
        write_rewards(tmp_path, seed, rows)
        every.append(rows)
    (found,) = follow(tmp_path)
    assert found["recipe"] == "r" and found["seeds"] == [1, 2]
    # 45 steps in at most 20 windows: 3 in each, which makes 15.
    assert found["steps_per_window"] == 3 and found["first_step"] == list(range(1, 46, 3))
    assert found["last_step"][-1] == 45
    learnable = curves(found)["learnable"]
    for at, first in enumerate(found["first_step"]):
        for measure in ("mean_reward", "clipped_fraction"):
            seeds = [
                [r[measure] for r in rows if r["item_id"] == "b" and first <= r["step"] < first + 3]
                for rows in every
            ]
            values = np.concatenate(seeds)
            half = 1.959964 * values.std(ddof=1) / len(values) ** 0.5
            mean = values.mean()
            assert learnable[measure][at] == pytest.approx(mean, abs=1e-6)
            assert learnable[f"{measure}_low"][at] == pytest.approx(mean - half, abs=1e-6)
            assert learnable[f"{measure}_high"][at] == pytest.approx(mean + half, abs=1e-6)
            for seed, each in zip(learnable[f"{measure}_by_seed"], seeds, strict=True):
                assert seed[at] == pytest.approx(np.mean(each), abs=1e-6)
    whole = [r["clipped_fraction"] for rows in every for r in rows if r["item_id"] == "b"]
    assert learnable["whole"]["clipped_fraction"] == pytest.approx(np.mean(whole), abs=1e-6)
    easy = curves(found)["easy"]
    assert set(easy["clipped_fraction"]) == {None} and easy["whole"]["clipped_fraction"] is None
    assert easy["clipped_groups"] == [0] * 15 and easy["rollout_groups"] == [6] * 15


def test_what_is_unknown_counts_nowhere(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "item_id": "a", "mean_reward": 0.5, "clipped_fraction": 0.0},
        {"step": 1, "item_id": "a", "mean_reward": None, "clipped_fraction": None},
        {"step": 2, "item_id": "b", "mean_reward": None, "clipped_fraction": None},
        {"step": 2, "item_id": "d", "mean_reward": 1.0, "clipped_fraction": 0.1},
        {"step": 2, "item_id": "an extra item", "mean_reward": 1.0, "clipped_fraction": 0.1},
    ]
    write_rewards(tmp_path, 1, rows)
    write_rewards(tmp_path, 1, [], recipe="sft")
    write_training(tmp_path, "unfinished", 1, state="started")
    found = {recipe["recipe"]: recipe for recipe in follow(tmp_path)}
    assert list(found) == ["r", "sft"]
    (easy,) = found["r"]["groups"]
    assert easy["rollout_groups"] == [1, 0] and easy["mean_reward"] == [0.5, None]
    assert easy["mean_reward_low"] == easy["mean_reward_high"] == [None, None]  # Of one group.
    assert easy["clipped_fraction"] == [0.0, None]
    assert found["sft"]["groups"] == [] and found["sft"]["first_step"] == []


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    write_rewards(tmp_path, 1, []).write_bytes(b"PAR1 no more")
    with pytest.raises(RunError, match=r"rewards\.parquet"):
        follow(tmp_path)


def test_the_table_says_where_curves_go_and_whether_anything_was_clipped(tmp_path: Path) -> None:
    for recipe, share in (("clip-higher", 0.002), ("baseline", 0.0)):
        rows = [
            {
                "step": step, "item_id": item, "clipped_fraction": share if item == "b" else 0.0,
                "mean_reward": 0.1 * step if item == "b" else None if item == "c" else 1.0,
            }
            for step in range(1, 10) for item in "abc"
        ]  # fmt: skip
        write_rewards(tmp_path, 1, rows, recipe)
    text = dynamics_text(follow(tmp_path)).splitlines()
    assert "unlearnable" not in "\n".join(text)  # None of its rewards could be judged.
    learnable = next(
        line.split() for line in text if line.startswith("clip-higher") and "learnable" in line
    )
    assert learnable == [
        *("clip-higher", "learnable", "9", "0.100", "0.900"),
        *("0.200%", "(0.200%", "to", "0.200%)"),
    ]
    assert text[-1].startswith("not one token was clipped under baseline: ")
