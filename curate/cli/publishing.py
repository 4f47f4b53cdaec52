"""The command line of publishing: `curate card` and `curate push`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_publishing(commands: Any) -> None:
    """Add `card` and `push` to the commands."""
    _add_card(commands)
    _add_push(commands)


def _add_card(commands: Any) -> None:
    parser = commands.add_parser(
        "card",
        help="write a dataset card for the Hub",
        description="Write a dataset card for the Hugging Face Hub from the run folder alone: what "
        "the tags mean, how they were measured, what was found, how far to trust it, how to load "
        "and filter. What was not measured is said to be so.",
        epilog="example: curate card runs/gsm8k-Qwen2.5-0.5B --language en --license mit. Between "
        "its two markers the card is written anew each time; what else stands in it stays.",
    )
    parser.set_defaults(run=_card)
    parser.add_argument(
        "run_dir", metavar="RUN", type=Path, help="the folder of a finished `curate tag`"
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", type=Path,
        help="where the card goes (default: RUN/README.md)",
    )  # fmt: skip
    parser.add_argument(
        "--merge", metavar="FILE", type=Path,
        help="a card whose text and metadata stay (default: that of -o, if curate wrote it before)",
    )  # fmt: skip
    parser.add_argument(
        "--repo", metavar="OWNER/NAME", default="",
        help="the dataset's name on the Hub, for the lines that load it",
    )  # fmt: skip
    _add_metadata(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the card's metadata as JSON on standard output"
    )


def _add_push(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="upload the tagged dataset to the Hub",
        description="Upload a run to the Hugging Face Hub as a dataset, in one commit: the tagged "
        "rows as Parquet with one split per tag, the card, and the report and figures where there "
        "are any. A card that is there keeps its other text and configurations. The token is that "
        "of `hf auth login`, or HF_TOKEN. An upload that broke off continues with the same "
        "command.",
        epilog="example: curate push runs/gsm8k-Qwen2.5-0.5B --repo me/gsm8k-tagged --private. "
        "Exit status: 0 done, 1 failed on its way (the same command continues), 2 bad usage, a "
        "refused token, or files that would be replaced unseen.",
    )
    parser.set_defaults(run=_push)
    parser.add_argument(
        "run_dir", metavar="RUN", type=Path, help="the folder of a finished `curate tag`"
    )
    parser.add_argument(
        "--repo", metavar="OWNER/NAME", required=True,
        help="the dataset on the Hub, made if it is not there; without OWNER/ it is yours",
    )  # fmt: skip
    parser.add_argument(
        "--private", action="store_true", help="make the repository private; never makes one public"
    )
    parser.add_argument(
        "--dry-run", action="store_true",
        help="list every file with its size, upload nothing, use no network",
    )  # fmt: skip
    parser.add_argument(
        "--with-rollouts", action="store_true",
        help="upload every sampled completion too, as the configuration 'rollouts', and leave "
        "those in the report that it shows; without it no completion is uploaded",
    )  # fmt: skip
    parser.add_argument(
        "--tagged", metavar="FILE", type=Path,
        help="the tagged file, if it is no longer where `curate tag` wrote it",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true",
        help="replace files of the repository that no push of this run wrote",
    )  # fmt: skip
    parser.add_argument(
        "--create-pr", action="store_true", help="open a pull request instead of committing"
    )
    _add_metadata(parser)
    parser.add_argument(
        "--json", action="store_true", help="print what was uploaded as JSON on standard output"
    )


def _add_metadata(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--language", metavar="CODE", action="append", default=[],
        help="language of the items, as en; repeatable (default: none, or the card's)",
    )  # fmt: skip
    parser.add_argument(
        "--license", metavar="ID", default="",
        help="license of the dataset, as apache-2.0 (default: none, or the card's)",
    )  # fmt: skip


def _card(arguments: argparse.Namespace) -> int:
    from cards.card.card import CARD
    from curate.commands import card

    metadata = card(
        arguments.run_dir,
        arguments.out,
        merge=arguments.merge,
        repo=arguments.repo,
        language=arguments.language,
        license=arguments.license,
    )
    place = arguments.out or arguments.run_dir / CARD
    print(json.dumps(metadata, indent=2) if arguments.json else f"card: {place}")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from cards.push.text import push_text
    from curate.commands import push

    summary = push(
        arguments.run_dir,
        arguments.repo,
        private=arguments.private,
        dry_run=arguments.dry_run,
        with_rollouts=arguments.with_rollouts,
        tagged=arguments.tagged,
        overwrite=arguments.overwrite,
        create_pr=arguments.create_pr,
        language=arguments.language,
        license=arguments.license,
    )
    print(json.dumps(summary, indent=2) if arguments.json else push_text(summary))
    return 0
