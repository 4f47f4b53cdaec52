"""The command line of `curate report`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_report(commands: Any) -> None:
    """Add `curate report` to the commands."""
    parser = commands.add_parser(
        "report",
        help="write one HTML file that shows a run: what is in it, how sure, and every item",
        description="Write one HTML file that answers three questions about a finished run: what "
        "is in this dataset, how sure are we, and what does an item look like. It needs no network "
        "and no other file, and holds a table of all items that can be searched, sorted and "
        "opened. What was validated and confirmed since is in it too: run it again to see it.",
        epilog="example: curate report runs/gsm8k-Qwen2.5-0.5B-Instruct, then open report.html in "
        "that folder in a browser. Exit status: 0 done, 1 a file of the run is missing or damaged, "
        "2 bad usage or input.",
    )
    parser.set_defaults(run=_report)
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="the run folder of `curate tag`")
    parser.add_argument(
        "-o", "--out", metavar="FILE.html", type=Path, help="the page (default: RUN/report.html)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the numbers of every chart as JSON on standard output",
    )


def _report(arguments: argparse.Namespace) -> int:
    from cards.report.report import report_text
    from curate.commands import report

    facts = report(arguments.run_dir, arguments.out)
    print(json.dumps(facts, indent=2) if arguments.json else report_text(facts))
    return 0
