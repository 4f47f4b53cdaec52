"""The command line of `curate forecast`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from curate.errors import UsageError


def add_forecast(commands: Any) -> None:
    """Add `curate forecast` to the commands."""
    parser = commands.add_parser(
        "forecast",
        help="measure how training moves each item, and tag a finished run anew by it",
        description="Measure the lift of every item of a finished run, which is how far training "
        "moves its log odds, and tag the items and write the tagged file anew. A pilot trains a "
        "few steps by a recipe and scores the rollouts that the probe kept under the policy before "
        "and after; its first step needs no new rollouts. A checkpoint of your own training run is "
        "scored in the same way: a model folder, or the folder of a LoRA adapter. After Ctrl-C or "
        "a kill the same command continues.",
        epilog="example: curate forecast runs/gsm8k-Qwen2.5-0.5B-Instruct --lift pilot --seeds 1,2 "
        "or: curate forecast runs/gsm8k-Qwen2.5-0.5B-Instruct --lift outputs/checkpoint-20. Exit "
        "status: 0 done, 1 failed on its way (the same command continues), 2 bad usage or input.",
    )
    parser.set_defaults(run=_forecast)
    parser.add_argument(
        "path", metavar="RUN", help="a run folder of `curate tag`, or its tagged file"
    )
    parser.add_argument(
        "--lift", metavar="SOURCE", required=True,
        help="where the lift comes from: gradients, pilot, or a checkpoint: the folder or Hub id "
        "of a model, or the folder of a LoRA adapter",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", metavar="NAME", default="pilot",
        help="what the pilot does: a recipe by name, or a TOML file (default: pilot)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", metavar="N,N", default="1", help="seeds of the pilot, each one more of them "
        "(default: 1)"
    )  # fmt: skip
    parser.add_argument(
        "--horizon", type=float, metavar="X",
        help="the training that is forecast, as a multiple of what the tags suppose "
        "(default: as the run was tagged before)",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="MODEL", default="",
        help="where the probed model lies, if it is no longer where it was",
    )  # fmt: skip
    parser.add_argument(
        "--keep", action="store_true", help="keep the weights of the pilot, in its folder"
    )
    parser.add_argument(
        "--json", action="store_true", help="print what was done as JSON on standard output"
    )


def _forecast(arguments: argparse.Namespace) -> int:
    from curate.commands import forecast
    from probes.summary import summarize, summary_text

    found = forecast(
        arguments.path,
        lift=arguments.lift,
        recipe=arguments.recipe,
        seeds=seed_numbers(arguments.seeds),
        horizon=arguments.horizon,
        model=arguments.model,
        keep=arguments.keep,
    )
    if not found:  # One of several processes that train; the main one says what was done.
        return 0
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print(summary_text(summarize(Path(found["run_dir"]))))
    return 0


def seed_numbers(text: str) -> list[int]:
    """Read the value of --seeds: whole numbers with commas between."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = [-1]
    if min(seeds) < 0:
        raise UsageError(f"--seeds is {text!r}; it must be whole numbers, such as 1,42,37")
    return seeds
