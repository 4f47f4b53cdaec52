"""Checks of what gradients need: memory by length, recomputed blocks, and what happens without."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check.models import (
    ALL,
    Place,
    cosines,
    features_of,
    long_rollout,
    qwen2,
    random_policy,
    rollouts_of,
    stacked,
)
from benchmarks.gpu_check.result import Found, LeftOut
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.models.load import Policy


def by_length(place: Place) -> Found:
    """The peak of one rollout grows in a line with its length, as counted from what is saved."""
    if not place.is_gpu:
        raise LeftOut("only a GPU's memory is counted")
    policy = random_policy(qwen2(place, "1.5B"), place.device, torch.bfloat16)
    lengths = [1024, 2048, 4096, 8192, 16_384]
    peaks = [_peak(policy, tokens, kept_tokens=ALL) for tokens in lengths]
    slope, start = np.polyfit(lengths, peaks, 1)
    r2 = float(np.corrcoef(lengths, peaks)[0, 1] ** 2)
    counted = (_saved(policy, 2048) - _saved(policy, 1024)) / 1024
    numbers = {
        "peaks": dict(zip(map(str, lengths), peaks, strict=True)), "slope": float(slope),
        "start": float(start), "r2": r2, "counted": counted,
    }  # fmt: skip
    text = (
        f"{slope / 1e6:.2f} MB a token ({counted / 1e6:.2f} counted), r² {r2:.4f}, 16k tokens "
        f"{peaks[-1] / 1e9:.1f} GB beside the weights"
    )
    return Found(r2 > 0.99 and abs(slope / counted - 1) < 0.2, text, numbers)


def _peak(policy: Policy, tokens: int, **limits: int) -> int:
    """Bytes at once beyond those that stay, of the gradient of one rollout."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = features_of(policy, [long_rollout(tokens, 512)], **limits)
    assert found, f"{tokens} tokens did not fit"
    return torch.cuda.max_memory_allocated() - before


def _saved(policy: Policy, tokens: int) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, no weight."""
    weights = {each.untyped_storage().data_ptr() for each in policy.model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features_of(policy, [long_rollout(tokens, 512)], kept_tokens=ALL)
    return sum(seen.values())


def recomputed_blocks(place: Place) -> Found:
    """With recomputed blocks features stay the same, for little memory and some time."""
    dtype = torch.bfloat16 if place.is_gpu else torch.float32
    policy = random_policy(qwen2(place, "1.5B"), place.device, dtype)
    tokens = 512 if place.is_small else 16_384
    rollout = [long_rollout(tokens, 512)]
    numbers: dict[str, Any] = {}
    features = {}
    for name, kept in (("kept", ALL), ("recomputed", 1)):
        features_of(policy, [long_rollout(256, 512)], kept_tokens=kept)
        start = time.monotonic()
        features[name] = stacked(features_of(policy, rollout, kept_tokens=kept))
        numbers[f"{name} seconds"] = time.monotonic() - start
        if place.is_gpu:
            numbers[f"{name} peak"] = _peak(policy, tokens, kept_tokens=kept)
    same = bool((features["kept"] == features["recomputed"]).all())
    cosine = float(cosines(features["kept"], features["recomputed"])[0])
    longer = numbers["recomputed seconds"] / numbers["kept seconds"]
    numbers |= {"bitwise": same, "cosine": cosine, "time": longer}
    passed = cosine > 0.9999
    text = (
        f"{tokens:,} tokens: {'the same bits' if same else f'cosine {cosine:.6f}'}, {longer:.2f} x"
    )
    if place.is_gpu:
        less = numbers["recomputed peak"] / numbers["kept peak"]
        passed &= less < 0.2 and longer < 1.4
        text += f" the time, {less:.2f} x the memory ({numbers['recomputed peak'] / 1e9:.1f} GB)"
    else:
        text += " the time"
    return Found(passed, text, numbers)


def out_of_memory(place: Place) -> Found:
    """Where eight rollouts do not fit and one does, all have gradients; one too long has none."""
    if not place.is_gpu:
        raise LeftOut("only a GPU's memory can be bounded")
    policy = random_policy(qwen2(place, "0.5B", layers=4), place.device, torch.bfloat16)
    length, short = 2048, rollouts_of(4, 512)
    rollouts = [long_rollout(length, 512, seed) for seed in range(8)]
    expected = stacked(features_of(policy, rollouts, batch_tokens=length, kept_tokens=ALL))
    one, eight = (_most(policy, rollouts[:count], length * count) for count in (1, 8))
    probe = GradientProbe(policy, batch_tokens=8 * length, kept_tokens=ALL)
    _with(probe, short)  # It keeps what it makes for its projection.
    before = torch.cuda.memory_allocated()
    _bound((one + eight) // 2)
    found = _with(probe, rollouts)
    lowered = probe.batch_tokens
    torch.cuda.set_per_process_memory_fraction(1.0)
    left = torch.cuda.memory_allocated() - before
    for _ in range(64):
        _with(probe, short)
    cosine = float(cosines(stacked(found), expected).min()) if len(found) == 8 else 0.0
    _bound(one // 2)
    too_long = _with(probe, [long_rollout(16 * length, 512)])
    after = _with(probe, short)
    numbers = {
        "found": len(found), "cosine": cosine, "lowered": lowered, "grown": probe.batch_tokens,
        "left_bytes": left, "too_long": len(too_long), "after": len(after),
    }  # fmt: skip
    passed = (
        len(found) == 8 and cosine > 0.9999 and lowered < 8 * length == probe.batch_tokens
        and left < 0.01 * before + 2**20 and not too_long and len(after) == 4
    )  # fmt: skip
    text = (
        f"{len(found)} of 8 have gradients (cosine {cosine:.6f}); passes shrank to {lowered:,} "
        f"tokens and grew back to {probe.batch_tokens:,}; of a rollout that is too long there are "
        f"{len(too_long)}, then {len(after)} of 4 short ones"
    )
    return Found(passed, text, numbers)


def _most(policy: Policy, rollouts: list[TokenizedRollout], batch_tokens: int) -> int:
    """Bytes at once of one pass over some rollouts, beyond those that stay."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    features_of(policy, rollouts, batch_tokens=batch_tokens, kept_tokens=ALL)
    return torch.cuda.max_memory_allocated() - before


def _bound(more: int) -> None:
    """Have PyTorch take so many bytes more at most."""
    torch.cuda.empty_cache()
    size = torch.cuda.memory_reserved() + more
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / total))


def _with(probe: GradientProbe, rollouts: list[TokenizedRollout]) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for places, features in probe.gradients(rollouts):
        found |= dict(zip(places, features, strict=True))
    return found
