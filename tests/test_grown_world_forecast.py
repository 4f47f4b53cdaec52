"""The forecast where nothing is planted: grow a small world, tag it, train in it, confirm.

`curate tag` sees the policy before RL only; two seeds of GRPO through TRL show what becomes of the
items. The world and the length of the training were set by the share of hard items that is learned,
not by what any score says of them. That the forecast is ahead of the pass rate by much is shown on
larger worlds (docs/evidence/forecast.md); a world of this size can show that it works, end to end.

Bounds are by the statistics of the test, so that they hold on any processor, in bfloat16 and in
float32, where the same seeds draw other rollouts. A ranking of m and n items that knows nothing has
an AUROC of 0.5 with a standard error of √((m+n+1)/(12mn)) (Mann and Whitney 1947). A difference of
two AUROCs has the error of the paired bootstrap of `curate confirm`. A share s of t tags has a
standard error of √(s(1−s)/t).
"""

import json

import numpy as np
import pytest

from tests.tag_runs import many_rows, read_jsonl, run_curate
from tests.worlds.grown import WorldSettings, grow_world

TAU = 0.1
ROLLOUTS = 128
SETTINGS = WorldSettings(
    skills=(
        *("first", "last", "ends", "double", "successor", "tens", "lower", "max", "times"),
        *("product", "codes0", "codes2", "order", "total"),
    ),
    working_skills=("total",),
    width=64,
    layers=2,
    steps=500,
    learning_rate=5e-3,
    noise=0.95,
    share_spread=0.5,
    items=280,
    candidates=200,
    working_samples=96,
    largest_skill=0.12,
    seed=24,
)
TRAINING_SEEDS = (1, 42)
# All parameters, at a scale that suits a model of a hundred thousand of them.
RECIPE = """
extends = "baseline"
max_steps = 40
prompts_per_step = 64
updates_per_step = 1
learning_rate = 1e-3
beta = 0.0
max_completion_length = 0
max_sampling_rounds = 3
evaluation_temperature = 1.0
evaluation_rollouts = 64
rows_per_pass = 512
save_every = 40
"""
TAGS = ("learnable", "unlearnable")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where `run` is the tagged run, and `tagged.jsonl` its file."""
    folder = tmp_path_factory.mktemp("grown")
    world = grow_world(folder, SETTINGS)
    command = (
        *("tag", world.items, "--model", world.model, "--out", folder / "tagged.jsonl"),
        *("--run-dir", folder / "run", "--instruction", "", "--verifier", "exact"),
        *("--verifier-workers", "1", "--max-tokens", world.max_tokens),
        *("--min-rollouts", ROLLOUTS, "--max-rollouts", ROLLOUTS),
    )
    with many_rows():
        ran = run_curate(*command)
    assert ran.status == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    """The tagged rows, before any training."""
    return read_jsonl(folder / "tagged.jsonl")


@pytest.fixture(scope="module")
def hard(rows):
    """Those with a pass rate below τ."""
    found = [row for row in rows if row["total_correct_rollouts"] < TAU * row["total_rollouts"]]
    assert len(found) >= 100
    return found


@pytest.fixture(scope="module")
def summary(folder, rows):
    """What `curate confirm` says after the seeds; `rows` are of before it."""
    recipe = folder / "grown.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    seeds = ",".join(map(str, TRAINING_SEEDS))
    with many_rows():
        trained = run_curate("validate", folder / "run", "--recipe", recipe, "--seeds", seeds)
    assert trained.status == 0, trained.stderr
    confirmed = run_curate("confirm", folder / "run", "--json")
    assert confirmed.status == 0, confirmed.stderr
    return json.loads(confirmed.stdout)


def test_every_hard_item_has_a_forecast_and_its_reason_gives_the_numbers(hard):
    for row in hard:
        low, expected, high = (row[f"forecast_{part}"] for part in ("low", "pass_rate", "high"))
        assert 0 <= low < high <= 1 and 0 < expected < 1
        assert 0 <= row["p_unlearnable"] <= 1
        assert f"expected to reach {expected:.2f} ({low:.2f} to {high:.2f})" in row["tag_reason"]


def test_every_item_with_a_correct_rollout_has_a_lift_and_teaches(rows):
    """Direct answers too, of which every correct rollout is the same."""
    alike = 0
    for row in rows:
        if row["total_correct_rollouts"]:
            assert row["lift_low"] < row["lift"] < row["lift_high"]
            assert np.isfinite(row["teaching"])
            alike += row["skill"] not in SETTINGS.working_skills
        else:
            assert row["trainability"] == "no_positive"
            assert (row["lift"], row["teaching"]) == (None, None)
    assert alike >= 100


def test_every_hard_item_that_is_judged_has_a_p_unlearnable(summary):
    agreement = summary["agreement"]
    assert agreement["left_out"] == 0
    # So that what follows is said of something.
    assert min(agreement["unlearnable"], agreement["learnable"]) >= 10
    assert summary["too_few"] is None


def test_the_forecast_tells_what_becomes_of_items(summary):
    unlearnable, learnable = (summary["agreement"][tag] for tag in ("unlearnable", "learnable"))
    error = np.sqrt((unlearnable + learnable + 1) / (12 * unlearnable * learnable))
    assert summary["auroc"] >= 0.5 + 4 * error


def test_the_forecast_is_not_behind_the_pass_rate(summary):
    ahead = summary["agreement"]["scores"]["pass_rate"]
    # An interval of 95 % is 3.92 errors wide.
    error = (ahead["auroc_difference_high"] - ahead["auroc_difference_low"]) / 3.92
    assert ahead["auroc_difference"] >= -2 * error


def test_tags_come_true(summary):
    """At least eight in ten; the rule gives a tag when it expects nine."""
    confusion = summary["confusion"]
    right = sum(confusion[tag][tag] for tag in TAGS)
    given = right + confusion[TAGS[0]][TAGS[1]] + confusion[TAGS[1]][TAGS[0]]
    assert given >= 5
    assert right >= 0.8 * given - 2 * np.sqrt(0.8 * 0.2 * given)
