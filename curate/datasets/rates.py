"""Columns in which a dataset tells how hard its items are, to others: named, and never used.

A pass rate there is that of another policy, under another prompt; of a difficulty it is not even
known whether more is harder.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

_RATE = re.compile(
    r"(?:.*_)?(?:pass|solve|success|correct|accuracy|accept|acceptance|win)_?(?:rate|ratio|fraction"
    r"|frac|prob|probability|percentage)s?(?:_.*)?|(?:.*_)?pass_?(?:at|@)_?(?:\d+|n|k)(?:_.*)?"
    r"|(?:.*_)?accuracy(?:_.*)?|(?:correct(?:ness)?|solved)_counts?|(?:n|num)_(?:correct|solved)"
    r"|(?:mean|avg|average)_(?:reward|score)",
    re.IGNORECASE,
)
_DIFFICULTY = re.compile(
    r"(?:.*_)?(?:difficulty|hardness|complexity)(?:_.*)?|level|rating|elo", re.IGNORECASE
)


def told_rates(
    rows: Iterable[Mapping[str, Any]], left_out: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """The columns of pass rates and those of difficulties, also inside objects, that rows fill.

    Args:
        left_out: columns that are our own.
    """
    rates: dict[str, None] = {}
    difficulties: dict[str, None] = {}
    for row in rows:
        for path, name, value in _fields(row):
            if value is None or path in left_out:
                continue
            if _RATE.fullmatch(name):
                rates[path] = None
            elif _DIFFICULTY.fullmatch(name):
                difficulties[path] = None
    return list(rates), list(difficulties)


def rates_line(rates: Collection[str], difficulties: Collection[str]) -> str:
    """What such columns are, in a line; "" where there are none."""
    parts = []
    if rates:
        parts.append(f"{_named(rates)}: pass rates of another policy")
    if difficulties:
        parts.append(f"{_named(difficulties)}: whether more is harder is not known")
    return "; ".join(parts) + ("; curate uses none of them" if parts else "")


def _fields(row: Mapping[str, Any]) -> Iterable[tuple[str, str, Any]]:
    for name, value in row.items():
        yield name, name, value
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", inner, held) for inner, held in value.items())


def _named(paths: Collection[str]) -> str:
    shown = list(paths)[:5]
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(repr(path[:80]) for path in shown) + more
