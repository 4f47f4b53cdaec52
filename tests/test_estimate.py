"""What a run is said to cost, against what is reckoned by hand and against simulated runs."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from probes.estimate import (
    DAY,
    GOLD_TOKEN,
    Prices,
    Sample,
    Span,
    Work,
    estimate,
    exactly,
    fit_rates,
    product,
    smaller_plans,
    total,
)
from probes.estimate_words import about, basis, count, estimate_lines, size
from probes.statistics.plan import Plan, next_round, rollouts_to_come

ONE_ROUND = Plan(min_rollouts=8, max_rollouts=8)


def _work(items: int = 100, plan: Plan = ONE_ROUND, **more: Any) -> Work:
    values: dict[str, Any] = {
        **{"items": items, "prompt_tokens": 50.0, "max_tokens": 100, "plan": plan},
        **{"gradient_rollouts": 16, "gradient_wrong_rollouts": 4, "gradient_dim": 256},
        "gold_prefixes": 8,
    }
    return Work(**values | more)


def _sample(lengths: Any = (20,) * 32, prompts: int = 4, **more: Any) -> Sample:
    lengths = np.asarray(lengths)
    values: dict[str, Any] = {
        "prompt_of": np.arange(len(lengths)) % prompts, "is_cut": np.zeros(len(lengths), bool),
    }  # fmt: skip
    return Sample(prompts, lengths, **values | more)


PRICES = Prices(exactly(1e-3), 1e-4, exactly(2e-3), ready=5.0, memory_bytes=10**9)


# --- Lengths -------------------------------------------------------------------------------------


def test_the_length_of_finished_rollouts_is_their_mean() -> None:
    length = _sample([10, 20, 30, 40] * 8, prompts=4).length(100)
    assert length.middle == pytest.approx(25)
    # Prompts differ by 12.9, and there are four of them.
    assert length.high - length.middle == pytest.approx(12.9 / 2 * 2.353, rel=0.01)


def test_a_lower_limit_cuts_the_lengths() -> None:
    assert _sample([10, 30, 50, 70] * 8, prompts=1).length(40).middle == pytest.approx(30)


def test_rollouts_in_the_making_count_as_far_as_they_are() -> None:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(1 / 60, 4000), 100)
    started = rng.integers(0, 60, 4000)  # Of 60 steps, the ones before a rollout began.
    so_far = 60 - started
    done = lengths <= so_far
    seen = _sample(lengths[done], prompts=4, unfinished=so_far[~done])
    assert lengths[done].mean() < 0.5 * lengths.mean()  # The short ones finish first.
    assert seen.length(100).middle == pytest.approx(lengths.mean(), rel=0.06)

    assert seen.cut_share(100) == pytest.approx((lengths == 100).mean(), abs=0.04)
    assert seen.cut_share(50) == pytest.approx((lengths > 50).mean(), abs=0.04)


def test_where_all_were_cut_nothing_is_differentiated() -> None:
    sample = _sample([100] * 8, is_cut=np.ones(8, bool))
    assert sample.length(100).middle == 100 and sample.cut_share(100) == 1
    cost = estimate(_work(), sample, PRICES)
    # What is cut is wrong, and so there is nothing to differentiate and no gold to score.
    assert cost.seconds["sampling"].middle == pytest.approx(80)
    assert cost.seconds["gradients"].middle < 1 and cost.seconds["gold"].middle < 5.1


def test_at_most_is_no_less_than_the_range_beside_it() -> None:
    prices = Prices(Span(1e-3, 2e-3, 4e-3), 1e-4, Span(1e-3, 2e-3, 4e-3), memory_bytes=10**9)
    plan = Plan(min_rollouts=32, max_rollouts=64, tau=0.1)
    cost = estimate(_work(plan=plan), _sample([10, 90] * 16), prices)
    assert cost.most_seconds >= cost.whole.high > 1.5 * cost.whole.middle


def test_where_none_is_finished_lengths_and_cuts_are_unknown() -> None:
    sample = _sample([], prompts=0, unfinished=[7, 9])
    assert sample.length(100) == (8, 100, 100) and sample.cut_share(100) == 0
    work, prices = _work(), replace(PRICES, gradient_token=None)
    cost = estimate(work, sample, prices)
    low, middle, high = cost.seconds["sampling"]
    assert middle == high == pytest.approx(80) and low == pytest.approx(80 * 8 / 100)
    # Nothing says that all would be cut, so that gradients come on top.
    assert cost.seconds["gradients"].middle > 10
    lines = "\n".join(estimate_lines(work, sample, prices, cost, ()))
    assert "100 (8 to 100) a rollout, were all as long as --max-tokens 100: none was fin" in lines
    assert "% cut" not in lines and ", gradients " in lines
    told = basis(sample, 16, 60.0, prices)
    assert told.startswith("from 2 rollouts in the making, of which none was finished (16 tokens")
    assert "gradients not measured" in told
    # Whether that is long nobody knows, so what would make it smaller is told.
    slow = replace(prices, token=exactly(0.4))
    cost = estimate(work, sample, slow)
    assert cost.whole.middle < DAY < cost.whole.high
    told = "\n".join(estimate_lines(work, sample, slow, cost, smaller_plans(work, sample, slow)))
    assert "maybe more than a day; smaller plans" in told
    assert "maybe more completions are cut" in told and "in an hour" in told


def test_where_all_are_cut_any_counts_still_have_a_posterior() -> None:
    prior = fit_rates([], [], cut_share=1.0)
    with np.errstate(all="raise", under="ignore"):
        posterior = prior.posterior([128, 1024, 8], [60, 1024, 8])
    assert posterior.sum(axis=1) == pytest.approx(1)
    assert (posterior @ prior.rates)[1] > 0.9
    in_rounds = _work(plan=Plan(min_rollouts=32, max_rollouts=1024))
    low, middle, high = estimate(in_rounds, _sample([], unfinished=[7]), PRICES).rollouts
    assert 3200 <= low <= middle <= high <= 100 * 1024


# --- Costs ---------------------------------------------------------------------------------------


def test_one_round_costs_what_is_reckoned_by_hand() -> None:
    cost = estimate(_work(), _sample(judged=[8] * 4, correct=[8] * 4), PRICES)
    assert cost.rollouts == exactly(800) and cost.round_one == cost.most_rollouts == 800
    assert cost.tokens.middle == pytest.approx(800 * 20)
    seconds = {name: span.middle for name, span in cost.seconds.items()}
    assert seconds["start"] == 5 and seconds["verifying"] == pytest.approx(0.08)
    assert seconds["sampling"] == pytest.approx(16)
    assert seconds["gold"] == pytest.approx(100 * (50 + 8 * 20) * 2e-3 * GOLD_TOKEN)
    # Of four items that are always right and four that the paper's mixtures stand for.
    most = 100 * 8 * 70 * 2e-3
    assert 0.5 * most < seconds["gradients"] < 0.9 * most
    assert cost.whole.middle == pytest.approx(sum(seconds.values()))
    assert cost.memory_bytes == 10**9 + 300_000


def test_a_gradient_that_was_not_measured_has_a_wide_range() -> None:
    sample = _sample(judged=[8] * 4, correct=[8] * 4)
    measured = estimate(_work(), sample, replace(PRICES, gradient_token=exactly(1e-3)))
    derived = estimate(_work(), sample, replace(PRICES, gradient_token=None))
    assert derived.seconds["gradients"].middle == pytest.approx(
        measured.seconds["gradients"].middle
    )
    assert derived.seconds["gradients"].high > 1.9 * derived.seconds["gradients"].middle
    assert measured.seconds["gradients"].high < 1.9 * measured.seconds["gradients"].middle


def test_equal_rollouts_are_differentiated_once_and_targets_come_on_top() -> None:
    sample = _sample(judged=[8] * 4, correct=[8] * 4)
    half = estimate(_work(), replace(sample, distinct=0.5), PRICES)
    whole = estimate(_work(), sample, PRICES)
    assert half.seconds["gradients"].middle == pytest.approx(whole.seconds["gradients"].middle / 2)
    target = estimate(_work(target_items=50), sample, PRICES)
    assert target.round_one == 1200
    assert target.seconds["gradients"].middle == pytest.approx(
        1.5 * whole.seconds["gradients"].middle
    )
    assert target.seconds["gold"] == whole.seconds["gold"]


def test_a_budget_caps_the_rollouts() -> None:
    plan = Plan(min_rollouts=8, max_rollouts=512, rollout_budget=2000)
    cost = estimate(_work(plan=plan), _sample(), PRICES)
    assert cost.rollouts.high == cost.most_rollouts == 2000 and cost.rollouts.low >= 800


def test_rollouts_of_all_rounds_are_those_of_a_simulated_run() -> None:
    plan, rng = Plan(min_rollouts=16, max_rollouts=256), np.random.default_rng(1)
    rates = np.concatenate([np.zeros(300), rng.beta(1, 40, 300), rng.uniform(0.1, 1, 600)])
    drawn = {}
    for decided in (True, False):
        n = np.zeros(len(rates), np.int64)
        c = n.copy()
        while (extra := next_round(plan, n, c, np.full(len(n), decided))).any():
            c += rng.binomial(extra, rates)
            n += extra
        drawn[decided] = float(n.mean())
    first = rng.binomial(16, rates)
    prior = fit_rates(np.full(len(rates), 16), first)
    for decided, mean in drawn.items():
        to_come = rollouts_to_come(plan, prior, decided=decided)
        assert [len(each) for each in to_come] == [17, 33, 65, 129, 257]
        assert 16 + to_come[0][first].mean() == pytest.approx(mean, rel=0.1)
    sample = _sample(np.full(1200, 20), prompts=1200, judged=np.full(1200, 16), correct=first)
    found = estimate(_work(items=1200, plan=plan), sample, PRICES).rollouts
    assert found.low < 1200 * drawn[True] * 1.05 and found.high > 1200 * drawn[False] * 0.95
    assert 1200 * drawn[True] < found.middle < 1200 * drawn[False]


def test_without_a_sample_the_papers_mixtures_are_taken() -> None:
    plan = Plan()
    prior = fit_rates([], [])
    assert prior.weights.sum() == pytest.approx(1)
    assert prior.weights[prior.rates >= 0.1].sum() == pytest.approx(0.5, abs=0.01)
    first = binom.pmf(np.arange(33), 32, prior.rates[:, None])
    drawn = 32 + prior.weights @ first @ rollouts_to_come(plan, prior, decided=True)[0]
    # docs/benchmarks.md: 26 to 32 % of 1,024 where forecasts decide.
    assert 0.24 * 1024 < drawn < 0.34 * 1024
    found = estimate(_work(items=1000, plan=plan), _sample(), PRICES).rollouts
    assert found.low < 1000 * drawn < found.middle < found.high <= 1000 * 1024


def test_what_the_sample_shows_moves_the_estimate() -> None:
    plan = Plan(min_rollouts=32, max_rollouts=1024)

    def rollouts(correct: int) -> float:
        sample = _sample(prompts=16, judged=[32] * 16, correct=[correct] * 16)
        return estimate(_work(items=1000, plan=plan), sample, PRICES).rollouts.middle

    assert rollouts(32) < rollouts(8) < rollouts(0) and rollouts(0) > 3 * rollouts(32)


def test_spans_add_and_multiply() -> None:
    wide, exact = Span(5, 10, 20), exactly(3)
    assert product(wide, exact) == pytest.approx(Span(15, 30, 60))
    assert product(wide, wide).high == pytest.approx(100 * 2 ** math.sqrt(2))
    assert product(wide, exactly(0)) == exactly(0)
    assert total([wide, exact]) == Span(8, 13, 23)


# --- Smaller plans, and words --------------------------------------------------------------------


def test_smaller_plans_are_dearest_first_and_each_is_smaller() -> None:
    plan = Plan(min_rollouts=32, max_rollouts=1024)
    work = _work(items=17_000, plan=plan, max_tokens=1024)
    sample = _sample(np.arange(100, 900, 10), judged=[20] * 4, correct=[0, 2, 5, 20])
    now = estimate(work, sample, PRICES)
    assert now.is_long
    found = smaller_plans(work, sample, PRICES)
    hours = [each.estimate.whole.middle for each in found]
    assert hours == sorted(hours, reverse=True) and hours[0] < 0.9 * now.whole.middle
    options = [each.options for each in found]
    for one in ("--max-rollouts 256", "--max-rollouts 32", "--max-tokens 512"):
        assert one in options
    assert "--rollout-budget 1740800" in options
    (limit,) = (each for each in found if each.options.startswith("--limit"))
    assert 0.8 * DAY < limit.estimate.whole.middle <= 1.01 * DAY
    lines = estimate_lines(work, sample, PRICES, now, found)
    told = "\n".join(lines)
    assert "more than a day; smaller plans" in told
    assert all(f"{each.options} " in told for each in found)
    assert all(about(each.estimate.whole.middle) in told for each in found)


def test_a_short_run_is_told_without_other_plans() -> None:
    work, sample = _work(), _sample()
    cost = estimate(work, sample, PRICES)
    assert not cost.is_long
    lines = estimate_lines(work, sample, PRICES, cost, smaller_plans(work, sample, PRICES))
    assert [line.split()[0] for line in lines] == ["rollouts", "tokens", "time", "disk", "memory"]
    assert "800, in one round" in lines[0] and "20 a rollout" in lines[1]


def test_it_says_what_it_comes_from() -> None:
    sample = _sample(unfinished=[3, 4])
    assert basis(sample, 647, 3.2, PRICES, 5) == (
        "from 32 rollouts of 4 prompts and 2 in the making (647 tokens in 3.2 s); gradients from "
        "5 rollouts"
    )
    assert "gradients not measured" in basis(
        sample, 647, 3.2, replace(PRICES, gradient_token=None), 0
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "3 s"), (89, "89 s"), (150, "2.5 min"), (5000, "83 min"), (19_000, "5.3 h"),
     (170_000, "47 h"), (10 * 86_400, "10 days")],
)  # fmt: skip
def test_times_are_rounded(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_numbers_are_rounded() -> None:
    assert [count(each) for each in (7, 84, 1234, 56_789)] == ["7", "84", "1,200", "57,000"]
    assert [count(each) for each in (7_600_000, 3.44e9)] == ["7.6 million", "3.4 billion"]
    assert [size(each) for each in (12_000, 4.5e7, 2.2e9)] == ["12 kB", "45 MB", "2.2 GB"]
