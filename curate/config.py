"""The settings of `curate tag`: one frozen dataclass, from defaults, then TOML, then flags."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from curate.addresses import DEFAULT_KEY_VARIABLE, check_base_url, check_key_variable
from curate.errors import UsageError

AUTO = "auto"
_TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}

# Arguments of vLLM's engine that have settings here, that would change what is sampled behind the
# run's back, that would open pickled weights, or that are secret and would end in config.toml.
_NOT_FOR_VLLM = frozenset({
    "model", "model_weights", "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "revision",
    "code_revision", "tokenizer_revision", "trust_remote_code", "dtype", "seed", "load_format",
    "generation_config", "override_generation_config", "runner", "convert", "hf_token",
    "data_parallel_size",
})  # fmt: skip


def _setting(default: Any, group: str, text: str, metavar: str | None = None, **more: Any) -> Any:
    metadata = {"group": group, "help": text, "metavar": metavar, **more}
    if default is dict:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TagConfig:
    """Everything that `curate tag` can be told; every field is an option and a TOML key.

    `group` and `help` in the metadata make the command line; a field of the group `tables` is a
    TOML table and no option. `changes_result=False` marks what may differ between two commands that
    continue the same run, `may_differ` such keys of a table. The dataset, the model, the target and
    the predictor may, because a run knows them by their content: a file that was moved is still the
    same.
    """

    dataset: str = _setting(
        "", "what", "a file (JSONL, JSON, CSV, Parquet), a folder saved by `datasets`, or a Hub id",
        changes_result=False,
    )  # fmt: skip
    model: str = _setting(
        "", "what", "a model folder, a Hub id (org/name@revision) or a .gguf file",
        changes_result=False,
    )  # fmt: skip
    out: str = _setting(
        "", "output", "the tagged file (default: DATASET.tagged.EXT here)", "FILE",
        changes_result=False,
    )  # fmt: skip
    run_dir: str = _setting(
        "", "output", "where the evidence is kept (default: runs/DATASET-MODEL)", "FOLDER",
        changes_result=False,
    )  # fmt: skip
    replace_columns: bool = _setting(
        False, "output", "replace tag columns that the dataset already has", changes_result=False
    )
    profile: bool = _setting(
        False, "output",
        "print where this command's time went, by stage: seconds, share and rate, the time outside "
        "any stage (start, imports) as 'overhead'; also in manifest.json as 'profile'",
        changes_result=False,
    )  # fmt: skip

    split: str = _setting("train", "dataset", "the split of a Hub dataset or datasets folder")
    subset: str = _setting("", "dataset", "the configuration of a Hub dataset", "NAME")
    prompt_field: str = _setting(
        "", "dataset", "the column of the prompt, when it is not recognised", "COLUMN"
    )
    answer_field: str = _setting(
        "", "dataset", "the column of the gold answer; dots reach inside objects", "COLUMN"
    )
    limit: int = _setting(0, "dataset", "probe only the first N rows (0: all)", "N")
    instruction: str = _setting(
        AUTO, "dataset",
        "text added to the prompt; 'auto' asks for step-by-step reasoning and \\boxed{} where the "
        "prompt is plain text and adds nothing to a conversation; '' adds nothing", "TEXT",
    )  # fmt: skip

    target: str = _setting(
        "", "dataset",
        "items of the evaluation that you train for, in any form that DATASET has: each item gets "
        "its similarity to them", "FILE", changes_result=False,
    )  # fmt: skip

    engine: str = _setting(
        AUTO, "sampling",
        "what draws the rollouts (auto: vllm where it and a CUDA GPU are there, else transformers)",
        choices=("auto", "transformers", "vllm", "server"),
    )  # fmt: skip
    min_rollouts: int = _setting(32, "sampling", "rollouts that every item gets", "N")
    max_rollouts: int = _setting(
        1024, "sampling",
        "rollouts that an item gets at most: sampling goes on in rounds, each twice as far, with "
        "the items that more can still decide; as many as --min-rollouts: all get the same", "N",
    )  # fmt: skip
    rollout_budget: int = _setting(
        0, "sampling",
        "rollouts of the whole run, spent where they decide most (0: as many as the items need)",
        "N",
    )  # fmt: skip
    temperature: float = _setting(1.0, "sampling", "sampling temperature", "T")
    max_tokens: int = _setting(
        1024, "sampling", "a completion is cut here and counts as wrong", "N"
    )
    seed: int = _setting(0, "sampling", "the same seed gives the same rollouts here", "N")
    batch_tokens: int = _setting(
        0, "sampling", "tokens held in memory at once (0: chosen for this machine)", "N"
    )
    trust_remote_code: bool = _setting(
        False, "sampling", "run Python code that comes with the model: only for authors you trust"
    )

    executor: str = _setting(
        "local", "machines",
        "where rollouts are drawn and differentiated: in this process, or by the workers of a Ray "
        "cluster (docs/scaling.md)", choices=("local", "ray"), changes_result=False,
    )  # fmt: skip
    ray_address: str = _setting(
        "", "machines", "the Ray cluster (default: RAY_ADDRESS, or one that is started here)",
        "HOST:PORT", changes_result=False,
    )  # fmt: skip
    workers: int = _setting(
        0, "machines", "Ray workers, each with an engine of its own (0: as many as find room)",
        "N", changes_result=False,
    )  # fmt: skip
    ray: Mapping[str, Any] = _setting(
        dict, "tables", "cpus_per_worker and gpus_per_worker of a Ray worker",
        changes_result=False,
    )  # fmt: skip
    shard: str = _setting(
        "", "machines",
        "do only the I-th of N parts of the items, in the folder shards/I-of-N of --run-dir; "
        "`curate merge` joins the parts (docs/scaling.md)", "I/N", changes_result=False,
    )  # fmt: skip

    vllm: Mapping[str, Any] = _setting(
        dict, "tables", "engine arguments of vLLM, as its documentation names them",
        may_differ=(
            "tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend",
            "gpu_memory_utilization", "kv_cache_memory_bytes", "cpu_offload_gb", "enforce_eager",
            "max_model_len", "max_num_seqs", "max_num_batched_tokens",
        ),
    )  # fmt: skip

    base_url: tuple[str, ...] = _setting(
        (), "server",
        "where a server answers, such as http://localhost:8000/v1; repeatable: requests go to the "
        "least loaded one", "URL", changes_result=False, repeatable=True,
    )  # fmt: skip
    served_model: str = _setting(
        "", "server", "the servers' name for the model, where it is not that of --model",
        "NAME", changes_result=False,
    )  # fmt: skip
    api_key_env: str = _setting(
        "", "server",
        f"the environment variable that holds the API key (default: {DEFAULT_KEY_VARIABLE}, if "
        "set); the key itself is never written anywhere", "VARIABLE", changes_result=False,
    )  # fmt: skip
    samples_per_request: int = _setting(
        16, "server", "completions of a prompt that one request asks for, at most", "N",
        changes_result=False,
    )  # fmt: skip
    request_seeds: str = _setting(
        AUTO, "server",
        "a seed of its own for each request (auto: where the servers take one; never: for vLLM on "
        "a CPU, which a seed can crash)", choices=("auto", "never"), changes_result=False,
    )  # fmt: skip
    requests_in_flight: int = _setting(
        128, "server", "requests at one server at a time, at most", "N", changes_result=False
    )
    request_seconds: float = _setting(
        600.0, "server", "a request without an answer by then is sent again", "S",
        changes_result=False,
    )  # fmt: skip

    verifier: str = _setting(
        "math", "verifying", "math, exact, numeric, choice, or your own MODULE:FUNCTION", "NAME"
    )
    verifier_seconds: float = _setting(
        5.0, "verifying", "CPU time one answer may take before it counts as not judged", "S"
    )
    verifier_workers: int = _setting(0, "verifying", "worker processes (0: one a core)", "N")
    k: tuple[int, ...] = _setting((1, 8), "verifying", "write pass@k for these k", "K")

    tau: float = _setting(0.1, "tagging", "an item is hard below this pass rate", "RATE")
    gold_prefixes: int = _setting(
        16, "tagging",
        "rollouts of an item in which the gold is put in the place of the answer and scored: says "
        "much of items that are rarely right (0: none; not on the workers of --executor ray)", "N",
    )  # fmt: skip
    gradient_rollouts: int = _setting(
        16, "tagging", "correct rollouts of an item that are differentiated, at most", "N"
    )
    gradient_wrong_rollouts: int = _setting(
        4, "tagging",
        "wrong rollouts that are differentiated of an item that has a correct one, at most", "N",
    )  # fmt: skip
    gradient_dim: int = _setting(
        4096, "tagging", "dimensions that a gradient is projected to", "DIM"
    )
    gradient_rank: int = _setting(16, "tagging", "rank of the LoRA adapter", "R")
    gradient_alpha: float = _setting(32.0, "tagging", "alpha of the LoRA adapter", "A")
    gradient_targets: tuple[str, ...] = _setting(
        ("auto",), "tagging", "modules to differentiate, by name (auto: all linear layers)", "NAME"
    )
    group_size: int = _setting(
        8, "tagging", "rollouts of a prompt in a step of the GRPO training that is planned", "G"
    )
    policy_loss: str = _setting(
        "grpo", "tagging",
        "how that training's loss weighs tokens and groups: grpo divides advantages by their "
        "deviation and averages tokens within a rollout, dapo averages them over the batch, "
        "dr_grpo does neither", choices=("grpo", "dapo", "dr_grpo"),
    )  # fmt: skip
    horizon: float = _setting(
        1.0, "tagging",
        "length of that training: 1 is one that solves most easy items, 2 one twice as long", "X",
    )  # fmt: skip
    predictor: str = _setting(
        "", "tagging",
        "take p_unlearnable and the constants of the forecast from this file of "
        "`curate calibrate`", "FILE", changes_result=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check every value that can be wrong by itself."""
        for each in dataclasses.fields(self):
            choices = each.metadata.get("choices")
            if choices:
                value = getattr(self, each.name)
                _require(value in choices, each.name, value, " or ".join(choices))
        for name in (
            "min_rollouts", "max_rollouts", "max_tokens",
            "gradient_rollouts", "gradient_wrong_rollouts", "gradient_dim", "gradient_rank",
            "samples_per_request", "requests_in_flight",
        ):  # fmt: skip
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in (
            "limit", "seed", "batch_tokens", "verifier_workers", "rollout_budget", "workers",
            "gold_prefixes",
        ):  # fmt: skip
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _require(self.group_size >= 2, "group_size", self.group_size, "at least 2")
        if self.max_rollouts < self.min_rollouts:
            raise UsageError(
                f"--max-rollouts is {self.max_rollouts}, below --min-rollouts "
                f"{self.min_rollouts}; give --max-rollouts {self.min_rollouts} or more"
            )
        if 0 < self.rollout_budget < self.min_rollouts:
            raise UsageError(
                f"--rollout-budget is {self.rollout_budget}, below --min-rollouts "
                f"{self.min_rollouts}, which every item gets; 0 sets no limit"
            )
        for name in (
            "temperature", "verifier_seconds", "gradient_alpha", "request_seconds", "horizon",
        ):  # fmt: skip
            value = getattr(self, name)
            _require(0 < value < math.inf, name, value, "a number above 0")
        _require(0 < self.tau < 1, "tau", self.tau, "between 0 and 1")
        _require(all(k >= 1 for k in self.k), "k", list(self.k), "at least 1 each")
        _require(len(set(self.k)) == len(self.k), "k", list(self.k), "different numbers")
        self._check_servers()
        for name, value in self.ray.items():
            if name not in ("cpus_per_worker", "gpus_per_worker"):
                raise UsageError(
                    f"[ray] {name}: unknown setting; known: cpus_per_worker, gpus_per_worker"
                )
            if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
                raise UsageError(f"[ray] {name} is {value!r}; it must be a number, at least 0")
        for name in self.vllm:
            if name in _NOT_FOR_VLLM:
                raise UsageError(f"[vllm] {name}: curate sets this itself; leave it out")

    def _check_servers(self) -> None:
        for url in self.base_url:
            check_base_url(url)
        if self.engine == "server" and not self.base_url:
            raise UsageError("--engine server needs --base-url http://HOST:PORT/v1")
        if self.base_url and self.engine != "server":
            raise UsageError(f"--base-url is for --engine server; the engine is {self.engine}")
        check_key_variable(self.api_key_env)

    def replace(self, **changes: Any) -> TagConfig:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        option = name.replace("_", "-")
        raise UsageError(f"--{option} is {value!r}; it must be {wanted}")


