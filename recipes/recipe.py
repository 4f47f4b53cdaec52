"""A recipe: the settings of one training run, read from a TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from curate.config import read_config_file
from curate.errors import UsageError

_FOLDER = Path(__file__).parent
_LONGEST_CHAIN = 8
ALL = "all"
TAGS = ("easy", "learnable", "unlearnable", "no_positive", "undetermined")
ORDERS = ("shuffle", "curriculum", "dataset")
# Interventions that need nothing beside the run; the others are given a file or a model.
_BY_THEMSELVES = ("clip-higher", "no-kl", "replay", "more-rollouts", "sft", "curriculum")
_ARMS = ("full", "filtered", "trimmed", "ordered", "random")
LISTS: dict[str, tuple[str, ...]] = {
    f"{name}{size}": tuple(f"{recipe}{size}" for recipe in recipes)
    for size in ("", "-small")
    for name, recipes in ((ALL, ("baseline", *_BY_THEMSELVES)), ("pays", _ARMS))
}
"""Names that stand for several recipes, in the order in which they are run."""
_TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Recipe:
    """What is trained, on which items, how long, and how it is evaluated.

    The defaults are the paper's (arXiv 2605.16787) as its released code runs them.

    Attributes:
        name: as people say it: the file's name without `.toml`.
        hypothesis: what the run tests, one line.
        method: `grpo`, or `sft` on correct rollouts of the probe.
        model: another base model (a folder, Hub id or .gguf file) with the same tokenizer; "" is
            the run's own; "--model" asks the user for it by that option.
        max_steps: steps; each samples one batch of prompts.
        prompts_per_step: prompts whose groups reach the loss in one step.
        num_generations: rollouts of a prompt that reach the loss (the group).
        updates_per_step: optimizer updates that a step's batch is cut into.
        learning_rate, max_grad_norm: of AdamW; constant rate, no weight decay.
        lora_rank, lora_alpha: of a LoRA adapter on all linear layers; rank 0: no adapter, all
            parameters are trained.
        beta: coefficient of the KL term (the low-variance estimator); 0 leaves it out.
        epsilon, epsilon_high: the ratio is clipped to [1 - epsilon, 1 + epsilon_high].
        entropy_coefficient: of the entropy bonus.
        temperature: of the training rollouts.
        max_completion_length: tokens of a training rollout; 0: as the probe's.
        dynamic_sampling: groups of equal rewards are dropped and replaced by further prompts.
        max_sampling_rounds: batches of prompts that one step samples at most.
        oversample: rollouts sampled for each that is kept.
        replay_positives: correct rollouts in every group, from the replay buffer where the prompt
            has none; 0: groups stay as they are sampled.
        replay_reuse: times that a buffered rollout is used at most.
        items: tags of the items to train on, or `all`.
        max_pass_rate: items above this initial pass rate are not trained on.
        as_many_as: a recipe; as many items as it has are drawn blindly from ours.
        order: `shuffle` (anew every epoch), `curriculum` (easy, then learnable by falling pass
            rate, then the rest, every epoch) or `dataset`.
        extra_items: a dataset file whose items are trained on beside the run's; "--extra-items"
            asks the user for it by that option.
        rollout_budget: training rollouts after which it ends, whatever `max_steps`; 0: no limit.
        evaluation_rollouts, evaluation_temperature: final rollouts of every item of the run.
        held_out_rollouts: rollouts of every held-out item each time that it is evaluated.
        evaluate_every: steps between evaluations on held-out items; 0: only before and after.
        log_every, save_every: steps between lines of `metrics.jsonl`, and between checkpoints.
        rows_per_pass: rollouts that go through the model together, for memory; the result is the
            same but for rounding.
    """

    name: str
    hypothesis: str = ""
    method: str = "grpo"
    model: str = ""
    max_steps: int = 120
    prompts_per_step: int = 256
    num_generations: int = 8
    updates_per_step: int = 4
    learning_rate: float = 5e-7
    max_grad_norm: float = 1.0
    lora_rank: int = 0
    lora_alpha: float = 32.0
    beta: float = 1e-4
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    entropy_coefficient: float = 1e-3
    temperature: float = 1.0
    max_completion_length: int = 5120
    dynamic_sampling: bool = True
    max_sampling_rounds: int = 10
    oversample: int = 1
    replay_positives: int = 0
    replay_reuse: int = 2
    items: tuple[str, ...] = (ALL,)
    max_pass_rate: float = 1.0
    as_many_as: str = ""
    order: str = "shuffle"
    extra_items: str = ""
    rollout_budget: int = 0
    evaluation_rollouts: int = 32
    evaluation_temperature: float = 0.7
    held_out_rollouts: int = 32
    evaluate_every: int = 0
    log_every: int = 1
    save_every: int = 10
    rows_per_pass: int = 64

    def __post_init__(self) -> None:
        """Check every value that can be wrong by itself, and those that exclude each other."""
        self._require(self.method in ("grpo", "sft"), "method", "grpo or sft")
        self._require(self.order in ORDERS, "order", ", ".join(ORDERS))
        self._require(
            bool(self.items) and set(self.items) <= {ALL, *TAGS}, "items", ", ".join((ALL, *TAGS))
        )
        for name in (
            *("max_steps", "prompts_per_step", "updates_per_step", "max_sampling_rounds"),
            *("oversample", "replay_reuse", "evaluation_rollouts", "held_out_rollouts"),
            *("log_every", "save_every", "rows_per_pass"),
        ):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        self._require(self.num_generations >= 2, "num_generations", "at least 2")
        for name in (
            *("lora_rank", "beta", "entropy_coefficient", "max_completion_length"),
            *("replay_positives", "rollout_budget", "evaluate_every"),
        ):
            value = getattr(self, name)
            self._require(0 <= value < math.inf, name, "a number, at least 0")
        for name in (
            *("learning_rate", "max_grad_norm", "lora_alpha", "epsilon", "epsilon_high"),
            *("temperature", "evaluation_temperature", "max_pass_rate"),
        ):
            value = getattr(self, name)
            self._require(0 < value < math.inf, name, "a number above 0")
        self._require(
            self.prompts_per_step % self.updates_per_step == 0,
            "prompts_per_step",
            f"a multiple of updates_per_step, {self.updates_per_step}",
        )
        self._require(
            self.replay_positives < self.num_generations, "replay_positives",
            f"below num_generations, {self.num_generations}",
        )  # fmt: skip

    def _require(self, condition: bool, key: str, wanted: str) -> None:
        if not condition:
            value = getattr(self, key)
            raise UsageError(f"recipe {self.name}: {key} is {value!r}; it must be {wanted}")

    @property
    def rollouts_per_group(self) -> int:
        """Rollouts sampled for a prompt, before any are left out."""
        return self.num_generations * self.oversample

    def to_toml(self) -> str:
        """Write every key but the name; `read_recipe` on it gives the same recipe."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if k != "name"}
        return tomli_w.dumps({k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})


