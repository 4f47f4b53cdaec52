"""The forecast of a run in words: how it came about, where it holds, or that there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curate.errors import RunError

NO_FORECAST = "tagged by an earlier version of curate: no forecast"
_CONSTANTS = ("drift", "gain", "spread")
_SOURCES = {
    "gradients": "the gradients of its rollouts",
    "pilot": "a pilot of a few GRPO steps",
    "checkpoint": "an early checkpoint of a training run",
}


def forecast_summary(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The same with what it was made of: `words`, `source`, `horizon`, `constants` and more.

    Of a run of an earlier version `words` alone. Raises RunError as `forecast_words` does.
    """
    return {"words": forecast_words(manifest), **(manifest.get("forecast") or {})}


def forecast_words(manifest: Mapping[str, Any], *, constants: bool = False) -> str:
    """How the forecast of a run came about, in a sentence without a full stop.

    Args:
        manifest: of the run.
        constants: whether the numbers of its model are told too (docs/forecast.md).

    Raises:
        RunError: what the manifest says of the forecast is damaged.
    """
    facts = manifest.get("forecast")
    if facts is None:
        return NO_FORECAST
    if facts.get("why_none"):
        return f"none, since {facts['why_none']}"
    try:
        numbers = ", ".join(f"{name} {facts['constants'][name]:g}" for name in _CONSTANTS)
        source, horizon = str(facts["source"]), float(facts["horizon"])
        has_gold = facts.get("pass_probability", {}).get("gold_used", False)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"manifest.json is damaged: its forecast says no {error}") from error
    length = "as long" if horizon == 1 else f"{horizon:g} times as long"
    counted = "what was counted, the probability of the gold answers" if has_gold else (
        "what was counted"
    )  # fmt: skip
    return (
        f"the pass rate after a GRPO training {length} as it takes to solve most easy items, from "
        f"{counted} and the lift by {_SOURCES.get(source, source)}"
        + (f" (constants of its model: {numbers})" if constants else "")
    )


def probability_words(manifest: Mapping[str, Any]) -> str:
    """What `p_unlearnable` of a run is where no predictor gave it."""
    if manifest.get("forecast") is None:
        return "by the gradient similarity, as an earlier version of curate gave it"
    if manifest["forecast"].get("why_none"):
        return f"none, since {manifest['forecast']['why_none']}"
    return "the probability that the pass rate after training lies below τ, by the forecast"
