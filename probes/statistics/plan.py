"""How many rollouts each item gets, in rounds, and what may be said of an item that stopped early.

A round takes items to the next of the sizes min, 2·min, 4·min, … max rollouts ("looks"). An item
stops once its interval is wholly at or above τ (easy), or wholly below τ with a positive rollout
and, where the caller has forecasts, with its forecast decided. Everything else would go
on to `max_rollouts`; a global budget cuts that short where rollouts buy least.

**Interval.** With K looks and CP(n, c, γ) the Clopper–Pearson interval at confidence γ,

    interval(n, c) = CP(n, c, 1 − α/K),   α = 1 − confidence

All K intervals of an item hold at once with probability 1 − α (Bonferroni), so the interval in
hand holds whatever made the item stop: a boundary, the budget, other items, its gradients, a user
who looks and stops. With one look it is the Clopper–Pearson interval. Why this one, for looks at
32, 64, … 1024 and 95 %, as `benchmarks/estimators/sampling_plan.py --intervals` prints it:

    expected width at p =      0.005    0.05     0.1     0.2     0.5   least coverage
    this                       0.042   0.067   0.053   0.243   0.459   97.2 %
    inversion, ordered by c/n  0.031   0.056   0.040   0.194   0.356   95.0 %
    mixture martingale         0.049   0.084   0.071   0.285   0.508   99.5 %
    CP as if n were fixed      0.031   0.051   0.040   0.186   0.357   90.4 %

Inverting the exact law of (n, c) is a quarter shorter, but its level is only as good as that law
is known: a stopping boundary fixed beforehand, which neither a budget shared with other items nor
their forecast is. So that quarter is given up for a level that nothing voids.

**Pass rate.** c/n where sampling stopped is biased: up to +0.025 (at p = 0.21), because an item
that looks easy by luck stops with its luck. Reported is the Rao–Blackwell estimate, the mean of
the first round's unbiased c₁/n₁ over all orders of the rollouts that lead to the same end
(Girshick, Mosteller and Savage 1946):

    E[c₁/n₁ | stopped at (n_k, c_k)] = a_k(c_k) / w_k(c_k),    w_1(c) = 1,  a_1(c) = c/n₁
    w_k(c) = Σ_b Hyp(b; n_k, c, n_{k−1}) s_{k−1}(b) w_{k−1}(b),    a_k likewise

with Hyp the probability of b correct among the first n_{k−1} of n_k rollouts when c of the n_k are
correct, and s_k(b) the share of the items at (n_k, b) that went on. For a rule that looks at counts
alone s is 0 or 1 and the estimate is exactly unbiased. Budget and forecast let some of a cell's
items go on. Their share is counted in the run, so the estimate is then unbiased up to the error of
that share: below 0.005 in runs of 10,000 items, but near 0.01 for p just above τ in runs of 30
items that may spend a tenth of 30 × `max_rollouts`. It is the number for `pass_rate`; labels go by
c/n, as with a fixed number of rollouts.

**Where the budget goes.** Where it keeps most labels. With A the probability, given the counts,
that `max_rollouts` would give the label that the item has now, and λ a price per rollout,

    V_k(c) = max(A_k(c), E[V_{k+1}(c') | n_k, c] − λ (n_{k+1} − n_k))

says where more rollouts are worth their price: the optimal stopping of one item (backward
induction). λ is the price at which the open items are expected to spend what is left, found anew
before each round. Labels are easy (c/n ≥ τ), hard with positives, no positive. Both probabilities
are under the distribution of pass rates fitted to the run's own items (nonparametric maximum
likelihood, Laird 1978, by EM on a grid). This departs from a beta prior because Table 1 of arXiv
2605.16787 is a mixture: a beta cannot hold both the items that never succeed and those that nearly
always do.

**no_positive** at `max_rollouts` means c = 0 of that many, and an item with p = 0.001 has a
positive there with probability 0.64. No smaller number settles it: the risk of c = 0 at n and
c > 0 at max, (1 − p)^n (1 − (1 − p)^(max − n)), for the p at which it is largest, is

    n of 1024    32     64    128    256    512
    risk       0.87   0.78   0.65   0.47   0.25
    worst p   .0035  .0029  .0023  .0018  .0014

So c = 0 never stops an item by itself; the budget does, least promising items first, and
`label_risk` says what that leaves open in this run. Without a budget they get `max_rollouts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, xlog1py, xlogy

from probes.statistics.distributions import binomial_pmf, binomial_tail
from probes.statistics.pass_rates import pass_rate_interval

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_EM_STEPS = 200
_TRACE = 1e-6
# A rollout that keeps less than a label in 1e9 is free, one that keeps a whole label the dearest.
_PRICES = (1e-9, 1.0)
_PRICE_STEPS = 24


@dataclass(frozen=True)
class Plan:
    """What a run may spend on rollouts, and on what evidence an item stops.

    Raises ValueError for settings that contradict one another.
    """

    min_rollouts: int = 32
    """Every item gets these."""
    max_rollouts: int = 1024
    """No item gets more."""
    tau: float = 0.1
    """Pass rate from which an item is easy."""
    confidence: float = 0.95
    """Of the pass rate's interval, and so of the decision between easy and hard."""
    rollout_budget: int | None = None
    """Rollouts of the whole run; None: as many as the items ask for."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_rollouts <= self.max_rollouts:
            raise ValueError(
                "a plan needs 1 ≤ min_rollouts ≤ max_rollouts, got "
                f"{self.min_rollouts} and {self.max_rollouts}"
            )
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau must be above 0 and at most 1, got {self.tau}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")
        if self.rollout_budget is not None and self.rollout_budget < self.min_rollouts:
            raise ValueError(
                f"rollout_budget {self.rollout_budget} does not reach min_rollouts "
                f"{self.min_rollouts} for a single item"
            )

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Rollouts at which an item may stop: min, doubled until max, and max itself."""
        sizes = [self.min_rollouts]
        while sizes[-1] < self.max_rollouts:
            sizes.append(min(2 * sizes[-1], self.max_rollouts))
        return tuple(sizes)


