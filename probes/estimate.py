"""What a run costs: rollouts, tokens, seconds and bytes, reckoned from a few rollouts really drawn.

    rollouts    round one: items × min_rollouts. All rounds: what the plan draws of items whose pass
                rates are like those of the sample (`fit_rates`), between forecasts that decide as
                soon as they are asked and forecasts that never do. At most: items × max_rollouts.
                A budget caps each.
    length      mean tokens of a completion that is cut at max_tokens: the area under the share of
                completions that are longer (Kaplan and Meier 1958), in which those that are still
                in the making count as far as they are. Where none is finished it is unknown: from
                what is in the making to max_tokens, which is what counts as expected
    sampling    rollouts × length × seconds a token
    verifying   rollouts × seconds a rollout
    gradients   of an item its first gradient_rollouts correct rollouts and, where it has one, its
                first gradient_wrong_rollouts wrong ones, equal ones once; × (prompt + length) ×
                seconds a token. Where no gradient was taken, a token costs what sampling one costs,
                between a third (a GPU, which samples slower than it computes) and twice
    gold        a forward pass without the backward one, half of a gradient's seconds a token: of an
                item its prompt once, and gold_prefixes rollouts, equal ones and cut ones left out
    disk        bytes a token and a rollout as in `probes.doctor.expected_size`, features at their
                largest, while they are joined, and 500 bytes an item
    memory      the peak of this process so far, and 3 kB an item; where no gradient was taken, what
                gradients need comes on top

Each figure is a span from low to high about what is expected. Factors count as independent: of a
product the logarithms of their errors are added in squares, of a sum the errors themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc

from curate.config import TagConfig
from probes.doctor.expected_size import (
    BYTES_A_ROLLOUT,
    BYTES_A_TOKEN,
    BYTES_AN_ITEM,
    MEMORY_BYTES_AN_ITEM,
)
from probes.statistics.distributions import binomial_pmf, binomial_tail, student_t_quantile
from probes.statistics.plan import PassRatePrior, Plan, rate_grid, rollouts_to_come, with_trace

Floats = NDArray[np.float64]

DAY, HOUR = 86_400.0, 3600.0
"""Seconds; for a run that may take more than a day the smaller plans are told."""
SAMPLED_TOKEN = (1 / 3, 1.0, 2.0)
"""Of a gradient's token, where none was taken: its seconds in those of a sampled token."""
GOLD_TOKEN = 0.5
"""Of a scored prefix: its seconds in those of a gradient's token."""
_PRIOR_ITEMS = 4.0
"""How many items of the sample the mixtures of the paper's Table 1 count as."""
_EM_STEPS = 50
_CONFIDENCE = 0.9
# One prompt tells little of others, but rollouts of it tell something of each other.
_LEAST_DEGREES = 3


class Span(NamedTuple):
    """What is expected, and the range in which it is likely to lie."""

    low: float
    middle: float
    high: float

    def times(self, factor: float) -> Span:
        """The span of a multiple."""
        return Span(self.low * factor, self.middle * factor, self.high * factor)

    def within(self, low: float, high: float) -> Span:
        """The same between two bounds."""
        return Span(*(min(max(each, low), high) for each in self))


def exactly(value: float) -> Span:
    """The span of what is known."""
    return Span(value, value, value)


def product(*factors: Span) -> Span:
    """The span of a product of independent factors."""
    middle = math.prod(each.middle for each in factors)
    if not middle:
        return exactly(0.0)
    below = math.hypot(*(math.log(each.middle / max(each.low, 1e-12)) for each in factors))
    above = math.hypot(*(math.log(each.high / each.middle) for each in factors))
    return Span(middle * math.exp(-below), middle, middle * math.exp(above))


def total(parts: Sequence[Span]) -> Span:
    """The span of a sum."""
    return Span(*(sum(each[place] for each in parts) for place in range(3)))


# --- What goes in --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a run is asked for."""

    items: int
    prompt_tokens: float
    """Of an item, on average."""
    max_tokens: int
    plan: Plan
    gradient_rollouts: int
    gradient_wrong_rollouts: int
    gradient_dim: int
    gold_prefixes: int
    target_items: int = 0
    """Items of the evaluation that are probed in one round before the others."""

    @classmethod
    def of(
        cls, config: TagConfig, plan: Plan, items: int, prompt_tokens: float, **more: Any
    ) -> Work:
        """The work of a run of `items` items, with its settings."""
        return cls(
            items=items,
            prompt_tokens=prompt_tokens,
            max_tokens=config.max_tokens,
            plan=plan,
            gradient_rollouts=config.gradient_rollouts,
            gradient_wrong_rollouts=config.gradient_wrong_rollouts,
            gradient_dim=config.gradient_dim,
            gold_prefixes=min(config.gold_prefixes, config.min_rollouts),
            **more,
        )


