"""Sampling in rounds: who goes on, how far, and when nobody does.

A round takes every item to its target number of rollouts, which `rounds/*.parquet` holds since
before the round began; then `probes.statistics.plan` decides from the outcomes, and from what the
gradients say so far, which items go on. What a round does, it does for what is missing only: so a
run that was killed in a round ends it, and goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.errors import UsageError
from curate.progress import say
from curate.run.folder import RunFolder
from curate.run.rollouts import Outcomes, count_outcomes
from curate.run.tables import ROUNDS, read_parquet, write_parquet
from probes.stages.similarity import item_ties
from probes.statistics.plan import Plan, next_round

Counts = dict[str, Any]


@dataclass(frozen=True)
class Rounds:
    """The rounds of one run, and the work that they ask for.

    Attributes:
        run, config, plan: of the run.
        item_ids: of its items, in their order.
        row_of: position of each item by item_id.
        sample: draw what is missing to the target of each item, shape (items,).
        verify: judge what is not judged yet.
        differentiate: take the gradients of rollouts that have none yet.
        decided: whether the forecast of an item is decided, (items,), from the counts and the
            gradients so far.
        record: put the counts of a stage into its entry of the manifest.
    """

    run: RunFolder
    config: TagConfig
    plan: Plan
    item_ids: pa.ChunkedArray
    row_of: Mapping[str, int]
    sample: Callable[[NDArray[np.int64]], Counts]
    verify: Callable[[], Counts]
    differentiate: Callable[[], Counts]
    decided: Callable[[Outcomes], NDArray[np.bool_]]
    record: Callable[[str, Counts, Counts], None]

    def go_on(self) -> None:
        """Sample, verify and decide who goes on, until nobody does."""
        while not self.end_round():
            pass

    def end_round(self) -> bool:
        """Do what is missing of the open round, and plan the next; tell whether there is none."""
        number = self._open_round()
        self._draw(number)
        return self._plan_round(number + 1)

    def do_part(self, own: NDArray[np.bool_], whole: Path) -> int:
        """Do a part of the open round of a run, the gradients with it; return the round's number.

        Args:
            own: whether each item belongs to the part, shape (items,).
            whole: the folder of the run, whose `rounds` say how far each item goes; before the
                first merge it has none, and all go as far as they do at first.

        Raises:
            UsageError: `whole` belongs to a run of other items.
        """
        number = max(_last_round(whole), 0)
        target = np.full(len(own), self.plan.min_rollouts)
        if number:
            table = read_parquet(ROUNDS.path(whole, number))
            if not table["item_id"].equals(self.item_ids):
                raise UsageError(f"{whole} belongs to a run of other items: give another --run-dir")
            target = table["rollouts"].to_numpy()
        self._write_target(number, np.where(own, target, 0))
        self._draw(number)
        with self.run.stage("gradients") as entry:
            self.record("gradients", entry, self.differentiate())
        return number

    def _open_round(self) -> int:
        number = _last_round(self.run.path)
        if number < 0:
            number = 0
            self._write_target(number, np.full(len(self.row_of), self.plan.min_rollouts))
        return number

    def _draw(self, number: int) -> None:
        """Draw and judge what is missing of a round."""
        with self.run.stage("sample") as entry:
            self.record("sample", entry, self.sample(self._target(number)))
        with self.run.stage("verify") as entry:
            self.record("verify", entry, self.verify())

    def _write_target(self, number: int, target: NDArray[np.int64]) -> None:
        table = pa.table({"item_id": self.item_ids, "rollouts": target})
        write_parquet(ROUNDS.path(self.run, number), table)

    def _target(self, number: int) -> NDArray[np.int64]:
        """Rollouts that each item shall have after a round, shape (items,)."""
        file = ROUNDS.path(self.run, number)
        return np.asarray(read_parquet(file, ["rollouts"])["rollouts"])

    def _plan_round(self, number: int) -> bool:
        """Write who goes on in a round, and how far; tell whether sampling is finished."""
        # A stage that is "open" has not come to its end: a later round goes on with it.
        with self.run.stage("plan") as entry:
            found = count_outcomes(self.run, self.row_of)
            entry["state"] = "open"
        decided = self._forecast_decided(found)
        with self.run.stage("plan") as entry:
            extra = next_round(
                self.plan,
                found.judged,
                found.correct,
                decided,
                drawn=found.drawn,
                ties=item_ties(self.row_of),
            )
            goes_on = extra > 0
            self.record("plan", entry, {"rounds": number, "items_this_time": len(extra)})
            if not goes_on.any():
                return True
            target = found.drawn + extra
            self._write_target(number, target)
            entry["state"] = "open"
        say(
            f"round {number + 1}: {goes_on.sum():,} of {len(extra):,} items go on, to "
            f"{target[goes_on].max():,} rollouts; {found.drawn.sum():,} rollouts so far"
        )
        return False

    def _forecast_decided(self, found: Outcomes) -> NDArray[np.bool_]:
        """Whether more rollouts cannot change what the forecast says of an item, shape (items,)."""
        is_easy = found.is_easy(self.config.tau)
        could_go_on = (found.correct > 0) & ~is_easy & (found.drawn < self.plan.max_rollouts)
        if not could_go_on.any():
            # Nobody asks: gradients can wait until the last round is over.
            return np.ones(len(is_easy), dtype=bool)
        with self.run.stage("gradients") as entry:
            self.record("gradients", entry, self.differentiate())
            entry["state"] = "open"
        with self.run.stage("lift") as entry:
            decided = self.decided(found)
            self.record("lift", entry, {"items_this_time": len(is_easy)})
            entry["state"] = "open"
        return decided


def _last_round(run: Path) -> int:
    """The number of a run's last round; -1 where it has none yet."""
    return len(ROUNDS.files(run)) - 1
