"""The constants of the forecast by gradients, fitted on design worlds by maximum likelihood.

    mean over worlds, of the mean over budgets, hard items and seeds, of
    log P(final pass rate on the side of tau where it came out)

through the product's own posterior, lift, population and forecast. Hard items are those that are
hard over all rollouts; worlds count alike, whatever their size. The rounds of the last budget stop
by the constants that stand in the code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from benchmarks.forecast.data import ROUNDS, Probe, World, probe_at
from probes.forecast.model import Constants, Lifts, forecast_items
from probes.stages.forecast import lift_evidence
from probes.stages.lift import ItemLift

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

FIT_BUDGETS = (64, 256, ROUNDS)
_SURE = 1e-6


@dataclass(frozen=True)
class Evidence:
    """What a fit knows of the hard items of a world at a budget: arrays (items, ...)."""

    rates: Floats
    """(grid,)."""
    posterior: Floats
    """(items, grid)."""
    lifts: Lifts
    population: tuple[float, float]
    learned: Floats
    """(items,): share of seeds that learned it."""
    tau: float
    level: float = 0.0

    def loss(self, constants: Constants) -> float:
        """Mean negative log likelihood of an item and seed, in nats."""
        below = forecast_items(
            lambda rows: (self.rates, self.posterior[rows]),
            self.lifts,
            self.population,
            constants,
            tau=self.tau,
            level=self.level,
        ).p_unlearnable
        below = np.clip(below, _SURE, 1 - _SURE)
        likelihood = self.learned * np.log1p(-below) + (1 - self.learned) * np.log(below)
        return -float(likelihood.mean())


LiftOf = Callable[[Probe], ItemLift]


def evidence(world: World, lift_of: LiftOf, source: str, constants: Constants) -> list[Evidence]:
    """The evidence of a world at each of the budgets.

    Args:
        world: a design world.
        lift_of: the lift of a probe's items.
        source: of the lift.
        constants: of the forecast that ends the rounds.
    """
    found = []
    for budget in FIT_BUDGETS:
        probe = probe_at(world, budget, constants)
        known = lift_evidence(probe.found, lift_of(probe), source, world.config.tau)
        lifts = known.lifts
        hard = np.flatnonzero(world.is_hard)
        rates, posterior = probe.probability.posterior(hard)
        found.append(
            Evidence(
                rates,
                posterior,
                Lifts(lifts.lift[hard], lifts.standard_error[hard]),
                known.population,
                world.is_learned[:, hard].mean(axis=0),
                world.config.tau,
                known.level,
            )
        )
    return found


def fit_constants(worlds: Sequence[Sequence[Evidence]], start: Constants) -> Constants:
    """Constants of the greatest likelihood over worlds of equal weight."""

    def loss(values: Floats) -> float:
        drift, gain, log_spread = values
        constants = Constants(drift, gain, float(np.exp(np.clip(log_spread, -4, 4))))
        means = [np.mean([each.loss(constants) for each in world]) for world in worlds]
        return float(np.mean(means))

    first = np.array([start.drift, start.gain, np.log(start.spread)])
    simplex = first + np.vstack([np.zeros(3), 0.5 * np.eye(3)])
    options = {"xatol": 5e-3, "fatol": 1e-5, "initial_simplex": simplex}
    found = minimize(loss, first, method="Nelder-Mead", options=options)
    drift, gain, log_spread = found.x
    return Constants(float(drift), float(gain), float(np.exp(log_spread)))


def mean_loss(world: Sequence[Evidence], constants: Constants) -> float:
    """Mean negative log likelihood of a world, in nats an item and seed."""
    return float(np.mean([each.loss(constants) for each in world]))
