"""AUROC, average precision, calibration and intervals, against scikit-learn and known truth."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from recipes.statistics.agreement import (
    _ranking_measures,
    _resampled_weights,
    auroc,
    average_precision,
    calibration,
    compare_scores,
    confusion,
    too_few_items,
)


def test_confusion_counts_every_pair_of_tags() -> None:
    table = confusion(
        ["easy", "learnable", "learnable", "undetermined"],
        ["easy", "unlearnable", "unlearnable", "learnable"],
    )
    assert table["learnable"]["unlearnable"] == 2
    assert table["undetermined"]["learnable"] == 1
    assert table["unlearnable"]["learnable"] == 0
    assert sum(count for row in table.values() for count in row.values()) == 4


def test_auroc_and_average_precision_by_hand() -> None:
    outcome = np.array([True, False, True, False])
    score = np.array([0.9, 0.8, 0.7, 0.1])
    assert auroc(outcome, score) == 0.75  # Three of four pairs are in order.
    assert average_precision(outcome, score) == pytest.approx((1 + 2 / 3) / 2)
    assert auroc(outcome, np.zeros(4)) == 0.5
    for same in (np.zeros(4, dtype=bool), np.ones(4, dtype=bool), np.zeros(0, dtype=bool)):
        assert auroc(same, np.zeros(len(same))) is None
        assert average_precision(same, np.zeros(len(same))) is None


def test_measures_of_resamples_are_scikit_learn_s() -> None:
    random = np.random.default_rng(3)
    outcome = random.random(60) < 0.3
    score = np.round(random.normal(size=60) + outcome, 1)  # Rounded, so that many are equal.
    ((_, weights),) = _resampled_weights(60, 20, 0)
    assert weights.sum(axis=1).tolist() == [60] * 20
    measured = _ranking_measures(outcome, score, weights)
    for row, weight in zip(measured, weights, strict=True):
        wanted = [
            measure(outcome, score, sample_weight=weight)
            for measure in (roc_auc_score, average_precision_score)
        ]
        assert row == pytest.approx(wanted, abs=1e-12)


def test_a_resample_with_one_outcome_has_no_measure() -> None:
    outcome = np.array([True, False])
    measured = _ranking_measures(
        outcome, np.array([1.0, 0.0]), np.array([[2.0, 0], [0, 2], [1, 1]])
    )
    assert np.isnan(measured[:2]).all()
    assert measured[2].tolist() == [1, 1]


def test_resamples_in_blocks_are_those_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    outcome, scores = random.random(40) < 0.5, {"a": random.random(40), "b": random.random(40)}
    whole = compare_scores(outcome, scores, resamples=50)
    monkeypatch.setattr("recipes.statistics.agreement._BLOCK", 7 * 40)
    assert compare_scores(outcome, scores, resamples=50) == whole


def test_the_interval_covers_the_true_auroc() -> None:
    random = np.random.default_rng(1)
    truth = norm.cdf(1.2 / np.sqrt(2))
    outcome = np.arange(80) % 2 == 0
    covered = 0
    for repetition in range(200):
        score = random.normal(size=80) + 1.2 * outcome
        found = compare_scores(outcome, {"s": score}, resamples=300, seed=repetition)["s"]
        low, high = found["auroc_low"], found["auroc_high"]
        assert low is not None and high is not None
        covered += low <= truth <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_differences_are_paired() -> None:
    random = np.random.default_rng(2)
    outcome = random.random(100) < 0.5
    good = random.normal(size=100) + outcome
    same, worse = good.copy(), random.normal(size=100)
    found = compare_scores(outcome, {"good": good, "same": same, "worse": worse})
    assert "auroc_difference" not in found["good"]
    names = ("auroc_difference", "auroc_difference_low", "auroc_difference_high")
    # A score never differs from itself, whatever items are drawn.
    assert [found["same"][name] for name in names] == [0, 0, 0]
    ours, theirs = found["good"]["auroc"], found["worse"]["auroc"]
    low, high = (found["worse"][name] for name in names[1:])
    assert ours is not None and theirs is not None and low is not None and high is not None
    assert found["worse"]["auroc_difference"] == ours - theirs
    assert 0 < low < ours - theirs < high


def test_no_items_or_one_outcome_only_is_no_figure() -> None:
    for items in (0, 5):
        found = compare_scores(
            np.zeros(items, dtype=bool), {"a": np.zeros(items), "b": np.ones(items)}
        )
        assert set(found["a"].values()) | set(found["b"].values()) == {None}
    nothing = calibration(np.zeros(0, dtype=bool), np.zeros(0))
    assert nothing.pop("bins") == []
    assert set(nothing.values()) == {None}


def test_calibration_error_by_hand() -> None:
    # Two bins of ten: 0.2 predicted and 1 of 10 true, 0.9 predicted and 5 of 10 true.
    probability = np.array([0.2] * 10 + [0.9] * 10)
    outcome = np.array([True] + [False] * 9 + [True] * 5 + [False] * 5)
    found = calibration(outcome, probability)
    assert found["expected_calibration_error"] == pytest.approx((0.1 + 0.4) / 2)
    assert found["bins"] == [
        {"items": 10, "predicted": pytest.approx(0.2), "observed": 0.1},
        {"items": 10, "predicted": pytest.approx(0.9), "observed": 0.5},
    ]


def test_a_calibrated_predictor_is_told_from_a_miscalibrated_one() -> None:
    random = np.random.default_rng(4)
    probability = random.uniform(0, 1, 2000)
    name = "expected_calibration_error"
    calibrated = calibration(random.random(2000) < probability, probability)
    assert calibrated[name] < 0.04
    assert calibrated[name] < 2 * calibrated[f"{name}_if_calibrated"]
    assert len(calibrated["bins"]) == 10
    # What is always 0.3 too sure of itself.
    sure = calibration(random.random(2000) < 0.7 * probability, probability)
    truth = 0.3 * 0.5
    assert sure[name] == pytest.approx(truth, abs=0.03)
    assert sure[f"{name}_low"] < truth < sure[f"{name}_high"]
    assert sure[f"{name}_low"] > 3 * sure[f"{name}_if_calibrated"]


def test_too_few_items_is_said_and_why() -> None:
    assert too_few_items(10, 10, 0.65, 0.9) is None
    few = too_few_items(9, 50, 0.8, 0.9)
    assert few is not None and "9 unlearnable and 50 learnable" in few and "10 of each" in few
    assert too_few_items(50, 9, 0.8, 0.9) is not None
    wide = too_few_items(20, 20, 0.5, 0.85)
    assert wide is not None and "0.50 to 0.85" in wide
    assert "0 unlearnable" in (too_few_items(0, 5, None, None) or "")
