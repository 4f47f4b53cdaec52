"""What a run that was cut off has already, and what comes next: one line at its next start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

from curate.run.folder import RunFolder
from curate.run.rollouts import rollout_shards
from curate.run.tables import ITEMS, ROUNDS, count_values, gradient_shard, read_parquet

_AFTER_ROUNDS = (
    "pass_rates",
    "gradients",
    "answers",
    "similarity",
    "lift",
    "gold",
    "tags",
    "write",
)


def found_work(run: RunFolder, min_rollouts: int, *, has_target: bool, is_part: bool) -> str:
    """Say what earlier commands left in a run folder, from the manifest and the files' sizes.

    Args:
        run: just opened.
        min_rollouts: what every item gets, as long as no round is planned.
        has_target: the run has a target, which is probed before its own items.
        is_part: it is a part of a run, as `--shard` makes them.

    Returns:
        a line; nothing where the run is new, or a part that waits for the others.

    Raises:
        RunError: a file is damaged.
    """
    if run.is_done("tags"):
        return f"{run.path} is finished already; the tagged file is written again"
    if not run.is_done("items"):
        return ""
    files = rollout_shards(run)
    counts = [count_values(file, "verdict") for file in files]
    drawn, judged = sum(rows for rows, _ in counts), sum(values for _, values in counts)
    wanted = _wanted(run, min_rollouts)
    with_gradients = sum(gradient_shard(run, int(f.stem), "parquet").exists() for f in files)
    if has_target and not run.is_done("target"):
        following = "target"
    elif not run.is_done("plan") and drawn < wanted:
        following = "sample"
    elif judged < drawn:
        following = "verify"
    elif is_part:
        following = _first_left(run, ("gradients", "gold"), again=with_gradients < len(files))
    elif not run.is_done("plan"):
        is_amid = run.manifest["stages"].get("gradients", {}).get("state") == "started"
        following = "gradients" if is_amid else "plan"
    else:
        following = _first_left(run, _AFTER_ROUNDS)
    if not following:
        return ""
    least = "" if run.is_done("plan") else "at least "
    gradients = ""
    if run.is_done("gradients") and not is_part:
        gradients = ", all gradients taken"
    elif with_gradients:
        gradients = f", gradients of {with_gradients:,} of {len(files):,} files"
    return (
        f"continuing {run.path}: {drawn:,} of {least}{wanted:,} rollouts drawn, {judged:,} "
        f"judged{gradients}; next: {following}"
    )


def _first_left(run: RunFolder, stages: Sequence[str], *, again: bool = False) -> str:
    """The first of some stages that is not done, or the first of all where it is to be `again`."""
    return next((s for s in stages if not run.is_done(s) or (again and s == stages[0])), "")


def _wanted(run: RunFolder, min_rollouts: int) -> int:
    """Rollouts that the run shall have after its last planned round."""
    rounds: list[Path] = ROUNDS.files(run)
    if rounds:
        return int(pc.sum(read_parquet(rounds[-1], ["rollouts"])["rollouts"]).as_py() or 0)
    rows, _ = count_values(ITEMS.path(run), "item_id")
    return rows * min_rollouts
