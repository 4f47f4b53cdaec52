"""Interventions side by side: does a recipe help where the baseline fails? The paper's ablations.

For each recipe the final pass rates of the learnable and of the unlearnable items are compared with
those under the baseline (arXiv 2605.16787, section 4 there).

**Regression to the mean.** The unlearnable items are those whose final rollouts under the baseline
were mostly wrong. Part of that is chance, so any other run of any recipe looks better on them, one
of the baseline itself included. So no run is compared on items that it helped to choose: for each
seed s the groups are formed anew from the baseline's *other* seeds, and there the recipe's run with
seed s is compared with the baseline's. Neither run had a part in the choice, so that the expected
difference is zero if the recipe changes nothing, also where runs of one seed resemble each other.
That takes two seeds of the baseline at least.

**Interval.** With d_is the difference of item i in seed s, m_s its mean over the items and m the
mean of m_s over the S seeds, the variance of m is

    sum_i (1/S sum_s (d_is - m_s) / n_s)^2  +  v / S,     v = max(0, var(m_s) - mean_s(var_s / n_s))

The first part is that of drawing items, all seeds of an item together, with the noise of the final
rollouts in it; the second is what sets whole runs apart. The interval is Student's, its degrees of
freedom after Satterthwaite. In simulated studies where the recipe changes nothing it holds 0 in 90
to 98 % with three seeds and in 86 to 96 % with two, over items and runs that vary little or much
(tests/test_interventions.py has the worlds). Resampling items and seeds, a bootstrap, does so in 80
to 99 % with three seeds: three resampled seeds vary too little, and noise is counted twice. The
comparison on the confirmed groups themselves is off by 0.02 in those worlds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from curate.run.run import Run
from curate.run.tables import OUTCOMES
from curate.run.validated import FinishedSeeds
from curate.tags import Trainability
from recipes.listing import describe
from recipes.recipe import LISTS, read_recipe, recipe_names

GROUPS = (Trainability.LEARNABLE, Trainability.UNLEARNABLE)
FEWEST_ITEMS = 5
"""Below so many items no interval is given: their spread says too little."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class RecipeRuns:
    """The final state of a recipe's finished runs, all arrays in one order of items.

    Attributes:
        seeds: of the runs, S of them.
        final: final pass rates, shape (items, S); nan where there is none.
        ever_positive: a correct rollout in training or in the probe, shape (items, S).
    """

    seeds: tuple[int, ...]
    final: NDArray[np.float64]
    ever_positive: NDArray[np.bool_]


def intervention_table(run: Run, confirmed: Mapping[str, str], baseline: str) -> dict[str, Any]:
    """Compare every validated recipe with the baseline.

    Args:
        run: validated.
        confirmed: the confirmed tag by item_id, from the baseline's runs.
        baseline: name of the recipe to compare with.

    Returns:
        `baseline`, `tau`, and under `recipes` for each other recipe with a finished run its
        `recipe`, `hypothesis`, `paper_found` and `seeds`, and under `groups` for `learnable` and
        `unlearnable`:
        confirmed_items: the items of that confirmed tag;
        confirmed_pass_rate, confirmed_baseline_pass_rate: mean final pass rates on them, as in the
            paper; the baseline's runs chose these items, so the two are not to be compared;
        items: those compared, on groups formed without the runs compared;
        pass_rate, baseline_pass_rate, reached_tau, baseline_reached_tau: means and shares there;
        difference, difference_low, difference_high: of the pass rates, with its 95 % interval;
        verdict: higher, lower or `no difference shown`, by the interval;
        note: why there is no verdict. What cannot be said is null.

    Raises:
        UsageError: there is no finished run of the baseline.
        RunError: a file of a finished run is missing or damaged.
    """
    found_baseline = run.seeds(baseline)
    tau = run.config.tau
    first = found_baseline.tables(OUTCOMES)[0]
    item_ids = first["item_id"].to_pylist()
    initial = _floats(first["initial_pass_rate"].to_pylist())
    base = _read_runs(found_baseline, item_ids)
    tags = np.array([confirmed.get(item_id, "") for item_id in item_ids])
    rows = []
    for name, found in run.recipes().items():
        # The arms of the payoff ask another question, with few final rollouts.
        if name in {baseline, *LISTS["pays"], *LISTS["pays-small"]}:
            continue
        runs = _read_runs(found, item_ids)
        groups = {
            str(group): _as_confirmed(base, runs, tags == group)
            | compare(base, runs, initial, tau, group)
            for group in GROUPS
        }
        recipe = read_recipe(str(found.recipe_file))
        rows.append(
            {
                "recipe": name,
                "hypothesis": recipe.hypothesis,
                "paper_found": describe(name)["paper_found"] if name in recipe_names() else None,
                "seeds": list(runs.seeds),
                "groups": groups,
            }
        )
    return {"baseline": baseline, "seeds": list(base.seeds), "tau": tau, "recipes": rows}


