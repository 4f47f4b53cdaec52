"""`curate compare`: two probes of the same items by two policies, item by item and group by group.

Items are matched by `item_id`. Groups are those of the first run, so that a group holds the same
items on either side: its tags, or what GRPO confirmed where `confirm` has run. A group that was
chosen by what a run measured holds what looked low by luck, and a second probe of the very same
policy would look higher: regression to the mean. Groups taken from another probe (`groups_from`:
the initial policy with another seed, say) are free of it, and the summary says which it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.config import MOVE_PASS_RATES, shown
from curate.errors import RunError, UsageError
from curate.run.features import RolloutFeatures
from curate.run.names import GRADIENTS
from curate.run.run import MEASURED, Run
from curate.run.tables import LIFT, PASS_RATES, QUALITY, SIMILARITY, TAGS
from curate.tags import REASONING_QUALITY, Trainability
from probes.gradients.alignment import (
    FEWEST_ITEMS,
    GroupSums,
    align,
    quantile_interval,
    resample_items,
    sum_groups,
)
from recipes.compare.new_items import compare_new_items, parents_of
from recipes.statistics.changes import (
    is_beyond,
    mean_interval,
    pass_rates,
    rate_change,
    similarity_change,
)

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
_RESAMPLES = 1000
_GROUPS = tuple(str(tag) for tag in Trainability)
# What else than the policy moves gradients.
_GRADIENTS = ("gradient_dim", "gradient_rank", "gradient_alpha", "gradient_targets")

# Whose scores the reasoning quality are.
_JUDGE = ("model", "rubric_sha256")

_SIDES = ("before", "after")
_MEASURES = {
    "pass_rate": (PASS_RATES, MEASURED[PASS_RATES]),
    "gradient_similarity": (SIMILARITY, MEASURED[SIMILARITY][:3]),  # Not its error.
    "reasoning_quality": (QUALITY, tuple(REASONING_QUALITY.names)),
    "forecast_pass_rate": (TAGS, MEASURED[TAGS]),
    "lift": (LIFT, MEASURED[LIFT]),
}
# What is known with the error of each item's measure.
_WITH_ERROR = ("pass_rate", "gradient_similarity")


def _fields(measure: str) -> Iterator[tuple[str, pa.DataType]]:
    table, names = _MEASURES[measure]
    for side in _SIDES:
        for name in names:
            yield f"{name}_{side}", table.columns[name]
    yield f"{measure}_change", pa.float64()
    if measure in _WITH_ERROR:
        yield f"{measure}_change_low", pa.float64()
        yield f"{measure}_change_high", pa.float64()
        yield f"{measure}_moved", pa.bool_()


COMPARISON_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("group", pa.string()),
        *((f"trainability_{side}", pa.string()) for side in _SIDES),
        *(field for measure in _MEASURES for field in _fields(measure)),
    ]
)
"""A row an item that both runs have: its group, its tags, and its pass rate and similarity before
and after with the change, the 95 % interval of that, and whether it leaves 0 out; its judged
reasoning quality before and after with the change, null without `curate judge`; and so its forecast
and its lift, null in runs of earlier versions."""


@dataclass(frozen=True)
class Comparison:
    """What moved from one probe to another."""

    items: pa.Table
    """Of `COMPARISON_SCHEMA`, in the order of the first run."""
    summary: dict[str, Any]
    """Plain values, as `--json` prints them; unknown numbers are None."""


def compare_runs(
    run_a: Path, run_b: Path, groups_from: Path | None = None, *, seed: int = 0
) -> Comparison:
    """Compare two probes of the same items by two policies.

    Args:
        run_a: run folder of `curate tag`, the policy before.
        run_b: the same, the policy after.
        groups_from: run folder whose tags or confirmed tags make the groups; `run_a` by default.
        seed: of the bootstrap.

    Where the second run probed items of `curate augment`, the summary has `new_items`
    (`recipes.compare.new_items`), which alone is there where the runs have no item in common.

    Returns:
        the items and the summary. `groups` in the summary has a list of the tags that occur, then
        `hard` (all but easy) and `all`; `alignment` the cosines between these, as
        `probes.gradients.alignment` defines them, over the items that have two correct rollouts in
        both runs (or in the one run that has gradients).

    Raises:
        UsageError: a folder is no run folder, or not finished; or no item is in both.
        RunError: a file of a run is missing or damaged.
    """
    a, b = Run.open(run_a), Run.open(run_b)
    if a.path.resolve() == b.path.resolve():
        raise UsageError(f"{run_a} and {run_b} are one run folder; give two probes of the items")
    source = a if groups_from is None else Run.open(groups_from)
    ids = a.ids.filter(pc.is_in(a.ids, value_set=b.ids))
    parent_of = parents_of(b)
    new_items = compare_new_items(a, b, parent_of, seed=seed) if parent_of else None
    if not len(ids) and new_items:
        return _only_new_items(a, b, new_items)
    if not len(ids):
        raise UsageError(
            f"{run_a} and {run_b} have no item in common: an item is the same where prompt and "
            "answer are, so probe one dataset with both models"
        )
    words, groups_origin = source.groups(ids)
    if not any(words):
        raise UsageError(f"{groups_origin}: none of the items in both runs has a group there")
    group = np.array([_GROUPS.index(word) if word else -1 for word in words])
    items = _items_table(a, b, ids, words)
    sets = _sets(group)
    sums, warnings = _group_sums(a, b, ids, group, seed)
    summary = {
        "run_a": a.facts,
        "run_b": b.facts,
        "items": {
            "compared": len(ids),
            "only_in_a": len(a.ids) - len(ids),
            "only_in_b": len(b.ids) - len(ids),
            "without_group": int((group < 0).sum()),
        },
        "groups_from": groups_origin,
        "warnings": [*_warnings(a, b, ids, source), *warnings],
        "confidence": CONFIDENCE,
        "bootstrap": {"resamples": _RESAMPLES, "seed": seed},
        "pass_rates": _moved(items, "pass_rate"),
        "similarities": _moved(items, "gradient_similarity"),
        "groups": [_group(items, name, np.isin(group, of), seed) for name, of in sets.items()],
        "alignment": _alignment(sums, sets),
        "new_items": new_items,
    }
    return Comparison(items, summary)


def _only_new_items(a: Run, b: Run, new_items: dict[str, Any]) -> Comparison:
    """Where the second run probed nothing but what was written from items of the first."""
    counts = {"compared": 0, "only_in_a": len(a.ids), "only_in_b": len(b.ids), "without_group": 0}
    summary = {
        "run_a": a.facts,
        "run_b": b.facts,
        "items": counts,
        "confidence": CONFIDENCE,
        "new_items": new_items,
    }
    return Comparison(COMPARISON_SCHEMA.empty_table(), summary)


# --- Warnings ----------------------------------------------------------------------------------


def _warnings(a: Run, b: Run, ids: pa.Array, source: Run) -> list[str]:
    """Say what else than the policy may have moved what was measured."""
    said = []
    for name in MOVE_PASS_RATES:
        values = getattr(a.config, name), getattr(b.config, name)
        if values[0] != values[1]:
            said.append(
                f"{name} was {shown(values[0])} before and is {shown(values[1])} after: changes "
                "are of that as well as of the policy"
            )
    if a.config.tau != b.config.tau:
        said.append(f"tau was {a.config.tau} before and is {b.config.tau} after: so differ tags")
    projections = [
        {name: getattr(run.config, name) for name in _GRADIENTS}
        | {"adapter seed": run.manifest.get("seeds", {}).get("adapter")}
        for run in (a, b)
    ]
    differ = [name for name, value in projections[0].items() if projections[1][name] != value]
    if differ:
        said.append(
            f"gradients were taken with another {', '.join(differ)}: each run's similarities "
            "and cosines hold, but their changes have the error of two projections in them"
        )
    lifts = a.facts["lift"], b.facts["lift"]
    if None not in lifts and lifts[0] != lifts[1]:
        said.append(
            f"the lift came from {lifts[0]} before and from {lifts[1]} after: its changes, and "
            "those of the forecast, are of that as well as of the policy"
        )
    said += _judge_warnings(a, b)
    prompts = [run.prompts(ids) for run in (a, b)]
    rendered = int(pc.sum(pc.not_equal(*prompts)).as_py() or 0)
    if rendered:
        said.append(
            f"{rendered:,} of {len(ids):,} prompts were rendered differently (chat template, "
            "instruction, prompt end): changes are of the prompt as well as of the policy"
        )
    if a.weight_hash is not None and a.weight_hash == b.weight_hash:
        said.append("both runs probed the same weights: what moved, moved by chance or settings")
    if source.path.resolve() in (a.path.resolve(), b.path.resolve()):
        said.append(
            f"groups were chosen on the rollouts of {source.path}, which are compared here, so "
            "groups far from the mean seem to move back to it (regression to the mean); "
            "--groups-from a probe of the first policy with another --seed is free of it"
        )
    return said


def _judge_warnings(a: Run, b: Run) -> list[str]:
    if a.is_judged != b.is_judged:
        other = b if a.is_judged else a
        return [
            f"reasoning was judged in one run only; `curate judge {other.path}`, with the same "
            "judge and rubric, makes it comparable"
        ]
    told = [run.judgement() for run in (a, b)]
    judges = [{name: each.get(name) for name in _JUDGE} for each in told]
    differ = [name for name, value in judges[0].items() if judges[1][name] != value]
    if not differ:
        return []
    return [
        f"reasoning was judged with another {' and '.join(differ)} (before: {judges[0]!r}, after: "
        f"{judges[1]!r}): its changes are of the judge as well as of the policy"
    ]


# --- Items and groups ------------------------------------------------------------------------


def _items_table(a: Run, b: Run, ids: pa.Array, group: Sequence[str | None]) -> pa.Table:
    columns: dict[str, Any] = {"item_id": ids, "group": group}
    old, new = a.measured(ids), b.measured(ids)
    for side, run, values in zip(_SIDES, (a, b), (old, new), strict=True):
        columns[f"trainability_{side}"] = run.tags(ids)
        columns |= {f"{name}_{side}": values[name] for name in values}
    changes = {
        "pass_rate": rate_change(pass_rates(a, old, CONFIDENCE), pass_rates(b, new, CONFIDENCE)),
        "gradient_similarity": similarity_change(_similarity(old), _similarity(new), CONFIDENCE),
    }
    for measure, (change, low, high) in changes.items():
        columns[f"{measure}_change"] = change
        columns[f"{measure}_change_low"], columns[f"{measure}_change_high"] = low, high
        columns[f"{measure}_moved"] = pa.array(is_beyond(low, high), mask=~np.isfinite(low))
    # Without an interval: that of a forecast is no error of measurement, and two lifts are in the
    # units of two trainings.
    for measure in _MEASURES.keys() - _WITH_ERROR:
        columns[f"{measure}_change"] = new[measure] - old[measure]
    arrays = [
        pa.array(columns[field.name], field.type, from_pandas=True) for field in COMPARISON_SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=COMPARISON_SCHEMA)


def _similarity(values: Mapping[str, NDArray[Any]]) -> tuple[Floats, Floats, Floats]:
    return values["gradient_similarity"], values["standard_error"], values["degrees_of_freedom"]


def _sets(group: NDArray[np.integer]) -> dict[str, list[int]]:
    """Name the sets of items that are told of, each with the groups that make it."""
    present = [number for number in range(len(_GROUPS)) if (group == number).any()]
    sets = {_GROUPS[number]: [number] for number in present}
    hard = [number for number in present if _GROUPS[number] != Trainability.EASY]
    if 1 < len(hard) < len(present):
        sets["hard"] = hard
    # Items that the groups' run does not know are in no set, so that sets can be compared.
    return sets | {"all": present}


def _moved(items: pa.Table, name: str) -> dict[str, int]:
    """Count the items that moved; without any change 2.5 % would seem to, either way."""
    low, high = (_numbers(items, f"{name}_change_{end}") for end in ("low", "high"))
    return {
        "items": int(np.isfinite(low).sum()),
        "rose": int((low > 0).sum()),
        "fell": int((high < 0).sum()),
    }


def _numbers(items: pa.Table, name: str) -> Floats:
    return np.asarray(items[name].to_numpy(), dtype=np.float64)


def _group(items: pa.Table, name: str, is_member: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    members = items.filter(pa.array(is_member))
    return {
        "group": name,
        "items": members.num_rows,
        **{value: _mean_change(members, value, seed) for value in _MEASURES},
        "transitions": _transitions(members),
    }


def _mean_change(members: pa.Table, name: str, seed: int) -> dict[str, Any]:
    """Mean before and after, of the items that have both, and the interval of the change.

    Beside it how many have either: those that a correct rollout, say, was found for.
    """
    before, after = (_numbers(members, f"{name}_{side}") for side in _SIDES)
    known = np.isfinite(before) & np.isfinite(after)
    found: dict[str, Any] = dict.fromkeys(("before", "after", "change", "low", "high"))
    found["items"] = count = int(known.sum())
    found["items_before"], found["items_after"] = (
        int(np.isfinite(each).sum()) for each in (before, after)
    )
    if count:
        change = after[known] - before[known]
        found["before"], found["after"] = float(before[known].mean()), float(after[known].mean())
        found["change"] = float(change.mean())
        if count >= FEWEST_ITEMS:
            found["low"], found["high"] = mean_interval(change, _RESAMPLES, seed, CONFIDENCE)
    return found


def _transitions(members: pa.Table) -> dict[str, dict[str, int]]:
    """How many items have which tag before and which after, for the tags that occur."""
    names = [f"trainability_{side}" for side in _SIDES]
    pairs = zip(*(members[name].to_pylist() for name in names), strict=True)
    counts: dict[str, dict[str, int]] = {}
    for old, new in sorted(pairs, key=lambda pair: tuple(map(_GROUPS.index, pair))):
        row = counts.setdefault(old, {})
        row[new] = row.get(new, 0) + 1
    return counts


# --- Cosines between groups --------------------------------------------------------------------


def _group_sums(
    a: Run, b: Run, ids: pa.Array, group: NDArray[np.integer], seed: int
) -> tuple[dict[str, GroupSums], list[str]]:
    """Sum gradients by group in each run that has them, over the same items and resamples."""
    found: dict[str, tuple[Run, RolloutFeatures, NDArray[np.int64]]] = {}
    warnings = []
    for side, run in zip(_SIDES, (a, b), strict=True):
        features = run.features()
        if features is None:
            warnings.append(f"{run.path} has no gradients/rollouts.npy: no cosines {side}")
            continue
        found[side] = (
            run,
            features,
            pc.fill_null(pc.index_in(run.ids, value_set=ids), -1).to_numpy(),
        )
    group = group.copy()
    for _, features, place in found.values():
        draws = np.bincount(features.item, features.weights, minlength=len(place))
        measured = np.zeros(len(group), dtype=bool)
        measured[place[(place >= 0) & (draws > 1)]] = True
        group[~measured] = -1
    counts = resample_items(group, _RESAMPLES, np.random.default_rng(seed))
    sums = {}
    for side, (run, features, place) in found.items():
        try:
            sums[side] = sum_groups(features, place, group, len(_GROUPS), counts)
        except ValueError as error:
            raise RunError(f"{run.path / GRADIENTS} is damaged: {error}") from error
    return sums, warnings


def _alignment(sums: Mapping[str, GroupSums], sets: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Cosines between the sets, before and after, with intervals; None where unknown."""
    members = np.array([np.isin(range(len(_GROUPS)), of) for of in sets.values()])
    found = {side: align(each, members, CONFIDENCE) for side, each in sums.items()}
    told: dict[str, Any] = {"groups": list(sets), "before": None, "after": None, "change": None}
    if not found:
        return told
    items = np.min([each.items for each in found.values()], axis=0)
    told["items"] = items.tolist()
    for name in ("cosine", "rollout_cosine", "agreement"):
        blocks = {side: getattr(each, name) for side, each in found.items()}
        if len(blocks) == len(_SIDES):
            blocks["change"] = blocks["after"] - blocks["before"]
        for side, values in blocks.items():
            low, high = quantile_interval(values[1:], items, CONFIDENCE)
            told[side] = (told[side] or {}) | {
                name: _plain(values[0]),
                f"{name}_low": _plain(low),
                f"{name}_high": _plain(high),
            }
    return told


def _plain(values: Floats) -> Any:
    """Nested lists, with None for what is unknown."""
    plain = values.astype(object)
    plain[~np.isfinite(values)] = None
    return plain.tolist()
