"""`curate forecast --lift pilot`: pilots of some seeds, what they say of each item, and new tags.

The lift of an item is the mean over the seeds in which it is known, of S. Its error has two parts,

    error^2 = (mean of the seeds' errors)^2 + s^2 / S

The first is that of the rollouts, which all seeds share but for those that their first steps
trained on, so that more seeds do not make it smaller. The second is how far the seeds differ, with
the variance moderated over items (Smyth 2004), because two or three seeds tell little of it:

    s^2 = (d0 s0^2 + (S - 1) s_i^2) / (d0 + S - 1),   d0 = 4,   s0^2 = mean over items of s_i^2

With one seed, how far another would differ is not known and is not in the error.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.run.tables import SCORED
from probes.models.probed import probed_model
from probes.rescoring.rollout_scores import RolloutScores
from probes.stages.lift import ItemLift
from recipes.forecast.forecast import check_run, finish
from recipes.forecast.pilot import run_pilot
from recipes.recipe import Recipe
from recipes.train.job import read_facts
from recipes.train.processes import process_state

_PRIOR_FREEDOM = 4.0


def forecast_by_pilot(
    run: Path,
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    horizon: float | None = None,
    model: str = "",
    keep: bool = False,
) -> dict[str, Any]:
    """Run pilots, read the lift of every item from them, and tag the run anew.

    Args:
        run: the folder of a finished run.
        recipe, seeds, model, keep: as in `run_pilot`.
        horizon: as in `tag_anew`.

    Returns:
        `run_dir`, `tagged_file` and `lift`; under `accelerate launch` only the main process tags,
        and the others return nothing.

    Raises:
        UsageError: bad input; nothing was spent.
        RunError: a step failed; the same call continues.
    """
    config = check_run(run, horizon)
    folders = run_pilot(run, recipe, seeds, model=model, keep=keep)
    if not process_state().is_main_process:
        return {}
    files = probed_model(run, config, model)
    scores = RolloutScores(run, files, trust_remote_code=config.trust_remote_code)
    start = time.monotonic()
    scores.initial()
    initial_seconds = time.monotonic() - start
    found = [scores.lift(SCORED.read(folder)) for folder in folders]
    lift = mean_lift(
        np.array([each.log_odds_change for each in found]),
        np.array([each.log_odds_error for each in found]),
    )
    facts = [read_facts(folder) for folder in folders]
    about = {
        "recipe": recipe.name,
        "steps": recipe.max_steps,
        "seeds": [each["seed"] for each in facts],
        "sampled_rollouts": _total(facts, "counts", "sampled_rollouts"),
        "sampled_tokens": _total(facts, "counts", "sampled_tokens"),
        "scored_rollouts": _total(facts, "counts", "scored_rollouts"),
        "seconds": {
            "training": round(_total(facts, "seconds", "training"), 1),
            "scoring": round(_total(facts, "seconds", "scoring") + initial_seconds, 1),
        },
    }
    return finish(run, lift, "pilot", about, horizon)


def _total(facts: Sequence[Mapping[str, Any]], table: str, name: str) -> Any:
    return sum(each[table][name] for each in facts)


def mean_lift(lifts: NDArray[np.float64], errors: NDArray[np.float64]) -> ItemLift:
    """Join the lifts of several seeds.

    Args:
        lifts: (seeds, items), nan where unknown.
        errors: (seeds, items), standard errors from the rollouts.

    Returns:
        their mean, and its error from rollouts and seeds; nan for an item that no seed knows.
    """
    known = np.isfinite(lifts)
    count = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, lifts, 0).sum(axis=0) / count
        from_rollouts = np.where(known, errors, 0).sum(axis=0) / count
    squares = np.where(known, (lifts - mean) ** 2, 0).sum(axis=0)
    freedom = np.maximum(count - 1, 0)
    between = np.zeros(lifts.shape[1])
    if freedom.any():
        pooled = squares.sum() / freedom.sum()
        between = (_PRIOR_FREEDOM * pooled + squares) / (_PRIOR_FREEDOM + freedom)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(from_rollouts**2 + between / count)
    return ItemLift(mean, np.where(count > 0, error, np.nan))
