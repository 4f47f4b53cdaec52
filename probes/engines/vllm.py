"""Sample rollouts with vLLM.

One request a prompt, with all its samples: vLLM computes the prompt once and shares it. Token ids
go in and come out; vLLM neither renders nor tokenizes nor decodes. Sampling is from the policy's
own distribution at the temperature asked for: nothing is cut from it unless asked for, nothing
penalised, and the defaults in a model's generation config, which vLLM would otherwise apply, are
left out.

The engine core runs in this process: so its errors are ours to tell. Its workers are processes on a
GPU, and with tensor parallelism; they end when this one does. On a CPU there is no other process.

Requests are handed to vLLM some way ahead of what it decodes, so that it never runs short.

vLLM draws from random states that all requests in a batch share; a seed for each request fails on
a CPU. So the state is set anew whenever requests are handed to it, from the seed and all requests
that this call of `sample` has handed over so far. A rollout is only drawn from states that its own
request went into: whoever calls again for what is missing has other requests from the first missing
one on, and so other states than those that the kept rollouts were drawn from. Shards share no
random numbers, before a kill and after; but which rollout gets which number depends on how vLLM
batches them and on where a run was taken up again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curate.errors import RunError, UsageError
from curate.progress import say
from curate.settings import did_you_mean
from probes.engines.base import (
    WHOLE,
    RequestStream,
    Rollout,
    SampleRequest,
    Truncation,
    rollouts_to_add,
)
from probes.models.export import exported_folder
from probes.models.files import ModelFiles
from probes.models.load import choose_device, choose_dtype, eos_token_ids

_LOG_LEVEL = "VLLM_LOGGING_LEVEL"
_IS_VERBOSE = os.environ.get(_LOG_LEVEL, "ERROR") != "ERROR"
# Samples of one vLLM request, of which it allows 16,384.
_MOST_SAMPLES = 4096
# vLLM would raise a lower temperature to this one.
_LOWEST_TEMPERATURE = 0.01
# Room for sequences is made in steps of so many tokens.
_ROOM_STEP = 1024
# How long a GPU's memory may take to come back, and what may stay: PyTorch's context and its like.
_MEMORY_SECONDS = 60
_MEMORY_SLACK = 10**9
# vLLM's own share of a GPU's memory.
_UTILIZATION = 0.92
_RAW = "raw_logprobs"
# What vLLM and what it builds on raise where a model or option does not work, or memory runs out.
FAILURES = (
    *(ValueError, TypeError, RuntimeError, NotImplementedError, AssertionError, OSError),
    *(ImportError, LookupError, AttributeError, MemoryError),
)
# For whoever imports vLLM, and TRL does: no usage is reported to anyone, and errors are enough.
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault(_LOG_LEVEL, "ERROR")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


class VllmEngine:
    """Draws rollouts with vLLM on this machine; weights are loaded with the first requests.

    Args:
        files: the policy's.
        seed, temperature, truncation, max_tokens: of the sampling.
        options: vLLM's engine arguments that the user chose.
        trust_remote_code: run Python code that comes with the model.
        tokenizer: names end tokens, where the files hold none.
        dtype: precision of the weights; the one that the policy is loaded in where None.

    Raises:
        UsageError: vLLM is not installed, an option is wrong, or it cannot run the model.
    """

    name = "vllm"
    has_own_weights = True

    def __init__(
        self,
        files: ModelFiles,
        *,
        seed: int,
        temperature: float,
        max_tokens: int,
        truncation: Truncation = WHOLE,
        options: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        tokenizer: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.files = files
        self.seed = seed
        self.stops_at = math.inf
        self.temperature = temperature
        self.truncation = truncation
        self.max_tokens = max_tokens
        self.longest_prompt = 0
        """Tokens of the longest prompt that will come, where it is known."""
        self._llm: Any = None
        self._free_before: int | None = None
        if temperature < _LOWEST_TEMPERATURE:
            raise UsageError(
                f"--temperature is {temperature}; vLLM samples at {_LOWEST_TEMPERATURE} or more"
            )
        vllm = _import_vllm()
        self.version = vllm.__version__
        folder = exported_folder(files)
        self._stop_token_ids = sorted(
            eos_token_ids(folder, trust_remote_code=trust_remote_code, tokenizer=tokenizer)
        )
        self.options = {**_defaults(vllm), **(options or {})}
        # vLLM's own default: of the model, before temperature. Another mode sums something else.
        self._is_scoring = self.options.get("logprobs_mode", _RAW) == _RAW
        _check_names(vllm, self.options)
        dtype = dtype or choose_dtype(choose_device())
        self._arguments: dict[str, Any] = {
            **self.options,
            "model": str(folder),
            "skip_tokenizer_init": True,
            "trust_remote_code": trust_remote_code,
            "dtype": str(dtype).removeprefix("torch."),
            "load_format": "safetensors",
            # NumPy takes no larger one. What is drawn goes by `_derived_seed`.
            "seed": seed % 2**32,
            # vLLM's own defaults, not those of the model's generation config.
            "generation_config": "vllm",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        try:
            with quiet(), _own_process_kept():
                found = vllm.EngineArgs(**self._arguments).create_engine_config()
        except FAILURES as error:
            chosen = ", ".join(f"{name} = {value!r}" for name, value in (options or {}).items())
            raise UsageError(
                f"vLLM cannot run {files.name} with [vllm] {chosen or 'empty'}: "
                f"{reason_of(error)}{hint()}"
            ) from error
        self._most_room = int(found.model_config.max_model_len)

    def facts(self) -> dict[str, Any]:
        """Say what draws the rollouts, for the manifest."""
        return {
            "name": self.name,
            "version": self.version,
            "seed": self.seed,
            "options": self.options,
            "token_ids": True,
            "deterministic": False,
        }

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        """Yield every rollout asked for, prompt by prompt as they finish.

        Raises:
            RunError: there is no memory for the model or for one of the prompts, or vLLM failed.
        """
        stream, handed_over = RequestStream(requests), hashlib.sha256(f"{self.seed}".encode())
        lot = stream.take(1)
        if not lot:
            return
        llm = self._loaded(_longest(requests if isinstance(requests, Sequence) else lot))
        at_once: int = llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        waiting: dict[str, SampleRequest] = {}
        numbers = itertools.count()
        try:
            while time.monotonic() < self.stops_at:
                in_hand = llm.llm_engine.get_num_unfinished_requests()  # Each sample is one.
                in_hand += sum(request.samples for request in lot)
                lot += stream.take(rollouts_to_add(in_hand, at_once))
                # Of prompts so long nothing was known: they wait until vLLM can be loaded anew.
                if lot and not (waiting and self._is_too_small(llm, _longest(lot))):
                    llm = self._loaded(_longest(lot))
                    self._check_length(llm, _longest(lot))
                    with one_line_failures("sampling"):
                        state = _state_after(handed_over, lot)
                        llm.collective_rpc(_set_random_state, args=(state,))
                        for request in _of_allowed_size(lot):
                            number = str(next(numbers))
                            waiting[number] = request
                            self._add(llm, number, request)
                    lot = []
                if not waiting:
                    break
                with one_line_failures("sampling"):
                    outputs = llm.llm_engine.step()
                for output in outputs:
                    if output.finished:
                        yield from _rollouts(waiting.pop(output.request_id), output)
        finally:
            if waiting:
                llm.llm_engine.abort_request(list(waiting))

    def unfinished(self) -> None:
        """Unknown: only what is finished is asked for."""
        return None

    def close(self) -> None:
        """Shut vLLM down and free its weights and cache."""
        if self._llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        with quiet():
            cleanup_dist_env_and_memory()  # Collects garbage and empties the GPU's cache.
        if self._free_before is not None:
            _wait_for_memory(self._free_before)

    def _loaded(self, longest: int) -> Any:
        """Give vLLM with room for prompts of `longest` tokens and their completions."""
        room = self._room(max(longest, self.longest_prompt))
        if self._llm and self._is_too_small(self._llm, longest):
            self.close()  # A prompt longer than those before, of which nothing was known.
        if self._llm is None:
            say(f"loading {self.files.name} into vLLM")
            vllm = _import_vllm()
            _wait_for_room(float(self.options.get("gpu_memory_utilization", _UTILIZATION)))
            self._free_before = _free_memory()
            arguments = {**self._arguments, "max_model_len": room} if room else self._arguments
            try:
                with quiet(), _own_process_kept():
                    self._llm = vllm.LLM(**arguments)
            except FAILURES as error:
                raise RunError(
                    f"vLLM cannot load {self.files.name}: {reason_of(error)}{hint()}; how much "
                    "memory it takes is set by gpu_memory_utilization and kv_cache_memory_bytes "
                    "under [vllm]; the same command continues"
                ) from error
        return self._llm

    def _room(self, longest: int) -> int:
        """Tokens of a sequence that vLLM makes room for; 0 for what it chooses itself.

        For all that a model can take there may be no memory, as for 131,072 tokens of a Llama 3.
        """
        if "max_model_len" in self.options:
            return 0
        needed = -(-(longest + self.max_tokens) // _ROOM_STEP) * _ROOM_STEP
        return min(needed, self._most_room)

    def _is_too_small(self, llm: Any, longest: int) -> bool:
        """Whether more room could be made for prompts of `longest` tokens by loading anew."""
        room = self._room(max(longest, self.longest_prompt))
        return bool(room > llm.llm_engine.model_config.max_model_len)

    def _check_length(self, llm: Any, longest: int) -> None:
        """Refuse what vLLM would cut before --max-tokens, without saying so."""
        most = llm.llm_engine.model_config.max_model_len
        if longest + self.max_tokens > most:
            raise RunError(
                f"a prompt of {longest:,} tokens and --max-tokens {self.max_tokens:,} do not fit "
                f"into the {most:,} tokens that vLLM has room for; raise max_model_len or give it "
                "more memory (gpu_memory_utilization, kv_cache_memory_bytes) under [vllm]"
            )

    def _add(self, llm: Any, number: str, request: SampleRequest) -> None:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        wanted = SamplingParams(
            n=request.samples,
            temperature=self.temperature,
            top_p=self.truncation.top_p,
            top_k=self.truncation.top_k,
            min_p=self.truncation.min_p,
            repetition_penalty=1.0,
            max_tokens=self.max_tokens,
            # The policy's own end tokens and no others.
            ignore_eos=True,
            stop_token_ids=self._stop_token_ids,
            logprobs=0 if self._is_scoring else None,  # The drawn token's and no others.
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = tokens_input([int(token) for token in request.prompt_token_ids])
        llm.llm_engine.add_request(number, prompt, wanted)


def _import_vllm() -> Any:
    # In this process, so that a kill leaves nothing behind.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        with quiet():
            import vllm

            # Its parts are imported when they are first named.
            _ = vllm.EngineArgs, vllm.LLM
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(
            f"--engine vllm needs vLLM, which cannot be imported ({reason_of(error)}): "
            "pip install 'rl-curate[vllm]', or use --engine transformers"
        ) from error
    return vllm


def _defaults(vllm: Any) -> dict[str, Any]:
    """Engine arguments that are ours where the user names no other."""
    options: dict[str, Any] = {"enable_prefix_caching": True}
    if vllm.platforms.current_platform.is_cuda():
        # A child process gives all of its GPU's memory back when it ends; in this one some stays
        # (vllm#21073), and the gradients need it.
        options["distributed_executor_backend"] = "mp"
    if vllm.platforms.current_platform.is_cpu():
        options |= {
            # Compiling takes a C++ compiler and minutes.
            "enforce_eager": True,
            # Whole blocks of a prompt are shared among its samples; vLLM's 128 exceed most prompts.
            "block_size": 32,
        }
        if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            # vLLM would take nearly all memory, which gradients and verifiers need too.
            options["kv_cache_memory_bytes"] = 4 * 1024**3
    return options


def _memory() -> tuple[int, int] | None:
    """Free and all bytes of this process's GPU; None without one."""
    return torch.cuda.mem_get_info() if torch.cuda.is_available() else None