@dataclass(frozen=True)
class Sample:
    """Rollouts that were drawn at a run's own settings.

    Attributes:
        prompts: how many different items they are of.
        lengths: tokens of each that is finished, shape (rollouts,).
        prompt_of: which of the prompts it is of, from 0, shape (rollouts,).
        is_cut: whether it was cut at max_tokens, shape (rollouts,).
        unfinished: tokens so far of those that are not, shape (unfinished,).
        judged, correct: of each prompt, shape (prompts,); none was judged where they are empty.
        distinct: share of the finished ones that are not equal to another of their prompt.
    """

    prompts: int
    lengths: ArrayLike
    prompt_of: ArrayLike
    is_cut: ArrayLike
    unfinished: ArrayLike = ()
    judged: ArrayLike = ()
    correct: ArrayLike = ()
    distinct: float = 1.0

    @property
    def rollouts(self) -> int:
        """How many are finished."""
        return len(np.asarray(self.lengths))

    def cut_share(self, most: int) -> float:
        """Share of the completions that a limit of `most` tokens cuts, as `length`.

        0 where none is finished: then none is known to be cut.
        """
        return self._restricted(most)[2] if self.rollouts else 0.0

    def _restricted(self, most: int) -> tuple[float, float, float]:
        finished, cut = np.asarray(self.lengths, float), np.asarray(self.is_cut, bool)
        known = np.concatenate([finished, np.asarray(self.unfinished, float)])
        ends = np.concatenate([~cut, np.zeros(len(known) - len(finished), bool)])
        return _restricted(known, ends, float(most))

    def length(self, most: int) -> Span:
        """Mean tokens of a completion that is cut at `most`, at most the sample's max_tokens."""
        if not self.rollouts:
            making = np.asarray(self.unfinished, float)
            least = float(making.mean()) if len(making) else 1.0
            return Span(least, most, most).within(1.0, float(most))
        mean, deviation, _ = self._restricted(most)
        finished, prompt_of = np.minimum(np.asarray(self.lengths, float), most), self.prompt_of
        groups = [finished[np.asarray(prompt_of) == prompt] for prompt in range(self.prompts)]
        means = [float(group.mean()) for group in groups if len(group)]
        if not len(np.asarray(self.unfinished)) and len(means) > 1:
            # Rollouts of a prompt are alike in length, so that prompts count and not rollouts.
            deviation = float(np.std(means, ddof=1))
        prompts = max(len(means), 1)
        degrees = max(prompts - 1, _LEAST_DEGREES)
        error = (
            deviation
            / math.sqrt(prompts)
            * float(student_t_quantile((1 + _CONFIDENCE) / 2, degrees))
        )
        return Span(mean - error, mean, mean + error).within(min(mean, 1.0), float(most))


def _restricted(
    lengths: Floats, ends: NDArray[np.bool_], most: float
) -> tuple[float, float, float]:
    """Mean and deviation of min(length, most), from lengths of which some are only bounds.

    And the share that is cut there.
    """
    ends = ends & (lengths <= most)
    lengths = np.minimum(lengths, most)
    if not len(lengths):
        return most, 0.0, 1.0
    at, deaths = np.unique(lengths[ends], return_counts=True)
    at_risk = (lengths[None, :] >= at[:, None]).sum(axis=1)
    survival = np.concatenate([[1.0], np.cumprod(1 - deaths / at_risk)])
    last = float(lengths.max())
    edges = np.concatenate([[0.0], at, [last]])
    mean = float(np.diff(edges) @ survival)
    square = float(np.diff(edges**2) @ survival)
    cut, rest = float(survival[-1]), most - last
    if rest > 0 and cut > 0:
        # Beyond what was seen they end as often as they did before.
        hazard = ends.sum() / max(lengths.sum(), 1.0)
        beyond = rest if not hazard else (1 - math.exp(-hazard * rest)) / hazard
        mean += cut * beyond
        square += cut * beyond * (last + most)
        cut *= math.exp(-hazard * rest)
    return mean, math.sqrt(max(square - mean**2, 0.0)), cut


