"""What each recipe that comes with this package tests, and what the paper found of it.

It is what the comment at the head of a recipe's file says, in paragraphs that begin with these
words.
"""

from __future__ import annotations

import textwrap

from recipes.recipe import LISTS, read_recipe, recipe_names, recipe_text

_TESTED = "Hypothesis: "
_FOUND = "The paper found: "


def list_recipes() -> list[dict[str, str]]:
    """Describe every recipe that comes with this package, in alphabetical order.

    Returns:
        of each the `name`; the `hypothesis` in a few words; and from its comment the hypothesis in
        full (`tested`) and what the paper found of it (`paper_found`).
    """
    return [describe(name) for name in recipe_names()]


def recipes_text() -> str:
    """Write `list_recipes` and the names that stand for several recipes, for a terminal."""
    names: dict[tuple[str, str], list[str]] = {}  # A recipe and its small variant say the same.
    for recipe in list_recipes():
        key = (recipe["hypothesis"], recipe["paper_found"])
        names.setdefault(key, []).append(recipe["name"])
    parts = []
    for (hypothesis, found), same in names.items():
        parts.append(f"{', '.join(same)}: {hypothesis}")
        parts.append(textwrap.indent(textwrap.fill(f"the paper found: {found}", 96), "    "))
    parts += ["", "names for several:"]
    parts += [f"{name}: {', '.join(recipes)}" for name, recipes in LISTS.items()]
    return "\n".join(parts)


def describe(name: str) -> dict[str, str]:
    """Describe one recipe that comes with this package; see `list_recipes`."""
    paragraphs = _comment(recipe_text(name))

    def after(words: str) -> str:
        return next(each.removeprefix(words) for each in paragraphs if each.startswith(words))

    return {
        "name": name,
        "hypothesis": read_recipe(name).hypothesis,
        "tested": after(_TESTED),
        "paper_found": after(_FOUND),
    }


def _comment(text: str) -> list[str]:
    """The paragraphs of the comment that a file begins with, each on one line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return [" ".join(each.split("\n")) for each in "\n".join(lines).split("\n\n")]