@dataclass(frozen=True)
class PassRatePrior:
    """Distribution of the true pass rate over a run's items, on a grid."""

    rates: Floats
    """(grid,) pass rates, ascending from 0 to 1."""
    weights: Floats
    """(grid,) their probabilities."""

    def posterior(self, n: ArrayLike, c: ArrayLike) -> Floats:
        """(items, grid): probability of each rate for an item with `c` correct of `n`."""
        likelihood = _likelihood(self.rates, np.asarray(n), np.asarray(c)) * self.weights
        return np.asarray(likelihood / likelihood.sum(axis=1, keepdims=True))


def sequential_interval(plan: Plan, n: ArrayLike, c: ArrayLike) -> tuple[Floats, Floats]:
    """Interval (low, high) of the pass rate, whatever made sampling stop at this look.

    Args:
        plan: gives the confidence and the number of looks to share its error between.
        n: judged rollouts, shape (items,).
        c: correct ones, shape (items,).

    Returns:
        low and high, shape (items,); nan where n = 0. Raises ValueError for not 0 ≤ c ≤ n.
    """
    error = (1 - plan.confidence) / len(plan.looks)
    return pass_rate_interval(
        np.atleast_1d(np.asarray(c, np.int64)), np.atleast_1d(np.asarray(n, np.int64)), 1 - error
    )


def still_open(
    plan: Plan, n: ArrayLike, c: ArrayLike, forecast_decided: ArrayLike | None = None
) -> Flags:
    """(items,): whether an item has something left to learn from more rollouts, cost aside.

    Open are items of which neither easy nor hard is decided, items without a positive rollout, and
    hard items whose forecast is known to be undecided. Items of which nothing could be judged are
    not: the verifier would hardly judge the next rollouts. Arguments as for `next_round`.
    """
    c = np.atleast_1d(np.asarray(c, np.int64))
    low, high = sequential_interval(plan, n, c)
    easy, hard = low >= plan.tau, (high < plan.tau) & (c > 0)
    if forecast_decided is not None:
        hard &= np.asarray(forecast_decided, bool)
    return np.asarray((np.asarray(n) > 0) & ~(easy | hard))


