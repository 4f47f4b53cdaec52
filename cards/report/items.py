"""The items of a finished run as a report shows them: what was measured of each, as columns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cards.report.source_columns import SourceColumn, read_source_columns
from curate.run.rollouts import floats
from curate.run.run import Run
from curate.run.tables import (
    CONFIRMED,
    FORECAST,
    ITEM_ANSWERS,
    ITEMS,
    LIFT,
    PAIRS,
    PASS_RATES,
    SIMILARITY,
    TEACHING,
)
from curate.run.tables import TAGS as TAG_TABLE
from curate.tags import NO_POSITIVE_KINDS, Trainability

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TAGS = tuple(str(tag) for tag in Trainability)
_RATES = (
    *("total_rollouts", "total_correct_rollouts", "unjudged_rollouts", "truncated_rollouts"),
    *("pass_rate", "pass_rate_low", "pass_rate_high"),
)
_SIMILARITIES = (
    *("gradient_similarity", "gradient_similarity_low", "gradient_similarity_high"),
    *("gradient_reliability", "rollouts_used", "nearest"),
)
_LIFT = ("lift", "lift_low", "lift_high", "from_others")
_PAIRS = (*PAIRS, *(f"{name}_by" for name in PAIRS))

_ENDS = ("", "_low", "_high")


@dataclass(frozen=True)
class ReportItems:
    """Every item of a run, in its order: arrays of shape (items,), nan where unknown."""

    ids: NDArray[np.str_]
    row: Ints
    """In the dataset."""
    prompt: pa.Array
    """As rendered."""
    answer: pa.Array
    tag: Ints
    """Position in `TAGS`, predicted."""
    confirmed: Ints | None
    """The same, confirmed; −1 where there is none. None without `curate confirm`."""
    final_pass_rate: Floats | None
    """After GRPO, mean over the seeds; None without `curate confirm`."""
    reason: pa.Array
    p_unlearnable: Floats
    judged: Ints
    correct: Ints
    unjudged: Ints
    truncated: Ints
    pass_rate: Floats
    pass_rate_low: Floats
    pass_rate_high: Floats
    similarity: Floats
    similarity_low: Floats
    similarity_high: Floats
    reliability: Floats
    gradients: Ints
    """Correct rollouts behind the gradient."""
    nearest: pa.Array
    """Lists of item ids."""
    forecast: Floats
    """Pass rate expected after training; nan throughout in a run of an earlier version, as are
    the lift and teaching."""
    forecast_low: Floats
    forecast_high: Floats
    lift: Floats
    lift_low: Floats
    lift_high: Floats
    from_others: Floats
    """The part of the lift that other items teach."""
    teaching: Floats
    teachers: pa.Array
    """Lists of item ids, strongest first; so are the next two."""
    helps: pa.Array
    hurts: pa.Array
    teachers_by: pa.Array
    """Lists of numbers: by how much."""
    helps_by: pa.Array
    hurts_by: pa.Array
    reasoning_quality: Floats | None
    """As `curate judge` scored it; None where nothing was."""
    sources: list[SourceColumn]
    """Columns of the dataset that sort the items into few kinds."""
    sources_note: str | None
    """Why there are none."""
    majority: pa.Array | None = None
    """The most frequent answer in words; None in a run of an earlier version."""
    majority_share: Floats | None = None
    """Its share of all answers."""
    is_suspect: NDArray[np.bool_] | None = None
    """Whether it makes the gold suspect."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, places: Ints) -> ReportItems:
        """The items at these positions alone."""
        taken: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                taken[field.name] = value[places]
            elif isinstance(value, pa.Array):
                taken[field.name] = value.take(pa.array(places))
        sources = [dataclasses.replace(each, codes=each.codes[places]) for each in self.sources]
        return dataclasses.replace(self, **taken, sources=sources)

    @property
    def measured(self) -> dict[str, Floats]:
        """Pass rate and similarity with their intervals, and reliability, by name."""
        return self._named("pass_rate", "similarity") | {"reliability": self.reliability}

    @property
    def expected(self) -> dict[str, Floats]:
        """Forecast and lift with their intervals, by name."""
        return self._named("forecast", "lift")

    def _named(self, *names: str) -> dict[str, Floats]:
        return {f"{name}{end}": getattr(self, f"{name}{end}") for name in names for end in _ENDS}

    @property
    def group(self) -> Ints:
        """Position in `TAGS`: what was confirmed, or else predicted; −1 for neither."""
        return self.tag if self.confirmed is None else self.confirmed


