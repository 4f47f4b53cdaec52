"""Why training will not solve an item: one of four reasons, or that it cannot be told.

What is said for certain has the whole of its 90 % interval on one side of a bound that was set
beforehand:

- luck: `own` is below 0.05, or a quarter of what is typical in the run where that is less. Correct
  rollouts share so little that wrong ones lack that it takes 20 of them before what they share is
  as long as what chance adds: an item that is right once in 50 then needs 1,000 rollouts.
- competes: what the others teach it is below 0.
- nobody teaches: less than a quarter of its gradient lies within the span of the others' steps. A
  step along any direction of them then moves it less than half as far (the root of a quarter) as
  the same step along its own. A long gradient may be moved enough even so: what the others teach it
  must be below 1, which is what training does for the items it trains on.
- weak teachers: at least a quarter lies within, and what the others teach it is above 0, but the
  lift is below 1.

They are asked in this order: of a gradient that is luck nothing else can be known. Where a share of
the gradient is what decides, `own` must be above 0. An item that the others teach, with a lift of 1
or more, lacks nothing as far as gradients tell (`nothing seen`): an undetermined one may be so.
Where none is certain, `likely` is the reason by the values without their errors, and there whether
an item is taught at all comes before the sign of what little it is taught.
"""

from __future__ import annotations

from dataclasses import dataclass

from probes.statistics.distributions import student_t_quantile
from recipes.gaps.evidence import CONFIDENCE

LUCK, COMPETES, NOBODY = "luck", "competes", "nobody teaches"
WEAK, NOTHING, UNKNOWN = "weak teachers", "nothing seen", "unknown"
REASONS = {
    NOBODY: "its gradient lies outside what the others are trained towards",
    WEAK: "the others teach it, but too few or too weakly",
    COMPETES: "training on the others makes it rarer",
    LUCK: "its correct rollouts have nothing in common that wrong ones lack",
    NOTHING: "the others teach it as well as any: nothing is missing as far as seen",
    UNKNOWN: "too few rollouts to tell",
}
LUCK_BELOW = 0.05
OUTSIDE_BELOW = 0.25
ENOUGH_LIFT = 1.0


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; nan is unknown, and then nothing follows from it."""

    value: float
    low: float
    high: float

    @classmethod
    def by_error(cls, value: float, error: float, freedom: float) -> Estimate:
        """An interval of `CONFIDENCE`."""
        half = float(student_t_quantile((1 + CONFIDENCE) / 2, freedom)) * error
        return cls(value, value - half, value + half)

    def __str__(self) -> str:
        """With its interval."""
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    @property
    def is_known(self) -> bool:
        """Whether it was measured."""
        return self.value == self.value


@dataclass(frozen=True)
class Found:
    """The reason of an item."""

    reason: str
    likely: str
    """The same where the reason is certain; unknown where there is no gradient."""
    sentence: str


def luck_bound(typical: float) -> float:
    """Below this correct rollouts are luck, in a run where `own` is typically so much."""
    return min(LUCK_BELOW, max(typical, 0.0) / 4)


def why_not(
    draws: int,
    own: Estimate,
    inside: Estimate,
    from_others: Estimate,
    lift: float,
    typical: float,
    *,
    teachers: float = 0.0,
    against: str = "",
) -> Found:
    """The reason of one item.

    Args:
        draws: correct rollouts with a gradient.
        own, inside, from_others: of `recipes.gaps.evidence` and `probes.stages.lift`.
        lift: in the run's unit.
        typical: `own` in the run.
        teachers: how many items it would take to teach as much, were they alike.
        against: the item that it competes with most, in words.
    """
    if not draws:
        return Found(UNKNOWN, UNKNOWN, "no gradient of a correct rollout: nothing can be told")
    bound = luck_bound(typical)
    words = {
        LUCK: f"correct rollouts share {own} of a gradient that wrong ones lack",
        COMPETES: f"the others move it by {from_others}{against and f', most of all {against}'}",
        NOBODY: f"{inside} of its gradient lies within the span of the others' steps",
        WEAK: f"{inside} of its gradient lies within the span of the others' steps, and they lift "
        f"it by {from_others}, as much as {teachers:.1f} alike would",
        NOTHING: f"the others lift it by {from_others}, and lift {lift:.2f} in all is no less than "
        "that of items trained on",
    }  # fmt: skip
    certain = ""
    is_there = own.low > 0  # Else there may be no gradient of which a share could lie anywhere.
    is_lifted = lift >= ENOUGH_LIFT
    if own.high < bound:
        certain = LUCK
    elif from_others.high < 0:
        certain = COMPETES
    elif from_others.low > 0 and is_lifted:
        certain = NOTHING
    elif is_there and inside.high < OUTSIDE_BELOW and not from_others.high >= ENOUGH_LIFT:
        certain = NOBODY
    elif is_there and from_others.low > 0 and inside.low >= OUTSIDE_BELOW:
        certain = WEAK
    if certain:
        return Found(certain, certain, f"{certain}: {words[certain]}")
    likely = UNKNOWN
    if own.value < bound or not inside.is_known:
        likely = LUCK
    elif from_others.value >= ENOUGH_LIFT:
        likely = NOTHING
    elif inside.value < OUTSIDE_BELOW:
        likely = NOBODY
    elif from_others.value < 0:
        likely = COMPETES
    elif from_others.is_known:
        likely = NOTHING if is_lifted else WEAK
    few = f"from {draws} correct rollout{'s' * (draws != 1)}"
    if likely == UNKNOWN:
        return Found(UNKNOWN, UNKNOWN, f"not certain {few}, and the run has no lift")
    return Found(UNKNOWN, likely, f"not certain {few}, perhaps {likely}: {words[likely]}")
