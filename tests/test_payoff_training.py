"""The training loop and the tables of `benchmarks.selection.grown`."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.selection import grown_table
from benchmarks.selection.grown import (
    ARMS,
    FULL,
    LONG,
    PRIMARY,
    SCHEDULE,
    SHORT,
    TARGETED,
    curve_file,
)
from benchmarks.selection.grown_training import (
    Grpo,
    Texts,
    completion_log_probs,
    is_right,
    policy_loss,
    sample,
    train,
)
from probes.models.files import resolve_model
from probes.verifiers.pool import VerifierPool
from recipes.recipe import Recipe
from recipes.train.groups import Group
from recipes.train.prompts import TrainingItem
from tests.made.trainer import made_trainer, made_training
from tests.worlds.grown import WorldSettings, other_questions, pass_probability, tokenizer
from tests.worlds.grown_skills import Question

QUESTIONS = (
    Question("first", "first a b c d", "a", ()),
    Question("order", "order c b a", "a b c", ()),
    Question("sum", "sum 2 3", "5", ()),
)


def new_policy(seed=0):
    of = tokenizer()
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(of),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.15,
            eos_token_id=of.eos_token_id,
            pad_token_id=of.pad_token_id,
            bos_token_id=None,
            tie_word_embeddings=False,
        )
    )


def test_the_gradient_is_that_of_the_recipes_trainer(tmp_path):
    policy, of, texts = new_policy(), tokenizer(), Texts(QUESTIONS)
    policy.save_pretrained(tmp_path / "model")
    of.save_pretrained(tmp_path / "model")
    # Right ones, one twice, wrong ones of other lengths, and one that did not end.
    written = {0: ["a <eos>", "b <eos>", "a <eos>", "b c <eos>"],
               1: ["a b c <eos>", "a b", "c <eos>", "a b b b"]}  # fmt: skip
    batch, groups = [], []
    for item, completions in written.items():
        ids = [of.convert_tokens_to_ids(text.split()) for text in completions]
        rows = torch.tensor([row + [of.pad_token_id] * (4 - len(row)) for row in ids])
        right = is_right(texts, [item], rows, 4)[0]
        assert right.tolist() == [text == f"{QUESTIONS[item].answer} <eos>" for text in completions]
        batch.append((item, rows, right))
        prompt = of.convert_tokens_to_ids(QUESTIONS[item].prompt.split())
        groups.append(
            Group(item, str(item), prompt, ids, right.astype(float).tolist(), [False] * 4)
        )
    # A third place, which no group with a signal filled.
    groups.append(Group(2, "2", groups[0].prompt_token_ids, groups[0].completions, [0.0] * 4,
                        [False] * 4))  # fmt: skip
    policy_loss(policy, texts, batch, groups=3).backward()

    recipe = Recipe(
        name="test", max_steps=1, prompts_per_step=3, num_generations=4, updates_per_step=1,
        beta=0.0, entropy_coefficient=0.0, max_completion_length=4,
    )  # fmt: skip
    items = [TrainingItem("0", (1,), "a")]
    with VerifierPool("exact", workers=1) as pool:
        files = resolve_model(str(tmp_path / "model"))
        trainer = made_trainer(made_training(files, pool, tmp_path, recipe, items))
        trainer.model.float().train()
        trainer.current_gradient_accumulation_steps = 1
        trainer.compute_loss(trainer.model, trainer._to_tensors(groups)).backward()
    theirs = dict(trainer.model.named_parameters())
    for name, parameter in policy.named_parameters():
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def taught():
    """A policy that was shown the answers for a while: it gives each now and then."""
    policy, texts = new_policy(), Texts(QUESTIONS)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    while pass_probability(policy, QUESTIONS).min() < 0.03:
        of = torch.arange(len(QUESTIONS))
        means, lengths = completion_log_probs(policy, texts, of.tolist(), of, texts.answers)
        optimizer.zero_grad()
        (-means * lengths).sum().backward()
        optimizer.step()
    return policy


def test_completions_come_as_often_as_the_policy_gives_them(taught):
    texts, items, draws = Texts(QUESTIONS), [2, 0, 1], 2000
    p = pass_probability(taught, QUESTIONS)[items]
    drawn = sample(taught, texts, items, draws, torch.Generator().manual_seed(0))
    rate = is_right(texts, items, drawn, draws).mean(axis=1)
    assert p.max() < 0.9
    assert (np.abs(rate - p) < 4 * np.sqrt(p * (1 - p) / draws)).all()


def test_training_counts_what_it_throws_away_and_raises_the_pass_rate(taught):
    policy, seen = copy.deepcopy(taught), []
    before = pass_probability(policy, QUESTIONS).mean()
    curve = train(
        policy, QUESTIONS, lambda count: [i % 3 for i in range(count)], QUESTIONS,
        settings=Grpo(learning_rate=3e-3, groups=4, group_size=8), budget=1_200, evaluations=4,
        seed=1, told=lambda items, right: seen.append(right.size),
    )  # fmt: skip
    assert curve.rollouts[-1] == sum(seen) >= 1_200
    assert curve.rates[0] == pytest.approx(before) and curve.rates[-1] > 0.6
    assert len(curve.rates) >= 4 and (np.diff(curve.rollouts) > 0).all()
    assert 0 < curve.with_signal < 1  # What is learned gives no signal, and is paid for.


def test_questions_of_a_target_are_new_and_of_the_world():
    settings = WorldSettings(("first", "max"), items=60, candidates=100)
    policy = new_policy()
    first = other_questions(policy, settings, 1, ())
    assert {question.skill for question in first} == {"first", "max"}
    assert other_questions(policy, settings, 1, ()) == first
    again = other_questions(policy, settings, 1, first[:5])
    left = {question.prompt for question in first[5:]}
    assert {question.prompt for question in again}.isdisjoint(q.prompt for q in first[:5])
    assert left & {question.prompt for question in again}
    with pytest.raises(ValueError, match="write working"):
        other_questions(policy, WorldSettings(("first",), ("first",)), 1, ())


def test_the_tables_compare_within_worlds_and_seeds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grown_table, "_REPLICATES", 40)
    rng = np.random.default_rng(0)
    cost, seeds = {"p1": 600, "p2": 800, "p3": 700}, (1, 2)
    worlds = {world: {PRIMARY: n, TARGETED: 2 * n} for world, n in cost.items()}
    x = np.linspace(0, LONG, 25)
    for n, world in enumerate(worlds):
        for seed in seeds:
            luck = 0.1 * n + 0.01 * rng.normal()
            for arm in ARMS:
                # Ours rises twice as fast and ends higher by 0.02, in every pair.
                rates = luck + 0.1 * np.minimum(1, x / LONG * (2 if arm == PRIMARY else 1))
                rates += 0.02 * (arm == PRIMARY) * x / LONG + 1e-4 * rng.normal(size=25)
                for budget in {LONG, SHORT if arm == SCHEDULE else LONG}:
                    file = curve_file(tmp_path / world, arm, budget, seed)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    short = x * budget / LONG
                    file.write_text(
                        json.dumps(
                            {
                                "rollouts": short.tolist(),
                                "rates": rates.tolist(),
                                "trained_items": rates[-1],
                            }
                        )
                    )
    curve_file(tmp_path / "p1", FULL, LONG, 3).write_text("{}")  # Not finished elsewhere.
    curves = grown_table.read_curves(tmp_path, worlds, LONG)
    assert curves.rates[FULL].shape == (3, 2, 97)
    assert curves.probe == {PRIMARY: 700, TARGETED: 1400}
    mean, half = grown_table.over_worlds(
        grown_table.final(curves.rates[PRIMARY]) - grown_table.final(curves.rates[FULL])
    )
    assert mean == pytest.approx(0.02 + 0.1 / 16, abs=2e-3) and half < 0.002
    shares = grown_table.reached_shares(curves, PRIMARY)
    # Of 0.2 x + 0.02 x = 0.1 less what full still lacks in its last eighth on average, 0.1 / 16.
    assert shares[0] == pytest.approx(0.1 * 15 / 16 / 0.22, abs=0.02)
    assert np.quantile(shares, 0.9) < 0.6
    assert grown_table.verdict(curves).startswith("Goal met")
    grown_table.print_tables(tmp_path, worlds)
    printed = capsys.readouterr().out
    assert "24,576 rollouts: a target does not pay" in printed
    assert f"**{PRIMARY}**" in printed and "6,144 rollouts, 3 worlds, 2 seeds" in printed


def test_a_level_that_is_never_reached_is_never():
    rollouts = np.linspace(0, 100, 5)
    assert grown_table.reached_at(np.array([0, 0.1, 0.2, 0.3, 0.4]), rollouts, 0.15) == 37.5
    assert np.isinf(grown_table.reached_at(np.array([0, 0.1, 0.2, 0.3, 0.4]), rollouts, 0.5))
    # A peak alone is not the level: what is reached stays.
    assert np.isinf(grown_table.reached_at(np.array([0, 0.3, 0.0, 0.0, 0.1]), rollouts, 0.25))
