"""Open a checkpoint: what the initial policy became by some training, in whatever trainer.

A checkpoint is a model as `probes.models.load` takes it (folder, Hub id, GGUF file), or the folder
of a LoRA adapter as PEFT saves it, which is loaded on the initial policy. It is given prompts, or
scores completions, that are token ids of the initial policy: so its tokenizer must give every id
the same meaning, and where it scores completions it must be the same network.

An adapter stays beside the weights and is not merged into them: in bfloat16 the merged weight
would round off most of what a few steps have changed (`probes.models.adapters`).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from curate.errors import UsageError
from probes.models.adapters import add_before_rounding
from probes.models.export import tokenizer_with_end
from probes.models.files import ModelFiles, hash_files, resolve_model
from probes.models.load import (
    Policy,
    PolicyOutline,
    forget_quantization,
    load_policy,
    load_tokenizer,
    outline_policy,
)

_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


class OtherTokenizer(UsageError):
    """A checkpoint's token ids do not mean what those of the initial policy mean."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found, and how it is loaded.

    Attributes:
        files: its own; an adapter's folder holds no more than the adapter.
        tokenizer: of its token ids; None: the one in the files.
        base: of an adapter, the model that it is loaded on; None for a whole model.
    """

    files: ModelFiles
    tokenizer: Any = None
    base: ModelFiles | None = None

    def load(
        self,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        trust_remote_code: bool = False,
    ) -> Policy:
        """Load it; arguments and errors are those of `load_policy`."""
        policy = load_policy(
            self.base or self.files,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            tokenizer=self.tokenizer,
        )
        return policy if self.base is None else _with_adapter(policy, self.files)

    def outline(self, *, trust_remote_code: bool = False) -> PolicyOutline:
        """Tell what it is without its weights; see `outline_policy`."""
        return outline_policy(
            self.base or self.files,
            trust_remote_code=trust_remote_code,
            tokenizer=self.tokenizer,
        )


def resolve_checkpoint(name: str, initial: ModelFiles) -> ModelFiles:
    """Find the files of a checkpoint; their hash tells it from others.

    Args:
        name: a model folder, Hub id or .gguf file, or the folder of a LoRA adapter.
        initial: the policy that it was trained from; an adapter's hash is of both.

    Raises:
        UsageError: nothing there, or nothing that is safe to read.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return resolve_model(name)
    has_model = (folder / "config.json").is_file()
    if not (folder / _ADAPTER_CONFIG).is_file():
        if not has_model and not list(folder.glob("*.gguf")):
            within = sorted(each.parent.name for each in folder.glob(f"*/{_ADAPTER_CONFIG}"))
            within += sorted(each.parent.name for each in folder.glob("*/config.json"))
            hint = (
                f"name one of the folders in it: {', '.join(within)}"
                if within
                else ("export the checkpoint as a Hugging Face folder")
            )
            raise UsageError(
                f"{name} holds neither a model (config.json) nor a LoRA adapter "
                f"({_ADAPTER_CONFIG}); {hint}"
            )
        return resolve_model(name)
    if has_model:
        raise UsageError(
            f"{name} holds a model (config.json) and an adapter ({_ADAPTER_CONFIG}); "
            "name a folder that holds one of them"
        )
    if not (folder / _ADAPTER_WEIGHTS).is_file():
        raise UsageError(
            f"{name} has no {_ADAPTER_WEIGHTS}; other formats hold pickled code and are not "
            "opened: save the adapter again with model.save_pretrained(folder)"
        )
    own = hash_files([folder / _ADAPTER_CONFIG, folder / _ADAPTER_WEIGHTS])
    both = sha256(f"{initial.weight_hash}\0{own}".encode()).hexdigest()
    return ModelFiles(folder.name or folder.resolve().name, folder, None, None, both)


def is_adapter(files: ModelFiles) -> bool:
    """Whether files are those of an adapter."""
    return files.gguf_file is None and (files.folder / _ADAPTER_CONFIG).is_file()


def has_tokenizer(files: ModelFiles) -> bool:
    """Whether a tokenizer lies beside the weights; many trainers save none."""
    if files.gguf_file:
        return True
    return any((files.folder / each).is_file() for each in _TOKENIZER_FILES)


def find_checkpoint(
    name: str, initial: ModelFiles, *, trust_remote_code: bool = False
) -> Checkpoint:
    """Find a checkpoint to which the initial policy's token ids can be given as prompts.

    Its tokenizer is its own, or the initial policy's where it was saved without one: then it must
    be the same network.

    Args:
        name: a model folder, Hub id or .gguf file, or the folder of a LoRA adapter.
        initial: the policy whose tokenizer made the prompts, and whose adapter it may be.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        OtherTokenizer: a token id means something else in it.
        UsageError: nothing there that is safe to read, or without a tokenizer another network.
    """
    files = resolve_checkpoint(name, initial)
    if is_adapter(files):
        _check_adapter(files)
        ours = load_tokenizer(initial, trust_remote_code=trust_remote_code)
        return Checkpoint(files, ours, initial)
    found = Checkpoint(files, _tokenizer_of(name, files, initial, trust_remote_code))
    if has_tokenizer(files):
        return found
    _check_network(name, found, initial, trust_remote_code)
    # That of a GGUF file can name another end than the model's.
    outline = outline_policy(initial, trust_remote_code=trust_remote_code)
    return Checkpoint(files, tokenizer_with_end(outline))


