"""Does curation pay? Held-out pass rate against the rollouts spent on training, arm by arm.

The arms `full`, `filtered`, `trimmed`, `ordered` and `random` train under one budget and are
evaluated on the same held-out items. An arm's curve is the mean over items and then over seeds of
the pass rate, linear between evaluations. Where an arm reaches the full arm's final rate is read
from curves made monotone (isotonic regression), since the first of many noisy points above a level
comes too soon: a level is reached where the monotone curve first does, linearly between its points.

Intervals are percentiles of a bootstrap over held-out items, the same for all arms, and seeds, for
each arm its own. n resampled seeds vary by (n - 1)/n too little, so their deviations from the mean
are stretched by sqrt(n / (n - 1)) (Rao and Wu 1988). In simulated studies of equal arms the
interval of their difference holds 0 in 91 to 100 % with three seeds, over runs that vary little or
much, and in 79 to 100 % with two. The items' noise alone would do so in 14 to 92 %: an arm with one
seed has no intervals.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.optimize import isotonic_regression

from curate.errors import RunError
from curate.run.run import Run
from curate.run.tables import HELD_OUT, PASS_RATES
from curate.run.validated import read_training_table
from recipes.recipe import LISTS

REPLICATES = 1000
CONFIDENCE = 0.95
_SEED = 0


@dataclass(frozen=True)
class HeldOut:
    """Evaluations of one run on held-out items.

    Attributes:
        rollouts: spent on training at each evaluation, rising, shape (evaluations,).
        rates: pass rates, shape (evaluations, items); nan where nothing could be judged.
        item_ids: of the items.
    """

    rollouts: NDArray[np.float64]
    rates: NDArray[np.float64]
    item_ids: tuple[str, ...]


@dataclass(frozen=True)
class _Curves:
    """An arm's curve and its replicates at the points where any of its runs was evaluated.

    Attributes:
        rollouts: shape (points,).
        rates: the curve first, then its replicates, shape (1 + REPLICATES, points); with one seed
            these are nan.
        spent: rollouts in all, mean over seeds.
        seeds: how many.
    """

    rollouts: NDArray[np.float64]
    rates: NDArray[np.float64]
    spent: float
    seeds: int


def payoff_table(
    run: Run, size: str | None = None, item_ids: Collection[str] | None = None
) -> dict[str, Any] | None:
    """Compare the arms of a run folder.

    Args:
        run: validated.
        size: `` or `-small`, which recipes; the full-size ones if any of them has run, by default.
        item_ids: compare on these held-out items alone; on all by default.

    Returns:
        None where no arm has run. Else, with null for what cannot be said:
        items: held-out items that all runs evaluated; replicates: of the bootstrap;
        target: the full arm's final pass rate, of its monotone curve, and gain: what that is above
            its first, each as `value`, `low`, `high` (95 %);
        arms: for each its `recipe`, `seeds`, `rollouts` (spent on training, mean over seeds),
            `curve` (points with `rollouts`, `pass_rate`, `low`, `high`), `final`, `reached_at`
            (rollouts at which it reaches the target), `reached_share` (of the full arm's rollouts)
            and `reached_fraction` (of the replicates that do); a null `high` beside a `low` of the
            former two means that the interval is open: the arm may never reach it;
        probe_rollouts: what `curate tag` spent, which all but `full` and `random` need beside their
            training;
        filtered_minus_random: of the final pass rate, `final`, and of its mean over training (the
            area under the curve by its length), `mean`;
        notes: what is missing or doubtful, in plain words.

    Raises:
        RunError: a table is missing or damaged, or the runs have no held-out items in common.
    """
    finished = run.recipes()
    if size is None:
        size = "" if any(name in finished for name in LISTS["pays"]) else "-small"
    folders = {
        name: finished[f"{name}{size}"].folders.values() if f"{name}{size}" in finished else ()
        for name in LISTS["pays"]
    }
    runs = {
        name: [_read_held_out(each) for each in arm if HELD_OUT.is_in(each)]
        for name, arm in folders.items()
    }
    if item_ids is not None:
        runs = {
            name: [
                _restrict(seed, [each for each in seed.item_ids if each in item_ids])
                for seed in arm
            ]
            for name, arm in runs.items()
        }
    if not any(runs.values()):
        return None
    probed = run.columns(PASS_RATES, "total_rollouts")["total_rollouts"]
    return compare_arms(runs, size) | {"probe_rollouts": pc.sum(probed).as_py()}


def _read_held_out(folder: Path) -> HeldOut:
    table = read_training_table(folder, HELD_OUT)
    steps = np.unique(table["step"].to_numpy())
    item_ids = tuple(sorted(table["item_id"].unique().to_pylist()))
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    rollouts = np.zeros(len(steps))
    rates = np.full((len(steps), len(item_ids)), np.nan)
    for at, step in enumerate(steps):
        part = table.filter(pc.equal(table["step"], step))
        rollouts[at] = pc.max(part["rollouts"]).as_py()
        total = part["total_rollouts"].to_numpy().astype(np.float64)
        correct = part["total_correct_rollouts"].to_numpy()
        columns = [row_of[item_id] for item_id in part["item_id"].to_pylist()]
        rates[at, columns] = np.divide(correct, total, out=np.full(len(total), np.nan),
                                       where=total > 0)  # fmt: skip
    if not len(steps) or (np.diff(rollouts) < 0).any():
        raise RunError(f"{HELD_OUT.path(folder)} is empty or out of order; validate again")
    return HeldOut(rollouts, rates, item_ids)


def compare_arms(runs: Mapping[str, Sequence[HeldOut]], size: str = "") -> dict[str, Any]:
    """Compare arms by the evaluations of their runs; see `payoff_table`.

    Args:
        runs: of each arm, one for every seed; at least one in all.
        size: what the recipes' names end in.
    """
    item_ids = _common_items([run for arm in runs.values() for run in arm])
    generator = np.random.default_rng(_SEED)
    count = len(item_ids)
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=REPLICATES)
    weights = np.concatenate([np.ones((1, count)), drawn])
    curves = {
        name: _curves([_restrict(run, item_ids) for run in arm], weights, generator)
        for name, arm in runs.items()
        if arm
    }
    full = curves.get("full")
    target = _monotone(full.rates)[:, -1] if full else None
    gain = target - _monotone(full.rates)[:, 0] if full and target is not None else None
    result: dict[str, Any] = {
        "items": count,
        "replicates": REPLICATES,
        "target": _interval(target),
        "gain": _interval(gain),
        "arms": {
            name: {"recipe": f"{name}{size}"} | _arm(curve, target, full)
            for name, curve in curves.items()
        },
        "filtered_minus_random": None,
        "notes": [],
    }
    if "filtered" in curves and "random" in curves:
        result["filtered_minus_random"] = _difference(curves["filtered"], curves["random"])
    result["notes"] = _notes(result, [name for name in runs if name not in curves], curves)
    return result


def _common_items(runs: Sequence[HeldOut]) -> list[str]:
    common = set(runs[0].item_ids).intersection(*(run.item_ids for run in runs))
    if not common:
        raise RunError("the arms have no held-out items in common; validate them again together")
    return sorted(common)


def _restrict(run: HeldOut, item_ids: Sequence[str]) -> HeldOut:
    column_of = {item_id: column for column, item_id in enumerate(run.item_ids)}
    columns = [column_of[item_id] for item_id in item_ids]
    return HeldOut(run.rollouts, run.rates[:, columns], tuple(item_ids))


def _curves(
    runs: Sequence[HeldOut], weights: NDArray[np.float64], generator: np.random.Generator
) -> _Curves:
    """An arm's curve, once for every row of `weights`, which has shape (replicates, items)."""
    points = np.unique(np.concatenate([run.rollouts for run in runs]))
    by_seed = []
    for run in runs:
        is_known = ~np.isnan(run.rates)
        # (replicates, evaluations)
        size = weights @ is_known.T
        rates = np.divide(
            weights @ np.where(is_known, run.rates, 0.0).T, size,
            out=np.zeros(size.shape), where=size > 0,
        )  # fmt: skip
        # Beyond its last evaluation a run stays where it was: budgets end within one step.
        by_seed.append(np.stack([np.interp(points, run.rollouts, each) for each in rates]))
    curves = np.stack(by_seed)  # (seeds, replicates, points)
    mean, seeds = curves.mean(axis=0), len(runs)
    if seeds == 1:
        mean[1:] = np.nan
    else:
        drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(weights) - 1)
        resampled = np.einsum("rs,srp->rp", drawn / seeds, curves[:, 1:])
        mean[1:] += np.sqrt(seeds / (seeds - 1)) * (resampled - mean[1:])
    return _Curves(points, mean, float(np.mean([run.rollouts[-1] for run in runs])), seeds)


