"""Which items of a run a recipe trains on, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curate.errors import UsageError
from recipes.prompts import TrainingItem
from recipes.recipe import ALL, Recipe, read_recipe


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


def select_items(recipe: Recipe, items: Sequence[TaggedItem], seed: int) -> list[TaggedItem]:
    """The items that a recipe trains on, in the order of its epochs.

    Args:
        seed: of the blind draw, for a recipe that wants as many items as another one has.

    Raises:
        UsageError: not one item is left.
    """
    chosen = _chosen(recipe, items)
    if recipe.as_many_as:
        size = len(_chosen(read_recipe(recipe.as_many_as), items))
        if size < len(chosen):
            drawn = np.random.default_rng(seed).choice(len(chosen), size=size, replace=False)
            chosen = [chosen[place] for place in sorted(drawn.tolist())]
    if recipe.order == "curriculum":
        chosen = curriculum(chosen)
    return chosen


def _chosen(recipe: Recipe, items: Sequence[TaggedItem]) -> list[TaggedItem]:
    wanted = set(recipe.items)
    chosen = [
        each
        for each in items
        if (ALL in wanted or each.trainability in wanted)
        and not each.pass_rate > recipe.max_pass_rate
    ]
    if not chosen:
        tags = ", ".join(recipe.items)
        raise UsageError(
            f"recipe {recipe.name} trains on items tagged {tags} with a pass rate up to "
            f"{recipe.max_pass_rate:g}, and this run has none"
        )
    return chosen


def curriculum(items: Sequence[TaggedItem]) -> list[TaggedItem]:
    """Easy items, then learnable ones, each by falling pass rate, then the rest likewise."""
    stages = {"easy": 0, "learnable": 1}

    def key(each: TaggedItem) -> tuple[int, float]:
        rate = 0.0 if np.isnan(each.pass_rate) else each.pass_rate
        return stages.get(each.trainability, 2), -rate

    return sorted(items, key=key)
