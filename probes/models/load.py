"""Load the policy: a Hugging Face folder, a Hub id (`org/name@revision`) or a GGUF file.

Whatever the reference, the weights are first resolved to files on this machine, so that their hash
can be known before anything is loaded and the loading itself needs no network.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, redirect_stderr, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from curate.errors import UsageError
from probes.models.attention import use_grouped_attention

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
# Weights in these files are plain tensors; `.bin` and `.pt` are pickles and are never opened.
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
_WEIGHT_SUFFIXES = (".safetensors", ".gguf")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py"]


@dataclass(frozen=True)
class ModelFiles:
    """A policy's files on this machine.

    Attributes:
        name: short name for folders and tables, such as `SmolLM2-135M-Instruct`.
        folder: where configuration, tokenizer and weights lie.
        gguf_file: the file in `folder` that holds everything, for a GGUF model.
        revision: the commit for a Hub id, else None.
        weight_hash: sha256 over the names and contents of every file that shapes the policy.
    """

    name: str
    folder: Path
    gguf_file: str | None
    revision: str | None
    weight_hash: str


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


def resolve_model(name: str) -> ModelFiles:
    """Find the files of a model, fetching a Hub id when it is not in the cache.

    Raises:
        UsageError: no such file, folder or Hub id, or no weights in a format that is safe to read.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise UsageError(
                f"{name} is a file but not a .gguf model; "
                "give a .gguf file, a Hugging Face model folder or a Hub id"
            )
        return ModelFiles(path.stem, path.parent, path.name, None, hash_files([path]))
    if path.is_dir():
        return _resolve_folder(path.name or path.resolve().name, path, None)
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise UsageError(f"no such model: {name} (neither a file, a folder nor a Hub id)")
    return _resolve_hub(name)


def _resolve_hub(name: str) -> ModelFiles:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")

    def fetch(only_cached: bool) -> Path:
        found = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=_HUB_FILES,
            local_files_only=only_cached,
        )
        return Path(found)

    try:
        try:
            folder = fetch(only_cached=False)
        except (HfHubHTTPError, HFValidationError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(f"model {name} cannot be fetched from the Hub: {reason}") from error
        except (OSError, httpx.HTTPError):
            # Offline, or the Hub is out of reach: what an earlier run fetched will do.
            folder = fetch(only_cached=True)
    except LocalEntryNotFoundError as error:
        raise UsageError(
            f"model {name} is neither a local path nor in the Hub cache, and the Hub cannot be "
            "reached; check the name or the connection"
        ) from error
    return _resolve_folder(repository.rpartition("/")[2], folder, folder.name)


def _resolve_folder(name: str, folder: Path, revision: str | None) -> ModelFiles:
    if not (folder / "config.json").is_file():
        ggufs = sorted(folder.glob("*.gguf"))
        hint = f"; name the file itself: {ggufs[0]}" if ggufs else ""
        raise UsageError(f"{folder} is no model folder: it has no config.json{hint}")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UsageError(
            f"{folder} has no .safetensors weights; other formats hold pickled code and are not "
            "opened: convert it with model.save_pretrained(folder)"
        )
    shaping = sorted(
        file
        for file in folder.iterdir()
        if file.suffix in {".json", ".model", ".jinja", ".txt", *_WEIGHT_SUFFIXES}
    )
    return ModelFiles(name, folder, None, revision, hash_files(shaping))


def hash_files(files: list[Path]) -> str:
    """Hash names and contents; a Hub cache names its large files by their sha256 already."""
    total = hashlib.sha256()
    for file in files:
        blob = file.resolve().name
        if not re.fullmatch(r"[0-9a-f]{64}", blob):
            with file.open("rb") as handle:
                blob = hashlib.file_digest(handle, "sha256").hexdigest()
        total.update(f"{file.name}\0{blob}\n".encode())
    return total.hexdigest()


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
) -> Policy:
    """Load model and tokenizer from files on this machine.

    Args:
        files: of the model.
        device, dtype: of its parameters; what suits this machine where None.
        trust_remote_code: run Python code that comes with the model.
        tokenizer: in place of the files' own, which need not have one then.

    Raises:
        UsageError: the files are not a causal language model that transformers can load.
    """
    # transformers draws a bar per tensor, which is noise beside our own progress lines.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    device = device or choose_device()
    dtype = dtype or choose_dtype(device)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    if files.gguf_file:
        options["gguf_file"] = files.gguf_file
    else:
        options["use_safetensors"] = True
    if tokenizer is None:
        tokenizer = load_tokenizer(files, trust_remote_code=trust_remote_code)
    # Its bars and its report of a bad load fill the screen; ours is one line.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    # Reading a GGUF file draws a bar of its own that no setting turns off.
    quiet = redirect_stderr(io.StringIO()) if files.gguf_file else nullcontext()
    try:
        with quiet:
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
    model.to(device).eval().requires_grad_(False)
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

    if tokenizer is None:
        tokenizer = load_tokenizer(files, trust_remote_code=trust_remote_code)
    options = {"gguf_file": files.gguf_file} if files.gguf_file else {}
    try:
        config = AutoConfig.from_pretrained(
            files.folder, trust_remote_code=trust_remote_code, local_files_only=True, **options
        )
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
        return _read_tokenizer(files.folder, files.gguf_file, files.weight_hash, trust_remote_code)
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

    options = {"gguf_file": gguf_file} if gguf_file else {}
    return AutoTokenizer.from_pretrained(
        folder, trust_remote_code=trust_remote_code, local_files_only=True, **options
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    kind = re.match(r"Unrecognized configuration class <class '[\w.]*\.(\w+)'>", str(error).strip())
    if kind:
        return (
            f"transformers has no causal language model for a {kind[1]}; models that also see or "
            "hear, and encoders, often have none"
        )
    return lines[0] if lines else type(error).__name__


def eos_token_ids(folder: Path, *, trust_remote_code: bool = False) -> frozenset[int]:
    """Collect the tokens that end a completion, as `load_policy` does, without loading weights.

    Args:
        folder: a Hugging Face model folder.
        trust_remote_code: run Python code that comes with the model.
    """
    from transformers import AutoConfig, AutoTokenizer

    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    config = AutoConfig.from_pretrained(folder, **options)
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
