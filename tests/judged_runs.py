"""Writing the reasoning quality of items into a run folder, by the format of `curate judge`."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_quality(run: Path, scores: Mapping[str, float | None], judged: int = 4) -> Path:
    """Write `judging/quality.parquet`: each item's score, None for one without a judged rollout."""
    file = run / "judging" / "quality.parquet"
    file.parent.mkdir(exist_ok=True)
    columns = {
        "item_id": pa.array(list(scores), pa.string()),
        "reasoning_quality": pa.array(list(scores.values()), pa.float64()),
        "reasoning_quality_n": [0 if score is None else judged for score in scores.values()],
    }
    pq.write_table(pa.table(columns), file)
    return file
