"""From the evidence on an item to its predicted trainability.

The rules, in order, with n judged rollouts, c of them correct, and the paper's τ = 0.1:

    n = 0                       undetermined
    c / n ≥ τ                   easy
    c = 0                       no_positive
    similarity low > threshold  learnable
    similarity high < threshold unlearnable
    otherwise                   undetermined

Unlearnable items are gradient outliers under the initial policy (arXiv 2605.16787); the similarity,
its interval and their departures from the paper's mean pairwise cosine are in
`probes.similarity`. For the hard items with a positive rollout

    p_unlearnable = P(similarity < threshold) = T_df((threshold − similarity) / standard error)

with T_df Student's distribution function: the probability, under a flat prior, that the item lies
below the threshold, given how noisy its gradient is. An item with a single correct rollout has no
similarity of its own and is drawn from the run's hard items like any other: its p_unlearnable is
the mean of theirs, over those that have one, and its tag stays undetermined. Whether lying below
the threshold means that GRPO fails is for `curate validate` and `curate calibrate` to say.

Where a predictor of `curate calibrate` gives the probability, the last three rules are

    p_unlearnable ≤ 0.025       learnable
    p_unlearnable ≥ 0.975       unlearnable
    otherwise                   undetermined

which asks for the same certainty: a 95 % interval leaves 0.025 at either end.

The default threshold is a third of the median similarity of the easy items. 0 is a rollout that
shares nothing with what the policy already does right, and the median is a typical item that it
does right; an item that is learned by transfer lies between them, since it is unlike the easy items
in something. A third separates best in the planted world (docs/benchmarks.md). It is relative to
the model's own scale, so it carries across models and feature dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom
from scipy.stats import t as student_t

from curate.tags import Trainability

DEFAULT_TAU = 0.1
FEWEST_EASY_ITEMS = 5
FEWEST_ITEMS_FOR_SHARE = 5
SURE = 0.975
"""How probable an outcome must be for its tag, where a predictor gives the probability."""
_SIGN_TEST_LEVEL = 0.05


@dataclass(frozen=True)
class SimilarityThreshold:
    """Where gradient similarity separates learnable from unlearnable, and where it came from."""

    value: float | None
    """None if there is no ground for one."""
    source: str
    """How the value came about, or why there is none: for tag_reason and the manifest."""


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
class MeasuredShare:
    """What the hard items with a similarity say of one that has none."""

    p_unlearnable: float
    """Mean over those items."""
    items: int


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


def given_threshold(value: float) -> SimilarityThreshold:
    """The threshold that the user named."""
    return SimilarityThreshold(value, "as given")


def similarity_threshold(easy_similarities: Iterable[float]) -> SimilarityThreshold:
    """A third of the median gradient similarity of the easy items; nan among them is passed over.

    There is no threshold (value None, the source says why) with fewer than 5 easy items with a
    gradient, or where a one-sided sign test at 5 % cannot tell their median from 0: a third
    of nothing separates nothing.
    """
    similarities = np.array(list(easy_similarities), dtype=np.float64)
    similarities = similarities[~np.isnan(similarities)]
    count = len(similarities)
    if count < FEWEST_EASY_ITEMS:
        items = "easy item has" if count == 1 else "easy items have"
        return SimilarityThreshold(
            None,
            f"only {count} {items} a gradient and {FEWEST_EASY_ITEMS} are needed to set the "
            "similarity threshold: give --similarity-threshold or add easy items",
        )
    median = float(np.median(similarities))
    positive = int((similarities > 0).sum())
    if binom.sf(positive - 1, count, 0.5) > _SIGN_TEST_LEVEL:
        return SimilarityThreshold(
            None,
            f"the similarity of the {count} easy items (median {_number(median)}, {positive} above "
            "0) cannot be told from 0, so it sets no threshold: give --similarity-threshold, or "
            "measure more correct rollouts or more easy items",
        )
    return SimilarityThreshold(
        median / 3, f"a third of the median {_number(median)} of {count} easy items"
    )


def measured_share(
    similarity: NDArray[np.float64],
    standard_error: NDArray[np.float64],
    degrees_of_freedom: NDArray[np.float64],
    threshold: SimilarityThreshold,
) -> MeasuredShare | None:
    """The mean p_unlearnable of a run's hard items with a positive rollout.

    Args:
        similarity, standard_error, degrees_of_freedom: (hard items,), nan where not measured.
        threshold: of the run.

    Returns:
        None without a threshold, or with fewer than 5 measured items.
    """
    is_known = ~(np.isnan(similarity) | np.isnan(standard_error) | np.isnan(degrees_of_freedom))
    if threshold.value is None or is_known.sum() < FEWEST_ITEMS_FOR_SHARE:
        return None
    p = _p_below(
        threshold.value,
        similarity[is_known],
        standard_error[is_known],
        degrees_of_freedom[is_known],
    )
    return MeasuredShare(float(p.mean()), len(p))


def _p_below(
    threshold: float,
    similarity: NDArray[np.float64],
    standard_error: NDArray[np.float64],
    degrees_of_freedom: NDArray[np.float64],
) -> NDArray[np.float64]:
    """P(similarity < threshold) under a flat prior, (items,); 0 or 1 where there is no error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (threshold - similarity) / standard_error
    distance = np.nan_to_num(distance, nan=-np.inf)
    return np.asarray(student_t.cdf(distance, degrees_of_freedom), dtype=np.float64)


