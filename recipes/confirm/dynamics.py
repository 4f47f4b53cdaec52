"""Training as its logs tell it: rewards and clipped tokens of groups of items, over the steps.

Every group of rollouts that was generated counts once, also those that dynamic sampling dropped;
what could not be judged is left out. The clipped share is that of the tokens of a group whose
probability ratio was clipped in the loss, known for the groups that reached it. Steps are put
together in at most 20 windows. An interval is that of a mean over the groups of rollouts in a
window, all seeds together,

    mean ± z · √(s² / n)

with s² their variance; it takes them for independent, and is null for fewer than 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.run.run import Run
from curate.run.tables import REWARDS
from curate.run.validated import FinishedSeeds
from curate.tags import Trainability

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WINDOWS = 20
# Below this many groups of rollouts the spread of a measure is not known.
_FEWEST_GROUPS = 5
_Z = 1.959964
_MEASURES = ("mean_reward", "clipped_fraction")
# A share of clipped tokens is often less than a thousandth.
_DECIMALS = 6


def training_dynamics(
    run: Run, item_ids: pa.Array, group: Sequence[str | None]
) -> list[dict[str, Any]]:
    """Follow the items of each tag through the training of every recipe with a finished seed.

    Args:
        run: validated.
        item_ids: (items,): whose rewards are followed.
        group: (items,): the tag of each, None for an item without one.

    Returns:
        an entry a recipe, in alphabetical order: `recipe`, `seeds`, `steps_per_window`,
        `first_step` and `last_step` of each window, and `groups`, those that training met. Each has
        `rollout_groups` and `clipped_groups`, what the means rest on, and for `mean_reward` and
        `clipped_fraction` the mean in each window, its interval (`_low`, `_high`) and the mean of
        each seed (`_by_seed`); `whole` has the same of all steps together. None is unknown.

    Raises:
        RunError: a table is damaged.
    """
    names = [str(tag) for tag in Trainability if tag in group]
    place = np.array([-1 if name is None else names.index(name) for name in group], dtype=np.int64)
    recipes = run.recipes().values()
    return [_recipe(found, item_ids, place, names) for found in recipes]


def _recipe(
    found: FinishedSeeds, item_ids: pa.Array, group: Ints, names: Sequence[str]
) -> dict[str, Any]:
    tables = found.tables(REWARDS)
    steps = [table["step"].to_numpy().astype(np.int64) for table in tables]
    last = max((int(each.max(initial=0)) for each in steps), default=0)
    window = max(1, -(-last // WINDOWS))
    windows = -(-last // window)
    # Rollouts of what is no item of the run, such as an extra item, are in no group.
    places = [pc.index_in(table["item_id"], value_set=item_ids) for table in tables]
    groups = [np.append(group, -1)[pc.fill_null(each, -1).to_numpy()] for each in places]
    told = []
    for number, name in enumerate(names):
        sums = {
            measure: np.array(
                [
                    _window_sums(step, table[measure].to_numpy(), of == number, window, windows)
                    for step, table, of in zip(steps, tables, groups, strict=True)
                ]
            )
            for measure in _MEASURES
        }
        if sums["mean_reward"][:, 0].any():
            told.append({"group": name, **_curves(sums), "whole": _whole(sums)})
    return {
        "recipe": found.recipe,
        "seeds": list(found.seeds),
        "steps_per_window": window,
        "first_step": [1 + number * window for number in range(windows)],
        "last_step": [min(last, (number + 1) * window) for number in range(windows)],
        "groups": told,
    }


def _window_sums(
    steps: Ints, values: Floats, of_group: NDArray[np.bool_], window: int, windows: int
) -> Floats:
    """Count, sum and sum of squares of the known values in each window, from step 1 on.

    Returns shape (3, windows).
    """
    known = of_group & np.isfinite(values) & (steps >= 1)
    at, value = (steps[known] - 1) // window, values[known].astype(np.float64)
    weights = (np.ones(len(value)), value, value**2)
    return np.array([np.bincount(at, weight, minlength=windows) for weight in weights])


def _curves(sums: dict[str, Floats]) -> dict[str, Any]:
    """Every measure in each window, from sums of shape (seeds, 3, windows)."""
    told: dict[str, Any] = {
        "rollout_groups": sums["mean_reward"][:, 0].sum(axis=0).astype(int).tolist(),
        "clipped_groups": sums["clipped_fraction"][:, 0].sum(axis=0).astype(int).tolist(),
    }
    for measure, seeds in sums.items():
        values = (*_mean(seeds.sum(axis=0)), *(_mean(seed)[0] for seed in seeds))
        mean, low, high, *by_seed = map(_plain, values)
        told |= {measure: mean, f"{measure}_low": low, f"{measure}_high": high}
        told[f"{measure}_by_seed"] = by_seed
    return told


def _whole(sums: dict[str, Floats]) -> dict[str, Any]:
    """Every measure over all steps and seeds."""
    told: dict[str, Any] = {}
    for measure, seeds in sums.items():
        values = map(_plain, _mean(seeds.sum(axis=(0, 2))[:, None]))
        for end, (value,) in zip(("", "_low", "_high"), values, strict=True):
            told[f"{measure}{end}"] = value
    return told


def _mean(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean, low and high, each of shape (windows,), from sums of shape (3, windows)."""
    count, total, squares = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0) * count / (count - 1)
        half = np.where(count >= _FEWEST_GROUPS, _Z * np.sqrt(variance / count), np.nan)
    return mean, np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)


def _plain(values: Floats) -> list[float | None]:
    return [round(each, _DECIMALS) if np.isfinite(each) else None for each in values.tolist()]