@dataclass(frozen=True)
class Prices:
    """What work takes on this machine, as far as it was measured."""

    token: Span
    """Seconds a sampled token, with as many rollouts at once as the run has."""
    verdict: float
    """Seconds a judged rollout."""
    gradient_token: Span | None = None
    """Seconds a token, prompt included, of a differentiated rollout; None: not measured."""
    ready: float = 0.0
    """Seconds until the first rollout is drawn."""
    memory_bytes: int = 0
    """Peak of this process so far."""

    @property
    def gradient(self) -> Span:
        """Seconds a token of a differentiated rollout, measured or derived."""
        derived = Span(*(factor * self.token.middle for factor in SAMPLED_TOKEN))
        return self.gradient_token or derived


# --- What comes out ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What a run costs."""

    round_one: int
    """Rollouts of the first round."""
    rollouts: Span
    most_rollouts: int
    length: Span
    """Tokens of a completion."""
    tokens: Span
    seconds: Mapping[str, Span]
    """By stage."""
    most_seconds: float
    """Where every item gets as many rollouts as it can, at the highest prices."""
    disk_bytes: Span
    most_disk_bytes: float
    memory_bytes: float

    @property
    def whole(self) -> Span:
        """Seconds of the run."""
        return total(list(self.seconds.values()))

    @property
    def is_long(self) -> bool:
        """Whether it may take more than a day."""
        return self.whole.high > DAY

    def facts(self) -> dict[str, Any]:
        """In plain values."""
        return {
            "rollouts": {
                "round_one": self.round_one,
                **_facts(self.rollouts),
                "at_most": self.most_rollouts,
            },
            "tokens_a_rollout": _facts(self.length),
            "tokens": _facts(self.tokens),
            "seconds": {
                **_facts(self.whole),
                "at_most": _short(self.most_seconds),
                "by_stage": {name: _facts(span) for name, span in self.seconds.items()},
            },
            "disk_bytes": {**_facts(self.disk_bytes), "at_most": _short(self.most_disk_bytes)},
            "memory_bytes": round(self.memory_bytes),
        }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _facts(span: Span) -> dict[str, float]:
    names = ("low", "expected", "high")
    return {name: _short(value) for name, value in zip(names, span, strict=True)}


def estimate(work: Work, sample: Sample, prices: Prices) -> Estimate:
    """Reckon what a run costs, all of it, from its first rollout on.

    Args:
        work: what it is asked for.
        sample: rollouts drawn at its settings, or at those with more max_tokens.
        prices: of this machine.
    """
    plan, items = work.plan, work.items
    rates = Rates.of(work, sample)
    cap = float(plan.max_rollouts)
    if plan.rollout_budget is not None:
        cap = min(cap, plan.rollout_budget / items)
    length = sample.length(work.max_tokens)
    each = rates.rollouts.within(min(plan.min_rollouts, cap), cap)
    target = work.target_items * plan.min_rollouts
    rollouts = Span(*(items * one + target for one in each))
    most = items * cap + target
    gradients = rates.gradients(work)
    most_gradients = min(cap, work.gradient_rollouts + work.gradient_wrong_rollouts)
    seconds_of = _Seconds(work, sample, prices, length)
    disk, most_disk = (
        Span(*(_disk(work, length.middle, one, each) for one in amount))
        for amount, each in (
            (rollouts, gradients.middle),
            (exactly(most), most_gradients),
        )
    )
    at_most = seconds_of(exactly(most), exactly(most_gradients))
    return Estimate(
        round_one=items * plan.min_rollouts + target,
        rollouts=rollouts,
        most_rollouts=round(most),
        length=length,
        tokens=product(rollouts, length),
        seconds=seconds_of(rollouts, gradients),
        most_seconds=total(list(at_most.values())).high,
        disk_bytes=disk,
        most_disk_bytes=most_disk.middle,
        memory_bytes=prices.memory_bytes + MEMORY_BYTES_AN_ITEM * items,
    )


