"""The lift of every item, from whatever source: `lift.parquet`, and `lift.json` about the source.

The lift of an item is the change of its log odds by a unit of training. Of the source `gradients`,
to first order, the unit is the training that lifts the items it trains on by 1 on average, each
counted as much as GRPO takes of it (w_j of `probes.lift.gradients`); so 2 is twice what training
does for its own items. Of a pilot or a checkpoint the lift is what these did, in log odds.

`teaching.parquet` comes from the gradients whatever the source: what training on the item does for
the items that are not solved (or the target's), in the same unit for a hundred groups of it, and
who teaches it and whom it helps or hurts most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.errors import RunError
from curate.files import write_atomically
from curate.run.features import RolloutFeatures
from curate.run.names import LIFT_FACTS
from curate.run.rollouts import (
    Outcomes,
    floats,
    item_rows,
    nullable,
    read_outcomes,
    real_rewards,
    rollout_shards,
)
from curate.run.tables import ITEMS, LIFT, PAIRS, TEACHING, Folder, read_json
from probes.lift.gradients import GradientLift, LiftInputs, measure_lift
from probes.lift.rewards import ItemRewards
from probes.statistics.distributions import student_t_quantile

Floats = NDArray[np.float64]

GRADIENTS, PILOT, CHECKPOINT = "gradients", "pilot", "checkpoint"
_CONFIDENCE = 0.95
_HIGHEST_RATE = 0.99
TEACHING_GROUPS = 100
"""What `teaching.parquet` counts in: so many groups of an item."""


@dataclass(frozen=True)
class ItemLift:
    """What a source says of each item: arrays (items,), nan where it is unknown."""

    lift: Floats
    """Change of the item's log odds by the unit of training, as it was measured."""
    standard_error: Floats
    """Of the lift, in the same unit."""
    degrees_of_freedom: Floats | None = None
    """Of Student's t of the error; None: that of a normal."""
    from_others: Floats | None = None
    """The share of the lift that other items teach; None where the source cannot tell."""


def measured_lift(
    features: RolloutFeatures,
    found: Outcomes,
    config: TagConfig,
    target: LiftInputs | None = None,
    *,
    rewards: ItemRewards | None = None,
    with_pairs: bool = False,
) -> tuple[ItemLift, GradientLift, dict[str, Any]]:
    """The lift by gradients, in the unit above; with the raw measurement and facts about it.

    Args:
        features: of the run's correct and wrong rollouts.
        found: counts of all rollouts.
        config: of the run.
        target: correct rollouts of the items that teaching is for; None: the run's unsolved ones.
        rewards: of all rollouts, where they are other numbers than 0 and 1 (`read_rewards`).
        with_pairs: whether to look for teachers and pupils as well.

    Raises:
        RunError: the run's gradients are of a version that kept no lengths, or damaged.
    """
    inputs = lift_inputs(features, found, rewards)
    try:
        raw = measure_lift(
            inputs, ~found.is_easy(config.tau), group_size=config.group_size,
            loss=config.policy_loss, learners=target, with_pairs=with_pairs,
        )  # fmt: skip
    except ValueError as error:
        raise RunError(f"the gradients of the run are damaged: {error}") from error
    weight = raw.weight
    known = np.isfinite(raw.lift)
    total = float(weight[known].sum())
    unit = float(weight[known] @ raw.lift[known]) / total if total > 0 else np.nan
    facts: dict[str, Any] = {
        "group_size": config.group_size,
        "policy_loss": config.policy_loss,
        "items_with_lift": int(known.sum()),
        "unit": unit if np.isfinite(unit) else None,
    }
    if not unit > 0:
        # Nothing that is trained on moves itself: the gradients are noise, or there are none.
        facts["why_none"] = (
            "training on the items of this run does not lift them, as far as seen"
            if found.correct.any()
            else "no item has a correct rollout"
        )
        nothing = np.full(len(known), np.nan)
        return ItemLift(nothing, nothing, nothing, nothing), raw, facts
    lift = ItemLift(
        raw.lift / unit, raw.standard_error / unit, raw.degrees_of_freedom, raw.from_others / unit
    )
    return lift, raw, facts


