"""The engine of a run: which one draws its rollouts and why, and what is loaded when."""

from __future__ import annotations

import gc
import importlib.util
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from curate.config import AUTO, TagConfig
from curate.progress import say
from probes.engines.base import Engine, Truncation
from probes.engines.rehearsal import rehearse_gradients, rehearse_sampling
from probes.engines.transformers import TransformersEngine
from probes.gradients.lora import GradientProbe
from probes.gradients.tap import Adapter
from probes.gradients.targets import coverage, find_targets
from probes.models.checkpoints import Checkpoint, has_tokenizer
from probes.models.files import ModelFiles
from probes.models.load import Policy, PolicyOutline, choose_device, choose_dtype, device_name

if TYPE_CHECKING:
    from probes.engines.vllm import VllmEngine

# Engine arguments of vLLM that multiply to the GPUs that it takes.
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
TRANSFORMERS, VLLM, SERVER = "transformers", "vllm", "server"


def choose_engine(config: TagConfig) -> tuple[str, str]:
    """Name the engine of a run, and say why it is this one.

    `auto` is vLLM where both it and a CUDA GPU are there, else transformers.
    """
    if config.engine != AUTO:
        return config.engine, "asked for"
    if not torch.cuda.is_available():
        return TRANSFORMERS, "there is no GPU for vLLM"
    if importlib.util.find_spec("vllm") is None:
        return TRANSFORMERS, "vLLM, which is faster on this GPU, is not installed"
    return VLLM, "it is installed, and there is a GPU for it"


@dataclass(frozen=True)
class ModelFacts:
    """What the stages before sampling must know of a policy.

    Attributes:
        context_length: in tokens, of prompt and completion together.
        embeddings: tokens that it has an embedding of.
        covered, left_out: how much of its blocks is differentiated: `Coverage`.
    """

    context_length: int
    embeddings: int
    covered: float
    left_out: tuple[str, ...]


