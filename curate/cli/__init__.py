"""The command line: each command is a thin shell over the library function of the same name."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import signal
import sys
import time
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from curate.cli.asking import add_asking
from curate.cli.doctor import add_doctor
from curate.cli.forecast import add_forecast, seed_numbers
from curate.cli.merging import add_merging
from curate.cli.publishing import add_publishing
from curate.cli.report import add_report
from curate.cli.selection import add_selection
from curate.config import TagConfig, config_from_mapping, read_config_file
from curate.errors import CurateError, RunError, UsageError, one_line
from curate.profiling import process_start
from curate.version import __version__

_INTERRUPTED = 130
# What an argument namespace holds beside settings.
_NO_SETTINGS = ("run", "config", "json", "started")
_TITLES = {
    "output": "where results go",
    "dataset": "reading the dataset",
    "sampling": "sampling rollouts",
    "server": "sampling with servers that speak OpenAI's protocol (--engine server)",
    "machines": "more than one machine",
    "verifying": "verifying and pass rates",
    "tagging": "gradients, forecast and tags",
}


class _Parser(argparse.ArgumentParser):
    """Errors are one line and exit status 2; options are spelled out."""

    def __init__(self, **options: Any) -> None:
        # An abbreviation that works today would mean another option, or none, once one is added.
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own hides that the reader has gone, once a help is longer than a buffer.
        (file or sys.stderr).write(message)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse what is unknown here, where the options of the command are known."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.error(f"unknown argument {unknown[0]!r}{hint}")
        return found, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status.

    0 done, 1 failed while running (the same command continues), 2 bad usage or input,
    130 interrupted (the same command continues).
    """
    # A scheduler's SIGTERM is an interruption like Ctrl-C: the run can be continued.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        try:
            # Called with arguments it is a part of some process; else it is the whole of it.
            started = process_start() if argv is None else time.monotonic()
            arguments = _parser().parse_args(argv, argparse.Namespace(started=started))
            return int(arguments.run(arguments))
        finally:
            sys.stdout.flush()  # A reader that has gone shows here, not while Python shuts down.
    except KeyboardInterrupt:
        print("curate: interrupted; the same command continues", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except CurateError as error:
        print(f"curate: {one_line(str(error))}", file=sys.stderr)
        return error.exit_status
    except (OSError, MemoryError) as error:
        # A full disk, a folder taken away: the machine's failure, not the program's.
        reason = str(error) or "out of memory"
        print(f"curate: {one_line(reason)}; the same command continues", file=sys.stderr)
        return RunError.exit_status


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="curate",
        description="Tag RL training sets by trainability: which items a model already solves, "
        "which it will learn, which it will not, and which give no signal.",
    )
    parser.add_argument("--version", action="version", version=f"curate {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_tag(commands)
    add_merging(commands)
    add_forecast(commands)
    add_selection(commands)
    _add_validate(commands)
    _add_confirm(commands)
    _add_calibrate(commands)
    _add_compare(commands)
    add_asking(commands)
    add_publishing(commands)
    add_report(commands)
    add_doctor(commands)
    return parser


def _add_tag(commands: Any) -> None:
    parser = commands.add_parser(
        "tag",
        help="probe every item and write the tagged dataset",
        description="Sample rollouts of every item, verify them, measure from their gradients how "
        "training moves each item, forecast its pass rate, and write the dataset with a tag and "
        "its evidence in every row. Everything measured is kept in the run folder: after Ctrl-C or "
        "a kill the same command continues where it stopped.",
        epilog="example: curate tag gsm8k.jsonl --model Qwen/Qwen2.5-0.5B-Instruct --limit 50. "
        "Exit status: 0 done, 1 failed while running, 2 bad usage or input, 130 interrupted.",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=_tag)
    parser.add_argument("dataset", nargs="?", metavar="DATASET", help=_help("dataset"))
    parser.add_argument("--model", metavar="MODEL", help=_help("model"))
    parser.add_argument(
        "--config", metavar="FILE.toml", help="settings from a file; options override it"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the summary as JSON on standard output"
    )
    groups = {name: parser.add_argument_group(title) for name, title in _TITLES.items()}
    hints = typing.get_type_hints(TagConfig)
    for each in dataclasses.fields(TagConfig):
        if each.metadata["group"] in groups:
            _add_option(groups[each.metadata["group"]], each, hints[each.name])


def _add_validate(commands: Any) -> None:
    parser = commands.add_parser(
        "validate",
        help="train with GRPO by a recipe and write every item's outcome",
        description="Train the model that was probed on the run's items, by one recipe or several "
        "and with several seeds, then draw final rollouts of every item: what became of it is in "
        "RUN/validation/RECIPE/SEED/outcomes.parquet. After Ctrl-C or a kill the same command "
        "continues from the newest checkpoint. Seeds may run side by side, and one run on several "
        "processes: accelerate launch -m curate validate ...",
        epilog="example: curate validate runs/gsm8k-Qwen2.5-0.5B --recipe baseline --seeds 1,42,37",
    )
    parser.set_defaults(run=_validate)
    parser.add_argument(
        "path", nargs="?", metavar="RUN", help="a run folder of `curate tag`, or its tagged file"
    )
    parser.add_argument(
        "--recipe", metavar="NAME", action="append", dest="recipes",
        help="a recipe by name, a TOML file, or a list such as all-small; repeatable "
        "(default: baseline)",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="show the recipes that there are")
    parser.add_argument(
        "--seeds", metavar="N,N", default="1,42,37", help="seeds (default: 1,42,37, the paper's)"
    )
    parser.add_argument(
        "--model", metavar="MODEL", default="",
        help="another base model with the same tokenizer (the recipe mid-trained)",
    )  # fmt: skip
    parser.add_argument(
        "--extra-items", metavar="FILE", default="",
        help="a dataset whose items are trained on beside the run's (augment-similar, ...)",
    )  # fmt: skip
    parser.add_argument(
        "--held-out", metavar="FILE", default="",
        help="a dataset of items that are not trained on: evaluated before, after, and every "
        "`evaluate_every` steps",
    )  # fmt: skip
    parser.add_argument(
        "--keep", choices=("none", "policy", "all"), default="none",
        help="weights that stay: none, the final policy as a model folder, or one for every "
        "checkpoint too (default: none)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def _validate(arguments: argparse.Namespace) -> int:
    from recipes.listing import list_recipes, recipes_text

    if arguments.list:
        print(json.dumps(list_recipes(), indent=2) if arguments.json else recipes_text())
        return 0
    if not arguments.path:
        raise UsageError("no run given: curate validate RUN --recipe NAME")
    from curate.commands import validate

    outcomes = validate(
        arguments.path,
        recipe=arguments.recipes or ["baseline"],
        seeds=seed_numbers(arguments.seeds),
        model=arguments.model,
        extra_items=arguments.extra_items,
        held_out=arguments.held_out,
        keep=arguments.keep,
    )
    if arguments.json:
        print(json.dumps([str(file) for file in outcomes], indent=2))
    return 0


def _help(name: str) -> str:
    return str(TagConfig.__dataclass_fields__[name].metadata["help"])


def _add_option(group: Any, each: dataclasses.Field[Any], hint: Any) -> None:
    """Make the option of one setting from its type, default and help text."""
    option = f"--{each.name.replace('_', '-')}"
    text = each.metadata["help"].replace("%", "%%")
    if hint is bool:
        group.add_argument(option, dest=each.name, action="store_true", help=text)
        return
    many = typing.get_origin(hint) is tuple
    kind = typing.get_args(hint)[0] if many else hint
    is_repeatable = each.metadata.get("repeatable", False)
    default: Any = each.default
    if many:
        default = " ".join(map(str, default))
    if default != "" and "default" not in text and f"({default}:" not in text:
        text += f" (default: {default})"
    group.add_argument(
        option,
        dest=each.name,
        type=kind,
        nargs="+" if many and not is_repeatable else None,
        action="append" if is_repeatable else "store",
        choices=each.metadata.get("choices"),
        metavar=each.metadata["metavar"] if "choices" not in each.metadata else None,
        help=text,
    )


def _tag(arguments: argparse.Namespace) -> int:
    given = {k: v for k, v in vars(arguments).items() if k not in _NO_SETTINGS}
    values = read_config_file(arguments.config) if "config" in arguments else {}
    config = config_from_mapping(values | given, getattr(arguments, "config", "options"))
    if config.shard:
        return _tag_part(config, as_json="json" in arguments)
    from probes.summary import summarize, summary_text
    from probes.tag import tag_dataset

    config, _ = tag_dataset(config, arguments.started)
    summary = summarize(Path(config.run_dir))
    if "json" in arguments:
        print(json.dumps(summary, indent=2))
    else:
        print(summary_text(summary))
    return 0


def _tag_part(config: TagConfig, *, as_json: bool) -> int:
    from probes.tag import probe_part

    found = probe_part(config)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        state = "this run is finished" if found["finished"] else f"round {found['round']} is done"
        print(f"shard {found['shard']}: {state}, {found['rollouts']:,} rollouts; next: all others,")
        print(f"then curate merge {found['run_dir']}")
    return 0


def _add_confirm(commands: Any) -> None:
    parser = commands.add_parser(
        "confirm",
        help="compare the predicted tags with what GRPO made of the items",
        description="Compare the tags that were predicted before RL with what became of the items "
        "in the GRPO runs of `curate validate`: which hard items were learned in every seed, how "
        "well p_unlearnable told them apart, and whether the pass rate or the similarity of the "
        "prompts would have done as well. Fills the column confirmed_trainability of the tagged "
        "file; the predicted tags stay.",
        epilog="example: curate confirm runs/gsm8k-Qwen2.5-0.5B-Instruct. Writes "
        "validation/confirmed.parquet and validation/summary.json in the run folder.",
    )
    parser.set_defaults(run=_confirm)
    parser.add_argument("run_dir", metavar="RUN", help="the run folder of a validated `curate tag`")
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        default="",
        help="whose outcomes confirm (default: baseline, or baseline-small, or the only one there)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the summary as JSON on standard output"
    )


def _confirm(arguments: argparse.Namespace) -> int:
    from curate.commands import confirm
    from recipes.confirm.text import confirmation_text

    summary = confirm(arguments.run_dir, arguments.recipe)
    print(json.dumps(summary, indent=2) if arguments.json else confirmation_text(summary))
    return 0


def _add_calibrate(commands: Any) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="fit a predictor of unlearnable items on what GRPO confirmed",
        description="Fit a logistic regression on the evidence of the hard items that `curate "
        "confirm` found learnable or unlearnable, and write it to a file for `curate tag "
        "--predictor`. Cross-validation tells how well it predicts items that it was not fitted "
        "on, beside the built-in prediction and the pass rate alone.",
        epilog="example: curate calibrate runs/mixed-SmolLM2 -o smollm2.json, then "
        "curate tag other.jsonl --model SmolLM2 --predictor smollm2.json",
    )
    parser.set_defaults(run=_calibrate)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN",
        help="a run folder of `curate tag`, confirmed by `curate confirm`; the items of several "
        "are pooled",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE",
        help="the predictor file (default: validation/predictor.json in the first RUN)",
    )  # fmt: skip
    parser.add_argument(
        "--reasoning-quality", action="store_true",
        help="let it go by the scores of `curate judge` too; every RUN must be judged, and so must "
        "a run that the predictor is to tag",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print what the file holds as JSON on standard output"
    )