def read_rewards(run: Folder, row_of: Mapping[str, int]) -> ItemRewards | None:
    """The rewards of all rollouts so far; None where they are 1 for correct and 0 for wrong.

    Raises:
        RunError: a file is missing or damaged.
    """
    if not real_rewards(run):
        return None
    item, reward = [], []
    for file in rollout_shards(run):
        table = read_outcomes(file, "item_id")
        item.append(item_rows(table, row_of))
        reward.append(floats(table["reward"].cast(pa.float64())))
    return ItemRewards.of(np.concatenate(item), np.concatenate(reward), len(row_of))


def lift_inputs(
    features: RolloutFeatures, found: Outcomes, rewards: ItemRewards | None = None
) -> LiftInputs:
    """The inputs of `probes.lift.gradients`, with p at (c + 1/2) / (n + 1)."""
    return LiftInputs(
        features=features.features,
        item=features.item,
        weights=features.weights,
        is_correct=features.is_correct,
        tokens=features.lengths(),
        judged=found.judged,
        correct=found.correct,
        pass_rate=np.minimum((found.correct + 0.5) / (found.judged + 1), _HIGHEST_RATE),
        rewards=rewards,
        reward=None if rewards is None else features.reward.astype(np.float64),
    )


def write_lift(run: Path, lift: ItemLift, source: str, facts: Mapping[str, Any]) -> None:
    """Write `lift.parquet`, a line an item in the run's order, and where it comes from.

    Args:
        run: the run folder.
        lift: arrays in the order of `items.parquet`.
        source: gradients, pilot or checkpoint.
        facts: plain values about the source.

    Raises:
        RunError: the arrays are not of the run's items, or the disk is full.
    """
    item_ids = ITEMS.read(run, "item_id")["item_id"]
    if len(lift.lift) != len(item_ids):
        raise RunError(f"{run} has {len(item_ids):,} items, and the lift is of {len(lift.lift):,}")
    freedom = np.inf if lift.degrees_of_freedom is None else lift.degrees_of_freedom
    half = student_t_quantile((1 + _CONFIDENCE) / 2, freedom) * lift.standard_error
    unknown = np.full(len(lift.lift), np.nan)
    table = pa.table(
        {
            "item_id": item_ids,
            "lift": nullable(lift.lift),
            "lift_low": nullable(lift.lift - half),
            "lift_high": nullable(lift.lift + half),
            "standard_error": nullable(lift.standard_error),
            "from_others": nullable(unknown if lift.from_others is None else lift.from_others),
        }
    )
    LIFT.write(run, table)
    write_atomically(run / LIFT_FACTS, json.dumps({"source": source, **facts}, indent=2) + "\n")


def write_teaching(
    run: Path, item_ids: pa.ChunkedArray, raw: GradientLift, unit: float | None
) -> None:
    """Write `teaching.parquet`: item_id, teaching, and each item's teachers and pupils."""
    scale = TEACHING_GROUPS / unit if unit and unit > 0 else np.nan
    columns = {"item_id": item_ids, "teaching": nullable(raw.teaching * scale)}
    pairs = raw.pairs
    if pairs is not None:
        for name in PAIRS:
            places, values = getattr(pairs, name), getattr(pairs, f"{name}_by")
            exists = (places >= 0) & np.isfinite(scale)
            offsets = pa.array(np.concatenate([[0], exists.sum(axis=1).cumsum()]), pa.int32())
            names = item_ids.take(pa.array(places[exists])).combine_chunks()
            columns[name] = pa.ListArray.from_arrays(offsets, names)
            columns[f"{name}_by"] = pa.ListArray.from_arrays(
                offsets, pa.array(values[exists] * scale, pa.float64())
            )
    TEACHING.write(run, pa.table(columns))


def read_lift(run: Path) -> tuple[pa.Table, dict[str, Any]]:
    """`lift.parquet` and the facts about its source.

    Raises:
        RunError: a file is missing or damaged.
    """
    return LIFT.read(run), read_json(run / LIFT_FACTS)
