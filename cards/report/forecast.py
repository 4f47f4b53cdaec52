"""What a report tells of the forecast: pass rate now against the one that training leads to.

A hard item is expected to reach τ where its p_unlearnable is at most
`probes.tag_rules.DOUBT`, expected to stay below where it is at least 1 − DOUBT, and
undecided between. Where GRPO was run, each outcome is the item's final pass rate, a mean over the
seeds.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cards.report.items import TAGS, Floats, Ints, ReportItems, sample_by_tag, tag_words
from cards.report.training import plain
from curate.run.run import Run
from probes.forecast.model import CONFIDENCE
from probes.forecast.words import NO_FORECAST, forecast_summary
from probes.lift.gradients import group_weights
from probes.stages.lift import TEACHING_GROUPS
from probes.tag_rules import DOUBT

Flags = NDArray[np.bool_]

_EXPECTED = ("reach_tau", "undecided", "stay_below")


def _why_none(run: Run) -> str | None:
    if not run.has_forecast:
        return NO_FORECAST
    why: str | None = run.manifest["forecast"].get("why_none")
    return why


def forecast_facts(run: Run, items: ReportItems, most_points: int) -> dict[str, Any]:
    """Numbers of the forecast, and the points of its chart; unknown numbers are None.

    Args:
        run: finished.
        items: of the run.
        most_points: of the chart; more are sampled, as many of each tag.

    Returns:
        `words`: how it came about; with `source`, `horizon`, `constants` where there is one.
        `hard_items` and of these `reach_tau`, `stay_below`, `undecided`, `without_forecast`.
        `lift`: facts of its source. `outcomes`: None without `curate confirm`; else how many of
        each expectation came out where. `points`: of the chart.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    hard = (items.tag != TAGS.index("easy")) & (items.judged > 0)
    expected = _expected(items.p_unlearnable)
    counts = {name: int((hard & (expected == at)).sum()) for at, name in enumerate(_EXPECTED)}
    known = np.isfinite(items.forecast)
    shown = sample_by_tag(items, known, most_points)
    return {
        **forecast_summary(run.manifest),
        "why_none": _why_none(run),
        "tau": run.config.tau,
        "confidence": CONFIDENCE,
        "doubt": DOUBT,
        "hard_items": int(hard.sum()),
        **counts,
        "without_forecast": int((hard & (expected < 0)).sum()),
        "lift": _lift_facts(run, items),
        "teaching_for": "the target" if run.config.target else "the items that are not solved",
        "outcomes": _outcomes(items, hard, expected, run.config.tau),
        "points": {
            "of": int(known.sum()),
            "item": shown.tolist(),
            "item_id": items.ids[shown].tolist(),
            "tag": tag_words(items.tag[shown]),
            "confirmed": None if items.confirmed is None else tag_words(items.confirmed[shown]),
            "p_unlearnable": plain(items.p_unlearnable[shown]),
            "final_pass_rate": None
            if items.final_pass_rate is None
            else plain(items.final_pass_rate[shown]),
            **{
                f"pass_rate{end}": plain(getattr(items, f"pass_rate{end}")[shown])
                for end in ("", "_low", "_high")
            },
            **{name: plain(values[shown]) for name, values in items.expected.items()},
        },
    }


def groups_of_a_unit(run: Run, items: ReportItems) -> float:
    """How many groups of all items a unit of training takes with it, for one of each item.

    The effects of `teaching.parquet` are of so many groups of an item; divided by this they are
    parts of the lift (`probes.lift.gradients`). nan where no group has a signal.
    """
    weights = group_weights(
        items.judged, items.correct, run.config.group_size, run.config.policy_loss
    )
    total = float(weights.signal.sum())
    return TEACHING_GROUPS * total if total > 0 else float("nan")


def _expected(p_unlearnable: Floats) -> Ints:
    """(items,): position in `_EXPECTED`, −1 where it is unknown."""
    expected = np.where(p_unlearnable >= 1 - DOUBT, 2, np.where(p_unlearnable <= DOUBT, 0, 1))
    return np.where(np.isfinite(p_unlearnable), expected, -1).astype(np.int64)


def _lift_facts(run: Run, items: ReportItems) -> dict[str, Any] | None:
    if not run.has_forecast:
        return None
    facts = run.lift_facts()
    if "checkpoint" in facts:  # A path of this machine, maybe.
        facts["checkpoint"] = PurePath(str(facts["checkpoint"])).name
    values = items.lift[np.isfinite(items.lift)]
    low, high = np.quantile(values, [0.01, 0.99]).tolist() if len(values) else (0.0, 0.0)
    return {
        **facts,
        "items": len(values),
        "median": float(np.median(values)) if len(values) else None,
        "range": [round(min(0.0, low), 3), round(max(0.0, high, low + 0.01), 3)],
    }


def _outcomes(items: ReportItems, hard: Flags, expected: Ints, tau: float) -> dict[str, Any] | None:
    """How many of those that were expected to reach τ, or not to, did."""
    if items.final_pass_rate is None:
        return None
    final = items.final_pass_rate
    seen = hard & np.isfinite(final)
    reached = final >= tau
    return {
        "hard_items": int(seen.sum()),
        **{
            name: {
                "items": int((seen & (expected == at)).sum()),
                "reached_tau": int((seen & reached & (expected == at)).sum()),
            }
            for at, name in enumerate(_EXPECTED)
        },
    }
