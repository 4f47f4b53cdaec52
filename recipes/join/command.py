"""`curate join`: its command line, and the function of its name."""

import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any, ClassVar

from curate.command import Command, library_function
from curate.errors import UsageError, one_line
from curate.run.names import check_run_folder
from curate.settings import argument, option, settings, several


@settings
class Join(Command):
    """Put what several models make of one dataset side by side: write its rows and columns once,
    and for each model the columns of its tagged file with the model's name and a dot before them,
    as in small.pass_rate. It says how far their tags agree, which items only one of them solves,
    and which none does. Items are the same where prompt and answer are. Rows are those of the first
    run; what another run has of them or beyond them is counted.

    `curate filter` and `curate order` read the file: --expr "large.trainability == 'easy' and
    small.trainability == 'learnable'", or --model small for all that goes by the tags of one.

    example: curate join runs/train-small runs/train-large --name small --name large -o both.jsonl.
    Exit status: 0 done, 1 the disk failed or a file of a run is damaged, 2 bad usage or input.
    """

    words: ClassVar[str] = "recipes.join.text:join_text"
    resumes = False

    runs: Sequence[str | Path] = argument(
        "run folders of `curate tag`, one a model, on the same dataset", metavar="RUN"
    )
    out: str | Path = option(
        "the file to write: .jsonl, .json, .csv or .parquet; its summary goes beside it as "
        "OUT.join.json",
        metavar="OUT", flags=("-o", "--out"),
    )  # fmt: skip
    _: KW_ONLY
    name: str | Sequence[str] = option(
        "what the columns of a model begin with; once for each RUN, in their order (default: made "
        "of the model's name, or the run folder's where two models have one name)",
        default=(), metavar="NAME",
    )  # fmt: skip

    def work(self) -> dict[str, Any]:
        """Write the file.

        Returns:
            the summary: `models` with their runs and counts, `settings` that differ, `pairs` of
            models with the agreement of their tags, `solved` (by all, by one alone, by none), and
            `suspect_golds`: items whose gold looks wrong by the answers of every model.
        """
        if len(self.runs) < 2:
            raise UsageError("give two run folders of `curate tag` or more, one a model")
        for run in self.runs:
            check_run_folder(run)
        from recipes.join.join import join_runs

        return join_runs([Path(run) for run in self.runs], Path(self.out), several(self.name))

    def since(self, started: float) -> dict[str, Any]:
        """Write the file; what makes the models hard to compare goes to standard error."""
        found = self.work()
        for note in found["notes"]:
            print(one_line(f"note: {note}"), file=sys.stderr)
        return found


join = library_function(Join)