def next_round(
    plan: Plan,
    n: ArrayLike,
    c: ArrayLike,
    forecast_decided: ArrayLike | None = None,
    *,
    drawn: ArrayLike | None = None,
    ties: ArrayLike | None = None,
) -> Counts:
    """Rollouts that each item gets in the next round; all 0 when sampling is finished.

    A pure function of its arguments, so a run that was cut off after a round goes on as it would
    have. Each call serves at least one item or ends the run, and never passes the budget.

    Args:
        plan: the plan.
        n: judged rollouts so far, shape (items,).
        c: correct ones, shape (items,).
        forecast_decided: bool, shape (items,): whether more rollouts would hardly change what the
            forecast says of the item. None: forecasts stop nothing.
        drawn: rollouts so far with those that could not be judged; the budget counts these.
            Default: n.
        ties: shape (items,): among items with equal claims those with smaller numbers are served
            first. Numbers that depend on the item alone (its hash) make the answer independent of
            the order of the items. Default: the position.

    Returns:
        extra rollouts, shape (items,).

    Raises:
        ValueError: counts that are impossible, or a budget below min_rollouts for every item.
    """
    n, c = np.asarray(n, np.int64), np.asarray(c, np.int64)
    drawn = n if drawn is None else np.asarray(drawn, np.int64)
    if not n.shape == c.shape == drawn.shape or n.ndim != 1:
        raise ValueError("n, c and drawn must have one number for each item")
    if np.any(c < 0) or np.any(c > n) or np.any(n > drawn):
        raise ValueError("counts must satisfy 0 ≤ correct ≤ judged ≤ drawn for every item")
    first: Counts = np.maximum(plan.min_rollouts - drawn, 0)
    spent = int(drawn.sum())
    left = None if plan.rollout_budget is None else plan.rollout_budget - spent
    if first.any():
        if left is not None and first.sum() > left:
            raise ValueError(
                f"rollout_budget {plan.rollout_budget} is below the {spent + first.sum()} rollouts "
                f"that {len(n)} items with min_rollouts {plan.min_rollouts} need"
            )
        return first
    looks = np.array(plan.looks)
    at = np.searchsorted(looks, drawn, side="right") - 1
    cost = np.maximum(looks[np.minimum(at + 1, len(looks) - 1)] - drawn, 0)
    is_open = still_open(plan, n, c, forecast_decided) & (cost > 0)
    if left is None:
        return np.where(is_open, cost, 0)
    extra: Counts = np.zeros_like(cost)
    items = np.flatnonzero(is_open & (cost <= left))
    if not len(items):
        return extra
    prior = fit_prior(n, c)
    by_forecast = np.zeros(len(n))
    if forecast_decided is not None:
        undecided = ~np.asarray(forecast_decided, bool)
        by_forecast = _forecasts_per_rollout(plan, prior, n, c, cost, undecided)
    dear, cheap = _worth_it(
        _lattice(plan, prior), at[items], c[items], cost[items], by_forecast[items], left
    )
    # What is worth a little more than the price goes first; ties decide among the rest.
    tie = items if ties is None else np.asarray(ties)[items]
    ranked = np.lexsort((tie, ~dear))
    served = items[ranked[cheap[ranked]]]
    served = served[np.cumsum(cost[served]) <= left]
    extra[served] = cost[served]
    return extra


def rate_grid() -> Floats:
    """(grid,): the pass rates that a prior has weights of, ascending from 0 to 1."""
    # No number of rollouts that anyone can pay tells a rate below 1e-5 from 0.
    return np.concatenate([[0], np.geomspace(1e-5, 0.05, 60), np.linspace(0.06, 1, 95)])


def fit_prior(n: ArrayLike, c: ArrayLike) -> PassRatePrior:
    """Distribution of the pass rate that makes the items' counts likeliest, from shape (items,).

    How an item came to stop does not enter: given its counts, the likelihood is the binomial's.
    """
    rates = rate_grid()
    cells, items = np.unique(
        np.stack([np.asarray(n, np.int64), np.asarray(c, np.int64)]), axis=1, return_counts=True
    )
    likelihood = _likelihood(rates, cells[0], cells[1])
    weights = np.full(len(rates), 1 / len(rates))
    for _ in range(_EM_STEPS):
        share = likelihood * weights
        weights = items @ (share / share.sum(axis=1, keepdims=True)) / items.sum()
    return PassRatePrior(rates, with_trace(weights))


