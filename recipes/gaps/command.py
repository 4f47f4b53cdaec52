"""`curate gaps`: its command line, and the function of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from curate.command import Command, library_function
from curate.files import path_or_none
from curate.run.names import check_run_folder
from curate.settings import argument, option, settings


@settings
class Gaps(Command):
    """Tell what is missing for the items that training is not expected to solve: nobody teaches
    them, their teachers are too few or too weak, training on the others makes them rarer, or their
    correct rollouts are luck. Items that would teach each other stand together, with examples:
    where nobody else in the dataset teaches them they are candidates for mid-training, or for more
    items of their kind. It goes by the gradients of a finished run and needs no model.

    example: curate gaps runs/train-Qwen2.5-0.5B-Instruct -o gaps.jsonl. Exit status: 0 done, 1 a
    file of the run is missing or damaged, or the disk failed, 2 bad usage or input.
    """

    words: ClassVar[str] = "recipes.gaps.text:gaps_text"
    resumes = False

    run: str | Path = argument("the run folder of `curate tag`", metavar="RUN")
    out: str | Path | None = option(
        "a line of JSON for each of these items: its reason, the numbers behind it, its cluster",
        default=None, metavar="FILE.jsonl", flags=("-o", "--out"),
    )  # fmt: skip

    def work(self) -> dict[str, Any]:
        """Find what is missing.

        Returns:
            how many items were asked about, how many have which reason, and the clusters with
            their items, examples, and whether anybody teaches them.

        Raises:
            UsageError: no such run, it is not finished, or its gradients were removed.
            RunError: a file of it is missing or damaged, or the disk is full.
        """
        check_run_folder(self.run)
        from recipes.gaps.gaps import find_gaps

        return find_gaps(Path(self.run), path_or_none(self.out))


gaps = library_function(Gaps)
