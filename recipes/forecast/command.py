"""`curate forecast`: its command line, and the function of its name."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any

from curate.command import Command, library_function
from curate.config import HORIZON
from curate.settings import argument, option, settings
from recipes.recipe import check_training, read_recipe, recipe_names, with_options


@settings
class Forecast(Command):
    """Measure the lift of every item of a finished run, which is how far training moves its log
    odds, and tag the items and write the tagged file anew. A pilot trains a few steps by a recipe
    and scores the rollouts that the probe kept under the policy before and after; its first step
    needs no new rollouts. A checkpoint of your own training run is scored in the same way: a model
    folder, or the folder of a LoRA adapter. After Ctrl-C or a kill the same command continues.

    example: curate forecast runs/gsm8k-Qwen2.5-0.5B-Instruct --lift pilot --seeds 1,2 or: curate
    forecast runs/gsm8k-Qwen2.5-0.5B-Instruct --lift outputs/checkpoint-20. Exit status: 0 done, 1
    failed on its way (the same command continues), 2 bad usage or input.
    """

    path: str | Path = argument("a run folder of `curate tag`, or its tagged file", metavar="RUN")
    lift: str | Path = option(
        "where the lift comes from: gradients, pilot, or a checkpoint: the folder or Hub id of a "
        "model, or the folder of a LoRA adapter",
        metavar="SOURCE", suggested=("gradients", "pilot"),
    )  # fmt: skip
    _: KW_ONLY
    recipe: str | Path = option(
        "what it does: a recipe by name, or a TOML file",
        default="pilot", group="the pilot", metavar="NAME", suggested=recipe_names,
    )  # fmt: skip
    seeds: Sequence[int] = option(
        "its seeds, each one more pilot",
        default=(1,), group="the pilot", metavar="N,N", least=0, commas=True,
    )  # fmt: skip
    keep: bool = option("keep its weights, in its folder", default=False, group="the pilot")
    horizon: float | None = option(
        f"{HORIZON} (default: as the run was tagged before)", default=None, metavar="X"
    )
    model: str | Path = option(
        "where the probed model lies, if it is no longer where it was", default="", metavar="MODEL"
    )

    def work(self) -> dict[str, Any]:
        """Measure the lift, and tag the run anew.

        Returns:
            `run_dir`, `tagged_file`, and `lift`: where it comes from and what it cost. Of several
            processes that train a pilot (`accelerate launch`) only the main one gets them.
        """
        from curate.run.folder import find_run

        run, model = find_run(Path(self.path)), str(self.model)
        if str(self.lift) == "pilot":
            recipe = with_options(read_recipe(str(self.recipe)))
            check_training()
            # TRL takes seconds to import, so what can be wrong with a recipe shows before.
            from recipes.forecast.by_pilot import forecast_by_pilot

            return forecast_by_pilot(
                run, recipe, self.seeds, horizon=self.horizon, model=model, keep=self.keep
            )
        from recipes.forecast.forecast import forecast_by_checkpoint, forecast_by_gradients

        if str(self.lift) == "gradients":
            return forecast_by_gradients(run, horizon=self.horizon)
        return forecast_by_checkpoint(run, str(self.lift), horizon=self.horizon, model=model)

    def facts(self, found: dict[str, Any]) -> dict[str, Any] | None:
        """What was done; nothing where this is not the main of several processes."""
        return found or None

    def text(self, found: dict[str, Any]) -> str:
        """The summary of the run as it is tagged now."""
        if not found:
            return ""
        from probes.summary import summarize, summary_text

        return summary_text(summarize(Path(found["run_dir"])))


forecast = library_function(Forecast)
