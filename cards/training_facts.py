"""What GRPO made of a run's items: its confirmation, and the rewards of groups in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cards.report_items import TAGS, Floats, Ints, ReportItems
from curate.errors import RunError
from recipes.finished_run import FinishedRun
from recipes.outcomes import REWARD_SCHEMA
from recipes.validated import FinishedSeeds, finished_recipes, read_run_table

WINDOWS = 20
# Below this many groups the spread of their rewards is not known.
FEWEST_GROUPS = 5
_Z = 1.959964

_KINDS = ("unlearnable", "learnable", "no_positive", "seeds_disagree", "not_judged")
_KEPT = (
    *("recipe", "seeds", "seeds_unfinished", "tau", "items", "hard_items", "confirmed"),
    *("too_few", "notes", "table1", "confusion", "agreement", "agreement_all", "tau_sweep"),
)


def confirmation_facts(run_dir: Path) -> dict[str, Any] | None:
    """What `curate confirm` found, as `validation/summary.json` has it; None where it has not run.

    Raises:
        RunError: the file is damaged.
    """
    file = run_dir / "validation" / "summary.json"
    if not file.exists():
        return None
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        facts = {name: summary[name] for name in _KEPT}
        # What the page reads: a file that lacks some of it is refused here, not there.
        facts["confusion"] = {
            tag: {other: int(summary["confusion"][tag][other]) for other in TAGS} for tag in TAGS
        }
        for name in ("agreement", "agreement_all"):
            for score in summary[name]["scores"].values():
                _ = [score[f"auroc{end}"] for end in ("", "_low", "_high")]
        strict = summary["table1"]["positives_in_training_only"]
        for part in (summary["table1"], strict, *summary["tau_sweep"]):
            _ = [part[kind]["items"] for kind in _KINDS]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is damaged; `curate confirm {run_dir}` writes it anew") from error
    return facts


def reward_facts(run: FinishedRun, items: ReportItems) -> list[dict[str, Any]]:
    """Mean reward in training of each group of items, over windows of steps, by recipe.

    Every group of rollouts that was generated counts once, also those that dynamic sampling
    dropped; what could not be judged is left out. The interval is that of a mean over the groups of
    rollouts in the window, all seeds together; null for fewer than 5 of them.

    Raises:
        RunError: a table is damaged.
    """
    return [_recipe(found, items) for found in finished_recipes(run.path).values()]


def _recipe(found: FinishedSeeds, items: ReportItems) -> dict[str, Any]:
    ids = pa.array(items.ids)
    tables = [read_run_table(folder, "rewards", REWARD_SCHEMA) for folder in found.folders.values()]
    rows = []
    for table in tables:
        places = pc.fill_null(pc.index_in(table["item_id"], value_set=ids), -1).to_numpy()
        reward = table["mean_reward"].to_numpy().astype(np.float64)
        group = np.where(places >= 0, items.group[places], -1)
        rows.append((table["step"].to_numpy().astype(np.int64), group, reward))
    last = max((int(steps.max(initial=0)) for steps, _, _ in rows), default=0)
    window = max(1, -(-last // WINDOWS))
    windows = -(-last // window)
    groups = []
    for each, tag in enumerate(TAGS):
        seeds = [
            _window_sums(steps, reward, (group == each) & np.isfinite(reward), window, windows)
            for steps, group, reward in rows
        ]
        if any(sums[0].any() for sums in seeds):
            groups.append({"group": tag, **_curve(seeds)})
    return {
        "recipe": found.recipe,
        "seeds": list(found.seeds),
        "groups_from": "trainability" if items.confirmed is None else "confirmed_trainability",
        "steps_per_window": window,
        "first_step": [1 + number * window for number in range(windows)],
        "last_step": [min(last, (number + 1) * window) for number in range(windows)],
        "groups": groups,
    }


def _window_sums(
    steps: Ints, reward: Floats, of_group: Any, window: int, windows: int
) -> tuple[Floats, Floats, Floats]:
    """Count, sum and sum of squares of the rewards in each window, from step 1 on."""
    known = of_group & (steps >= 1)
    at, value = (steps[known] - 1) // window, reward[known]
    count, total, squares = (
        np.bincount(at, weights, minlength=windows).astype(np.float64)
        for weights in (np.ones(len(value)), value, value**2)
    )
    return count, total, squares


def _curve(seeds: list[tuple[Floats, Floats, Floats]]) -> dict[str, Any]:
    count, total, squares = (np.sum([sums[part] for sums in seeds], axis=0) for part in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0) * count / (count - 1)
        half = np.where(count >= FEWEST_GROUPS, _Z * np.sqrt(variance / count), np.nan)
        by_seed = [each_total / each_count for each_count, each_total, _ in seeds]
    return {
        "rollout_groups": [int(number) for number in count],
        "mean_reward": plain(mean),
        "mean_reward_low": plain(np.clip(mean - half, 0, 1)),
        "mean_reward_high": plain(np.clip(mean + half, 0, 1)),
        "by_seed": [plain(values) for values in by_seed],
    }


def plain(values: Floats) -> list[float | None]:
    """Numbers as JSON has them, to 4 decimals: None for what is unknown."""
    return [round(value, 4) if np.isfinite(value) else None for value in values.tolist()]
