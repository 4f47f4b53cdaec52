"""The command line of `merge`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_merging(commands: Any) -> None:
    """Add `curate merge` to the commands."""
    parser = commands.add_parser(
        "merge",
        help="join the shards that several machines did of a run",
        description="Join what `curate tag --shard I/N --run-dir RUN` did on N machines into the "
        "run folder RUN. Items that more rollouts can still decide go on: then a round is open, "
        "and the same N commands draw it, until a merge writes the tagged file. Shards of "
        "different runs, or fewer than all, are refused.",
        epilog="example: curate merge runs/gsm8k. Exit status: 0 joined (finished or not: see the "
        "output), 1 a file is damaged or the disk full, 2 the shards do not belong together.",
    )
    parser.set_defaults(run=_merge)
    parser.add_argument("run_dir", metavar="RUN", help="the --run-dir that the shards were given")
    parser.add_argument(
        "--from", dest="others", metavar="FOLDER", action="append", default=[],
        help="where shards lie that are not in RUN/shards: a shard's folder, or the run folder of "
        "another machine; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", metavar="FILE", default="",
        help="the dataset, where it is not at the place that the shards had it",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FILE", default="",
        help="the tagged file (default: what the shards were told)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _merge(arguments: argparse.Namespace) -> int:
    from curate.commands import merge
    from probes.summary import summarize, summary_text

    found = merge(arguments.run_dir, arguments.others, dataset=arguments.dataset, out=arguments.out)
    if arguments.json:
        print(json.dumps(found, indent=2))
    elif found["finished"]:
        print(summary_text(summarize(Path(arguments.run_dir))))
    else:
        print(f"{found['shards']} shards joined; round {found['round']} is open. Run the same")
        print(
            "--shard commands again and merge again, or curate tag without --shard to end it here"
        )
    return 0
