"""The forecast of a run: its counts, its lift and the constants of the lift's source, put together.

It is made after every round of sampling, to tell which items are decided, and at the end.

The lift by gradients is in units of what training does for its own items, so that it says which
items move, and not how far all of them do. That of a pilot or a checkpoint is in log odds, and says
both: its median over the items that are right now and then, with a pass rate from τ to 0.95, is the
level of the training. Of a hard item counts how far its lift stands from the mean of the hard ones,
in deviations between them, since between trainings these deviations differ by a factor of ten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.errors import UsageError
from curate.run.folder import no_policy, read_manifest
from curate.run.rollouts import COUNTS, Outcomes, floats, nullable, outcomes_of
from curate.run.tables import GOLD, PASS_RATES, Folder
from probes.forecast.model import Constants, Forecast, Lifts, fit_population, forecast_items
from probes.forecast.pass_probability import PassProbability, fit_pass_probability
from probes.stages.gold import read_gold
from probes.stages.lift import CHECKPOINT, GRADIENTS, PILOT, ItemLift, read_lift
from probes.tag_rules import DOUBT

Flags = NDArray[np.bool_]

# Rounded from the fit of `python -m benchmarks.forecast fit` on the trainings of six grown worlds
# (docs/evidence/forecast.md), before anything was scored on those that judge it.
CONSTANTS: Mapping[str, Constants] = {
    GRADIENTS: Constants(drift=0.7, gain=2.5, spread=1.5),
    PILOT: Constants(drift=0.3, gain=1.2, spread=1.3),
    CHECKPOINT: Constants(drift=0.3, gain=1.2, spread=1.3),
}
_SOLVED = 0.95
"""Items of this pass rate have no room to tell how far training moves them."""
_LEAST_DEVIATION = 0.05
"""Log odds that a pilot's lifts are taken to differ by at least."""
# Evidence narrower than this share of what training does by chance changes no forecast much.
_NARROW = 0.5


@dataclass(frozen=True)
class LiftEvidence:
    """What a forecast takes from the lifts of a run."""

    lifts: Lifts
    """(items,)."""
    population: tuple[float, float]
    """Mean and variance over the hard items."""
    level: float
    """Of the training, in log odds."""


def lift_evidence(found: Outcomes, lift: ItemLift, source: str, tau: float) -> LiftEvidence:
    """Bring the lifts of a source to the unit of its constants.

    Args:
        found: counts of all rollouts.
        lift: from the source.
        source: gradients, pilot or checkpoint.
        tau: where an item is easy.
    """
    lifts, easy = Lifts(lift.lift, lift.standard_error), found.is_easy(tau)
    mean, variance = fit_population(lifts, ~easy)
    if source == GRADIENTS:
        return LiftEvidence(lifts, (mean, variance), 0.0)
    telling = easy & (found.correct <= _SOLVED * found.judged) & lifts.is_known
    deviation = max(variance**0.5, _LEAST_DEVIATION)
    return LiftEvidence(
        Lifts((lifts.lift - mean) / deviation, lifts.standard_error / deviation),
        (0.0, variance / deviation**2),
        float(np.median(lifts.lift[telling])) if telling.any() else 0.0,
    )


def run_forecast(
    found: Outcomes,
    lift: ItemLift,
    source: str,
    constants: Constants,
    probability: PassProbability,
    *,
    tau: float,
    horizon: float,
) -> Forecast:
    """Forecast the items of a run, arrays of shape (items,).

    Args:
        found: counts of all rollouts.
        lift: from one of the sources.
        source: which.
        constants: of that source, or refitted.
        probability: posterior of the pass rates.
        tau: where an item is easy.
        horizon: length of the training.
    """
    evidence = lift_evidence(found, lift, source, tau)
    return forecast_items(
        probability.posterior,
        evidence.lifts,
        evidence.population,
        constants,
        tau=tau,
        horizon=horizon,
        level=evidence.level,
    )


@dataclass(frozen=True)
class RunForecast:
    """A forecast with all that went into it."""

    forecast: Forecast
    found: Outcomes
    source: str
    constants: Constants
    probability: PassProbability
    horizon: float

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "source": self.source,
            "horizon": self.horizon,
            "constants": asdict(self.constants),
            "pass_probability": self.probability.facts(),
        }


def read_forecast(
    run: Path, config: TagConfig, fitted: Mapping[str, Any] | None = None
) -> RunForecast:
    """The forecast of a run whose pass rates and lift are written.

    Args:
        run: the run folder.
        config: of the run.
        fitted: constants that `curate calibrate` refitted; None: the built-in ones.

    Raises:
        UsageError: the run was imported without a policy.
        RunError: a file of the run is missing or damaged.
    """
    rates = PASS_RATES.read(run, *COUNTS)
    found = outcomes_of(rates)
    if not config.has_policy:
        raise UsageError(no_policy(run))
    lifted, facts = read_lift(run)
    lift = ItemLift(floats(lifted["lift"]), floats(lifted["standard_error"]))
    source = facts["source"]
    constants = run_constants(source, fitted)
    probability = run_probability(run, found)
    horizon = run_horizon(run, config)
    forecast = run_forecast(
        found, lift, source, constants, probability, tau=config.tau, horizon=horizon
    )
    return RunForecast(forecast, found, source, constants, probability, horizon)


def run_probability(run: Folder, found: Outcomes) -> PassProbability:
    """Posterior of a run's pass rates, from its counts and, where it was scored, its gold."""
    gold = read_gold(run) if GOLD.is_in(run) else None
    return fit_pass_probability(found.judged, found.correct, gold)


def run_horizon(run: Path, config: TagConfig) -> float:
    """Length of the training that a run's tags are about: `curate forecast` may have changed it."""
    return float(read_manifest(run).get("horizon", config.horizon))


def is_decided(forecast: Forecast, constants: Constants) -> Flags:
    """(items,): whether more rollouts would hardly change what the forecast says of an item.

    Either the tag is decided, or what is still uncertain is mostly what training does by chance.
    """
    p = forecast.p_unlearnable
    tagged = (p <= DOUBT) | (p >= 1 - DOUBT)
    return np.asarray(tagged | (forecast.evidence_spread <= _NARROW * constants.spread))


def run_constants(source: str, fitted: Mapping[str, Any] | None) -> Constants:
    """The constants of a source, or those that `curate calibrate` refitted for it.

    What was refitted on the lift of another source says nothing of this one, which keeps its own;
    `probes.predictor.predictor.outside_reasons` warns of that.

    Args:
        source: gradients, pilot or checkpoint.
        fitted: of a predictor file, checked when it was read.
    """
    if fitted and fitted["source"] == source:
        return Constants.from_mapping(fitted)
    return CONSTANTS[source]


def forecast_columns(forecast: Forecast) -> dict[str, pa.Array]:
    """Columns of `tags.parquet`."""
    return {
        "forecast_pass_rate": nullable(forecast.pass_rate),
        "forecast_low": nullable(forecast.low),
        "forecast_high": nullable(forecast.high),
    }
