"""`curate score`: its command line, and the function of its name."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any, ClassVar

from curate.addresses import DEFAULT_KEY_VARIABLE
from curate.command import Command, library_function
from curate.config import TagConfig
from curate.errors import UsageError
from curate.run.names import check_run_folder
from curate.settings import argument, option, option_of, settings
from recipes.elsewhere import is_plain_name, seeds_of

SCORED = "scored"
"""What outcomes of checkpoints are called where no name is given."""
_SAMPLING = "sampling the rollouts"
_MACHINES = "servers and clusters"


@settings
class Score(Command):
    """Find out what became of a run's items in a training that was done elsewhere and left
    checkpoints: draw rollouts of every item from each checkpoint, judge them as the run's were, and
    write the final pass rates beside those of the probe, in the form of `curate validate`. After it
    `curate confirm`, `calibrate`, `report`, `card` and `filter --by confirmed` work as after a
    training of ours. After Ctrl-C or a kill the same command continues. A checkpoint does not tell
    what happened on the way: there are no curves of rewards, and whether an item was ever right is
    known of the probe and of the final rollouts alone. Where the trainer logged its rollouts,
    `curate confirm --training` knows more.

    example: curate score runs/base --model seed1/final --model seed2/final --seeds 1,42 and then:
    curate confirm runs/base --recipe scored. Writes RUN/validation/scored/SEED/outcomes.parquet.
    Exit status: 0 done, 1 failed on its way (the same command continues), 2 bad usage or input.
    """

    words: ClassVar[str] = "recipes.score.text:score_text"

    run: str | Path = argument("the run folder of a finished `curate tag`", metavar="RUN")
    model: str | Path | Sequence[str | Path] = option(
        "a checkpoint: a model folder, Hub id or .gguf file, or the folder of a LoRA adapter of "
        "the run's model; once for each training (seed)",
        metavar="CHECKPOINT",
    )  # fmt: skip
    _: KW_ONLY
    seeds: Sequence[int] = option(
        "the seeds of the trainings that left them, in their order (default: 1,2,...)",
        default=(), metavar="N,N", least=0, commas=True,
    )  # fmt: skip
    name: str = option(
        "what the outcomes are called, for `curate confirm --recipe NAME`",
        default=SCORED, metavar="NAME",
    )  # fmt: skip
    base: str | Path = option(
        "where the probed model lies, if it is no longer where it was: tokenizers are compared "
        "with its own, and adapters are loaded on it",
        default="", metavar="MODEL",
    )  # fmt: skip
    rollouts: int = option(
        "rollouts of every item", default=32, group=_SAMPLING, metavar="N", least=1
    )
    temperature: float | None = option(
        "sampling temperature (default: the run's)",
        default=None, group=_SAMPLING, metavar="T", above=0,
    )  # fmt: skip
    max_tokens: int | None = option(
        "a completion is cut here and counts as wrong (default: as in the run)",
        default=None, group=_SAMPLING, metavar="N", least=1,
    )  # fmt: skip
    engine: str = option_of(
        TagConfig, "engine", default=..., group=_SAMPLING,
        help="what draws the rollouts (auto: vllm where it and a CUDA GPU are there, else "
        "transformers; adapters are drawn from by transformers)",
    )  # fmt: skip
    vllm: Sequence[str] = option(
        "an engine argument of vLLM, such as tensor_parallel_size=4, beside those of the run; "
        "repeatable",
        default=(), group=_SAMPLING, metavar="NAME=VALUE",
    )  # fmt: skip
    base_url: Sequence[str] = option_of(
        TagConfig, "base_url", default=..., group=_MACHINES,
        help="with --engine server: where a server answers that serves the checkpoint; repeatable",
    )  # fmt: skip
    served_model: str = option_of(
        TagConfig, "served_model", default=..., group=_MACHINES,
        help="the servers' name for it, where it is not that of --model",
    )  # fmt: skip
    api_key_env: str = option(
        f"the environment variable that holds the API key (default: {DEFAULT_KEY_VARIABLE}, if "
        "set)",
        default="", group=_MACHINES, metavar="VARIABLE",
    )  # fmt: skip
    executor: str = option_of(
        TagConfig, "executor", default=..., group=_MACHINES,
        help="where rollouts are drawn: in this process, or by the workers of a Ray cluster",
    )  # fmt: skip
    ray_address: str = option_of(TagConfig, "ray_address", default=..., group=_MACHINES)
    workers: int = option_of(TagConfig, "workers", default=..., group=_MACHINES)

    def work(self) -> dict[str, Any]:
        """Draw, judge and write the outcomes.

        Returns:
            `run_dir`, `name`, `tau`, `seeds` (an entry each: `seed`, `model`, `folder`, counts of
            rollouts, mean pass rates before and after, and how many hard items reached τ) and
            `notes`, what a reader has to know of them.
        """
        check_run_folder(self.run)
        models, seeds = self.checkpoints()
        from recipes.score.score import score_run

        return score_run(self, models, seeds)

    def checkpoints(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The checkpoints, and the seed of each.

        Raises:
            UsageError: they do not belong together, or the name is none.
        """
        named = (self.model,) if isinstance(self.model, str | Path) else self.model
        models = tuple(map(str, named))
        seeds = seeds_of(self.seeds, len(models), f"--model {len(models)} checkpoints")
        if not is_plain_name(self.name):
            raise UsageError(f"--name is {self.name!r}; it must be a plain name")
        if self.engine == "server" and len(models) > 1:
            raise UsageError(
                "--engine server draws from the one model that its servers have: score one "
                "--model at a time, each with its --seeds"
            )
        return models, seeds


score = library_function(Score)
