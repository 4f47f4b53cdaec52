"""Lift from two scorings: p'/p without bias, errors that cover, log odds from the rarer outcome."""

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch

from probes.gradients.batch import TokenizedRollout
from probes.lift.checkpoint import CheckpointLift, log_ratio_lift
from probes.models.load import Policy
from probes.rescoring.teacher_forcing import log_probabilities

Line = tuple[int, int, int, float]
"""Item, reward, weight, log ratio."""


def lift_of(lines: Sequence[Line], pass_rates: Sequence[float]) -> CheckpointLift:
    item, reward, weight, ratio = zip(*lines, strict=True)
    before = np.linspace(-900, -3, len(lines))  # Such as long completions have.
    columns = {
        "item_id": [str(each) for each in item],
        "sample": pa.array(range(len(lines)), pa.int32()),
        "reward": pa.array(reward, pa.int8()),
        "weight": pa.array(weight, pa.int32()),
    }
    return log_ratio_lift(
        pa.table(columns | {"log_probability": before}),
        pa.table(columns | {"log_probability": before + np.array(ratio)}),
        {str(each): each for each in range(len(pass_rates))},
        np.array(pass_rates),
    )


def test_the_log_of_the_mean_ratio_over_draws() -> None:
    lines = [(0, 1, 3, np.log(2.0)), (0, 1, 1, np.log(6.0)), (0, 0, 5, 1.0), (2, 1, 1, 700.0)]
    lift = lift_of(lines, [0.1, 0.1, 1e-9])
    assert lift.correct_rollouts.tolist() == [4, 0, 1]
    np.testing.assert_allclose(lift.log_ratio, [np.log(3.0), np.nan, 700.0])
    # 0.1 becomes 0.3; what would pass 1 is cut.
    assert lift.log_odds_change[0] == pytest.approx(np.log(0.3 / 0.7) - np.log(0.1 / 0.9))
    assert np.isnan(lift.log_odds_change[1]) and np.isnan(lift.log_odds_error[1])
    assert lift.log_odds_change[2] == pytest.approx(np.log(99) + np.log(1e9), abs=1e-6)


def test_easy_items_are_read_from_their_wrong_rollouts() -> None:
    lines = [
        *[(0, 1, 8, np.log(1.3)), (0, 0, 2, np.log(0.5))],
        (1, 1, 8, np.log(1.1)),
    ]
    lift = lift_of(lines, [0.9, 0.9])
    # 0.1 wrong becomes 0.05: the correct ones alone would say 1.17.
    assert lift.log_odds_change[0] == pytest.approx(np.log(0.95 / 0.05) - np.log(9))
    # Without a wrong one there is only the other side, which cannot say more than 0.99.
    assert lift.log_odds_change[1] == pytest.approx(np.log(99) - np.log(9))


def test_one_same_completion_is_exact_and_one_draw_has_the_others_spread() -> None:
    exact = lift_of([(0, 1, 9, 0.4), (1, 1, 1, 0.7), (2, 1, 3, -0.2)], [0.1] * 3)
    np.testing.assert_allclose(exact.log_ratio, [0.4, 0.7, -0.2])
    np.testing.assert_allclose(exact.log_ratio_error, 0, atol=1e-9)
    spread = lift_of([(0, 1, 1, -0.3), (0, 1, 1, 0.3), (1, 1, 1, 0.7)], [0.1] * 2)
    # One degree of freedom: s^2 = 0.18.
    np.testing.assert_allclose(spread.log_ratio_error[1], np.sqrt(0.18))
    alone = lift_of([(0, 1, 1, -0.3), (1, 1, 1, 0.7)], [0.1] * 2)
    assert np.isnan(alone.log_ratio_error).all() and not np.isnan(alone.log_ratio).any()


@pytest.mark.parametrize("kind", ["few completions", "many completions", "wide"])
def test_errors_cover(kind: str) -> None:
    """90 % of the nominal 95 % or more, at each number of draws, a hundred items each."""
    generator = np.random.default_rng(0)
    numbers = np.repeat([1, 2, 4, 8, 16], 400)
    lines: list[Line] = []
    truth = []
    for item, number in enumerate(numbers):
        count = int(generator.integers(1, 6)) if kind == "few completions" else 500
        shares = generator.dirichlet(np.full(count, 0.5))
        deviation = (1.2 if kind == "wide" else 0.5) * generator.choice([0.5, 1, 1.5])
        ratios = 0.7 + deviation * generator.normal(size=count) - deviation**2 / 2
        truth.append(np.log(shares @ np.exp(ratios)))
        drawn = generator.multinomial(number, shares)
        lines += [(item, 1, int(drawn[y]), float(ratios[y])) for y in np.flatnonzero(drawn)]
    lift = lift_of(lines, [1e-3] * len(numbers))
    covered = np.abs(lift.log_ratio - truth) <= 1.96 * lift.log_ratio_error + 1e-9
    for number in np.unique(numbers):
        # Two standard deviations of a share of 400 are 0.035.
        assert covered[numbers == number].mean() >= 0.9 * 0.95 - 0.035
    # And not because they were wide enough for everything.
    deviations = (lift.log_ratio - truth)[numbers >= 4]
    assert lift.log_ratio_error[numbers >= 4].mean() < 1.3 * deviations.std()


def test_the_mean_ratio_is_that_of_the_pass_probabilities(tiny_policy: Policy) -> None:
    """Over every correct completion, weighted as often as each is drawn."""
    model = copy.deepcopy(tiny_policy.model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    trained = dataclasses.replace(tiny_policy, model=model)
    correct = [[first, second, 1] for first in (3, 4, 9) for second in range(3, 18)]
    rollouts = [TokenizedRollout([7, 5], completion) for completion in correct]
    before, after = (log_probabilities(each, rollouts) for each in (tiny_policy, trained))
    p, new = np.exp(before).sum(), np.exp(after).sum()
    weights = np.round(np.exp(before) / p * 1e6).astype(int)
    drawn = weights > 0
    lines = [
        (0, 1, int(weight), float(ratio))
        for weight, ratio in zip(weights[drawn], (after - before)[drawn], strict=True)
    ]
    lift = lift_of(lines, [p])
    assert abs(np.log(new / p)) > 0.05
    assert lift.log_ratio[0] == pytest.approx(np.log(new / p), abs=1e-3)
    expected = np.log(new / (1 - new)) - np.log(p / (1 - p))
    assert lift.log_odds_change[0] == pytest.approx(expected, abs=1e-3)


def test_what_does_not_belong_together() -> None:
    table = pa.table(
        {"item_id": ["0"], "sample": [0], "reward": [1], "weight": [1], "log_probability": [-1.0]}
    )
    other = table.set_column(1, "sample", [[1]])
    with pytest.raises(ValueError, match="same rollouts"):
        log_ratio_lift(table, other, {"0": 0}, np.array([0.5]))
    with pytest.raises(ValueError, match=r"inside \(0, 1\)"):
        log_ratio_lift(table, table, {"0": 0}, np.array([0.0]))
