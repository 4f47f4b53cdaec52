"""Gradients of experts and routers: each expert's own, of every rollout, whatever is beside it."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from curate.errors import UsageError
from probes.doctor.training_step import TrainedAdapter
from probes.gradients import tap
from probes.gradients.batch import TokenizedRollout
from probes.gradients.experts import Pairs
from probes.gradients.lora import GradientProbe
from probes.gradients.memory import (
    _block_bytes,
    adapter_bytes,
    kept_bytes,
    recomputed_bytes,
    tokens_kept_whole,
)
from probes.gradients.tap import Adapter
from probes.gradients.targets import coverage, find_targets
from probes.models.files import resolve_model
from probes.models.load import Policy, load_policy
from probes.models.modules import fused_experts, routers
from tests.made.architectures import save_architecture
from tests.test_gradient_memory import Counted
from tests.test_gradients import assert_same, features_of, rollouts_of, shared_prefixes

EXACT = Adapter(rank=4, dim=None)
KINDS = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"]


def made(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Policy:
    files = resolve_model(str(save_architecture(folder / kind, kind)))
    return load_policy(files, device=torch.device("cpu"), dtype=dtype)


@pytest.fixture(scope="module", params=KINDS)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return made(tmp_path_factory.mktemp("models"), request.param)


def part_of(features: np.ndarray, policy: Policy, name: str) -> np.ndarray:
    """The coordinates of one matrix, (rollouts, experts, fan_out, rank) of experts."""
    start = 0
    for each, target in find_targets(policy.model, ("auto",)).items():
        shape = (*target.matrix.shape[:-1], EXACT.rank)
        size = int(np.prod(shape))
        if each == name:
            return features[:, start : start + size].reshape(-1, *shape)
        start += size
    raise KeyError(name)


# --- What is computed ------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [90, 100_000])
def test_batch_padding_order_and_shared_prefixes_do_not_matter(
    policy: Policy, batch_tokens: int
) -> None:
    rollouts = shared_prefixes()[:12]
    for adapter in (EXACT, Adapter(dim=512)):
        alone = np.concatenate([features_of(policy, [one], adapter) for one in rollouts])
        together = features_of(policy, rollouts[::-1], adapter, batch_tokens)[::-1]
        assert_same(together, alone, relative=2e-5)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_what_transformers_would_run_does_not_matter(policy: Policy, implementation: str) -> None:
    rollouts = rollouts_of(4)
    expected = features_of(policy, rollouts, EXACT)
    policy.model.set_experts_implementation(implementation)
    try:
        np.testing.assert_array_equal(features_of(policy, rollouts, EXACT), expected)
    finally:
        policy.model.set_experts_implementation("grouped_mm")


def test_recomputed_blocks_give_the_same_bits(policy: Policy) -> None:
    rollouts = rollouts_of(8)
    found = []
    for kept_tokens in (10**9, 1):
        probe = GradientProbe(policy, EXACT, batch_tokens=300, kept_tokens=kept_tokens)
        found.append(np.concatenate([features for _, features in probe.gradients(rollouts)]))
    np.testing.assert_array_equal(*found)
    assert not any("forward" in vars(module) for module in policy.model.modules())


def test_only_experts_that_were_chosen_have_gradients(policy: Policy) -> None:
    """Told by the model's own router, of one short rollout."""
    name, experts = list(fused_experts(policy.model).items())[-1]
    rollout = TokenizedRollout([3, 9], [5, 1])
    chosen: set[int] = set()

    def note(module: Any, inputs: tuple[Any, ...]) -> None:
        # Of the last block: the first token predicts nothing of the completion.
        chosen.update(inputs[1][1:].flatten().tolist())

    handle = experts.module.register_forward_pre_hook(note)
    policy.model(input_ids=torch.tensor([[3, 9, 5]]))
    handle.remove()
    features = features_of(policy, [rollout], EXACT)
    for parameter in experts.matrices:
        (gradients,) = part_of(features, policy, f"{name}.{parameter}")
        assert set(np.flatnonzero(np.abs(gradients).max(axis=(1, 2)) > 1e-5)) == chosen
        assert 0 < len(chosen) < experts.count


