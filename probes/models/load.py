"""Load the policy: a Hugging Face folder, a Hub id (`org/name@revision`) or a GGUF file.

Whatever the reference, the weights are first resolved to files on this machine, so that their hash
can be known before anything is loaded and the loading itself needs no network.
"""

from __future__ import annotations

import ctypes
import io
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from curate.errors import UsageError
from probes.models.attention import use_grouped_attention
from probes.models.files import ModelFiles
from probes.models.light import import_gguf

# What the readers of safetensors, GGUF and JSON raise on damaged files.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, IndexError, RuntimeError, ImportError),
    *(struct.error, SafetensorError),
)
_NO_MEMORY = (
    "can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
# Quantised weights that transformers expands while it loads them. Others stay as they are, and have
# no gradients, or wrong ones without a word (experts of gpt-oss by its kernels).
_EXPANDED = ("fp8", "mxfp4")
# Of a GPU's free memory, which weights may take where sampling and gradients need the rest.
HALF = 0.5


@dataclass(frozen=True)
class Policy:
    """A loaded policy, its parameters frozen, ready to sample from and to differentiate."""

    files: ModelFiles
    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    eos_token_ids: frozenset[int]
    context_length: int


@dataclass(frozen=True)
class PolicyOutline:
    """What is known of a policy without its weights.

    `model` has every module and no numbers: its parameters are on the meta device.
    """

    model: Any
    tokenizer: Any
    eos_token_ids: frozenset[int]
    context_length: int


def choose_device() -> torch.device:
    """Choose a GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Name a device for a reader."""
    return "CPU" if device.type == "cpu" else f"GPU ({torch.cuda.get_device_name(device)})"


def choose_dtype(device: torch.device) -> torch.dtype:
    """Choose bfloat16 where the hardware computes in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # Without AVX512-BF16 or AMX a CPU emulates bfloat16, which is slower than float32.
    from torch import cpu

    native = cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def describe_machine() -> dict[str, str]:
    """What models run on here: `device` (cpu, cuda), `name` of it, `dtype`."""
    device = choose_device()
    dtype = str(choose_dtype(device)).removeprefix("torch.")
    return {"device": device.type, "name": device_name(device), "dtype": dtype}


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # CUDA's own libraries, and errors that a device tells late, come as plain RuntimeErrors.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def load_policy(
    files: ModelFiles,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
    share: float = HALF,
) -> Policy:
    """Load model and tokenizer from files on this machine.

    Args:
        files: of the model.
        device, dtype: of its parameters; what suits this machine where None.
        trust_remote_code: run Python code that comes with the model.
        tokenizer: in place of the files' own, which need not have one then.
        share: of a GPU's free memory that the weights may take; a larger model is spread over all
            GPUs of the machine. The rest is for what is done with it.

    Raises:
        UsageError: the files are not a causal language model that transformers can load.
    """
    # transformers draws a bar per tensor, which is noise beside our own progress lines.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    device = device or choose_device()
    dtype = dtype or choose_dtype(device)
    options: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "local_files_only": True,
        **(_gguf_options(files.gguf_file) or {"use_safetensors": True}),
    }
    # Its bars and its report of a bad load fill the screen; ours is one line.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    # Reading a GGUF file draws a bar of its own that no setting turns off.
    quiet = redirect_stderr(io.StringIO()) if files.gguf_file else nullcontext()
    try:
        with quiet, _gguf_read_once(files):
            if tokenizer is None:
                tokenizer = load_tokenizer(files, trust_remote_code=trust_remote_code)
            if not files.gguf_file:
                options["config"] = AutoConfig.from_pretrained(
                    files.folder, trust_remote_code=trust_remote_code, local_files_only=True
                )
                _expand_quantized(files, options["config"])
            if device.type == "cuda":
                options["device_map"] = _placement(files, device, dtype, share)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                files.folder, dtype=dtype, output_loading_info=True, **options
            )
    except _UNREADABLE as error:
        raise UsageError(f"model {files.name} cannot be loaded: {_first_line(error)}") from error
    model, loading = loaded
    # transformers fills such tensors with random numbers and goes on.
    missing = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
    if missing:
        raise UsageError(
            f"model {files.name} cannot be loaded: its weights lack {len(missing)} tensors, or "
            f"have them in another shape; first: {missing[0]}"
        )
    if device.type == "cpu":
        _keep_little_freed_memory()
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if places & {"cpu", "disk"}:
        raise UsageError(
            f"model {files.name} does not fit into the {torch.cuda.device_count()} GPUs of this "
            "machine"
        )
    if "device_map" not in options:
        model.to(device)
    model.eval().requires_grad_(False)
    device = model.get_input_embeddings().weight.device
    if device.type == "cpu":
        use_grouped_attention(model)
    return Policy(
        files=files,
        model=model,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        eos_token_ids=_end_tokens(
            files.folder,
            files.gguf_file,
            model.config,
            tokenizer,
            getattr(model, "generation_config", None),
        ),
        context_length=_context_length(model.config),
    )


def outline_policy(
    files: ModelFiles, *, trust_remote_code: bool = False, tokenizer: Any = None
) -> PolicyOutline:
    """Read what a policy is from its configuration and tokenizer, in little time and memory.

    Args:
        files: of the model.
        trust_remote_code: run Python code that comes with the model.
        tokenizer: in place of the files' own, which need not have one then.

    Raises:
        UsageError: the files are not a causal language model that transformers knows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    options = _gguf_options(files.gguf_file)
    try:
        with _gguf_read_once(files):
            if tokenizer is None:
                tokenizer = load_tokenizer(files, trust_remote_code=trust_remote_code)
            config = AutoConfig.from_pretrained(
                files.folder, trust_remote_code=trust_remote_code, local_files_only=True, **options
            )
        _expand_quantized(files, config)
        with torch.device("meta"):
            auto: Any = AutoModelForCausalLM
            model = auto.from_config(config, trust_remote_code=trust_remote_code)
    except _UNREADABLE as error:
        raise UsageError(f"model {files.name} cannot be loaded: {_first_line(error)}") from error
    return PolicyOutline(
        model=model,
        tokenizer=tokenizer,
        eos_token_ids=_end_tokens(files.folder, files.gguf_file, model.config, tokenizer),
        context_length=_context_length(model.config),
    )


@contextmanager
def _gguf_read_once(files: ModelFiles) -> Iterator[None]:
    """Have transformers index a GGUF file once, which takes seconds, and not four times."""
    if not files.gguf_file:
        yield
        return
    module = import_gguf()
    reader = module.GGUFReader
    module.GGUFReader = lru_cache(maxsize=1)(reader)
    try:
        yield
    finally:
        module.GGUFReader = reader


def _expand_quantized(files: ModelFiles, config: Any) -> None:
    """Have quantised weights expanded to plain ones when they are loaded.

    Raises:
        UsageError: they cannot be.
    """
    found = getattr(config, "quantization_config", None)
    if not found or files.gguf_file:
        return
    settings = found if isinstance(found, dict) else found.to_dict()
    method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method")))
    if method not in _EXPANDED:
        raise UsageError(
            f"model {files.name} is quantised ({method}): such weights have no gradients; give the "
            "checkpoint that it was made from, or one in "
            f"{' or '.join(_EXPANDED)}, which is expanded"
        )
    config.quantization_config = {**settings, "dequantize": True}


def _placement(
    files: ModelFiles, device: torch.device, dtype: torch.dtype, share: float = HALF
) -> Any:
    """Where a model's weights go as they are read: to one GPU, or evenly to all."""
    if takes_several_gpus(files, device, dtype, share):
        return "balanced"
    return {"": device}


def takes_several_gpus(
    files: ModelFiles, device: torch.device, dtype: torch.dtype, share: float = HALF
) -> bool:
    """Whether `load_policy` spreads a model over the GPUs of this machine."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return weight_bytes(files, dtype) > share * free


def weight_bytes(files: ModelFiles, dtype: torch.dtype) -> int:
    """Bytes of a model's weights once they are loaded, by the headers of its safetensors files."""
    numbers = 0
    for file in files.folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                numbers += math.prod(tensors.get_slice(name).get_shape())
    return numbers * dtype.itemsize


def forget_quantization(model: Any) -> None:
    """Have a model count as plain: a GGUF file's weights were expanded when it was loaded."""
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)


