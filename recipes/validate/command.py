"""`curate validate`: its command line, and the function of its name."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any

from curate.command import Command, library_function
from curate.errors import UsageError
from curate.run.folder import find_run
from curate.settings import argument, option, settings, several
from recipes.listing import list_recipes, recipes_text
from recipes.recipe import LISTS, check_training, read_recipes, recipe_names, with_options

_RUN = "a run folder of `curate tag`, or its tagged file"
_RECIPE = "what the recipe asks for"


@settings
class Validate(Command):
    """Train the model that was probed on the run's items, by one recipe or several and with several
    seeds, then draw final rollouts of every item: what became of it is in
    RUN/validation/RECIPE/SEED/outcomes.parquet. After Ctrl-C or a kill the same command continues
    from the newest checkpoint. Seeds may run side by side, and one run on several processes:
    accelerate launch -m curate validate ...

    example: curate validate runs/gsm8k-Qwen2.5-0.5B --recipe baseline --seeds 1,42,37
    """

    path: str | Path = argument(_RUN, metavar="RUN")
    _: KW_ONLY
    recipe: str | Sequence[str] = option(
        "a recipe by name, a TOML file, or a list such as all-small; repeatable",
        default=("baseline",), metavar="NAME", suggested=lambda: [*recipe_names(), *LISTS],
    )  # fmt: skip
    seeds: Sequence[int] = option(
        "seeds (default: 1,42,37, the paper's)",
        default=(1, 42, 37), metavar="N,N", least=0, commas=True,
    )  # fmt: skip
    model: str | Path = option(
        "another base model with the same tokenizer (the recipe mid-trained)",
        default="", group=_RECIPE, metavar="MODEL",
    )  # fmt: skip
    extra_items: str | Path = option(
        "a dataset whose items are trained on beside the run's (augment-similar, ...)",
        default="", group=_RECIPE, metavar="FILE",
    )  # fmt: skip
    held_out: str | Path = option(
        "a dataset of items that are not trained on: evaluated before, after, and every "
        "`evaluate_every` steps",
        default="", metavar="FILE",
    )  # fmt: skip
    keep: str = option(
        "weights that stay: none, the final policy as a model folder, or one for every checkpoint "
        "too",
        default="none", choices=("none", "policy", "all"),
    )  # fmt: skip

    def work(self) -> list[Path]:
        """Train by recipes on the items of a run and write every item's outcome.

        Returns:
            the `outcomes.parquet` of every recipe and seed.
        """
        recipes = [
            with_options(each, model=str(self.model), extra_items=str(self.extra_items))
            for each in read_recipes(several(self.recipe))
        ]
        find_run(Path(self.path))
        check_training()
        # TRL takes seconds to import, so what can be wrong with a recipe shows before.
        from curate.run.tables import OUTCOMES
        from recipes.validate.validate import validate_run

        return [OUTCOMES.path(folder) for folder in validate_run(self, recipes)]

    def facts(self, found: list[Any]) -> list[Any]:
        """The files by name."""
        return [str(file) for file in found]


@settings
class _ValidateOrList(Validate):
    __doc__ = Validate.__doc__

    path: str | Path = argument(_RUN, metavar="RUN", default="")
    _: KW_ONLY
    list: bool = option("show the recipes that there are", default=False)

    def since(self, started: float) -> Any:
        if self.list:
            return list_recipes()
        if not self.path:
            raise UsageError("no run given: curate validate RUN --recipe NAME")
        return self.work()

    def facts(self, found: Any) -> Any:
        return found if self.list else super().facts(found)

    def text(self, found: Any) -> str:
        return recipes_text() if self.list else ""


validate = library_function(Validate)
