"""Choosing rows of a tagged dataset: each is kept, or dropped with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curate.datasets.row import json_text
from curate.errors import UsageError
from curate.tagged.expressions import Expression, as_number, plain_value

Row = Mapping[str, Any]

PREDICTED, CONFIRMED = "trainability", "confirmed_trainability"


@dataclass(frozen=True)
class Bound:
    """Which values of a column stay: those from `minimum` to `maximum`, both included."""

    column: str
    minimum: float | None = None
    maximum: float | None = None
    keeps_null: bool = False
    """Whether rows without a value stay; an unknown value is not within bounds."""


@dataclass(frozen=True)
class Rules:
    """What rows must be to stay, applied in this order; without any, all that were tagged do.

    Attributes:
        keep: tags; empty: all.
        tag_column: where `keep` and `balance` look: `PREDICTED` or `CONFIRMED`.
        bounds: on columns of numbers.
        expression: a condition.
        balance_by: a column of whose values equally many rows stay, drawn blindly; "": none.
        sample: so many of the rows that are left stay at most, drawn blindly; None: all.
        seed: of both draws.
    """

    keep: tuple[str, ...] = ()
    tag_column: str = PREDICTED
    bounds: tuple[Bound, ...] = ()
    expression: Expression | None = None
    balance_by: str = ""
    sample: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Drop:
    """Why a row was dropped: `rule` to count by, `reason` for this row, which may say more."""

    rule: str
    reason: str


def filter_rows(rows: Iterable[Row], rules: Rules) -> list[Drop | None]:
    """Decide about every row, in order: None for one that stays, or why it does not.

    Args:
        rows: by column name; a missing column is null. They are gone through once. Rows without a
            `trainability` were not tagged and never stay; their `tag_reason` says why.

    Raises:
        UsageError: a value that a rule looks at cannot be compared; names the row.
    """
    decisions: list[Drop | None] = []
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        try:
            drop = _dropped(row, rules)
        except ValueError as error:
            raise UsageError(f"row {place + 1}: {error}") from error
        if drop is None and rules.balance_by:
            value = plain_value(row.get(rules.balance_by))
            if value is None:
                drop = _drop(f"no {rules.balance_by}")
            else:
                groups.setdefault(json_text(value), []).append(place)
        decisions.append(drop)
    random = np.random.default_rng(rules.seed)
    if groups:
        size = min(map(len, groups.values()))
        for name in sorted(groups):
            why = f"more than the {size:,} of every {rules.balance_by} (--balance)"
            _draw(random, groups[name], size, why, decisions)
    if rules.sample is not None:
        left = [place for place, drop in enumerate(decisions) if drop is None]
        why = f"not drawn (--sample {rules.sample})"
        _draw(random, left, rules.sample, why, decisions)
    return decisions


def _draw(
    random: np.random.Generator,
    places: Sequence[int],
    size: int,
    why: str,
    decisions: list[Drop | None],
) -> None:
    """Drop all but `size` of the places, drawn blindly."""
    if size < len(places):
        drawn = set(random.choice(len(places), size=size, replace=False).tolist())
        for number, place in enumerate(places):
            if number not in drawn:
                decisions[place] = _drop(why)


def _dropped(row: Row, rules: Rules) -> Drop | None:
    if row.get(PREDICTED) is None:
        reason = str(row.get("tag_reason") or "not tagged")
        return Drop(reason.partition(":")[0], reason)
    if rules.keep:
        tag = row.get(rules.tag_column)
        if tag is None:
            return _drop(f"no {rules.tag_column}")
        if tag not in rules.keep:
            return _drop(f"{rules.tag_column} is {tag}")
    for bound in rules.bounds:
        drop = _out_of_bounds(row, bound)
        if drop is not None:
            return drop
    if rules.expression is not None and not rules.expression.matches(row):
        return _drop(f"not: {rules.expression.text}")
    return None


def _out_of_bounds(row: Row, bound: Bound) -> Drop | None:
    name, value = bound.column, plain_value(row.get(bound.column))
    if value is None:
        return None if bound.keeps_null else _drop(f"no {name}")
    number = as_number(value)
    if number is None:
        raise ValueError(f"{name} is {value!r:.60}, not a number")
    if bound.minimum is not None and number < bound.minimum:
        rule = f"{name} below {bound.minimum:g}"
    elif bound.maximum is not None and number > bound.maximum:
        rule = f"{name} above {bound.maximum:g}"
    else:
        return None
    return Drop(rule, f"{rule}: {number:.4g}")


def _drop(rule: str) -> Drop:
    return Drop(rule, rule)