def _keep_little_freed_memory() -> None:
    """Have glibc keep small freed blocks for the next operation, and give large ones back.

    Activations that were mapped and cleared anew, page by page, would cost a tenth to a third of a
    forward pass on a virtual machine. But what is kept is never given back while a small block lies
    above it: tensors of many megabytes whose size keeps changing, like the cache of keys and
    values, would leave gaps that nothing fits into, and the process grows to several times what is
    in use.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of mallopt(3)
    with suppress(OSError, AttributeError):  # another C library has no such knobs
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 2 * 1024**2)
        libc.mallopt(trim_threshold, 64 * 1024**2)
        libc.mallopt(top_pad, 16 * 1024**2)
        libc.malloc_trim(0)


def give_back_freed_memory() -> None:
    """Have glibc give what was freed between blocks in use back to the system."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def load_tokenizer(files: ModelFiles, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer alone; asked again, it gives the same object: copy it to change it.

    Raises:
        UsageError: the files hold no tokenizer that transformers can load.
    """
    try:
        with _gguf_read_once(files):
            return _read_tokenizer(
                files.folder, files.gguf_file, files.weight_hash, trust_remote_code
            )
    except _UNREADABLE as error:
        raise UsageError(
            f"the tokenizer of {files.name} cannot be loaded: {_first_line(error)}"
        ) from error


@lru_cache(maxsize=2)
def _read_tokenizer(
    folder: Path, gguf_file: str | None, weight_hash: str, trust_remote_code: bool
) -> Any:
    """That of a GGUF file takes seconds to build, and a run has several uses of it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        folder,
        trust_remote_code=trust_remote_code,
        local_files_only=True,
        **_gguf_options(gguf_file),
    )


