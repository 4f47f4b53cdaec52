"""A training by another trainer, as its log of rewards tells it, in the form of `validate`.

A rollout is correct from a reward of `correct_from` on. With the groups of an item, one for each
step at which it was rolled out, in the order of the steps,

    final pass rate     that of its newest `final_rollouts` rollouts, whole groups, among those of
                        the last `final_part` of the steps; null without one there
    initial pass rate   that of the probe, or of its first `initial_rollouts` rollouts before that
                        part, those of all seeds together
    ever positive       a correct rollout in the log or in the probe

Final rollouts are drawn while the policy still changes, at the trainer's temperature and length,
by which such outcomes differ from those of `validate`. RUN/validation/<name>/<seed> gets what a
training of `validate` has: `rewards.parquet`, `outcomes.parquet` and `run.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.errors import UsageError
from curate.files import write_atomically
from curate.rollout_files import by_step
from curate.rollout_files.matching import ItemMatcher, item_matcher
from curate.rollout_files.read import RolloutFiles
from curate.run.folder import lock_folder
from curate.run.names import RECIPE, TRAINING, VALIDATION
from curate.run.rollouts import nullable
from curate.run.run import Run
from curate.run.tables import OUTCOMES, PASS_RATES, REWARDS, read_json

Ints = NDArray[np.int64]

_RECIPE = 'hypothesis = "trained elsewhere: outcomes are read from its log of rewards"\n'


@dataclass(frozen=True)
class Windows:
    """How outcomes are read from rewards; see the head of this file."""

    correct_from: float = 1.0
    final_part: float = 0.5
    final_rollouts: int = 32
    initial_rollouts: int = 0
    rollouts_per_reward: int = 1


@dataclass(frozen=True)
class Log:
    """The groups of one training: arrays of shape (groups,), by step and then item.

    Attributes:
        item: position of the item in the run.
        judged, correct: rollouts with a reward, and those that are correct.
        truncated: share of the rollouts that were cut; nan where nothing tells.
        shift: what was added to the logged steps so that the first is 1 at least.
        between: rewards above 0 and below `correct_from`, counted as wrong.
    """

    files: RolloutFiles
    step: Ints
    item: Ints
    rollouts: Ints
    judged: Ints
    correct: Ints
    truncated: NDArray[np.float64]
    shift: int
    between: int
    matched: Mapping[str, int]
    unmatched: int
    example: str

    def is_final(self, part: float) -> NDArray[np.bool_]:
        """Whether each group is of the last part of the steps."""
        first, last = int(self.step.min()), int(self.step.max())
        found: NDArray[np.bool_] = self.step > last - part * (last - first + 1)
        return found


def import_training(
    run: Run,
    logs: Sequence[RolloutFiles],
    windows: Windows,
    *,
    name: str,
    seeds: Sequence[int],
    id_column: str = "",
) -> list[Path]:
    """Write what became of a run's items in trainings by another trainer.

    Args:
        run: whose items they were trained on.
        logs: of each seed.
        windows: how outcomes are read.
        name: of the trainings, in the place of a recipe's.
        seeds: one for each log.
        id_column: a column of the dataset by whose values the logs name items.

    Returns:
        the folder of each seed.

    Raises:
        UsageError: nothing in a log is of the run's items, it has no steps or no rewards that can
            be right, or the folder is that of another training.
        RunError: a file of the run is damaged, or the disk is full.
    """
    folders = [run.path / VALIDATION / name / str(seed) for seed in seeds]
    settings = asdict(windows) | {"id_column": id_column}
    _refuse_others(folders, settings)
    read = [read_log(log, item_matcher(run, id_column), windows) for log in logs]
    initial = _initial(run, read, windows)
    for folder, seed, log in zip(folders, seeds, read, strict=True):
        lock = lock_folder(folder, "choose another --recipe NAME")
        try:
            write_atomically(folder.parent / RECIPE, _RECIPE)
            REWARDS.write(folder, _rewards(run, log))
            OUTCOMES.write(folder, _outcomes(run, log, windows, initial))
            facts = {"state": "done", "recipe": name, "seed": seed, "device": "not known"}
            facts |= {"seconds": {}, "log": _facts(log, settings)}
            write_atomically(folder / TRAINING, json.dumps(facts, indent=2) + "\n")
        finally:
            os.close(lock)
    return folders


def _refuse_others(folders: Sequence[Path], settings: Mapping[str, Any]) -> None:
    """Refuse the folder of another command's outcomes, and seeds that were read in another way."""
    for file in folders[0].parent.glob(f"*/{TRAINING}"):
        facts = read_json(file)
        log = facts.get("log")
        if log is None:
            other = "score" if "score" in facts else "validate"
            raise UsageError(
                f"{file.parent} is of `curate {other}`: give this one another name with "
                "--recipe NAME"
            )
        if file.parent not in folders and log["settings"] != settings:
            raise UsageError(
                f"{file.parent} was read with other settings ({_changed(log['settings'], settings)}"
                "): give the files of all seeds anew, or another name with --recipe NAME"
            )


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {old.get(key)}" for key in new if old.get(key) != new[key])


