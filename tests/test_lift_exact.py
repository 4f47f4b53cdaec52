"""The gradients behind the lift, exactly: on models whose every completion can be listed.

With the whole gradient of B (no projection) a stored feature is that of -(1/|y|) log pi(y | x), so

    g_y = -feature_y,    s_y = grad log pi(y | x) = |y| g_y.
"""

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import binom
from transformers import LlamaConfig, LlamaForCausalLM

from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.gradients.tap import Adapter
from probes.models.files import resolve_model
from probes.models.load import Policy, load_policy
from probes.verifiers.pool import VerifierPool
from recipes.recipe import Recipe
from recipes.train.groups import Group, advantages
from recipes.train.grpo import RecipeTrainer
from recipes.train.prompts import PromptStream, TrainingItem
from recipes.train.settings import trainer_settings
from recipes.train.train import lora_config

EXACT = Adapter(dim=None)
VOCABULARY, END, LONGEST = 4, 1, 3
PROMPTS = ([2, 0, 3], [3, 3, 2, 0, 2])
EPSILON = 1e-4


def all_completions() -> list[list[int]]:
    """Every completion: it ends with END, or is cut after LONGEST tokens."""
    others = [token for token in range(VOCABULARY) if token != END]
    found = []
    for length in range(LONGEST):
        for start in itertools.product(others, repeat=length):
            found.append([*start, END])
            if length == LONGEST - 1:
                found += [[*start, token] for token in others]
    return found


COMPLETIONS = all_completions()
LENGTHS = np.array([len(completion) for completion in COMPLETIONS])
# Right answers of the two items: they end by themselves and are of different lengths.
CORRECT = tuple(
    np.array([completion in right for completion in COMPLETIONS])
    for right in ([[2, END], [0, 2, END], [2, 3, END]], [[END], [3, END], [0, 2, END]])
)


@pytest.fixture(scope="module")
def policy(tiny_policy: Policy) -> Policy:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.4,
        eos_token_id=END,
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return dataclasses.replace(tiny_policy, model=model)


class Adapted:
    """The policy in float64 with a real PEFT adapter that has the probe's A and B = 0."""

    def __init__(self, policy: Policy) -> None:
        settings = LoraConfig(
            r=EXACT.rank, lora_alpha=EXACT.alpha, target_modules="all-linear", lora_dropout=0.0
        )
        self.model = get_peft_model(copy.deepcopy(policy.model), settings).double().eval()
        self.b_matrices = put_probes_a(policy, self.model.get_base_model())

    def log_probabilities(self, prompt: Sequence[int]) -> torch.Tensor:
        """Of every completion, (completions,)."""
        rows = [[*prompt, *c, *[0] * (LONGEST - len(c))] for c in COMPLETIONS]
        ids = torch.tensor(rows)
        logits = self.model(input_ids=ids).logits[:, len(prompt) - 1 : -1]
        tokens = torch.log_softmax(logits, dim=-1).gather(2, ids[:, len(prompt) :, None])[..., 0]
        return (tokens * (torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None])).sum(dim=1)

    def log_pass_rate(self, item: int) -> torch.Tensor:
        return self.log_probabilities(PROMPTS[item])[torch.tensor(CORRECT[item])].logsumexp(dim=0)

    def gradient_of(self, value: torch.Tensor) -> np.ndarray:
        gradients = torch.autograd.grad(value, self.b_matrices)
        return torch.cat([gradient.flatten() for gradient in gradients]).numpy()

    def move(self, step: np.ndarray) -> None:
        """Add to B, all of them in turn."""
        place = 0
        with torch.no_grad():
            for b in self.b_matrices:
                part = step[place : place + b.numel()]
                b += torch.from_numpy(part).view_as(b)
                place += b.numel()
        assert place == len(step)


