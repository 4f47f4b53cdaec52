"""The tables of a comparison of two probes: where it is written, and how a terminal shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ArrowException

from curate.errors import UsageError
from curate.files import write_atomically
from curate.run.names import COMPARISONS
from curate.run.tables import write_parquet
from curate.tags import Trainability
from recipes.compare.compare import COMPARISON_SCHEMA, Comparison

_MEASURES = {"pass_rate": "pass rate", "gradient_similarity": "gradient similarity"}
# What not every run has.
_SOMETIMES = {
    "reasoning_quality": "reasoning quality",
    "forecast_pass_rate": "forecast",
    "lift": "lift",
}
_COSINES = {"cosine": "gradient cosine", "rollout_cosine": "cosine of rollouts"}
_UNKNOWN = "-"


def comparison_file(run_a: Path, run_b: Path, out: Path | None = None) -> Path:
    """Choose where the items go; the summary goes beside it as `.json`.

    Args:
        run_a, run_b: the run folders.
        out: a Parquet file; `RUN_B/comparison/<name of RUN_A>.parquet` by default.

    Raises:
        UsageError: not a Parquet file, or something else than an earlier comparison is there.
    """
    if out is None:
        # Not with_suffix: a folder's name may hold dots.
        return run_b / COMPARISONS / f"{run_a.resolve().name}.parquet"
    if out.suffix != ".parquet":
        raise UsageError(f"-o {out}: it must end in .parquet (the summary goes beside it as .json)")
    if out.exists() and not _is_comparison(out):
        raise UsageError(f"-o {out}: exists and is no comparison; give another name")
    summary = out.with_suffix(".json")
    if summary.exists() and not out.exists():
        raise UsageError(f"-o {out}: the summary would replace {summary}; give another name")
    return out


def _is_comparison(path: Path) -> bool:
    try:
        found = pq.read_schema(path)
    except (OSError, ArrowException):
        return False
    # One of an earlier version has the first columns only.
    first = pa.schema(list(COMPARISON_SCHEMA)[: len(found)])
    return "gradient_similarity_moved" in found.names and bool(found.equals(first))


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write the items as Parquet and the summary beside it as JSON.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    write_parquet(path, comparison.items)
    text = json.dumps(comparison.summary, indent=2, allow_nan=False) + "\n"
    write_atomically(path.with_suffix(".json"), text)


def comparison_text(summary: dict[str, Any]) -> str:
    """Write the summary of a comparison as tables for a terminal."""
    items, runs = summary["items"], (summary["run_a"], summary["run_b"])
    lines = [
        f"{word + ':':<8}{run['path']} ({run['model']}, {run['items']:,} items)"
        for word, run in zip(("before", "after"), runs, strict=True)
    ]
    lines.append(
        f"items:  {items['compared']:,} in both, {items['only_in_a']:,} only before, "
        f"{items['only_in_b']:,} only after"
    )
    if "groups" not in summary:
        return "\n".join([*lines, "", *_new_items(summary["new_items"])])
    without = f"; {items['without_group']:,} items have none" if items["without_group"] else ""
    lines.append(f"groups: {summary['groups_from']}{without}")
    measures = dict(_MEASURES)
    for name, title in _SOMETIMES.items():
        if any(each[name]["items"] for each in summary["groups"]):
            measures[name] = title
    for name, title in measures.items():
        lines += ["", *_means(title, summary["groups"], name, summary["confidence"])]
    for name, title in (("pass_rates", "pass rate"), ("similarities", "gradient similarity")):
        lines += [""] * (name == "pass_rates") + [_moved(title, summary[name], summary)]
    lines += ["", *_transitions(summary["groups"][-1]["transitions"])]
    lines += _blocks(summary["alignment"])
    if summary["new_items"]:
        lines += [*_new_items(summary["new_items"]), ""]
    lines += [f"warning: {text}" for text in summary["warnings"]]
    return "\n".join(lines)


_NEW_ITEMS = {
    "to_parent": "new item to its parent",
    "to_other_parents": "new item to other parents",
    "difference": "difference",
    "parents_before": "parent to all other items",
    "parents_after": "the same with new items",
    "parents_change": "change",
}


def _new_items(found: dict[str, Any]) -> list[str]:
    """What `recipes.compare.new_items` found of items that were written from others."""
    known = found["with_gradients"]
    lines = [
        f"new items: {found['new_items']:,} of {found['parents']:,} parents; "
        f"{known['new_items']:,} of {known['parents']:,} have correct rollouts on both sides"
    ]
    if found["note"]:
        return [*lines, f"not compared: {found['note']}"]
    lines.append(f"{'cosine of rollouts':<28}{'mean':>9}   95% interval over parents")
    for name, title in _NEW_ITEMS.items():
        mean = found[name] or {"mean": None, "low": None}
        interval = _UNKNOWN
        if mean["low"] is not None:
            interval = f"{mean['low']:+.3f} to {mean['high']:+.3f}"
        lines.append(f"{title:<28}{_number(mean['mean'], '+')}   {interval}")
    return lines


def _means(title: str, groups: list[dict[str, Any]], name: str, confidence: float) -> list[str]:
    head = f"{title:<22}{'items':>8}{'before':>9}{'after':>9}{'change':>9}"
    lines = [f"{head}   {confidence:.0%} interval"]
    for group in groups:
        found = group[name]
        numbers = f"{_number(found['before'])}{_number(found['after'])}"
        interval = _UNKNOWN
        if found["low"] is not None:
            interval = f"{found['low']:+.3f} to {found['high']:+.3f}"
        lines.append(
            f"{group['group']:<22}{found['items']:>8,}{numbers}"
            f"{_number(found['change'], '+')}   {interval}"
        )
    return lines


def _number(value: float | None, sign: str = "") -> str:
    return f"{_UNKNOWN if value is None else format(value, f'{sign}.3f'):>9}"


def _moved(title: str, found: dict[str, int], summary: dict[str, Any]) -> str:
    chance = (1 - summary["confidence"]) / 2
    return (
        f"{title}: rose in {found['rose']:,} and fell in {found['fell']:,} of {found['items']:,} "
        f"items beyond their errors; up to {chance * found['items']:,.1f} either way by chance"
    )


def _transitions(counts: dict[str, dict[str, int]]) -> list[str]:
    after = [str(tag) for tag in Trainability if any(tag in row for row in counts.values())]
    lines = [f"{'tag before, after':<22}" + "".join(f"{tag:>14}" for tag in after)]
    for before, row in counts.items():
        lines.append(f"{before:<22}" + "".join(f"{row.get(tag, 0):>14,}" for tag in after))
    return lines


def _blocks(alignment: dict[str, Any]) -> list[str]:
    """Cosines between groups, or those of single rollouts where no group has a direction."""
    sides = [side for side in ("before", "after", "change") if alignment[side]]
    name = "cosine"
    if all(value is None for side in sides for row in alignment[side][name] for value in row):
        name = "rollout_cosine"
    shown = [row for row, items in enumerate(alignment.get("items", [])) if items]
    groups = [alignment["groups"][row] for row in shown]
    lines = [""]
    for side in sides if shown else ():
        blocks = alignment[side]
        lines.append(
            f"{_COSINES[name] + ', ' + side:<26}{'items':>6}"
            + "".join(f"{group:>14}" for group in (*groups, "own rollouts"))
        )
        for row, group in zip(shown, groups, strict=True):
            cells = [_cell(blocks, name, (row, column), side) for column in shown]
            cells.append(_cell(blocks, "agreement", (row,), side))
            lines.append(f"{group:<26}{alignment['items'][row]:>6,}{''.join(cells)}".rstrip())
        lines.append("")
    return lines


def _cell(blocks: dict[str, Any], name: str, place: tuple[int, ...], side: str) -> str:
    value, low, high = (_at(blocks[f"{name}{end}"], place) for end in ("", "_low", "_high"))
    if value is None:
        return f"{_UNKNOWN:>13} "
    # A star: the interval of the change leaves 0 out.
    is_off = side == "change" and low is not None and (low > 0 or high < 0)
    return f"{value:>{'+' if side == 'change' else ''}13.3f}" + ("*" if is_off else " ")


def _at(values: Any, place: tuple[int, ...]) -> Any:
    for each in place:
        values = values[each]
    return values
