"""The tables of several models on one dataset, as a terminal shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from curate.errors import one_line
from curate.run.names import join_summary
from curate.tags import Trainability

_UNKNOWN = "-"
_LONGEST = 70


def join_text(summary: Mapping[str, Any]) -> str:
    """Write the summary of `curate join` for a reader."""
    models = summary["models"]
    lines = [f"{each['name']}: {each['model']}, {each['path']}" for each in models]
    lines += ["", *_tags(models), *_missing(summary), ""]
    for pair in summary["pairs"]:
        lines += [*_pair(pair), ""]
    lines += [*_solved(summary), ""]
    lines += [f"rows:    {summary['out']}", f"summary: {join_summary(summary['out'])}"]
    return "\n".join(map(one_line, lines))


def _tags(models: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    widths = [max(len(each["name"]), 9) + 2 for each in models]

    def line(head: str, cells: Sequence[str]) -> str:
        return f"{head:<16}" + "".join(
            f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)
        )

    yield line("tag", [each["name"] for each in models])
    for tag in Trainability:
        yield line(tag, [f"{each['tags'][tag]:,}" for each in models])
    yield line("all", [f"{each['items']:,}" for each in models])
    yield line("mean pass rate", [_number(each["mean_pass_rate"]) for each in models])


def _missing(summary: Mapping[str, Any]) -> Iterator[str]:
    items, first = summary["items"], summary["models"][0]
    rows = f"rows: {summary['rows']:,}, of {items['rows']:,} items"
    yield f"{rows}; {items['in_all']:,} items are in the runs of all models, as is the mean above"
    for each in summary["models"][1:]:
        if each["items_missing"] or each["items_beyond"]:
            yield (
                f"{each['name']}: {each['items_missing']:,} items of {first['name']} are not in "
                f"its run; {each['items_beyond']:,} of its own are not among these rows"
            )


def _pair(pair: Mapping[str, Any]) -> Iterator[str]:
    first, second, items = pair["first"], pair["second"], pair["items"]
    yield (
        f"{first} and {second}: the same tag for {_share(pair['equal'])} of {items:,} items, kappa "
        f"{_number(pair['kappa'])}; pass rate higher beyond the errors for {first} in "
        f"{pair['first_higher']:,}, for {second} in {pair['second_higher']:,}"
    )
    if not items:
        return
    rows = [tag for tag in Trainability if any(pair["tags"][tag].values())]
    across = [tag for tag in Trainability if any(pair["tags"][row][tag] for row in rows)]
    head = f"{first} down, {second} across"
    width = max(16, len(head) + 2)
    yield f"{head:<{width}}" + "".join(f"{tag:>14}" for tag in across)
    for row in rows:
        cells = "".join(f"{pair['tags'][row][tag]:>14,}" for tag in across)
        yield f"{row:<{width}}{cells}"


def _solved(summary: Mapping[str, Any]) -> Iterator[str]:
    solved = summary["solved"]
    yield f"solved (easy) by all models: {solved['by_all']:,}"
    for name, found in solved["only"].items():
        sure = f" ({found['sure']:,} beyond the errors)" if found["items"] else ""
        yield f"solved by {name} alone: {found['items']:,}{sure}"
        yield from _examples(found)
    none = solved["by_none"]
    yield (
        f"solved by none: {none['items']:,}, {solved['never_right']:,} of them never right in any "
        "run"
    )
    yield from _examples(none)
    if summary["suspect_golds"]["items"]:
        doubted = summary["suspect_golds"]
        yield f"golds that look wrong by the answers of every model: {doubted['items']:,}"
        yield from _examples(doubted)


def _examples(found: Mapping[str, Any]) -> Iterator[str]:
    for each in found["examples"]:
        rates = ", ".join(f"{name} {_number(rate)}" for name, rate in each["pass_rates"].items())
        prompt = one_line(each["prompt"] or each["item_id"])
        prompt = prompt[:_LONGEST] + "…" * (len(prompt) > _LONGEST)
        yield f"    {rates}: {prompt}"


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.1%}"
