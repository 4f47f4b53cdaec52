"""`curate confirm`: its command line, and the function of its name."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any, ClassVar

from curate.command import Command, library_function
from curate.errors import UsageError
from curate.run.names import check_run_folder
from curate.settings import argument, option, settings
from recipes.elsewhere import is_plain_name, seeds_of

_LOG = "a training elsewhere"
OWN = "own-training"
"""What trainings elsewhere are called where no name is given."""


@settings
class Confirm(Command):
    """Compare the tags that were predicted before RL with what became of the items in the GRPO runs
    of `curate validate`: which hard items were learned in every seed, how well p_unlearnable told
    them apart, and whether the pass rate or the similarity of the prompts would have done as well.
    Fills the column confirmed_trainability of the tagged file; the predicted tags stay. With
    --training the outcomes are those of your own RL run: the rollouts that verl, prime-rl,
    open-instruct or TRL logged over its steps, or a table of item, step and reward.

    example: curate confirm runs/gsm8k-Qwen2.5-0.5B-Instruct. Writes validation/confirmed.parquet
    and validation/summary.json in the run folder. curate confirm RUN --training seed1/rollouts
    --training seed2/rollouts: two seeds trained elsewhere.
    """

    words: ClassVar[str] = "recipes.confirm.text:confirmation_text"

    run: str | Path = argument("the run folder of a validated `curate tag`", metavar="RUN")
    recipe: str = option(
        "whose outcomes confirm (default: baseline, or baseline-small, or the only one there); "
        f"with --training what these are called (default: {OWN})",
        default="", metavar="NAME",
    )  # fmt: skip
    _: KW_ONLY
    training: Sequence[str | Path] = option(
        "a file or folder of logged rollouts of your own RL run on these items; once for each seed",
        default=(), group=_LOG, metavar="PATH",
    )  # fmt: skip
    seeds: Sequence[int] = option(
        "the seeds of the --training given, in their order (default: 1,2,...)",
        default=(), group=_LOG, metavar="N,N", least=0, commas=True,
    )  # fmt: skip
    column: Sequence[str] = option(
        "what a column of the log is called, such as reward=accuracy; of item_id, prompt, "
        "completion, reward, step, rollouts, answer, finish_reason; repeatable",
        default=(), group=_LOG, metavar="WHAT=NAME",
    )  # fmt: skip
    id_column: str = option(
        "a column of the dataset by whose values the log names its items",
        default="", group=_LOG, metavar="NAME",
    )  # fmt: skip
    correct_from: float = option(
        "the reward from which a rollout is correct", default=1.0, group=_LOG, metavar="R"
    )
    rollouts_per_reward: int = option(
        "how many rollouts a logged reward is the mean of, where no column tells",
        default=1, group=_LOG, metavar="N", least=1,
    )  # fmt: skip
    final_part: float = option(
        "the part of the steps, from the end, whose rollouts are final ones",
        default=0.5, group=_LOG, metavar="F", above=0, least=0,
    )  # fmt: skip
    final_rollouts: int = option(
        "how many of an item's newest rollouts in that part make its final pass rate",
        default=32, group=_LOG, metavar="N", least=1,
    )  # fmt: skip
    initial_rollouts: int = option(
        "how many of an item's first rollouts before that part make its initial pass rate; 0: "
        "that of the probe",
        default=0, group=_LOG, metavar="N", least=0,
    )  # fmt: skip

    def work(self) -> dict[str, Any]:
        """Confirm the tags.

        Returns:
            the summary: what `validation/summary.json` of the run folder then holds.
        """
        check_run_folder(self.run)
        name = self.recipe
        if self.training:
            name = name or OWN
            self._import(name)
        from recipes.confirm.confirm import confirm_run

        return confirm_run(Path(self.run), name)

    def _import(self, name: str) -> None:
        """Write what the logs tell of the items, as trainings of `name`."""
        given = len(self.training)
        seeds = seeds_of(self.seeds, given, f"--training {given} logs")
        if not is_plain_name(name):
            raise UsageError(f"--recipe is {name!r}; with --training it must be a plain name")
        if self.final_part > 1:
            raise UsageError(f"--final-part is {self.final_part:g}; it must be at most 1")
        from curate.rollout_files.read import open_rollouts, read_columns
        from curate.run.run import Run
        from recipes.confirm.training_log import Windows, import_training

        columns = read_columns(self.column)
        windows = Windows(
            self.correct_from,
            self.final_part,
            self.final_rollouts,
            self.initial_rollouts,
            self.rollouts_per_reward,
        )
        logs = [open_rollouts(each, columns) for each in self.training]
        import_training(
            Run.open(self.run), logs, windows, name=name, seeds=seeds, id_column=self.id_column
        )


confirm = library_function(Confirm)