def _monotone(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Curves made monotone, shape (replicates, points); a replicate that is nan stays so."""
    return np.stack([c if np.isnan(c).any() else isotonic_regression(c).x for c in rates])


def _arm(
    curve: _Curves, target: NDArray[np.float64] | None, full: _Curves | None
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "seeds": curve.seeds,
        "rollouts": curve.spent,
        "curve": [
            {"rollouts": float(rollouts), "pass_rate": float(rate)} | _ends(low, high)
            for rollouts, rate, low, high in zip(
                curve.rollouts, curve.rates[0], *_bounds(curve.rates), strict=True
            )
        ],
        "final": _interval(curve.rates[:, -1]),
        "reached_at": None,
        "reached_share": None,
        "reached_fraction": None,
    }
    if target is None or full is None:
        return result
    reached = np.array(
        [
            _first_reached(curve.rollouts, rates, level)
            for rates, level in zip(_monotone(curve.rates), target, strict=True)
        ]
    )
    result |= {
        "reached_at": _interval(reached),
        "reached_share": _interval(reached / full.spent),
    }
    if not np.isnan(reached[1:]).any():
        result["reached_fraction"] = float(np.isfinite(reached[1:]).mean())
    return result


def _first_reached(
    rollouts: NDArray[np.float64], rates: NDArray[np.float64], level: float
) -> float:
    """Where a rising curve first reaches a level; infinite where it never does, nan if unknown."""
    if np.isnan(level) or np.isnan(rates).any():
        return float(np.nan)
    at = int(np.searchsorted(rates, level))
    if at == len(rates):
        return float(np.inf)
    if at == 0:
        return float(rollouts[0])
    part = (level - rates[at - 1]) / (rates[at] - rates[at - 1])
    return float(rollouts[at - 1] + part * (rollouts[at] - rollouts[at - 1]))


def _difference(one: _Curves, other: _Curves) -> dict[str, Any]:
    end = min(one.rollouts[-1], other.rollouts[-1])
    points = np.unique(np.concatenate([one.rollouts, other.rollouts]))
    points = points[points <= end]
    difference = np.stack(
        [
            np.interp(points, one.rollouts, first) - np.interp(points, other.rollouts, second)
            for first, second in zip(one.rates, other.rates, strict=True)
        ]
    )
    length = points[-1] - points[0]
    mean = trapezoid(difference, points, axis=1) / length if length > 0 else difference[:, -1]
    return {"final": _interval(one.rates[:, -1] - other.rates[:, -1]), "mean": _interval(mean)}


def _bounds(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ends of the interval of what stands first, from the replicates after it."""
    edge = (1 - CONFIDENCE) / 2
    # A value that exists, not one between two, because some may be infinite.
    ends = np.quantile(values[1:], [edge, 1 - edge], axis=0, method="closest_observation")
    return np.asarray(ends)


def _interval(values: NDArray[np.float64] | None) -> dict[str, float | None] | None:
    """The value and its interval, null where infinite; None where there is nothing to say."""
    if values is None:
        return None
    return {"value": _finite(values[0])} | _ends(*_bounds(values))


def _ends(low: float, high: float) -> dict[str, float | None]:
    return {"low": _finite(low), "high": _finite(high)}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _notes(
    result: Mapping[str, Any], missing: Sequence[str], curves: Mapping[str, _Curves]
) -> list[str]:
    notes = [f"the arm {name} has no finished run with held-out evaluations" for name in missing]
    alone = [name for name, curve in curves.items() if curve.seeds == 1]
    if alone:
        notes.append(
            "no intervals where an arm has one seed, since runs differ by more than their items "
            f"show: {', '.join(alone)}"
        )
    gain = result["gain"]
    if gain and (gain["value"] if gain["low"] is None else gain["low"]) <= 0:
        notes.append(
            "the full arm's gain cannot be told from none, so where its final rate is reached says "
            "nothing"
        )
    return notes