def _floats(values: list[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _read_runs(found: FinishedSeeds, item_ids: list[str]) -> RecipeRuns:
    finals, positives = [], []
    for table in found.tables(OUTCOMES):
        rows = dict(
            zip(
                table["item_id"].to_pylist(),
                zip(
                    table["final_pass_rate"].to_pylist(),
                    table["ever_positive"].to_pylist(),
                    strict=True,
                ),
                strict=True,
            )
        )
        final, positive = zip(*(rows.get(each, (None, False)) for each in item_ids), strict=True)
        finals.append(_floats(list(final)))
        positives.append(np.array(positive, dtype=bool))
    return RecipeRuns(found.seeds, np.stack(finals, axis=1), np.stack(positives, axis=1))


def _as_confirmed(
    base: RecipeRuns, runs: RecipeRuns, is_in_group: NDArray[np.bool_]
) -> dict[str, Any]:
    return {
        "confirmed_items": int(is_in_group.sum()),
        "confirmed_pass_rate": _mean(runs.final[is_in_group]),
        "confirmed_baseline_pass_rate": _mean(base.final[is_in_group]),
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def compare(
    base: RecipeRuns,
    runs: RecipeRuns,
    initial: NDArray[np.float64],
    tau: float,
    group: Trainability,
) -> dict[str, Any]:
    """Compare a recipe with the baseline on groups that neither run compared had a part in.

    Args:
        base, runs: of the baseline and of the recipe.
        initial: pass rates of the initial policy, shape (items,).
        tau: the pass rate below which an item is hard, or not learned.
        group: learnable or unlearnable.

    Returns:
        the entries of `intervention_table` from `items` on.
    """
    result: dict[str, Any] = dict.fromkeys(
        (
            *("items", "pass_rate", "baseline_pass_rate", "reached_tau", "baseline_reached_tau"),
            *("difference", "difference_low", "difference_high", "verdict", "note"),
        )
    )
    if len(base.seeds) < 2:
        return result | {"note": "the baseline has one seed, which chose the items itself"}
    pairs = [(base.seeds.index(seed), runs.seeds.index(seed)) for seed in base.seeds
             if seed in runs.seeds]  # fmt: skip
    if not pairs:
        return result | {"note": "no seed in common with the baseline"}
    # (items, pairs); nan where an item is not in the group that a pair is compared on.
    before, after = np.full((2, len(initial), len(pairs)), np.nan)
    for column, (at_base, at_runs) in enumerate(pairs):
        chosen = _group(base, at_base, initial, tau, group)
        chosen &= ~np.isnan(base.final[:, at_base]) & ~np.isnan(runs.final[:, at_runs])
        before[chosen, column] = base.final[chosen, at_base]
        after[chosen, column] = runs.final[chosen, at_runs]
    items = int((~np.isnan(before)).any(axis=1).sum())
    result["items"] = items
    if not items:
        return result | {"note": "no item in this group"}
    result |= {
        "pass_rate": _mean_of_runs(after),
        "baseline_pass_rate": _mean_of_runs(before),
        "reached_tau": _mean_of_runs(_reached(after, tau)),
        "baseline_reached_tau": _mean_of_runs(_reached(before, tau)),
        "difference": _mean_of_runs(after - before),
    }
    if len(pairs) < 2:
        return result | {"note": "one seed: runs differ by more than their items show"}
    interval = _interval(after - before)
    if interval is None:
        return result | {"note": f"fewer than {FEWEST_ITEMS} items"}
    low, high = interval
    verdict = "higher" if low > 0 else "lower" if high < 0 else "no difference shown"
    return result | {"difference_low": low, "difference_high": high, "verdict": verdict}


def _group(
    base: RecipeRuns, without: int, initial: NDArray[np.float64], tau: float, group: Trainability
) -> NDArray[np.bool_]:
    """The paper's partition by all seeds of the baseline but one, shape (items,)."""
    final = np.delete(base.final, without, axis=1)
    positive = np.delete(base.ever_positive, without, axis=1)
    is_open = (initial < tau) & positive.all(axis=1)
    # A rate that is not known (nan) is on neither side.
    reached = final < tau if group == Trainability.UNLEARNABLE else final >= tau
    return np.asarray(is_open & reached.all(axis=1))


def _reached(rates: NDArray[np.float64], tau: float) -> NDArray[np.float64]:
    return np.where(np.isnan(rates), np.nan, rates >= tau)


def _mean_of_runs(values: NDArray[np.float64]) -> float:
    """The mean over runs of their means over items; a run without items does not count."""
    known = values[:, ~np.isnan(values).all(axis=0)]
    return float(np.nanmean(known, axis=0).mean())


def _interval(differences: NDArray[np.float64]) -> tuple[float, float] | None:
    """The interval told in the head of this file; `differences` has shape (items, runs).

    None where a run has too few items, or there is a single run with any.
    """
    is_known = ~np.isnan(differences)
    sizes = is_known.sum(axis=0)
    if (sizes < FEWEST_ITEMS).any():
        return None
    items, runs = int(is_known.any(axis=1).sum()), differences.shape[1]
    means = np.nanmean(differences, axis=0)
    deviations = np.where(is_known, differences - means, 0.0) / sizes  # (items, runs)
    of_items = (deviations.mean(axis=1) ** 2).sum() * items / (items - 1)
    between = means.var(ddof=1)
    of_runs = max(0.0, between - (deviations**2).sum(axis=0).mean()) / runs
    variance = of_items + of_runs
    # Satterthwaite's; the variance between runs is known from `runs` means only.
    squares = of_items**2 / (items - 1)
    if of_runs > 0:
        squares += (between / runs) ** 2 / (runs - 1)
    freedom = variance**2 / squares if squares > 0 else items - 1
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variance))
    middle = float(means.mean())
    return max(middle - reach, -1.0), min(middle + reach, 1.0)
