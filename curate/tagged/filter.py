"""`curate filter`: the rows that are worth training on."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any

from curate.command import library_function
from curate.files import path_or_none
from curate.settings import option, settings, several
from curate.tagged.training_file import TrainingFile

_ROWS, _DRAWS = "which rows stay", "how many of them"
_NULL = "; a row where it is null is dropped"


def _bound(help: str) -> Any:
    return option(help, default=None, group=_ROWS, metavar="X")


@settings
class Filter(TrainingFile):
    """Write the rows of a tagged dataset that meet every condition given, in their order, and
    count what was dropped by which condition. Rows that were rejected or not probed have no tag and
    are always dropped. The dataset itself stays as it is.

    example: curate filter train.tagged.jsonl --keep easy --keep learnable --keep undetermined
    --max-pass-rate 0.9 --dropped dropped.jsonl --format trl -o train.jsonl. Exit status: 0 done, 1
    the disk failed, 2 bad usage or input, or no row is left.
    """

    resumes = False

    _: KW_ONLY
    keep: str | Sequence[str] = option(
        "only rows with this tag: easy, learnable, unlearnable, no_positive or undetermined; "
        "repeatable (default: all)",
        default=(), group=_ROWS, metavar="TAG",
        suggested=("easy", "learnable", "unlearnable", "no_positive", "undetermined"),
    )  # fmt: skip
    by: str = option(
        "which tags --keep and --balance look at: trainability, or confirmed_trainability",
        default="predicted", group=_ROWS, choices=("predicted", "confirmed"),
    )  # fmt: skip
    min_pass_rate: float | None = _bound(f"pass_rate at least X{_NULL}")
    max_pass_rate: float | None = _bound(f"pass_rate at most X{_NULL}")
    min_forecast: float | None = _bound(
        f"forecast_pass_rate, expected after training, at least X{_NULL}"
    )
    max_forecast: float | None = _bound(f"forecast_pass_rate at most X{_NULL}")
    min_lift: float | None = _bound(f"lift, what training does for the row, at least X{_NULL}")
    min_teaching: float | None = _bound(
        f"teaching, what the row does for unsolved ones, at least X{_NULL}"
    )
    min_similarity: float | None = _bound(f"gradient_similarity at least X{_NULL}")
    min_reliability: float | None = _bound(f"gradient_reliability at least X{_NULL}")
    max_p_unlearnable: float | None = _bound(
        "p_unlearnable at most X; rows without one, because they are easy, stay"
    )
    expr: str = option(
        'a condition on any columns, such as "pass_rate < 0.9 and gradient_reliability > 0.3": '
        "comparisons, in, is None, and, or, not; a comparison with null is false",
        default="", group=_ROWS, metavar="CONDITION",
    )  # fmt: skip
    balance: bool = option(
        "equally many rows of every tag, drawn blindly", default=False, group=_DRAWS
    )
    balance_by: str = option(
        "equally many rows of every value of a column",
        default="", group=_DRAWS, metavar="COLUMN",
    )  # fmt: skip
    sample: int | None = option(
        "draw N of the rows that are left", default=None, group=_DRAWS, metavar="N", least=1
    )
    seed: int = option("of both draws", default=0, group=_DRAWS, metavar="S", least=0)
    dropped: str | Path | None = option(
        "where dropped rows go, each with its dropped_reason", default=None, metavar="FILE"
    )

    def work(self) -> dict[str, Any]:
        """Write the rows.

        Returns:
            counts of rows kept and dropped, by rule and by tag (by no tag where the file is of
            several models and none was named).

        Raises:
            UsageError: bad input, or no row is left; nothing was written.
            RunError: the disk failed, or the dataset changed meanwhile.
        """
        from curate.tagged.rules import CONFIRMED, PREDICTED, Bound, Rules
        from curate.tagged.training_files import filter_file

        bounds = (
            Bound("pass_rate", self.min_pass_rate, self.max_pass_rate),
            Bound("p_unlearnable", maximum=self.max_p_unlearnable, keeps_null=True),
            Bound("forecast_pass_rate", self.min_forecast, self.max_forecast),
            Bound("lift", self.min_lift),
            Bound("teaching", self.min_teaching),
            Bound("gradient_similarity", self.min_similarity),
            Bound("gradient_reliability", self.min_reliability),
        )
        column = CONFIRMED if self.by == "confirmed" else PREDICTED
        rules = Rules(
            keep=several(self.keep),
            tag_column=column,
            bounds=tuple(each for each in bounds if (each.minimum, each.maximum) != (None, None)),
            balance_by=self.balance_by or (column if self.balance else ""),
            sample=self.sample,
            seed=self.seed,
        )
        return filter_file(self, rules, self.expr, path_or_none(self.dropped))

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Rows and kept rows of each tag, what was dropped and why, and the files."""
        lines = [f"{found['tag_column'] or 'tags of all models':<24}{'rows':>9}{'kept':>9}"]
        for tag, counts in found["tags"].items():
            lines.append(f"{tag:<24}{counts['rows']:>9,}{counts['kept']:>9,}")
        lines += [f"{'all':<24}{found['rows']:>9,}{found['kept']:>9,}", ""]
        lines.append(f"dropped: {found['dropped']:,}")
        lines += [f"{count:>9,}  {rule}" for rule, count in found["reasons"].items()]
        lines += ["", f"kept:    {found['out']}"]
        if found["dropped_file"]:
            lines.append(f"dropped: {found['dropped_file']}")
        return lines


filter = library_function(Filter)
