"""The compact training of the benchmarks' grown worlds: its loss is TRL's, and it learns."""

import copy
import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks.training.grpo import Batch, Grpo, Log, _finished, grpo, in_epochs, loss_of
from benchmarks.training.rollouts import (
    Problem,
    draw_alike,
    draw_each,
    draw_on,
    log_probabilities,
    problem,
)
from benchmarks.training.supervised import train_sft
from probes.models.files import resolve_model
from probes.verifiers.pool import VerifierPool
from recipes.recipe import Recipe
from recipes.train.groups import Group
from recipes.train.prompts import TrainingItem
from tests.made.trainer import made_trainer, made_training
from tests.tiny import save_tiny_model
from tests.worlds.grown import EOS, WorldSettings, new_model, padded, pass_probability
from tests.worlds.grown_skills import Question

GROUPS = [
    Group(0, "0", (5, 6, 7), [(8, EOS), (8, EOS), (9, 10, EOS), (11,)], [1, 1, 0, 0], [False] * 4),
    Group(1, "1", (7, 6), [(4, EOS), (9, EOS), (9, EOS), (9, EOS)], [1, 0, 0, 0], [False] * 4),
    # Without a signal: it fills the batch up.
    Group(2, "1", (7, 6), [(9, EOS), (4, 9), (9, 4, 9), (4, 9)], [0, 0, 0, 0], [False] * 4),
]
SETTINGS = Grpo(learning_rate=1e-3, beta=0.05, epsilon=0.2, epsilon_high=0.28)


@pytest.mark.parametrize("moved", [0.0, 0.3])
def test_the_loss_and_its_gradient_are_those_of_the_recipes_trainer(tmp_path, moved) -> None:
    files = resolve_model(str(save_tiny_model(tmp_path / "model")))
    recipe = Recipe(
        name="test", max_steps=1, prompts_per_step=3, num_generations=4, updates_per_step=3,
        beta=SETTINGS.beta, epsilon=SETTINGS.epsilon, epsilon_high=SETTINGS.epsilon_high,
        entropy_coefficient=0.0, max_completion_length=8, save_every=1,
    )  # fmt: skip
    items = [TrainingItem(str(n), tuple(GROUPS[n].prompt_token_ids), "") for n in range(2)]
    with VerifierPool("tests.scripted_reward:reward", workers=1) as pool:
        trainer = made_trainer(made_training(files, pool, tmp_path, recipe, items))
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.train()
    theirs = trainer._to_tensors(GROUPS)
    batch = Batch.of(GROUPS, model, model)
    with torch.no_grad():
        torch.manual_seed(0)
        for weights in model.parameters():
            weights += moved * weights.std() * torch.randn_like(weights)
    log = Log.of(2)
    gradients = []
    losses = []
    for loss in (
        trainer.compute_loss(trainer.model, theirs),
        loss_of(model, batch, SETTINGS, log),
    ):
        model.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([each.grad.flatten() for each in model.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-6)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)
    assert log.tokens.tolist() == [2 + 2 + 3 + 1, 8 + 9]
    # What is clipped is counted, and counted as the trainer counts it.
    trainer.clipped.settle(trainer.progress.rows)
    counted = log.clipped_above + log.clipped_below
    assert (counted.sum() > 0) == (moved > 0)


def tiny() -> LlamaForCausalLM:
    return new_model(WorldSettings(("plus",), width=32, layers=1))


def chances(model: LlamaForCausalLM, prompt, completions) -> list[float]:
    with torch.no_grad():
        rows = padded([(prompt, each) for each in completions])
        return log_probabilities(model, *rows).sum(dim=1).exp().tolist()


@pytest.mark.parametrize("sample", [draw_alike, draw_each])
def test_rollouts_are_drawn_as_often_as_the_policy_says(sample) -> None:
    model, prompts = tiny(), [(5, 6), (7, 8, 9)]
    train_sft(
        model, [Problem((5, 6), (3, EOS)), Problem((5, 6), (4, 3, EOS))],
        steps=60, batch=8, learning_rate=1e-2, seed=0,
    )  # fmt: skip
    drawn = sample(model, prompts, 4000, 3, torch.Generator().manual_seed(1))
    assert [len(each) for each in drawn] == [4000, 4000]
    assert all(EOS not in each[:-1] and (each[-1] == EOS or len(each) == 3) for each in drawn[0])
    wanted = chances(model, prompts[0], [(3, EOS), (4, 3, EOS)])
    found = [drawn[0].count((3, EOS)) / 4000, drawn[0].count((4, 3, EOS)) / 4000]
    assert min(found) > 0.3
    assert found == pytest.approx(wanted, abs=4 * 0.5 / np.sqrt(4000))


