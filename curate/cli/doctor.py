"""The command line of `curate doctor`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from curate.config import TagConfig, config_from_mapping, read_config_file

# Settings of `curate tag` that decide what a run needs, with what they stand for in the help.
_SIZES = {
    "run_dir": "FOLDER",
    "min_rollouts": "N",
    "max_rollouts": "N",
    "rollout_budget": "N",
    "max_tokens": "N",
    "gradient_rollouts": "N",
    "gradient_wrong_rollouts": "N",
    "gradient_dim": "DIM",
}


def add_doctor(commands: Any) -> None:
    """Add `curate doctor` to the commands."""
    parser = commands.add_parser(
        "doctor",
        help="tell what this machine can do, and what is in the way of `tag`",
        description="Look at Python, the packages and their versions against the tested ones, "
        "other packages that install modules of the same names, GPUs and CPU, the engines, the "
        "trainer, Ray, and free disk and memory against what a run is expected to need. Every "
        "finding comes with its remedy. Nothing is downloaded or changed.",
        epilog="example: curate doctor --model Qwen/Qwen2.5-7B --items 100000 --max-tokens 2048. "
        "Exit status: 0 `curate tag` can run, 1 something blocks it, 2 bad usage or input.",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=_doctor)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--config", metavar="FILE.toml", help="settings of `tag` from a file")
    parser.add_argument("--model", metavar="MODEL", help="whether this model fits")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--dataset", metavar="DATASET", help="a dataset whose items count")
    size.add_argument(
        "--items", metavar="N", type=int, help="items of the run that is planned (default: 1000)"
    )
    group = parser.add_argument_group("sizes of the run, as for `curate tag`")
    for name, metavar in _SIZES.items():
        default = TagConfig.__dataclass_fields__[name].default
        text = TagConfig.__dataclass_fields__[name].metadata["help"].partition(":")[0]
        if default:
            text += f" (default: {default})"
        group.add_argument(
            f"--{name.replace('_', '-')}", metavar=metavar, type=type(default), help=text
        )


def _doctor(arguments: argparse.Namespace) -> int:
    # Not through `curate.commands`, which needs what may be missing.
    from probes.doctor.findings import doctor_facts, doctor_text, examine

    names = TagConfig.__dataclass_fields__
    given = {name: value for name, value in vars(arguments).items() if name in names}
    values = read_config_file(arguments.config) if "config" in arguments else {}
    config = config_from_mapping(values | given, getattr(arguments, "config", "options"))
    facts = doctor_facts(examine(config, getattr(arguments, "items", None)))
    print(json.dumps(facts, indent=2) if "json" in arguments else doctor_text(facts))
    return 0 if facts["can_tag"] else 1
