"""`curate merge`: its command line, and the function of its name."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any

from curate.command import Command, library_function
from curate.errors import UsageError
from curate.settings import argument, option, settings


@settings
class Merge(Command):
    """Join what `curate tag --shard I/N --run-dir RUN` did on N machines into the run folder RUN.
    Items that more rollouts can still decide go on: then a round is open, and the same N commands
    draw it, until a merge writes the tagged file. Shards of different runs, or fewer than all, are
    refused.

    example: curate merge runs/gsm8k. Exit status: 0 joined (finished or not: see the output), 1 a
    file is damaged or the disk full, 2 the shards do not belong together.
    """

    run: str | Path = argument("the --run-dir that the shards were given", metavar="RUN")
    shards: Sequence[str | Path] = option(
        "where shards lie that are not in RUN/shards: a shard's folder, or the run folder of "
        "another machine; repeatable",
        default=(), metavar="FOLDER", flags=("--from",),
    )  # fmt: skip
    _: KW_ONLY
    dataset: str | Path = option(
        "the dataset, where it is not at the place that the shards had it",
        default="", metavar="FILE",
    )  # fmt: skip
    out: str | Path = option(
        "the tagged file (default: what the shards were told)", default="", metavar="FILE"
    )

    def work(self) -> dict[str, Any]:
        """Join the shards.

        Returns:
            `finished`; `round`, the one that is open or the last; `shards`, `run_dir`,
            `tagged_file`.
        """
        others = [Path(each) for each in self.shards]
        for place in (Path(self.run), *others):
            if not place.is_dir():
                raise UsageError(f"no such folder: {place}")
        from probes.merge import merge_run

        return merge_run(Path(self.run), others, dataset=str(self.dataset), out=str(self.out))

    def text(self, found: dict[str, Any]) -> str:
        """The summary of a finished run, or what to do next."""
        if not found["finished"]:
            return (
                f"{found['shards']} shards joined; round {found['round']} is open. Run the same\n"
                "--shard commands again and merge again, or curate tag without --shard to end it "
                "here"
            )
        from probes.summary import summarize, summary_text

        return summary_text(summarize(Path(self.run)))


merge = library_function(Merge)
