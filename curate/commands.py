"""The commands by name, as strings: what one needs is imported when it is used, and not before."""

import importlib
from typing import Any, NamedTuple

_TAG, _CHOOSE = "tag", "choose what to train on"
_TRAIN, _ASK, _SHOW = "train and confirm", "ask language models", "show and share"


class Entry(NamedTuple):
    """Where a command lies and what it is for."""

    place: str
    """MODULE:CLASS; the library function is beside the class."""
    group: str
    help: str
    function: str = ""
    """The library function; of the command's name if empty, which Python may have taken itself."""


COMMANDS = {
    "tag": Entry("probes.tag_command:Tag", _TAG,
        "probe every item and write the tagged dataset"),
    "import": Entry("probes.import_command:Import", _TAG,
        "make a run of rollouts that exist: pass rates without sampling", "import_rollouts"),
    "verify": Entry("probes.verify.command:Verify", _TAG,
        "try a verifier: verdicts on answers with their golds, what was read, and why"),
    "merge": Entry("probes.merge_command:Merge", _TAG,
        "join the shards that several machines did of a run"),
    "forecast": Entry("recipes.forecast.command:Forecast", _TAG,
        "measure how training moves each item, and tag a finished run anew by it"),
    "doctor": Entry("probes.doctor.command:Doctor", _TAG,
        "tell what this machine can do, and what is in the way of `tag`"),
    "join": Entry("recipes.join.command:Join", _CHOOSE,
        "write what several models make of one dataset side by side"),
    "filter": Entry("curate.tagged.filter:Filter", _CHOOSE,
        "write the rows that meet conditions"),
    "select": Entry("recipes.select.command:Select", _CHOOSE,
        "write the rows that are worth training on most, for so many items or rollouts"),
    "order": Entry("curate.tagged.order:Order", _CHOOSE,
        "write the dataset in the order in which to train on it"),
    "validate": Entry("recipes.validate.command:_ValidateOrList", _TRAIN,
        "train with GRPO by a recipe and write every item's outcome"),
    "confirm": Entry("recipes.confirm.command:Confirm", _TRAIN,
        "compare the predicted tags with what GRPO made of the items"),
    "score": Entry("recipes.score.command:Score", _TRAIN,
        "tell what became of the items in a training elsewhere, from its checkpoints"),
    "calibrate": Entry("recipes.calibrate.command:Calibrate", _TRAIN,
        "fit a predictor of unlearnable items, and the forecast, to what GRPO confirmed"),
    "compare": Entry("recipes.compare.command:Compare", _TRAIN,
        "tell how pass rates, gradients and tags moved between two probes"),
    "judge": Entry("recipes.judge.command:Judge", _ASK,
        "have a language model grade the reasoning of correct rollouts"),
    "augment": Entry("recipes.augment.command:Augment", _ASK,
        "have language models write and check problems like those that are not learned"),
    "report": Entry("cards.report.command:Report", _SHOW,
        "write one HTML file that shows a run: what is in it, how sure, and every item"),
    "card": Entry("cards.card.command:Card", _SHOW, "write a dataset card for the Hub"),
    "push": Entry("cards.push.command:Push", _SHOW, "upload the tagged dataset to the Hub"),
}  # fmt: skip


def command_class(name: str) -> Any:
    """The class of a command (of `curate.command.Command`): its settings, its work, its words."""
    module, _, cls = COMMANDS[name].place.partition(":")
    return getattr(importlib.import_module(module), cls)


FUNCTIONS = {entry.function or name: entry.place for name, entry in COMMANDS.items()}
"""The library function of every command, and where it lies."""


def command_function(name: str) -> Any:
    """A library function, by its name."""
    return getattr(importlib.import_module(FUNCTIONS[name].partition(":")[0]), name)
