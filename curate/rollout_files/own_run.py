"""The rollouts of a run of curate's own, by `curate tag` or `curate import`, for another run.

They carry the item's id, prompt, its token ids and gold, so that they find their item where any of
these is the same. Rewards are 1 for correct and 0 for wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.errors import RunError, UsageError
from curate.rollout_files.record import Drawn, LoggedRollout
from curate.run.folder import has_rollouts, read_manifest, read_run_config
from curate.run.names import MANIFEST
from curate.run.rollouts import rollout_outcomes, rollout_shards
from curate.run.tables import ITEMS, read_parquet

NAME = "a run of curate"


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return (path / MANIFEST).is_file()


def check_run(path: Path) -> None:
    """Refuse a run that has no rollouts, or not all of them.

    Raises:
        UsageError: it is such a one.
    """
    if not has_rollouts(path):
        raise UsageError(f"{path} has not all its rollouts yet: continue it with its own command")


def rollouts_of(path: Path) -> Iterator[LoggedRollout]:
    """Its rollouts, in the order in which they were drawn or taken.

    Raises:
        UsageError: a file of the run is damaged.
    """
    try:
        items = ITEMS.read(path, "item_id", "prompt", "prompt_token_ids", "answer").to_pylist()
        by_id = {each["item_id"]: each for each in items}
        for file in rollout_shards(path):
            table = read_parquet(file)
            outcomes = rollout_outcomes(table).tolist()
            for row, outcome in zip(_rows(table), outcomes, strict=True):
                item, tokens = by_id[row["item_id"]], row["completion_token_ids"] or None
                yield LoggedRollout(
                    item_id=row["item_id"],
                    prompt=item["prompt"],
                    prompt_token_ids=item["prompt_token_ids"] or None,
                    # What nothing could decode when it was taken is told by its tokens.
                    completion=row["completion"] or (None if tokens else ""),
                    completion_token_ids=tokens,
                    reward=None if outcome < 0 else float(outcome),
                    answer=item["answer"],
                    finish_reason=row["finish_reason"],
                    turns=row.get("turns") or 1,
                )
    except (RunError, KeyError) as error:
        raise UsageError(f"{path}: {error}") from error


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def drawn_by(path: Path) -> Drawn:
    """Who drew them, and how, as far as the run knows."""
    manifest, config = read_manifest(path), read_run_config(path)
    taken = manifest.get("rollouts")
    if taken is not None:
        told, said = taken.get("drawn") or {}, config.rollouts_temperature
        return Drawn(
            config.rollouts_by or told.get("policy"),
            told.get("temperature") if said is None else said,
            config.rollouts_max_tokens or told.get("max_tokens"),
        )
    return Drawn(manifest["model"].get("name"), config.temperature, config.max_tokens)
