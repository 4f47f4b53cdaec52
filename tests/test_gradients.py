"""Features are the policy's own gradients: against PEFT, and whatever the batch."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from curate.errors import UsageError
from probes.gradients import Adapter, GradientProbe, TokenizedRollout, target_modules
from probes.models import Policy, load_policy, resolve_model

EXACT = Adapter(dim=None)


def rollouts_of(count: int, seed: int = 0) -> list[TokenizedRollout]:
    draws = np.random.default_rng(seed)
    return [
        TokenizedRollout(
            draws.integers(3, 18, size=int(draws.integers(2, 30))).tolist(),
            [*draws.integers(3, 18, size=int(draws.integers(1, 20))).tolist(), 1],
        )
        for _ in range(count)
    ]


def features_of(
    policy: Policy,
    rollouts: list[TokenizedRollout],
    adapter: Adapter = EXACT,
    batch_tokens: int = 1024,
) -> np.ndarray:
    probe = GradientProbe(policy, adapter, batch_tokens=batch_tokens)
    found = {
        position: feature
        for positions, features in probe.gradients(rollouts)
        for position, feature in zip(positions, features, strict=True)
    }
    assert sorted(found) == list(range(len(rollouts)))
    return np.stack([found[position] for position in range(len(rollouts))])


def assert_same(first: np.ndarray, second: np.ndarray, relative: float = 1e-4) -> None:
    difference = np.linalg.norm(first - second, axis=1)
    assert (difference <= relative * np.linalg.norm(second, axis=1)).all()


def autograd_through_peft(
    policy: Policy, rollouts: list[TokenizedRollout], folder: str
) -> np.ndarray:
    """One rollout a pass, loss by hand, through a real PEFT adapter with the probe's A."""
    model = load_policy(
        resolve_model(folder), device=torch.device("cpu"), dtype=torch.float32
    ).model
    model.set_attn_implementation("eager")
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=EXACT.rank,
            lora_alpha=EXACT.alpha,
            target_modules="all-linear",
            lora_dropout=0.0,
        ),
    )
    taps = GradientProbe(policy, EXACT)._taps
    b_matrices = []
    for name, module in adapted.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            assert not b.any()
            with torch.no_grad():
                a.copy_(taps[name].lora_a(a.shape[1]))
            b_matrices.append(b)
    assert len(b_matrices) == len(taps)
    rows = []
    for rollout in rollouts:
        adapted.zero_grad()
        prompt, completion = list(rollout.prompt_token_ids), list(rollout.completion_token_ids)
        logits = adapted(input_ids=torch.tensor([prompt + completion])).logits[0]
        log_probabilities = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        chosen = log_probabilities[torch.arange(len(completion)), torch.tensor(completion)]
        (-chosen.mean()).backward()
        rows.append(torch.cat([b.grad.flatten() for b in b_matrices]).numpy().copy())
    return np.stack(rows)


def test_agrees_with_plain_autograd_through_peft(tiny_policy: Policy, tiny_model: object) -> None:
    rollouts = rollouts_of(24)
    ours = features_of(tiny_policy, rollouts)
    theirs = autograd_through_peft(tiny_policy, rollouts, str(tiny_model))
    assert_same(ours, theirs, relative=1e-3)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (ours, theirs)]
    cosines = [rows @ rows.T for rows in unit]
    assert np.abs(cosines[0] - cosines[1]).max() < 1e-3
    # The items must differ for the comparison to say anything.
    assert np.abs(cosines[0][~np.eye(24, dtype=bool)]).min() < 0.5


@pytest.mark.parametrize("batch_tokens", [1, 60, 300, 100_000])
def test_batch_size_and_padding_do_not_matter(tiny_policy: Policy, batch_tokens: int) -> None:
    rollouts = rollouts_of(20)
    for adapter in (EXACT, Adapter(dim=512)):
        alone = np.concatenate([features_of(tiny_policy, [one], adapter) for one in rollouts])
        assert_same(features_of(tiny_policy, rollouts, adapter, batch_tokens), alone)


def test_order_does_not_matter(tiny_policy: Policy) -> None:
    rollouts = rollouts_of(20)
    order = np.random.default_rng(1).permutation(20)
    shuffled = features_of(tiny_policy, [rollouts[i] for i in order])
    assert_same(shuffled, features_of(tiny_policy, rollouts)[order])


def test_a_different_completion_gives_a_different_gradient(tiny_policy: Policy) -> None:
    first, second = features_of(
        tiny_policy, [TokenizedRollout([5, 6], [7, 1]), TokenizedRollout([5, 6], [8, 1])]
    )
    assert np.linalg.norm(first - second) > 0.1 * np.linalg.norm(first)


def test_projection_keeps_inner_products(tiny_policy: Policy) -> None:
    rollouts = rollouts_of(30)
    exact = features_of(tiny_policy, rollouts)
    scale = np.outer(np.linalg.norm(exact, axis=1), np.linalg.norm(exact, axis=1))
    errors = []
    for seed in range(8):
        probe = Adapter(dim=1024, seed=seed)
        same_a = features_of(tiny_policy, rollouts, Adapter(dim=None, seed=seed))
        scale = np.outer(np.linalg.norm(same_a, axis=1), np.linalg.norm(same_a, axis=1))
        sketched = features_of(tiny_policy, rollouts, probe)
        errors.append((sketched @ sketched.T - same_a @ same_a.T) / scale)
    deviation = np.sqrt(np.mean(np.square(errors)))
    # About 1/sqrt(1024) = 0.031 in theory; unbiased over seeds.
    assert deviation < 0.05
    assert abs(np.mean(errors)) < 0.01


def test_the_policy_is_left_as_it_was(tiny_policy: Policy) -> None:
    before = {name: p.clone() for name, p in tiny_policy.model.named_parameters()}
    features_of(tiny_policy, rollouts_of(4))
    for name, parameter in tiny_policy.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
    assert not any(module._forward_hooks for module in tiny_policy.model.modules())


def test_targets_by_name(tiny_policy: Policy) -> None:
    modules = target_modules(tiny_policy.model, ("o_proj", "down_proj"))
    assert len(modules) == 4
    assert {name.rpartition(".")[2] for name in modules} == {"o_proj", "down_proj"}
    assert features_of(tiny_policy, rollouts_of(2), Adapter(dim=64, targets=("o_proj",))).any()


def test_an_unknown_target_is_named_with_those_there_are(tiny_policy: Policy) -> None:
    with pytest.raises(UsageError, match=r"no module 'query'.*down_proj.*q_proj"):
        target_modules(tiny_policy.model, ("query",))


def test_out_of_memory_halves_the_batch(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = GradientProbe(tiny_policy, EXACT)
    real = probe._pass
    sizes = []

    def passes_of_three(rollouts: list[TokenizedRollout]) -> np.ndarray:
        sizes.append(len(rollouts))
        if len(rollouts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(rollouts)

    monkeypatch.setattr(probe, "_pass", passes_of_three)
    rollouts = rollouts_of(10)
    done = [i for positions, _ in probe.gradients(rollouts) for i in positions]
    assert sorted(done) == list(range(10)) and max(sizes) > 3
