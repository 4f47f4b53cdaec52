"""The trainings and the tables of `benchmarks.selection.grown`."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.selection import grown_table
from benchmarks.selection.grown import (
    ARMS,
    CHANCE,
    FULL,
    GROUP,
    LONG,
    PRIMARY,
    SCHEDULE,
    SHORT,
    TARGETED,
    UNPROBED,
    Probed,
    curve_file,
    one_training,
)
from benchmarks.training.grpo import Grpo
from benchmarks.training.rollouts import problem
from benchmarks.training.supervised import train_sft
from tests.worlds.grown import WorldSettings, new_model, other_questions, pass_probability
from tests.worlds.grown_skills import Question

QUESTIONS = (
    Question("first", "first a b c d", "a", ()),
    Question("order", "order c b a", "a b c", ()),
    Question("sum", "sum 2 3", "5", ()),
)


@pytest.mark.parametrize("arm", [FULL, SCHEDULE, UNPROBED, CHANCE])
def test_a_training_ends_with_its_budget_and_raises_the_pass_rate(tmp_path, arm):
    model = new_model(WorldSettings(("first",), width=32, layers=2))
    problems = [problem(question) for question in QUESTIONS]
    train_sft(model, problems, steps=40, batch=3, learning_rate=3e-3, seed=0)
    before = pass_probability(model, QUESTIONS)
    model.save_pretrained(tmp_path)
    unknown = [None] * 3
    counts = {"item_id": ["a", "b", "c"], "total_correct_rollouts": unknown,
              "total_rollouts": unknown}  # fmt: skip
    arms = {FULL: [0, 1, 2], f"{SCHEDULE}, short": [2, 0, 1] * 9}
    probed = Probed(tmp_path, QUESTIONS, QUESTIONS, arms, counts, {})
    settings = Grpo(learning_rate=3e-3, prompts=4, group=GROUP, updates=1, first_round=1)
    if arm in (UNPROBED, CHANCE):  # No item twice at once, and there are three.
        settings = replace(settings, prompts=3, most_rounds=1)
    found = one_training(probed, arm, 1, 1_200, settings)
    rollouts, rates = found["rollouts"], found["rates"]
    assert rollouts[0] == 0 and rollouts[-2] < 1_200 <= rollouts[-1]
    assert rates[0] == pytest.approx(before.mean(), abs=1e-6)
    assert before.mean() < 0.3 and rates[-1] > 0.45 and rates[-1] == found["trained_items"]
    assert len(rates) > 4 and (np.diff(rollouts) > 0).all()
    assert 0 < found["with_signal"] < 1


def test_questions_of_a_target_are_new_and_of_the_world():
    settings = WorldSettings(("first", "max"), items=60, candidates=100)
    policy = new_model(settings)
    first = other_questions(policy, settings, 1, ())
    assert {question.skill for question in first} == {"first", "max"}
    assert other_questions(policy, settings, 1, ()) == first
    again = other_questions(policy, settings, 1, first[:5])
    left = {question.prompt for question in first[5:]}
    assert {question.prompt for question in again}.isdisjoint(q.prompt for q in first[:5])
    assert left & {question.prompt for question in again}
    with pytest.raises(ValueError, match="write working"):
        other_questions(policy, WorldSettings(("first",), ("first",)), 1, ())


def test_the_tables_compare_within_worlds_and_seeds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grown_table, "_REPLICATES", 40)
    rng = np.random.default_rng(0)
    cost, seeds = {"p1": 600, "p2": 800, "p3": 700}, (1, 2)
    worlds = {world: {PRIMARY: n, TARGETED: 2 * n} for world, n in cost.items()}
    x = np.linspace(0, LONG, 25)
    for n, world in enumerate(worlds):
        for seed in seeds:
            luck = 0.1 * n + 0.01 * rng.normal()
            for arm in ARMS:
                # Ours rises twice as fast and ends higher by 0.02, in every pair.
                rates = luck + 0.1 * np.minimum(1, x / LONG * (2 if arm == PRIMARY else 1))
                rates += 0.02 * (arm == PRIMARY) * x / LONG + 1e-4 * rng.normal(size=25)
                for budget in {LONG, SHORT if arm == SCHEDULE else LONG}:
                    file = curve_file(tmp_path / world, arm, budget, seed)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    short = x * budget / LONG
                    file.write_text(
                        json.dumps(
                            {
                                "rollouts": short.tolist(),
                                "rates": rates.tolist(),
                                "trained_items": rates[-1],
                            }
                        )
                    )
    curve_file(tmp_path / "p1", FULL, LONG, 3).write_text("{}")  # Not finished elsewhere.
    curves = grown_table.read_curves(tmp_path, worlds, LONG)
    assert curves.rates[FULL].shape == (3, 2, 97)
    assert curves.probe == {PRIMARY: 700, TARGETED: 1400}
    ahead = grown_table.over_worlds(
        grown_table.final(curves.rates[PRIMARY]) - grown_table.final(curves.rates[FULL])
    )
    assert ahead.mean == pytest.approx(0.02 + 0.1 / 16, abs=2e-3) and ahead.half < 0.002
    shares = grown_table.reached_shares(curves, PRIMARY)
    # Of 0.2 x + 0.02 x = 0.1 less what full still lacks in its last eighth on average, 0.1 / 16.
    assert shares[0] == pytest.approx(0.1 * 15 / 16 / 0.22, abs=0.02)
    assert np.quantile(shares, 0.9) < 0.6
    assert grown_table.verdict(curves).startswith("Goal met")
    grown_table.print_tables(tmp_path, worlds)
    printed = capsys.readouterr().out
    assert "24,576 rollouts: a target does not pay" in printed
    assert f"**{PRIMARY}**" in printed and "6,144 rollouts, 3 worlds, 2 seeds" in printed


def test_a_level_that_is_never_reached_is_never():
    rollouts = np.linspace(0, 100, 5)
    assert grown_table.reached_at(np.array([0, 0.1, 0.2, 0.3, 0.4]), rollouts, 0.15) == 37.5
    assert np.isinf(grown_table.reached_at(np.array([0, 0.1, 0.2, 0.3, 0.4]), rollouts, 0.5))
    # A peak alone is not the level: what is reached stays.
    assert np.isinf(grown_table.reached_at(np.array([0, 0.3, 0.0, 0.0, 0.1]), rollouts, 0.25))
