"""`curate order`: the dataset in the order in which to train on it."""

from dataclasses import KW_ONLY
from typing import Any, ClassVar

from curate.command import library_function
from curate.settings import option, settings
from curate.tagged.orders import ORDERS
from curate.tagged.training_file import TrainingFile


@settings
class Order(TrainingFile):
    """Write all rows of a tagged dataset in another order. Trainers shuffle unless told not to:
    docs/use.md has the settings that keep an order.

    example: curate order train.jsonl --by curriculum --format verl -o train.parquet. Exit status: 0
    done, 1 the disk failed, 2 bad usage or input.
    """

    more_help: ClassVar[tuple[str, ...]] = tuple(
        f"--by {name}: {each.summary}. Helps: {each.helps}. The paper: {each.paper}."
        for name, each in ORDERS.items()
    )

    _: KW_ONLY
    by: str = option(
        f"the strategy: {', '.join(ORDERS)}",
        default="curriculum", metavar="STRATEGY", suggested=tuple(ORDERS),
    )  # fmt: skip
    seed: int = option("of interleave", default=0, metavar="S")

    def keeps(self) -> bool:
        """Nothing: what it writes is written at the end."""
        return False

    def work(self) -> dict[str, Any]:
        """Write the rows.

        Returns:
            the number of rows, and where each tag's rows stand.

        Raises:
            UsageError: bad input; nothing was written.
            RunError: the disk failed, or the dataset changed meanwhile.
        """
        from curate.tagged.training_files import order_file

        return order_file(self, self.by, self.seed)

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Rows of each tag, and where the first and the last stand."""
        lines = [f"{'trainability':<24}{'rows':>9}{'first':>9}{'last':>9}"]
        for tag, at in found["tags"].items():
            lines.append(f"{tag:<24}{at['rows']:>9,}{at['first']:>9,}{at['last']:>9,}")
        lines += [f"{'all':<24}{found['rows']:>9,}", ""]
        return [*lines, f"by {found['by']}: {found['out']}"]


order = library_function(Order)
