"""The settings of `curate tag`: one frozen dataclass, from defaults, then TOML, then flags."""

from __future__ import annotations

import datetime
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from curate.addresses import DEFAULT_KEY_VARIABLE, check_base_url, check_key_variable
from curate.errors import UsageError
from curate.settings import Setting, Settings, argument, declared_in, option, settings

AUTO = "auto"
HORIZON = (
    "length of the training that is forecast: 1 is one that solves most easy items, 2 one twice "
    "as long"
)
"""What a horizon is, for the help of every command that has one."""
_OUTPUT = "where results go"
_DATASET = "reading the dataset"
_SAMPLING = "sampling rollouts"
_LOGGED = "rollouts that exist, in the place of sampling (docs/own-runs.md)"
_SERVER = "sampling with servers that speak OpenAI's protocol (--engine server)"
_MACHINES = "more than one machine"
_VERIFYING = "verifying and pass rates"
_TAGGING = "gradients, forecast and tags"

# Arguments of vLLM's engine that have settings here, that would change what is sampled behind the
# run's back, that would open pickled weights, or that are secret and would end in config.toml.
_RAY_SETTINGS = ("cpus_per_worker", "gpus_per_worker", "gpus_per_gradient_worker")
_NOT_FOR_VLLM = frozenset({
    "model", "model_weights", "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "revision",
    "code_revision", "tokenizer_revision", "trust_remote_code", "dtype", "seed", "load_format",
    "generation_config", "override_generation_config", "runner", "convert", "hf_token",
    "data_parallel_size",
})  # fmt: skip

# Variables of chat templates, and arguments of their rendering, that have other settings or none.
_NOT_FOR_TEMPLATES = frozenset({
    "messages", "conversation", "tools", "add_generation_prompt", "continue_final_message",
    "chat_template", "tokenize", "return_dict", "return_tensors", "padding", "truncation",
    "max_length", "return_assistant_tokens_mask", "tokenizer_kwargs", "bos_token", "eos_token",
})  # fmt: skip
# Of a value that is shown in an error: a template may have thousands of characters.
_MOST_SHOWN = 60

MOVE_PASS_RATES = (
    *("verifier", "pass_threshold", "temperature", "top_p", "top_k", "min_p", "max_tokens"),
    *("instruction", "system", "chat_template", "chat_template_kwargs"),
    *("rollouts_temperature", "rollouts_max_tokens"),
)
"""Settings that pass rates go by beside the policy: with others they are of something else."""

RETIRED_SETTINGS = frozenset({"similarity_threshold"})
"""Settings of earlier versions, which the folders of their runs still name."""


