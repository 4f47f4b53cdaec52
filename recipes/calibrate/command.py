"""`curate calibrate`: its command line, and the function of its name."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any, ClassVar

from curate.command import Command, document
from curate.files import path_or_none
from curate.run.names import check_run_folder
from curate.settings import argument, option, settings


@settings
class Calibrate(Command):
    """Refit the constants of the forecast to what training made of the items of confirmed runs, and
    fit a logistic regression on the evidence of the hard items that `curate confirm` found
    learnable or unlearnable; write both to a file for `curate tag --predictor`. Cross-validation
    tells how well it predicts items that it was not fitted on, beside the built-in prediction and
    the pass rate alone.

    example: curate calibrate runs/mixed-SmolLM2 -o smollm2.json, then curate tag other.jsonl
    --model SmolLM2 --predictor smollm2.json
    """

    words: ClassVar[str] = "recipes.calibrate.text:calibration_text"

    runs: Sequence[str | Path] = argument(
        "a run folder of `curate tag`, confirmed by `curate confirm`; the items of several are "
        "pooled",
        metavar="RUN",
    )
    _: KW_ONLY
    out: str | Path | None = option(
        "the predictor file (default: validation/predictor.json in the first RUN)",
        default=None, metavar="FILE", flags=("-o", "--out"),
    )  # fmt: skip
    reasoning_quality: bool = option(
        "let it go by the scores of `curate judge` too; every RUN must be judged, and so must a "
        "run that the predictor is to tag",
        default=False,
    )

    def work(self) -> dict[str, Any]:
        """Fit the predictor and write its file.

        Returns:
            what the file holds, with its name as `file`: the coefficients, what they were fitted
            on, and under `cross_validation` how well they predict other items.
        """
        runs = [Path(each) for each in self.runs]
        for run in runs:
            check_run_folder(run)
        from recipes.calibrate.calibrate import calibrate_run

        quality = self.reasoning_quality
        return calibrate_run(runs, path_or_none(self.out), reasoning_quality=quality)


def calibrate(
    run: str | Path,
    *more_runs: str | Path,
    out: str | Path | None = None,
    reasoning_quality: bool = False,
) -> dict[str, Any]:
    """Calibrate on a first run and others, as `Calibrate` tells."""
    return Calibrate((run, *more_runs), out=out, reasoning_quality=reasoning_quality).work()


calibrate.__doc__ = document(Calibrate)