RETIRED_SETTINGS = frozenset({"similarity_threshold"})
"""Settings of earlier versions, which the folders of their runs still name."""


def config_from_mapping(values: Mapping[str, Any], where: str) -> TagConfig:
    """Build a configuration from plain values, as TOML and keyword arguments give them.

    Raises:
        UsageError: an unknown key (names the nearest known one) or a value of the wrong type.
    """
    types_by_name = typing.get_type_hints(TagConfig)
    checked = {}
    for key, value in values.items():
        if key in RETIRED_SETTINGS:
            raise UsageError(
                f"{where}: {key!r} is no setting any more: tags go by the forecast "
                "(docs/forecast.md); leave it out"
            )
        if key not in types_by_name:
            near = difflib.get_close_matches(key, types_by_name, n=1)
            hint = (
                f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(types_by_name)}"
            )
            raise UsageError(f"{where}: unknown setting {key!r}{hint}")
        checked[key] = _convert(value, types_by_name[key], f"{where}: {key}")
    return TagConfig(**checked)


def _convert(value: Any, wanted: Any, where: str) -> Any:
    if typing.get_origin(wanted) is Mapping:
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} is {value!r}; it must be a table: [name], then key = value")
        return dict(value)
    if isinstance(wanted, types.GenericAlias):  # tuple[item, ...]
        item = typing.get_args(wanted)[0]
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(each, item, where) for each in values)
    if (
        wanted is str
        and isinstance(value, str | Path | int | float)
        and not isinstance(value, bool)
    ):
        return str(value)
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise UsageError(f"{where} is {value!r}; it must be {_TYPE_NAMES[wanted]}")
    return value


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


def config_to_toml(config: TagConfig) -> str:
    """Write every setting as TOML; `config_from_mapping` on it gives the same configuration."""
    values = dataclasses.asdict(config)
    return tomli_w.dumps({k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})


def changed_settings(old: Mapping[str, Any], new: TagConfig) -> list[str]:
    """Name each setting that differs in a way that would change results, as `name: old -> new`."""
    changed = []
    for each in dataclasses.fields(TagConfig):
        if not each.metadata.get("changes_result", True):
            continue
        value = getattr(new, each.name)
        value = list(value) if isinstance(value, tuple) else value
        if each.name not in old:
            continue
        before = old[each.name]
        if isinstance(value, dict) and isinstance(before, dict):
            may_differ = each.metadata.get("may_differ", ())
            before, value = (
                {k: v for k, v in table.items() if k not in may_differ} for table in (before, value)
            )
        if before != value:
            changed.append(f"{each.name}: {before!r} -> {value!r}")
    return changed
