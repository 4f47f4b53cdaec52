"""The tables of `benchmarks.selection.grown`: arms against each other, over worlds and seeds.

A curve is linear between its evaluations, and its final rate the mean of its last eighth. Arms are
compared within a world and a seed. Seeds are few and worlds fewer, and a world is the larger unit:
the interval that counts is Student's t of the worlds' means, each over its seeds, so that it holds
for another world of the kind. Beside it stands a bootstrap that draws worlds, and in each of them
seeds, both with replacement (of so few worlds it is somewhat too narrow). Where an arm reaches a
rate is read from mean curves made monotone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from benchmarks.selection.grown import (
    ARMS,
    FULL,
    LONG,
    OURS,
    PRIMARY,
    RANDOM,
    RIVALS,
    SCHEDULE,
    SEEDS,
    SHORT,
    TARGETED,
    curve_file,
)
from benchmarks.study.interval import Interval

Floats = NDArray[np.float64]

TARGET = 0.6
"""Of the full arm's rollouts."""
_POINTS = 97
_LAST = 12
"""Points whose mean is the final rate."""
_REPLICATES = 2000


@dataclass(frozen=True)
class Curves:
    """Held-out pass rates of arms.

    Attributes:
        rollouts: (points,), evenly from 0.
        rates: of each arm, (worlds, seeds, points).
        trained: of each arm, (worlds, seeds): pass rates at the end of all items of the dataset.
        probe: rollouts of the probe of each arm that needs one, mean over worlds.
    """

    rollouts: Floats
    rates: Mapping[str, Floats]
    trained: Mapping[str, Floats]
    probe: Mapping[str, float]


def read_curves(
    folder: Path, probes: Mapping[str, Mapping[str, int]], budget: int
) -> Curves | None:
    """The seeds that are finished in every world; None where there is none."""
    own = {SCHEDULE: budget}
    seeds = [
        seed
        for seed in SEEDS
        if all(
            curve_file(folder / world, arm, each, seed).exists()
            for world in probes
            for arm in ARMS
            for each in {LONG, own.get(arm, LONG)}
        )
    ]
    if not seeds:
        return None
    points = np.linspace(0, budget, _POINTS)

    def read(world: str, arm: str, seed: int) -> tuple[Floats, float]:
        file = curve_file(folder / world, arm, own.get(arm, LONG), seed)
        found = json.loads(file.read_text("utf-8"))
        curve = np.interp(points, found["rollouts"], found["rates"])
        return curve, found["trained_items"]

    rates, trained = {}, {}
    for arm in ARMS:
        found = [[read(world, arm, seed) for seed in seeds] for world in probes]
        rates[arm] = np.array([[curve for curve, _ in each] for each in found])
        trained[arm] = np.array([[rate for _, rate in each] for each in found])
    probe = {
        arm: float(np.mean([each[arm] for each in probes.values()]))
        for arm in ARMS
        if all(arm in each for each in probes.values())
    }
    return Curves(points, rates, trained, probe)


def over_worlds(values: Floats) -> Interval:
    """Of the worlds' means, each over its seeds; values (worlds, seeds)."""
    return Interval.of(values.mean(axis=1))


def final(rates: Floats) -> Floats:
    """Final rates, of curves (..., points)."""
    return np.asarray(rates[..., -_LAST:].mean(axis=-1))