def predict(
    evidence: Evidence,
    threshold: SimilarityThreshold,
    *,
    tau: float = DEFAULT_TAU,
    learned: LearnedProbability | None = None,
    share: MeasuredShare | None = None,
) -> Prediction:
    """Predicted tag of one item, by the rules above. Raises ValueError for tau outside (0, 1].

    `learned` takes the place of the similarity against the threshold; `share` is what is known of
    an item without a similarity.
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
    trainability, p_unlearnable, ground = (
        _judge_probability(learned) if learned else _judge_similarity(evidence, threshold, share)
    )
    reason = f"{ground}; {_pass_rate_text(evidence)} is below {_number(tau)}{_doubt(evidence, tau)}"
    return Prediction(trainability, p_unlearnable, reason + unjudged)


def _judge_similarity(
    evidence: Evidence, threshold: SimilarityThreshold, share: MeasuredShare | None
) -> tuple[Trainability, float | None, str]:
    """Tag, p_unlearnable and ground for a hard item with a positive rollout."""
    if evidence.similarity is None:
        ground = "no gradient similarity was measured"
        if share is None:
            return Trainability.UNDETERMINED, None, ground
        ground += f": p_unlearnable is the mean of the {share.items} hard items that have one"
        return Trainability.UNDETERMINED, share.p_unlearnable, ground
    if threshold.value is None:
        return Trainability.UNDETERMINED, None, threshold.source
    low, high, standard_error = evidence.low, evidence.high, evidence.standard_error
    freedom = evidence.degrees_of_freedom
    measured = f"gradient similarity {_number(evidence.similarity)}"
    if low is None or high is None or standard_error is None or freedom is None:
        ground = f"{measured} has no interval: no item has two different correct rollouts"
        return Trainability.UNDETERMINED, None, ground
    p_unlearnable = float(
        _p_below(
            threshold.value,
            np.array([evidence.similarity]),
            np.array([standard_error]),
            np.array([freedom]),
        )[0]
    )
    rollouts = "1 rollout" if evidence.rollouts_used == 1 else f"{evidence.rollouts_used} rollouts"
    measured += f" (95% interval {_number(low)} to {_number(high)}, {rollouts})"
    against = f"the threshold {_number(threshold.value)} ({threshold.source})"
    if low > threshold.value:
        return Trainability.LEARNABLE, p_unlearnable, f"{measured} is above {against}"
    if high < threshold.value:
        return Trainability.UNLEARNABLE, p_unlearnable, f"{measured} is below {against}"
    ground = f"{measured} does not decide about {against}"
    if evidence.reliability is not None:
        ground += f", reliability {_number(evidence.reliability)}"
    return Trainability.UNDETERMINED, p_unlearnable, f"{ground}: more correct rollouts are needed"


def _judge_probability(learned: LearnedProbability) -> tuple[Trainability, float, str]:
    """Tag, p_unlearnable and ground for a hard item with a positive rollout, by a predictor."""
    p = learned.p_unlearnable
    said = f"{learned.source} gives a probability of {_number(p)} to be unlearnable"
    if p >= SURE:
        return Trainability.UNLEARNABLE, p, f"{said}, at least {_number(SURE)}"
    if p <= 1 - SURE:
        return Trainability.LEARNABLE, p, f"{said}, at most {_number(1 - SURE)}"
    return (
        Trainability.UNDETERMINED,
        p,
        f"{said}, which does not decide (learnable up to {_number(1 - SURE)}, "
        f"unlearnable from {_number(SURE)})",
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