def with_trace(weights: Floats) -> Floats:
    """(grid,): with a trace of every rate, so that any counts at all have a posterior."""
    return (1 - _TRACE) * weights + _TRACE / len(weights)


def label_risk(
    plan: Plan, n: ArrayLike, c: ArrayLike, prior: PassRatePrior | None = None
) -> Floats:
    """(items,): probability that `max_rollouts` would give another label than c of n does.

    Labels are easy, hard with positives, no positive. nan where n = 0. Its sum over the items that
    stopped is the number of labels that the saving is expected to have cost.

    Args:
        plan: the plan.
        n: judged rollouts, shape (items,).
        c: correct ones, shape (items,).
        prior: default `fit_prior(n, c)`.
    """
    n, c = np.atleast_1d(np.asarray(n, np.int64)), np.atleast_1d(np.asarray(c, np.int64))
    prior = prior or fit_prior(n, c)
    cells, position = np.unique(np.stack([n, c]), axis=1, return_inverse=True)
    risk = 1 - _agreement(plan, prior, cells[0], cells[1])
    return np.where(n == 0, np.nan, risk[position.reshape(-1)])


def rollouts_to_come(plan: Plan, prior: PassRatePrior, *, decided: bool) -> list[Floats]:
    """Rollouts that an item is expected to get yet, by look, for each number of correct ones.

    Without a budget, and with forecasts that decide as soon as they are asked or never: what a run
    draws lies between the two.

    Args:
        plan: the plan.
        prior: of the pass rates.
        decided: what forecasts say of every hard item.

    Returns:
        for each look, shape (look + 1,): those of an item with c correct.
    """
    expected = np.zeros(plan.looks[-1] + 1)
    by_look = [expected]
    for look, following in reversed(list(pairwise(plan.looks))):
        c, size = np.arange(look + 1), following - look
        ahead = prior.posterior(np.full(look + 1, look), c) @ binomial_pmf(
            np.arange(size + 1), size, prior.rates[:, None]
        )
        windows = np.lib.stride_tricks.sliding_window_view(expected, size + 1)
        is_open = still_open(plan, np.full(look + 1, look), c, np.full(look + 1, decided))
        expected = np.where(is_open, size + np.einsum("cx,cx->c", ahead, windows), 0.0)
        by_look.insert(0, expected)
    return by_look


def sequential_pass_rate(plan: Plan, judged: ArrayLike, correct: ArrayLike) -> Floats:
    """Pass rate of each item of a finished run, freed of the bias of early stopping.

    Args:
        plan: the plan that the run followed.
        judged: shape (items, looks): judged rollouts among the item's first looks[k]; −1 for looks
            that the item did not reach.
        correct: shape (items, looks): correct ones among them, −1 likewise.

    Returns:
        shape (items,), within `sequential_interval`; nan where nothing was judged.

    Raises:
        ValueError: shapes that do not fit the plan or each other.
    """
    judged, correct = np.asarray(judged, np.int64), np.asarray(correct, np.int64)
    if judged.shape != correct.shape or judged.shape[1:] != (len(plan.looks),):
        raise ValueError(f"judged and correct must both be (items, {len(plan.looks)})")
    rounds = (judged >= 0).sum(axis=1)
    if np.any(rounds == 0):
        raise ValueError("every item needs the counts of its first look")
    rows = np.arange(len(judged))
    n, c = judged[rows, rounds - 1], correct[rows, rounds - 1]
    shares = _shares_going_on(plan, correct, rounds)
    with np.errstate(invalid="ignore"):
        rate = c / n
    # Items that had the same rollouts judged share a lattice: nearly always all of a round.
    paths, group = np.unique(judged, axis=0, return_inverse=True)
    for number, sizes in enumerate(paths):
        members = np.flatnonzero(group.reshape(-1) == number)
        reached = sizes[sizes >= 0]
        if reached[0] > 0:
            table = unbiased_rates(reached.tolist(), shares, int(c[members].max()))
            rate[members] = table[c[members]]
    low, high = sequential_interval(plan, n, c)
    return np.asarray(np.clip(rate, low, high))