def read_report_items(run: Run) -> ReportItems:
    """Read what was measured of every item of a run.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    ids = run.ids
    items = run.columns(ITEMS, "row", "prompt", "answer")
    rates = run.columns(PASS_RATES, *_RATES)
    similar = run.columns(SIMILARITY, *_SIMILARITIES)
    tags = run.columns(TAG_TABLE, "p_unlearnable", "tag_reason", *FORECAST)
    lift = run.columns(LIFT, *_LIFT)
    teaching = run.columns(TEACHING, "teaching", *_PAIRS)
    confirmed, final = _confirmed(run, ids)
    lifted: dict[str, Any] = {name: floats(lift[name]) for name in _LIFT}
    row = _whole(items["row"])
    sources, note = read_source_columns(run, ids, row)
    return ReportItems(
        ids=np.array(ids.to_pylist(), dtype=np.str_),
        row=row,
        prompt=_texts(items["prompt"]),
        answer=_texts(items["answer"]),
        tag=_positions(run.tags()),
        confirmed=confirmed,
        final_pass_rate=final,
        reason=_texts(tags["tag_reason"]),
        p_unlearnable=floats(tags["p_unlearnable"]),
        judged=_whole(rates["total_rollouts"]),
        correct=_whole(rates["total_correct_rollouts"]),
        unjudged=_whole(rates["unjudged_rollouts"]),
        truncated=_whole(rates["truncated_rollouts"]),
        pass_rate=floats(rates["pass_rate"]),
        pass_rate_low=floats(rates["pass_rate_low"]),
        pass_rate_high=floats(rates["pass_rate_high"]),
        similarity=floats(similar["gradient_similarity"]),
        similarity_low=floats(similar["gradient_similarity_low"]),
        similarity_high=floats(similar["gradient_similarity_high"]),
        reliability=floats(similar["gradient_reliability"]),
        gradients=_whole(similar["rollouts_used"]),
        nearest=similar["nearest"].combine_chunks(),
        forecast=floats(tags["forecast_pass_rate"]),
        forecast_low=floats(tags["forecast_low"]),
        forecast_high=floats(tags["forecast_high"]),
        **lifted,
        teaching=floats(teaching["teaching"]),
        **{name: teaching[name].combine_chunks() for name in _PAIRS},
        reasoning_quality=_reasoning_quality(run, ids),
        sources=sources,
        sources_note=note,
        **_majorities(run),
    )


def _majorities(run: Run) -> dict[str, Any]:
    """What `answers.parquet` says of the items, where there is one."""
    if not ITEM_ANSWERS.is_in(run.path):
        return {}
    table = run.columns(ITEM_ANSWERS, *[*ITEM_ANSWERS.columns][1:])
    suspect = pc.fill_null(table["suspect_gold"], False).to_numpy()
    return {
        "majority": pa.array([_majority(row) for row in table.to_pylist()], pa.string()),
        "majority_share": floats(table["majority_share"]),
        "is_suspect": np.asarray(suspect, dtype=bool),
    }


def _majority(row: dict[str, Any]) -> str:
    """The answers of an item in a line."""
    parts = []
    if row["majority_share"] is not None:
        answer = "" if row["majority_answer"] is None else f": {row['majority_answer']}"
        parts.append(f"{row['majority_share']:.0%} of {row['answers']:,} answers{answer}")
    if row["suspect_gold"]:
        parts.append("the gold is suspect")
    if row["no_positive_kind"]:
        parts.append(NO_POSITIVE_KINDS.get(row["no_positive_kind"], row["no_positive_kind"]))
    return "; ".join(parts)


def _confirmed(run: Run, ids: pa.Array) -> tuple[Ints | None, Floats | None]:
    if not run.is_confirmed:
        return None, None
    words, _ = run.groups(ids)
    final = run.columns(CONFIRMED, "final_pass_rate")["final_pass_rate"]
    return _positions(words), floats(final)


def _reasoning_quality(run: Run, ids: pa.Array) -> Floats | None:
    table = run.quality(ids)
    return None if table is None else floats(table["reasoning_quality"])


def tag_words(tag: Ints) -> list[str | None]:
    """Tags by their positions in TAGS as words; None for -1."""
    return [TAGS[at] if at >= 0 else None for at in tag.tolist()]


def _positions(words: list[Any]) -> Ints:
    return np.array([-1 if word is None else TAGS.index(word) for word in words], dtype=np.int64)


def _texts(column: pa.ChunkedArray) -> pa.Array:
    return pc.fill_null(column, "").combine_chunks()


def _whole(column: pa.ChunkedArray) -> Ints:
    return np.asarray(pc.fill_null(column, 0).to_numpy(), dtype=np.int64)


def sample_by_tag(items: ReportItems, among: NDArray[np.bool_], most: int) -> Ints:
    """Choose at most `most` items, as many of each tag as there are; positions, ascending.

    Chosen by their id, which is a hash: at random, and the same ones each time.

    Args:
        items: of the run.
        among: (items,): which may be chosen.
        most: how many.
    """
    order = np.argsort(items.ids, kind="stable")
    order = order[among[order]]
    group = items.group[order]
    rank = np.zeros(len(order), dtype=np.int64)
    for each in np.unique(group):
        members = group == each
        rank[members] = np.arange(members.sum())
    return np.sort(order[np.lexsort((group, rank))[:most]])
