"""The command line of `curate judge` and `curate augment`, which ask language models."""

from __future__ import annotations

import argparse
import json
from typing import Any

_NO_OPTIONS = ("run", "json", "started")


def add_asking(commands: Any) -> None:
    """Add `curate judge` and `curate augment` to the commands."""
    _add_judge(commands)
    _add_augment(commands)


def _add_judge(commands: Any) -> None:
    parser = commands.add_parser(
        "judge",
        help="have a language model grade the reasoning of correct rollouts",
        description="Have a language model behind an OpenAI-compatible server grade the "
        "reasoning of correct rollouts from 0 to 5: a right answer may be a guess or a shortcut, "
        "and those of unlearnable items often are. Each rollout is graded twice, with the "
        "rubric in two orders; how far both agree is reported. Fills the columns "
        "reasoning_quality and reasoning_quality_n of the tagged file. Every request and "
        "answer is kept in RUN/judging: the same command continues, and pays for nothing twice.",
        epilog="example: curate judge runs/train-Qwen2.5-0.5B --base-url https://api.openai.com/v1 "
        "--judge-model gpt-5-mini --limit 100 --dry-run. Exit status: 0 done, 1 failed on its way "
        "(the same command continues), 2 bad usage or a server that refuses.",
    )
    parser.set_defaults(run=_judge)
    parser.add_argument("run_dir", metavar="RUN", help="the folder of a finished `curate tag`")
    parser.add_argument(
        "--per-item", type=int, metavar="N", default=4,
        help="correct rollouts of an item that are graded, at most (default: 4)",
    )  # fmt: skip
    _add_items(
        parser, "items with this tag, confirmed or else predicted; repeatable (default: all)"
    )
    parser.add_argument(
        "--rubric", metavar="FILE",
        help="what to grade by: a text with lists of lines that begin with '- ', whose order the "
        "second pass turns round (default: recipes/rubric.md)",
    )  # fmt: skip
    group = _add_server(parser, "judge")
    group.add_argument(
        "--max-tokens", type=int, metavar="N", default=1024,
        help="an answer is cut here; models that think first need more (default: 1024)",
    )  # fmt: skip


def _add_augment(commands: Any) -> None:
    parser = commands.add_parser(
        "augment",
        help="have language models write and check problems like those that are not learned",
        description="Have a language model behind an OpenAI-compatible server write new problems "
        "from items of a run: similar ones, or the steps of their solution. Another model answers "
        "each without seeing its answer; it is kept where both answers agree under the run's "
        "verifier, and where the dataset has nothing like it. What is not kept is written beside "
        "it with the reason. Every request and answer is kept in RUN/augmentation: the same "
        "command continues, and pays for nothing twice.",
        epilog="example: curate augment runs/train-Qwen2.5-0.5B --mode similar --base-url "
        "https://api.openai.com/v1 --judge-model gpt-5 --check-model gpt-5-mini --dry-run, then "
        "curate validate runs/train-Qwen2.5-0.5B --recipe augment-similar --extra-items "
        "runs/train-Qwen2.5-0.5B/augmentation/similar.jsonl",
    )
    parser.set_defaults(run=_augment)
    parser.add_argument("run_dir", metavar="RUN", help="the folder of a finished `curate tag`")
    parser.add_argument(
        "--mode", required=True, choices=("similar", "subproblems"),
        help="problems like the item, or the steps of its solution",
    )  # fmt: skip
    parser.add_argument(
        "--per-item", type=int, metavar="N", default=4,
        help="new problems that are asked for from each item (default: 4)",
    )  # fmt: skip
    _add_items(
        parser,
        "items with this tag, confirmed or else predicted; repeatable (default: unlearnable)",
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE.jsonl",
        help="the new dataset (default: RUN/augmentation/MODE.jsonl)",
    )  # fmt: skip
    group = _add_server(parser, "writer")
    group.add_argument(
        "--check-model", metavar="MODEL", default="",
        help="who answers the new problems (default: the writer, which may make one mistake twice)",
    )  # fmt: skip
    group.add_argument(
        "--check-base-url", metavar="URL", action="append", default=[],
        help="where it is served; repeatable (default: --base-url)",
    )  # fmt: skip
    group.add_argument(
        "--check-api-key-env", metavar="VARIABLE", default="",
        help="the variable with the key of that server (default: as --api-key-env where the server "
        "is the same, else OPENAI_API_KEY)",
    )  # fmt: skip
    for option, what in (("in", "prompt"), ("out", "completion")):
        group.add_argument(
            f"--check-price-{option}", type=float, metavar="X",
            help=f"price of a million {what} tokens of the check model (default: --price-{option})",
        )  # fmt: skip
    group.add_argument(
        "--temperature", type=float, metavar="T", default=0.7,
        help="of the writer; the check model answers at 0 (default: 0.7)",
    )  # fmt: skip
    group.add_argument(
        "--max-tokens", type=int, metavar="N", default=4096,
        help="an answer is cut here (default: 4096)",
    )  # fmt: skip


def _add_items(parser: argparse.ArgumentParser, tags: str) -> None:
    parser.add_argument("--tags", metavar="TAG", action="append", default=[], help=tags)
    parser.add_argument(
        "--limit", type=int, metavar="N", default=0,
        help="items, at most, equally many of each tag (default: 0, all)",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="ask nothing: tell how many requests and tokens it would take",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print the summary as JSON on standard output"
    )


def _add_server(parser: argparse.ArgumentParser, who: str) -> Any:
    group = parser.add_argument_group("the language model")
    group.add_argument(
        "--base-url", metavar="URL", action="append", required=True,
        help="an OpenAI-compatible server, as http://localhost:8000/v1; repeatable, for several "
        "with the same model",
    )  # fmt: skip
    group.add_argument(
        "--judge-model", metavar="MODEL", required=True,
        help=f"the {who}: a name that the server knows",
    )  # fmt: skip
    group.add_argument(
        "--api-key-env", metavar="VARIABLE", default="",
        help="the environment variable with the key, which is written nowhere (default: "
        "OPENAI_API_KEY, if that is set)",
    )  # fmt: skip
    group.add_argument(
        "--concurrency", type=int, metavar="N", default=16,
        help="requests at each server at a time (default: 16)",
    )  # fmt: skip
    for option, what in (("in", "prompt"), ("out", "completion")):
        group.add_argument(
            f"--price-{option}", type=float, metavar="X",
            help=f"price of a million {what} tokens, to tell the cost (default: not known)",
        )  # fmt: skip
    return group


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    values = {name: value for name, value in vars(arguments).items() if name not in _NO_OPTIONS}
    return {"run": values.pop("run_dir"), **values}


def _augment(arguments: argparse.Namespace) -> int:
    from curate.commands import augment
    from recipes.augment.text import augmentation_text

    options = _options(arguments)
    summary = augment(**options | {"tags": options["tags"] or ["unlearnable"]})
    print(json.dumps(summary, indent=2) if arguments.json else augmentation_text(summary))
    return 0


def _judge(arguments: argparse.Namespace) -> int:
    from curate.commands import judge
    from recipes.judge.text import judgement_text

    summary = judge(**_options(arguments))
    print(json.dumps(summary, indent=2) if arguments.json else judgement_text(summary))
    return 0
