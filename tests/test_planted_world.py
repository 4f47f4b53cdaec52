"""The end-to-end truth test: tag, train and confirm where learnability is known by construction.

`curate tag` sees the policy before RL only; then two seeds of GRPO through TRL show what becomes
of the items, and `curate confirm` sets the one against the other.

Bounds hold on any machine, in bfloat16 and in float32, where the same seeds draw other rollouts. A
ranking that knows nothing has an AUROC of 0.5 with a standard error of √((m+n+1)/(12mn)), 0.046 for
the 80 hard items of each kind; what must be no better than chance lies within four of these, what
must be better lies five above. A share of 80 items has a standard error of at most 0.056; shares
are asked for with three of these and more to spare.

Nothing is claimed of semantic similarity. The hard kinds differ in a word of their prompts, and the
policy's own embedding tells these words apart: the baseline can see which kind an item is (AUROC
0.82 on one machine, 0.97 on another, where training ended elsewhere). Giving both kinds the same
prompts, with wrong golds for one, would hide it; but golds of the same pass rate then have to be
answers that the policy prefers at random, sums among them, and of a hard sum's correct rollouts
hardly any more would come from the skill (gradient similarity falls from 0.98 to 0.69).
"""

import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

from probes.tag_rules import DOUBT
from tests.tag_runs import many_rows, read_jsonl, run_curate
from tests.worlds import planted
from tests.worlds.planted import (
    CHANCE,
    EASY,
    LEARNABLE,
    MAX_TOKENS,
    NEVER,
    pass_probability,
    recorded_world,
)

ROLLOUTS = 256
TRAINING_SEEDS = (1, 42)
# All parameters, as in the paper, at a scale that suits a model of 200 thousand of them.
RECIPE = """
extends = "baseline"
max_steps = 50
prompts_per_step = 64
updates_per_step = 1
learning_rate = 1e-4
beta = 0.0
max_completion_length = 0
evaluation_temperature = 1.0
rows_per_pass = 512
save_every = 50
"""


def auroc(positive, negative):
    """Probability that a value of the first is above one of the second, ties counted half."""
    above = np.subtract.outer(np.asarray(positive), np.asarray(negative))
    return ((above > 0) + 0.5 * (above == 0)).mean()


def auroc_error(positives, negatives):
    """Standard error of the AUROC of values that know nothing (Mann and Whitney 1947)."""
    return np.sqrt((positives + negatives + 1) / (12 * positives * negatives))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return recorded_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """Where `run` is the tagged run, and `tagged.jsonl` its file."""
    folder = tmp_path_factory.mktemp("planted")
    command = (
        *("tag", world.items, "--model", world.model, "--out", folder / "tagged.jsonl"),
        *("--run-dir", folder / "run", "--instruction", "", "--verifier", "numeric"),
        *("--max-tokens", MAX_TOKENS, "--min-rollouts", ROLLOUTS, "--max-rollouts", ROLLOUTS),
    )
    with many_rows():
        ran = run_curate(*command)
    assert ran.status == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    """The tagged rows; each still has the kind that it was planted as."""
    return read_jsonl(folder / "tagged.jsonl")


@pytest.fixture(scope="module")
def hard(rows):
    """By kind, the rows that are hard and have a similarity."""
    found = [row for row in rows if row["kind"] in (LEARNABLE, CHANCE)]
    measured = [
        row for row in found if row["pass_rate"] < 0.1 and row["gradient_similarity"] is not None
    ]
    assert len(measured) >= 0.95 * len(found)
    return {kind: [r for r in measured if r["kind"] == kind] for kind in (LEARNABLE, CHANCE)}


# --- The world ----------------------------------------------------------------------------------


