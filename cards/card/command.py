"""`curate card`: its command line, and the function of its name."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any

from curate.command import Command, library_function
from curate.errors import UsageError
from curate.files import path_or_none
from curate.run.names import check_run_folder, is_joined
from curate.settings import argument, option, settings


@settings
class Card(Command):
    """Write a dataset card for the Hugging Face Hub from the run folder alone: what the tags mean,
    how they were measured, what was found, how far to trust it, how to load and filter. What was
    not measured is said to be so. Of a file of `curate join` it tells all models.

    example: curate card runs/gsm8k-Qwen2.5-0.5B --language en --license mit. Between its two
    markers the card is written anew each time; what else stands in it stays.
    """

    resumes = False

    run: str | Path = argument(
        "the folder of a finished `curate tag`, or a file of `curate join`", metavar="RUN"
    )
    out: str | Path | None = option(
        "where the card goes (default: RUN/README.md; beside a file of `curate join`, as .md)",
        default=None, metavar="FILE", flags=("-o", "--out"),
    )  # fmt: skip
    _: KW_ONLY
    merge: str | Path | None = option(
        "a card whose text and metadata stay (default: that of -o, if curate wrote it before)",
        default=None, metavar="FILE",
    )  # fmt: skip
    repo: str = option(
        "the dataset's name on the Hub, for the lines that load it",
        default="", metavar="OWNER/NAME",
    )  # fmt: skip
    language: Sequence[str] = option(
        "language of the items, as en; repeatable (default: none, or the card's)",
        default=(), metavar="CODE",
    )  # fmt: skip
    license: str = option(
        "license of the dataset, as apache-2.0 (default: none, or the card's)",
        default="", metavar="ID",
    )  # fmt: skip

    def work(self) -> dict[str, Any]:
        """Write the card.

        Returns:
            the card's metadata.
        """
        write: Callable[..., dict[str, Any]]
        if is_joined(self.run):
            from cards.card.joined import write_joined_card

            write = write_joined_card
        else:
            if Path(self.run).is_file():
                raise UsageError(
                    f"{self.run} is a file without the summary that `curate join` writes beside "
                    "it: give a run folder, or a file of `curate join`"
                )
            check_run_folder(self.run)
            from cards.card.card import write_card

            write = write_card
        return write(
            Path(self.run),
            path_or_none(self.out),
            merge=path_or_none(self.merge),
            repo=self.repo,
            language=self.language,
            license=self.license,
        )

    def text(self, found: dict[str, Any]) -> str:
        """Where it is."""
        if is_joined(self.run):
            from cards.card.joined import joined_card_file

            return f"card: {path_or_none(self.out) or joined_card_file(Path(self.run))}"
        from cards.card.card import CARD

        return f"card: {path_or_none(self.out) or Path(self.run) / CARD}"


card = library_function(Card)