# --- Reading a log -------------------------------------------------------------------------------


def read_log(files: RolloutFiles, matcher: ItemMatcher, windows: Windows) -> Log:
    """Read the groups of one training.

    Raises:
        UsageError: as `import_training`.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    best, between, rewards, no_step, total = -np.inf, 0, 0, 0, 0
    is_by_step = files.format == by_step.NAME
    if is_by_step and windows.rollouts_per_reward == 1:
        raise UsageError(
            f"{files.path} holds mean rewards: say of how many rollouts each with "
            "--rollouts-per-reward N"
        )
    for rollout in files.rollouts():
        number = rollout.rollouts if rollout.rollouts > 1 else windows.rollouts_per_reward
        total += number
        item = matcher.find(rollout, number)
        if item is None:
            continue
        if rollout.step is None:
            no_step += 1
            continue
        # rollouts, judged, correct, cut, of which it is known whether they were cut
        group = groups.setdefault((rollout.step, item), [0, 0, 0, 0, 0])
        group[0] += number
        if rollout.finish_reason is not None:
            group[3] += number * (rollout.finish_reason == "length")
            group[4] += number
        if rollout.reward is None:
            continue
        rewards += 1
        if number > 1:
            if not 0 <= rollout.reward <= 1:
                raise UsageError(
                    f"{files.path}: a reward that is the mean of {number} rollouts is "
                    f"{rollout.reward:g}; means must be shares of correct ones, 0 to 1"
                )
            group[1] += number
            group[2] += round(number * rollout.reward)
            continue
        best = max(best, rollout.reward)
        group[1] += 1
        group[2] += rollout.reward >= windows.correct_from
        between += 0 < rollout.reward < windows.correct_from
    _check(files, matcher, groups, total=total, no_step=no_step, rewards=rewards)
    if 0 < best < windows.correct_from:
        raise UsageError(
            f"{files.path}: the highest reward is {best:g}, none reaches {windows.correct_from:g}: "
            "say from which on a rollout is correct with --correct-from, or of how many rollouts "
            "each is the mean with --rollouts-per-reward"
        )
    keys = sorted(groups)
    of_groups = np.array(keys, dtype=np.int64)
    step = of_groups[:, 0]
    counts = np.array([groups[key] for key in keys], dtype=np.int64)
    shift = max(0, 1 - int(step.min()))
    with np.errstate(invalid="ignore"):
        truncated = counts[:, 3] / counts[:, 4]
    return Log(
        files=files,
        step=step + shift,
        item=of_groups[:, 1],
        rollouts=counts[:, 0],
        judged=counts[:, 1],
        correct=counts[:, 2],
        truncated=truncated,
        shift=shift,
        between=between,
        matched=dict(matcher.ways),
        unmatched=matcher.unmatched,
        example=matcher.example,
    )


def _check(
    files: RolloutFiles,
    matcher: ItemMatcher,
    groups: Mapping[Any, Any],
    *,
    total: int,
    no_step: int,
    rewards: int,
) -> None:
    """Refuse a log that tells nothing of the run's items."""
    where = f"{files.path} ({files.format})"
    if not matcher.ways:
        example = f"; the first is {matcher.example}" if matcher.example else ""
        raise UsageError(
            f"{where}: none of its {total:,} rollouts is of an item of this run{example}; items "
            "are matched by item_id, token ids or prompt, or by a column of the dataset with "
            "--id-column NAME"
        )
    if not groups:
        raise UsageError(
            f"{where}: its {no_step:,} rollouts have no step: name its column with "
            "--column step=NAME"
        )
    if not rewards:
        raise UsageError(f"{where}: none of its rollouts has a reward that is a number")


# --- What became of the items --------------------------------------------------------------------


def window(
    log: Log, chosen: NDArray[np.bool_], rollouts: int, *, newest: bool
) -> tuple[Ints, Ints]:
    """Judged and correct rollouts of each item's newest or oldest groups, among some.

    Whole groups are taken until there are as many rollouts as wanted.

    Returns:
        judged and correct, by position of the item; those above the last item are left out.
    """
    size = int(log.item.max()) + 1
    judged, correct = np.zeros((2, size), dtype=np.int64)
    places = np.flatnonzero(chosen)
    for place in places[::-1] if newest else places:
        item = log.item[place]
        if judged[item] < rollouts:
            judged[item] += log.judged[place]
            correct[item] += log.correct[place]
    return judged, correct


