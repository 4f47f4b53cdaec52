"""Checks of loading, sampling, and of engine and policy taking turns."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check.models import (
    Place,
    copied,
    cosines,
    llama_tiny,
    qwen2,
    random_policy,
    saved_folder,
)
from benchmarks.gpu_check.result import Found, LeftOut
from curate.config import TagConfig
from probes.engines.base import Rollout, SampleRequest
from probes.engines.choose import LoadedModel
from probes.engines.drawing import draw
from probes.engines.transformers import TransformersEngine
from probes.models.files import resolve_model
from probes.models.load import (
    Policy,
    choose_device,
    choose_dtype,
    describe_machine,
    load_policy,
)

CPU = torch.device("cpu")


def loading(place: Place) -> Found:
    """The device is seen, and a saved folder is loaded onto it, for the bytes of its weights."""
    folder = saved_folder(qwen2(place, "0.5B", layers=4), place.folder / "loading", torch.bfloat16)
    machine = describe_machine()
    before = torch.cuda.memory_allocated() if place.is_gpu else 0
    policy = load_policy(resolve_model(str(folder)), device=place.device)
    weights = sum(each.numel() * each.itemsize for each in policy.model.parameters())
    numbers: dict[str, Any] = {**machine, "weights": weights}
    passed = all(each.device.type == place.device.type for each in policy.model.parameters())
    passed &= policy.dtype == choose_dtype(place.device)
    text = f"{machine['name']}, {machine['dtype']}"
    if place.is_gpu:
        taken = torch.cuda.memory_allocated() - before
        free, total = torch.cuda.mem_get_info()
        numbers |= {"allocated": taken, "free": free, "total": total}
        passed &= choose_device().type == "cuda" and abs(taken / weights - 1) < 0.02
        text += (
            f", {free / 1e9:.0f} of {total / 1e9:.0f} GB free; weights of {weights / 1e6:.0f} MB"
        )
        text += f" took {taken / 1e6:.0f} MB"
    return Found(bool(passed), text, numbers)


def first_tokens(place: Place) -> Found:
    """First tokens of prompts of several lengths are drawn as the model's softmax says."""
    policy = random_policy(llama_tiny(), place.device, torch.float32)
    samples = 4000
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 64, size=size).tolist() for size in (3, 11, 40)]
    engine = TransformersEngine(policy, seed=1, temperature=1.0, max_tokens=1)
    counts = np.zeros((3, 64))
    for one in engine.sample(
        [SampleRequest(str(n), prompt, 0, samples) for n, prompt in enumerate(prompts)]
    ):
        counts[int(one.item_id), one.completion_token_ids[0]] += 1
    values = []
    for count, prompt in zip(counts, prompts, strict=True):
        with torch.no_grad():
            ids = torch.tensor([prompt], device=place.device)
            logits = policy.model(input_ids=ids, use_cache=False).logits[0, -1].float()
        expected = samples * torch.softmax(logits, -1).cpu().numpy().astype(np.float64)
        values.append(_chi_square_p(count, expected))
    passed = bool((counts.sum(1) == samples).all() and min(values) > 1e-3)
    text = f"p of chi-square {', '.join(f'{p:.3f}' for p in values)}, {samples:,} samples each"
    return Found(passed, text, {"p": values})


