"""Every rule from evidence to tag, and the reason it gives."""

import math
from dataclasses import replace

import pytest

from curate.tags import Trainability
from probes import tag_rules as prediction
from probes.statistics.pass_rates import pass_rate_interval
from probes.tag_rules import (
    DOUBT,
    BuiltInProbability,
    Evidence,
    LearnedProbability,
    Prediction,
    tag_of,
)


def predict(evidence, p=None, **more) -> Prediction:
    return prediction.predict(evidence, BuiltInProbability(p), **more)


def passing(c, n, **rest):
    low, high = pass_rate_interval(c, n)
    return Evidence(n, c, low, high, **rest)


def hard(**rest):
    evidence = passing(
        2, 100,
        lift=1.2, lift_low=0.9, lift_high=1.5, from_others=1.0,
        forecast=0.41, forecast_low=0.22, forecast_high=0.63,
    )  # fmt: skip
    return replace(evidence, **rest)


def test_nothing_judged_is_undetermined():
    for p in (None, 0.99):
        said = predict(Evidence(0, 0), p)
        assert said.trainability is Trainability.UNDETERMINED
        assert said.p_unlearnable is None
        assert said.tag_reason == "no judged rollouts"
    said = predict(Evidence(0, 0, math.nan, math.nan, unjudged_rollouts=5))
    assert said.tag_reason == "no judged rollouts; 5 more rollouts could not be judged"


def test_easy_and_no_doubt():
    # What the forecast says of an easy item is no matter of its tag.
    said = predict(passing(16, 32), 0.999)
    assert said.trainability is Trainability.EASY
    assert said.p_unlearnable is None
    assert said.tag_reason == "pass rate 0.5 (16 of 32 rollouts) is at least 0.1"


def test_easy_says_when_the_interval_contains_tau():
    said = predict(passing(4, 32))
    assert said.trainability is Trainability.EASY
    assert "though its 95% interval 0.0351 to 0.29 contains 0.1" in said.tag_reason


