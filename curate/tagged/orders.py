"""Orders to train on a tagged dataset in: each is a permutation of its rows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curate.errors import UsageError
from curate.settings import did_you_mean
from curate.tagged.expressions import as_number, plain_value

Row = Mapping[str, Any]

READ = ("trainability", "pass_rate", "forecast_pass_rate", "teaching", "gradient_similarity")
"""The columns that the strategies go by."""


@dataclass(frozen=True)
class Order:
    """A strategy: its sort key, and what to tell about it.

    Attributes:
        summary: what comes first, and what later.
        helps: when one would want it.
        paper: what arXiv 2605.16787 says of it.
        key: of a row; rows with equal keys keep their order. None: rows are interleaved.
    """

    summary: str
    helps: str
    paper: str
    key: Callable[[Row], tuple[float, ...]] | None


def _falling(row: Row, column: str) -> float:
    """The largest first, and what is unknown last."""
    value = as_number(plain_value(row.get(column)))
    return math.inf if value is None else -float(value)


def _tag(row: Row) -> str:
    """The predicted tag; "" for a row that was not tagged."""
    tag = row.get("trainability")
    return tag if isinstance(tag, str) else ""


def _by_tags(*tags: str) -> Callable[[Row], tuple[float, ...]]:
    """Tags in this order, others after them, rows without one last; each by falling pass rate."""
    stages = {tag: stage for stage, tag in enumerate(tags)} | {"": len(tags) + 1}

    def key(row: Row) -> tuple[float, ...]:
        return stages.get(_tag(row), len(tags)), _falling(row, "pass_rate")

    return key


def _by_column(column: str) -> Callable[[Row], tuple[float, ...]]:
    """By falling value, rows without a tag last."""
    return lambda row: (not _tag(row), _falling(row, column))


def _by_gain(row: Row) -> tuple[float, ...]:
    """By falling difference of forecast and pass rate, rows without a tag last."""
    expected, rate = (
        as_number(plain_value(row.get(name))) for name in ("forecast_pass_rate", "pass_rate")
    )
    if expected is None or rate is None:
        return not _tag(row), math.inf
    return not _tag(row), float(rate) - float(expected)


ORDERS: dict[str, Order] = {
    "curriculum": Order(
        "easy items, then learnable ones, then the rest, each by falling pass rate",
        "rewards come early, so that a weak policy or a short budget starts on items with signal",
        "its curriculum (easy and learnable items first) did not carry over to unlearnable items",
        _by_tags("easy", "learnable"),
    ),
    "pass_rate": Order(
        "by falling pass rate, whatever the tag",
        "a plain easy-to-hard order that needs no gradients, to compare the others with",
        "not tried",
        _by_column("pass_rate"),
    ),
    "forecast": Order(
        "by falling gain that is expected of training: forecast less pass rate; items without a "
        "forecast last",
        "a budget that ends before the epoch does goes where most is to be gained, neither to what "
        "is solved nor to what will not be",
        "not tried",
        _by_gain,
    ),
    "teaching": Order(
        "by falling teaching, what an item does for those that are not solved; items without it "
        "last",
        "items that carry over to others come first, so that few of them do more",
        "not tried",
        _by_column("teaching"),
    ),
    "similarity": Order(
        "by falling gradient similarity to easy items; items without one last",
        "items whose updates agree with what the policy can do come first, outliers late",
        "learnable items lie between easy and unlearnable ones in similarity; training in this "
        "order was not tried",
        _by_column("gradient_similarity"),
    ),
    "learnable-first": Order(
        "learnable items, then undetermined, easy, unlearnable and no_positive ones, each by "
        "falling pass rate",
        "a budget that ends before the epoch does goes to hard items that are expected to be "
        "learned, instead of those that are right often enough already",
        "not tried",
        _by_tags("learnable", "undetermined", "easy", "unlearnable", "no_positive"),
    ),
    "interleave": Order(
        "every stretch holds the tags in the proportions of the whole, within a tag at random "
        "(--seed)",
        "every batch is alike, so that rewards can be compared over time and no step is without "
        "signal; the neutral choice",
        "not tried",
        None,
    ),
}
"""The strategies of `curate order`, by name."""


def order_rows(rows: Sequence[Row], by: str, seed: int = 0) -> list[int]:
    """Give the places of the rows in the order of a strategy: a permutation, the same every time.

    Args:
        rows: by column name, those of `READ`; None or missing where unknown. Rows that were not
            tagged come last.
        by: a name of `ORDERS`.
        seed: of `interleave`, the one strategy that draws.

    Raises:
        UsageError: no such strategy.
    """
    if by not in ORDERS:
        hint = did_you_mean(by, ORDERS, quote=False) or f"; known: {', '.join(ORDERS)}"
        raise UsageError(f"no order is named {by!r}{hint}")
    key = ORDERS[by].key
    if key is None:
        return _interleaved(rows, seed)
    return sorted(range(len(rows)), key=lambda place: key(rows[place]))


def _interleaved(rows: Sequence[Row], seed: int) -> list[int]:
    """Spread each tag's rows evenly: the k-th of n comes at (k + 1/2)/n of the way."""
    generator = random.Random(seed)
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(_tag(row), []).append(place)
    untagged = groups.pop("", [])
    at: list[tuple[float, str, int]] = []
    for tag in sorted(groups):
        generator.shuffle(groups[tag])
        size = len(groups[tag])
        at += [((k + 0.5) / size, tag, place) for k, place in enumerate(groups[tag])]
    return [place for _, _, place in sorted(at)] + untagged
