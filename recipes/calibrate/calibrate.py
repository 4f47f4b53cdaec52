"""Fitting a predictor of unlearnable items on a run's evidence and what GRPO confirmed of it.

The model is a logistic regression with an L2 penalty on the standardised features of
`probes.predictor.features`, unknown ones at their mean; the built-in forecast is one of them. The
constants of the forecast are refitted beside it (`recipes.calibrate.forecast_constants`). The
strength of the penalty is the one with the lowest log loss in a cross-validation of its own.

How well it predicts is measured by cross-validation, in which no item is predicted by a model that
saw it: folds are made of items, so that an item which several runs have stands in one fold in all
of them; and imputing, scaling and the choice of the penalty are done anew within each fold's
training items (Hastie, Tibshirani and Friedman 2009, section 7.10.2). Beside it stand, on the same
items, the built-in forecast, the forecast with constants that were refitted on other items, a
logistic regression on the pass rate alone, the share of
unlearnable items (which is what knows nothing), and from 200 items on boosted trees, which are not
saved: they tell whether a model that bends would do better. Intervals are those of
`recipes.statistics.agreement`; they take items for independent, also where two runs have the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from curate.errors import UsageError
from curate.files import write_atomically
from curate.run.names import PREDICTOR
from curate.run.tables import QUALITY
from curate.tags import Trainability
from curate.version import __version__
from probes.forecast.model import Constants
from probes.predictor.features import FEATURES, PROBED_FEATURES, REASONING_QUALITY
from probes.predictor.predictor import Feature, Predictor, parse_predictor, predictor_fields
from probes.stages.forecast import CONSTANTS
from probes.stages.lift import GRADIENTS
from probes.tag_rules import DOUBT
from recipes.calibrate.confirmed_items import (
    Booleans,
    ConfirmedItems,
    Floats,
    Groups,
    RunOutcomes,
    read_confirmed,
    read_run_outcomes,
)
from recipes.calibrate.forecast_constants import fit_constants
from recipes.statistics.agreement import RESAMPLES, calibration, compare_scores, too_few_items

_FOLDS = 5
_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty (scikit-learn's C) to choose from."""
_TREES_FROM = 200
# Log loss is infinite for a certainty that was wrong; the built-in probability can be that certain.
_MOST_CERTAIN = 1e-6

Fit = Callable[[Floats, Booleans, Groups], Any]
"""Fits a classifier to values, outcomes and groups."""
Splits = list[tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Positions of the items to train on and to predict, a pair a fold."""


def calibrate_run(
    run_dirs: Sequence[Path],
    out: Path | None = None,
    *,
    reasoning_quality: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Fit a predictor on the confirmed items of runs, cross-validate it and write its file.

    Args:
        run_dirs: run folders with `validation/confirmed.parquet`. Their items are pooled.
        out: the file; `validation/predictor.json` in the first run if None.
        reasoning_quality: go by what `curate judge` scored, too.
        seed: of the folds and of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        what the file holds, with the name of the `file`.

    Raises:
        UsageError: a run is not finished or not confirmed, or not judged where its quality is
            wanted; the runs differ in a setting that the features or the outcome depend on, or in
            the source of their lift; fewer than 10 of their items are learnable, or unlearnable.
        RunError: a file of a run is missing or damaged.
    """
    out = out or run_dirs[0] / PREDICTOR
    if out.is_dir():
        raise UsageError(f"cannot write {out}: it is a folder")
    if reasoning_quality:
        _require_judged(run_dirs)
    features = FEATURES if reasoning_quality else PROBED_FEATURES
    items, runs = read_confirmed(run_dirs)
    outcomes, source = [read_run_outcomes(run_dir) for run_dir in run_dirs], runs[0]["lift"]
    refitted = fit_constants(outcomes, CONSTANTS[source])
    forecast = {
        "source": source,
        **asdict(refitted.constants),
        "items": refitted.items,
        "log_likelihood": refitted.log_likelihood,
        "log_likelihood_built_in": refitted.log_likelihood_built_in,
    }
    values = _columns(items.values, features)
    fitted = fit_logistic(values, items.is_unlearnable, items.item_ids, seed)
    models = {facts["weight_hash"]: facts["model"] for facts in runs}
    predictor = _as_predictor(fitted, values, features, models, runs[0]["settings"], forecast)
    document = {
        **predictor_fields(predictor),
        "predicts": f"the probability that a hard item is {Trainability.UNLEARNABLE}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"curate": __version__, "scikit-learn": metadata.version("scikit-learn")},
        "regularisation": {"penalty": "l2", "C": fitted[-1].C, "chosen_from": list(_PENALTIES)},
        "learnable": int((~items.is_unlearnable).sum()),
        "unlearnable": int(items.is_unlearnable.sum()),
        "runs": runs,
        "cross_validation": cross_validate(
            items, features, outcomes, source, seed=seed, resamples=resamples
        ),
    }
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    parse_predictor(text.encode())  # What cannot be read again must not be written.
    try:
        write_atomically(out, text)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}") from error
    return {"file": str(out), **document}