def recipe_names() -> list[str]:
    """Names of the recipes that come with this package, in alphabetical order."""
    return sorted(file.stem for file in _FOLDER.glob("*.toml"))


def recipe_text(name: str) -> str:
    """The file of a recipe that comes with this package, with its comments."""
    return _find(name, None).read_text(encoding="utf-8")


def read_recipe(name: str) -> Recipe:
    """Read a recipe by its name, or by the path of a TOML file.

    Raises:
        UsageError: no such recipe (names the nearest), not TOML, an unknown key or a wrong value.
    """
    file = _find(name, None)
    return _recipe(_merged(file, ()), file)


def expand_names(names: Iterable[str]) -> list[str]:
    """Put recipes in the place of the names of lists, each once, in the order of their mention."""
    return list(dict.fromkeys(each for name in names for each in LISTS.get(name, (name,))))


def read_recipes(names: Iterable[str]) -> list[Recipe]:
    """Read recipes by name, path or the name of a list: `all`, `pays`, or `-small` after either.

    Raises:
        UsageError: as `read_recipe`; or two of them have one name, so that their runs would lie in
            one folder.
    """
    recipes: dict[str, Recipe] = {}
    for name in expand_names(names):
        recipe = read_recipe(name)
        if recipes.setdefault(recipe.name, recipe) != recipe:
            raise UsageError(f"two recipes are named {recipe.name}; rename the file {name}")
    return list(recipes.values())


def with_options(recipe: Recipe, *, model: str = "", extra_items: str = "") -> Recipe:
    """Fill in what a recipe asks the user for.

    Raises:
        UsageError: it asks for something that is not given.
    """
    given = {"model": model, "extra_items": extra_items}
    asked: dict[str, Any] = {}
    for key, value in given.items():
        option = "--" + key.replace("_", "-")
        if getattr(recipe, key) == option:
            if not value:
                raise UsageError(f"recipe {recipe.name} needs {option}")
            asked[key] = value
    return dataclasses.replace(recipe, **asked)


def _find(name: str, beside: Path | None) -> Path:
    """The file of a recipe, where a path may be relative to the file that names it."""
    if name.endswith(".toml") or "/" in name:
        path = Path(name).expanduser()
        if beside is not None and not path.is_absolute():
            path = beside / path
        if not path.is_file():
            raise UsageError(f"no such recipe: {path} is no file")
        return path
    if name not in recipe_names():
        near = difflib.get_close_matches(name, [*recipe_names(), *LISTS], n=1)
        hint = f"did you mean {near[0]}?" if near else "curate validate --list shows them"
        raise UsageError(f"no recipe is named {name!r}; {hint}")
    return _FOLDER / f"{name}.toml"


def _merged(file: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    """The keys of a file over those that it extends."""
    if file.resolve() in chain or len(chain) >= _LONGEST_CHAIN:
        raise UsageError(f"recipe {file}: `extends` leads round in a circle, or too far")
    values = read_config_file(file)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UsageError(f"recipe {file}: extends is {base!r}; it must be text")
    return _merged(_find(base, file.parent), (*chain, file.resolve())) | values


def _recipe(values: Mapping[str, Any], file: Path) -> Recipe:
    hints = typing.get_type_hints(Recipe)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints or key == "name":
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(hints)}"
            raise UsageError(f"recipe {file}: unknown key {key!r}; {hint}")
        checked[key] = _convert(value, hints[key], f"recipe {file}: {key}")
    return Recipe(name=file.stem, **checked)


def _convert(value: Any, wanted: Any, where: str) -> Any:
    if wanted == tuple[str, ...]:
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in values):
            raise UsageError(f"{where} is {value!r}; it must be a list of text")
        return tuple(values)
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise UsageError(f"{where} is {value!r}; it must be {_TYPE_NAMES[wanted]}")
    return value