def drawn_again(worlds: int, seeds: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Worlds, (worlds, 1), and seeds in each, (worlds, seeds), of every replicate."""
    rng = np.random.default_rng(0)
    return [
        (rng.integers(worlds, size=(worlds, 1)), rng.integers(seeds, size=(worlds, seeds)))
        for _ in range(_REPLICATES)
    ]


def reached_at(curve: Floats, rollouts: Floats, rate: float) -> float:
    """Rollouts at which a curve, made monotone, first has the rate; inf: never."""
    rising = isotonic_regression(curve).x
    if rising[-1] < rate:
        return float("inf")
    after = int(np.argmax(rising >= rate))
    if after == 0:
        return float(rollouts[0])
    low, high = rising[after - 1], rising[after]
    share = (rate - low) / (high - low)
    return float(rollouts[after - 1] + share * (rollouts[after] - rollouts[after - 1]))


def reached_shares(curves: Curves, arm: str) -> Floats:
    """Share of the full arm's rollouts at which an arm has the full arm's final rate.

    (1 + replicates,): of the mean curves, then of worlds and seeds drawn again.
    """
    ours, full = curves.rates[arm], curves.rates[FULL]
    pairs = [(ours.mean(axis=(0, 1)), full.mean(axis=(0, 1)))]
    for worlds, seeds in drawn_again(*ours.shape[:2]):
        pairs.append((ours[worlds, seeds].mean(axis=(0, 1)), full[worlds, seeds].mean(axis=(0, 1))))
    return np.array(
        [
            reached_at(mine, curves.rollouts, float(final(other))) / curves.rollouts[-1]
            for mine, other in pairs
        ]
    )


def _percent(share: float) -> str:
    return "never" if np.isinf(share) else f"{100 * share:.0f} %"


def _interval(shares: Floats) -> str:
    # Order statistics, since between a number and never there is nothing.
    ordered = np.sort(shares)
    low, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.025, 0.975))
    return f"{_percent(low)} to {_percent(high)}"


def _difference(values: Floats) -> str:
    found = over_worlds(values)
    return f"{found.mean:+.4f} ± {found.half:.4f}"


def _table(curves: Curves) -> list[str]:
    worlds, seeds, _ = curves.rates[FULL].shape
    lines = [
        f"### {curves.rollouts[-1]:,.0f} rollouts, {worlds} worlds, {seeds} seeds in each", "",
        "| arm | held-out at the end | less full | on average on the way, less full | has full's "
        "final rate at | with the probe |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for arm in ARMS:
        mine = curves.rates[arm]
        less = mine - curves.rates[FULL]
        shares = reached_shares(curves, arm)
        probe = curves.probe.get(arm, 0.0) / curves.rollouts[-1]
        name = f"**{arm}**" if arm == PRIMARY else arm
        cells = [
            name,
            f"{final(mine).mean():.4f}",
            "" if arm == FULL else _difference(final(less)),
            "" if arm == FULL else _difference(less.mean(axis=2)),
            f"{_percent(shares[0])} ({_interval(shares[1:])})",
            _percent(shares[0] + probe) if arm in curves.probe else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _paired(curves: Curves) -> list[str]:
    lines = [
        "| ours less a rival, at the end | " + " | ".join(RIVALS) + " |",
        "|---" * (1 + len(RIVALS)) + "|",
    ]
    for arm in OURS:
        cells = []
        for rival in RIVALS:
            less = final(curves.rates[arm] - curves.rates[rival])
            means = [less[worlds, seeds].mean() for worlds, seeds in drawn_again(*less.shape)]
            low, high = np.quantile(means, [0.025, 0.975])
            cells.append(f"{_difference(less)} ({low:+.4f} to {high:+.4f})")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def _on_the_way(curves: Curves) -> list[str]:
    at = np.linspace(0, _POINTS - 1, 9).astype(int)
    lines = [
        "| held-out pass rate at rollouts | "
        + " | ".join(f"{curves.rollouts[i]:,.0f}" for i in at)
        + " |",
        "|---" * (1 + len(at)) + "|",
    ]
    for arm in ARMS:
        mean = curves.rates[arm].mean(axis=(0, 1))
        lines.append(f"| {arm} | " + " | ".join(f"{mean[i]:.3f}" for i in at) + " |")
    return lines


def _by_world(curves: Curves, worlds: Sequence[str]) -> list[str]:
    lines = [
        "| held-out at the end | " + " | ".join(worlds) + " |",
        "|---" * (1 + len(worlds)) + "|",
    ]
    for arm in ARMS:
        means = final(curves.rates[arm]).mean(axis=1)
        lines.append(f"| {arm} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return lines


def _of_items(curves: Curves) -> list[str]:
    lines = ["| arm | all items of the dataset, at the end | less full |", "|---|---|---|"]
    for arm in ARMS:
        mine, full = curves.trained[arm], curves.trained[FULL]
        less = "" if arm == FULL else _difference(mine - full)
        lines.append(f"| {arm} | {mine.mean():.4f} | {less} |")
    return lines


def verdict(curves: Curves) -> str:
    """Whether the rule that was fixed beforehand is met."""
    share = float(reached_shares(curves, PRIMARY)[0])
    ours = final(curves.rates[PRIMARY])
    behind = []
    for rival in RIVALS:
        if not over_worlds(ours - final(curves.rates[rival])).low > 0:
            behind.append(rival)
    is_met = share <= TARGET and not behind
    against = f"not told apart from, or behind: {', '.join(behind)}" if behind else "ahead of all"
    return (
        f"Goal {'met' if is_met else 'missed'}: {PRIMARY} has the full arm's final rate at "
        f"{_percent(share)} of its rollouts (wanted: {_percent(TARGET)}); {against}."
    )


def target_verdict(curves: Curves) -> str:
    """Whether naming a target pays, by the rule that was fixed for it, and how it fares."""
    mine = final(curves.rates[TARGETED])
    full, random = (mine - final(curves.rates[arm]) for arm in (FULL, RANDOM))
    pays = over_worlds(full).low > 0
    return (
        f"{curves.rollouts[-1]:,.0f} rollouts: a target {'pays' if pays else 'does not pay'}"
        f": {TARGETED} less full {_difference(full)}, less random {_difference(random)}."
    )


def print_tables(folder: Path, probes: Mapping[str, Mapping[str, int]]) -> None:
    """Print what is finished in all worlds, as Markdown."""
    long = read_curves(folder, probes, LONG)
    if long is None:
        print("no seed is finished in all worlds yet: run the same command again")
        return
    short = read_curves(folder, probes, SHORT)
    print(f"\n{verdict(long)}\n{target_verdict(long)}")
    if short is not None:
        print(target_verdict(short))
    print(
        f"The probe: {long.probe[PRIMARY]:,.0f} rollouts; with a target "
        f"{long.probe[TARGETED]:,.0f}.\n"
    )
    print("\n".join(_table(long)), "\n")
    if short is not None:
        print("\n".join(_table(short)), "\n")
    print("\n".join(_paired(long)), "\n")
    print("\n".join(_on_the_way(long)), "\n")
    print("\n".join(_by_world(long, [*probes])), "\n")
    print("\n".join(_of_items(long)))
