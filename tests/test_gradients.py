"""Features are the policy's own gradients: against PEFT, and whatever the batch."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from curate.errors import RunError, UsageError
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.gradients.similarity import halves
from probes.gradients.tap import Adapter
from probes.gradients.targets import find_targets
from probes.models.files import resolve_model
from probes.models.load import Policy, load_policy

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


def shared_prefixes(seed: int = 0) -> list[TokenizedRollout]:
    """Items whose prompts start alike, each with completions that start alike."""
    draws = np.random.default_rng(seed)
    template = draws.integers(3, 18, size=6).tolist()
    rollouts = []
    for length in (0, 3, 3, 11, 20):
        prompt = template + draws.integers(3, 18, size=length).tolist()
        start = draws.integers(3, 18, size=4).tolist()
        for longer in (1, 2, 5, 5, 16):
            completion = start[: longer - 1] + draws.integers(3, 18, size=longer).tolist()
            rollouts.append(TokenizedRollout(prompt, [*completion, 1]))
        # Cut at the token limit: the start of another completion and of nothing else.
        rollouts.append(TokenizedRollout(prompt, rollouts[-1].completion_token_ids[:4]))
    rollouts.append(TokenizedRollout(template, rollouts[3].completion_token_ids))
    return [rollouts[i] for i in draws.permutation(len(rollouts))]


@pytest.mark.parametrize("batch_tokens", [90, 400, 100_000])
def test_shared_prefixes_change_nothing(tiny_policy: Policy, batch_tokens: int) -> None:
    rollouts = shared_prefixes()
    for adapter in (EXACT, Adapter(dim=512)):
        alone = np.concatenate([features_of(tiny_policy, [one], adapter) for one in rollouts])
        together = features_of(tiny_policy, rollouts, adapter, batch_tokens)
        assert_same(together, alone, relative=1e-5)


def test_shared_prefixes_agree_with_plain_autograd(tiny_policy: Policy, tiny_model: object) -> None:
    rollouts = shared_prefixes()
    theirs = autograd_through_peft(tiny_policy, rollouts, str(tiny_model))
    assert_same(features_of(tiny_policy, rollouts), theirs, relative=1e-3)


def test_bfloat16_keeps_the_directions(tiny_policy: Policy, tiny_model: object) -> None:
    half = load_policy(
        resolve_model(str(tiny_model)), device=torch.device("cpu"), dtype=torch.bfloat16
    )
    rollouts = shared_prefixes()
    first, second = (features_of(policy, rollouts, Adapter()) for policy in (half, tiny_policy))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second)]
    # Of a feature with itself in float32, and of every two features.
    assert np.einsum("rd,rd->r", *unit).min() > 0.99
    assert np.abs(unit[0] @ unit[0].T - unit[1] @ unit[1].T).max() < 0.03


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
    # transformers may have hooks of its own there, of what another test asked the model for.
    hooks = hooks_of(tiny_policy)
    features_of(tiny_policy, rollouts_of(4))
    for name, parameter in tiny_policy.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
    assert hooks_of(tiny_policy) == hooks


def hooks_of(policy: Policy) -> list[tuple[int, int, bool]]:
    """Of every module: its hooks, and whether its forward is replaced."""
    return [
        (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
        for m in policy.model.modules()
    ]


def test_every_linear_layer_of_the_blocks_by_default(tiny_policy: Policy) -> None:
    leaves = [name.rpartition(".")[2] for name in find_targets(tiny_policy.model, ("auto",))]
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert leaves == 2 * [*attention, "gate_proj", "up_proj", "down_proj"]


def gpt2_policy(tiny_policy: Policy) -> Policy:
    """A model with transposed weights, tied embeddings and one projection for q, k and v."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=18, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2
    )
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    return dataclasses.replace(tiny_policy, model=model)