def _calibrate(arguments: argparse.Namespace) -> int:
    from curate.commands import calibrate
    from recipes.calibrate.text import calibration_text

    summary = calibrate(
        *arguments.runs, out=arguments.out, reasoning_quality=arguments.reasoning_quality
    )
    print(json.dumps(summary, indent=2) if arguments.json else calibration_text(summary))
    return 0


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="tell how pass rates, gradients and tags moved between two probes",
        description="Compare two probes of the same items by two policies, such as a model before "
        "and after RL, or before and after mid-training: how pass rates, gradient similarities and "
        "tags moved, for every item and for every group, with intervals. Groups are the first "
        "run's, so that they hold the same items on either side. Where the second run probed items "
        "of `curate augment`: whether their gradients came near their parents'.",
        epilog="example: curate compare runs/train-base runs/train-step50. "
        "Exit status: 0 done, 1 a file of a run is missing or damaged, 2 bad usage or input.",
    )
    parser.set_defaults(run=_compare)
    parser.add_argument(
        "run_a", metavar="RUN_A", type=Path, help="run folder of `curate tag`: the policy before"
    )
    parser.add_argument(
        "run_b", metavar="RUN_B", type=Path, help="run folder of `curate tag`: the policy after"
    )
    parser.add_argument(
        "--groups-from",
        metavar="RUN",
        type=Path,
        help="take groups from the tags of this run folder, or from what `curate confirm` made of "
        "them (default: RUN_A)",
    )
    parser.add_argument(
        "-o",
        "--out",
        metavar="FILE.parquet",
        type=Path,
        help="where the items go; the summary goes beside it as .json "
        "(default: RUN_B/comparison/<name of RUN_A>.parquet)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the summary as JSON on standard output"
    )


def _compare(arguments: argparse.Namespace) -> int:
    from curate.commands import compare
    from recipes.compare.text import comparison_file, comparison_text

    a, b, out = arguments.run_a, arguments.run_b, arguments.out
    _, summary = compare(a, b, groups_from=arguments.groups_from, out=out)
    if arguments.json:
        print(json.dumps(summary, indent=2))
    else:
        file = comparison_file(a, b, out)
        print(comparison_text(summary))
        print(f"\nitems:   {file}\nsummary: {file.with_suffix('.json')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