def test_agrees_with_peft(tmp_path: Path) -> None:
    """PEFT's own adapters of parameters; the router is one too."""
    policy = made(tmp_path, "qwen3_moe")
    rollouts = shared_prefixes()[:6]
    ours = features_of(policy, rollouts, EXACT)
    taps = GradientProbe(policy, EXACT)._taps
    names = ("mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    adapted = get_peft_model(
        made(tmp_path, "qwen3_moe").model,
        LoraConfig(r=4, lora_alpha=32, target_parameters=list(names), lora_dropout=0.0),
    )
    matrices = {}
    for name, module in adapted.get_base_model().named_modules():
        if hasattr(module, "parameter_name"):
            # Of two adapters on one module the second is around the first.
            full = name.replace(".base_layer", "")
            full += "" if module.parameter_name == "weight" else f".{module.parameter_name}"
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            with torch.no_grad():
                a.copy_(taps[full].lora_a(a.shape[1]).reshape(a.shape))
            matrices[full] = b
    assert len(matrices) == 6
    for place, rollout in enumerate(rollouts):
        ids = torch.tensor([[*rollout.prompt_token_ids, *rollout.completion_token_ids]])
        first = len(rollout.prompt_token_ids)
        logits = adapted(input_ids=ids).logits[0, first - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, first:])
        slopes = torch.autograd.grad(loss, list(matrices.values()))
        for name, slope in zip(matrices, slopes, strict=True):
            (own,) = part_of(ours[place : place + 1], policy, name)
            # PEFT has all experts' B side by side, rank by rank.
            theirs = slope.view(len(slope), 4, -1).permute(2, 0, 1) if own.ndim == 3 else slope
            np.testing.assert_allclose(own, theirs.numpy(), rtol=1e-3, atol=1e-5)


def test_the_doctor_finds_the_same_by_autograd(policy: Policy) -> None:
    rollouts = rollouts_of(4)
    expected = TrainedAdapter(policy, EXACT).gradients(rollouts)
    assert_same(features_of(policy, rollouts, EXACT), expected, relative=1e-3)
    half = dataclasses.replace(policy, model=copy.deepcopy(policy.model).bfloat16())
    (own,), (other,) = (TrainedAdapter(half, EXACT).gradients(rollouts[:1]), expected[:1])
    assert own @ other > 0.9 * np.linalg.norm(own) * np.linalg.norm(other)
    for model in (policy.model, half.model):
        assert not any("down_proj" in vars(module) for module in model.modules())


def test_bfloat16_keeps_the_directions(tmp_path: Path) -> None:
    rollouts = shared_prefixes()
    whole, half = (
        features_of(made(tmp_path / str(dtype), "mixtral", dtype), rollouts, EXACT)
        for dtype in (torch.float32, torch.bfloat16)
    )
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (whole, half)]
    # A token whose router is undecided goes to another expert in another precision.
    assert np.median(np.einsum("rd,rd->r", *unit)) > 0.97