def put_probes_a(policy: Policy, base: Any) -> list[torch.Tensor]:
    """Give an adapter that has not moved yet the probe's A; return its B, in the probe's order."""
    taps = GradientProbe(policy, EXACT)._taps
    found = {name: module for name, module in base.named_modules() if hasattr(module, "lora_A")}
    assert list(found) == list(taps)
    b_matrices = []
    for name, module in found.items():
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        assert not b.any()
        with torch.no_grad():
            a.copy_(taps[name].lora_a(a.shape[1]))
        b_matrices.append(b)
    return b_matrices


def features_of(policy: Policy, rollouts: Sequence[TokenizedRollout]) -> np.ndarray:
    """(rollouts, coordinates of B), float64."""
    rows: list[np.ndarray | None] = [None] * len(rollouts)
    for positions, features in GradientProbe(policy, EXACT).gradients(rollouts):
        for position, feature in zip(positions, features, strict=True):
            rows[position] = feature.astype(np.float64)
    return np.stack([row for row in rows if row is not None])


@dataclasses.dataclass(frozen=True)
class Listed:
    """What can be known of an item: every completion's probability, and its gradients."""

    probabilities: np.ndarray
    g: np.ndarray
    correct: np.ndarray

    @property
    def s(self) -> np.ndarray:
        """(completions, coordinates): gradient of the log-probability."""
        return LENGTHS[:, None] * self.g

    @property
    def pass_rate(self) -> float:
        return float(self.probabilities[self.correct].sum())

    def mean(self, values: np.ndarray, among: np.ndarray) -> np.ndarray:
        """Under the policy, given that the completion is among some."""
        return self.probabilities[among] @ values[among] / self.probabilities[among].sum()

    @property
    def h(self) -> np.ndarray:
        """Gradient of the log pass rate."""
        return self.mean(self.s, self.correct)

    @property
    def d(self) -> np.ndarray:
        """Mean g of correct completions less that of wrong ones."""
        return self.mean(self.g, self.correct) - self.mean(self.g, ~self.correct)


@pytest.fixture(scope="module")
def adapted(policy: Policy) -> Adapted:
    return Adapted(policy)


@pytest.fixture(scope="module")
def listed(policy: Policy, adapted: Adapted) -> list[Listed]:
    found = []
    for prompt, correct in zip(PROMPTS, CORRECT, strict=True):
        rollouts = [TokenizedRollout(prompt, completion) for completion in COMPLETIONS]
        with torch.no_grad():
            probabilities = adapted.log_probabilities(prompt).exp().numpy()
        found.append(Listed(probabilities, -features_of(policy, rollouts), correct))
    return found


def assert_close(found: np.ndarray, expected: np.ndarray, relative: float = 1e-5) -> None:
    assert np.linalg.norm(found - expected) <= relative * np.linalg.norm(expected)


# --- One item ----------------------------------------------------------------------------------


def test_the_completions_are_all_there_are(listed: list[Listed]) -> None:
    assert len(COMPLETIONS) == 1 + 3 + 9 * VOCABULARY == len(set(map(tuple, COMPLETIONS)))
    for item in listed:
        assert item.probabilities.sum() == pytest.approx(1, abs=1e-12)
        assert 0.02 < item.pass_rate < 0.98


def test_a_feature_times_its_length_is_the_gradient_of_the_log_probability(
    adapted: Adapted, listed: list[Listed]
) -> None:
    for place in range(0, len(COMPLETIONS), 7):
        value = adapted.log_probabilities(PROMPTS[0])[place]
        assert_close(listed[0].s[place], adapted.gradient_of(value))


def test_the_score_has_mean_zero_under_the_policy(listed: list[Listed]) -> None:
    for item in listed:
        size = np.sqrt(item.probabilities @ (item.s**2).sum(axis=1))
        assert np.linalg.norm(item.probabilities @ item.s) < 1e-5 * size
        # Of the mean over tokens it is not, so lengths are needed.
        assert np.linalg.norm(item.probabilities @ item.g) > 1e-2 * size