def unbiased_rates(sizes: list[int], shares: list[Floats], most: int) -> Floats:
    """Rao–Blackwell estimates at the last of `sizes` rollouts, for c = 0 … `most` correct.

    Args:
        sizes: rollouts judged after each round; the first is at least 1.
        shares: for each round but the last, shape (at least size + 1,): share of the items at c
            correct that went on, whatever their history.
        most: largest c wanted.

    Returns:
        shape (min(most, sizes[-1]) + 1,); nan where no item can arrive.
    """
    c = np.arange(min(most, sizes[0]) + 1)
    ways, first = np.ones(len(c)), c / sizes[0]
    for before, size, share in zip(sizes, sizes[1:], shares, strict=False):
        step = _earlier_counts(before, size, most)  # (c now, c before)
        share = share[: step.shape[1]]
        ways, first = step @ (share * ways), step @ (share * first)
    return np.asarray(np.divide(first, ways, out=np.full(len(ways), np.nan), where=ways > 0))


def _shares_going_on(plan: Plan, correct: Counts, rounds: Counts) -> list[Floats]:
    """Share of the items at each (look, c) that went on, by look; shape (look + 1,) each."""
    shares = []
    for k, look in enumerate(plan.looks[:-1]):
        at, on = rounds > k, rounds > k + 1
        arrived = np.bincount(correct[at, k], minlength=look + 1)
        went_on = np.bincount(correct[on, k], minlength=look + 1)
        c = np.arange(look + 1)
        rule = still_open(plan, np.full(look + 1, look), c)
        # One imagined item that follows the rule fills the cells that no item of the run visited.
        shares.append((went_on + rule) / (arrived + 1))
    return shares


def _earlier_counts(before: int, size: int, most: int) -> Floats:
    """(c, b): P(b correct among the first `before` of `size` rollouts, c ≤ `most` of them correct).

    All orders of the rollouts are equally likely given c, so it is hypergeometric.
    """
    log_factorial = gammaln(np.arange(size + 1) + 1.0)

    def log_choose(total: int, chosen: Counts) -> Floats:
        inside = np.clip(chosen, 0, total)
        value = log_factorial[total] - log_factorial[inside] - log_factorial[total - inside]
        return np.where(inside == chosen, value, -np.inf)

    c = np.arange(min(most, size) + 1)[:, None]
    b = np.arange(min(most, before) + 1)[None, :]
    ways = log_choose(before, b) + log_choose(size - before, c - b) - log_choose(size, c)
    return np.asarray(np.exp(ways))


def _likelihood(rates: Floats, n: Counts, c: Counts) -> Floats:
    """(items, grid): likelihood of each rate, scaled so that an item's largest is 1."""
    log = xlogy(c[:, None], rates) + xlog1py((n - c)[:, None], -rates)
    return np.asarray(np.exp(log - log.max(axis=1, keepdims=True)))


def _easy_from(plan: Plan, n: Counts) -> Counts:
    """Fewest correct of n at which c/n ≥ τ, in the division's own rounding."""
    below = np.maximum(np.ceil(plan.tau * n).astype(np.int64) - 1, 0)
    return np.asarray(np.where(below / np.maximum(n, 1) >= plan.tau, below, below + 1))


def _agreement(plan: Plan, prior: PassRatePrior, n: Counts, c: Counts) -> Floats:
    """(cells,): probability that `max_rollouts` gives the label that c of n gives."""
    top = np.array([plan.max_rollouts])
    more = np.maximum(top - n, 0)[:, None]
    posterior = prior.posterior(n, c)
    needed = (_easy_from(plan, top) - c)[:, None]
    easy = (posterior * binomial_tail(needed - 1, more, prior.rates)).sum(axis=1)
    none = np.where(c == 0, (posterior * np.exp(xlog1py(more, -prior.rates))).sum(axis=1), 0.0)
    return np.select([c >= _easy_from(plan, n), c == 0], [easy, none], 1 - easy - none)