def test_completions_that_went_wrong_are_drawn_to_their_end_as_if_at_once() -> None:
    model, prompt, right = tiny(), (5, 6), (4, 3, EOS)
    wrong = [(4, 7, EOS), (8, 3, EOS), (8, 7, EOS)]
    train_sft(
        model, [Problem(prompt, each) for each in (right, *wrong)],
        steps=80, batch=8, learning_rate=1e-2, seed=0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    drawn = draw_on(model, [prompt], {(0, ()): 4000}, 3, generator, [right])[0]
    assert (8,) in drawn and (8, 3, EOS) not in drawn and right in drawn
    rewards = [float(each == right) for each in drawn]
    group = Group(0, "0", prompt, drawn, rewards, [False] * len(drawn))
    (ended,) = _finished(model, [group], 3, generator)
    assert sum(ended.rewards) == sum(rewards) and len(ended.completions) == 4000
    assert [each == right for each in ended.completions] == [r == 1 for r in ended.rewards]
    wanted = chances(model, prompt, [right, *wrong])
    found = [ended.completions.count(each) / 4000 for each in (right, *wrong)]
    assert min(found) > 0.05
    assert found == pytest.approx(wanted, abs=4 * 0.5 / np.sqrt(4000))


@pytest.fixture(scope="module")
def taught() -> tuple[LlamaForCausalLM, list[Question]]:
    """A policy that gives each of four answers to each of four questions, one in four right."""
    model = tiny()
    skills = ("plus", "times", "max", "gcd")
    questions = [Question(skill, f"{skill} 1", str(n), ()) for n, skill in enumerate(skills)]
    problems = [problem(each) for each in questions]
    train_sft(
        model, [Problem(a.prompt, b.right) for a in problems for b in problems],
        steps=100, batch=16, learning_rate=5e-3, seed=0,
    )  # fmt: skip
    before = pass_probability(model, questions)
    assert np.all(before > 0.1) and np.all(before < 0.5)
    return model, questions


def test_a_training_learns_what_is_sometimes_right_and_counts_what_it_did(taught) -> None:
    model, questions = copy.deepcopy(taught[0]), taught[1]
    settings = Grpo(learning_rate=5e-3, prompts=8, updates=2)
    training = grpo(
        model, [problem(each) for each in questions], settings, 1, in_epochs(range(3), seed=0)
    )
    steps = [log.steps for log in itertools.islice(training, 29)]
    log = next(training)
    assert np.all(pass_probability(model, questions)[:3] > 0.6)
    assert [*steps, log.steps] == list(range(1, 31))
    assert log.visits[3] == 0 and log.rollouts == 8 * log.visits.sum() == 8 * log.groups
    assert np.all(log.right[:3] > 0) and np.all(log.clipped_above <= log.tokens)
    # What is learned gives no signal, and is paid for.
    assert 0 < log.signals < log.groups


def test_a_step_asks_for_more_until_enough_groups_have_a_signal(taught) -> None:
    model, questions = copy.deepcopy(taught[0]), taught[1]
    asked: list[list[int]] = []
    signals: list[int] = []

    def draw(step: int, count: int) -> list[int]:
        while len(asked) < step:
            asked.append([])
        asked[step - 1].append(count)
        return [0] * count

    def hear(items, right) -> None:
        signals.append(int((right.any(axis=1) & ~right.all(axis=1)).sum()))

    settings = Grpo(learning_rate=3e-2, prompts=4, group=4, updates=1, first_round=1, most_rounds=3)
    problems = [problem(each) for each in questions]
    training = grpo(model, problems, settings, 1, draw, sample=draw_each, hear=hear)
    *_, log = itertools.islice(training, 12)
    assert log.signals == sum(signals)
    assert all(rounds[0] == 4 and sum(rounds) <= 12 for rounds in asked)
    # Enough at first; in the end the answer is learned, and nothing has a signal.
    assert sum(asked[0]) < 12 == sum(asked[-1])
    assert log.unfilled > 0