def test_correct_rollouts_give_the_gradient_of_the_log_pass_rate(
    adapted: Adapted, listed: list[Listed]
) -> None:
    for number, item in enumerate(listed):
        expected = adapted.gradient_of(adapted.log_pass_rate(number))
        assert_close(item.h, expected)
        # Wrong ones alone give it too: p h + (1 - p) E[s | wrong] = 0.
        p = item.pass_rate
        assert_close(-(1 - p) / p * item.mean(item.s, ~item.correct), expected, relative=1e-4)


# --- What a group of rollouts does ---------------------------------------------------------------


def signal(correct: int, group_size: int) -> float:
    """Factor of (mean g of correct - mean g of wrong) in GRPO's ascent direction of one group.

    With m = K/G correct, advantages (r - m)/(sd + epsilon) and sd = sqrt(m(1-m) G/(G-1)) the mean
    over rollouts of A_r g_r is m(1-m)/(sd + epsilon) times that difference.
    """
    variance = correct / group_size * (1 - correct / group_size)
    return variance / (np.sqrt(variance * group_size / (group_size - 1)) + EPSILON)


def group_weight(p: float, group_size: int) -> float:
    """w = E over K ~ Binomial(G, p) of that factor; groups of one kind give none."""
    counts = np.arange(group_size + 1)
    factors = [signal(count, group_size) for count in counts]
    return float(binom.pmf(counts, group_size, p) @ factors)


@pytest.mark.parametrize("group_size", [2, 3, 8])
@pytest.mark.parametrize("p", [0.0, 0.003, 0.2, 0.5, 0.97, 1.0])
def test_the_weight_is_the_mean_over_all_groups_of_rewards(p: float, group_size: int) -> None:
    expected = without_deviation = 0.0
    for rewards in itertools.product((0, 1), repeat=group_size):
        probability = p ** sum(rewards) * (1 - p) ** (group_size - sum(rewards))
        gains = advantages(rewards) / group_size
        # The correct rollouts' share; that of the wrong ones is its negative.
        expected += probability * gains[np.array(rewards) == 1].sum()
        assert gains.sum() == pytest.approx(0, abs=1e-12)
        centred = (np.array(rewards) - np.mean(rewards)) / group_size
        without_deviation += probability * centred[np.array(rewards) == 1].sum()
    assert group_weight(p, group_size) == pytest.approx(expected, abs=1e-12)
    # A loss that does not divide by the deviation weighs by p (1 - p) (G - 1) / G.
    exact = p * (1 - p) * (group_size - 1) / group_size
    assert without_deviation == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("group_size", [2, 3])
def test_the_mean_update_of_all_groups_is_the_weight_times_the_difference(
    listed: list[Listed], group_size: int
) -> None:
    for item in listed:
        # Of each completion: its expected advantage times how often it is drawn, over G.
        share = np.zeros(len(COMPLETIONS))
        for places in itertools.product(range(len(COMPLETIONS)), repeat=group_size):
            gains = _advantages_of(tuple(item.correct[list(places)].tolist()))
            probability = item.probabilities[list(places)].prod()
            for place, gain in zip(places, gains, strict=True):
                share[place] += probability * gain / group_size
        expected = group_weight(item.pass_rate, group_size) * item.d
        assert_close(share @ item.g, expected, relative=1e-9)


_KNOWN: dict[tuple[bool, ...], list[float]] = {}


def _advantages_of(correct: tuple[bool, ...]) -> list[float]:
    if correct not in _KNOWN:
        _KNOWN[correct] = advantages([float(each) for each in correct]).tolist()
    return _KNOWN[correct]


def test_a_step_on_one_item_moves_the_log_pass_rate_of_the_other_by_the_inner_product(
    policy: Policy, listed: list[Listed]
) -> None:
    """What the items teach each other and themselves, against the pass rates after a small step."""
    for teacher, learner in itertools.product(range(2), repeat=2):
        direction = group_weight(listed[teacher].pass_rate, 8) * listed[teacher].d
        # Norms are in float32 whatever the model is in, so steps must not be too small.
        size = 1e-3 / np.linalg.norm(direction)
        after = []
        for sign in (1, -1):
            moved = Adapted(policy)
            moved.move(sign * size * direction)
            with torch.no_grad():
                after.append(moved.log_pass_rate(learner).item())
        expected = (after[0] - after[1]) / (2 * size)
        assert listed[learner].h @ direction == pytest.approx(expected, rel=1e-3)
        assert abs(expected) > 1e-3


