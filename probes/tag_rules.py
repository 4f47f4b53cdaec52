"""From the evidence on an item to its predicted trainability.

The rules, in order, with n judged rollouts, c of them correct, and the paper's τ = 0.1:

    n = 0                        undetermined
    c / n ≥ τ                    easy
    c = 0                        no_positive
    p_unlearnable ≤ doubt        learnable
    p_unlearnable ≥ 1 − doubt    unlearnable
    otherwise                    undetermined

p_unlearnable is the probability that the item ends below τ by the forecast
(`probes.forecast.model`), or what a predictor of `curate calibrate` gives. A doubt of 0.1 means
that of the items with a tag at most one in ten is expected to become the contrary; mostly far
fewer, since most lie beyond it. The forecast is a posterior, so it holds whatever made sampling
stop, and several looks widen nothing. Where none is correct and most were cut at the limit of
tokens there is no forecast: that says how short the limit was, and little of the policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from curate.tags import Trainability

DEFAULT_TAU = 0.1
DOUBT = 0.1
"""How probable the contrary of a tag may be."""


@dataclass(frozen=True)
class Evidence:
    """What the probes measured on one item; None (or nan, which becomes None) is unknown."""

    total_rollouts: int
    """Judged rollouts, n."""
    total_correct_rollouts: int
    """Correct ones, c."""
    pass_rate_low: float | None = None
    pass_rate_high: float | None = None
    unjudged_rollouts: int = 0
    """Rollouts whose reward is null; not among `total_rollouts`."""
    lift: float | None = None
    lift_low: float | None = None
    lift_high: float | None = None
    from_others: float | None = None
    """The share of the lift that other items teach."""
    forecast: float | None = None
    """Expected pass rate after training."""
    forecast_low: float | None = None
    forecast_high: float | None = None
    truncated_rollouts: int = 0
    """Rollouts that were cut at the limit of tokens."""

    def __post_init__(self) -> None:
        if not 0 <= self.total_correct_rollouts <= self.total_rollouts:
            raise ValueError(
                f"{self.total_correct_rollouts} correct of {self.total_rollouts} is impossible"
            )
        # Arrays have only nan for the unknown, and nan would pass through comparisons unnoticed.
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and math.isnan(value):
                object.__setattr__(self, field.name, None)

    @property
    def mostly_cut(self) -> bool:
        """Whether none is correct and most were cut, so that little was measured."""
        drawn = self.total_rollouts + self.unjudged_rollouts
        return self.total_correct_rollouts == 0 and 2 * self.truncated_rollouts > drawn

    @classmethod
    def from_rows(
        cls,
        rate: Mapping[str, Any],
        lifted: Mapping[str, Any],
        forecast: Mapping[str, Any],
    ) -> Evidence:
        """Evidence on an item from its rows of pass rates, lift and forecast."""
        return cls(
            total_rollouts=rate["total_rollouts"],
            total_correct_rollouts=rate["total_correct_rollouts"],
            pass_rate_low=rate["pass_rate_low"],
            pass_rate_high=rate["pass_rate_high"],
            unjudged_rollouts=rate["unjudged_rollouts"],
            lift=lifted["lift"],
            lift_low=lifted["lift_low"],
            lift_high=lifted["lift_high"],
            from_others=lifted["from_others"],
            forecast=forecast["forecast_pass_rate"],
            forecast_low=forecast["forecast_low"],
            forecast_high=forecast["forecast_high"],
            truncated_rollouts=rate["truncated_rollouts"],
        )


@dataclass(frozen=True)
class BuiltInProbability:
    """What the forecast says of one item."""

    p_unlearnable: float | None
    """None where there is no ground for one."""


@dataclass(frozen=True)
class LearnedProbability:
    """What a predictor of `curate calibrate` says of one hard item with a positive rollout."""

    p_unlearnable: float
    source: str
    """Which predictor: for tag_reason."""


@dataclass(frozen=True)
class Prediction:
    """The tag of one item, with its reason."""

    trainability: Trainability
    p_unlearnable: float | None
    """Only for hard items, easy ones are solved; and not where most rollouts were cut."""
    tag_reason: str


def predict(
    evidence: Evidence,
    probability: BuiltInProbability | LearnedProbability,
    *,
    tau: float = DEFAULT_TAU,
    doubt: float = DOUBT,
) -> Prediction:
    """Predicted tag of one item, by the rules above. Raises ValueError for tau outside (0, 1].

    Args:
        evidence: on the item.
        probability: that the item ends below τ, if it is hard.
        tau: where an item is easy.
        doubt: how probable the contrary of a tag may be.
    """
    if not 0 < tau <= 1:
        raise ValueError(f"tau must be above 0 and at most 1, got {tau}")
    n, c = evidence.total_rollouts, evidence.total_correct_rollouts
    unjudged = _unjudged_note(evidence.unjudged_rollouts)
    if n == 0:
        return Prediction(Trainability.UNDETERMINED, None, f"no judged rollouts{unjudged}")
    if c / n >= tau:
        reason = f"{_pass_rate_text(evidence)} is at least {_number(tau)}{_doubt(evidence, tau)}"
        return Prediction(Trainability.EASY, None, reason + unjudged)
    p = probability.p_unlearnable
    if c == 0:
        reason = f"0 of {n} rollouts correct{_could_still_be(evidence)}"
        if evidence.mostly_cut:
            reason += (
                "; most rollouts were cut at the limit of tokens, so little was measured and "
                "nothing is forecast"
            )
            return Prediction(Trainability.NO_POSITIVE, None, reason + unjudged)
        if p is not None and evidence.forecast is not None:
            reason += f"; {_expected(evidence)} all the same, p_unlearnable {_number(p)}"
        return Prediction(Trainability.NO_POSITIVE, p, reason + unjudged)
    if p is None:
        trainability, ground = Trainability.UNDETERMINED, "there is no forecast"
    elif isinstance(probability, LearnedProbability):
        trainability, ground = tag_of(p, doubt), _by_predictor(probability, doubt)
    else:
        trainability = tag_of(p, doubt)
        ground = _by_forecast(evidence, trainability, p, tau)
    reason = f"{ground}; {_pass_rate_text(evidence)} is below {_number(tau)}{_doubt(evidence, tau)}"
    return Prediction(trainability, p, reason + unjudged)


def tag_of(p_unlearnable: float, doubt: float = DOUBT) -> Trainability:
    """What a probability to be unlearnable makes of a hard item with a positive rollout."""
    if p_unlearnable <= doubt:
        return Trainability.LEARNABLE
    return Trainability.UNLEARNABLE if p_unlearnable >= 1 - doubt else Trainability.UNDETERMINED


def _by_forecast(
    evidence: Evidence, trainability: Trainability, p_unlearnable: float, tau: float
) -> str:
    """Why the forecast gives an item its tag."""
    expected, moved = _expected(evidence), _moved(evidence)
    if trainability is Trainability.LEARNABLE:
        return f"{expected}: rarely right now, but {moved}"
    if trainability is Trainability.UNLEARNABLE:
        return f"{expected}, p_unlearnable {_number(p_unlearnable)}: {moved}"
    return (
        f"{expected}, on either side of {_number(tau)}, p_unlearnable {_number(p_unlearnable)}: "
        f"{moved}"
    )


def _expected(evidence: Evidence) -> str:
    """The forecast in words."""
    if evidence.forecast is None or evidence.forecast_low is None or evidence.forecast_high is None:
        return "no pass rate is expected"
    low, high = evidence.forecast_low, evidence.forecast_high
    return f"expected to reach {evidence.forecast:.2f} ({low:.2f} to {high:.2f})"


def _moved(evidence: Evidence) -> str:
    """What the lift says, in words."""
    lift, low, high = evidence.lift, evidence.lift_low, evidence.lift_high
    if lift is None or low is None or high is None:
        return "no lift was measured, so it is taken to be moved as the other hard items are"
    figures = f"(lift {_number(lift)}, {_number(low)} to {_number(high)})"
    if low <= 0 <= high:
        return f"whether training moves it cannot be told {figures}"
    if lift < 0:
        return f"what training teaches pulls it down {figures}"
    if evidence.from_others is None:
        return f"training moves it up {figures}"
    if evidence.from_others >= lift / 2:
        return f"what the others teach carries over {figures}"
    return f"its own rewards lift it {figures}"


def _by_predictor(learned: LearnedProbability, doubt: float) -> str:
    """Ground for the tag of a hard item with a positive rollout, by a predictor."""
    p = learned.p_unlearnable
    said = f"{learned.source} gives a probability of {_number(p)} to be unlearnable"
    if p >= 1 - doubt:
        return f"{said}, at least {_number(1 - doubt)}"
    if p <= doubt:
        return f"{said}, at most {_number(doubt)}"
    return (
        f"{said}, which does not decide (learnable up to {_number(doubt)}, "
        f"unlearnable from {_number(1 - doubt)})"
    )


def _pass_rate_text(evidence: Evidence) -> str:
    n, c = evidence.total_rollouts, evidence.total_correct_rollouts
    return f"pass rate {_number(c / n)} ({c} of {n} rollouts)"


def _doubt(evidence: Evidence, tau: float) -> str:
    """Says so when the pass rate may be on the other side of tau."""
    low, high = evidence.pass_rate_low, evidence.pass_rate_high
    if low is None or high is None or not low <= tau <= high:
        return ""
    return f", though its 95% interval {_number(low)} to {_number(high)} contains {_number(tau)}"


def _could_still_be(evidence: Evidence) -> str:
    high = evidence.pass_rate_high
    return "" if high is None else f"; the true pass rate could still be up to {_number(high)}"


def _unjudged_note(unjudged: int) -> str:
    if unjudged == 0:
        return ""
    rollouts = "rollout" if unjudged == 1 else "rollouts"
    return f"; {unjudged} more {rollouts} could not be judged"


def _number(value: float) -> str:
    return f"{value:.3g}"