@settings
class TagConfig(Settings):
    """Everything that `curate tag` can be told; every field is an option and a TOML key.

    A mapping is a TOML table and no option. `changes_result=False` marks what may differ between
    two commands that continue the same run, `may_differ` such keys of a table. The dataset, the
    model, the target and the predictor may, because a run knows them by their content: a file that
    was moved is still the same. `was_default=True`: runs of versions that did not have it yet did
    what its default says.
    """

    dataset: str = argument(
        "a file (JSONL, JSON, CSV, Parquet), a folder saved by `datasets`, or a Hub id",
        metavar="DATASET", default="", changes_result=False,
    )  # fmt: skip
    model: str = option(
        "a model folder, a Hub id (org/name@revision) or a .gguf file",
        default="", metavar="MODEL", changes_result=False,
    )  # fmt: skip
    out: str = option(
        "the tagged file (default: DATASET.tagged.EXT here; DATASET-RUN.tagged.EXT where that is "
        "another run's)",
        default="", group=_OUTPUT, metavar="FILE", changes_result=False,
    )  # fmt: skip
    run_dir: str = option(
        "where the evidence is kept (default: runs/DATASET-MODEL)",
        default="", group=_OUTPUT, metavar="FOLDER", changes_result=False,
    )  # fmt: skip
    replace_columns: bool = option(
        "replace tag columns that the dataset already has",
        default=False, group=_OUTPUT, changes_result=False,
    )  # fmt: skip
    profile: bool = option(
        "print where this command's time went, by stage: seconds, share and rate, the time outside "
        "any stage (start, imports) as 'overhead'; also in manifest.json as 'profile'",
        default=False, group=_OUTPUT, changes_result=False,
    )  # fmt: skip

    split: str = option(
        "the split of a Hub dataset or datasets folder",
        default="train", group=_DATASET, metavar="NAME", or_number=True,
    )  # fmt: skip
    subset: str = option(
        "the configuration of a Hub dataset",
        default="", group=_DATASET, metavar="NAME", or_number=True,
    )  # fmt: skip
    prompt_field: str = option(
        "the column of the prompt, when it is not recognised",
        default="", group=_DATASET, metavar="COLUMN", or_number=True,
    )  # fmt: skip
    answer_field: str = option(
        "the column of the gold answer; dots reach inside objects",
        default="", group=_DATASET, metavar="COLUMN", or_number=True,
    )  # fmt: skip
    limit: int = option(
        "probe only the first N rows (0: all)", default=0, group=_DATASET, metavar="N", least=0,
        unset="none",
    )  # fmt: skip
    instruction: str = option(
        "text added to the prompt; 'auto' asks for step-by-step reasoning and \\boxed{} where the "
        "prompt is plain text that asks for no form itself; '' adds nothing",
        default=AUTO, group=_DATASET, metavar="TEXT",
    )  # fmt: skip
    prompt_end: str = option(
        "text after a prompt where the model has no chat template (default: a line end; '' adds "
        "nothing)",
        default="\n", group=_DATASET, metavar="TEXT", was_default=True,
    )  # fmt: skip
    system: str = option(
        "a system message before every prompt that has none of its own",
        default="", group=_DATASET, metavar="TEXT", was_default=True,
    )  # fmt: skip
    chat_template: str = option(
        "a Jinja file, or the template itself, in place of the tokenizer's chat template",
        default="", group=_DATASET, metavar="FILE", was_default=True,
    )  # fmt: skip
    chat_template_kwargs: str = option(
        "variables of the chat template, as JSON: '{\"enable_thinking\": false}'",
        default="", group=_DATASET, metavar="JSON", was_default=True,
    )  # fmt: skip
    date: str = option(
        "the day, as 2026-01-31, that a chat template writes which tells the day (default: the "
        "day on which the run begins)",
        default="", group=_DATASET, metavar="DAY", was_default=True,
    )  # fmt: skip
    target: str = option(
        "items of the evaluation that you train for, in any form that DATASET has: each item gets "
        "its similarity to them",
        default="", group=_DATASET, metavar="FILE", changes_result=False,
    )  # fmt: skip

    engine: str = option(
        "what draws the rollouts (auto: vllm where it and a CUDA GPU are there, else transformers)",
        default=AUTO, group=_SAMPLING, choices=("auto", "transformers", "vllm", "server"),
    )  # fmt: skip
    min_rollouts: int = option(
        "rollouts that every item gets", default=32, group=_SAMPLING, metavar="N", least=1
    )
    max_rollouts: int = option(
        "rollouts that an item gets at most: sampling goes on in rounds, each twice as far, with "
        "the items that more can still decide; as many as --min-rollouts: all get the same",
        default=1024, group=_SAMPLING, metavar="N", least=1,
    )  # fmt: skip
    mean_rollouts: int = option(
        "rollouts of an item on average, at most, spent on the items where they decide most (0: as "
        "many as the items need, four to five times the default); twice as many change the label "
        "of one item in fifteen",
        default=64, group=_SAMPLING, metavar="N", least=0, was_default=True,
    )  # fmt: skip
    rollout_budget: int = option(
        "rollouts of the whole run in place of --mean-rollouts (0: as that says)",
        default=0, group=_SAMPLING, metavar="N", least=0,
    )  # fmt: skip
    temperature: float = option(
        "sampling temperature", default=1.0, group=_SAMPLING, metavar="T", above=0
    )
    top_p: float = option(
        "draw only from the most probable tokens that have this probability together (1: from all)",
        default=1.0, group=_SAMPLING, metavar="P", above=0, was_default=True,
    )  # fmt: skip
    top_k: int = option(
        "draw only from the K most probable tokens (0: from all)",
        default=0, group=_SAMPLING, metavar="K", least=0, was_default=True,
    )  # fmt: skip
    min_p: float = option(
        "draw only tokens that are at least P times as probable as the most probable one (0: all)",
        default=0.0, group=_SAMPLING, metavar="P", least=0, was_default=True,
    )  # fmt: skip
    max_tokens: int = option(
        "a completion is cut here and counts as wrong",
        default=1024, group=_SAMPLING, metavar="N", least=1,
    )  # fmt: skip
    stop_when_cut: bool = option(
        "stop after the first rollouts where more than half of them are cut at --max-tokens, and "
        "spend nothing more on a run that says little",
        default=False, group=_SAMPLING, changes_result=False,
    )  # fmt: skip
    seed: int = option(
        "the same seed gives the same rollouts here",
        default=0, group=_SAMPLING, metavar="N", least=0,
    )  # fmt: skip
    batch_tokens: int = option(
        "tokens held in memory at once (0: chosen for this machine)",
        default=0, group=_SAMPLING, metavar="N", least=0,
    )  # fmt: skip
    trust_remote_code: bool = option(
        "run Python code that comes with the model: only for authors you trust",
        default=False, group=_SAMPLING,
    )  # fmt: skip

    rollouts: tuple[str, ...] = option(
        "a file or folder of rollouts of these prompts, as a trainer or an evaluation wrote them, "
        "or the run folder of another `curate tag` or of `curate import`; repeatable; nothing is "
        "sampled",
        default=(), group=_LOGGED, metavar="PATH", was_default=True,
    )  # fmt: skip
    rollouts_by: str = option(
        "the policy that drew them, in words for the card (default: what the files tell of it)",
        default="", group=_LOGGED, metavar="TEXT", changes_result=False, was_default=True,
    )  # fmt: skip
    rollouts_temperature: float | None = option(
        "the temperature at which they were drawn (default: what the files tell, or unknown)",
        default=None, group=_LOGGED, metavar="T", least=0, changes_result=False, was_default=True,
    )  # fmt: skip
    rollouts_max_tokens: int | None = option(
        "where their completions were cut (default: what the files tell, or unknown)",
        default=None, group=_LOGGED, metavar="N", least=1, changes_result=False, was_default=True,
    )  # fmt: skip
    rollout_rewards: str = option(
        "their rewards: logged, as the files have them, or judged anew by --verifier",
        default="logged", group=_LOGGED, choices=("logged", "judged"), was_default=True,
    )  # fmt: skip
    correct_from: float = option(
        "the logged reward from which a rollout is correct",
        default=1.0, group=_LOGGED, metavar="R", was_default=True,
    )  # fmt: skip
    column: tuple[str, ...] = option(
        "what a column of the files is called, such as reward=accuracy; repeatable",
        default=(), group=_LOGGED, metavar="WHAT=NAME", was_default=True,
    )  # fmt: skip
    golds: str = option(
        "needed: an item has a gold answer that its verifier accepts; optional: it may have none, "
        "and none is checked, since the rewards are those of the files",
        default="needed", group=_LOGGED, choices=("needed", "optional"), was_default=True,
    )  # fmt: skip

    executor: str = option(
        "where rollouts are drawn and differentiated: in this process, or by the workers of a Ray "
        "cluster (docs/scaling.md)",
        default="local", group=_MACHINES, choices=("local", "ray"), changes_result=False,
    )  # fmt: skip
    ray_address: str = option(
        "the Ray cluster (default: RAY_ADDRESS, or one that is started here)",
        default="", group=_MACHINES, metavar="HOST:PORT", changes_result=False,
    )  # fmt: skip
    workers: int = option(
        "Ray workers, each with an engine of its own (0: as many as find room)",
        default=0, group=_MACHINES, metavar="N", least=0, changes_result=False,
    )  # fmt: skip
    ray: Mapping[str, Any] = option(
        "cpus_per_worker, gpus_per_worker and gpus_per_gradient_worker of Ray's workers",
        default=dict, changes_result=False,
    )  # fmt: skip
    shard: str = option(
        "do only the I-th of N parts of the items, in the folder shards/I-of-N of --run-dir; "
        "`curate merge` joins the parts (docs/scaling.md)",
        default="", group=_MACHINES, metavar="I/N", changes_result=False,
    )  # fmt: skip

    vllm: Mapping[str, Any] = option(
        "engine arguments of vLLM, as its documentation names them",
        default=dict, may_differ=(
            "tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend",
            "gpu_memory_utilization", "kv_cache_memory_bytes", "cpu_offload_gb", "enforce_eager",
            "max_model_len", "max_num_seqs", "max_num_batched_tokens",
        ),
    )  # fmt: skip

    base_url: tuple[str, ...] = option(
        "where a server answers, such as http://localhost:8000/v1; repeatable: requests go to the "
        "least loaded one",
        default=(), group=_SERVER, metavar="URL", changes_result=False,
    )  # fmt: skip
    served_model: str = option(
        "the servers' name for the model, where it is not that of --model",
        default="", group=_SERVER, metavar="NAME", or_number=True, changes_result=False,
    )  # fmt: skip
    api_key_env: str = option(
        f"the environment variable that holds the API key (default: {DEFAULT_KEY_VARIABLE}, if "
        "set); the key itself is never written anywhere",
        default="", group=_SERVER, metavar="VARIABLE", changes_result=False,
    )  # fmt: skip
    samples_per_request: int = option(
        "completions of a prompt that one request asks for, at most",
        default=16, group=_SERVER, metavar="N", least=1, changes_result=False,
    )  # fmt: skip
    request_seeds: str = option(
        "a seed of its own for each request (auto: where the servers take one; never: for vLLM on "
        "a CPU, which a seed can crash)",
        default=AUTO, group=_SERVER, choices=("auto", "never"), changes_result=False,
    )  # fmt: skip
    requests_in_flight: int = option(
        "requests at one server at a time, at most",
        default=128, group=_SERVER, metavar="N", least=1, changes_result=False,
    )  # fmt: skip
    request_seconds: float = option(
        "a request without an answer by then is sent again",
        default=600.0, group=_SERVER, metavar="S", above=0, changes_result=False,
    )  # fmt: skip

    verifier: str = option(
        "math, exact, numeric, choice, code, or your own MODULE:FUNCTION",
        default="math", group=_VERIFYING, metavar="NAME",
    )  # fmt: skip
    pass_threshold: float | None = option(
        "the reward of your own function from which on a completion is correct (default: the "
        "maximum, which is 1, or what the function's attribute max_reward says)",
        default=None, group=_VERIFYING, metavar="X", was_default=True,
    )  # fmt: skip
    verifier_field: str = option(
        "the column that tells each row's verifier, in a dataset of several kinds, such as "
        "open-instruct's dataset or verl's data_source; the table verifiers of --config maps it",
        default="", group=_VERIFYING, metavar="COLUMN", or_number=True, was_default=True,
    )  # fmt: skip
    verifiers: Mapping[str, Any] = option(
        "the verifier of each value of --verifier-field; '*' for all others",
        default=dict, was_default=True,
    )  # fmt: skip
    verifier_seconds: float = option(
        "CPU time one answer may take before it counts as not judged",
        default=5.0, group=_VERIFYING, metavar="S", above=0,
    )  # fmt: skip
    verifier_workers: int = option(
        "worker processes (0: one a core)", default=0, group=_VERIFYING, metavar="N", least=0
    )
    k: tuple[int, ...] = option(
        "write pass@k for these k",
        default=(1, 8), group=_VERIFYING, metavar="K", least=1, spread=True,
    )  # fmt: skip

    tau: float = option(
        "an item is hard below this pass rate",
        default=0.1, group=_TAGGING, metavar="RATE", above=0, below=1,
    )  # fmt: skip
    gold_prefixes: int = option(
        "rollouts of an item in which the gold is put in the place of the answer and scored: says "
        "much of items that are rarely right (0: none)",
        default=16, group=_TAGGING, metavar="N", least=0,
    )  # fmt: skip
    gradient_rollouts: int = option(
        "correct rollouts of an item that are differentiated, at most",
        default=16, group=_TAGGING, metavar="N", least=1,
    )  # fmt: skip
    gradient_wrong_rollouts: int = option(
        "wrong rollouts that are differentiated of an item that has a correct one, at most",
        default=4, group=_TAGGING, metavar="N", least=1,
    )  # fmt: skip
    gradient_dim: int = option(
        "dimensions that a gradient is projected to",
        default=4096, group=_TAGGING, metavar="DIM", least=1,
    )  # fmt: skip
    gradient_rank: int = option(
        "rank of the LoRA adapter", default=16, group=_TAGGING, metavar="R", least=1
    )
    gradient_alpha: float = option(
        "alpha of the LoRA adapter", default=32.0, group=_TAGGING, metavar="A", above=0
    )
    gradient_targets: tuple[str, ...] = option(
        "modules to differentiate, by name (auto: all linear layers and experts of the blocks)",
        default=("auto",), group=_TAGGING, metavar="NAME", spread=True,
    )  # fmt: skip
    group_size: int = option(
        "rollouts of a prompt in a step of the GRPO training that is planned",
        default=8, group=_TAGGING, metavar="G", least=2,
    )  # fmt: skip
    policy_loss: str = option(
        "how that training's loss weighs tokens and groups: grpo divides advantages by their "
        "deviation and averages tokens within a rollout, dapo averages them over the batch, "
        "dr_grpo does neither",
        default="grpo", group=_TAGGING, choices=("grpo", "dapo", "dr_grpo"),
    )  # fmt: skip
    horizon: float = option(HORIZON, default=1.0, group=_TAGGING, metavar="X", above=0)
    predictor: str = option(
        "take p_unlearnable and the constants of the forecast from this file of "
        "`curate calibrate`",
        default="", group=_TAGGING, metavar="FILE", changes_result=False,
    )  # fmt: skip

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str, **others: Any) -> Self:
        """Refuse what was a setting once, too; variables of the template may be a table."""
        for key in RETIRED_SETTINGS & values.keys():
            raise UsageError(
                f"{where}: {key!r} is no setting any more: tags go by the forecast "
                "(docs/forecast.md); leave it out"
            )
        variables = values.get("chat_template_kwargs")
        if isinstance(variables, Mapping):
            values = {**values, "chat_template_kwargs": json.dumps(dict(variables), default=str)}
        return super().from_mapping(values, where, **others)

    def __post_init__(self) -> None:
        """Check every value that can be wrong by itself."""
        super().__post_init__()
        if self.max_rollouts < self.min_rollouts:
            raise UsageError(
                f"--max-rollouts is {self.max_rollouts}, below --min-rollouts "
                f"{self.min_rollouts}; give --max-rollouts {self.min_rollouts} or more"
            )
        if 0 < self.rollout_budget < self.min_rollouts:
            raise UsageError(
                f"--rollout-budget is {self.rollout_budget}, below --min-rollouts "
                f"{self.min_rollouts}, which every item gets; leave it out, or give more"
            )
        for name, value in (("--top-p", self.top_p), ("--min-p", self.min_p)):
            if value > 1:
                raise UsageError(f"{name} is {value:g}; it must be at most 1")
        _ = self.chat_variables
        if self.date:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError as error:
                raise UsageError(
                    f"--date is {self.date!r}; it must be a day as 2026-01-31"
                ) from error
        if len(set(self.k)) < len(self.k):
            raise UsageError(f"--k is {list(self.k)}; it must be different numbers")
        self._check_servers()
        self._check_verifiers()
        self._check_rollouts()
        for name, value in self.ray.items():
            if name not in _RAY_SETTINGS:
                raise UsageError(
                    f"[ray] {name}: unknown setting; known: {', '.join(_RAY_SETTINGS)}"
                )
            if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
                raise UsageError(f"[ray] {name} is {value!r}; it must be a number, at least 0")
        for name in self.vllm:
            if name in _NOT_FOR_VLLM:
                raise UsageError(f"[vllm] {name}: curate sets this itself; leave it out")

    @property
    def chat_variables(self) -> dict[str, Any]:
        """The variables that `chat_template_kwargs` names.

        Raises:
            UsageError: it is no JSON object, or names what is set here.
        """
        if not self.chat_template_kwargs:
            return {}
        said = f"--chat-template-kwargs is {self.chat_template_kwargs[:80]!r}"
        try:
            variables = json.loads(self.chat_template_kwargs)
        except ValueError as error:
            raise UsageError(f"{said}, which is no JSON: {error}") from error
        if not isinstance(variables, dict):
            raise UsageError(f'{said}; it must be a JSON object, such as {{"name": true}}')
        for name in variables:
            if name in _NOT_FOR_TEMPLATES:
                raise UsageError(f"--chat-template-kwargs: curate sets {name} itself; leave it out")
        return variables

    @property
    def has_policy(self) -> bool:
        """Whether a model takes part: rollouts that exist can do without one, for pass rates."""
        return bool(self.model) or not self.rollouts

    @property
    def has_own_rewards(self) -> bool:
        """Whether a user's own function gives the rewards, which may be other numbers than 0, 1."""
        names = (self.verifier, *self.verifiers.values())
        return any(":" in str(name) for name in names)

    def without_rollouts(self) -> Self:
        """The same settings for a run that samples."""
        return self.replace(**{name: each.default for name, each in _logged().items()})

    def _check_rollouts(self) -> None:
        # Earlier configurations name one path, or none as "".
        object.__setattr__(self, "rollouts", tuple(path for path in self.rollouts if path))
        if not self.rollouts:
            for name, setting in _logged().items():
                if getattr(self, name) != setting.default:
                    flag = setting.flags[-1]
                    raise UsageError(
                        f"{flag} is about rollouts that exist: name their files with --rollouts "
                        f"PATH, or leave {flag} out"
                    )
            return
        if self.shard or self.executor != "local":
            raise UsageError("--rollouts samples nothing: leave out --shard and --executor ray")
        if self.rollout_rewards == "judged":
            for name in ("correct_from", "golds"):
                if getattr(self, name) != _logged()[name].default:
                    flag = _logged()[name].flags[-1]
                    raise UsageError(
                        f"{flag} is for rewards as logged: leave it out, or --rollout-rewards "
                        "judged"
                    )

    def _check_verifiers(self) -> None:
        if self.verifiers and not self.verifier_field:
            raise UsageError("[verifiers] needs --verifier-field, the column whose values it names")
        for value, name in self.verifiers.items():
            if not isinstance(name, str) or not name:
                raise UsageError(f"[verifiers] {value} is {name!r}; it must be a verifier's name")

    def _check_servers(self) -> None:
        for url in self.base_url:
            check_base_url(url)
        if self.engine == "server" and not self.base_url:
            raise UsageError("--engine server needs --base-url http://HOST:PORT/v1")
        if self.base_url and self.engine != "server":
            raise UsageError(f"--base-url is for --engine server; the engine is {self.engine}")
        check_key_variable(self.api_key_env)


