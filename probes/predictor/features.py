"""What a predictor of `curate calibrate` goes by: some numbers on every hard item with a positive.

    forecast                   log odds of ending below τ by the forecast with built-in constants
    lift                       sign(ℓ) log(1 + |ℓ|) of the lift ℓ, as the forecast takes it
    lift_error                 log of its standard error
    gradient_similarity        divided by a third of the median of its run's easy items
    standard_error             of the similarity, divided likewise
    gradient_reliability       as measured
    pass_rate                  log((p n + ½) / (n − p n + ½)), p the pass rate of n rollouts
    correct_completion_length  log(1 + mean tokens of the correct rollouts)
    completion_length          log(1 + mean tokens of all rollouts)
    no_similarity              1 where there is no similarity, as with a single correct rollout; 0
    reasoning_quality          as `curate judge` scored the correct rollouts; only of a judged run

With the forecast among them a predictor starts where the forecast ends. The constants are the
built-in ones also where a run was tagged with others, since refitted ones know outcomes. The size
of a similarity depends on the model and the prompts. In units of a run's own easy items, 3 is a
typical easy item in every run, so that what was learned in one run can be said of another. nan is
what was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import logit

from curate.config import TagConfig
from curate.errors import RunError
from curate.run.quality import read_reasoning_quality
from curate.run.rollouts import (
    floats,
    item_rows,
    read_outcomes,
    rollout_outcomes,
    rollout_shards,
)
from curate.run.tables import PASS_RATES, SIMILARITY
from probes.forecast.model import saturated
from probes.stages.forecast import read_forecast
from probes.stages.lift import read_lift

Floats = NDArray[np.float64]

FORECAST, REASONING_QUALITY = "forecast", "reasoning_quality"
PROBED_FEATURES = (
    FORECAST,
    "lift",
    "lift_error",
    "gradient_similarity",
    "standard_error",
    "gradient_reliability",
    "pass_rate",
    "correct_completion_length",
    "completion_length",
    "no_similarity",
)
"""What every run has."""
FEATURES = (*PROBED_FEATURES, REASONING_QUALITY)

FEWEST_EASY_ITEMS = 5
# Of a probability and of a standard error, whose logarithms have no end.
_MOST_CERTAIN, _LEAST_ERROR = 1e-6, 1e-3


@dataclass(frozen=True)
class SimilarityScale:
    """Median similarity of a run's easy items, which the sizes of similarities depend on."""

    easy: float | None
    """None where they are too few, or not above 0."""
    source: str
    """How it came about, or why there is none."""

    @classmethod
    def of(cls, easy_similarities: Floats) -> SimilarityScale:
        """From the similarities of the easy items; nan among them is passed over."""
        known = easy_similarities[~np.isnan(easy_similarities)]
        if len(known) < FEWEST_EASY_ITEMS:
            return cls(
                None, f"only {len(known)} easy items have one, and {FEWEST_EASY_ITEMS} are needed"
            )
        median = float(np.median(known))
        if median <= 0:
            return cls(None, f"the {len(known)} easy items have a median of {median:.3g}")
        return cls(median, f"{len(known)} easy items have a median of {median:.3g}")


@dataclass(frozen=True)
class ItemFeatures:
    """The features of the hard items of a run that have a correct rollout."""

    item_ids: list[str]
    values: Floats
    """Shape (items, features), in the order of `FEATURES`; nan is unknown."""
    scale: SimilarityScale
    """Whose easy items similarities were divided by; unknown, the run has none to go by."""
    lift_source: str
    """Where the run's lift comes from: its unit and its errors go with that."""


def read_features(run_dir: Path, config: TagConfig) -> ItemFeatures:
    """Read the features from the evidence in a run folder.

    Args:
        run_dir: a run whose pass rates, similarities and lift are written.
        config: of the run: an item is hard where its pass rate, c/n, is below τ.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    rates = PASS_RATES.read(run_dir)
    similar = SIMILARITY.read(run_dir)
    lifted, _ = read_lift(run_dir)
    for name, table in (("similarity", similar), ("lift", lifted)):
        if not rates["item_id"].equals(table["item_id"]):
            raise RunError(
                f"{run_dir}: pass_rates.parquet and {name}.parquet differ in their items"
            )
    made = read_forecast(run_dir, config)
    judged, correct = made.found.judged, made.found.correct
    is_easy = made.found.is_easy(config.tau)
    p = np.clip(made.forecast.p_unlearnable, _MOST_CERTAIN, 1 - _MOST_CERTAIN)
    similarity = similar["gradient_similarity"].to_numpy()
    scale = SimilarityScale.of(similarity[is_easy])
    divisor = np.nan if scale.easy is None else scale.easy / 3
    passed = rates["pass_rate"].to_numpy() * judged
    item_ids = rates["item_id"].to_pylist()
    lengths = _correct_lengths(run_dir, item_ids)
    columns = {
        FORECAST: logit(p),
        "lift": saturated(floats(lifted["lift"])),
        "lift_error": np.log(np.maximum(floats(lifted["standard_error"]), _LEAST_ERROR)),
        "gradient_similarity": similarity / divisor,
        "standard_error": similar["standard_error"].to_numpy() / divisor,
        "gradient_reliability": similar["gradient_reliability"].to_numpy(),
        "pass_rate": np.log((passed + 0.5) / (judged - passed + 0.5)),
        "correct_completion_length": np.log1p(lengths),
        "completion_length": np.log1p(rates["mean_completion_tokens"].to_numpy()),
        "no_similarity": np.isnan(similarity / divisor).astype(np.float64),
        REASONING_QUALITY: _quality(run_dir, rates["item_id"].combine_chunks()),
    }
    chosen = np.flatnonzero(~is_easy & (correct > 0))
    return ItemFeatures(
        [item_ids[row] for row in chosen],
        np.column_stack([columns[name] for name in FEATURES])[chosen],
        scale,
        made.source,
    )


def _quality(run_dir: Path, item_ids: pa.Array) -> Floats:
    """Judged quality of each item's correct rollouts, shape (items,); nan where none was judged."""
    judged = read_reasoning_quality(run_dir, item_ids)
    if judged is None:
        return np.full(len(item_ids), np.nan)
    return np.asarray(judged["reasoning_quality"].to_numpy(), dtype=np.float64)


def _correct_lengths(run_dir: Path, item_ids: list[str]) -> Floats:
    """Mean tokens of each item's correct rollouts, shape (items,); nan where there is none."""
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    counts, tokens = np.zeros((2, len(item_ids)), dtype=np.int64)
    for file in rollout_shards(run_dir):
        table = read_outcomes(file, "item_id", "completion_token_ids")
        table = table.filter(pa.array(rollout_outcomes(table) == 1))
        rows = item_rows(table, row_of)
        np.add.at(counts, rows, 1)
        lengths = pc.list_value_length(table["completion_token_ids"]).cast(pa.int64())
        np.add.at(tokens, rows, lengths.to_numpy())
    with np.errstate(invalid="ignore"):
        return np.asarray(tokens / counts)
