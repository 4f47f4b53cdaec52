"""A GGUF model becomes a plain Hugging Face folder once; any other is used where it lies."""

import json
from pathlib import Path

import pytest
import torch

from curate.errors import RunError
from probes.models.checkpoints import find_checkpoint
from probes.models.export import exported_folder
from probes.models.files import resolve_model
from probes.models.load import load_policy
from tests.smollm2 import export, gguf_file

IDS = torch.tensor([[1, 520, 198, 3, 5, 28, 7, 42]])


def test_a_folder_is_its_own_export(tiny_model: Path) -> None:
    assert exported_folder(resolve_model(str(tiny_model))) == tiny_model


def test_the_export_is_the_same_policy_and_is_written_once(smollm2_folder: Path) -> None:
    original = load_policy(resolve_model(str(gguf_file())))
    exported = load_policy(resolve_model(str(smollm2_folder)))
    with torch.inference_mode():
        assert torch.equal(original.model(IDS).logits, exported.model(IDS).logits)
    assert exported.dtype == original.dtype
    assert exported.eos_token_ids == original.eos_token_ids == {2}
    # The GGUF file's tokenizer says <|im_start|>, at which an engine would end every turn.
    assert exported.tokenizer.eos_token == "<|im_end|>"
    text = "<|im_start|>user\nWhat is 7 * 8?<|im_end|>\n"
    assert exported.tokenizer(text).input_ids == original.tokenizer(text).input_ids
    assert exported.tokenizer.chat_template == original.tokenizer.chat_template
    config = json.loads((smollm2_folder / "config.json").read_text())
    assert "quantization_config" not in config
    written = (smollm2_folder / "config.json").stat().st_mtime_ns
    assert export(smollm2_folder.parents[2]) == smollm2_folder
    assert (smollm2_folder / "config.json").stat().st_mtime_ns == written
    assert not list(smollm2_folder.parent.glob(".*"))


def test_a_checkpoint_saved_without_tokenizer_ends_where_its_gguf_model_does(
    smollm2_folder: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(smollm2_folder / name)
    initial = resolve_model(str(gguf_file()))
    found = find_checkpoint(str(tmp_path), initial)
    assert found.outline().eos_token_ids == {2}
    # Of one that brings its own it is the folder that tells.
    assert find_checkpoint(str(smollm2_folder), initial).outline().eos_token_ids == {2}


def test_a_cache_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "curate").write_text("a file where a folder is needed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RunError, match="XDG_CACHE_HOME"):
        exported_folder(resolve_model(str(gguf_file())))
