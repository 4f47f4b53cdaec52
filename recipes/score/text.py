"""What is said of outcomes that were drawn from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNKNOWN = (
    "nothing is known of the training itself: there are no curves of rewards, and whether an item "
    "was ever right is known of the probe and the final rollouts alone"
)


def checkpoint_notes(runs: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """What a reader has to know of seeds that are outcomes of checkpoints.

    Args:
        runs: `run.json` of each seed; those of other commands are left out.
    """
    scored = [str(seed) for seed, facts in runs.items() if "score" in facts]
    if not scored:
        return []
    which = f"seed {scored[0]} was" if len(scored) == 1 else f"seeds {', '.join(scored)} were"
    return [f"{which} trained elsewhere and scored from checkpoints, so {UNKNOWN}"]


def score_text(summary: Mapping[str, Any]) -> str:
    """Write the result of `recipes.score.score.score_run` for a terminal."""
    seeds = summary["seeds"]
    width = max(len("model"), *(len(each["model"]) for each in seeds))
    tau = f"{summary['tau']:g}"
    lines = [
        f"{'seed':>6}  {'model':<{width}}{'rollouts':>10}{'not judged':>12}{'cut':>8}"
        f"{'pass rate before':>18}{'after':>8}  hard items that reached {tau}"
    ]
    for each in seeds:
        cut = each["truncated"] / each["rollouts"] if each["rollouts"] else None
        lines.append(
            f"{each['seed']:>6}  {each['model']:<{width}}{each['rollouts']:>10,}"
            f"{each['rollouts'] - each['judged']:>12,}{_share(cut):>8}"
            f"{_rate(each['pass_rate_before']):>18}{_rate(each['pass_rate_after']):>8}"
            f"  {each['hard_items_reached']:,} of {each['hard_items']:,}"
        )
    lines += ["", *(f"note: {note}" for note in summary["notes"])]
    lines.append(f"next: curate confirm {summary['run_dir']} --recipe {summary['name']}")
    return "\n".join(lines)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
