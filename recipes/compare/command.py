"""`curate compare`: its command line, and the function of its name."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.command import Command, library_function
from curate.files import path_or_none
from curate.run.names import check_run_folder
from curate.settings import argument, option, settings

if TYPE_CHECKING:
    import pyarrow as pa


@settings
class Compare(Command):
    """Compare two probes of the same items by two policies, such as a model before and after RL, or
    before and after mid-training: how pass rates, gradient similarities and tags moved, for every
    item and for every group, with intervals. Groups are the first run's, so that they hold the same
    items on either side. Where the second run probed items of `curate augment`: whether their
    gradients came near their parents'.

    example: curate compare runs/train-base runs/train-step50. Exit status: 0 done, 1 a file of a
    run is missing or damaged, 2 bad usage or input.
    """

    run_a: str | Path = argument("run folder of `curate tag`: the policy before", metavar="RUN_A")
    run_b: str | Path = argument("run folder of `curate tag`: the policy after", metavar="RUN_B")
    _: KW_ONLY
    groups_from: str | Path | None = option(
        "take groups from the tags of this run folder, or from what `curate confirm` made of them "
        "(default: RUN_A)",
        default=None, metavar="RUN",
    )  # fmt: skip
    out: str | Path | None = option(
        "where the items go; the summary goes beside it as .json (default: "
        "RUN_B/comparison/<name of RUN_A>.parquet)",
        default=None, metavar="FILE.parquet", flags=("-o", "--out"),
    )  # fmt: skip

    def work(self) -> tuple[pa.Table, dict[str, Any]]:
        """Compare the runs and write what came out.

        Returns:
            the items that both runs have (`COMPARISON_SCHEMA` of `recipes.compare.compare`), and
            the summary.
        """
        for run in (self.run_a, self.run_b, self.groups_from):
            if run is not None:
                check_run_folder(run)
        from recipes.compare.compare import compare_runs
        from recipes.compare.text import write_comparison

        file = self._file()
        comparison = compare_runs(
            Path(self.run_a), Path(self.run_b), path_or_none(self.groups_from)
        )
        write_comparison(file, comparison)
        return comparison.items, comparison.summary

    def _file(self) -> Path:
        from recipes.compare.text import comparison_file

        return comparison_file(Path(self.run_a), Path(self.run_b), path_or_none(self.out))

    def facts(self, found: tuple[pa.Table, dict[str, Any]]) -> dict[str, Any]:
        """The summary."""
        return found[1]

    def text(self, found: tuple[pa.Table, dict[str, Any]]) -> str:
        """The summary as tables, and the files."""
        from recipes.compare.text import comparison_text

        file = self._file()
        files = f"items:   {file}\nsummary: {file.with_suffix('.json')}"
        return f"{comparison_text(found[1])}\n\n{files}"


compare = library_function(Compare)