@pytest.mark.parametrize("n", [10, 20, 30, 70, 1000])
def test_a_pass_rate_of_exactly_tau_is_easy(n):
    assert predict(passing(n // 10, n)).trainability is Trainability.EASY
    assert predict(passing(n // 10 - 1, n)).trainability is not Trainability.EASY


def test_tau_is_the_callers():
    assert predict(passing(4, 32), tau=0.2).trainability is not Trainability.EASY
    for tau in (0.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="tau"):
            predict(passing(4, 32), tau=tau)


def test_no_positive_gives_the_upper_bound_and_the_forecast():
    said = predict(passing(0, 32))
    assert said.trainability is Trainability.NO_POSITIVE
    assert said.p_unlearnable is None
    assert said.tag_reason == (
        "0 of 32 rollouts correct; the true pass rate could still be up to 0.109"
    )
    assert predict(Evidence(32, 0)).tag_reason == "0 of 32 rollouts correct"
    evidence = passing(0, 32, forecast=0.05, forecast_low=0.0, forecast_high=0.2)
    said = predict(evidence, 0.83)
    assert said.trainability is Trainability.NO_POSITIVE
    assert said.p_unlearnable == 0.83
    assert said.tag_reason.endswith(
        "; expected to reach 0.05 (0.00 to 0.20) all the same, p_unlearnable 0.83"
    )


def test_learnable():
    said = predict(hard(), 0.02)
    assert said.trainability is Trainability.LEARNABLE
    assert said.p_unlearnable == 0.02
    assert said.tag_reason == (
        "expected to reach 0.41 (0.22 to 0.63): rarely right now, but what the others teach "
        "carries over (lift 1.2, 0.9 to 1.5); pass rate 0.02 (2 of 100 rollouts) is below 0.1"
    )


def test_unlearnable():
    evidence = hard(
        lift=-0.5, lift_low=-0.9, lift_high=-0.1, forecast=0.01, forecast_low=0, forecast_high=0.03
    )
    said = predict(evidence, 0.97)
    assert said.trainability is Trainability.UNLEARNABLE
    assert said.tag_reason.startswith(
        "expected to reach 0.01 (0.00 to 0.03), p_unlearnable 0.97: what training teaches pulls it "
        "down (lift -0.5, -0.9 to -0.1); pass rate"
    )


def test_a_forecast_on_either_side_is_undetermined():
    said = predict(hard(lift_low=-0.2), 0.5)
    assert said.trainability is Trainability.UNDETERMINED
    assert said.tag_reason.startswith(
        "expected to reach 0.41 (0.22 to 0.63), on either side of 0.1, p_unlearnable 0.5: whether "
        "training moves it cannot be told (lift 1.2, -0.2 to 1.5); pass rate"
    )


@pytest.mark.parametrize(
    ("rest", "text"),
    [
        ({"from_others": 0.7}, "what the others teach carries over (lift"),
        ({"from_others": 0.5}, "its own rewards lift it (lift"),
        ({"from_others": None}, "training moves it up (lift"),
        ({"lift_low": -0.1}, "whether training moves it cannot be told (lift"),
        ({"lift_low": None, "lift": math.nan}, "no lift was measured, so it is taken to be moved"),
    ],
)
def test_the_reason_says_what_moves_the_item(rest, text):
    for p in (0.01, 0.5, 0.99):
        assert text in predict(hard(**rest), p).tag_reason


def test_the_doubt_decides_and_is_the_callers():
    assert tag_of(DOUBT) is Trainability.LEARNABLE
    assert tag_of(1 - DOUBT) is Trainability.UNLEARNABLE
    for p in (DOUBT + 1e-9, 0.5, 1 - DOUBT - 1e-9):
        assert tag_of(p) is predict(hard(), p).trainability is Trainability.UNDETERMINED
    assert predict(hard(), 0.05, doubt=0.05).trainability is Trainability.LEARNABLE
    assert predict(hard(), 0.05, doubt=0.04).trainability is Trainability.UNDETERMINED


def test_an_item_without_a_forecast_is_undetermined():
    unknown = {"forecast": math.nan, "forecast_low": math.nan, "forecast_high": math.nan}
    said = predict(hard(**unknown))
    assert said.trainability is Trainability.UNDETERMINED
    assert said.p_unlearnable is None
    assert said.tag_reason.startswith("there is no forecast; pass rate")


def test_a_predictor_speaks_instead():
    for p, tag, text in (
        (0.01, Trainability.LEARNABLE, "of 0.01 to be unlearnable, at most 0.1; pass rate"),
        (0.95, Trainability.UNLEARNABLE, "of 0.95 to be unlearnable, at least 0.9; pass rate"),
        (0.4, Trainability.UNDETERMINED, "which does not decide (learnable up to 0.1, unlearn"),
    ):
        said = prediction.predict(hard(), LearnedProbability(p, "predictor p.json"))
        assert (said.trainability, said.p_unlearnable) == (tag, p)
        assert said.tag_reason.startswith("predictor p.json gives a probability")
        assert text in said.tag_reason


def test_hard_says_when_the_interval_contains_tau():
    low, high = pass_rate_interval(2, 32)
    evidence = hard(total_rollouts=32, pass_rate_low=low, pass_rate_high=high)
    reason = predict(evidence, 0.01).tag_reason
    assert "is below 0.1, though its 95% interval 0.00766 to 0.208 contains 0.1" in reason


def test_unjudged_rollouts_are_mentioned_with_every_tag():
    for evidence in (passing(16, 32), passing(0, 32), hard()):
        for p in (0.01, 0.5, 0.99):
            reason = predict(replace(evidence, unjudged_rollouts=1), p).tag_reason
            assert reason.endswith("; 1 more rollout could not be judged")


def test_evidence_refuses_impossible_counts():
    for n, c in ((4, 5), (4, -1), (-1, 0)):
        with pytest.raises(ValueError, match="impossible"):
            Evidence(n, c)


def test_evidence_is_read_from_the_rows_of_the_tables():
    rate = {
        "total_rollouts": 64, "total_correct_rollouts": 3, "pass_rate_low": 0.01,
        "pass_rate_high": 0.13, "unjudged_rollouts": 2, "truncated_rollouts": 7,
    }  # fmt: skip
    lifted = {"lift": 1.0, "lift_low": 0.5, "lift_high": 1.5, "from_others": None}
    forecast = {"forecast_pass_rate": 0.3, "forecast_low": 0.1, "forecast_high": 0.6}
    assert Evidence.from_rows(rate, lifted, forecast) == Evidence(
        64, 3, 0.01, 0.13, 2, 1.0, 0.5, 1.5, None, 0.3, 0.1, 0.6, truncated_rollouts=7
    )


def test_an_item_whose_rollouts_were_cut_says_that_little_was_measured() -> None:
    expected = {"forecast": 0.2, "forecast_low": 0.1, "forecast_high": 0.3}
    given = passing(0, 8, truncated_rollouts=5, **expected)
    said = predict(given, 0.6)
    assert said.trainability is Trainability.NO_POSITIVE and said.p_unlearnable is None
    assert said.tag_reason == (
        "0 of 8 rollouts correct; the true pass rate could still be up to 0.369; most rollouts "
        "were cut at the limit of tokens, so little was measured and nothing is forecast"
    )
    # Half of them is not most, nor are five of ten that were drawn; and one right is a count.
    for other in (
        replace(given, truncated_rollouts=4),
        replace(given, unjudged_rollouts=2),
        replace(given, total_correct_rollouts=1),
    ):
        assert not other.mostly_cut
    half = predict(replace(given, truncated_rollouts=4), 0.6)
    assert half.p_unlearnable == 0.6 and "cut" not in half.tag_reason
