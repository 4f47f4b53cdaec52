"""The command line of `curate filter` and `curate order`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from typing import Any

from curate.errors import one_line
from curate.tagged.orders import ORDERS

_FORMATS = "trl, verl, open-instruct, prime-rl, jsonl or parquet"


def add_selection(commands: Any) -> None:
    """Add the two commands to the parser."""
    _add_filter(commands)
    _add_order(commands)


def _add_filter(commands: Any) -> None:
    parser = commands.add_parser(
        "filter",
        help="write the rows that are worth training on",
        description="Write the rows of a tagged dataset that meet every condition given, in their "
        "order, and count what was dropped by which condition. Rows that were rejected or not "
        "probed have no tag and are always dropped. The dataset itself stays as it is.",
        epilog="example: curate filter train.tagged.jsonl --keep easy --keep learnable --keep "
        "undetermined --max-pass-rate 0.9 --dropped dropped.jsonl --format trl -o train.jsonl. "
        "Exit status: 0 done, 1 the disk failed, 2 bad usage or input, or no row is left.",
    )
    parser.set_defaults(run=_filter)
    _add_files(parser)
    conditions = parser.add_argument_group("which rows stay")
    conditions.add_argument(
        "--keep", metavar="TAG", action="append", default=[],
        help="only rows with this tag: easy, learnable, unlearnable, no_positive or undetermined; "
        "repeatable (default: all)",
    )  # fmt: skip
    conditions.add_argument(
        "--by", choices=("predicted", "confirmed"), default="predicted",
        help="which tags --keep and --balance look at: trainability, or confirmed_trainability "
        "(default: predicted)",
    )  # fmt: skip
    for option, meaning in (
        ("min-pass-rate", "pass_rate at least X"),
        ("max-pass-rate", "pass_rate at most X"),
        ("min-forecast", "forecast_pass_rate, expected after training, at least X"),
        ("max-forecast", "forecast_pass_rate at most X"),
        ("min-lift", "lift, what training does for the row, at least X"),
        ("min-teaching", "teaching, what the row does for unsolved ones, at least X"),
        ("min-similarity", "gradient_similarity at least X"),
        ("min-reliability", "gradient_reliability at least X"),
        ("max-p-unlearnable", "p_unlearnable at most X; rows without one, because they are easy, "
         "stay"),
    ):  # fmt: skip
        dropped = "" if ";" in meaning else "; a row where it is null is dropped"
        conditions.add_argument(f"--{option}", metavar="X", type=float, help=meaning + dropped)
    conditions.add_argument(
        "--expr", metavar="CONDITION", default="",
        help="a condition on any columns, such as \"pass_rate < 0.9 and gradient_reliability > "
        "0.3\": comparisons, in, is None, and, or, not; a comparison with null is false",
    )  # fmt: skip
    draws = parser.add_argument_group("how many of them")
    draws.add_argument(
        "--balance", action="store_true", help="equally many rows of every tag, drawn blindly"
    )
    draws.add_argument(
        "--balance-by", metavar="COLUMN", default="",
        help="equally many rows of every value of a column",
    )  # fmt: skip
    draws.add_argument("--sample", metavar="N", type=int, help="draw N of the rows that are left")
    draws.add_argument(
        "--seed", metavar="S", type=int, default=0, help="of both draws (default: 0)"
    )
    parser.add_argument(
        "--dropped", metavar="FILE", help="where dropped rows go, each with its dropped_reason"
    )


def _add_order(commands: Any) -> None:
    parser = commands.add_parser(
        "order",
        help="write the dataset in the order in which to train on it",
        description="Write all rows of a tagged dataset in another order. Trainers shuffle unless "
        "told not\nto: docs/use.md has the settings that keep an order.\n\nstrategies:\n"
        + "\n".join(map(_described, ORDERS)),
        epilog="example: curate order train.jsonl --by curriculum --format verl -o train.parquet\n"
        "Exit status: 0 done, 1 the disk failed, 2 bad usage or input.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_order)
    _add_files(parser)
    parser.add_argument(
        "--by", metavar="STRATEGY", default="curriculum",
        help=f"{', '.join(ORDERS)} (default: curriculum)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", metavar="S", type=int, default=0, help="of interleave (default: 0)"
    )


def _described(name: str) -> str:
    order = ORDERS[name]
    text = f"{order.summary}. Helps: {order.helps}. The paper: {order.paper}."
    return textwrap.fill(text, 94, initial_indent=f"  {name}: ", subsequent_indent="    ")


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tagged", metavar="TAGGED", help="a tagged file, or the run folder of `curate tag`"
    )
    parser.add_argument(
        "-o", "--out", metavar="OUT", required=True,
        help="the file to write: .jsonl, .json, .csv or .parquet",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print the counts as JSON on standard output"
    )
    group = parser.add_argument_group("ready for a trainer (docs/use.md)")
    group.add_argument(
        "--format", metavar="FORMAT", default="",
        help=f"{_FORMATS} (default: the rows as they are, in the format of OUT's suffix)",
    )  # fmt: skip
    group.add_argument(
        "--prompt-field", metavar="COLUMN", help="the column of the prompt (default: as tagged)"
    )
    group.add_argument(
        "--answer-field", metavar="COLUMN",
        help="the column of the gold answer (default: as tagged)",
    )  # fmt: skip
    group.add_argument(
        "--instruction", metavar="TEXT",
        help="what the prompts end with, as in `curate tag` (default: as tagged, so that the "
        "trainer's prompts are those that were measured)",
    )  # fmt: skip
    group.add_argument(
        "--data-source", metavar="NAME",
        help="what chooses the reward in verl (data_source; default: the dataset's name) and "
        "open-instruct (dataset; default: math)",
    )  # fmt: skip


def _filter(arguments: argparse.Namespace) -> int:
    from curate.commands import filter

    summary = filter(**_options(arguments))
    _print(summary, arguments.json, _filter_lines)
    return 0


def _order(arguments: argparse.Namespace) -> int:
    from curate.commands import order

    summary = order(**_options(arguments))
    _print(summary, arguments.json, _order_lines)
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    others = ("run", "json", "started")
    return {name: value for name, value in vars(arguments).items() if name not in others}


def _print(summary: dict[str, Any], as_json: bool, lines: Any) -> None:
    for note in summary["notes"]:
        print(one_line(f"note: {note}"), file=sys.stderr)
    print(json.dumps(summary, indent=2) if as_json else "\n".join(map(one_line, lines(summary))))


def _filter_lines(summary: dict[str, Any]) -> list[str]:
    lines = [f"{summary['tag_column']:<24}{'rows':>9}{'kept':>9}"]
    for tag, counts in summary["tags"].items():
        lines.append(f"{tag:<24}{counts['rows']:>9,}{counts['kept']:>9,}")
    lines += [f"{'all':<24}{summary['rows']:>9,}{summary['kept']:>9,}", ""]
    lines.append(f"dropped: {summary['dropped']:,}")
    lines += [f"{count:>9,}  {rule}" for rule, count in summary["reasons"].items()]
    lines += ["", f"kept:    {summary['out']}"]
    if summary["dropped_file"]:
        lines.append(f"dropped: {summary['dropped_file']}")
    return lines


def _order_lines(summary: dict[str, Any]) -> list[str]:
    lines = [f"{'trainability':<24}{'rows':>9}{'first':>9}{'last':>9}"]
    for tag, at in summary["tags"].items():
        lines.append(f"{tag:<24}{at['rows']:>9,}{at['first']:>9,}{at['last']:>9,}")
    lines += [f"{'all':<24}{summary['rows']:>9,}", ""]
    return [*lines, f"by {summary['by']}: {summary['out']}"]
