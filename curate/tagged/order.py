"""`curate order`: the dataset in the order in which to train on it."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any, ClassVar

from curate.command import library_function
from curate.errors import UsageError
from curate.files import path_or_none
from curate.settings import declared_in, option, settings, several
from curate.tagged.orders import ORDERS
from curate.tagged.training_file import TrainingFile

SCHEDULE = "schedule"
_SCHEDULE = f"of --by {SCHEDULE}"


def _of_schedule(help: str, metavar: str, **more: Any) -> Any:
    return option(help, default=None, group=_SCHEDULE, metavar=metavar, **more)


@settings
class Order(TrainingFile):
    """Write the rows of a tagged dataset in another order. Trainers shuffle unless told not to:
    docs/use.md has the settings that keep an order.

    example: curate order train.jsonl --by schedule --epochs 3 --batch 128 --format verl -o
    train.parquet. Exit status: 0 done, 1 the disk failed, 2 bad usage or input.
    """

    resumes = False

    more_help: ClassVar[tuple[str, ...]] = (
        *(
            f"--by {name}: {each.summary}. Helps: {each.helps}. The paper: {each.paper}."
            for name, each in ORDERS.items()
        ),
        f"--by {SCHEDULE}: all epochs in one file, rows repeated, with a target pass rate that "
        "falls from easy to hard, in batches that mix. Helps: a training of several epochs, and "
        "trainers that draw by weights (--weights). The paper: its curriculum has three stages "
        "and did not carry over to unlearnable items.",
    )

    _: KW_ONLY
    by: str = option(
        f"the strategy: {', '.join(ORDERS)}, {SCHEDULE}",
        default="curriculum", metavar="STRATEGY", suggested=(*ORDERS, SCHEDULE),
    )  # fmt: skip
    seed: int = option(f"of interleave and {SCHEDULE}", default=0, metavar="S")
    epochs: int | None = _of_schedule(
        "how often the file goes through the rows; train on it for one epoch (default: 1)",
        "N", least=1,
    )  # fmt: skip
    batch: int | None = _of_schedule(
        "rows of a training step, in which no row comes twice if it can be helped (default: 64)",
        "N",
        least=1,
    )
    first_rate: float | None = _of_schedule(
        "the pass rate aimed at when training begins (default: 0.8)", "X", least=0
    )
    last_rate: float | None = _of_schedule(
        "and when it ends; the target falls, or rises, evenly (default: 0.2)", "X", least=0
    )
    width: float | None = _of_schedule(
        "how far a batch spreads around it, as a standard deviation (default: 0.2)", "X",
        least=0.001,  # Pass rates are told apart to a thousandth.
    )  # fmt: skip
    band: str | Sequence[str] | None = _of_schedule(
        "in the place of a target: rows with a pass rate from LOW to HIGH, for an equal part of "
        "the training for each time that it is given; other rows are left out",
        "LOW:HIGH",
    )
    repeats: int | None = _of_schedule(
        "how often a row comes at most, so that what the target dwells on comes more often and the "
        "rest less (default: each row once an epoch)",
        "N", least=1,
    )  # fmt: skip
    quota: str | None = _of_schedule(
        "every value of this column has its share of every batch", "COLUMN"
    )
    share: str | Sequence[str] | None = _of_schedule(
        "with --quota: this value has the share X instead; repeatable", "VALUE=X"
    )
    weights: str | Path | None = _of_schedule(
        "write the probability of every row in each epoch, and how often it comes: .parquet, "
        ".jsonl or .csv",
        "FILE",
    )

    def work(self) -> dict[str, Any]:
        """Write the rows.

        Returns:
            the number of rows, and where each tag's rows stand.

        Raises:
            UsageError: bad input; nothing was written.
            RunError: the disk failed, or the dataset changed meanwhile.
        """
        if self.by != SCHEDULE:
            for each in declared_in(Order).values():
                if each.declared["group"] == _SCHEDULE and getattr(self, each.name) is not None:
                    raise UsageError(f"{each.flags[-1]} is of --by {SCHEDULE}, not of {self.by}")
            from curate.tagged.training_files import order_file

            return order_file(self, self.by, self.seed)
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}; of --by {SCHEDULE} it must be at least 0")
        from curate.tagged.scheduled_files import Plan, schedule_file

        plan = Plan(
            epochs=self.epochs or 1,
            batch=self.batch or 64,
            first_rate=self.first_rate,
            last_rate=self.last_rate,
            width=self.width,
            bands=several(self.band or ()),
            repeats=self.repeats,
            quota=self.quota or "",
            shares=several(self.share or ()),
            seed=self.seed,
        )
        return schedule_file(self, plan, path_or_none(self.weights))

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Rows of each tag or epoch, and where they stand."""
        if found["by"] == SCHEDULE:
            return self._lines_of_schedule(found)
        lines = [f"{'trainability':<24}{'rows':>9}{'first':>9}{'last':>9}"]
        for tag, at in found["tags"].items():
            lines.append(f"{tag:<24}{at['rows']:>9,}{at['first']:>9,}{at['last']:>9,}")
        lines += [f"{'all':<24}{found['rows']:>9,}", ""]
        return [*lines, f"by {found['by']}: {found['out']}"]

    def _lines_of_schedule(self, found: dict[str, Any]) -> list[str]:
        lines = [f"{'epoch':<24}{'rows':>9}{'distinct':>9}{'target':>9}{'pass rate':>11}"]
        for each in found["epochs"]:
            rate = "-" if each["pass_rate"] is None else f"{each['pass_rate']:.3f}"
            lines.append(
                f"{each['epoch']:<24}{each['rows']:>9,}{each['distinct']:>9,}"
                f"{each['target']:>9.3f}{rate:>11}"
            )
        lines += [f"{'all':<24}{found['written']:>9,}{found['distinct']:>9,}", ""]
        lines.append(f"rows: {found['rows']:,}; not in it: {sum(found['left_out'].values()):,}")
        lines += [f"{count:>9,}  {why}" for why, count in found["left_out"].items()]
        lines += ["", f"by {found['by']}: {found['out']}"]
        return [*lines, *([f"weights: {found['weights']}"] if found["weights"] else [])]


order = library_function(Order)
