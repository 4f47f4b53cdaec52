"""A recipe: the settings of one training run, read from a TOML file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from curate.config import AUTO, read_config_file
from curate.errors import UsageError
from curate.settings import Settings, did_you_mean, option, settings

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


@settings
class Recipe(Settings):
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
        max_sampling_rounds: times `prompts_per_step` prompts that one step samples at most.
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
        generation: what draws the training rollouts: `transformers`, from the model that is
            trained; `vllm`, TRL's beside it on a GPU; `auto`: vLLM where it is installed and a GPU
            seems to hold both.
        vllm_gpu_memory_utilization, vllm_enable_sleep_mode, vllm_importance_sampling_correction,
        vllm_importance_sampling_mode: TRL's settings of these names, for `vllm`.
    """

    called: ClassVar[str] = "key"

    name: str
    hypothesis: str = option(default="")
    method: str = option(default="grpo", choices=("grpo", "sft"))
    model: str = option(default="")
    max_steps: int = option(default=120, least=1)
    prompts_per_step: int = option(default=256, least=1)
    num_generations: int = option(default=8, least=2)
    updates_per_step: int = option(default=4, least=1)
    learning_rate: float = option(default=5e-7, above=0)
    max_grad_norm: float = option(default=1.0, above=0)
    lora_rank: int = option(default=0, least=0)
    lora_alpha: float = option(default=32.0, above=0)
    beta: float = option(default=1e-4, least=0)
    epsilon: float = option(default=0.2, above=0)
    epsilon_high: float = option(default=0.2, above=0)
    entropy_coefficient: float = option(default=1e-3, least=0)
    temperature: float = option(default=1.0, above=0)
    max_completion_length: int = option(default=5120, least=0)
    dynamic_sampling: bool = option(default=True)
    max_sampling_rounds: int = option(default=10, least=1)
    oversample: int = option(default=1, least=1)
    replay_positives: int = option(default=0, least=0)
    replay_reuse: int = option(default=2, least=1)
    items: tuple[str, ...] = option(default=(ALL,), choices=(ALL, *TAGS))
    max_pass_rate: float = option(default=1.0, above=0)
    as_many_as: str = option(default="")
    order: str = option(default="shuffle", choices=ORDERS)
    extra_items: str = option(default="")
    rollout_budget: int = option(default=0, least=0)
    evaluation_rollouts: int = option(default=32, least=1)
    evaluation_temperature: float = option(default=0.7, above=0)
    held_out_rollouts: int = option(default=32, least=1)
    evaluate_every: int = option(default=0, least=0)
    log_every: int = option(default=1, least=1)
    save_every: int = option(default=10, least=1)
    rows_per_pass: int = option(default=64, least=1)
    generation: str = option(default=AUTO, choices=(AUTO, "transformers", "vllm"))
    vllm_gpu_memory_utilization: float = option(default=0.3, above=0, below=1)
    vllm_enable_sleep_mode: bool = option(default=False)
    vllm_importance_sampling_correction: bool = option(default=True)
    vllm_importance_sampling_mode: str = option(
        default="sequence_mask",
        choices=("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    )

    def __post_init__(self) -> None:
        """Check every value by itself, and those that exclude each other."""
        super().__post_init__()
        self._require(bool(self.items), "items", ", ".join((ALL, *TAGS)))
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
            raise UsageError(f"{self._where(key)} is {value!r}; it must be {wanted}")

    def _where(self, name: str) -> str:
        return f"recipe {self.name}: {name}"

    @property
    def rollouts_per_group(self) -> int:
        """Rollouts sampled for a prompt, before any are left out."""
        return self.num_generations * self.oversample


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
    return Recipe.from_mapping(_merged(file, ()), f"recipe {file}", name=file.stem)


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


def check_training() -> None:
    """Raise UsageError that names what stands in the way of training by a recipe here.

    What it needs and is not installed; or an `accelerate launch` that spreads the parameters over
    processes: rollouts are drawn from the model that is trained, which each process has whole.
    """
    sharded = _sharding()
    if sharded:
        raise UsageError(
            f"this is launched with {sharded}, which leaves no process a whole model to draw "
            "rollouts from: launch it with data parallelism alone (accelerate launch --multi_gpu), "
            "with an adapter (lora_rank) where all parameters do not fit"
        )
    missing = [name for name in ("trl", "peft", "accelerate") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"training needs {', '.join(missing)}: pip install 'rl-curate[train]' installs it"
        )


def _sharding() -> str:
    """How `accelerate launch`, by its environment, spreads parameters over processes; or ""."""
    has = {name for name, value in os.environ.items() if value.lower() in ("true", "1", "yes")}
    if "ACCELERATE_USE_FSDP" in has:
        return "FSDP"
    if "ACCELERATE_USE_MEGATRON_LM" in has:
        return "Megatron-LM"
    if "ACCELERATE_USE_PARALLELISM_CONFIG" in has:
        return "a parallelism config"
    if "ACCELERATE_USE_DEEPSPEED" not in has:
        return ""
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    if file and Path(file).is_file():
        # Where it is wrong, DeepSpeed says so.
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            stage = json.loads(Path(file).read_text())["zero_optimization"]["stage"]
    return "DeepSpeed ZeRO-3" if str(stage) == "3" else ""


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
        hint = did_you_mean(name, [*recipe_names(), *LISTS], quote=False)
        hint = hint or "; curate validate --list shows them"
        raise UsageError(f"no recipe is named {name!r}{hint}")
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