def test_hard_items_are_matched_and_easy_ones_easy(world):
    """By the policy's exact pass probabilities, and of the items as they are asked."""
    rows = read_jsonl(world.items)
    assert [row["kind"] for row in rows] == world.kinds.tolist()
    assert [(row["prompt"], row["answer"]) for row in rows] == [
        (question.prompt, str(question.gold)) for question in world.questions
    ]
    model = AutoModelForCausalLM.from_pretrained(world.model)
    by_kind = {
        kind: pass_probability(
            model, [q for q, k in zip(world.questions, world.kinds, strict=True) if k == kind]
        )
        for kind in (EASY, LEARNABLE, CHANCE)
    }
    assert {kind: len(each) for kind, each in by_kind.items()} == {
        EASY: 100, LEARNABLE: 80, CHANCE: 80,
    }  # fmt: skip
    assert by_kind[EASY].min() >= 0.2
    pairs = np.log([np.sort(by_kind[LEARNABLE]), np.sort(by_kind[CHANCE])])
    # Sorted, pairs are no further apart than those that were matched.
    assert np.abs(pairs[0] - pairs[1]).max() <= 0.1
    assert 0.02 < np.exp(pairs).min() < np.exp(pairs).max() < 0.065
    # Of a number that the policy was never shown.
    assert min(int(row["answer"]) for row in rows if row["kind"] == NEVER) >= 100


def test_the_recorded_policy_is_of_this_code(world, tmp_path, monkeypatch):
    """And that code still trains: here to ends of its two stages that any policy reaches."""
    assert world.training_steps > 100
    monkeypatch.setattr(planted, "_LEARNED", 0.0)
    monkeypatch.setattr(planted, "_UNLEARNED", 1.0)
    built = planted.build_world(tmp_path / "begun", seed=0)
    assert built.training_steps == 20
    with pytest.raises(RuntimeError, match="write it anew"):
        recorded_world(tmp_path / "other")


# --- The tags -----------------------------------------------------------------------------------


def test_easy_items_and_items_without_a_positive_are_tagged_so(rows):
    tags = {
        kind: Counter(r["trainability"] for r in rows if r["kind"] == kind)
        for kind in (EASY, NEVER)
    }
    assert tags[NEVER]["no_positive"] >= 0.95 * tags[NEVER].total()
    assert tags[EASY]["easy"] >= 0.95 * tags[EASY].total()


def test_pass_rates_do_not_tell_the_hard_kinds_apart(hard):
    rates = {kind: [row["pass_rate"] for row in found] for kind, found in hard.items()}
    error = auroc_error(len(hard[LEARNABLE]), len(hard[CHANCE]))
    assert abs(auroc(rates[LEARNABLE], rates[CHANCE]) - 0.5) <= 4 * error


def test_similarity_tells_the_hard_kinds_apart(hard):
    """0.97 to 0.99 in the three worlds of docs/benchmarks.md, with an error of 0.01."""
    values = {kind: [row["gradient_similarity"] for row in found] for kind, found in hard.items()}
    assert auroc(values[LEARNABLE], values[CHANCE]) >= 0.9


def test_every_tag_of_a_hard_item_gives_its_evidence(hard):
    for row in hard[LEARNABLE] + hard[CHANCE]:
        assert row["gradient_similarity_low"] <= row["gradient_similarity"]
        assert row["lift_low"] <= row["lift"] <= row["lift_high"]
        assert f"lift {row['lift']:.3g}" in row["tag_reason"]
        assert f"expected to reach {row['forecast_pass_rate']:.2f}" in row["tag_reason"]


def test_lift_tells_the_hard_kinds_apart(hard):
    """0.96 with an error of 0.01, on one machine."""
    lifts = {kind: [row["lift"] for row in found] for kind, found in hard.items()}
    assert auroc(lifts[LEARNABLE], lifts[CHANCE]) >= 0.85


# --- After GRPO ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def summary(folder, rows):
    """What `curate confirm` says after the seeds; `rows` are of before it."""
    recipe = folder / "planted.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    seeds = ",".join(map(str, TRAINING_SEEDS))
    run = folder / "run"
    with many_rows():
        trained = run_curate("validate", run, "--recipe", recipe, "--seeds", seeds)
    assert trained.status == 0, trained.stderr
    confirmed = run_curate("confirm", run, "--json")
    assert confirmed.status == 0, confirmed.stderr
    return json.loads(confirmed.stdout)