# --- Against TRL ---------------------------------------------------------------------------------

RECIPE = Recipe(
    name="exact",
    max_steps=1,
    prompts_per_step=3,
    num_generations=4,
    updates_per_step=1,
    learning_rate=1e-3,
    max_completion_length=12,
    beta=0.0,
    entropy_coefficient=0.0,
    lora_rank=EXACT.rank,
    lora_alpha=EXACT.alpha,
)
# Prompt, and (completion, reward) of each rollout; 1 is the end, so the others were cut.
GROUPS: list[tuple[list[int], list[tuple[list[int], float]]]] = [
    (
        [16, 17, 5, 13],
        [([7, 1], 1.0), ([3, 4, 5, 6, 7, 8, 9], 0.0), ([1], 0.0), ([3, 4, 5, 9, 1], 0.0)],
    ),
    ([16, 17, 8], [([5, 1], 1.0), ([5, 1], 1.0), ([5, 6, 1], 1.0), ([12, 11, 10, 9], 0.0)]),
    ([9, 13, 4, 14, 15], [([3, 1], 1.0), ([4, 1], 0.0), ([3, 3, 1], float("nan")), ([6], 0.0)]),
]


def test_trls_loss_of_a_batch_has_the_gradient_that_the_features_say(
    tiny_model: Path, tiny_policy: Policy, tmp_path: Path
) -> None:
    policy = load_policy(
        resolve_model(str(tiny_model)), device=torch.device("cpu"), dtype=torch.float32
    )
    items = [TrainingItem(str(n), tuple(prompt), "") for n, (prompt, _) in enumerate(GROUPS)]
    with VerifierPool("tests.scripted_reward:reward", workers=1) as pool:
        trainer = RecipeTrainer(
            policy,
            RECIPE,
            PromptStream(items, seed=0, shuffle=False),
            pool,
            seed=0,
            max_tokens=RECIPE.max_completion_length,
            settings=trainer_settings(RECIPE, 0, tmp_path),
            adapter=lora_config(RECIPE),
        )
    trainer.current_gradient_accumulation_steps = 1
    unwrapped = trainer.accelerator.unwrap_model(trainer.model)
    b_matrices = put_probes_a(tiny_policy, unwrapped.get_base_model())
    trainer.model.train()

    def gradient_of(groups: list[Group]) -> np.ndarray:
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, trainer._to_tensors(groups)).backward()
        return torch.cat([b.grad.flatten() for b in b_matrices]).double().numpy()

    groups = [
        Group(
            number=number,
            item_id=str(number),
            prompt_token_ids=prompt,
            completions=[completion for completion, _ in rollouts],
            rewards=[reward for _, reward in rollouts],
            truncated=[completion[-1] != 1 for completion, _ in rollouts],
        )
        for number, (prompt, rollouts) in enumerate(GROUPS)
    ]
    ascents = []
    for group in groups:
        features = features_of(
            tiny_policy, [TokenizedRollout(group.prompt_token_ids, c) for c in group.completions]
        )
        # (1/G) sum A_r feature_r is the loss's gradient; g is minus the feature.
        expected = advantages(group.rewards) @ features / len(group.rewards)
        assert_close(gradient_of([group]), expected, relative=1e-4)
        ascents.append(-expected)
        rewards = np.array(group.rewards)
        if not np.isnan(rewards).any():
            difference = features[rewards == 0].mean(axis=0) - features[rewards == 1].mean(axis=0)
            factor = signal(int(rewards.sum()), len(rewards))
            assert_close(-expected, factor * difference, relative=1e-6)
    # A batch is the mean over its groups.
    assert_close(gradient_of(groups), -np.mean(ascents, axis=0), relative=1e-4)
