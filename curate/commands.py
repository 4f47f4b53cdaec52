"""The commands by name, as strings: what one needs is imported when it is used, and not before."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

_TAG, _CHOOSE = "tag", "choose what to train on"
_TRAIN, _ASK, _SHOW = "train and confirm", "ask language models", "show and share"


class Entry(NamedTuple):
    """Where a command lies and what it is for."""

    place: str
    """MODULE:CLASS; the library function is beside the class, under the command's name."""
    help: str
    group: str


COMMANDS = {
    "tag": Entry(
        "probes.tag_command:Tag", "probe every item and write the tagged dataset", _TAG
    ),
    "merge": Entry(
        "probes.merge_command:Merge", "join the shards that several machines did of a run", _TAG
    ),
    "forecast": Entry(
        "recipes.forecast.command:Forecast",
        "measure how training moves each item, and tag a finished run anew by it", _TAG,
    ),
    "doctor": Entry(
        "probes.doctor.command:Doctor",
        "tell what this machine can do, and what is in the way of `tag`", _TAG,
    ),
    "filter": Entry(
        "curate.tagged.filter:Filter", "write the rows that are worth training on", _CHOOSE
    ),
    "order": Entry(
        "curate.tagged.order:Order",
        "write the dataset in the order in which to train on it", _CHOOSE,
    ),
    "validate": Entry(
        "recipes.validate.command:_ValidateOrList",
        "train with GRPO by a recipe and write every item's outcome", _TRAIN,
    ),
    "confirm": Entry(
        "recipes.confirm.command:Confirm",
        "compare the predicted tags with what GRPO made of the items", _TRAIN,
    ),
    "calibrate": Entry(
        "recipes.calibrate.command:Calibrate",
        "fit a predictor of unlearnable items on what GRPO confirmed", _TRAIN,
    ),
    "compare": Entry(
        "recipes.compare.command:Compare",
        "tell how pass rates, gradients and tags moved between two probes", _TRAIN,
    ),
    "judge": Entry(
        "recipes.judge.command:Judge",
        "have a language model grade the reasoning of correct rollouts", _ASK,
    ),
    "augment": Entry(
        "recipes.augment.command:Augment",
        "have language models write and check problems like those that are not learned", _ASK,
    ),
    "report": Entry(
        "cards.report.command:Report",
        "write one HTML file that shows a run: what is in it, how sure, and every item", _SHOW,
    ),
    "card": Entry("cards.card.command:Card", "write a dataset card for the Hub", _SHOW),
    "push": Entry("cards.push.command:Push", "upload the tagged dataset to the Hub", _SHOW),
}  # fmt: skip


def command_class(name: str) -> Any:
    """The class of a command (of `curate.command.Command`): its settings, its work, its words."""
    module, _, cls = COMMANDS[name].place.partition(":")
    return getattr(importlib.import_module(module), cls)


def command_function(name: str) -> Any:
    """The library function of a command."""
    return getattr(importlib.import_module(COMMANDS[name].place.partition(":")[0]), name)