def _free_memory() -> int | None:
    found = _memory()
    return int(found[0]) if found else None


def _wait_for_room(share: float) -> None:
    """Wait for that share of a GPU's memory, which a worker that is ending may still hold.

    vLLM itself refuses to start; after a while it may say so.
    """
    until = time.monotonic() + _MEMORY_SECONDS
    while (found := _memory()) and found[0] < share * found[1] and time.monotonic() < until:
        time.sleep(0.2)


def _wait_for_memory(before: int) -> None:
    """Wait until a GPU's memory is free again, as it was before vLLM was loaded.

    A child process may hold it for a while after it was told to end.
    """
    until = time.monotonic() + _MEMORY_SECONDS
    while (free := _free_memory() or 0) < before - _MEMORY_SLACK:
        if time.monotonic() >= until:
            say(
                f"warning: vLLM left {(before - free) / 1e9:.1f} GB of the GPU's memory taken, "
                "or another process took it; what comes next may run out of memory"
            )
            return
        time.sleep(0.2)


def _check_names(vllm: Any, options: Mapping[str, Any]) -> None:
    known = [each.name for each in dataclasses.fields(vllm.EngineArgs)]
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(f"[vllm] {name}: vLLM {vllm.__version__} has no such option{hint}")


def _of_allowed_size(requests: Sequence[SampleRequest]) -> Iterator[SampleRequest]:
    for request in requests:
        end = request.first_sample + request.samples
        for first in range(request.first_sample, end, _MOST_SAMPLES):
            yield replace(request, first_sample=first, samples=min(_MOST_SAMPLES, end - first))