@dataclass(frozen=True)
class _Lattice:
    """Every (look, c) that an item can be at; lists have one entry a look."""

    looks: tuple[int, ...]
    agreement: list[Floats]
    """(look + 1,): A."""
    ahead: list[Floats]
    """(look + 1, next look − look + 1): probability of x more correct; none for the last look."""
    is_open: list[Flags]
    """(look + 1,): where the rule lets an item go on."""

    def policy(self, price: float) -> tuple[list[Flags], list[Floats]]:
        """By look, (look + 1,): where going on is worth `price`, and rollouts expected from there.

        No cell of the last look goes on.
        """
        value = self.agreement[-1]
        expected = np.zeros_like(value)
        goes, spend = [np.zeros(len(value), bool)], [expected]
        for k in range(len(self.looks) - 2, -1, -1):
            size = self.looks[k + 1] - self.looks[k]
            gain = self._mean_ahead(k, value) - price * size
            go = self.is_open[k] & (gain > self.agreement[k])
            value = np.where(go, gain, self.agreement[k])
            expected = np.where(go, self._mean_ahead(k, expected) + size, 0.0)
            goes.insert(0, go)
            spend.insert(0, expected)
        return goes, spend

    def _mean_ahead(self, k: int, values: Floats) -> Floats:
        """Mean of the next look's `values` as seen from every c of look k."""
        windows = np.lib.stride_tricks.sliding_window_view(values, self.ahead[k].shape[1])
        return np.asarray(np.einsum("cx,cx->c", self.ahead[k], windows))


def _lattice(plan: Plan, prior: PassRatePrior) -> _Lattice:
    agreement, ahead, is_open = [], [], []
    for k, look in enumerate(plan.looks):
        c = np.arange(look + 1)
        n = np.full(look + 1, look)
        agreement.append(_agreement(plan, prior, n, c))
        is_open.append(still_open(plan, n, c))
        if look < plan.max_rollouts:
            size = plan.looks[k + 1] - look
            correct = binomial_pmf(np.arange(size + 1), size, prior.rates[:, None])
            ahead.append(prior.posterior(n, c) @ correct)
    return _Lattice(plan.looks, agreement, ahead, is_open)


def _worth_it(
    lattice: _Lattice, at: Counts, c: Counts, cost: Counts, by_forecast: Floats, left: int
) -> tuple[Flags, Flags]:
    """(items,) twice: the items worth just more, and just less, than the price that spends `left`.

    The first are expected to spend at most `left`, the second more than that; where there is enough
    for all that is worth anything, the second are all items.
    """
    starts = np.cumsum([0, *(look + 1 for look in lattice.looks)])
    # A resumed round leaves an item between looks; for its claim the look behind it will do.
    cell = starts[at] + np.minimum(c, np.array(lattice.looks)[at])

    def at_price(price: float) -> tuple[Flags, float]:
        goes, spend = lattice.policy(price)
        for_label, for_forecast = np.concatenate(goes)[cell], by_forecast > price
        expected = np.where(for_label, np.concatenate(spend)[cell], cost * for_forecast)
        return for_label | for_forecast, float(expected.sum())

    worth, spent = at_price(0.0)
    if spent <= left:
        return worth, np.ones_like(worth)
    low, high = _PRICES
    for _ in range(_PRICE_STEPS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if at_price(middle)[1] > left else (low, middle)
    return at_price(high)[0], at_price(low)[0]


def _forecasts_per_rollout(
    plan: Plan, prior: PassRatePrior, n: Counts, c: Counts, cost: Counts, undecided: Flags
) -> Floats:
    """(items,): forecasts that a rollout of the next round is expected to decide.

    Twice the correct rollouts halve the variance of an item's gradient. How often that decides is
    what the run's other hard items say (Laplace's rule of succession).
    """
    hard = (c > 0) & (c < _easy_from(plan, n))
    wanting = hard & undecided & (cost > 0)
    chance = ((hard & ~undecided).sum() + 1) / (hard.sum() + 2)
    gain = np.zeros(len(n))
    n, c, cost = n[wanting], c[wanting], cost[wanting]
    doubles = binomial_tail(c[:, None] - 1, cost[:, None], prior.rates)
    gain[wanting] = chance * (prior.posterior(n, c) * doubles).sum(axis=1) / cost
    return gain
