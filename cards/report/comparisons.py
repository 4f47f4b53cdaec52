"""What `curate compare` found of a run and an earlier one, read back for the run's report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from curate.errors import RunError
from curate.run.run import Run

_MEASURES = ("pass_rate", "gradient_similarity", "reasoning_quality", "forecast_pass_rate", "lift")
_NUMBERS = ("items", "before", "after", "change", "low", "high")


def comparison_facts(run: Run) -> list[dict[str, Any]]:
    """Read every comparison in a run folder, in alphabetical order, without paths of this machine.

    Returns:
        an entry each: `before` and `after` (`run`, `model`), `groups_from`, `confidence`,
        `warnings`, and `groups`: `group`, `items`, and each measure that is known with the means
        before and after, the change and its interval.

    Raises:
        RunError: a file is damaged.
    """
    return [_read(file) for file in run.comparisons()]


def _read(file: Path) -> dict[str, Any]:
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        runs = {side: summary[f"run_{name}"] for side, name in (("before", "a"), ("after", "b"))}
        groups = [
            {
                "group": str(group["group"]),
                "items": int(group["items"]),
                # A comparison of an earlier version lacks some.
                **{name: _measure(group[name]) for name in _MEASURES if name in group},
            }
            for group in summary["groups"]
        ]
        return {
            **{
                side: {"run": Path(run["path"]).name, "model": Path(run["model"]).name}
                for side, run in runs.items()
            },
            "groups_from": str(summary["groups_from"]).partition(" in ")[0],
            "confidence": float(summary["confidence"]),
            "warnings": [_named(text, runs.values()) for text in summary["warnings"]],
            "groups": groups,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is damaged; `curate compare` writes it anew") from error


def _measure(found: dict[str, Any]) -> dict[str, float | None]:
    numbers = {name: found[name] for name in _NUMBERS}
    return {name: None if each is None else float(each) for name, each in numbers.items()}


def _named(text: str, runs: Any) -> str:
    """A warning with the names of the run folders in place of their paths."""
    # The longer first: a path may be the beginning of the other.
    for path in sorted((str(run["path"]) for run in runs), key=len, reverse=True):
        text = text.replace(path, Path(path).name)
    return text