def _require_judged(run_dirs: Sequence[Path]) -> None:
    for run_dir in run_dirs:
        if not QUALITY.is_in(run_dir):
            raise UsageError(f"{run_dir} has no reasoning quality: `curate judge {run_dir}` first")


def _columns(values: Floats, features: Sequence[str]) -> Floats:
    """Some of the columns of `FEATURES`."""
    return values[:, [FEATURES.index(name) for name in features]]


# --- Fitting ---------------------------------------------------------------------------------


def fit_logistic(values: Floats, outcome: Booleans, groups: Groups, seed: int) -> Pipeline:
    """Fit imputer, scaler and logistic regression; inner folds choose the penalty.

    Args:
        values: shape (items, features), nan for unknown.
        outcome: whether an item is unlearnable, shape (items,).
        groups: what must not be divided between folds, shape (items,).
        seed: of the folds.
    """
    splits = _splits(outcome, groups, seed)
    losses = [
        log_loss(outcome, _out_of_fold(_penalised(c), values, outcome, groups, splits))
        for c in _PENALTIES
    ]
    # The first of equals, which is the strongest penalty.
    return _penalised(_PENALTIES[int(np.argmin(losses))])(values, outcome, groups)


def _penalised(c: float) -> Fit:
    def fit(values: Floats, outcome: Booleans, _: Groups) -> Pipeline:
        return make_pipeline(
            _imputer(),
            StandardScaler(),
            LogisticRegression(C=c, max_iter=1000),
        ).fit(values, outcome)

    return fit


def _imputer() -> SimpleImputer:
    return SimpleImputer(strategy="mean", keep_empty_features=True)


def _splits(outcome: Booleans, groups: Groups, seed: int) -> Splits:
    splitter = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    return list(splitter.split(groups, outcome, groups))


def _out_of_fold(
    fit: Fit, values: Floats, outcome: Booleans, groups: Groups, splits: Splits
) -> Floats:
    """Probability of being unlearnable from a model that did not see the item, shape (items,)."""
    found = np.empty(len(outcome))
    for train, test in splits:
        model = fit(values[train], outcome[train], groups[train])
        found[test] = model.predict_proba(values[test])[:, 1]
    return found


def _as_predictor(
    fitted: Pipeline,
    values: Floats,
    names: Sequence[str],
    models: dict[str, str],
    settings: dict[str, Any],
    forecast: Any,
) -> Predictor:
    _, scaler, regression = (step for _, step in fitted.steps)
    features = []
    for place, name in enumerate(names):
        known = values[:, place]
        known = known[~np.isnan(known)]
        low, high = np.quantile(known, [0.01, 0.99]) if len(known) else (0.0, 0.0)
        features.append(
            Feature(
                name,
                mean=float(scaler.mean_[place]),
                scale=float(scaler.scale_[place]),
                coefficient=float(regression.coef_[0, place]),
                low=float(low),
                high=float(high),
            )
        )
    intercept = float(regression.intercept_[0])
    return Predictor(tuple(features), intercept, len(values), models, settings, forecast)


# --- Cross-validation ------------------------------------------------------------------------


