"""`curate confirm`: its command line, and the function of its name."""

from pathlib import Path
from typing import Any, ClassVar

from curate.command import Command, library_function
from curate.run.names import check_run_folder
from curate.settings import argument, option, settings


@settings
class Confirm(Command):
    """Compare the tags that were predicted before RL with what became of the items in the GRPO runs
    of `curate validate`: which hard items were learned in every seed, how well p_unlearnable told
    them apart, and whether the pass rate or the similarity of the prompts would have done as well.
    Fills the column confirmed_trainability of the tagged file; the predicted tags stay.

    example: curate confirm runs/gsm8k-Qwen2.5-0.5B-Instruct. Writes validation/confirmed.parquet
    and validation/summary.json in the run folder.
    """

    words: ClassVar[str] = "recipes.confirm.text:confirmation_text"

    run: str | Path = argument("the run folder of a validated `curate tag`", metavar="RUN")
    recipe: str = option(
        "whose outcomes confirm (default: baseline, or baseline-small, or the only one there)",
        default="", metavar="NAME",
    )  # fmt: skip

    def work(self) -> dict[str, Any]:
        """Confirm the tags.

        Returns:
            the summary: what `validation/summary.json` of the run folder then holds.
        """
        check_run_folder(self.run)
        from recipes.confirm.confirm import confirm_run

        return confirm_run(Path(self.run), self.recipe)


confirm = library_function(Confirm)
