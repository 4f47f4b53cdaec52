"""Checkpoints that a user names: models and adapters that fit are opened, others refused."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig

from curate.errors import UsageError
from probes.models.checkpoints import open_checkpoint, resolve_checkpoint
from probes.models.files import ModelFiles, resolve_model
from probes.models.load import Policy
from probes.rescoring.teacher_forcing import log_probabilities
from tests.test_rescoring import rollouts_of_prompts
from tests.tiny import save_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def initial(tiny_model: Path) -> ModelFiles:
    return resolve_model(str(tiny_model))


def opened(folder: Path, initial: ModelFiles, dtype: torch.dtype = torch.float32) -> Policy:
    return open_checkpoint(str(folder), initial, device=CPU, dtype=dtype)


def scores(policy: Policy) -> np.ndarray:
    return log_probabilities(policy, rollouts_of_prompts())


def save_adapter(base: Path, folder: Path, *, scale: float = 0.05, **options: object) -> Path:
    """A LoRA adapter whose B is random, and beside it the merged model."""
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(**({"r": 4, "target_modules": "all-linear"} | options)),  # type: ignore[arg-type]
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=scale)
    adapted.save_pretrained(folder)
    merged = folder.with_name(folder.name + "-merged")
    adapted.merge_and_unload().save_pretrained(merged)
    return folder


def test_a_model_folder_without_tokenizer(
    tiny_model: Path, initial: ModelFiles, tiny_policy: Policy, tmp_path: Path
) -> None:
    folder = save_tiny_model(tmp_path / "trained", seed=5)
    with_tokenizer = opened(folder, initial)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    without = opened(folder, initial)
    assert (scores(with_tokenizer) == scores(without)).all()
    assert np.abs(scores(without) - scores(tiny_policy)).max() > 1
    assert without.files.weight_hash != initial.weight_hash
    assert without.tokenizer.get_vocab() == tiny_policy.tokenizer.get_vocab()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_an_adapter_is_the_model_merged(
    tiny_model: Path,
    initial: ModelFiles,
    tiny_policy: Policy,
    tmp_path: Path,
    options: dict[str, object],
) -> None:
    folder = save_adapter(tiny_model, tmp_path / "adapter", scale=0.2, **options)
    policy = opened(folder, initial)
    merged = opened(folder.with_name("adapter-merged"), initial)
    np.testing.assert_allclose(scores(policy), scores(merged), rtol=0, atol=2e-4)
    assert np.abs(scores(policy) - scores(tiny_policy)).max() > 0.1
    assert not policy.model.training and not any(p.requires_grad for p in policy.model.parameters())


def test_small_changes_survive_bfloat16(
    tiny_model: Path, initial: ModelFiles, tmp_path: Path
) -> None:
    folder = save_adapter(tiny_model, tmp_path / "adapter", scale=2e-4)
    merged = folder.with_name("adapter-merged")

    def layer(of: Path, dtype: torch.dtype) -> torch.nn.Module:
        return opened(of, initial, dtype).model.get_submodule("model.layers.0.mlp.up_proj")

    exact = layer(merged, torch.float32).weight - layer(initial.folder, torch.float32).weight
    half = torch.bfloat16
    if_merged = layer(merged, half).weight.float() - layer(initial.folder, half).weight.float()
    ours = layer(folder, half).get_delta_weight("default")
    assert (if_merged - exact).norm() > exact.norm()
    assert (ours - exact).norm() < 0.01 * exact.norm()


def test_hashes_tell_checkpoints_apart(
    tiny_model: Path, initial: ModelFiles, tmp_path: Path
) -> None:
    folder = save_adapter(tiny_model, tmp_path / "one")
    other_base = resolve_model(str(save_tiny_model(tmp_path / "base", seed=3)))
    hashes = {
        resolve_checkpoint(str(folder), initial).weight_hash,
        resolve_checkpoint(str(folder), other_base).weight_hash,
        resolve_checkpoint(
            str(save_adapter(tiny_model, tmp_path / "two", r=2)), initial
        ).weight_hash,
        resolve_checkpoint(str(tiny_model), initial).weight_hash,
    }
    assert len(hashes) == 4 and initial.weight_hash in hashes


def test_another_tokenizer(tiny_model: Path, initial: ModelFiles, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "other")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["3"], vocabulary["4"] = vocabulary["4"], vocabulary["3"]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(UsageError, match=r"another tokenizer .* token '3' is 7 in it, not 6$"):
        opened(folder, initial)


def test_another_architecture_or_shape(
    tiny_model: Path, initial: ModelFiles, tmp_path: Path
) -> None:
    other = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=18, n_embd=32, n_layer=2, n_head=4)).save_pretrained(
        other
    )
    with pytest.raises(UsageError, match=r"another architecture .* gpt2, not llama$"):
        opened(other, initial)
    config = LlamaConfig.from_pretrained(tiny_model)
    for name, value, message in (
        ("num_hidden_layers", 1, r"layers\.1\..* is not there, not \(32,"),
        ("num_hidden_layers", 3, r"layers\.2\..* is \(32,.*\), not there$"),
        ("vocab_size", 20, r"embed_tokens.weight is \(20, 32\), not \(18, 32\)$"),
    ):
        changed = LlamaConfig.from_dict(config.to_dict() | {name: value})
        folder = tmp_path / f"{name}-{value}"
        AutoModelForCausalLM.from_config(changed).save_pretrained(folder)
        with pytest.raises(UsageError, match=message):
            opened(folder, initial)


def test_an_adapter_of_another_base(tiny_model: Path, initial: ModelFiles, tmp_path: Path) -> None:
    config = LlamaConfig.from_pretrained(tiny_model)
    for name, value, message in (
        ("num_hidden_layers", 1, r"the adapter lacks base_model\.model\.model\.layers\.1\."),
        ("num_hidden_layers", 3, r"the model lacks base_model\.model\.model\.layers\.2\."),
        ("hidden_size", 64, "size mismatch"),
    ):
        base = tmp_path / f"{name}-{value}"
        changed = LlamaConfig.from_dict(config.to_dict() | {name: value, "head_dim": 8})
        AutoModelForCausalLM.from_config(changed).save_pretrained(base)
        adapter = save_adapter(
            base, tmp_path / f"{name}-{value}-adapter", target_modules=["q_proj"]
        )
        with pytest.raises(UsageError, match=rf"does not fit the model tiny-llama: .*{message}"):
            opened(adapter, initial)
    adapter = save_adapter(tiny_model, tmp_path / "targets", target_modules=["q_proj"])
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["target_modules"] = ["c_attn"]
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=r"does not fit the model tiny-llama: .*c_attn"):
        opened(adapter, initial)


def test_adapters_that_are_not_opened(
    tiny_model: Path, initial: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "runs" / "checkpoint-10")
    settings = json.loads((adapter / "adapter_config.json").read_text())

    def variant(name: str, **changes: object) -> Path:
        folder = shutil.copytree(adapter, tmp_path / name)
        (folder / "adapter_config.json").write_text(json.dumps(settings | changes))
        return folder

    with pytest.raises(UsageError, match="of kind IA3"):
        opened(variant("ia3", peft_type="IA3"), initial)
    with pytest.raises(UsageError, match="Megatron"):
        opened(variant("megatron", megatron_config={"a": 1}, megatron_core="antigravity"), initial)
    assert "antigravity" not in sys.modules
    pickled = variant("pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(
        UsageError, match=r"no adapter_model.safetensors; other formats hold pickled"
    ):
        opened(pickled, initial)
    damaged = variant("damaged")
    (damaged / "adapter_model.safetensors").write_bytes(b"\x08" * 30)
    with pytest.raises(UsageError, match="damaged does not fit"):
        opened(damaged, initial)
    (damaged / "adapter_config.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        opened(damaged, initial)
    both = variant("both")
    shutil.copy(tiny_model / "config.json", both)
    with pytest.raises(UsageError, match="name a folder that holds one of them"):
        opened(both, initial)
    with pytest.raises(UsageError, match=r"folders in it: checkpoint-10, checkpoint-10-merged$"):
        opened(tmp_path / "runs", initial)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="export the checkpoint as a Hugging Face folder"):
        opened(tmp_path / "empty", initial)
    with pytest.raises(UsageError, match="no such model"):
        opened(tmp_path / "nowhere", initial)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"takes peft to open: pip install 'rl-curate\[train\]'"):
        opened(adapter, initial)


def test_a_model_with_pickled_weights(
    initial: ModelFiles, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pickled"):
        opened(folder, initial)
