"""The forecast with constants that `curate calibrate` fits on one training, judged on others.

A user has one training, or few. So the constants are fitted on what a single seed did, and judged
by what the other seeds did:

    built in    as they stand in the code
    half        fitted on half of the items in one seed, and judged on the other half; both ways
    all         fitted on all items in one seed

Each figure is the mean over the seeds that the fit may be on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.forecast.data import ROUNDS, Probe, World, probe_at
from benchmarks.forecast.figures import Calibrated, decided
from benchmarks.forecast.pilot import pilot_folders, pilot_lift
from benchmarks.forecast.scores import forecast
from probes.forecast.model import Constants, Lifts
from probes.stages.forecast import lift_evidence
from probes.stages.lift import GRADIENTS, PILOT, ItemLift
from recipes.calibrate.confirmed_items import RunOutcomes
from recipes.calibrate.forecast_constants import fit_constants
from recipes.statistics.agreement import auroc, calibration

Floats = NDArray[np.float64]

_AT = (64, ROUNDS)
_ECE = "expected_calibration_error"


def calibrated_world(
    world: World, constants: Mapping[str, Constants]
) -> dict[str, dict[str, dict[str, Calibrated]]]:
    """`calibrated` by budget and source, of a world of three seeds.

    Args:
        world: the world.
        constants: the built-in ones, by source of the lift.
    """
    found: dict[str, dict[str, dict[str, Calibrated]]] = {}
    for budget in _AT:
        probe = probe_at(world, budget, constants[GRADIENTS])
        lifts = {GRADIENTS: probe.lift}
        if folders := pilot_folders(world):
            lifts[PILOT] = pilot_lift(probe, folders)
        found[str(budget)] = {
            source: calibrated(probe, lift, source, constants) for source, lift in lifts.items()
        }
    return found


def calibrated(
    probe: Probe, lift: ItemLift, source: str, constants: Mapping[str, Constants]
) -> dict[str, Calibrated]:
    """What the forecast by a lift is worth before and after `curate calibrate`.

    Args:
        probe: of a world with two seeds or more.
        lift: of its items.
        source: of the lift.
        constants: the built-in ones, by source.
    """
    seeds = range(len(probe.world.final))
    found: dict[str, list[Calibrated]] = {"built in": [], "half": [], "all": []}
    first = np.arange(len(probe.world.item_ids)) % 2 == 0
    for seed in seeds:
        outcomes = _outcomes(probe, lift, source, seed)
        halves = [outcomes.only(first[_rows(outcomes)] == side) for side in (True, False)]
        from_first, from_second, from_all = (
            _forecast(probe, lift, source, fit_constants([part], constants[source]).constants)
            for part in (*halves, outcomes)
        )
        final = np.delete(probe.world.final, seed, axis=0)
        others = replace(probe, world=replace(probe.world, final=final))
        for name, p in (
            ("built in", _forecast(probe, lift, source, constants[source])),
            ("half", np.where(first, from_second, from_first)),
            ("all", from_all),
        ):
            found[name].append(_judge(others, p))
    return {name: _mean(each) for name, each in found.items()}


def _forecast(probe: Probe, lift: ItemLift, source: str, constants: Constants) -> Floats:
    return forecast(probe, lift, source, {source: constants}, probe.probability)


def _outcomes(probe: Probe, lift: ItemLift, source: str, seed: int) -> RunOutcomes:
    """What `curate calibrate` would read of a run of this probe, trained with one seed."""
    world, tau = probe.world, probe.world.config.tau
    hard = ~probe.found.is_easy(tau)
    evidence = lift_evidence(probe.found, lift, source, tau)
    lifts = evidence.lifts
    rows = np.flatnonzero(hard & (probe.found.judged > 0) & np.isfinite(world.final[seed]))
    rates, weights = probe.probability.posterior(rows)
    return RunOutcomes(
        rows.astype(np.str_),
        (world.final[seed, rows] < tau).astype(np.float64),
        rates,
        weights,
        Lifts(lifts.lift[rows], lifts.standard_error[rows]),
        evidence.population,
        tau,
        world.config.horizon,
        evidence.level,
    )


def _rows(outcomes: RunOutcomes) -> NDArray[np.int64]:
    return outcomes.item_ids.astype(np.int64)


def _judge(probe: Probe, p_unlearnable: Floats) -> Calibrated:
    world = probe.world
    unlearned = ~world.is_learned[:, world.is_hard]
    p = np.tile(p_unlearnable[world.is_hard], len(unlearned))
    error = calibration(unlearned.ravel(), p, resamples=100)
    judged, tags = world.is_judged, decided(probe, p_unlearnable)
    return Calibrated(
        error[_ECE],
        error[f"{_ECE}_if_calibrated"],
        auroc(world.learned_by_all[judged], -p_unlearnable[judged]),
        tags.share,
        tags.right,
    )


def _mean(each: Sequence[Calibrated]) -> Calibrated:
    """Of every figure, over those that have it."""

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return Calibrated(
        float(np.mean([one.error for one in each])),
        float(np.mean([one.error_by_chance for one in each])),
        mean([one.auroc for one in each]),
        float(np.mean([one.tagged for one in each])),
        mean([one.right for one in each]),
    )
