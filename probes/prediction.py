"""From the evidence on an item to its predicted trainability.

The rules, in order, with n judged rollouts, c of them correct, and the paper's τ = 0.1:

    n = 0                        undetermined
    c / n ≥ τ                    easy
    c = 0                        no_positive
    p_unlearnable ≤ doubt        learnable
    p_unlearnable ≥ 1 − doubt    unlearnable
    otherwise                    undetermined

with a doubt of 0.025, which leaves as much at either end as a 95 % interval does; where sampling
went in rounds it is shared between them, as the error of the intervals is.

Unlearnable items are gradient outliers under the initial policy (arXiv 2605.16787). p_unlearnable
is the probability that an item has less gradient similarity than its pass rate asks for
(`probes.similarity_threshold`), or what a predictor of `curate calibrate` gives. An item with a
single correct rollout has no similarity of its own: without a predictor its tag stays undetermined,
whatever the others say. Whether lying below the threshold means that GRPO fails is for `curate
validate` and `curate calibrate` to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from curate.tags import Trainability
from probes.similarity_threshold import SimilarityThreshold

DEFAULT_TAU = 0.1
DOUBT = 0.025
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
    rollouts_used: int = 0
    """Correct rollouts behind the gradient."""
    similarity: float | None = None
    standard_error: float | None = None
    """Of the similarity."""
    degrees_of_freedom: float | None = None
    """Of the similarity's t distribution."""
    low: float | None = None
    """Lower end of the similarity's 95 % interval."""
    high: float | None = None
    reliability: float | None = None
    """Share of the mean gradient that is not sampling noise, 0 to 1."""

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

    @classmethod
    def from_rows(cls, rate: Mapping[str, Any], near: Mapping[str, Any]) -> Evidence:
        """Evidence on an item from its rows of `pass_rates.parquet` and `similarity.parquet`."""
        return cls(
            total_rollouts=rate["total_rollouts"],
            total_correct_rollouts=rate["total_correct_rollouts"],
            pass_rate_low=rate["pass_rate_low"],
            pass_rate_high=rate["pass_rate_high"],
            unjudged_rollouts=rate["unjudged_rollouts"],
            rollouts_used=near["rollouts_used"],
            similarity=near["gradient_similarity"],
            standard_error=near["standard_error"],
            degrees_of_freedom=near["degrees_of_freedom"],
            low=near["gradient_similarity_low"],
            high=near["gradient_similarity_high"],
            reliability=near["gradient_reliability"],
        )


@dataclass(frozen=True)
class BuiltInProbability:
    """What `probes.similarity_threshold` says of one hard item with a positive rollout."""

    p_unlearnable: float | None
    """None where there is no ground for one."""
    others: int = 0
    """Hard items that spoke for it, if it has no similarity."""


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
    """Only for hard items with a positive rollout, and without a predictor only where the run has a
    threshold and the item, or 5 other hard ones, a similarity."""
    tag_reason: str


def predict(
    evidence: Evidence,
    threshold: SimilarityThreshold,
    probability: BuiltInProbability | LearnedProbability,
    *,
    tau: float = DEFAULT_TAU,
    doubt: float = DOUBT,
) -> Prediction:
    """Predicted tag of one item, by the rules above. Raises ValueError for tau outside (0, 1].

    Args:
        evidence: on the item.
        threshold: of the run, for the reason.
        probability: that the item is unlearnable, if it is hard and has a positive rollout.
        tau: where an item is easy.
        doubt: how probable the contrary of a built-in tag may be.
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
    if c == 0:
        reason = f"0 of {n} rollouts correct{_could_still_be(evidence)}"
        return Prediction(Trainability.NO_POSITIVE, None, reason + unjudged)
    if isinstance(probability, LearnedProbability):
        trainability, ground = _by_predictor(probability)
    else:
        trainability, ground = _by_similarity(evidence, threshold, probability, tau, doubt)
    reason = f"{ground}; {_pass_rate_text(evidence)} is below {_number(tau)}{_doubt(evidence, tau)}"
    return Prediction(trainability, probability.p_unlearnable, reason + unjudged)


def tag_of(p_unlearnable: float, doubt: float = DOUBT) -> Trainability:
    """What a probability to be unlearnable makes of a hard item with a positive rollout."""
    if p_unlearnable <= doubt:
        return Trainability.LEARNABLE
    return Trainability.UNLEARNABLE if p_unlearnable >= 1 - doubt else Trainability.UNDETERMINED


def _by_similarity(
    evidence: Evidence,
    threshold: SimilarityThreshold,
    probability: BuiltInProbability,
    tau: float,
    doubt: float,
) -> tuple[Trainability, str]:
    """Tag and ground for a hard item with a positive rollout."""
    p = probability.p_unlearnable
    if evidence.similarity is None:
        ground = "no gradient similarity was measured"
        if p is not None:
            ground += (
                f": p_unlearnable {_number(p)} is what its pass rate and the similarities of "
                f"{probability.others} other hard items say"
            )
        return Trainability.UNDETERMINED, ground
    if not threshold.is_known:
        return Trainability.UNDETERMINED, threshold.source
    measured = f"gradient similarity {_number(evidence.similarity)}"
    if p is None or evidence.low is None or evidence.high is None:
        ground = f"{measured} has no interval: no item has two different correct rollouts"
        return Trainability.UNDETERMINED, ground
    rollouts = "1 rollout" if evidence.rollouts_used == 1 else f"{evidence.rollouts_used} rollouts"
    measured += f" (95% interval {_number(evidence.low)} to {_number(evidence.high)}, {rollouts})"
    against = _needed(evidence, threshold, tau)
    trainability = tag_of(p, doubt)
    if trainability is Trainability.LEARNABLE:
        return trainability, f"{measured} is above {against}"
    if trainability is Trainability.UNLEARNABLE:
        return trainability, f"{measured} is below {against}"
    ground = f"{measured} does not decide about {against}, p_unlearnable {_number(p)}"
    if evidence.reliability is not None:
        ground += f", reliability {_number(evidence.reliability)}"
    return trainability, f"{ground}: more correct rollouts are needed"


def _needed(evidence: Evidence, threshold: SimilarityThreshold, tau: float) -> str:
    """The similarity that the item needs, in words."""
    if threshold.fixed is not None:
        return f"the threshold {_number(threshold.fixed)} ({threshold.source})"
    rate = evidence.total_correct_rollouts / evidence.total_rollouts
    needed = float(threshold.at(np.array(rate), tau))
    return f"the {_number(needed)} that its pass rate asks for ({threshold.source})"


def _by_predictor(learned: LearnedProbability) -> tuple[Trainability, str]:
    """Tag and ground for a hard item with a positive rollout, by a predictor."""
    p = learned.p_unlearnable
    said = f"{learned.source} gives a probability of {_number(p)} to be unlearnable"
    trainability = tag_of(p)
    if trainability is Trainability.UNLEARNABLE:
        return trainability, f"{said}, at least {_number(1 - DOUBT)}"
    if trainability is Trainability.LEARNABLE:
        return trainability, f"{said}, at most {_number(DOUBT)}"
    return (
        trainability,
        f"{said}, which does not decide (learnable up to {_number(DOUBT)}, "
        f"unlearnable from {_number(1 - DOUBT)})",
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
