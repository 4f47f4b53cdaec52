"""Does a predictor of `curate calibrate` hold on other items? Fitted on one run, tested on another.

    .venv/bin/python -m benchmarks.study.predictor_transfer RUN OTHER

fits on the confirmed items of RUN and prints, with 95 % intervals over the items of OTHER, how well
it predicts what `curate confirm` found of those; beside it a logistic regression on the pass rate
alone, fitted on RUN too, and OTHER's own built-in `p_unlearnable`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from probes.predictor.features import FEATURES
from probes.predictor.predictor import read_predictor
from recipes.calibrate.calibrate import calibrate_run, fit_logistic
from recipes.calibrate.confirmed_items import Floats, read_confirmed
from recipes.statistics.agreement import calibration, compare_scores


def main() -> None:
    """Fit, predict and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("other", type=Path, metavar="OTHER")
    arguments = parser.parse_args()
    fitted_on, _ = read_confirmed([arguments.run])
    tested, _ = read_confirmed([arguments.other])
    seen = set(fitted_on.item_ids) & set(tested.item_ids)
    if seen:
        parser.error(f"{len(seen)} items are in both runs: that would be no test")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predictor.json"
        calibrate_run([arguments.run], file)
        predictor = read_predictor(file)
    column = [FEATURES.index("pass_rate")]
    on_rate = fit_logistic(
        fitted_on.values[:, column], fitted_on.is_unlearnable, fitted_on.item_ids, seed=0
    )
    scores: dict[str, Floats] = {
        "predictor": predictor.p_unlearnable(tested.values),
        "pass rate alone": on_rate.predict_proba(tested.values[:, column])[:, 1],
        "built-in": np.where(
            np.isnan(tested.built_in), fitted_on.is_unlearnable.mean(), tested.built_in
        ),
    }
    outcome = tested.is_unlearnable
    ranking = compare_scores(outcome, scores)
    print(
        f"fitted on {len(fitted_on.item_ids)} items of {arguments.run}, tested on "
        f"{int(outcome.sum())} unlearnable and {int((~outcome).sum())} learnable items of "
        f"{arguments.other}"
    )
    print(f"{'score':<20}{'AUROC':<26}{'calibration error'}")
    for name, score in scores.items():
        figures = ranking[name] | calibration(outcome, score)
        cells = [
            f"{figures[key]:.2f} ({figures[f'{key}_low']:.2f} to {figures[f'{key}_high']:.2f})"
            for key in ("auroc", "expected_calibration_error")
        ]
        print(f"{name:<20}{cells[0]:<26}{cells[1]}")


if __name__ == "__main__":
    main()