def _gguf_options(gguf_file: str | None) -> dict[str, str]:
    """What transformers is told of a GGUF file that it is to read, if it is one."""
    return {"gguf_file": gguf_file} if gguf_file else {}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    kind = re.match(r"Unrecognized configuration class <class '[\w.]*\.(\w+)'>", str(error).strip())
    if kind:
        return (
            f"transformers has no causal language model for a {kind[1]}; models that also see or "
            "hear, and encoders, often have none"
        )
    return lines[0] if lines else type(error).__name__


def eos_token_ids(
    folder: Path, *, trust_remote_code: bool = False, tokenizer: Any = None
) -> frozenset[int]:
    """Collect the tokens that end a completion, as `load_policy` does, without loading weights.

    Args:
        folder: a Hugging Face model folder.
        trust_remote_code: run Python code that comes with the model.
        tokenizer: in place of the folder's own, which need not have one then.
    """
    from transformers import AutoConfig, AutoTokenizer

    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    config = AutoConfig.from_pretrained(folder, **options)
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    return _end_tokens(folder, None, config, tokenizer)


def _end_tokens(
    folder: Path, gguf_file: str | None, config: Any, tokenizer: Any, generation: Any = None
) -> frozenset[int]:
    """Collect the tokens that end a completion: all that the model's files name.

    That is the union of generation config, config and tokenizer, as vLLM has it. A default of the
    architecture, which no file names, counts only where nothing else does; nor does the tokenizer
    of a GGUF file, which can name the wrong token (SmolLM2's gives `<|im_start|>`).

    Args:
        folder: of the model.
        gguf_file: in it, if the model is one.
        config: as it was loaded.
        tokenizer: as it was loaded.
        generation: of a GGUF model, where it was made from that.
    """
    named = (
        [getattr(generation, "eos_token_id", None)]
        if gguf_file
        else [*_declared_ends(folder), tokenizer.eos_token_id]
    )
    found = _ids(named)
    return found or _ids([getattr(config, "eos_token_id", None)]) or _ids([tokenizer.eos_token_id])


def _declared_ends(folder: Path) -> Iterator[Any]:
    """What the files of a folder that name end tokens say."""
    for name in ("generation_config.json", "config.json"):
        with suppress(OSError, ValueError):
            declared = json.loads((folder / name).read_text(encoding="utf-8"))
            yield declared.get("eos_token_id")
            text = declared.get("text_config")
            yield text.get("eos_token_id") if isinstance(text, dict) else None


def _ids(named: Iterable[Any]) -> frozenset[int]:
    """End tokens as files name them: a number, a list of numbers, or None."""
    lists = [each if isinstance(each, list) else [each] for each in named]
    return frozenset(int(token) for each in lists for token in each if token is not None)


def _context_length(config: Any) -> int:
    text = config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or 2**31)