def test_a_router_that_names_experts_in_another_order_changes_nothing(policy: Policy) -> None:
    """As one may that computes each token by itself, where two probabilities are all but equal."""
    rollouts = shared_prefixes()[:8]
    expected = features_of(policy, rollouts, EXACT)
    experts = [each.module for each in fused_experts(policy.model).values()]

    def turned(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, index, weights = inputs
        is_turned = (torch.arange(len(index)) % 3 == 0)[:, None]
        return (
            hidden,
            torch.where(is_turned, index.flip(1), index),
            torch.where(is_turned, weights.flip(1), weights),
        )

    handles = [module.register_forward_pre_hook(turned) for module in experts]
    try:
        assert_same(features_of(policy, rollouts, EXACT), expected, relative=2e-5)
    finally:
        for handle in handles:
            handle.remove()


def test_rows_are_projected_some_at_a_time(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts, adapter = rollouts_of(7), Adapter(rank=4, dim=256)
    whole = features_of(policy, rollouts, adapter)
    monkeypatch.setattr(tap, "_ROWS_COLUMNS", 8)  # Two rows.
    assert_same(features_of(policy, rollouts, adapter), whole)
    monkeypatch.setattr(tap, "_PROJECTED_BYTES", 1)
    assert_same(features_of(policy, rollouts, adapter), whole)


def test_pairs_are_sorted_by_expert_and_row_and_no_expert_is_none() -> None:
    index = torch.tensor([[2, 0], [3, 2], [0, 2], [3, 3]])  # Of three experts: 3 is none.
    pairs = Pairs(index, torch.tensor([0, 0, 1, 2]), rows=3, experts=3)
    assert pairs.order.tolist() == [1, 4, 0, 3, 5]
    assert pairs.tokens.tolist() == [0, 2, 0, 1, 2] and pairs.rows.tolist() == [0, 1, 0, 0, 1]
    assert pairs.counts.tolist() == [[1, 0, 2], [1, 0, 1], [0, 0, 0]]
    assert list(pairs.by_expert()) == [(0, slice(0, 2)), (2, slice(2, 5))]
    assert list(pairs.by_expert(1, 2)) == [(0, slice(1, 2)), (2, slice(4, 5))]
    assert list(pairs.by_expert(2, 3)) == []


# --- What is differentiated --------------------------------------------------------------------


def test_experts_and_routers_by_name(policy: Policy) -> None:
    names = list(find_targets(policy.model, ("gate_up_proj",)))
    assert names and all(name.endswith(".experts.gate_up_proj") for name in names)
    few = Adapter(rank=4, dim=64, targets=("gate_up_proj",))
    assert features_of(policy, rollouts_of(2), few).any()
    router = next(iter(routers(policy.model))).rpartition(".")[2]
    few = Adapter(rank=4, dim=64, targets=(router,))
    assert features_of(policy, rollouts_of(2), few).any()
    with pytest.raises(UsageError, match=r"no module 'up'.*down_proj.*gate_up_proj"):
        find_targets(policy.model, ("up",))


def test_experts_and_routers_of_another_form_are_named(tmp_path: Path) -> None:
    policy = made(tmp_path, "qwen3_moe")
    assert coverage(policy.model, ("auto",)).left_out == ()
    first, second = policy.model.model.layers
    # A tensor that we know nothing of, and a router that does more with its weight.
    first.mlp.experts.extra = torch.nn.Parameter(torch.zeros(4, 2, 2), requires_grad=False)

    class Regularised(Qwen3MoeTopKRouter):
        def forward(self, hidden: torch.Tensor) -> Any:
            logits, weights, index = super().forward(hidden)  # type: ignore[no-untyped-call]
            return logits, weights * (1 + (self.weight * self.weight).sum()), index

    second.mlp.gate.__class__ = Regularised
    found = coverage(policy.model, ("auto",))
    assert set(found.left_out) == {
        "mlp.experts.gate_up_proj",
        "mlp.experts.down_proj",
        "mlp.experts.extra",
        "mlp.gate.weight",
    }
    left = set(find_targets(policy.model, ("auto",)))
    assert "model.layers.0.mlp.gate" in left and "model.layers.1.mlp.gate" not in left
    assert "model.layers.1.mlp.experts.down_proj" in left
    assert features_of(policy, rollouts_of(2), Adapter(dim=64)).any()


def test_a_router_that_is_given_more_than_tokens_is_known() -> None:
    settings = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    config = AutoConfig.for_model("minimax_m2", **settings, **experts, vocab_size=18)
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    assert list(routers(model)) == ["model.layers.0.mlp.gate"]
    assert coverage(model, ("auto",)).left_out == ()


# --- Memory ----------------------------------------------------------------------------------


def bytes_at_once(policy: Policy, tokens: int, kept_tokens: int) -> int:
    """Bytes at once of the gradient of one rollout, beyond what there was."""
    probe = GradientProbe(policy, Adapter(rank=4, dim=64), kept_tokens=kept_tokens)
    draws = np.random.default_rng(0)
    probe.rehearse([TokenizedRollout([3, 4], [5, 6])])  # A and the signs.
    counted = Counted()
    with counted:
        probe.rehearse([TokenizedRollout([3, 4], draws.integers(3, 18, size=tokens).tolist())])
    return counted.most


def test_what_a_token_keeps_is_about_what_is_counted(tmp_path: Path) -> None:
    """Passes are made as large as memory allows by this, with experts too."""
    config = MixtralConfig(
        vocab_size=18,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=4,
    )
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config).eval().requires_grad_(False)
    policy = dataclasses.replace(made(tmp_path, "mixtral"), model=model)
    assert _block_bytes(policy) == (8 * 128 + 4 * 4 * 96) * 4
    kept, again = (
        (bytes_at_once(policy, 600, tokens) - bytes_at_once(policy, 200, tokens)) / 400
        for tokens in (10**9, 1)
    )
    assert 0.6 * kept_bytes(policy) < kept < 1.2 * kept_bytes(policy)
    assert again < 1.2 * recomputed_bytes(policy) and again < kept / 2


def test_adapters_of_all_experts_are_counted(tmp_path: Path) -> None:
    policy = made(tmp_path, "mixtral")
    targets = find_targets(policy.model, ("auto",))
    probe = GradientProbe(policy, Adapter(rank=4, dim=64))
    probe.rehearse(rollouts_of(1))
    taps: list[Any] = list(probe._taps.values())
    held = sum(4 * each._a.numel() + 4 * len(each._sketch._signs) for each in taps)
    assert held == adapter_bytes(targets.values(), 4, policy)
    free = tokens_kept_whole(policy, 0)
    assert tokens_kept_whole(policy, free * kept_bytes(policy)) == pytest.approx(free / 2, rel=0.2)