class LoadedModel:
    """What this process has loaded of a model: an engine to sample, a policy to differentiate.

    Each is loaded when it is first asked for. Where the engine has weights of its own, engine and
    policy take turns on a GPU, since each leaves no room for the other. A turn costs loading anew:
    twice a round of sampling, of which a run has six at most with its usual settings. (vLLM's sleep
    mode would make a turn faster; it keeps another copy of the weights in main memory and asks for
    an allocator that not every GPU has.)

    Args:
        config: the settings of the run.
        files: its model.
        checkpoint: how the files are loaded, where they are a checkpoint of another model.
    """

    def __init__(
        self, config: TagConfig, files: ModelFiles, checkpoint: Checkpoint | None = None
    ) -> None:
        self.config = config
        self.files = files
        self._checkpoint = checkpoint or Checkpoint(files)
        self.choice, self.why = choose_engine(config)
        self._take_turns = choose_device().type == "cuda"
        self.longest_prompt = 0
        """Tokens of the longest prompt that will be sampled, once it is known."""
        self._engine: Engine | None = None
        self._outline: PolicyOutline | None = None
        self._policy: Policy | None = None
        self._probe: GradientProbe | None = None

    def engine(self) -> Engine:
        """Give the engine, ready to sample.

        Raises:
            UsageError: it cannot run the model, or an option of its own is wrong.
        """
        if self._engine is None:
            self._engine = self._new_engine()
            say(f"engine {self.choice}: {self.why}; {self.where()}")
            self._say_idle_gpus()
            if not getattr(self._engine, "is_plain", True):
                say(
                    "the model's layers are not attention alone: it is sampled by transformers' "
                    "generate, a prompt at a time; --engine vllm is faster where it runs"
                )
        if self.choice == VLLM:
            cast("VllmEngine", self._engine).longest_prompt = self.longest_prompt
        if self._take_turns and self._engine.has_own_weights and self._policy:
            self._policy = self._probe = None
            gc.collect()
            torch.cuda.empty_cache()
        return self._engine

    def outline(self) -> Policy | PolicyOutline:
        """Tell what the policy is: its modules, tokenizer, end tokens and context length.

        Where the weights are not loaded anyway, they stay so.

        Raises:
            UsageError: the model cannot be loaded.
        """
        if self._policy:
            return self._policy
        if self._outline is None:
            self._outline = self._checkpoint.outline(
                trust_remote_code=self.config.trust_remote_code
            )
        return self._outline

    def check(self, adapter: Adapter) -> ModelFacts:
        """Show a wrong option, or a model that cannot be probed, before anything is spent.

        Raises:
            UsageError: the engine cannot run the model, or it cannot be sampled or differentiated.
        """
        self.engine()
        outline = self.outline()
        find_targets(outline.model, adapter.targets)
        self.check_sampling()
        rehearse_gradients(self.files, outline, adapter)
        found = coverage(outline.model, adapter.targets)
        return ModelFacts(
            context_length=outline.context_length,
            embeddings=int(outline.model.get_input_embeddings().weight.shape[0]),
            covered=found.share,
            left_out=found.left_out,
        )

    def check_sampling(self) -> None:
        """Show an option that is wrong for the engine, or a model that cannot be sampled.

        Raises:
            UsageError: there is one.
        """
        self.engine()
        if self.choice == TRANSFORMERS:
            # Not with the run's engine, which would remember it.
            rehearse_sampling(self.policy(), self._transformers_engine(max_tokens=2))

    def policy(self) -> Policy:
        """Give the policy.

        Raises:
            UsageError: the model cannot be loaded.
        """
        if self._take_turns and self._engine and self._engine.has_own_weights:
            self._engine.close()
        if self._policy is None:
            say(f"loading {self.files.name}")
            self._policy = self._checkpoint.load(trust_remote_code=self.config.trust_remote_code)
        return self._policy

    def probe(self, adapter: Adapter) -> GradientProbe:
        """Give the policy's gradients with respect to an adapter."""
        policy = self.policy()
        if self._probe is None or self._probe.adapter != adapter:
            self._probe = GradientProbe(policy, adapter)
        return self._probe

    def close(self) -> None:
        """Free everything; what is asked for again is loaded again."""
        if self._engine:
            self._engine.close()
        self._engine = self._policy = self._probe = None

    def _say_idle_gpus(self) -> None:
        """Say so where a machine has more GPUs than this process uses."""
        there = torch.cuda.device_count() if self._take_turns else 0
        used = 1
        if self.choice == VLLM:
            used = math.prod(int(self.config.vllm.get(name, 1)) for name in _PARALLEL)
        elif self._policy:
            places = getattr(self._policy.model, "hf_device_map", {})
            used = max(len(set(map(str, places.values()))), 1)
        if self.choice != SERVER and there > used and self.config.executor == "local":
            has_ray = importlib.util.find_spec("ray") is not None
            say(
                f"warning: this machine has {there} GPUs, of which {used} "
                f"{'is' if used == 1 else 'are'} used; add --executor ray to use the others too"
                + ("" if has_ray else " (pip install 'rl-curate[ray]')")
            )

    def where(self) -> str:
        """Tell where the engine draws, and in what precision."""
        if self.choice == SERVER:
            return f"at {', '.join(self.config.base_url)}"
        device = choose_device()
        dtype = str(choose_dtype(device)).removeprefix("torch.")
        return f"on {device_name(device)}, in {dtype}"

    def _new_engine(self) -> Engine:
        config = self.config
        if self.choice == VLLM:
            from probes.engines.vllm import VllmEngine

            return VllmEngine(
                self.files,
                seed=config.seed,
                temperature=config.temperature,
                truncation=Truncation(config.top_p, config.top_k, config.min_p),
                max_tokens=config.max_tokens,
                options=config.vllm,
                trust_remote_code=config.trust_remote_code,
                # A tokenizer of its own names end tokens by the exported folder, GGUF files' too.
                tokenizer=None if has_tokenizer(self.files) else self._checkpoint.tokenizer,
            )
        if self.choice == SERVER:
            from probes.engines.server import ServerEngine
            from probes.servers.server import read_api_key

            return ServerEngine(
                self.files,
                self.outline(),
                config.base_url,
                api_key=read_api_key(config.api_key_env),
                seed=config.seed,
                temperature=config.temperature,
                truncation=Truncation(config.top_p, config.top_k, config.min_p),
                max_tokens=config.max_tokens,
                served_model=config.served_model,
                samples_per_request=config.samples_per_request,
                request_seeds=config.request_seeds == AUTO,
                in_flight=config.requests_in_flight,
                timeout_seconds=config.request_seconds,
            )
        return self._transformers_engine(config.max_tokens)

    def _transformers_engine(self, max_tokens: int) -> TransformersEngine:
        config = self.config
        return TransformersEngine(
            self.policy(),
            seed=config.seed,
            temperature=config.temperature,
            truncation=Truncation(config.top_p, config.top_k, config.min_p),
            max_tokens=max_tokens,
            batch_tokens=config.batch_tokens or None,
        )
