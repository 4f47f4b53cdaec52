"""`curate judge`: its command line, and the function of its name."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any, ClassVar

from curate.command import library_function
from curate.run.names import check_run_folder
from curate.settings import option, settings
from recipes.language_model import AsksLanguageModel
from recipes.recipe import TAGS


@settings
class Judge(AsksLanguageModel):
    """Have a language model behind an OpenAI-compatible server grade the reasoning of correct
    rollouts from 0 to 5: a right answer may be a guess or a shortcut, and those of unlearnable
    items often are. Each rollout is graded twice, with the rubric in two orders; how far both agree
    is reported. Fills the columns reasoning_quality and reasoning_quality_n of the tagged file.
    Every request and answer is kept in RUN/judging: the same command continues, and pays for
    nothing twice.

    example: curate judge runs/train-Qwen2.5-0.5B --base-url https://api.openai.com/v1 --judge-model
    gpt-5-mini --limit 100 --dry-run. Exit status: 0 done, 1 failed on its way (the same command
    continues), 2 bad usage or a server that refuses.
    """

    words: ClassVar[str] = "recipes.judge.text:judgement_text"

    _: KW_ONLY
    per_item: int = option(
        "correct rollouts of an item that are graded, at most", default=4, metavar="N", least=1
    )
    tags: Sequence[str] = option(
        "items with this tag, confirmed or else predicted; repeatable (default: all)",
        default=(), metavar="TAG", suggested=TAGS,
    )  # fmt: skip
    rubric: str | Path | None = option(
        "what to grade by: a text with lists of lines that begin with '- ', whose order the second "
        "pass turns round (default: recipes/rubric.md)",
        default=None, metavar="FILE",
    )  # fmt: skip

    def work(self) -> dict[str, Any]:
        """Grade correct rollouts of the run.

        Returns:
            the summary: what `judging/summary.json` of the run folder then holds.
        """
        check_run_folder(self.run)
        from recipes.judge.judge import judge_run

        return judge_run(Path(self.run), self, self.asked(), dry_run=self.dry_run)


judge = library_function(Judge)
