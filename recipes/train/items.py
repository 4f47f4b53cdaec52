"""Which items of a run a recipe trains on, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curate.errors import UsageError
from curate.tagged.orders import order_rows
from curate.tagged.rules import Bound, Rules, filter_rows
from recipes.recipe import ALL, Recipe, read_recipe
from recipes.train.prompts import TrainingItem


@dataclass(frozen=True)
class TaggedItem:
    """An item with what the probe found.

    Attributes:
        item: its prompt and answer.
        trainability: the predicted tag.
        pass_rate: under the initial policy; nan where nothing was judged.
    """

    item: TrainingItem
    trainability: str
    pass_rate: float

    @property
    def row(self) -> dict[str, Any]:
        """What a tagged dataset says of it."""
        return {"trainability": self.trainability, "pass_rate": self.pass_rate}


def select_items(recipe: Recipe, items: Sequence[TaggedItem], seed: int) -> list[TaggedItem]:
    """The items that a recipe trains on, in the order of its epochs.

    Args:
        seed: of the blind draw, for a recipe that wants as many items as another one has.

    Raises:
        UsageError: not one item is left.
    """
    size = None
    if recipe.as_many_as:
        size = len(_chosen(read_recipe(recipe.as_many_as), items, None, seed))
    chosen = _chosen(recipe, items, size, seed)
    if recipe.order == "curriculum":
        chosen = [
            chosen[place] for place in order_rows([each.row for each in chosen], "curriculum")
        ]
    return chosen


def _chosen(
    recipe: Recipe, items: Sequence[TaggedItem], sample: int | None, seed: int
) -> list[TaggedItem]:
    rules = Rules(
        keep=() if ALL in recipe.items else recipe.items,
        bounds=(Bound("pass_rate", maximum=recipe.max_pass_rate, keeps_null=True),),
        sample=sample,
        seed=seed,
    )
    drops = filter_rows((each.row for each in items), rules)
    chosen = [each for each, drop in zip(items, drops, strict=True) if drop is None]
    if not chosen:
        tags = ", ".join(recipe.items)
        raise UsageError(
            f"recipe {recipe.name} trains on items tagged {tags} with a pass rate up to "
            f"{recipe.max_pass_rate:g}, and this run has none"
        )
    return chosen
