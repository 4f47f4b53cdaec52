"""The table of rewards and clipped tokens in training, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def dynamics_text(recipes: Sequence[Mapping[str, Any]]) -> str:
    """Write where each curve of `recipes.confirm.dynamics.training_dynamics` begins and ends."""
    lines = [
        f"{'rewards in training':<28}{'group':<14}{'rollout groups':>15}{'at first':>10}"
        f"{'at last':>10}   tokens clipped in the loss"
    ]
    for recipe in recipes:
        for group in recipe["groups"]:
            known = [value for value in group["mean_reward"] if value is not None]
            lines.append(
                f"{recipe['recipe']:<28}{group['group']:<14}{sum(group['rollout_groups']):>15,}"
                f"{known[0]:>10.3f}{known[-1]:>10.3f}   {_clipped(group['whole'])}"
            )
    untested = [recipe["recipe"] for recipe in recipes if _nothing_clipped(recipe)]
    if untested:
        lines.append(
            f"not one token was clipped under {', '.join(untested)}: what clipping does was not "
            "put to the test there"
        )
    return "\n".join(lines)


def _clipped(whole: Mapping[str, float | None]) -> str:
    value, low, high = (whole[f"clipped_fraction{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    if value == 0:
        return "none"
    if low is None or high is None:
        return f"{value:.3%}"
    return f"{value:.3%} ({low:.3%} to {high:.3%})"


def _nothing_clipped(recipe: Mapping[str, Any]) -> bool:
    shares = [group["whole"]["clipped_fraction"] for group in recipe["groups"]]
    known = [share for share in shares if share is not None]
    return bool(known) and not any(known)
