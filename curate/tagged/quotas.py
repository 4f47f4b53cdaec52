"""Sharing out places among kinds: as they are in the data, or as somebody says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from curate.errors import UsageError
from curate.settings import did_you_mean


def share_out(places: int, weights: Mapping[str, float], most: Mapping[str, int]) -> dict[str, int]:
    """Give each kind its share of the places, whole numbers, the largest remainders rounded up.

    What a kind cannot fill goes to the others, by the same weights.

    Args:
        places: in all.
        weights: of each kind, at least 0.
        most: what each kind can fill.

    Returns:
        places of each kind; fewer in all where those with a weight cannot fill them.
    """
    given = dict.fromkeys(weights, 0)
    open_ = [kind for kind, weight in weights.items() if weight > 0 and most[kind] > 0]
    left = places
    while left > 0 and open_:
        total = sum(weights[kind] for kind in open_)
        exact = {kind: left * weights[kind] / total for kind in open_}
        whole = {kind: math.floor(exact[kind] + 1e-9) for kind in open_}
        rest = left - sum(whole.values())
        # Sorting is stable: between equal remainders the first kind is rounded up.
        for kind in sorted(open_, key=lambda kind: whole[kind] - exact[kind])[:rest]:
            whole[kind] += 1
        for kind in open_:
            taken = min(whole[kind], most[kind] - given[kind])
            given[kind] += taken
            left -= taken
        if all(given[kind] < most[kind] for kind in open_):
            break
        open_ = [kind for kind in open_ if given[kind] < most[kind]]
    return given


def read_shares(shares: Sequence[str], counts: Mapping[str, int], column: str) -> dict[str, float]:
    """The weight of each kind: its count, or a share that was named.

    Kinds without a named share keep the proportions of their counts in what is left.

    Args:
        shares: VALUE=X each.
        counts: rows of each kind.
        column: what the kinds are values of, for errors.

    Raises:
        UsageError: a share is no number from 0 to 1, they are more than 1 together, a value is
            named twice, or no row has it.
    """
    named: dict[str, float] = {}
    for text in shares:
        kind, _, number = text.rpartition("=")
        if kind in named:
            raise UsageError(f"--share {text}: {kind!r} has a share already ({named[kind]:g})")
        try:
            named[kind] = float(number)
        except ValueError:
            named[kind] = -1.0
        if not kind or not 0 <= named[kind] <= 1:
            raise UsageError(f"--share is {text!r}; it must be VALUE=X with X from 0 to 1")
        if kind not in counts:
            hint = did_you_mean(kind, counts) or f"; its values: {', '.join(list(counts)[:8])}"
            raise UsageError(f"--share {text}: no row has {kind!r} in {column}{hint}")
    left = 1 - sum(named.values())
    if left < -1e-9:
        raise UsageError(f"the shares of --share are {sum(named.values()):g} together, more than 1")
    others = sum(count for kind, count in counts.items() if kind not in named)
    return {
        kind: named[kind] if kind in named else max(left, 0.0) * count / others
        for kind, count in counts.items()
    }
