"""Writing a schedule: all epochs as one file of rows in their order, and the weights by epoch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from curate.datasets.row import json_text
from curate.errors import RunError, UsageError
from curate.files import atomic_writer
from curate.tagged.expressions import number_in, plain_value, unknown_column
from curate.tagged.quotas import read_shares
from curate.tagged.rules import PREDICTED
from curate.tagged.schedule import Aim, Schedule, schedule_rows
from curate.tagged.training_file import TrainingFile
from curate.tagged.training_files import open_to_choose, write_places
from curate.tagged.write import check_out

_WEIGHTS = (".parquet", ".jsonl", ".csv")
_WEIGHTS_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("item_id", pa.string()),
        ("epoch", pa.int64()),
        ("weight", pa.float64()),
        ("times", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Plan:
    """The settings of `curate order --by schedule`; None where one was not given."""

    epochs: int = 1
    batch: int = 64
    first_rate: float | None = None
    last_rate: float | None = None
    width: float | None = None
    bands: Sequence[str] = ()
    repeats: int | None = None
    quota: str = ""
    shares: Sequence[str] = ()
    seed: int = 0

    def aim(self) -> Aim:
        """The target, or the bands.

        Raises:
            UsageError: a band or a pass rate cannot be, or both are given.
        """
        given = {
            "first": self.first_rate, "last": self.last_rate, "width": self.width
        }  # fmt: skip
        known = {name: value for name, value in given.items() if value is not None}
        if self.bands and known:
            raise UsageError("--band stands in the place of --first-rate, --last-rate and --width")
        for name in ("first", "last"):
            if known.get(name, 0) > 1:
                raise UsageError(f"--{name}-rate is {known[name]:g}; it must be from 0 to 1")
        return Aim(**known, bands=tuple(_band(text) for text in self.bands))


def _band(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        band = float(low), float(high)
    except ValueError:
        band = 1.0, 0.0
    if not 0 <= band[0] <= band[1] <= 1:
        raise UsageError(f"--band is {text!r}; it must be LOW:HIGH, from 0 to 1, such as 0.2:0.6")
    return band


def schedule_file(wanted: TrainingFile, plan: Plan, weights: Path | None) -> dict[str, Any]:
    """Write the rows of a tagged dataset as a schedule has them, repeats included.

    Args:
        wanted: the tagged dataset, and the file to be written.
        plan: of the schedule.
        weights: where the weights by epoch go; None: nowhere.

    What is returned and raised is told in `curate.tagged.order`.
    """
    aim = plan.aim()
    tagged, suffix = open_to_choose(wanted)
    if weights is not None:
        check_out(tagged.source, weights)
        if weights.suffix.lower() not in _WEIGHTS:
            raise UsageError(f"{weights}: the suffix must be one of {', '.join(_WEIGHTS)}")
        if weights.resolve() == Path(wanted.out).resolve():
            raise UsageError(f"{weights} cannot hold both the rows and the weights")
    tagged.check_tags("the schedule")
    columns = tagged.columns()
    for name in ("pass_rate", *([plan.quota] if plan.quota else [])):
        if name not in columns:
            raise UsageError(f"{tagged.source.name}: {unknown_column(name, columns)}")
    if plan.shares and not plan.quota:
        raise UsageError("--share needs --quota COLUMN, whose values it names")
    ids, rates, kinds, left_out = [], [], [], Counter[str]()
    inside: list[int] = []
    for place, value in enumerate(tagged.values()):
        ids.append(value.get("item_id"))
        rate = number_in(value, "pass_rate", place)
        if rate is not None and not 0 <= rate <= 1:
            raise UsageError(f"row {place + 1}: pass_rate is {rate:g}, not from 0 to 1")
        kind = plain_value(value.get(plan.quota)) if plan.quota else ""
        if value.get(PREDICTED) is None:
            left_out["not tagged"] += 1
        elif rate is None:
            left_out["no pass_rate"] += 1
        elif kind is None:
            left_out[f"no {plan.quota}"] += 1
        else:
            inside.append(place)
            rates.append(rate)
            kinds.append(kind if isinstance(kind, str) else json_text(kind))
    if not inside:
        why = "; ".join(f"{count:,}: {reason}" for reason, count in left_out.items())
        raise UsageError(f"no row of {len(ids):,} can be scheduled: {why}")
    found = schedule_rows(
        np.array(rates),
        kinds,
        aim,
        epochs=plan.epochs,
        batch=plan.batch,
        repeats=plan.repeats,
        shares=read_shares(plan.shares, Counter(kinds), plan.quota) if plan.shares else None,
        seed=plan.seed,
    )
    times = found.times(len(inside))
    never = int((times.sum(axis=1) == 0).sum())
    if never:
        left_out["never aimed at"] = never
    places = [inside[row] for row in found.places]
    notes = write_places(tagged, places, suffix, wanted)
    if weights is not None:
        _write_weights(weights, found, times, inside, ids)
    return {
        "tagged_file": str(tagged.source.path or tagged.source.name),
        "out": str(wanted.out),
        "by": "schedule",
        "seed": plan.seed,
        "rows": len(ids),
        "written": len(places),
        "distinct": len(inside) - never,
        "epochs": _by_epoch(times, np.array(rates), aim),
        "left_out": dict(left_out),
        "weights": None if weights is None else str(weights),
        "notes": [*notes, *found.notes],
    }


def _by_epoch(times: Any, rates: Any, aim: Aim) -> list[dict[str, Any]]:
    epochs = times.shape[1]
    return [
        {
            "epoch": epoch + 1,
            "rows": int(times[:, epoch].sum()),
            "distinct": int((times[:, epoch] > 0).sum()),
            "target": aim.target((epoch + 0.5) / epochs),
            "pass_rate": float(np.average(rates, weights=times[:, epoch]))
            if times[:, epoch].any()
            else None,
        }
        for epoch in range(epochs)
    ]


def _write_weights(
    file: Path, found: Schedule, times: Any, inside: Sequence[int], ids: Sequence[str | None]
) -> None:
    """Write a line for every row that is aimed at and every epoch.

    Raises:
        RunError: the disk failed.
    """
    rows, epochs = times.shape
    place = np.repeat(np.array(inside, dtype=np.int64), epochs)
    table = pa.table(
        {
            "row": place + 1,
            "item_id": [ids[int(each)] for each in place],
            "epoch": np.tile(np.arange(1, epochs + 1), rows),
            "weight": found.weights.reshape(-1),
            "times": times.reshape(-1),
        },
        schema=_WEIGHTS_SCHEMA,
    )
    try:
        with atomic_writer(file) as out:
            if file.suffix.lower() == ".parquet":
                pq.write_table(table, out, compression="zstd")
            elif file.suffix.lower() == ".csv":
                pyarrow.csv.write_csv(table, out)
            else:
                for line in table.to_pylist():
                    out.write(json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror or error}") from error