def test_transposed_weights(tiny_policy: Policy) -> None:
    policy = gpt2_policy(tiny_policy)
    targets = find_targets(policy.model, ("auto",))
    assert {name.rpartition(".")[2] for name in targets} == {"c_attn", "c_proj", "c_fc"}
    assert len(targets) == 8
    rollouts = shared_prefixes()
    together = features_of(policy, rollouts)
    alone = np.concatenate([features_of(policy, [one]) for one in rollouts])
    assert_same(together, alone, relative=1e-5)
    # B of the last block's output projection by finite differences of the loss.
    name, target = list(targets.items())[-1]
    tap = GradientProbe(policy, EXACT)._taps[name]
    weight = target.module.weight
    a = tap.lora_a(weight.shape[0]).double()
    step = torch.zeros(32, EXACT.rank, dtype=torch.float64)
    step[5, 3] = 1e-3
    model = policy.model.double()
    losses = []
    for sign in (1, -1):
        change = sign * EXACT.alpha / EXACT.rank * (step @ a).T
        with torch.no_grad():
            weight += change
            losses.append(mean_loss(model, rollouts[0]))
            weight -= change
    expected = (losses[0] - losses[1]) / 2e-3
    own = together[0][-32 * EXACT.rank :].reshape(32, EXACT.rank)[5, 3]
    assert own == pytest.approx(expected, rel=1e-3)


def mean_loss(model: torch.nn.Module, rollout: TokenizedRollout) -> float:
    tokens = torch.tensor([[*rollout.prompt_token_ids, *rollout.completion_token_ids]])
    labels = tokens.clone()
    labels[0, : len(rollout.prompt_token_ids)] = -100
    logits = model(input_ids=tokens).logits
    return torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:]).item()


def test_a_module_without_part_in_the_pass(tiny_policy: Policy) -> None:
    model = copy.deepcopy(tiny_policy.model)
    model.unused = torch.nn.Linear(4, 4)
    policy = dataclasses.replace(tiny_policy, model=model)
    with pytest.raises(RunError, match=r"unused.* took no part"):
        features_of(policy, rollouts_of(2), Adapter(dim=64, targets=("q_proj", "unused")))
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_layer_that_runs_twice_has_both_gradients(
    tiny_policy: Policy, tiny_model: object
) -> None:
    model = copy.deepcopy(tiny_policy.model)
    model.model.layers[1].mlp = model.model.layers[0].mlp
    policy = dataclasses.replace(tiny_policy, model=model)
    rollouts = shared_prefixes()
    (features,) = features_of(policy, rollouts[:1], Adapter(dim=None, targets=("down_proj",)))
    weight = model.model.layers[0].mlp.down_proj.weight
    weight.requires_grad_()
    loss = model(
        input_ids=torch.tensor([[*rollouts[0].prompt_token_ids, *rollouts[0].completion_token_ids]])
    ).logits[0]
    prompt = len(rollouts[0].prompt_token_ids)
    torch.nn.functional.cross_entropy(
        loss[prompt - 1 : -1], torch.tensor(rollouts[0].completion_token_ids)
    ).backward()
    tap = GradientProbe(policy, Adapter(targets=("down_proj",)))._taps[
        "model.layers.0.mlp.down_proj"
    ]
    expected = EXACT.alpha / EXACT.rank * weight.grad @ tap.lora_a(weight.shape[1]).T
    assert_same(features[None], expected.numpy().reshape(1, -1))


def test_targets_by_name(tiny_policy: Policy) -> None:
    modules = find_targets(tiny_policy.model, ("o_proj", "down_proj"))
    assert len(modules) == 4
    assert {name.rpartition(".")[2] for name in modules} == {"o_proj", "down_proj"}
    assert features_of(tiny_policy, rollouts_of(2), Adapter(dim=64, targets=("o_proj",))).any()


def test_an_unknown_target_is_named_with_those_there_are(tiny_policy: Policy) -> None:
    with pytest.raises(UsageError, match=r"no module 'query'.*down_proj.*q_proj"):
        find_targets(tiny_policy.model, ("query",))


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


def test_both_halves_of_the_coordinates_see_the_gradients_alike(tiny_policy):
    """`measure_similarity` chooses neighbours in the one half and measures in the other."""
    rng = np.random.default_rng(0)
    rollouts = [
        TokenizedRollout(rng.integers(3, 18, 6).tolist(), rng.integers(3, 13, 3).tolist())
        for _ in range(24)
    ]

    def cosines(features):
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
        return (features @ features.T)[np.triu_indices(len(features), 1)]

    exact = cosines(features_of(tiny_policy, rollouts, Adapter(dim=None)))
    sketched = features_of(tiny_policy, rollouts, Adapter(dim=4096))
    for coordinates in halves(4096):
        half = sketched[:, coordinates]
        assert np.corrcoef(cosines(half), exact)[0, 1] > 0.85
        assert abs(cosines(half).mean() - exact.mean()) < 0.03