def cross_validate(
    items: ConfirmedItems,
    features: Sequence[str] = PROBED_FEATURES,
    outcomes: Sequence[RunOutcomes] = (),
    source: str = GRADIENTS,
    *,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """Tell how well a predictor fitted on other items predicts these, beside simpler scores.

    With `outcomes`, of the same runs in the same order, the forecast refitted on other items is
    one of them; `source` is that of their lift. With the reasoning quality among the features, a
    predictor that is fitted without it is one.

    Returns:
        `folds`, `seed`, `resamples`; `scores`, for each score its AUROC, average precision, log
        loss, Brier score and expected calibration error (not of the share, which is one number)
        with 95 % intervals; `built_in_unknown`, the items without a built-in p_unlearnable, for
        which the share of unlearnable items stands in; `decided`, for each tag how many items the
        predictor would give it and how many of them are; and `note`, which says when there are too
        few items for a claim, else None.
    """
    outcome, groups = items.is_unlearnable, items.item_ids
    values, probed = (_columns(items.values, names) for names in (features, PROBED_FEATURES))
    splits = _splits(outcome, groups, seed)
    share = np.full(len(outcome), outcome.mean())
    pass_rate = _columns(items.values, ["pass_rate"])
    logistic = partial(fit_logistic, seed=seed)
    scores = {
        "predictor": _out_of_fold(logistic, values, outcome, groups, splits),
        "built_in": np.where(np.isnan(items.built_in), share, items.built_in),
        "pass_rate": _out_of_fold(_penalised(1.0), pass_rate, outcome, groups, splits),
        "share": share,
    }
    if outcomes:
        scores["forecast"] = _refitted_out_of_fold(items, outcomes, splits, CONSTANTS[source])
    if REASONING_QUALITY in features:
        scores["without_quality"] = _out_of_fold(logistic, probed, outcome, groups, splits)
    if len(outcome) >= _TREES_FROM:
        scores["boosted_trees"] = _out_of_fold(_boosted_trees, values, outcome, groups, splits)
    ranking = compare_scores(outcome, scores, resamples=resamples, seed=seed)
    figures = {
        name: ranking[name]
        | _losses(outcome, score, resamples, seed)
        | (calibration(outcome, score, resamples=resamples, seed=seed) if name != "share" else {})
        for name, score in scores.items()
    }
    ours = figures["predictor"]
    return {
        "folds": _FOLDS,
        "seed": seed,
        "resamples": resamples,
        "scores": figures,
        "built_in_unknown": int(np.isnan(items.built_in).sum()),
        "decided": _decided(outcome, scores["predictor"]),
        "note": too_few_items(
            int(outcome.sum()),
            int((~outcome).sum()),
            ours["auroc_low"],
            ours["auroc_high"],
        ),
    }


def _refitted_out_of_fold(
    items: ConfirmedItems, outcomes: Sequence[RunOutcomes], splits: Splits, built_in: Constants
) -> Floats:
    """p_unlearnable by the forecast with constants of other items' outcomes, shape (items,)."""
    found = np.empty(len(items.item_ids))
    for _, test in splits:
        left_out = items.item_ids[test]
        apart = [np.isin(run.item_ids, left_out) for run in outcomes]
        training = [run.only(~part) for run, part in zip(outcomes, apart, strict=True)]
        constants = fit_constants(training, built_in).constants
        for number, (run, part) in enumerate(zip(outcomes, apart, strict=True)):
            tested = run.only(part)
            p = dict(zip(tested.item_ids.tolist(), tested.p_unlearnable(constants), strict=True))
            rows = test[items.run[test] == number]
            found[rows] = [p[each] for each in items.item_ids[rows].tolist()]
    return found


def _boosted_trees(values: Floats, outcome: Booleans, _: Groups) -> Any:
    trees = HistGradientBoostingClassifier(
        max_depth=3, max_iter=100, learning_rate=0.05, random_state=0
    )
    # They take unknown values, but no feature that is unknown of all.
    return make_pipeline(_imputer(), trees).fit(values, outcome)


def _losses(outcome: Booleans, probability: Floats, resamples: int, seed: int) -> dict[str, float]:
    """Mean log loss and Brier score, each with a 95 % percentile interval over items."""
    likely = np.clip(probability, _MOST_CERTAIN, 1 - _MOST_CERTAIN)
    each = np.column_stack(
        [-np.log(np.where(outcome, likely, 1 - likely)), (probability - outcome) ** 2]
    )
    random = np.random.default_rng(seed)
    drawn = np.array(
        [each[random.integers(len(each), size=len(each))].mean(axis=0) for _ in range(resamples)]
    )
    found: dict[str, float] = {}
    for place, name in enumerate(("log_loss", "brier")):
        low, high = np.percentile(drawn[:, place], [2.5, 97.5])
        value = each[:, place].mean()
        found |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def _decided(outcome: Booleans, probability: Floats) -> dict[str, dict[str, int]]:
    """Count the items that would be tagged, and those of them whose tag came true."""
    learnable, unlearnable = probability <= DOUBT, probability >= 1 - DOUBT
    return {
        str(tag): {"items": int(is_tagged.sum()), "came_true": int(came_true[is_tagged].sum())}
        for tag, is_tagged, came_true in (
            (Trainability.LEARNABLE, learnable, ~outcome),
            (Trainability.UNLEARNABLE, unlearnable, outcome),
        )
    }
