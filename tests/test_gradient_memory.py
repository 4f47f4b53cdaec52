"""Gradient passes that fit into memory: recomputed blocks, the head in chunks, smaller passes."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Qwen2Config

from probes.gradients import lora, tap
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.gradients.memory import Limit
from probes.gradients.sketch import Sketch
from probes.gradients.tap import Adapter
from probes.models.files import ModelFiles
from probes.models.load import Policy, is_out_of_memory
from tests.test_gradients import EXACT, assert_same, features_of, rollouts_of

ALL = 10**9


def of(policy: Policy, rollouts: list[TokenizedRollout], **limits: int) -> np.ndarray:
    """Features in the order of the rollouts."""
    found: dict[int, np.ndarray] = {}
    for places, features in GradientProbe(policy, EXACT, **limits).gradients(rollouts):
        found |= dict(zip(places, features, strict=True))
    return np.stack([found[place] for place in range(len(rollouts))])


@pytest.mark.parametrize("batch_tokens", [1, 300])
def test_recomputed_blocks_give_the_same_bits(tiny_policy: Policy, batch_tokens: int) -> None:
    rollouts = rollouts_of(12)
    kept = of(tiny_policy, rollouts, batch_tokens=batch_tokens, kept_tokens=ALL)
    recomputed = of(tiny_policy, rollouts, batch_tokens=batch_tokens, kept_tokens=1)
    np.testing.assert_array_equal(recomputed, kept)
    # Nothing of it stays with the model.
    assert not any("forward" in vars(module) for module in tiny_policy.model.modules())


class Counted(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive: `now`, and `most` at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        return output

    def gone(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def qwen(layers: int) -> tuple[Policy, Counted]:
    """Qwen2.5-7B with some of its 28 layers; call it where tensors are fake."""
    config = Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=layers,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    counted = Counted()
    with counted:
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    files = ModelFiles("qwen", Path(), None, None, "")
    cpu = torch.device("cpu")
    return Policy(files, model, None, cpu, torch.bfloat16, frozenset(), 32_768), counted


def most_bytes(layers: int, tokens: int, kept_tokens: int) -> int:
    """Bytes at once, weights counted, of the gradient of one rollout; nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        policy, counted = qwen(layers)
        probe = GradientProbe(policy, kept_tokens=kept_tokens)
        with counted:
            probe.rehearse([TokenizedRollout(range(100), range(tokens - 100))])
    return counted.most


def test_16k_tokens_of_a_7b_fit_into_30_gb() -> None:
    """Counted for 2 and 6 of 28 layers: each further one adds the same."""
    two, six = (most_bytes(layers, 16_384, kept_tokens=1) for layers in (2, 6))
    whole = two + (six - two) * 26 // 4
    assert 15.2e9 < whole < 30e9  # Its weights are 15.2 GB.
    # Without recomputation not even a quarter of the tokens would.
    two, six = (most_bytes(layers, 4_096, kept_tokens=ALL) for layers in (2, 6))
    assert two + (six - two) * 26 // 4 > 30e9


def test_the_head_in_chunks_changes_nothing(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = [*rollouts_of(12), TokenizedRollout([3, 4], [5, 6, 7] * 60)]
    whole = features_of(tiny_policy, rollouts)
    seen = []
    head = tiny_policy.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda *told: seen.append(told[2].shape[1]))
    monkeypatch.setitem(lora._HEAD_BYTES, "cpu", 1)
    try:
        assert_same(features_of(tiny_policy, rollouts), whole)
    finally:
        handle.remove()
    assert len(seen) > 3 and max(seen) == 64


def test_a_model_that_does_not_tell_its_head_apart_has_one_chunk(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = [TokenizedRollout([3, 4], [5, 6, 7] * 60)]
    whole = features_of(tiny_policy, rollouts)
    monkeypatch.setitem(lora._HEAD_BYTES, "cpu", 1)
    monkeypatch.setattr(type(tiny_policy.model), "base_model_prefix", "")
    assert tiny_policy.model.base_model is tiny_policy.model
    np.testing.assert_array_equal(features_of(tiny_policy, rollouts), whole)


def test_the_sketch_of_a_gpu_is_that_of_a_cpu_in_few_operations() -> None:
    size, dim = 10_000, 64
    draws = [np.random.default_rng(0) for _ in range(2)]
    stretches, gathered = (Sketch(d, size, dim, 2.0, torch.device("cpu")) for d in draws)
    gathered.gather()
    gradient = torch.randn(5, size)
    sums = [torch.zeros(5, 2 * dim) for _ in range(2)]
    operations = []
    for sketch, place in zip((stretches, gathered), sums, strict=True):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            sketch.add(gradient.clone(), place)
        operations.append(len(profile.events()))
    first, second = (place[:, :dim] + place[:, dim:] for place in sums)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-3)
    assert operations[1] < 20 < operations[0]


class Memory:
    """Passes of a probe that run out of memory: above `kept` tokens, or `recomputed` ones."""

    def __init__(self, probe: GradientProbe, kept: int, recomputed: int) -> None:
        self.passes: list[tuple[int, bool]] = []
        self.probe, self.real = probe, probe._pass
        self.kept, self.recomputed = kept, recomputed

    def run(self, rollouts: list[TokenizedRollout]) -> np.ndarray:
        tokens = len(rollouts) * max(rollout.tokens for rollout in rollouts)
        is_recomputed = tokens > self.probe._kept_limit.tokens
        self.passes.append((tokens, is_recomputed))
        if tokens > (self.recomputed if is_recomputed else self.kept):
            raise RuntimeError("CUDA error: out of memory")
        return self.real(rollouts)


def test_what_does_not_fit_is_recomputed_and_then_left_out(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = [TokenizedRollout([3, 4], [5] * length) for length in (3, 8, 18, 28, 4, 3)]
    expected = of(tiny_policy, rollouts)
    probe = GradientProbe(tiny_policy, EXACT)
    memory = Memory(probe, kept=12, recomputed=25)
    monkeypatch.setattr(probe, "_pass", memory.run)
    found: dict[int, np.ndarray] = {}
    for places, features in probe.gradients(rollouts):
        found |= dict(zip(places, features, strict=True))
    assert sorted(found) == [0, 1, 2, 4, 5]  # Not the one of 30 tokens.
    for place, feature in found.items():
        assert_same(feature[None], expected[place][None])
    assert (20, True) in memory.passes and (30, True) in memory.passes


def test_limits_grow_back() -> None:
    limit = Limit(1000, 1000)
    limit.lower(200)
    for _ in range(15):
        limit.went_well()
    assert limit.tokens == 200
    for _ in range(200):
        limit.went_well()
    assert limit.tokens == 1000
    limit.lower(0)
    assert limit.tokens == 1


@pytest.mark.parametrize(
    ("words", "is_memory"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("CUDA error: device-side assert triggered", False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", False),
    ],
)
def test_what_counts_as_out_of_memory(words: str, is_memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(words)) is is_memory


def test_many_short_rollouts_are_projected_some_at_a_time(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts, adapter = rollouts_of(9), Adapter(dim=256)
    whole = features_of(tiny_policy, rollouts, adapter)
    monkeypatch.setattr(tap, "_PROJECTED_BYTES", 1)
    assert_same(features_of(tiny_policy, rollouts, adapter), whole)
