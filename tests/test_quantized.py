"""Quantised checkpoints are expanded, or refused before anything is spent."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from curate.errors import UsageError
from probes.gradients.lora import GradientProbe
from probes.models.files import resolve_model
from probes.models.load import load_policy, outline_policy
from tests.tag_runs import additions, tag, write_jsonl
from tests.test_gradients import rollouts_of

BLOCK = 128


@pytest.fixture(scope="module")
def plain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights come in whole blocks, with the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    vocabulary = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=BLOCK,
        intermediate_size=2 * BLOCK,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=1,
        bos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def quantized(plain: Path, folder: Path) -> Path:
    """The same in 8 bits, as DeepSeek and Qwen publish it: a scale a block."""
    shutil.copytree(plain, folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in list(weights.items()):
        if "proj" not in name:
            continue
        rows, columns = (size // BLOCK for size in weight.shape)
        blocks = weight.view(rows, BLOCK, columns, BLOCK)
        scale = blocks.abs().amax(dim=(1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        weights[name] = (
            (blocks / scale[:, None, :, None]).view_as(weight).to(torch.float8_e4m3fn).contiguous()
        )
        weights[f"{name}_scale_inv"] = scale
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return with_method(
        folder, {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "fmt": "e4m3"}
    )


def with_method(folder: Path, settings: dict[str, object]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


def test_eight_bits_are_expanded_and_differentiated(plain: Path, tmp_path: Path) -> None:
    whole, small = (
        load_policy(resolve_model(str(folder)), dtype=torch.float32)
        for folder in (plain, quantized(plain, tmp_path / "fp8"))
    )
    for name, weight in small.model.named_parameters():
        assert weight.dtype == torch.float32, name
        original = whole.model.get_parameter(name)
        assert (weight - original).norm() < 0.05 * original.norm(), name
    rollouts = rollouts_of(6)
    ((_, found),) = GradientProbe(small, batch_tokens=10**6).gradients(rollouts)
    ((_, expected),) = GradientProbe(whole, batch_tokens=10**6).gradients(rollouts)
    cosines = (found * expected).sum(1) / ((found**2).sum(1) * (expected**2).sum(1)) ** 0.5
    assert (cosines > 0.95).all()


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_others_are_refused(plain: Path, tmp_path: Path, method: str) -> None:
    shutil.copytree(plain, tmp_path / "model")
    files = resolve_model(str(with_method(tmp_path / "model", {"quant_method": method})))
    for read in (load_policy, outline_policy):
        with pytest.raises(UsageError, match=rf"model is quantised \({method}\)"):
            read(files)


def test_a_run_refuses_before_anything_is_spent(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "model")
    model = with_method(tmp_path / "model", {"quant_method": "gptq", "bits": 4})
    data = write_jsonl(tmp_path / "sums.jsonl", additions(2))
    run = tmp_path / "run"
    ran = tag(data, "--model", model, "--run-dir", run, "--out", tmp_path / "o.jsonl")
    assert ran.status == 2 and "is quantised (gptq)" in ran.stderr
    assert "Traceback" not in ran.stderr and not list((run / "rollouts").glob("*"))