def open_checkpoint(
    name: str,
    initial: ModelFiles,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> Policy:
    """Load a checkpoint of the initial policy.

    Args:
        name: a model folder, Hub id or .gguf file, or the folder of a LoRA adapter.
        initial: the policy that the rollouts were drawn from.
        device, dtype: as for `load_policy`; those of the initial policy, for a comparison.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        UsageError: nothing there that is safe to read; another tokenizer, architecture or shapes
            than the initial policy's; an adapter of another base, or no peft to load it with.
    """
    files = resolve_checkpoint(name, initial)
    if is_adapter(files):
        _check_adapter(files)
        found = Checkpoint(files, base=initial)
    else:
        _tokenizer_of(name, files, initial, trust_remote_code)
        # The ids are the initial policy's, and so is the meaning of each.
        ours = load_tokenizer(initial, trust_remote_code=trust_remote_code)
        found = Checkpoint(files, ours)
        _check_network(name, found, initial, trust_remote_code)
    return found.load(device=device, dtype=dtype, trust_remote_code=trust_remote_code)


def _tokenizer_of(
    name: str, files: ModelFiles, initial: ModelFiles, trust_remote_code: bool
) -> Any:
    """The tokenizer of a whole model: its own, or the initial policy's where it has none."""
    ours = load_tokenizer(initial, trust_remote_code=trust_remote_code)
    if not has_tokenizer(files):
        return ours
    theirs = load_tokenizer(files, trust_remote_code=trust_remote_code)
    _check_vocabulary(name, theirs.get_vocab(), ours.get_vocab())
    return theirs


def _check_network(
    name: str, found: Checkpoint, initial: ModelFiles, trust_remote_code: bool
) -> None:
    """Refuse another network than the initial policy's."""
    same_tokenizer = replace(found, files=initial)
    outlines = (
        each.outline(trust_remote_code=trust_remote_code) for each in (found, same_tokenizer)
    )
    _check_shapes(name, *(outline.model for outline in outlines))


def _check_vocabulary(name: str, found: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    """Refuse a tokenizer in which an id of the rollouts means something else, or nothing."""
    for token, number in sorted(wanted.items(), key=lambda pair: pair[1]):
        if found.get(token) != number:
            raise OtherTokenizer(
                f"checkpoint {name} has another tokenizer than the policy of the rollouts: "
                f"token {token!r} is {found.get(token, 'not there')} in it, not {number}"
            )


def _check_shapes(name: str, found: Any, wanted: Any) -> None:
    kinds = [model.config.model_type for model in (found, wanted)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"checkpoint {name} is of another architecture than the policy of the rollouts: "
            f"{kinds[0]}, not {kinds[1]}"
        )
    shapes, own = (
        {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        for model in (found, wanted)
    )
    for key in [*own, *shapes]:
        if shapes.get(key) != own.get(key):
            raise UsageError(
                f"checkpoint {name} has other shapes than the policy of the rollouts: "
                f"{key} is {shapes.get(key, 'not there')}, not {own.get(key, 'there')}"
            )


def _check_adapter(files: ModelFiles) -> None:
    """Refuse what is no LoRA adapter, or what PEFT would import a named module for."""
    try:
        config = json.loads((files.folder / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{files.folder / _ADAPTER_CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise UsageError(f"adapter {files.name} is of kind {kind}; LoRA adapters can be opened")
    if config.get("megatron_config"):
        raise UsageError(
            f"adapter {files.name} asks for Megatron's layers; "
            "export the checkpoint as a Hugging Face folder"
        )


def _with_adapter(policy: Policy, files: ModelFiles) -> Policy:
    """Put an adapter on a policy's model, in place."""
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise UsageError(
            f"{files.name} is a LoRA adapter, which takes peft to open: "
            "pip install 'rl-curate[train]'"
        ) from error
    forget_quantization(policy.model)
    base = f"adapter {files.name} does not fit the model {policy.files.name}"
    try:
        with safe_open(files.folder / _ADAPTER_WEIGHTS, framework="pt") as saved:
            names = set(saved.keys())
        with warnings.catch_warnings():
            # It warns of tensors that are missing; here they are an error.
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(policy.model, str(files.folder))
            wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # PyTorch's first line says that something is wrong, its second what.
        raise UsageError(f"{base}: {(lines[1:2] or lines or [type(error).__name__])[0]}") from error
    lost = sorted(wanted - names) or sorted(names - wanted - set(adapted.state_dict()))
    if lost:
        side = "the adapter" if lost[0] in wanted else "the model"
        raise UsageError(f"{base}: {side} lacks {lost[0]}")
    # PEFT puts an adapter's weights beside those of its layer, on whichever device these are.
    model = adapted.get_base_model().eval().requires_grad_(False)
    add_before_rounding(model)
    return Policy(
        files=files,
        model=model,
        tokenizer=policy.tokenizer,
        device=policy.device,
        dtype=policy.dtype,
        eos_token_ids=policy.eos_token_ids,
        context_length=policy.context_length,
    )