def _logged() -> dict[str, Setting]:
    """The settings that are about rollouts that exist."""
    known = declared_in(TagConfig)
    return {n: each for n, each in known.items() if each.declared["group"] == _LOGGED}


def config_from_mapping(values: Mapping[str, Any], where: str) -> TagConfig:
    """Build a configuration from plain values, as TOML and keyword arguments give them.

    Raises:
        UsageError: an unknown key (names the nearest known one) or a value of the wrong type.
    """
    return TagConfig.from_mapping(values, where)


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read a TOML file of settings.

    Raises:
        UsageError: no such file, or not TOML (names the position).
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error


def changed_settings(old: Mapping[str, Any], new: TagConfig) -> list[str]:
    """Name each setting that differs in a way that would change results, as `name: old -> new`."""
    changed = []
    for name, setting in declared_in(TagConfig).items():
        default = {} if setting.kind is Mapping else setting.default
        known = {name: default} if setting.declared.get("was_default") else {}
        known |= old
        if name not in known or not setting.declared.get("changes_result", True):
            continue
        value, before = getattr(new, name), known[name]
        value = list(value) if isinstance(value, tuple) else value
        if setting.is_many:  # One that may be several now, and could not in an earlier version.
            before = [before] * bool(before) if isinstance(before, str) else list(before)
        if isinstance(value, dict) and isinstance(before, dict):
            may_differ = setting.declared.get("may_differ", ())
            before, value = (
                {k: v for k, v in table.items() if k not in may_differ} for table in (before, value)
            )
        if before != value:
            unset = setting.declared.get("unset")
            told = (unset if unset and not each else shown(each) for each in (before, value))
            changed.append(f"{name}: {' -> '.join(told)}")
    return changed


def shown(value: Any) -> str:
    """A value for an error; of a long text its beginning and its length."""
    if isinstance(value, str) and len(value) > _MOST_SHOWN:
        return f"{value[:_MOST_SHOWN]!r}... ({len(value):,} characters)"
    return repr(value)
