"""The columns of several models in one file, as `curate join` writes them.

Each model's columns are those of its tagged file with the model's name and a dot before them,
`small.pass_rate`: names that every format can hold, CSV too, and that an `--expr` reads as they
stand. `item_id` is the same for all and has its plain name.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any

from curate.errors import UsageError
from curate.settings import did_you_mean
from curate.tagged.rules import PREDICTED

ITEM_ID = "item_id"
_REASON = "tag_reason"
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# What an --expr reads as something else than a column.
_WORDS = {"null", "true", "false", "column"}
_LONGEST = 40


def column_of(model: str, name: str) -> str:
    """What a column of a tagged file is called where several models have it."""
    return f"{model}.{name}"


def joined_models(columns: Sequence[str]) -> tuple[str, ...]:
    """The models whose columns a file has; none of a file that is not of several models."""
    if PREDICTED in columns or ITEM_ID not in columns:
        return ()
    ending = column_of("", PREDICTED)
    return tuple(name.removesuffix(ending) for name in columns if name.endswith(ending))


def columns_of_model(columns: Sequence[str], model: str) -> dict[str, str]:
    """The columns of one model, by the names that they have in its tagged file."""
    begin = column_of(model, "")
    return {name.removeprefix(begin): name for name in columns if name.startswith(begin)}


def choose_model(models: Sequence[str], model: str, file: object) -> None:
    """Refuse a model that a file does not have.

    Args:
        models: those that it has; none where it is a tagged file of one.
        model: the one that is asked for; "" for none.
        file: what errors call it.

    Raises:
        UsageError: so it is.
    """
    if model and not models:
        raise UsageError(f"--model {model}: {file} is of one model; only files of `curate join` "
                         "are of several")  # fmt: skip
    if model and model not in models:
        hint = did_you_mean(model, models) or f"; it is of {', '.join(models)}"
        raise UsageError(f"{file} has no model {model!r}{hint}")


def as_of_model(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row with the columns of one model under their plain names too.

    Args:
        row: of a file of several models.
        columns: what `columns_of_model` gave.
    """
    return {**row, **{plain: row.get(name) for plain, name in columns.items()}}


def as_of_any(row: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """A row that counts as tagged where any model has tagged it; else with the first's reason."""
    of_models = [row.get(column_of(model, PREDICTED)) for model in models]
    tag = next((each for each in of_models if each is not None), None)
    return {**row, PREDICTED: tag, _REASON: row.get(column_of(models[0], _REASON))}


# --- Names of models ------------------------------------------------------------------------------


def is_model_name(name: str) -> bool:
    """Whether columns may begin so, and be read in an --expr."""
    is_word = keyword.iskeyword(name) or name in _WORDS
    return bool(_NAME.fullmatch(name)) and not is_word and len(name) <= _LONGEST


def model_name(text: str) -> str:
    """A name made of any text, such as a model's: small letters, digits and underscores.

    >>> model_name("Qwen2.5-7B-Instruct"), model_name("7B"), model_name("é")
    ('qwen2_5_7b_instruct', 'm_7b', 'model')
    """
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:_LONGEST].strip("_")
    if not name:
        return "model"
    return name if is_model_name(name) else f"m_{name}"[:_LONGEST]


def check_model_names(names: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse names that cannot be told apart, or not be read in an --expr.

    Args:
        names: of the models.
        columns: of the dataset.

    Raises:
        UsageError: so it is; says which.
    """
    for place, name in enumerate(names):
        if not is_model_name(name):
            raise UsageError(
                f"--name {name!r}: a name has letters of ASCII, digits and underscores, at most "
                f"{_LONGEST}, begins with no digit and is no word of an --expr; "
                f"{model_name(name)} would do"
            )
        if name.casefold() in (each.casefold() for each in names[:place]):
            raise UsageError(f"--name {name}: two models have this name; give each its own")
        taken = next((each for each in columns if each.partition(".")[0] == name), None)
        if taken is not None:
            raise UsageError(f"--name {name}: the dataset has a column {taken!r}; give another")
