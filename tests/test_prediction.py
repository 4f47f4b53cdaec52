"""Every rule from evidence to tag, and the reason it gives."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from curate.tags import Trainability
from probes import prediction
from probes.pass_rates import pass_rate_interval
from probes.prediction import BuiltInProbability, Evidence, LearnedProbability, Prediction
from probes.similarity_threshold import (
    HardEvidence,
    SimilarityThreshold,
    given_threshold,
    p_unlearnable,
    similarity_threshold,
)

THRESHOLD = given_threshold(0.1)
AUTOMATIC = similarity_threshold([0.3] * 12)


def probability(evidence, threshold, tau=0.1):
    """What the similarity of one item says."""
    one = HardEvidence(
        np.array([evidence.total_correct_rollouts]),
        np.array([evidence.total_rollouts]),
        *(
            np.array([math.nan if value is None else value])
            for value in (
                evidence.similarity, evidence.standard_error, evidence.degrees_of_freedom
            )
        ),
    )  # fmt: skip
    n, c = evidence.total_rollouts, evidence.total_correct_rollouts
    found = p_unlearnable(one, np.array([0 < c < tau * n]), threshold, tau).p_unlearnable[0]
    return None if math.isnan(found) else float(found)


def predict(evidence, threshold, **more) -> Prediction:
    p = probability(evidence, threshold, more.get("tau", 0.1))
    return prediction.predict(evidence, threshold, BuiltInProbability(p), **more)


def passing(c, n, **rest):
    low, high = pass_rate_interval(c, n)
    return Evidence(n, c, low, high, **rest)


def hard(similarity=0.1, half_width=0.05, **rest):
    evidence = passing(
        2,
        100,
        rollouts_used=2,
        similarity=similarity,
        standard_error=half_width / 2,
        degrees_of_freedom=40.0,
        low=similarity - half_width,
        high=similarity + half_width,
        reliability=0.31,
    )
    return replace(evidence, **rest)


def test_nothing_judged_is_undetermined():
    prediction = predict(Evidence(0, 0), THRESHOLD)
    assert prediction.trainability is Trainability.UNDETERMINED
    assert prediction.p_unlearnable is None
    assert prediction.tag_reason == "no judged rollouts"
    prediction = predict(Evidence(0, 0, math.nan, math.nan, unjudged_rollouts=5), THRESHOLD)
    assert prediction.tag_reason == "no judged rollouts; 5 more rollouts could not be judged"


def test_easy_and_no_doubt():
    prediction = predict(passing(16, 32), THRESHOLD)
    assert prediction.trainability is Trainability.EASY
    assert prediction.p_unlearnable is None
    assert prediction.tag_reason == "pass rate 0.5 (16 of 32 rollouts) is at least 0.1"


def test_easy_says_when_the_interval_contains_tau():
    prediction = predict(passing(4, 32), THRESHOLD)
    assert prediction.trainability is Trainability.EASY
    assert "though its 95% interval 0.0351 to 0.29 contains 0.1" in prediction.tag_reason


@pytest.mark.parametrize("n", [10, 20, 30, 70, 1000])
def test_a_pass_rate_of_exactly_tau_is_easy(n):
    assert predict(passing(n // 10, n), THRESHOLD).trainability is Trainability.EASY
    below = predict(passing(n // 10 - 1, n), THRESHOLD).trainability
    assert below is not Trainability.EASY


def test_tau_is_the_callers():
    assert predict(passing(4, 32), THRESHOLD, tau=0.2).trainability is not Trainability.EASY
    for tau in (0.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="tau"):
            predict(passing(4, 32), THRESHOLD, tau=tau)


def test_no_positive_gives_the_upper_bound():
    prediction = predict(passing(0, 32), THRESHOLD)
    assert prediction.trainability is Trainability.NO_POSITIVE
    assert prediction.p_unlearnable is None
    assert prediction.tag_reason == (
        "0 of 32 rollouts correct; the true pass rate could still be up to 0.109"
    )
    assert predict(Evidence(32, 0), THRESHOLD).tag_reason == "0 of 32 rollouts correct"


def test_learnable():
    prediction = predict(hard(0.2), THRESHOLD)
    assert prediction.trainability is Trainability.LEARNABLE
    assert prediction.p_unlearnable < 0.025
    assert prediction.tag_reason == (
        "gradient similarity 0.2 (95% interval 0.15 to 0.25, 2 rollouts) is above the threshold "
        "0.1 (as given); pass rate 0.02 (2 of 100 rollouts) is "
        "below 0.1"
    )


def test_unlearnable():
    prediction = predict(hard(0.01, rollouts_used=1), THRESHOLD)
    assert prediction.trainability is Trainability.UNLEARNABLE
    assert prediction.p_unlearnable > 0.975
    assert "0.01 (95% interval -0.04 to 0.06, 1 rollout) is below the threshold 0.1" in (
        prediction.tag_reason
    )


def test_straddling_is_undetermined_with_reliability_and_remedy():
    prediction = predict(hard(0.12), THRESHOLD)
    assert prediction.trainability is Trainability.UNDETERMINED
    assert 0.025 < prediction.p_unlearnable < 0.5
    assert "does not decide about the threshold 0.1" in prediction.tag_reason
    assert "reliability 0.31: more correct rollouts are needed" in prediction.tag_reason
    without = predict(hard(0.12, reliability=math.nan), THRESHOLD)
    assert "reliability" not in without.tag_reason


def test_doubt_is_the_callers():
    evidence = hard(0.16)
    p = predict(evidence, THRESHOLD).p_unlearnable
    assert 0.001 < p < 0.025
    assert predict(evidence, THRESHOLD, doubt=p).trainability is Trainability.LEARNABLE
    assert predict(evidence, THRESHOLD, doubt=p / 2).trainability is Trainability.UNDETERMINED


def arrays(similarity, correct, judged, error=0.05, freedom=40.0):
    size = len(similarity)
    return HardEvidence(
        np.full(size, correct),
        np.full(size, judged),
        np.array(similarity),
        np.where(np.isnan(similarity), math.nan, error),
        np.where(np.isnan(similarity), math.nan, freedom),
    )


def test_without_a_similarity_the_other_hard_items_speak():
    evidence = arrays([0.0, 0.05, 0.1, 0.15, 0.3, math.nan, math.nan], 2, 100)
    is_hard = np.array([True] * 6 + [False])
    for threshold in (THRESHOLD, AUTOMATIC):
        found = p_unlearnable(evidence, is_hard, threshold, 0.1)
        assert found.others == 5
        # Its pass rate is theirs, so it is one of them.
        assert found.p_unlearnable[5] == pytest.approx(found.p_unlearnable[:5].mean())
        assert math.isnan(found.p_unlearnable[6])
    single = hard(math.nan, total_correct_rollouts=1, rollouts_used=1, low=None, high=None)
    said = prediction.predict(single, THRESHOLD, BuiltInProbability(0.999, 5))
    assert said.trainability is Trainability.UNDETERMINED
    assert said.p_unlearnable == 0.999
    assert "p_unlearnable 0.999 is what its pass rate and the similarities of 5 other hard" in (
        said.tag_reason
    )


def test_others_speak_at_the_pass_rate_of_the_item():
    evidence = arrays([0.0, 0.05, 0.1, 0.15, 0.3, math.nan, math.nan], 2, 100)
    evidence.judged[5:] = 25, 1000
    p = p_unlearnable(evidence, np.full(7, True), AUTOMATIC, 0.1).p_unlearnable
    assert p[5] < p[:5].mean() < p[6]


def test_others_need_a_threshold_and_items():
    few, unknown = arrays([0.0, 0.1, 0.2, 0.3, math.nan], 2, 100), similarity_threshold([])
    assert math.isnan(p_unlearnable(few, np.full(5, True), THRESHOLD, 0.1).p_unlearnable[4])
    enough = arrays([0.0, 0.1, 0.2, 0.3, 0.3, math.nan], 2, 100)
    assert p_unlearnable(enough, np.full(6, True), THRESHOLD, 0.1).p_unlearnable[5] > 0
    assert np.isnan(p_unlearnable(enough, np.full(6, True), unknown, 0.1).p_unlearnable).all()


def test_what_is_needed_rises_as_the_pass_rate_falls():
    # At τ nothing is needed; a lift of 3 in log odds asks for the similarity of the easy items.
    far = 1 / (1 + math.exp(3 + math.log(9)))
    needed = AUTOMATIC.at(np.array([0.1, far]), 0.1)
    assert needed == pytest.approx([0.0, 0.3])
    for similarity in (0.02, 0.1, 0.2):
        rare, common = (
            predict(hard(similarity, total_rollouts=n), AUTOMATIC).p_unlearnable for n in (400, 40)
        )
        assert common < rare


def test_p_unlearnable_integrates_over_similarity_and_pass_rate():
    evidence = hard(0.1, half_width=0.08)
    generator = np.random.default_rng(0)
    rate = generator.beta(2.5, 98.5, 400_000)
    similarity = 0.1 + 0.04 * generator.standard_t(40, 400_000)
    share = (similarity < 0.3 * (math.log(0.1 / 0.9) - np.log(rate / (1 - rate))) / 3).mean()
    assert predict(evidence, AUTOMATIC).p_unlearnable == pytest.approx(share, abs=0.004)


def test_the_reason_tells_what_the_pass_rate_asks_for():
    reason = predict(hard(0.6), AUTOMATIC).tag_reason
    assert (
        "is above the 0.169 that its pass rate asks for (12 easy items have a median of 0.3)"
        in (reason)
    )


def test_facts_of_a_threshold_are_read_back():
    for threshold in (THRESHOLD, AUTOMATIC, similarity_threshold([])):
        assert SimilarityThreshold.from_facts(threshold.facts(0.1)) == threshold
    older = {"value": 0.1, "source": "a third of the median 0.3 of 12 easy items"}
    assert SimilarityThreshold.from_facts(older).fixed == 0.1


def test_a_predictor_speaks_instead():
    learned = LearnedProbability(0.01, "predictor p.json")
    said = prediction.predict(hard(0.0), THRESHOLD, learned)
    assert said.trainability is Trainability.LEARNABLE
    assert said.p_unlearnable == 0.01


def test_hard_says_when_the_interval_contains_tau():
    low, high = pass_rate_interval(2, 32)
    evidence = hard(0.2, total_rollouts=32, pass_rate_low=low, pass_rate_high=high)
    reason = predict(evidence, THRESHOLD).tag_reason
    assert "is below 0.1, though its 95% interval 0.00766 to 0.208 contains 0.1" in reason


def test_p_unlearnable_is_the_t_probability():
    at_threshold = predict(hard(0.1), THRESHOLD)
    assert at_threshold.p_unlearnable == pytest.approx(0.5)
    many = hard(0.12, standard_error=0.02, degrees_of_freedom=1e7)
    assert predict(many, THRESHOLD).p_unlearnable == pytest.approx(norm.cdf(-1), abs=1e-6)
    few = hard(0.12, standard_error=0.02, degrees_of_freedom=1.0)
    assert predict(few, THRESHOLD).p_unlearnable == pytest.approx(0.25)  # Cauchy at −1
    exact = hard(0.12, half_width=0.0)
    assert predict(exact, THRESHOLD).p_unlearnable == 0.0
    assert predict(exact, given_threshold(0.13)).p_unlearnable == 1.0


def test_no_gradient():
    for unknown in (None, math.nan):
        prediction = predict(passing(2, 100, similarity=unknown), THRESHOLD)
        assert prediction.trainability is Trainability.UNDETERMINED
        assert prediction.p_unlearnable is None
        assert prediction.tag_reason.startswith("no gradient similarity was measured; pass rate")


def test_no_interval():
    prediction = predict(hard(0.2, standard_error=math.nan, low=math.nan), THRESHOLD)
    assert prediction.trainability is Trainability.UNDETERMINED
    assert prediction.p_unlearnable is None
    assert "has no interval" in prediction.tag_reason


def test_no_threshold():
    threshold = similarity_threshold([0.2, 0.3, math.nan])
    prediction = predict(hard(0.2), threshold)
    assert prediction.trainability is Trainability.UNDETERMINED
    assert prediction.p_unlearnable is None
    assert prediction.tag_reason.startswith(threshold.source)
    # Easy and no_positive do not need one.
    assert predict(passing(16, 32), threshold).trainability is Trainability.EASY
    assert predict(passing(0, 32), threshold).trainability is Trainability.NO_POSITIVE


def test_unjudged_rollouts_are_mentioned_with_every_tag():
    for evidence in (passing(16, 32), passing(0, 32), hard(0.2), hard(0.1)):
        reason = predict(replace(evidence, unjudged_rollouts=1), THRESHOLD).tag_reason
        assert reason.endswith("; 1 more rollout could not be judged")


def test_evidence_refuses_impossible_counts():
    for n, c in ((4, 5), (4, -1), (-1, 0)):
        with pytest.raises(ValueError, match="impossible"):
            Evidence(n, c)


def test_the_threshold_goes_by_the_median_of_the_easy_items():
    threshold = similarity_threshold([0.1, 0.5, 0.3, math.nan, 0.2, 0.4])
    assert threshold == SimilarityThreshold(None, 0.3, "5 easy items have a median of 0.3")
    assert threshold.facts(0.1)["value"] == pytest.approx(0.3 * math.log(19 / 9) / 3)


@pytest.mark.parametrize(
    ("similarities", "text"),
    [([], "only 0 easy items have"), ([0.3], "only 1 easy item has"), ([0.3] * 4, "only 4")],
)
def test_threshold_needs_five_easy_items(similarities, text):
    threshold = similarity_threshold(similarities)
    assert not threshold.is_known
    assert text in threshold.source
    assert "--similarity-threshold" in threshold.source and "easy items" in threshold.source


def test_threshold_needs_a_median_that_is_not_noise():
    scattered = similarity_threshold([0.02, -0.01, 0.03, -0.02, 0.01, 0.02, -0.03, 0.01])
    assert not scattered.is_known
    assert "median 0.01, 5 above 0" in scattered.source
    assert "cannot be told from 0" in scattered.source
    negative = similarity_threshold([-0.1, -0.2, -0.3, -0.2, -0.1, -0.2])
    assert not negative.is_known
    # The sign test at 5 %: 7 of 8 suffice, 6 of 8 do not.
    assert similarity_threshold([0.1] * 7 + [-0.1]).is_known
    assert not similarity_threshold([0.1] * 6 + [-0.1] * 2).is_known


def test_the_users_threshold():
    assert given_threshold(0.25).fixed == 0.25
    reason = predict(hard(0.01), given_threshold(0.25)).tag_reason
    assert "below the threshold 0.25 (as given)" in reason
