"""What other scores than `p_unlearnable` reach on the confirmed items of a study.

All are computed from the run's files: gradients of correct rollouts, pass rates, outcomes. Each is
turned so that it is higher where an item is expected to be unlearnable. `PAPERS` is the paper's
plain mean cosine of an item's mean gradient to those of all easy items; the other estimators of
`benchmarks/estimators/similarity.py` compare with the items that are easy beyond doubt, as the
product does. With so many scores on so few items the best one is best by chance in part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.estimators.similarity import (
    DEFAULT,
    ESTIMATORS,
    Setting,
    mean_cosine,
    unit,
)
from curate.errors import UsageError
from curate.run.features import joined
from probes.stages.similarity import FEWEST_EASY_ITEMS
from recipes.calibrate.calibrate import cross_validate
from recipes.calibrate.confirmed_items import read_confirmed
from recipes.statistics.agreement import RESAMPLES, compare_scores

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

PAPERS = "mean cosine to all easy items (the paper's)"
COMBINED = "similarity and pass rate, logistic regression"
LIFTED = "lift needed against lift expected from the similarity"
ORACLE = "outcomes of the other items of its task"
FOLDS = 5
# Log odds that an item as similar as the easy ones was taken to gain, before lifts were measured.
_GAINED = 3.0


@dataclass(frozen=True)
class StudyItems:
    """The items of a study in the run's order: arrays of shape (items,), nan for unknown."""

    item_ids: list[str]
    tasks: NDArray[np.str_]
    total: NDArray[np.int64]
    correct: NDArray[np.int64]
    pass_rate: Floats
    pass_rate_low: Floats
    similarity: Floats
    p_unlearnable: Floats
    semantic: Floats
    final: Floats
    """Mean final pass rate over the seeds."""
    is_easy: Booleans
    is_judged: Booleans
    """Hard, the seeds agree, and with a p_unlearnable: what the main AUROC is over."""
    is_unlearnable: Booleans


def tried_scores(run: Path, items: StudyItems, tau: float) -> dict[str, Any]:
    """Compare all scores on the judged items that have a similarity of their own.

    Args:
        run: the run folder, confirmed.
        items: of the study.
        tau: of the run.

    Returns:
        `items`, `unlearnable`, `learnable`, `references`; under `scores` for each its AUROC and
        average precision with 95 % intervals, and `within_tasks`, its AUROC over pairs of one task
        only (null if there is no such pair), with the number of `pairs_within_tasks`;
        `left_out`, why a score is missing; and `calibrate`, the cross-validation of `curate
        calibrate`, or None with `calibrate_note`.
    """
    judged = np.flatnonzero(items.is_judged & np.isfinite(items.similarity))
    outcome, tasks = items.is_unlearnable[judged], items.tasks[judged]
    found: dict[str, Any] = {
        "items": len(judged),
        "unlearnable": int(outcome.sum()),
        "learnable": int((~outcome).sum()),
        "pairs_within_tasks": _within_tasks(outcome, items.p_unlearnable[judged], tasks)[1],
    }
    scores = {
        "p_unlearnable": items.p_unlearnable[judged],
        "gradient similarity (curate)": -items.similarity[judged],
        "pass rate": -items.pass_rate[judged],
    }
    if np.isfinite(items.semantic[judged]).all():
        scores["semantic similarity of prompts"] = -items.semantic[judged]
    similar, found["references"] = _estimates(run, items, judged, tau)
    scores |= similar
    left_out = {}
    scores[LIFTED] = -_lift(items, judged)
    if min(found["unlearnable"], found["learnable"]) >= FOLDS:
        scores[COMBINED] = _combined(items, judged)
    else:
        left_out[COMBINED] = f"cross-validation needs {FOLDS} items of each kind"
    others = _others_of_task(items, judged)
    if np.isfinite(others).all():
        scores[ORACLE] = -others
    else:
        left_out[ORACLE] = "some task has a single item here"
    compared = compare_scores(outcome, scores)
    found["scores"] = {
        name: figures | {"within_tasks": _within_tasks(outcome, scores[name], tasks)[0]}
        for name, figures in compared.items()
    }
    if ORACLE in found["scores"]:
        # It leaves the item's own outcome out, which within a task turns the order round.
        found["scores"][ORACLE]["within_tasks"] = None
    return found | {"left_out": left_out} | _calibrate(run)


