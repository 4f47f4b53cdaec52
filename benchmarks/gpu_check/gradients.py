"""Checks of gradients: against the CPU, PEFT and other precisions, and their speed."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig

from benchmarks.gpu_check.models import (
    Place,
    copied,
    cosines,
    experts_tiny,
    features_of,
    llama_tiny,
    long_rollout,
    qwen2,
    random_policy,
    rollouts_of,
    saved_folder,
    stacked,
)
from benchmarks.gpu_check.result import Found, LeftOut
from curate.errors import UsageError
from probes.doctor.training_step import TrainedAdapter
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.gradients.tap import Adapter
from probes.gradients.targets import coverage
from probes.models.files import resolve_model
from probes.models.load import Policy, load_policy, outline_policy

CPU = torch.device("cpu")
EXACT = Adapter(dim=None)
_PEAK = 989e12  # dense bfloat16 FLOP/s of an H100 or H200


def against_cpu(place: Place) -> Found:
    """Features in float32 are those of the CPU; there, those of a rollout at a time by autograd."""
    numbers = {}
    for name, config, vocabulary in (
        ("tiny", llama_tiny(), 64),
        ("4 layers of 0.5B", qwen2(place, "0.5B", layers=4), 512),
    ):
        policy = random_policy(config, place.device, torch.float32)
        rollouts = rollouts_of(24, vocabulary)
        if place.is_gpu:
            own = stacked(features_of(policy, rollouts))
            other = stacked(features_of(copied(policy, CPU, torch.float32), rollouts))
        else:
            own = stacked(features_of(policy, rollouts, EXACT))
            other = TrainedAdapter(policy, EXACT).gradients(rollouts).astype(np.float64)
        numbers[name] = float(cosines(own, other).min())
    least = min(numbers.values())
    return Found(
        least > 0.9999, f"cosine {least:.6f} or more, of 24 rollouts of two models", numbers
    )


def in_bfloat16(place: Place) -> Found:
    """Features in bfloat16 are nearly those in float32 on the same device."""
    exact = random_policy(qwen2(place, "0.5B", layers=4), place.device, torch.float32)
    rollouts = rollouts_of(64, 512)
    one = stacked(features_of(copied(exact, place.device, torch.bfloat16), rollouts))
    other = stacked(features_of(exact, rollouts))
    found = cosines(one, other)
    lengths = np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    off = float(np.abs(np.median(lengths) - 1))
    numbers = {"median": float(np.median(found)), "least": float(found.min()), "length": off}
    passed = np.median(found) > 0.99 and found.min() > 0.95 and off < 0.03
    text = (
        f"median cosine {np.median(found):.4f}, least {found.min():.4f}, lengths off by {off:.1%}"
    )
    return Found(bool(passed), text, numbers)


def against_peft(place: Place) -> Found:
    """Unprojected features are the gradients that PEFT's LoRA gets by autograd, one at a time."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise LeftOut("PEFT is not installed") from error
    policy = random_policy(llama_tiny(), place.device, torch.float32)
    rollouts = rollouts_of(24, 64)
    own = stacked(features_of(policy, rollouts, EXACT))
    taps = GradientProbe(policy, EXACT)._taps
    config = LoraConfig(
        r=EXACT.rank, lora_alpha=int(EXACT.alpha), lora_dropout=0.0,
        target_modules=sorted({name.rpartition(".")[2] for name in taps}),
    )  # fmt: skip
    adapted: Any = get_peft_model(policy.model, config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, module in adapted.get_base_model().named_modules():
            if name in taps:
                weight = module.lora_A["default"].weight
                weight.copy_(taps[name].lora_a(weight.shape[1]))
    modules = dict(adapted.get_base_model().named_modules())
    trained = [modules[name].lora_B["default"].weight for name in taps]
    other = []
    for rollout in rollouts:
        ids = [*rollout.prompt_token_ids, *rollout.completion_token_ids]
        tokens = torch.tensor([ids], device=place.device)
        labels = tokens.clone()
        labels[0, : len(rollout.prompt_token_ids)] = -100
        loss = adapted(input_ids=tokens, labels=labels, use_cache=False).loss
        slopes = torch.autograd.grad(loss, trained)
        other.append(torch.cat([slope.flatten() for slope in slopes]).cpu().numpy())
    least = float(cosines(own, np.stack(other).astype(np.float64)).min())
    return Found(least > 0.9999, f"cosine {least:.6f} or more, of 24 rollouts", {"least": least})


def flash_attention(place: Place) -> Found:
    """A pass works with the flash kernel alone, and which one torch chooses by itself."""
    if not place.is_gpu:
        raise LeftOut("the kernels are a GPU's")
    policy = random_policy(qwen2(place, "0.5B", layers=4), place.device, torch.bfloat16)
    rollouts = rollouts_of(8, 512, most=400)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        flash = stacked(features_of(policy, rollouts))
    with sdpa_kernel(SDPBackend.MATH):
        plain = stacked(features_of(policy, rollouts))
    with torch.profiler.profile() as profile:
        features_of(policy, rollouts[:4])
    names = {
        event.key for event in profile.key_averages() if "scaled_dot_product" in event.key
    }  # such as aten::_scaled_dot_product_flash_attention
    least = float(cosines(flash, plain).min())
    chosen = sorted(name.removeprefix("aten::_scaled_dot_product_") for name in names)
    return Found(
        least > 0.999, f"cosine {least:.5f} or more; by default {', '.join(chosen)}",
        {"least": least, "default": chosen},
    )  # fmt: skip


def speed(place: Place) -> Found:
    """Tokens a second at several batches, and the launches of a pass."""
    sizes = {"A": "0.5B"} if place.is_small else {"A": "0.5B", "B": "1.5B"}
    length, batches = (64, (128, 512)) if place.is_small else (1024, (2048, 8192, 32 * 1024))
    numbers: dict[str, Any] = {}
    share = 0.0
    for name, size in sizes.items():
        config = qwen2(place, size)
        dtype = torch.bfloat16 if place.is_gpu else torch.float32
        policy = random_policy(config, place.device, dtype)
        embedded = policy.model.get_input_embeddings().weight.numel()
        weights = sum(each.numel() for each in policy.model.parameters()) - embedded
        for batch in batches:
            rollouts = [
                long_rollout(length, 512, seed) for seed in range(max(2, 2 * batch // length))
            ]
            probe = GradientProbe(policy, batch_tokens=batch)
            list(probe.gradients(rollouts[:1]))
            rate = _rate(probe, rollouts, place)
            numbers[f"{name} {batch}"] = round(rate)
            if batch == batches[-1]:
                # Forward and backward through frozen weights, and the head.
                share = max(share, rate * 4 * (weights + embedded) / _PEAK)
        with torch.profiler.profile() as profile:
            list(GradientProbe(policy, batch_tokens=batches[0]).gradients(rollouts[:2]))
        calls = Counter({event.key: event.count for event in profile.key_averages()})
        numbers[f"{name} addcmul_"] = calls["aten::addcmul_"]
        numbers[f"{name} launches"] = sum(n for key, n in calls.items() if "LaunchKernel" in key)
    numbers["share of 989 TFLOP/s"] = round(share, 3)
    passed = place.is_small or share >= 0.25
    rates = ", ".join(f"{name}: {numbers[name]:,}" for name in numbers if name[2:].isdigit())
    return Found(passed, f"tokens/s {rates}; {share:.0%} of 989 TFLOP/s", numbers)


def _rate(probe: GradientProbe, rollouts: list[TokenizedRollout], place: Place) -> float:
    if place.is_gpu:
        torch.cuda.synchronize()
    start = time.monotonic()
    # Features come back to the CPU, which waits for the device.
    done = sum(len(places) for places, _ in probe.gradients(rollouts))
    assert done == len(rollouts)
    return sum(one.tokens for one in rollouts) / (time.monotonic() - start)


def experts(place: Place) -> Found:
    """Mixtures of experts: gradients in bfloat16 against the CPU's in float32, and of how much."""
    numbers: dict[str, Any] = {}
    texts = []
    passed = True
    for name, config in experts_tiny().items():
        if config.model_type == "gpt_oss":
            config._attn_implementation = "eager"
        exact = random_policy(config, CPU, torch.float32)
        rollouts = rollouts_of(24, 256)
        other = stacked(features_of(exact, rollouts))
        own = stacked(features_of(copied(exact, place.device, torch.bfloat16), rollouts))
        found = cosines(own, other)
        covered = coverage(exact.model, ("auto",))
        # A token whose router is undecided goes to another expert in another precision.
        passed &= bool(np.isfinite(own).all() and np.median(found) > 0.95)
        numbers[name] = {
            "median": float(np.median(found)), "least": float(found.min()),
            "share": covered.share, "without": list(covered.left_out),
        }  # fmt: skip
        texts.append(
            f"{name}: median cosine {np.median(found):.4f}, least {found.min():.4f}, gradients of "
            f"{covered.share:.0%} of the weights"
        )
    return Found(passed, "; ".join(texts), numbers)


def quantised(place: Place) -> Found:
    """Weights in 8 bits are expanded and differentiated; other methods are refused at once."""
    block = 128
    config = LlamaConfig(
        vocab_size=block, hidden_size=block, intermediate_size=2 * block, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, eos_token_id=1, bos_token_id=0,
    )  # fmt: skip
    folder = saved_folder(config, place.folder / "plain", torch.float32)
    plain = _loaded(place, folder)
    shutil.copytree(folder, place.folder / "fp8")
    weights = load_file(folder / "model.safetensors")
    for name, weight in [*weights.items()]:
        if "proj" in name:
            rows, columns = (size // block for size in weight.shape)
            blocks = weight.view(rows, block, columns, block)
            scale = blocks.abs().amax(dim=(1, 3)) / torch.finfo(torch.float8_e4m3fn).max
            small = (blocks / scale[:, None, :, None]).view_as(weight)
            weights[name] = small.to(torch.float8_e4m3fn).contiguous()
            weights[f"{name}_scale_inv"] = scale
    save_file(weights, place.folder / "fp8" / "model.safetensors", metadata={"format": "pt"})
    _declare(place.folder / "fp8", quant_method="fp8", weight_block_size=[block, block], fmt="e4m3")
    rollouts = rollouts_of(8, block)
    expanded = stacked(features_of(_loaded(place, place.folder / "fp8"), rollouts))
    least = float(cosines(expanded, stacked(features_of(plain, rollouts))).min())
    shutil.copytree(folder, place.folder / "gptq")
    _declare(place.folder / "gptq", quant_method="gptq", bits=4)
    refused = ""
    try:
        outline_policy(resolve_model(str(place.folder / "gptq")))
    except UsageError as error:
        refused = str(error)
    text = f"fp8: cosine {least:.4f} with what it was made from; GPTQ is refused: {refused or 'no'}"
    return Found(least > 0.95 and bool(refused), text, {"fp8": least})


def _loaded(place: Place, folder: Any) -> Policy:
    return load_policy(resolve_model(str(folder)), device=place.device, dtype=torch.float32)


def _declare(folder: Any, **method: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"quantization_config": method}
    file.write_text(json.dumps(config), encoding="utf-8")
