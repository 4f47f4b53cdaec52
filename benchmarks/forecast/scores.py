"""What can be said of a probed item before training, each score by its name.

Scores are higher where an item is expected to be learned. An item of which a score says nothing
(without a correct rollout there is no gradient) comes last in it: among items with a few correct
rollouts in a thousand, those without one among the first few are the rarer right.

    pass rate            (c + 1/2) / (n + 1)
    with kin             log odds of it + KIN_WEIGHT * their mean over the other items of the skill
    mean cosine          of the item's mean gradient with those of the easy items, as the paper
                         (arXiv 2605.16787) has it
    former rule          P(similarity >= s_easy (logit tau - logit p) / 3), curate's before lift
    with gold            posterior mean of p, from the counts and the gold answer's probability
    lift                 by gradients or by a pilot, as the product measures it
    forecast             1 - p_unlearnable, with the posterior of p given counts and gold; beside it
                         given the counts alone, and given those of all rollouts, a ceiling
    pilot's rewards      pass rate with the rollouts added that the pilot drew
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, logit, stdtr

from benchmarks.forecast.data import Probe, World
from benchmarks.forecast.pilot import pilot_folders, pilot_lift, pilot_pass_rate
from curate.run.features import RolloutFeatures
from curate.run.rollouts import Outcomes
from probes.forecast.model import Constants
from probes.forecast.pass_probability import PassProbability, fit_pass_probability
from probes.gradients.similarity import mean_directions, measure_similarity
from probes.stages.forecast import run_forecast
from probes.stages.lift import GRADIENTS, PILOT, ItemLift
from probes.statistics.plan import Plan, sequential_interval

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

KIN_WEIGHT = 0.5
"""By AUROC on the design worlds, `python -m benchmarks.forecast fit` prints it."""
KIN_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)
PASS_RATE = "pass rate"
BY_GRADIENTS, BY_PILOT = "forecast by gradients", "forecast by pilot"
_FORMER_GAIN = 3.0
_FEWEST_EASY = 5
_NODES = 64


@dataclass(frozen=True)
class Scores:
    """Of all items of a world at one budget."""

    ranking: Mapping[str, Floats]
    """By name: (items,), higher where the item is expected to be learned."""
    p_unlearnable: Mapping[str, Floats]
    """Of those scores that are probabilities, (items,)."""


def all_scores(probe: Probe, constants: Mapping[str, Constants]) -> Scores:
    """Compute every score of a probe.

    Args:
        probe: of a world.
        constants: of the forecast, by source of the lift.
    """
    world, found, config = probe.world, probe.found, probe.world.config
    gradients = probe.lift
    ranking: dict[str, Floats] = {
        PASS_RATE: probe.pass_rate,
        "pass rate with kin": with_kin(probe.pass_rate, world.skills, KIN_WEIGHT),
        "mean cosine (the paper's)": last(mean_cosine(probe.features, found.is_easy(config.tau))),
        "former rule": last(former_rule(probe.features, found, config.tau)),
        "pass rate with gold": probe.probability.mean(),
        "lift by gradients": last(gradients.lift),
    }
    counts_alone = fit_pass_probability(found.judged, found.correct)
    all_counts = fit_pass_probability(*_all_counts(world))
    probabilities = {
        BY_GRADIENTS: forecast(probe, gradients, GRADIENTS, constants, probe.probability),
        "the same without gold": forecast(probe, gradients, GRADIENTS, constants, counts_alone),
        "the same, p known": forecast(probe, gradients, GRADIENTS, constants, all_counts),
    }
    folders = pilot_folders(world)
    if folders:
        pilot = pilot_lift(probe, folders)
        ranking["pilot's rewards"] = pilot_pass_rate(probe, folders)
        ranking["lift by pilot"] = last(pilot.lift)
        probabilities[BY_PILOT] = forecast(probe, pilot, PILOT, constants, probe.probability)
    ranking |= {name: 1 - value for name, value in probabilities.items()}
    return Scores(ranking, probabilities)


def forecast(
    probe: Probe,
    lift: ItemLift,
    source: str,
    constants: Mapping[str, Constants],
    probability: PassProbability,
) -> Floats:
    """p_unlearnable of every item, (items,), as the product computes it.

    Args:
        probe: of a world.
        lift: of its items.
        source: of the lift.
        constants: of the forecast, by source.
        probability: posterior of the pass rates.
    """
    config = probe.world.config
    return run_forecast(
        probe.found,
        lift,
        source,
        constants[source],
        probability,
        tau=config.tau,
        horizon=config.horizon,
    ).p_unlearnable


def _all_counts(world: World) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return (world.reward >= 0).sum(axis=1), (world.reward == 1).sum(axis=1)


def last(values: Floats) -> Floats:
    """Scores with the unknown ones, nan, below all others."""
    known = np.isfinite(values)
    lowest = values[known].min() if known.any() else 0.0
    return np.where(known, values, lowest - 1)


def with_kin(pass_rate: Floats, skills: NDArray[np.str_], weight: float) -> Floats:
    """Log odds of each item with the mean of the other items of its skill mixed in, (items,)."""
    odds = logit(pass_rate)
    _, group = np.unique(skills, return_inverse=True)
    total, count = np.bincount(group, odds), np.bincount(group)
    # Without kin an item's own odds stand in.
    mean = np.where(count[group] > 1, (total[group] - odds) / np.maximum(count[group] - 1, 1), odds)
    return np.asarray(odds + weight * mean)


def mean_cosine(features: RolloutFeatures, is_easy: Flags) -> Floats:
    """Mean cosine of each item's mean gradient with those of the other easy items, (items,).

    nan without a correct rollout, or without another easy item that has one.
    """
    correct = features.correct
    found = np.full(len(is_easy), np.nan)
    directions = np.zeros((len(is_easy), correct.features.shape[1]))
    for items, _, means in mean_directions(correct.features, correct.item, correct.weights):
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        directions[items] = means / np.maximum(lengths, 1e-30)
    has = np.zeros(len(is_easy), dtype=bool)
    has[correct.item] = True
    easy = is_easy & has
    others = easy.sum() - easy
    known = has & (others > 0)
    along = directions @ directions[easy].sum(axis=0) - easy * (directions**2).sum(axis=1)
    found[known] = along[known] / others[known]
    return found


def former_rule(features: RolloutFeatures, found: Outcomes, tau: float) -> Floats:
    """P(an item has the similarity that its pass rate asks for), (items,), as curate had it.

    The similarity is that of its correct rollouts to the nearest easy items, with Student's t; the
    pass rate has Jeffreys' posterior. An item with a single correct rollout has the mean of the
    other hard items' similarities. nan without a correct rollout, and for all where the easy items
    have no similarity.
    """
    is_easy = found.is_easy(tau)
    low, _ = sequential_interval(Plan(tau=tau), found.judged, found.correct)
    firm = low >= tau
    correct = features.correct
    measured = measure_similarity(
        correct.features,
        correct.item,
        correct.weights,
        is_easy,
        is_reference=firm if firm.sum() >= _FEWEST_EASY else is_easy,
    )
    values = (measured.similarity, measured.standard_error, measured.degrees_of_freedom)
    known = np.isfinite(values).all(axis=0)
    of_easy = measured.similarity[is_easy & np.isfinite(measured.similarity)]
    probability = np.full(len(is_easy), np.nan)
    if len(of_easy) < _FEWEST_EASY or np.median(of_easy) <= 0:
        return probability
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    c, wrong = found.correct, found.judged - found.correct
    rates = betaincinv(c[:, None] + 0.5, wrong[:, None] + 0.5, (nodes + 1) / 2)
    needed = float(np.median(of_easy)) * (logit(tau) - logit(rates)) / _FORMER_GAIN

    def above(needs: Floats, items: NDArray[np.intp]) -> Floats:
        value, error, freedom = (each[items, None] for each in values)
        with np.errstate(divide="ignore"):
            return np.asarray(stdtr(freedom, (value - needs) / error) @ weights / 2)

    rows = np.flatnonzero(known)
    probability[rows] = above(needed[rows], rows)
    others = np.flatnonzero(known & ~is_easy & (c > 0))
    for row in np.flatnonzero(~known & (c > 0)):
        if len(others):
            probability[row] = above(needed[row][None, :], others).mean()
    return probability
