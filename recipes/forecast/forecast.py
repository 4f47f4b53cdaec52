"""A finished run tagged anew by a lift: what every source shares, and the source CHECKPOINT.

An early checkpoint of the user's own training run, in any trainer, scores the rollouts that the
probe kept; so does the policy that drew them. The ratios tell how far training has moved each item.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

from curate.config import TagConfig
from curate.datasets.source import open_source
from curate.errors import UsageError
from curate.run.folder import no_policy, read_manifest, read_run_config
from curate.run.names import RESCORING
from curate.run.tables import write_parquet
from probes.models.probed import probed_model
from probes.rescoring.rollout_scores import RolloutScores
from probes.stages.lift import ItemLift, read_lift, write_lift
from probes.tag import tag_anew


def forecast_by_checkpoint(
    run: Path, checkpoint: str, *, horizon: float | None = None, model: str = ""
) -> dict[str, Any]:
    """Read the lift of every item from a checkpoint, and tag the run anew.

    Args:
        run: the folder of a finished run.
        checkpoint: a model (folder, Hub id or .gguf file) or the folder of a LoRA adapter.
        horizon: as in `tag_anew`.
        model: where the probed model lies, if it was moved.

    Returns:
        `run_dir`, `tagged_file` and `lift`.

    Raises:
        UsageError: bad input, or a checkpoint of another architecture or tokenizer.
        RunError: a file is damaged, or the disk is full; the same call continues.
    """
    config = check_run(run, horizon)
    files = probed_model(run, config, model)
    start = time.monotonic()
    scores = RolloutScores(run, files, trust_remote_code=config.trust_remote_code)
    policy = scores.open(checkpoint)
    weights = policy.files.weight_hash
    folder = run / RESCORING / weights[:16]
    after = scores.under(policy, folder, label="scoring, checkpoint")
    del policy
    write_parquet(folder.with_suffix(".parquet"), after)
    shutil.rmtree(folder, ignore_errors=True)
    found = scores.lift(after)
    facts = {
        "checkpoint": checkpoint,
        "weight_hash": weights,
        "scored_rollouts": int(after["weight"].to_numpy().sum()),
        "seconds": {"scoring": round(time.monotonic() - start, 1)},
    }
    lift = ItemLift(found.log_odds_change, found.log_odds_error)
    return finish(run, lift, "checkpoint", facts, horizon)


def forecast_by_gradients(run: Path, *, horizon: float | None = None) -> dict[str, Any]:
    """Measure the lift from the run's gradients again, and tag the run anew.

    Args:
        run: the folder of a finished run.
        horizon: as in `tag_anew`.

    Returns:
        `run_dir`, `tagged_file` and `lift`.

    Raises:
        UsageError: bad input.
        RunError: a file is damaged, or of a version that kept no wrong rollouts.
    """
    check_run(run, horizon)
    out = tag_anew(run, horizon=horizon, by_gradients=True)
    _, facts = read_lift(run)
    return {"run_dir": str(run), "tagged_file": str(out), "lift": facts}


def check_run(run: Path, horizon: float | None) -> TagConfig:
    """Refuse a run without tags or dataset and a horizon that is none, before anything is spent."""
    if read_manifest(run)["stages"].get("tags", {}).get("state") != "done":
        raise UsageError(f"{run} has no tags yet: continue it with its `curate tag` command")
    if horizon is not None and not 0 < horizon < math.inf:
        raise UsageError(f"--horizon is {horizon:g}; it must be a number above 0")
    config = read_run_config(run)
    if not config.has_policy:
        raise UsageError(no_policy(run))
    open_source(config.dataset, split=config.split, subset=config.subset or None)
    return config


def finish(
    run: Path, lift: ItemLift, source: str, facts: dict[str, Any], horizon: float | None
) -> dict[str, Any]:
    """Write a lift, tag the run anew, and say what was done."""
    write_lift(run, lift, source, facts)
    out = tag_anew(run, horizon=horizon)
    return {"run_dir": str(run), "tagged_file": str(out), "lift": {"source": source, **facts}}
