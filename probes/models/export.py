"""The policy as a plain Hugging Face folder, for engines and servers that read nothing else.

vLLM reads no GGUF file of every kind, and from none of them a tokenizer; so such a model is
written once as safetensors, under the user's cache folder, in the precision that it is probed in.
"""

from __future__ import annotations

import copy
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curate.errors import RunError
from curate.files import sync_folder
from probes.models.files import ModelFiles
from probes.models.load import (
    Policy,
    PolicyOutline,
    choose_device,
    choose_dtype,
    forget_quantization,
    load_policy,
)


def exported_folder(files: ModelFiles) -> Path:
    """Give the folder that holds a policy's configuration, weights and tokenizer.

    That is the model's own folder, or for a GGUF file one below `$XDG_CACHE_HOME/curate/models`
    (`~/.cache` where that is not set), named by weights and precision. The first call writes it
    and takes as long as loading the model; a call at the same time waits for it.

    Raises:
        RunError: it cannot be written.
        UsageError: the model cannot be loaded.
    """
    if files.gguf_file is None:
        return files.folder
    dtype = str(choose_dtype(choose_device())).removeprefix("torch.")
    folder = _cache() / f"{files.weight_hash}-{dtype}"
    try:
        if not folder.is_dir():
            with _locked(folder.with_name(f"{folder.name}.lock")):
                if not folder.is_dir():  # Another process may have written it meanwhile.
                    print(f"writing {files.name} as safetensors: {folder}", file=sys.stderr)
                    _export(load_policy(files), folder)
    except OSError as error:
        raise RunError(
            f"model {files.name} cannot be written as safetensors to {folder}: "
            f"{error.strerror or error}; another place for it can be named in XDG_CACHE_HOME"
        ) from error
    return folder


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The standard has relative paths ignored.
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "curate" / "models"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock that other processes on this machine wait for."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _export(policy: Policy, folder: Path) -> None:
    """Write a policy aside and rename it; what a killed process left aside is written over."""
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    forget_quantization(policy.model)
    policy.model.save_pretrained(aside)
    tokenizer_with_end(policy).save_pretrained(aside)
    sync_folder(aside)
    aside.rename(folder)


def tokenizer_with_end(policy: Policy | PolicyOutline) -> Any:
    """The tokenizer, naming the token that ends a completion: a GGUF file can name another."""
    tokenizer, ends = policy.tokenizer, policy.eos_token_ids
    if ends and tokenizer.eos_token_id not in ends:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(min(ends))
    return tokenizer
