"""What the pilots of a world's run say, of the rollouts that a smaller probe would have had.

`curate forecast RUN --lift pilot` trains a few steps and scores the first correct rollouts of every
item under both policies. Here only those count that are among the first n of the item, and that
the pilot did not train on. The pilot itself is the same at every budget: its own rollouts are
spent besides, and it is told how many.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.forecast.data import Probe, World
from curate.run.names import PILOTS
from curate.run.tables import SCORED
from probes.lift.checkpoint import log_ratio_lift
from probes.stages.lift import ItemLift
from recipes.forecast.by_pilot import mean_lift

Floats = NDArray[np.float64]
_HIGHEST_RATE = 0.99


def pilot_folders(world: World) -> list[Path]:
    """The finished pilots of a world's run, one a seed."""
    return sorted(file.parent for file in world.run.glob(f"{PILOTS}/*/*/{SCORED.file}"))


def pilot_lift(probe: Probe, folders: list[Path]) -> ItemLift:
    """The mean lift of the pilots, from the rollouts of a probe."""
    found = []
    for folder in folders:
        before, after = _scored(probe, folder)
        row_of = {item_id: row for row, item_id in enumerate(probe.world.item_ids)}
        rates = np.minimum(probe.pass_rate, _HIGHEST_RATE)
        found.append(log_ratio_lift(before, after, row_of, rates))
    return mean_lift(
        np.array([each.log_odds_change for each in found]),
        np.array([each.log_odds_error for each in found]),
    )


def pilot_pass_rate(probe: Probe, folders: list[Path]) -> Floats:
    """(c + 1/2) / (n + 1) of each item, (items,), with what the pilots drew after their first step.

    Their first step takes the probe's own rollouts.
    """
    n, c = probe.found.judged.astype(np.float64), probe.found.correct.astype(np.float64)
    ids = pa.array(probe.world.item_ids)
    for folder in folders:
        table = pq.read_table(folder / "rewards.parquet")
        table = table.filter(pc.greater(table["step"], pc.min(table["step"])))
        table = table.filter(pc.is_valid(table["mean_reward"]))
        rows = pc.index_in(table["item_id"], value_set=ids).to_numpy()
        drawn = table["rollouts"].to_numpy()
        np.add.at(n, rows, drawn)
        np.add.at(c, rows, drawn * table["mean_reward"].to_numpy())
    return np.asarray((c + 0.5) / (n + 1))


def _scored(probe: Probe, folder: Path) -> tuple[pa.Table, pa.Table]:
    """The probe's correct rollouts, scored under the initial policy and after a pilot."""
    world, draws = probe.world, probe.world.draws
    initial = next(world.run.glob("rescoring/initial-*.parquet"))
    tables = [pq.read_table(initial), pq.read_table(folder / SCORED.file)]
    numbers = np.full(world.reward.shape, -1)
    numbers[draws.item[draws.correct], draws.sample[draws.correct]] = draws.completion[
        draws.correct
    ]
    ids = pa.array(world.item_ids)
    scores = []
    for table in tables:
        # A line stands for a completion, and names the first rollout that has it.
        rows = pc.index_in(table["item_id"], value_set=ids).to_numpy()
        at = numbers[rows, table["sample"].to_numpy()]
        score = np.full(draws.completion.max() + 1, np.nan)
        score[at[at >= 0]] = table["log_probability"].to_numpy()[at >= 0]
        scores.append(score)
    trained = pq.read_table(folder / "trained.parquet")
    was_trained = np.zeros(world.reward.shape, dtype=bool)
    rows = pc.index_in(trained["item_id"], value_set=ids).to_numpy()
    was_trained[rows, trained["sample"].to_numpy()] = True
    chosen = draws.part(
        draws.correct
        & (draws.sample < probe.drawn[draws.item])
        & ~was_trained[draws.item, draws.sample]
    )
    chosen = chosen.part(np.isfinite(scores[0] + scores[1])[chosen.completion])
    distinct, first, weights = np.unique(chosen.completion, return_index=True, return_counts=True)
    columns = {
        "item_id": ids.take(pa.array(chosen.item[first])),
        "sample": chosen.sample[first],
        "reward": np.ones(len(first), dtype=np.int64),
        "weight": weights,
    }
    before, after = (pa.table({**columns, "log_probability": score[distinct]}) for score in scores)
    return before, after
