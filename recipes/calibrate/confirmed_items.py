"""Reading what `curate confirm` found of the hard items of runs, with the evidence on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.errors import RunError, UsageError
from curate.run.rollouts import floats
from curate.run.run import Run
from curate.run.tables import CONFIRMED
from curate.tags import Trainability
from probes.forecast.model import Constants, Lifts, chances_below
from probes.predictor.features import read_features
from probes.predictor.predictor import run_settings
from probes.stages.forecast import lift_evidence, read_forecast, run_horizon
from probes.stages.lift import ItemLift, read_lift

FEWEST_OF_EACH = 10
"""With fewer learnable or unlearnable items than this nothing is fitted."""

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
Groups = NDArray[np.str_]


@dataclass(frozen=True)
class ConfirmedItems:
    """Hard items whose outcome GRPO confirmed: arrays of shape (items, …)."""

    item_ids: Groups
    values: Floats
    """Shape (items, features), in the order of `FEATURES`; nan is unknown."""
    is_unlearnable: Booleans
    built_in: Floats
    """The built-in p_unlearnable; nan where there is none."""
    run: NDArray[np.int64]
    """Which of the runs each is of, from 0."""


def read_confirmed(run_dirs: Sequence[Path]) -> tuple[ConfirmedItems, list[dict[str, Any]]]:
    """Read the hard items with a correct rollout that are confirmed learnable or unlearnable.

    Args:
        run_dirs: run folders with `validation/confirmed.parquet`.

    Returns:
        the items of all runs, and for each run what the predictor file tells of it.

    Raises:
        UsageError: a run is not finished or not confirmed, or given twice; the runs differ in a
            setting that the features or the outcome depend on, or in the source of their lift; or
            there are fewer than 10 learnable or 10 unlearnable items.
        RunError: a file of a run is missing or damaged.
    """
    _refuse_same(run_dirs)
    read = [_read_run(run_dir) for run_dir in run_dirs]
    first = read[0][1]
    for run_dir, (_, facts) in zip(run_dirs, read, strict=True):
        changed = [
            name for name, value in first["settings"].items() if facts["settings"][name] != value
        ]
        if facts["lift"] != first["lift"]:
            changed.append(f"the source of their lift ({facts['lift']} and {first['lift']})")
        if changed:
            raise UsageError(
                f"{run_dir} and {run_dirs[0]} differ in {', '.join(changed)}: what was measured or "
                "confirmed in them cannot be pooled; calibrate on each"
            )
    items = _pooled([each for each, _ in read])
    _require_enough(items)
    return items, [facts for _, facts in read]


def _refuse_same(run_dirs: Sequence[Path]) -> None:
    seen = [run_dir.resolve() for run_dir in run_dirs]
    for run_dir, path in zip(run_dirs, seen, strict=True):
        if seen.count(path) > 1:
            raise UsageError(f"{run_dir} is given twice; its items would count twice")


def _read_run(run_dir: Path) -> tuple[ConfirmedItems, dict[str, Any]]:
    """Read a run's confirmed items, and what the predictor file tells of the run."""
    run = Run.open(run_dir)
    manifest, config = run.manifest, _config(run)
    confirmed = _confirmed(run, "confirmed_trainability")
    features = read_features(run_dir, config)
    outcomes = [confirmed.get(item_id) for item_id in features.item_ids]
    known = [
        row
        for row, outcome in enumerate(outcomes)
        if outcome in (Trainability.LEARNABLE, Trainability.UNLEARNABLE)
    ]
    found = read_forecast(run_dir, config).forecast.p_unlearnable
    # Computed anew, since the run itself may have been tagged by a predictor.
    built_in = dict(zip(run.row_of, found.tolist(), strict=True))
    items = ConfirmedItems(
        np.array([features.item_ids[row] for row in known], dtype=np.str_),
        features.values[known],
        np.array([outcomes[row] == Trainability.UNLEARNABLE for row in known], dtype=np.bool_),
        np.array([built_in[features.item_ids[row]] for row in known], dtype=np.float64),
        np.zeros(len(known), dtype=np.int64),
    )
    facts = {
        "model": manifest["model"]["name"],
        "weight_hash": manifest["model"]["weight_hash"],
        "dataset": manifest["dataset"]["name"],
        "dataset_fingerprint": manifest["dataset"]["fingerprint"],
        "settings": run_settings(config),
        "lift": features.lift_source,
        "seeds": manifest["seeds"],
        "hard_items_with_a_positive": len(outcomes),
        "learnable": int((~items.is_unlearnable).sum()),
        "unlearnable": int(items.is_unlearnable.sum()),
        **_validation_facts(run),
    }
    return items, facts


def _config(run: Run) -> TagConfig:
    return run.config.replace(horizon=run_horizon(run.path, run.config))


