"""Scores and figures of `benchmarks/forecast`, on worlds made of a few numbers."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit, logit, ndtr

from benchmarks.forecast import __main__ as command
from benchmarks.forecast.cache import Draws
from benchmarks.forecast.calibrated import calibrated
from benchmarks.forecast.data import (
    ROUNDS,
    World,
    first_rollouts,
    probe_at,
)
from benchmarks.forecast.figures import auroc_within, decided, measure_world
from benchmarks.forecast.fit import Evidence, fit_constants
from benchmarks.forecast.page import calibrated_table, page, world_tables
from benchmarks.forecast.pilot import pilot_folders, pilot_lift, pilot_pass_rate
from benchmarks.forecast.scores import (
    BY_GRADIENTS,
    PASS_RATE,
    former_rule,
    last,
    mean_cosine,
    with_kin,
)
from curate.config import TagConfig
from probes.forecast.model import Constants, Lifts
from probes.forecast.pass_probability import GoldEvidence
from probes.stages.forecast import CONSTANTS
from probes.stages.lift import GRADIENTS

DIM = 48
FAR_OFF = Constants(drift=-3.0, gain=0.5, spread=1.0)


def made_world(run=Path("nowhere"), *, items=60, rollouts=256, seed=0):
    """Items of three skills; those of a skill share a gradient, and learn where theirs is common.

    A third is easy; hard items of the first skill are learned and those of the third are not.
    """
    rng = np.random.default_rng(seed)
    skill = np.arange(items) % 3
    is_easy = (np.arange(items) % 5 < 2) & (skill < 2)
    p = np.where(is_easy, 0.5, rng.uniform(0.02, 0.06, items))
    reward = (rng.random((items, rollouts)) < p[:, None]).astype(np.int8)
    axes = np.linalg.qr(rng.normal(size=(DIM, 6)))[0].T
    features, columns = [], []
    for item in range(items):
        for value, most in ((1, 64), (0, 4)):
            for sample in np.flatnonzero(reward[item] == value)[:most]:
                # Two right completions, and two wrong ones.
                kind = int(rng.integers(2))
                key = (item, value, kind)
                columns.append((item, sample, bool(value), 3 + kind, key))
    columns.sort(key=lambda row: (row[0], row[1]))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(row[-1] for row in columns))}
    for item, value, _ in numbers:
        axis = axes[skill[item] if value else 3 + skill[item]]
        features.append(-axis + 0.1 * rng.normal(size=DIM) / np.sqrt(DIM))
    arrays = [np.array([row[i] for row in columns]) for i in range(4)]
    final = np.where(is_easy, 0.9, np.where(skill == 0, 0.5, np.where(skill == 1, 0.3, 0.02)))
    final = np.tile(final, (3, 1))
    final[0, 13::15] = 0.01
    return World(
        name="d1",
        run=run,
        config=TagConfig(),
        item_ids=tuple(f"{item:032x}" for item in range(items)),
        skills=np.array(["a", "b", "c"])[skill],
        reward=reward,
        final=final,
        features=np.array(features, dtype=np.float32),
        draws=Draws(*arrays, np.array([numbers[row[-1]] for row in columns])),
        gold=GoldEvidence.none(items),
    )


@pytest.fixture(scope="module")
def world():
    return made_world()


def test_a_probe_holds_what_its_rollouts_hold(world):
    drawn = np.where(np.arange(60) % 2 == 0, 16, 128)
    probe = first_rollouts(world, drawn)
    assert probe.found.judged.tolist() == drawn.tolist()
    correct = [int(row[:n].sum()) for row, n in zip(world.reward, drawn, strict=True)]
    assert probe.found.correct.tolist() == correct
    right, wrong = probe.features.correct, probe.features.wrong
    for item, count in enumerate(correct):
        assert right.weights[right.item == item].sum() == min(count, 16)
        assert wrong.weights[wrong.item == item].sum() == (
            min(drawn[item] - count, 4) * (count > 0)
        )
    # A distinct completion is one row, with the gradient that is its own.
    for part, is_correct in ((right, True), (wrong, False)):
        assert np.all(np.diff(part.item) >= 0)
        for row, item in enumerate(part.item):
            own = (world.draws.item == item) & (world.draws.correct == is_correct)
            known = world.features[world.draws.completion[own]]
            assert (known == part.features[row]).all(axis=1).any()
    assert len(np.unique(right.features, axis=0)) == len(right.features)


def test_rounds_stop_items_that_are_decided_and_use_no_rollout_that_is_not_there(world):
    probe = probe_at(world, ROUNDS, CONSTANTS[GRADIENTS])
    assert probe.drawn.min() == 32
    assert probe.drawn.max() <= world.rollouts
    easy = world.pass_rate > 0.3
    assert probe.drawn[easy].mean() < probe.drawn[~easy].mean()


def test_kin_lend_their_log_odds():
    rate = expit(np.array([-1.0, -3.0, 2.0, 0.5]))
    skills = np.array(["a", "a", "a", "b"])
    assert with_kin(rate, skills, 0.5) == pytest.approx([-1.25, -2.75, 1.0, 0.75])


def test_unknown_scores_come_last():
    assert np.argsort(last(np.array([0.3, np.nan, -2.0]))).tolist() == [1, 2, 0]


def test_mean_cosine_is_that_of_the_items_mean_gradients(world):
    features = first_rollouts(world, 128).features
    is_easy = world.pass_rate > 0.3
    found = mean_cosine(features, is_easy)
    right = features.correct
    means = np.zeros((60, DIM))
    unit = right.features / np.linalg.norm(right.features, axis=1, keepdims=True)
    np.add.at(means, right.item, right.weights[:, None] * unit)
    means /= np.linalg.norm(means, axis=1, keepdims=True).clip(1e-30)
    has = np.isin(np.arange(60), right.item)
    assert np.isfinite(found).tolist() == has.tolist()
    for item in np.flatnonzero(has):
        others = [j for j in np.flatnonzero(is_easy) if j != item]
        assert found[item] == pytest.approx(np.mean(means[others] @ means[item]), abs=1e-5)


def test_the_former_rule_goes_by_similarity_and_pass_rate(world):
    probe = first_rollouts(world, 256)
    found = former_rule(probe.features, probe.found, 0.1)
    hard = ~probe.found.is_easy(0.1) & (probe.found.correct > 1)
    alike, alien = hard & (world.skills != "c"), hard & (world.skills == "c")
    assert np.nanmin(found[alike]) > 0.6
    assert np.nanmax(found[alien]) < 0.1
    few = first_rollouts(world, 32)
    chance = former_rule(few.features, few.found, 0.1)
    assert np.isnan(chance[few.found.correct == 0]).all()
    single = few.found.correct == 1
    assert single.any()
    # Those with one correct rollout of as many have the mean of the others.
    assert np.ptp(chance[single]) == pytest.approx(0, abs=1e-12)
    assert 0.1 < chance[single][0] < 0.9


def test_within_skills_only_pairs_of_one_skill_count():
    outcome = np.array([True, False, True, False, False, True])
    score = np.array([0.2, 0.1, 5.0, 6.0, 4.0, 9.0])
    group = np.array(["a", "a", "b", "b", "b", "c"])
    # One pair of a, won; two of b, one won; c has none.
    assert auroc_within(outcome, score, group) == pytest.approx(2 / 3)
    assert auroc_within(outcome[[1, 3]], score[[1, 3]], group[[1, 3]]) is None


def test_tags_are_right_where_they_come_true(world):
    probe = first_rollouts(world, 256)
    p = np.where(world.skills == "c", 0.95, 0.5)
    p[np.flatnonzero((world.skills == "a") & world.is_hard)[0]] = 0.99
    found = decided(probe, p)
    tagged = int((world.is_hard & (p > 0.9) & (probe.found.correct > 0)).sum())
    assert found.share == pytest.approx(tagged / world.is_hard.sum())
    assert found.right == pytest.approx((tagged - 1) / tagged)
    assert decided(probe, np.full(60, 0.5)).right is None


def test_a_fit_finds_the_constants_that_made_the_outcomes():
    rng = np.random.default_rng(1)
    items, seeds = 1500, 3
    truth = Constants(drift=-0.4, gain=1.8, spread=1.2)
    rates = expit(np.linspace(-6, -2.2, 30))
    at = rng.integers(30, size=items)
    lift = rng.uniform(-1, 6, items)
    moved = logit(rates[at]) + truth.drift + truth.gain * np.sign(lift) * np.log1p(np.abs(lift))
    chance = 1 - ndtr((logit(0.1) - moved) / truth.spread)
    learned = rng.binomial(seeds, chance) / seeds
    known = Evidence(
        rates, np.eye(30)[at], Lifts(lift, np.full(items, 1e-3)), (1.0, 9.0), learned, 0.1
    )
    found = fit_constants([[known]], Constants(0.0, 1.0, 1.0))
    assert found.drift == pytest.approx(truth.drift, abs=0.3)
    assert found.gain == pytest.approx(truth.gain, abs=0.25)
    assert found.spread == pytest.approx(truth.spread, abs=0.2)
    assert known.loss(found) <= known.loss(truth)


def pilot_run(run, world, steps):
    """A run folder with a pilot that made each correct completion e^steps[item] as likely."""
    draws = world.draws.part(world.draws.correct)
    first = np.unique(draws.completion, return_index=True)[1]
    columns = {
        "item_id": [world.item_ids[item] for item in draws.item[first]],
        "sample": draws.sample[first],
    }
    (run / "rescoring").mkdir(parents=True)
    before = np.full(len(first), -4.0)
    initial = pa.table({**columns, "log_probability": before})
    pq.write_table(initial, run / "rescoring" / "initial-float32.parquet")
    folder = run / "pilot" / "pilot" / "1"
    folder.mkdir(parents=True)
    after = pa.table({**columns, "log_probability": before + steps[draws.item[first]]})
    pq.write_table(after, folder / "log_probabilities.parquet")
    trained = {"item_id": [world.item_ids[0]], "sample": [int(draws.sample[0])]}
    pq.write_table(pa.table(trained), folder / "trained.parquet")
    rewards = {
        "step": [1, 2, 2],
        "item_id": [world.item_ids[0], world.item_ids[0], world.item_ids[1]],
        "rollouts": [8, 8, 8],
        "mean_reward": [1.0, 0.5, None],
    }
    pq.write_table(pa.table(rewards), folder / "rewards.parquet")


def test_a_pilot_is_read_from_the_probes_own_rollouts(tmp_path):
    world = made_world(tmp_path)
    assert not pilot_folders(world)
    steps = np.linspace(-0.3, 0.5, 60)
    pilot_run(tmp_path, world, steps)
    folders = pilot_folders(world)
    assert len(folders) == 1
    probe = first_rollouts(world, 32)
    found = pilot_lift(probe, folders)
    known = probe.found.correct > (np.arange(60) == 0)
    assert np.isfinite(found.lift).tolist() == known.tolist()
    low = known & (probe.pass_rate < 0.3)
    new = probe.pass_rate * np.exp(steps)
    change = logit(np.minimum(new, 0.99)) - logit(probe.pass_rate)
    assert found.lift[low] == pytest.approx(change[low])
    rates = pilot_pass_rate(probe, folders)
    n, c = probe.found.judged, probe.found.correct
    assert rates[0] == pytest.approx((c[0] + 4.5) / (n[0] + 9))
    assert rates[1:] == pytest.approx(probe.pass_rate[1:])


def test_figures_and_page_of_a_world(tmp_path):
    world = made_world(tmp_path)
    pilot_run(tmp_path, world, np.where(world.skills == "c", -0.1, 0.6))
    found = measure_world(world, CONSTANTS)
    assert found.judged < found.hard
    at = found.by_budget["256"]
    # The world is made so that skills decide, which the lift knows and the pass rate does not.
    assert at.ranking["lift by gradients"]["auroc"] > 0.95
    assert at.ranking[BY_GRADIENTS]["auroc"] > at.ranking[PASS_RATE]["auroc"] + 0.1
    ahead = at.ranking[BY_GRADIENTS]
    assert ahead["ahead"] == pytest.approx(ahead["auroc"] - at.ranking[PASS_RATE]["auroc"])
    assert ahead["ahead_low"] < ahead["ahead"] < ahead["ahead_high"]
    json.dumps(found.plain(), allow_nan=False)
    tables = world_tables(found)
    for name in at.ranking:
        assert tables.count(f"| {name} |") >= 3
    whole = page([dataclasses.replace(found, name="k1")], CONSTANTS)
    assert "Chosen on** d1, d2, d3, j1, j2 and j3" in whole
    assert "Judged on** k1" in whole


def test_constants_of_one_training_are_judged_on_the_others(world):
    probe = first_rollouts(world, 256)
    found = calibrated(probe, probe.lift, GRADIENTS, {GRADIENTS: FAR_OFF})
    before, half, whole = (found[name] for name in ("built in", "half", "all"))
    assert whole.error < before.error - 0.2
    assert half.error < before.error - 0.2
    assert before.right < 0.7 < 0.9 < whole.right
    assert calibrated_table([]).count("\n") == 1


def test_no_item_is_judged_by_constants_that_saw_it(world):
    """Items of either half end as the other half does not: what was fitted on them is wrong."""
    first = np.arange(60) % 2 == 0
    final = np.where(world.is_hard & first, 0.9, 0.01)
    turned = dataclasses.replace(world, final=np.tile(final, (3, 1)))
    probe = first_rollouts(turned, 256)
    found = calibrated(probe, probe.lift, GRADIENTS, CONSTANTS)
    assert found["half"].error > 0.4
    assert found["half"].error > found["all"].error + 0.2


def test_design_and_judging_worlds_are_kept_apart(tmp_path, capsys):
    for arguments in (["fit", "k1"], ["show", "k2"], ["judge", "d1", "--out", "page.md"]):
        with pytest.raises(SystemExit):
            command.main([*arguments, "--folder", str(tmp_path)])
        assert "judging worlds judge" in capsys.readouterr().err