@pytest.mark.parametrize("seed", TRAINING_SEEDS)
def test_grpo_learns_the_learnable_items_and_not_the_chance_items(folder, rows, summary, seed):
    outcomes = pq.read_table(folder / f"run/validation/planted/{seed}/outcomes.parquet")
    final = outcomes["final_pass_rate"].to_numpy()
    kinds = np.array([row["kind"] for row in rows])
    learned = {kind: (final[kinds == kind] >= 0.1).mean() for kind in set(kinds)}
    assert learned[LEARNABLE] >= 0.8
    assert learned[CHANCE] <= 0.4
    assert learned[EASY] >= 0.95 and learned[NEVER] <= 0.05


def test_items_are_confirmed_as_they_were_planted(folder, rows, summary):
    confirmed = [row["confirmed_trainability"] for row in read_jsonl(folder / "tagged.jsonl")]
    kinds = [row["kind"] for row in rows]
    found = {kind: Counter(c for c, k in zip(confirmed, kinds, strict=True) if k == kind)
             for kind in set(kinds)}  # fmt: skip
    shares = {
        kind: {tag: count / tags.total() for tag, count in tags.items()}
        for kind, tags in found.items()
    }
    assert shares[NEVER]["no_positive"] >= 0.95
    assert shares[EASY]["easy"] >= 0.95
    assert shares[LEARNABLE]["learnable"] >= 0.75
    # By the seeds' agreement a chance item is hardly ever learned, though luck may part them.
    assert shares[CHANCE].get("learnable", 0) <= 0.25
    assert shares[CHANCE]["unlearnable"] >= 0.45


def test_pass_rates_do_not_tell_what_becomes_of_items(summary):
    error = auroc_error(summary["agreement"]["unlearnable"], summary["agreement"]["learnable"])
    assert abs(summary["auroc_pass_rate"] - 0.5) <= 4 * error
    assert summary["too_few"] is None


# --- The forecast -------------------------------------------------------------------------------
# All bounds that depend on it. It is right of an item where what it holds for more probable than
# not comes true. By the sign test, of t items t/2 would come true at random, with a standard error
# of √t / 2. These hard items lie just below τ, so that training decides of most of them by little:
# few are so sure that they get a tag.


def sure_to_be_right(items):
    """How many of so many items are right, if they are better than chance by four errors."""
    return items / 2 + 4 * np.sqrt(items) / 2


def most_wrong(tags):
    """How many of so many tags may be wrong, four errors above what the rule allows."""
    return DOUBT * tags + 4 * np.sqrt(DOUBT * (1 - DOUBT) * tags)


def test_p_unlearnable_tells_the_hard_kinds_apart(hard):
    chances = {kind: [row["p_unlearnable"] for row in found] for kind, found in hard.items()}
    error = auroc_error(len(hard[LEARNABLE]), len(hard[CHANCE]))
    assert auroc(chances[CHANCE], chances[LEARNABLE]) >= 0.5 + 5 * error


def test_more_probable_than_not_tells_the_hard_kinds_apart(hard):
    right = [row["p_unlearnable"] < 0.5 for row in hard[LEARNABLE]]
    right += [row["p_unlearnable"] > 0.5 for row in hard[CHANCE]]
    assert sum(right) >= sure_to_be_right(len(right))


def test_predictions_come_true(folder, summary):
    error = auroc_error(summary["agreement"]["unlearnable"], summary["agreement"]["learnable"])
    assert summary["auroc"] >= 0.5 + 5 * error
    # By more than the interval of the paired difference.
    assert summary["agreement"]["scores"]["pass_rate"]["auroc_difference_low"] > 0
    judged = [
        row
        for row in pq.read_table(folder / "run/validation/confirmed.parquet").to_pylist()
        if row["confirmed_trainability"] in ("learnable", "unlearnable")
    ]
    right = sum(
        (row["p_unlearnable"] > 0.5) == (row["confirmed_trainability"] == "unlearnable")
        for row in judged
    )
    assert right >= sure_to_be_right(len(judged))


def test_tags_are_not_wrong_more_often_than_the_rule_allows(summary):
    confusion = summary["confusion"]
    right = confusion["learnable"]["learnable"] + confusion["unlearnable"]["unlearnable"]
    wrong = confusion["learnable"]["unlearnable"] + confusion["unlearnable"]["learnable"]
    assert wrong <= most_wrong(right + wrong)
