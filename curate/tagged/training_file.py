"""What `filter`, `select` and `order` have in common: a tagged file in, a training file out."""

import sys
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any

from curate.command import Command
from curate.errors import one_line
from curate.settings import argument, option, settings

_FORMATS = ("trl", "verl", "open-instruct", "prime-rl", "jsonl", "parquet")
_TRAINER = "ready for a trainer (docs/use.md)"


@settings
class TrainingFile(Command):
    """Rows of a tagged dataset, written for a trainer."""

    tagged: str | Path = argument(
        "a tagged file, or the run folder of `curate tag`", metavar="TAGGED"
    )
    out: str | Path = option(
        "the file to write: .jsonl, .json, .csv or .parquet", metavar="OUT", flags=("-o", "--out")
    )
    _: KW_ONLY
    model: str = option(
        "of a file of `curate join`, the model by whose tags and numbers rows are chosen",
        default="", metavar="NAME",
    )  # fmt: skip
    format: str = option(
        "trl, verl, open-instruct, prime-rl, jsonl or parquet (default: the rows as they are, in "
        "the format of OUT's suffix)",
        default="", group=_TRAINER, metavar="FORMAT", suggested=_FORMATS,
    )  # fmt: skip
    prompt_field: str | None = option(
        "the column of the prompt (default: as tagged)",
        default=None, group=_TRAINER, metavar="COLUMN",
    )  # fmt: skip
    answer_field: str | None = option(
        "the column of the gold answer (default: as tagged)",
        default=None, group=_TRAINER, metavar="COLUMN",
    )  # fmt: skip
    instruction: str | None = option(
        "what the prompts end with, as in `curate tag` (default: as tagged, so that the trainer's "
        "prompts are those that were measured)",
        default=None, group=_TRAINER, metavar="TEXT",
    )  # fmt: skip
    data_source: str | None = option(
        "what chooses the reward in verl (data_source; default: the dataset's name) and "
        "open-instruct (dataset; default: math)",
        default=None, group=_TRAINER, metavar="NAME",
    )  # fmt: skip

    def text(self, found: dict[str, Any]) -> str:
        """The counts as a table."""
        return "\n".join(map(one_line, self.lines(found)))

    def lines(self, found: dict[str, Any]) -> list[str]:
        """The lines of that table."""
        raise NotImplementedError

    def since(self, started: float) -> dict[str, Any]:
        """Write the file; what the user should know about it goes to standard error."""
        found: dict[str, Any] = self.work()
        for note in found["notes"]:
            print(one_line(f"note: {note}"), file=sys.stderr)
        return found