@dataclass(frozen=True)
class _Seconds:
    work: Work
    sample: Sample
    prices: Prices
    length: Span

    def __call__(self, rollouts: Span, gradients: Span) -> dict[str, Span]:
        """By stage, for so many rollouts of the run, and gradients of an item."""
        work, prices = self.work, self.prices
        items = work.items + work.target_items
        whole = Span(*(work.prompt_tokens + each for each in self.length))
        prefixes = (
            work.gold_prefixes * (1 - self.sample.cut_share(work.max_tokens)) * self.sample.distinct
        )
        read = Span(*(work.prompt_tokens + prefixes * each for each in self.length))
        return {
            "start": exactly(prices.ready),
            "sampling": product(rollouts, self.length, prices.token),
            "verifying": rollouts.times(prices.verdict),
            "gradients": product(gradients.times(items), whole, prices.gradient),
            "gold": product(
                exactly(work.items if prefixes else 0), read, prices.gradient.times(GOLD_TOKEN)
            ),
        }


def _disk(work: Work, length: float, rollouts: float, gradients: float) -> float:
    items = work.items + work.target_items
    of_rollouts = rollouts * (BYTES_A_TOKEN * length + BYTES_A_ROLLOUT)
    of_gradients = items * (2 * gradients + 1) * 4 * work.gradient_dim
    return of_rollouts + of_gradients + items * (BYTES_AN_ITEM + BYTES_A_TOKEN * work.prompt_tokens)


# --- How many rollouts ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """The pass rates that a sample tells of, and what the plan draws of such items."""

    plan: Plan
    prior: PassRatePrior
    items: float
    """How many items it was fitted to, those that stand for what is known before among them."""
    distinct: float

    @classmethod
    def of(cls, work: Work, sample: Sample) -> Rates:
        """Fit them to a sample."""
        judged, correct = np.asarray(sample.judged, np.int64), np.asarray(sample.correct, np.int64)
        known = judged > 0
        prior = fit_rates(judged[known], correct[known], sample.cut_share(work.max_tokens))
        return cls(work.plan, prior, _PRIOR_ITEMS + known.sum(), sample.distinct)

    @cached_property
    def _to_come(self) -> tuple[Floats, Floats]:
        """After round one, by correct rollouts: where forecasts decide, and where they do not."""
        few, many = (rollouts_to_come(self.plan, self.prior, decided=d)[0] for d in (True, False))
        return few, many

    @cached_property
    def rollouts(self) -> Span:
        """Of an item, without a budget."""
        n = self.plan.min_rollouts
        chance = self.prior.weights @ self._round_one()
        few, many = self._to_come
        middle = (few + many) / 2
        mean = float(chance @ middle)
        error = math.sqrt(max(float(chance @ middle**2) - mean**2, 0.0) / self.items)
        error *= float(student_t_quantile((1 + _CONFIDENCE) / 2, self.items - 1))
        low = min(float(chance @ few), mean - error)
        high = max(float(chance @ many), mean + error)
        return Span(n + low, n + mean, n + high).within(n, self.plan.max_rollouts)

    def gradients(self, work: Work) -> Span:
        """Rollouts of an item that are differentiated, equal ones once."""
        rates, n = self.prior.rates, self.plan.min_rollouts
        few, many = self._to_come
        drawn = np.round(n + self._round_one() @ ((few + many) / 2)).astype(np.int64)[:, None]
        c = np.arange(work.gradient_rollouts)
        # E min(X, m) = the sum over c < m of P(X > c).
        right = binomial_tail(c[None, :], drawn, rates[:, None]).sum(axis=1)
        has_right = binomial_tail(0, drawn[:, 0], rates)
        wrong = np.minimum(work.gradient_wrong_rollouts, drawn[:, 0] * (1 - rates)) * has_right
        by_rate = (right + wrong) * self.distinct
        mean = float(self.prior.weights @ by_rate)
        error = math.sqrt(max(float(self.prior.weights @ by_rate**2) - mean**2, 0.0) / self.items)
        most = float(work.gradient_rollouts + work.gradient_wrong_rollouts)
        return Span(mean - error, mean, mean + error).within(mean / 10, most)

    def _round_one(self) -> Floats:
        """(rates, min_rollouts + 1): probability of so many correct rollouts in round one."""
        n = self.plan.min_rollouts
        return np.asarray(binomial_pmf(np.arange(n + 1), n, self.prior.rates[:, None]))


