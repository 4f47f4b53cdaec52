"""Finished run folders written by hand, of which the truth is known."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate.config import TagConfig, config_to_toml
from probes.statistics.pass_rates import pass_rate_interval


def planted_gradients(
    rng: np.random.Generator, alignment: Sequence[float], draws: Sequence[int], dim: int = 256
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Gradients of rollouts, (rollouts, dim), and the item of each, (rollouts,).

    The expected gradients of items i and j have the cosine √(alignment_i alignment_j); the noise of
    a rollout is twice as long as they are.
    """
    common = np.zeros(dim)
    common[0] = 1
    rows, item = [], []
    for each, (share, k) in enumerate(zip(alignment, draws, strict=True)):
        own = rng.normal(size=dim)
        own[0] = 0
        mean = np.sqrt(share) * common + np.sqrt(1 - share) * own / np.linalg.norm(own)
        rows.append(mean + 2 * rng.normal(size=(k, dim)) / np.sqrt(dim))
        item += [each] * k
    return np.concatenate(rows).astype(np.float32), np.array(item, dtype=np.int64)


@dataclass
class PlantedRun:
    """What a run folder shall say of items `item_ids`; lists are in their order."""

    item_ids: Sequence[str]
    correct: Sequence[int]
    tags: Sequence[str]
    rollouts: int = 32
    similarity: Sequence[float | None] | None = None
    standard_error: float = 0.05
    lift: Sequence[float | None] | None = None
    lift_error: float = 0.2
    p_unlearnable: Sequence[float | None] | None = None
    forecast: Sequence[float | None] | None = None
    """Expected pass rate after training; its interval goes from half of it to twice that."""
    gradients: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None
    """Of the rollouts, and the position in `item_ids` of each."""
    prompts: Sequence[str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    adapter_seed: int = 42
    weight_hash: str = ""

    def write(self, folder: Path) -> Path:
        """Write the run folder; return it."""
        (folder / "gradients").mkdir(parents=True)
        settings = {"max_rollouts": self.rollouts, "min_rollouts": self.rollouts, **self.settings}
        config = TagConfig(dataset="items.jsonl", model=folder.name, **settings)
        (folder / "config.toml").write_text(config_to_toml(config))
        manifest = {
            "stages": {"tags": {"state": "done"}},
            "model": {"weight_hash": self.weight_hash or folder.name},
            "seeds": {"adapter": self.adapter_seed},
            "forecast": {"source": "gradients", "horizon": 1.0},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        prompts = self.prompts or [f"prompt of {each}" for each in self.item_ids]
        self._table(folder / "items.parquet", {"prompt": prompts})
        c, n = np.array(self.correct), np.full(len(self.correct), self.rollouts)
        low, high = pass_rate_interval(c, n)
        rates = {"total_rollouts": n, "total_correct_rollouts": c, "pass_rate": c / n}
        self._table(
            folder / "pass_rates.parquet", rates | {"pass_rate_low": low, "pass_rate_high": high}
        )
        values = np.array(self.similarity or [None] * len(c), dtype=np.float64)
        known = np.where(np.isnan(values), np.nan, 1)
        similar = {
            "gradient_similarity": values,
            "gradient_similarity_low": values - 2 * self.standard_error,
            "gradient_similarity_high": values + 2 * self.standard_error,
            "standard_error": self.standard_error * known,
            "degrees_of_freedom": 100.0 * known,
        }
        self._table(folder / "similarity.parquet", similar)
        lift = np.array(self.lift or [None] * len(c), dtype=np.float64)
        moved = {
            "lift": lift,
            "lift_low": lift - 2 * self.lift_error,
            "lift_high": lift + 2 * self.lift_error,
            "standard_error": np.where(np.isnan(lift), np.nan, self.lift_error),
            "from_others": lift / 2,
        }
        self._table(folder / "lift.parquet", moved)
        facts = {"source": "gradients", "unit": 1.0}
        (folder / "lift.json").write_text(json.dumps(facts))
        expected = np.array(self.forecast or [None] * len(c), dtype=np.float64)
        tags = {
            "trainability": list(self.tags),
            "p_unlearnable": np.array(self.p_unlearnable or [None] * len(c), dtype=np.float64),
            "forecast_pass_rate": expected,
            "forecast_low": expected / 2,
            "forecast_high": np.minimum(expected * 2, 1),
        }
        self._table(folder / "tags.parquet", tags)
        if self.gradients:
            features, item = self.gradients
            np.save(folder / "gradients" / "rollouts.npy", features)
            ids = pa.array(self.item_ids).take(pa.array(item))
            index = pa.table({"item_id": ids, "weight": pa.array([1] * len(item), pa.int32())})
            pq.write_table(index, folder / "gradients" / "rollouts.parquet")
        return folder

    def _table(self, path: Path, columns: Mapping[str, Any]) -> None:
        arrays = {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
        pq.write_table(pa.table({"item_id": pa.array(self.item_ids), **arrays}), path)
