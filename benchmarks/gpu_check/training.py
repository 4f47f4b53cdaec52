"""Checks of what training stands on: autocast, a fused optimizer, process groups."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.gpu_check.models import Place, policy_of, qwen2, random_policy
from benchmarks.gpu_check.result import Found
from probes.engines.base import SampleRequest
from probes.engines.transformers import TransformersEngine
from probes.models.load import Policy

_GROUP = """
import time
start = time.monotonic()
import torch.distributed as group
from accelerate import PartialState
from accelerate.utils import gather_object
started = time.monotonic()
state = PartialState({cpu})
found = gather_object([state.process_index])
assert found == [0], found
assert group.get_backend() == {backend!r}, group.get_backend()
state.destroy_process_group()
print(time.monotonic() - started)
"""


def steps(place: Place) -> Found:
    """Full training in float32 under autocast, rollouts in between, in the memory expected."""
    policy = random_policy(qwen2(place, "0.5B"), place.device, torch.float32)
    model: Any = policy.model.requires_grad_(True).train()
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=place.is_gpu)
    rng = np.random.default_rng(0)
    rows, columns = (2, 32) if place.is_small else (8, 512)
    ids = torch.tensor(rng.integers(2, 512, size=(rows, columns)), device=place.device)
    if place.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    losses = [_step(place, model, optimizer, ids) for _ in range(3)]
    peak = torch.cuda.max_memory_allocated() if place.is_gpu else 0
    drawn = _drawn(place, model)
    model.train()
    losses.append(_step(place, model, optimizer, ids))
    parameters = sum(each.numel() for each in model.parameters())
    numbers: dict[str, Any] = {"losses": losses, "rollouts": drawn, "parameters": parameters}
    passed = bool(np.isfinite(losses).all() and losses[-1] < losses[0] and drawn == 8)
    text = f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {drawn} rollouts in between"
    if place.is_gpu:
        # Logits of a pass: in bfloat16, in float32, and the slopes of either.
        logits = 12 * rows * columns * int(model.config.vocab_size)
        numbers |= {"peak": peak, "bytes_a_parameter": (peak - logits) / parameters}
        # Weights, gradients and two moments of 4 bytes each, and what autocast keeps in 2.
        passed &= 16 * 0.85 < numbers["bytes_a_parameter"] < 22 * 1.15
        text += f", {numbers['bytes_a_parameter']:.1f} bytes a parameter beside the logits"
    return Found(passed, text, numbers)


def _step(place: Place, model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    optimizer.zero_grad()
    with torch.autocast(place.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    loss = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _drawn(place: Place, model: Any) -> int:
    """Rollouts that the model draws in the middle of its training."""
    model.eval()
    policy: Policy = policy_of(model, place.device, torch.float32)
    engine = TransformersEngine(policy, seed=1, temperature=1.0, max_tokens=8)
    with torch.inference_mode(), torch.autocast(place.device.type, dtype=torch.bfloat16):
        found = list(engine.sample([SampleRequest("0", [5, 6, 7], 0, 8)]))
    model.requires_grad_(True)
    return len(found)


def process_group(place: Place) -> Found:
    """A group of one process comes up, gathers objects and ends."""
    backend = "nccl" if place.is_gpu else "gloo"
    script = _GROUP.format(cpu="" if place.is_gpu else "cpu=True", backend=backend)
    one = {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29517", "ACCELERATE_USE_CPU": "false" if place.is_gpu else "true",
    }  # fmt: skip
    start = time.monotonic()
    try:
        ran = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **one}, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Found(False, "it was not over after 120 s")
    if ran.returncode:
        last = ran.stderr.strip().splitlines()[-1:] or [f"exit status {ran.returncode}"]
        return Found(False, last[0][:300])
    seconds = float(ran.stdout.split()[-1])
    text = f"{backend}, {seconds:.1f} s ({time.monotonic() - start:.0f} s with its imports)"
    return Found(seconds < 20, text, {"seconds": seconds})