def _rollouts(request: SampleRequest, output: Any) -> Iterator[Rollout]:
    for completion in output.outputs:
        yield Rollout(
            item_id=request.item_id,
            sample=request.first_sample + completion.index,
            completion_token_ids=list(completion.token_ids),
            finish_reason=completion.finish_reason,
            log_probability=completion.cumulative_logprob,
        )


def _longest(requests: Iterable[SampleRequest]) -> int:
    return max(len(request.prompt_token_ids) for request in requests)


def _state_after(handed_over: Any, requests: Sequence[SampleRequest]) -> int:
    """A seed, 63 bits, for when these requests come after those that went into a hash before."""
    for request in requests:
        handed_over.update(f"\0{request.item_id}\0{request.first_sample}".encode())
    return int.from_bytes(handed_over.digest()[:8], "little") >> 1


def _set_random_state(worker: Any, seed: int) -> None:
    """Seed what vLLM's samplers draw from, in one of its workers."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # Every GPU's too.


@contextmanager
def one_line_failures(doing: str) -> Iterator[None]:
    """Tell in one line what vLLM fails with.

    Args:
        doing: what it does meanwhile, such as `sampling`.

    Raises:
        RunError: it fails.
    """
    try:
        yield
    except FAILURES as error:
        raise RunError(
            f"vLLM failed while {doing}: {reason_of(error)}{hint()}; the same command continues"
        ) from error


def reason_of(error: BaseException) -> str:
    """What an error says in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "validation error" in lines[0]:
        # pydantic's first line counts the errors; then come a field and what is wrong with it.
        lines = [" ".join(lines[1:3]) or lines[0]]
    return (lines or [type(error).__name__])[0]


def hint() -> str:
    """How to see more of it, where vLLM's log is not shown."""
    return "" if _IS_VERBOSE else f" ({_LOG_LEVEL}=INFO shows its log)"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what vLLM and its libraries print off the screen, unless its log level was set."""
    if _IS_VERBOSE:
        yield
        return
    streams = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.flush()
    # Some of it is printed by C++ code, past sys.stderr.
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    with Path(os.devnull).open("w") as nowhere:
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)


@contextmanager
def _own_process_kept() -> Iterator[None]:
    """Undo what vLLM changes in its process on a CPU: it takes that for its worker's alone."""
    preloaded, set_num_threads = os.environ.get("LD_PRELOAD"), torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        if preloaded is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preloaded