def _chi_square_p(count: np.ndarray, expected: np.ndarray) -> float:
    """Probability of counts that are further off; rare tokens are one."""
    rare = expected < 5
    observed = np.append(count[~rare], count[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    known = wanted > 0
    square = float((((observed - wanted) ** 2)[known] / wanted[known]).sum())
    half = torch.tensor([(known.sum() - 1) / 2, square / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def drawn_again(place: Place) -> Found:
    """The same seed draws the same rollouts again, and nearly the same in other batches."""
    exact = random_policy(qwen2(place, "0.5B", layers=4), place.device, torch.float32)
    policies = {"float32": exact, "bfloat16": copied(exact, place.device, torch.bfloat16)}
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 512, size=int(rng.integers(4, 40))).tolist() for _ in range(8)]
    samples = 4 if place.is_small else 32
    numbers: dict[str, Any] = {}
    for name, policy in policies.items():
        first, again, other = (_draw(policy, prompts, samples, most) for most in (256, 256, 24))
        numbers[f"{name} again"] = _same(first, again)
        numbers[f"{name} other batch"] = _same(first, other)
    logits = torch.randn(64, 512, device=place.device)
    uniform = torch.rand(64, 16, device=place.device)
    first_ids = draw(logits, uniform, 1.0)
    numbers["draw"] = all(bool((draw(logits, uniform, 1.0) == first_ids).all()) for _ in range(100))
    passed = (
        numbers["float32 again"] == numbers["bfloat16 again"] == 1
        and numbers["float32 other batch"] >= 0.99
        and numbers["draw"]
    )
    text = ", ".join(f"{name} {value:.1%}" for name, value in numbers.items() if name != "draw")
    text += f"; 100 draws of one input {'are the same' if numbers['draw'] else 'differ'}"
    return Found(passed, f"the same rollouts: {text}", numbers)


def _draw(policy: Policy, prompts: list[list[int]], samples: int, rows: int) -> list[list[int]]:
    engine = TransformersEngine(policy, seed=3, temperature=1.0, max_tokens=32, max_rows=rows)
    requests = [SampleRequest(str(n), prompt, 0, samples) for n, prompt in enumerate(prompts)]
    found = sorted(engine.sample(requests), key=lambda one: (int(one.item_id), one.sample))
    return [one.completion_token_ids for one in found]


def _same(one: list[list[int]], other: list[list[int]]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def speed(place: Place) -> Found:
    """Tokens a second and rows by the length asked for, and no rollout lost where memory ends."""
    dtype = torch.bfloat16 if place.is_gpu else torch.float32
    policy = random_policy(qwen2(place, "1.5B"), place.device, dtype)
    seconds = 1.0 if place.is_small else 12.0
    numbers: dict[str, Any] = {}
    texts = []
    passed = True
    for most in (64,) if place.is_small else (512, 2048, 8192):
        engine = TransformersEngine(policy, seed=1, temperature=1.0, max_tokens=most)
        engine.stops_at = time.monotonic() + seconds
        prompts = [np.random.default_rng(n).integers(2, 512, 64).tolist() for n in range(64)]
        start, done = time.monotonic(), 0
        for one in engine.sample([SampleRequest(str(n), p, 0, 16) for n, p in enumerate(prompts)]):
            done += len(one.completion_token_ids)
        making = engine.unfinished() or []
        rate = (done + sum(making)) / (time.monotonic() - start)
        rows, decoded = engine._most_rows(64), len(engine._in_hand)
        passed &= 0 < decoded <= rows + rows // 4
        numbers[str(most)] = {"rate": round(rate), "rows": decoded, "most_rows": rows}
        texts.append(f"{rate:,.0f} at {most:,} ({decoded} rows)")
    text = f"tokens/s {', '.join(texts)}"
    if place.is_gpu:
        lost = _backed_off(policy)
        passed &= lost["missing"] == lost["twice"] == 0 and lost["batch_tokens"] < 10**9
        numbers["out of memory"] = lost
        text += f"; out of memory: {lost['missing']} missing, {lost['twice']} twice"
    return Found(bool(passed), text, numbers)


def _backed_off(policy: Policy) -> dict[str, int]:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    bound = torch.cuda.memory_reserved() + 3 * 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, bound / total))
    engine = TransformersEngine(
        policy, seed=1, temperature=1.0, max_tokens=64, batch_tokens=10**9, max_rows=1024
    )
    prompts = [np.random.default_rng(n).integers(2, 512, 64).tolist() for n in range(16)]
    found: list[Rollout] = list(
        engine.sample([SampleRequest(str(n), p, 0, 64) for n, p in enumerate(prompts)])
    )
    torch.cuda.set_per_process_memory_fraction(1.0)
    keys = [(one.item_id, one.sample) for one in found]
    return {
        "missing": 16 * 64 - len(set(keys)), "twice": len(keys) - len(set(keys)),
        "batch_tokens": engine.batch_tokens, "rows": engine.max_rows,
    }  # fmt: skip


class _WithWeights:
    """Stands in for an engine whose weights are its own, 20 GB of them."""

    name, has_own_weights, stops_at = "stand-in", True, float("inf")

    def __init__(self) -> None:
        self.weights: torch.Tensor | None = None

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        """Take the memory."""
        self.weights = torch.empty(20 * 10**9, dtype=torch.uint8, device="cuda")
        yield from ()

    def unfinished(self) -> list[int] | None:
        """None."""
        return None

    def close(self) -> None:
        """Give it back."""
        self.weights = None
        torch.cuda.empty_cache()

    def facts(self) -> dict[str, Any]:
        """None."""
        return {}


def turns(place: Place) -> Found:
    """An engine with weights of its own and the policy never hold the memory together."""
    if not place.is_gpu:
        raise LeftOut("on a CPU both stay")
    folder = saved_folder(qwen2(place, "0.5B", layers=4), place.folder / "turns", torch.bfloat16)
    loaded = LoadedModel(
        TagConfig(model=str(folder), engine="transformers"), resolve_model(str(folder))
    )
    stand_in: Any = _WithWeights()
    loaded._engine = stand_in
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info()
    left, free = [], []
    for _ in range(2):
        list(loaded.engine().sample([]))
        loaded.policy()
        left.append(torch.cuda.memory_allocated())
        loaded.engine()
        left.append(torch.cuda.memory_allocated())
        free.append(before - torch.cuda.mem_get_info()[0])
    loaded.close()
    # The policy of four layers takes 0.4 GB; without it nothing is left.
    without = max(left[1::2])
    numbers = {"allocated": left, "not_free": free}
    text = f"{without / 1e6:.0f} MB left after the policy, {max(free) / 1e9:.2f} GB not free again"
    return Found(max(left) < 2e9 and without < 1e8 and max(free) < 1e9, text, numbers)


def embeddings(place: Place) -> Found:
    """Embeddings of prompts are those of the CPU."""
    try:
        from recipes.confirm.embedding import embed_prompts
    except ImportError as error:
        raise LeftOut(f"{error.name} is not installed") from error
    exact = random_policy(qwen2(place, "0.5B", layers=4), CPU, torch.float32)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 512, size=int(rng.integers(3, 60))).tolist() for _ in range(32)]
    own = embed_prompts(copied(exact, place.device, choose_dtype(place.device)), prompts)
    least = float(cosines(own.astype(np.float64), embed_prompts(exact, prompts)).min())
    return Found(least > 0.999, f"cosine {least:.5f} or more, of 32 prompts", {"least": least})