def fit_rates(judged: ArrayLike, correct: ArrayLike, cut_share: float = 0.0) -> PassRatePrior:
    """Distribution of the pass rates of a run, from a few items of it.

    The posterior mode of its weights where the mixtures of the paper's Table 1, half of the items
    easy, count as a handful of items beside the sample's. What is cut is wrong, so that their rates
    are lower where many completions are.

    Args:
        judged, correct: rollouts of each item of the sample, shape (items,); may be none.
        cut_share: of the completions.
    """
    n, c = np.asarray(judged, np.int64), np.asarray(correct, np.int64)
    rates = rate_grid()
    base = with_trace(_paper_weights(rates / max(1 - cut_share, 1e-3)))
    weights = base
    for _ in range(_EM_STEPS if len(n) else 0):
        responsible = PassRatePrior(rates, weights).posterior(n, c).sum(axis=0)
        weights = (_PRIOR_ITEMS * base + responsible) / (_PRIOR_ITEMS + len(n))
    return PassRatePrior(rates, weights)


def _paper_weights(rates: Floats) -> Floats:
    """Of the mean mixture of Table 1, as `benchmarks/estimators/sampling_plan.py` assumes it."""
    edges = np.concatenate([[0.0], (rates[1:] + rates[:-1]) / 2, [max(rates[-1], 1.0)]])
    weights = np.zeros(len(rates))
    for share, (a, b), (low, high) in (
        (0.5, (1.0, 1.0), (0.1, 1.0)),
        (0.158, (1.0, 50.0), (0.0, 0.1)),
        (0.162, (1.5, 30.0), (0.0, 0.1)),
        (0.18, (0.2, 100.0), (0.0, 0.1)),
    ):
        inside = np.diff(betainc(a, b, np.clip(edges, low, high)))
        weights += share * inside / inside.sum()
    return np.asarray(weights / weights.sum())


# --- Smaller plans -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmallerPlan:
    """Options that make a run shorter, and what it then costs."""

    options: str
    loses: str
    """What the tags lose."""
    estimate: Estimate


def smaller_plans(work: Work, sample: Sample, prices: Prices) -> list[SmallerPlan]:
    """Plans that cost less than a run as it is, dearest first."""
    now = estimate(work, sample, prices).whole.middle
    found = []
    for options, loses, smaller in _candidates(work, sample, now):
        cost = estimate(smaller, sample, prices)
        if cost.whole.middle < 0.9 * now:
            found.append(SmallerPlan(options, loses, cost))
    return sorted(found, key=lambda each: -each.estimate.whole.middle)


def _candidates(work: Work, sample: Sample, now: float) -> list[tuple[str, str, Work]]:
    plan, items = work.plan, work.items
    few, many = plan.min_rollouts, plan.max_rollouts
    found = []

    def add(options: str, loses: str, **changes: Any) -> None:
        of_plan: dict[str, Any] = {
            name: changes.pop(name) for name in list(changes) if hasattr(plan, name)
        }
        if of_plan:
            changes["plan"] = replace(plan, **of_plan)
        found.append((options, loses, replace(work, **changes)))

    quarter = many // 4
    if quarter > few:
        add(f"--max-rollouts {quarter}", "rarer successes are missed", max_rollouts=quarter)
    tenth = math.ceil(items * many / 10)
    if many > few and tenth > items * few and plan.rollout_budget is None:
        loses = "rollouts go where they decide most"
        add(f"--rollout-budget {tenth}", loses, rollout_budget=tenth)
    one_round: dict[str, Any] = {"max_rollouts": few, "rollout_budget": None}
    if many > few:
        add(f"--max-rollouts {few}", "one round, as many rollouts for every item", **one_round)
    half = work.max_tokens // 2
    if half and sample.length(half).middle < 0.9 * sample.length(work.max_tokens).middle:
        share = f"{sample.cut_share(half):.0%} of the" if sample.rollouts else "maybe more"
        loses = f"{share} completions are cut, and count as wrong"
        add(f"--max-tokens {half}", loses, max_tokens=half)
    time, name = (DAY, "a day") if now > DAY else (HOUR, "an hour")
    if now > time and items > 1:
        fewer = _round_down(items * time / now)
        add(f"--limit {fewer}", f"the first rows alone, in {name}", items=fewer)
        if many > few:
            cheap = replace(work, plan=replace(plan, **one_round))
            found.append(_both(cheap, few, fewer))
    return found


def _both(work: Work, few: int, fewer: int) -> tuple[str, str, Work]:
    """One round of the first rows."""
    options = f"--max-rollouts {few} --limit {fewer}"
    return options, "one round of the first rows", replace(work, items=fewer)


def _round_down(value: float) -> int:
    """To two digits, at least 1."""
    unit: int = 10 ** max(math.floor(math.log10(max(value, 1.0))) - 1, 0)
    return max(int(value // unit) * unit, 1)
