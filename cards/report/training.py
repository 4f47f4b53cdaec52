"""What GRPO made of a run's items: its confirmation, and the rewards of groups in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from cards.report.items import TAGS, Floats, ReportItems
from curate.errors import RunError
from curate.run.names import CONFIRMATION
from curate.run.run import Run
from recipes.confirm.dynamics import training_dynamics

_KINDS = ("unlearnable", "learnable", "no_positive", "seeds_disagree", "not_judged")
_KEPT = (
    *("recipe", "seeds", "seeds_unfinished", "tau", "items", "hard_items", "confirmed"),
    *("too_few", "notes", "table1", "confusion", "agreement", "agreement_all", "tau_sweep"),
)


def confirmation_facts(run: Run) -> dict[str, Any] | None:
    """What `curate confirm` found, as `validation/summary.json` has it; None where it has not run.

    Raises:
        RunError: the file is damaged.
    """
    summary = run.confirmation()
    if summary is None:
        return None
    try:
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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{run.path / CONFIRMATION} is damaged; `curate confirm {run.path}` writes it anew"
        ) from error
    return facts


def reward_facts(run: Run, items: ReportItems) -> list[dict[str, Any]]:
    """What training did to each group of items, by recipe (`recipes.confirm.dynamics`).

    Raises:
        RunError: a table is damaged.
    """
    groups_from = "trainability" if items.confirmed is None else "confirmed_trainability"
    group = [TAGS[at] if at >= 0 else None for at in items.group.tolist()]
    return [
        {**recipe, "groups_from": groups_from}
        for recipe in training_dynamics(run, pa.array(items.ids), group)
    ]


def plain(values: Floats) -> list[float | None]:
    """Numbers as JSON has them, to 4 decimals: None for what is unknown."""
    return [round(value, 4) if np.isfinite(value) else None for value in values.tolist()]
