"""Find a model's files: a Hugging Face folder, a Hub id (`org/name@revision`) or a GGUF file.

Whatever the reference, the weights are resolved to files on this machine, so that their hash can be
known before anything is loaded and the loading itself needs no network. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from curate.errors import UsageError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
# Weights in these files are plain tensors; `.bin` and `.pt` are pickles and are never opened.
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


def resolve_model(name: str) -> ModelFiles:
    """Find the files of a model, fetching a Hub id when it is not in the cache.

    Raises:
        UsageError: no such file, folder or Hub id, or no weights in a format that is safe to read.
    """
    check_model_name(name)
    path = Path(name).expanduser()
    if path.is_file():
        return ModelFiles(path.stem, path.parent, path.name, None, hash_files([path]))
    if path.is_dir():
        return _resolve_folder(path.name or path.resolve().name, path, None)
    return _resolve_hub(name)


def check_model_name(name: str) -> None:
    """Refuse what can be no model, without reading any file.

    Raises:
        UsageError: no such file or folder, and no Hub id; or a file that is no GGUF.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix != ".gguf":
        raise UsageError(
            f"{name} is a file but not a .gguf model; "
            "give a .gguf file, a Hugging Face model folder or a Hub id"
        )
    is_local = path.suffix == ".gguf" or name.startswith((".", "/", "~"))
    if not path.exists() and (is_local or not _HUB_ID.fullmatch(name)):
        raise UsageError(f"no such model: {name} (neither a file, a folder nor a Hub id)")


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