def _confirmed(run: Run, column: str) -> dict[str, Any]:
    """A column of what `confirm` wrote, by item_id."""
    file, again = CONFIRMED.path(run.path), f"run `curate confirm {run.path}`"
    if not run.is_confirmed:
        raise UsageError(f"{run.path} has no {file.name}: {again} first")
    table = CONFIRMED.read(run.path)
    missing = {"item_id", column} - set(table.column_names)
    if missing:
        raise UsageError(f"{file} has no column {', '.join(sorted(missing))}")
    item_ids = table["item_id"].to_pylist()
    if len(set(item_ids)) < len(item_ids) or not set(run.row_of).issuperset(item_ids):
        raise UsageError(f"{file} does not belong to this run: {again} again")
    return dict(zip(item_ids, table[column].to_pylist(), strict=True))


def _validation_facts(run: Run) -> dict[str, Any]:
    """The recipe and seeds that confirmed the items, as `curate confirm` wrote them."""
    try:
        summary = run.confirmation() or {}
    except RunError:
        return {}
    return {f"validation_{n}": summary[n] for n in ("recipe", "seeds") if n in summary}


def _pooled(parts: Sequence[ConfirmedItems]) -> ConfirmedItems:
    return ConfirmedItems(
        np.concatenate([part.item_ids for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.is_unlearnable for part in parts]),
        np.concatenate([part.built_in for part in parts]),
        np.concatenate([part.run + number for number, part in enumerate(parts)]),
    )


def _require_enough(items: ConfirmedItems) -> None:
    counts = {
        Trainability.LEARNABLE: len(set(items.item_ids[~items.is_unlearnable])),
        Trainability.UNLEARNABLE: len(set(items.item_ids[items.is_unlearnable])),
    }
    if min(counts.values()) < FEWEST_OF_EACH:
        found = " and ".join(f"{count} {tag}" for tag, count in counts.items())
        raise UsageError(
            f"too few confirmed items to fit a predictor: {found} with a correct rollout, and "
            f"{FEWEST_OF_EACH} of each are needed; tag and validate more items, or pool runs"
        )


@dataclass(frozen=True)
class RunOutcomes:
    """What the forecast of a run goes by, and what became of its hard items in the seeds of GRPO.

    Items are all hard ones of which something was judged, before and after, also those without a
    correct rollout and those on which the seeds disagree: who stays out by outcome would bias what
    is fitted. Arrays of shape (items, …).
    """

    item_ids: Groups
    below: Floats
    """Share of the seeds in which the item ended below τ."""
    rates: Floats
    """(grid,): pass rates of the posterior."""
    weights: Floats
    """(items, grid)."""
    lifts: Lifts
    population: tuple[float, float]
    tau: float
    horizon: float
    level: float = 0.0

    def p_unlearnable(self, constants: Constants) -> Floats:
        """What the forecast says of the items with other constants, (items,)."""
        return chances_below(
            self.rates,
            self.weights,
            self.lifts,
            self.population,
            constants,
            tau=self.tau,
            horizon=self.horizon,
            level=self.level,
        )

    def only(self, chosen: Booleans) -> RunOutcomes:
        """Some of the items."""
        return replace(
            self,
            item_ids=self.item_ids[chosen],
            below=self.below[chosen],
            weights=self.weights[chosen],
            lifts=Lifts(self.lifts.lift[chosen], self.lifts.standard_error[chosen]),
        )


def read_run_outcomes(run_dir: Path) -> RunOutcomes:
    """Read the hard items of a confirmed run, and in how many seeds each ended below τ.

    Raises:
        UsageError: the run is not confirmed.
        RunError: a file of the run is missing or damaged.
    """
    run = Run.open(run_dir)
    config, final = _config(run), _confirmed(run, "final_pass_rates")
    made = read_forecast(run_dir, config)
    item_ids = list(run.row_of)
    below = np.array([_share_below(final.get(each), config.tau) for each in item_ids])
    hard = ~made.found.is_easy(config.tau)
    lifted, _ = read_lift(run_dir)
    lift = ItemLift(floats(lifted["lift"]), floats(lifted["standard_error"]))
    evidence = lift_evidence(made.found, lift, made.source, config.tau)
    lifts = evidence.lifts
    rows = np.flatnonzero(hard & (made.found.judged > 0) & np.isfinite(below))
    rates, weights = made.probability.posterior(rows)
    return RunOutcomes(
        np.array(item_ids, dtype=np.str_)[rows],
        below[rows],
        rates,
        weights,
        Lifts(lifts.lift[rows], lifts.standard_error[rows]),
        evidence.population,
        config.tau,
        made.horizon,
        evidence.level,
    )


def _share_below(final: list[float | None] | None, tau: float) -> float:
    """Share of the seeds with a final pass rate in which it is below τ; nan without any."""
    known = [rate for rate in final or [] if rate is not None]
    return float(np.mean([rate < tau for rate in known])) if known else np.nan
