"""How much gradient similarity an item needs to be learned, and how probably it has less.

RL lifts a hard item by transfer from the items that already carry signal. In log odds of the pass
rate p, the item needs

    logit τ − logit p

and training is taken to lift it by `LIFT` × similarity / s_easy, with s_easy the median similarity
of the run's easy items: an item that resembles them as they resemble each other is lifted by
`LIFT`, one that shares nothing with them (0) not at all. So it needs a similarity of

    threshold(p) = s_easy (logit τ − logit p) / LIFT

and with Student's t for the similarity, as in `probes.similarity`, and Jeffreys' posterior for p,

    p_unlearnable = P(similarity < threshold(p)) = E_p T_df((threshold(p) − similarity) / error),
    p ~ Beta(c + ½, n − c + ½).

`LIFT` = 3: in the planted world a third of s_easy separates best among items with a pass rate of
0.043 (docs/benchmarks.md), which need 0.9. How well the rule does where it was not made is in
docs/evidence. It is relative to the model's own scale, so it carries across models and feature
dimensions. The probability is over what was measured, not over what training does by chance.

An item with a single correct rollout has no similarity of its own. It is drawn from the run's hard
items like any other, so its p_unlearnable is the mean over theirs, at its own pass rate.

A threshold that the user gives is the same for all pass rates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, logit, stdtr
from scipy.stats import binom

Floats = NDArray[np.float64]

LIFT = 3.0
"""Log odds by which training lifts an item that is as similar as the easy items."""
FEWEST_EASY_ITEMS = 5
FEWEST_ITEMS_FOR_OTHERS = 5
_SIGN_TEST_LEVEL = 0.05
# Of a large run as many others speak for an item without a similarity.
_MOST_ITEMS_FOR_OTHERS = 4096
_NODES = 64
_ITEMS_AT_ONCE = 4096


@dataclass(frozen=True)
class SimilarityThreshold:
    """Where gradient similarity separates learnable from unlearnable, and where it came from."""

    fixed: float | None
    """What the user gave, for items of every pass rate."""
    easy: float | None
    """Median similarity of the easy items, which makes the threshold where the user gave none."""
    source: str
    """How it came about, or why there is none: for tag_reason and the manifest."""

    @property
    def is_known(self) -> bool:
        """Whether there is one."""
        return self.fixed is not None or self.easy is not None

    def at(self, pass_rate: Floats, tau: float) -> Floats:
        """Similarity needed at a pass rate between 0 and 1, of any shape; nan if not known."""
        if self.fixed is not None:
            return np.full(np.shape(pass_rate), self.fixed)
        easy = np.nan if self.easy is None else self.easy
        return np.asarray(easy * (logit(tau) - logit(pass_rate)) / LIFT)

    def facts(self, tau: float) -> dict[str, Any]:
        """For the manifest: `value` is what is needed at a pass rate of τ/2, None without one."""
        value = float(self.at(np.array(tau / 2), tau)) if self.is_known else None
        automatic = {} if self.easy is None else {"easy": self.easy, "lift": LIFT}
        return {"value": value, "source": self.source, **automatic}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> SimilarityThreshold:
        """Read what `facts` wrote; a `value` alone, as older runs have it, is a fixed one."""
        value, easy = facts.get("value"), facts.get("easy")
        return cls(
            float(value) if value is not None and easy is None else None,
            None if easy is None else float(easy),
            str(facts.get("source")),
        )


def given_threshold(value: float) -> SimilarityThreshold:
    """The threshold that the user named."""
    return SimilarityThreshold(value, None, "as given")


def similarity_threshold(easy_similarities: Iterable[float]) -> SimilarityThreshold:
    """The threshold by the gradient similarity of the easy items; nan among them is passed over.

    There is none (the source says why) with fewer than 5 easy items with a gradient, or where a
    one-sided sign test at 5 % cannot tell their median from 0: a share of nothing separates
    nothing.
    """
    similarities = np.array(list(easy_similarities), dtype=np.float64)
    similarities = similarities[~np.isnan(similarities)]
    count = len(similarities)
    if count < FEWEST_EASY_ITEMS:
        items = "easy item has" if count == 1 else "easy items have"
        return SimilarityThreshold(
            None,
            None,
            f"only {count} {items} a gradient and {FEWEST_EASY_ITEMS} are needed to set the "
            "similarity threshold: give --similarity-threshold or add easy items",
        )
    median = float(np.median(similarities))
    positive = int((similarities > 0).sum())
    if binom.sf(positive - 1, count, 0.5) > _SIGN_TEST_LEVEL:
        return SimilarityThreshold(
            None,
            None,
            f"the similarity of the {count} easy items (median {median:.3g}, {positive} above "
            "0) cannot be told from 0, so it sets no threshold: give --similarity-threshold, or "
            "measure more correct rollouts or more easy items",
        )
    return SimilarityThreshold(None, median, f"{count} easy items have a median of {median:.3g}")


@dataclass(frozen=True)
class HardEvidence:
    """What was measured on items: arrays of shape (items,), nan where it was not."""

    correct: NDArray[np.int64]
    judged: NDArray[np.int64]
    similarity: Floats
    standard_error: Floats
    degrees_of_freedom: Floats

    @property
    def is_measured(self) -> NDArray[np.bool_]:
        """Whether the item has a similarity with its error."""
        values = (self.similarity, self.standard_error, self.degrees_of_freedom)
        return np.asarray(np.isfinite(values).all(axis=0))

    def of(self, rows: NDArray[np.integer]) -> HardEvidence:
        """The evidence on some items."""
        return HardEvidence(
            self.correct[rows],
            self.judged[rows],
            self.similarity[rows],
            self.standard_error[rows],
            self.degrees_of_freedom[rows],
        )


@dataclass(frozen=True)
class Probabilities:
    """p_unlearnable of items."""

    p_unlearnable: Floats
    """(items,), nan where there is no ground for one."""
    others: int
    """Hard items that speak for those without a similarity; 0 where they are too few."""


def p_unlearnable(
    evidence: HardEvidence,
    is_hard: NDArray[np.bool_],
    threshold: SimilarityThreshold,
    tau: float,
    *,
    of_others: bool = True,
) -> Probabilities:
    """The probability of each hard item with a correct rollout to lie below the threshold.

    Args:
        evidence: on all items of the run.
        is_hard: (items,): those with a correct rollout and c/n below tau.
        threshold: of the run.
        tau: where an item is easy.
        of_others: whether items without a similarity get that of the others.
    """
    found = np.full(len(is_hard), np.nan)
    if not threshold.is_known:
        return Probabilities(found, 0)
    is_measured = evidence.is_measured & is_hard
    measured, rest = np.flatnonzero(is_measured), np.flatnonzero(is_hard & ~is_measured)
    for start in range(0, len(measured), _ITEMS_AT_ONCE):
        rows = measured[start : start + _ITEMS_AT_ONCE]
        part = evidence.of(rows)
        needed, weights = _needed(part, threshold, tau)
        found[rows] = _below(needed, part) @ weights
    if len(measured) < FEWEST_ITEMS_FOR_OTHERS:
        return Probabilities(found, 0)
    if of_others and len(rest):
        step = -(-len(measured) // _MOST_ITEMS_FOR_OTHERS)
        others = evidence.of(measured[::step])
        singles = evidence.of(rest)
        counts = np.column_stack([singles.correct, singles.judged])
        # Few different counts, so each is asked for once.
        _, first, back = np.unique(counts, axis=0, return_index=True, return_inverse=True)
        needed, weights = _needed(singles.of(first), threshold, tau)
        means = [float((_below(row[None, :], others) @ weights).mean()) for row in needed]
        found[rest] = np.array(means)[back.reshape(-1)]
    return Probabilities(found, len(measured))


def _needed(
    evidence: HardEvidence, threshold: SimilarityThreshold, tau: float
) -> tuple[Floats, Floats]:
    """Similarities needed at quantiles of the pass rate, (items, nodes), and their weights."""
    if threshold.fixed is not None:
        return np.full((len(evidence.correct), 1), threshold.fixed), np.ones(1)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    wrong = evidence.judged - evidence.correct
    pass_rate = betaincinv(evidence.correct[:, None] + 0.5, wrong[:, None] + 0.5, (nodes + 1) / 2)
    return threshold.at(pass_rate, tau), weights / 2


def _below(needed: Floats, evidence: HardEvidence) -> Floats:
    """P(similarity < needed) under a flat prior, (items, nodes); 0 or 1 where there is no error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (needed - evidence.similarity[:, None]) / evidence.standard_error[:, None]
    distance = np.nan_to_num(distance, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    return np.asarray(stdtr(evidence.degrees_of_freedom[:, None], distance), dtype=np.float64)