def _initial(run: Run, logs: Sequence[Log], windows: Windows) -> tuple[Ints, Ints]:
    """Rollouts and correct ones before training, (items,)."""
    rates = run.columns(PASS_RATES, "total_rollouts", "total_correct_rollouts")
    if not windows.initial_rollouts:
        n, c = (rates[name].to_numpy() for name in rates.column_names)
        return n, c
    found = np.zeros((2, len(run.ids)), dtype=np.int64)
    for log in logs:
        before = ~log.is_final(windows.final_part)
        for total, counts in zip(
            found, window(log, before, windows.initial_rollouts, newest=False), strict=True
        ):
            total[: len(counts)] += counts
    return found[0], found[1]


def _outcomes(run: Run, log: Log, windows: Windows, initial: tuple[Ints, Ints]) -> pa.Table:
    items = len(run.ids)
    chosen = log.is_final(windows.final_part)
    judged, correct = (
        np.pad(each, (0, items - len(each)))
        for each in window(log, chosen, windows.final_rollouts, newest=True)
    )
    n, c = initial
    probed = run.columns(PASS_RATES, "total_correct_rollouts")["total_correct_rollouts"].to_numpy()
    visits = np.bincount(log.item, minlength=items)
    positive = np.bincount(log.item, log.correct, minlength=items) > 0
    with np.errstate(invalid="ignore"):
        before, after = c / n, correct / judged
    columns = {
        "item_id": run.ids,
        "initial_pass_rate": nullable(before),
        "initial_rollouts": n,
        "initial_correct": c,
        "final_pass_rate": nullable(after),
        "final_rollouts": judged,
        "final_correct": correct,
        "positive_in_training": positive,
        "ever_positive": positive | (c > 0) | (probed > 0),
        "visits": visits,
    }
    arrays = [
        each if isinstance(each, pa.Array) else pa.array(each, kind)
        for each, kind in zip(columns.values(), OUTCOMES.columns.values(), strict=True)
    ]
    return pa.table(arrays, schema=OUTCOMES.schema)


def _rewards(run: Run, log: Log) -> pa.Table:
    with np.errstate(invalid="ignore"):
        mean = log.correct / log.judged
    columns = (
        log.step.astype(np.int32),
        run.ids.take(pa.array(log.item)),
        log.rollouts.astype(np.int32),
        nullable(mean),
        nullable(log.truncated),
        pa.nulls(len(log.step), pa.float64()),
        # Equal rewards have no gradient; whether the trainer kept the others is not logged.
        pa.array((log.correct > 0) & (log.correct < log.judged)),
        log.correct.astype(np.int32),
    )
    return pa.table(list(columns), schema=REWARDS.schema)


def _facts(log: Log, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.json` tells of where the outcomes are from."""
    unreadable = log.files.unreadable
    return {
        "path": str(log.files.path),
        "files": len(log.files.files),
        "format": log.files.format,
        "columns": dict(log.files.columns),
        "settings": dict(settings),
        "first_step": int(log.step.min()) - log.shift,
        "last_step": int(log.step.max()) - log.shift,
        "groups": len(log.step),
        "rollouts": int(log.rollouts.sum()),
        "not_judged": int((log.rollouts - log.judged).sum()),
        "matched_by": dict(log.matched),
        "unmatched": log.unmatched,
        "unmatched_example": log.example or None,
        "rewards_between": log.between,
        "rows_unreadable": len(unreadable),
        "unreadable_example": unreadable[0] if unreadable else None,
    }


def log_notes(seed: int, log: Mapping[str, Any]) -> list[str]:
    """What a reader has to know of outcomes that were read from a log."""
    read = log["settings"]
    notes = [
        f"seed {seed} was trained elsewhere ({log['format']}, steps {log['first_step']:,} to "
        f"{log['last_step']:,}): a final pass rate is that of the newest {read['final_rollouts']} "
        f"rollouts in the last {read['final_part']:.0%} of its steps, drawn while it trained"
    ]
    if log["unmatched"]:
        notes.append(
            f"seed {seed}: {log['unmatched']:,} rollouts are of no item of this run, such as "
            f"{log['unmatched_example']}"
        )
    if log["rewards_between"]:
        notes.append(
            f"seed {seed}: {log['rewards_between']:,} rewards above 0 and below "
            f"{read['correct_from']:g} count as wrong (--correct-from)"
        )
    if log["rows_unreadable"]:
        notes.append(
            f"seed {seed}: {log['rows_unreadable']:,} rows could not be read; "
            f"{log['unreadable_example']}"
        )
    return notes