def _estimates(
    run: Path, items: StudyItems, judged: NDArray[np.intp], tau: float
) -> tuple[dict[str, Floats], int]:
    """The scores of every estimator of similarity, and how many references they have."""
    stored = joined(run, {item_id: row for row, item_id in enumerate(items.item_ids)}).correct
    rows = unit(stored.features.astype(np.float64))
    # A completion that was drawn several times counts as often.
    gradients = [
        np.repeat(rows[stored.item == item], stored.weights[stored.item == item], axis=0)
        for item in range(len(items.item_ids))
    ]
    known = np.array([len(each) > 0 for each in gradients])
    easy = np.flatnonzero(items.is_easy & known)
    firm = easy[items.pass_rate_low[easy] >= tau]
    setting = Setting(gradients, firm if len(firm) >= FEWEST_EASY_ITEMS else easy)
    settings = {PAPERS: (Setting(gradients, easy), mean_cosine)}
    # Without the product's own, which stands among the scores as it was stored.
    settings |= {name: (setting, each) for name, each in ESTIMATORS.items() if name != DEFAULT}
    return {
        name: np.array([-where.estimate(estimator, i, gradients[i]) for i in judged])
        for name, (where, estimator) in settings.items()
    }, len(setting.references)


def _log_odds(items: StudyItems, judged: NDArray[np.intp]) -> Floats:
    correct, total = items.correct[judged], items.total[judged]
    return np.asarray(np.log((correct + 0.5) / (total - correct + 0.5)))


def _lift(items: StudyItems, judged: NDArray[np.intp]) -> Floats:
    """Log odds of the pass rate after a lift in proportion to the similarity."""
    of_easy = float(np.nanmedian(items.similarity[items.is_easy]))
    return _log_odds(items, judged) + _GAINED * items.similarity[judged] / of_easy


def _combined(items: StudyItems, judged: NDArray[np.intp]) -> Floats:
    """Out-of-fold log-odds of a logistic regression on similarity and log-odds of the pass rate."""
    values = np.column_stack([items.similarity[judged], _log_odds(items, judged)])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return cross_val_predict(
        model, values, items.is_unlearnable[judged], cv=folds, method="decision_function"
    )


def _others_of_task(items: StudyItems, judged: NDArray[np.intp]) -> Floats:
    """Mean final pass rate of the other judged items of each item's task, nan if it is alone."""
    final, tasks = items.final[judged], items.tasks[judged]
    found = np.full(len(judged), np.nan)
    for place, task in enumerate(tasks):
        others = final[(tasks == task) & (np.arange(len(judged)) != place)]
        if len(others):
            found[place] = others.mean()
    return found


def _within_tasks(
    outcome: Booleans, score: Floats, tasks: NDArray[np.str_]
) -> tuple[float | None, int]:
    """The AUROC over the pairs of an unlearnable and a learnable item of one task, and how many."""
    won, pairs = 0.0, 0
    for task in np.unique(tasks):
        of_task = tasks == task
        ahead = score[of_task & outcome][:, None].astype(float) - score[of_task & ~outcome]
        won += (ahead > 0).sum() + (ahead == 0).sum() / 2
        pairs += ahead.size
    return (float(won / pairs) if pairs else None), pairs


def _calibrate(run: Path) -> dict[str, Any]:
    try:
        confirmed, _ = read_confirmed([run])
    except UsageError as error:
        return {"calibrate": None, "calibrate_note": str(error).replace(str(run), "the run")}
    found = cross_validate(confirmed, seed=0, resamples=RESAMPLES)
    return {
        "calibrate": {"items": len(confirmed.item_ids)} | found,
        "calibrate_note": found["note"],
    }
