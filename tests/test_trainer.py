"""What the trainer samples, keeps and hands to the loss, on a tiny model with real TRL."""

import dataclasses
import math
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    TrainingArguments,
)

from curate.errors import UsageError
from probes.models.files import resolve_model
from probes.verifiers.pool import VerifierPool
from recipes.recipe import Recipe
from recipes.train import processes
from recipes.train.groups import Group, prompts_to_ask
from recipes.train.grpo import RecipeTrainer
from recipes.train.packing import attention_mask, can_pack, pack
from recipes.train.prompts import TrainingItem
from recipes.train.settings import trainer_settings
from recipes.train.train import train_grpo
from tests.made.trainer import made_trainer, made_training
from tests.tiny import WORDS, save_tiny_model

RECIPE = Recipe(
    name="test",
    max_steps=2,
    prompts_per_step=2,
    num_generations=4,
    updates_per_step=1,
    learning_rate=1e-3,
    max_completion_length=96,
    max_sampling_rounds=3,
    save_every=1,
)
VERIFIER = "tests.scripted_reward:reward"
EOS = WORDS.index("<eos>")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return resolve_model(str(save_tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(VERIFIER, workers=1) as entered:
        yield entered


def item(name, answer, prompt=("what", "is", "3", "+")):
    return TrainingItem(name, tuple(WORDS.index(word) for word in prompt), answer)


@pytest.fixture
def make_trainer(files, pool, tmp_path):
    """A trainer that has not begun; the stream gives its items in their order, over and over."""

    def make(items, seed=1, **changes):
        recipe = dataclasses.replace(RECIPE, **changes)
        return made_trainer(made_training(files, pool, tmp_path, recipe, items, seed))

    return make


def batch_of(trainer):
    """The batch of a step as it reaches the loss, and its groups by number."""
    trainer.model.train()
    batch = trainer._generate_and_score_completions([])
    rows = {}
    for row, number in enumerate(batch["group"].tolist()):
        rows.setdefault(number, []).append(row)
    return batch, rows


def completions_of(batch):
    return [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]


# --- Dynamic sampling ---------------------------------------------------------------------------


def test_mixed_groups_are_kept_with_standardized_advantages(make_trainer):
    trainer = make_trainer([item("a", "3"), item("b", "+")], num_generations=32)
    batch, rows = batch_of(trainer)
    assert len(rows) == 2 and trainer.progress.unfilled == 0
    first = {"a": WORDS.index("3"), "b": WORDS.index("+")}
    log = {row["group"]: row for row in trainer.progress.rows}
    for number, places in rows.items():
        completions = [completions_of(batch)[place] for place in places]
        # A cut completion is wrong, whatever it says.
        rewards = np.array(
            [
                float(ids[0] == first[log[number]["item_id"]] and ids[-1] == EOS)
                for ids in completions
            ]
        )
        assert 0 < rewards.sum() < len(rewards)
        assert log[number]["trained"] and log[number]["mean_reward"] == rewards.mean()
        wanted = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
        assert batch["advantages"][places].tolist() == pytest.approx(wanted.tolist(), rel=1e-5)


@pytest.mark.parametrize(("answer", "mean_reward"), [("always", 1), ("never", 0)])
def test_groups_of_equal_rewards_are_replaced_by_later_prompts(make_trainer, answer, mean_reward):
    # So long that every rollout ends by itself.
    changes = {"num_generations": 8, "max_completion_length": 240, "max_sampling_rounds": 20}
    trainer = make_trainer([item("same", answer), item("mixed", "3")], seed=3, **changes)
    _, rows = batch_of(trainer)
    log = {row["group"]: row for row in trainer.progress.rows}
    assert [log[number]["item_id"] for number in rows] == ["mixed", "mixed"]
    dropped = [row for row in log.values() if row["item_id"] == "same"]
    assert dropped and not any(row["trained"] for row in dropped)
    assert {row["mean_reward"] for row in dropped} == {mean_reward}
    progress = trainer.progress
    assert (progress.kept, progress.without_signal) == (2, len(log) - 2)
    assert progress.sampling_rounds > 1
    assert progress.rollouts == 8 * len(log)


def test_sampling_is_bounded_and_what_stays_empty_moves_nothing(make_trainer):
    trainer = make_trainer([item("same", "never")])
    batch, rows = batch_of(trainer)
    # Nothing had a signal, so all that a step may sample is asked for after the first round.
    assert trainer.progress.sampling_rounds == 2
    assert trainer.progress.groups == RECIPE.max_sampling_rounds * RECIPE.prompts_per_step
    assert trainer.progress.unfilled == len(rows) == 2
    assert not batch["advantages"].any()
    assert not any(row["trained"] for row in trainer.progress.rows)


def test_a_refill_asks_for_what_is_expected_to_be_enough(make_trainer):
    # A third of the groups had a signal: three prompts for each that is missing, and a tenth more.
    assert prompts_to_ask(40, signals=100, groups=300, most=10**6) == 132
    assert prompts_to_ask(3, signals=8, groups=8, most=100) == 4
    # Nothing is known, or next to nothing comes: it is bounded.
    assert prompts_to_ask(8, signals=0, groups=8, most=32) == 32


@pytest.mark.parametrize("every", [2, 4])
def test_a_step_is_full_after_two_rounds_or_three(make_trainer, monkeypatch, every):
    trainer = make_trainer([item("a", "3")], prompts_per_step=32, max_sampling_rounds=10)
    asked = []

    def sample_groups(wanted):
        asked.append(wanted)
        numbers = range(trainer.progress.place, trainer.progress.place + wanted)
        trainer.progress.place += wanted
        # One in so many has a signal.
        rewards = [[1.0, 0, 0, 0] if number % every == 0 else [0.0] * 4 for number in numbers]
        return [
            trainer._take_in(Group(n, "a", [3], [[4]] * 4, each, [False] * 4))
            for n, each in zip(numbers, rewards, strict=True)
        ]

    monkeypatch.setattr(trainer, "_sample_groups", sample_groups)
    monkeypatch.setattr(trainer, "_to_tensors", lambda groups: groups)
    batch = trainer._generate_and_score_completions([])
    # Of what was sampled, the first that have a signal.
    assert [group.number for group in batch] == [every * i for i in range(32)]
    missing = 32 - 32 // every
    assert asked == [32, min(math.ceil(1.1 * missing * every), 4 * 32)]
    assert trainer.progress.surplus == math.ceil(sum(asked) / every) - 32 < 6
    # The next step knows the share from the start of its first refill.
    trainer._generate_and_score_completions([])
    assert len(asked) == 4


def test_without_dynamic_sampling_the_first_groups_are_the_batch(make_trainer):
    items = [item("same", "never"), item("mixed", "3")]
    trainer = make_trainer(items, num_generations=32, dynamic_sampling=False)
    batch, rows = batch_of(trainer)
    assert list(rows) == [0, 1] and trainer.progress.sampling_rounds == 1
    assert not batch["advantages"][rows[0]].any() and batch["advantages"][rows[1]].any()
    assert [row["trained"] for row in trainer.progress.rows] == [False, True]


def test_prompts_are_the_token_ids_of_the_run(make_trainer):
    items = [item("a", "3", ["what", "is"]), item("b", "3", ["3", "+", "4", "=", "?"])]
    batch, rows = batch_of(make_trainer(items, num_generations=32))
    for places in rows.values():
        for place in places:
            ids = batch["prompt_ids"][place][batch["prompt_mask"][place].bool()].tolist()
            assert tuple(ids) in {each.prompt_token_ids for each in items}


def test_rollouts_depend_on_seed_and_place_alone(make_trainer):
    one, other = (make_trainer([item("a", "3"), item("b", "4")]) for _ in range(2))
    torch.manual_seed(99)
    first = [completions_of(batch_of(one)[0]) for _ in range(2)]
    torch.manual_seed(100)
    assert [completions_of(batch_of(other)[0]) for _ in range(2)] == first
    assert first[0] != first[1]


# --- Replay -------------------------------------------------------------------------------------

REPLAY = {"num_generations": 4, "oversample": 8, "replay_positives": 1, "max_sampling_rounds": 1}


def test_oversampled_groups_reach_the_loss_with_one_right_rollout(make_trainer):
    trainer = make_trainer([item("a", "3"), item("b", "+")], **REPLAY)
    batch, rows = batch_of(trainer)
    assert [row["rollouts"] for row in trainer.progress.rows] == [32, 32]
    assert sorted(map(len, rows.values())) == [4, 4]
    for places in rows.values():
        assert sorted(batch["advantages"][places].tolist()) == pytest.approx(
            [-0.5, -0.5, -0.5, 1.5], rel=1e-3
        )


def test_replay_gives_an_all_wrong_group_its_signal_until_it_is_used_up(make_trainer):
    trainer = make_trainer([item("a", "never")], **REPLAY | {"replay_reuse": 3})
    right = [WORDS.index("7"), EOS]
    signals = []
    for number in range(3):
        batch, rows = batch_of(trainer)
        signals.append([bool(batch["advantages"][places].any()) for places in rows.values()])
        if number == 0:
            assert trainer.buffer.to_rows() == []  # nothing was right, so nothing is buffered
            trainer.buffer = type(trainer.buffer).from_rows(
                3, [{"item_id": "a", "completion_token_ids": right, "uses": 0}]
            )
        elif number == 1:
            best = batch["advantages"].argmax()
            assert completions_of(batch)[best] == right
    # Two groups a step: an empty buffer, a buffer that serves both, then the third use only.
    assert [sorted(each) for each in signals] == [[False] * 2, [True] * 2, [False, True]]
    assert trainer.progress.replayed == 3


# --- Log-probabilities --------------------------------------------------------------------------


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_shared_prompt_changes_neither_loss_nor_gradient(make_trainer, monkeypatch, lora_rank):
    trainer = make_trainer(
        [item("a", "3"), item("b", "+", ["=", "?", "1", "2", "3"])],
        num_generations=16,
        lora_rank=lora_rank,
    )
    trainer.model.float()
    trainer.current_gradient_accumulation_steps = 1
    batch, _ = batch_of(trainer)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]

    def loss_and_gradients():
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in parameters])

    packed_calls = []
    packed = trainer._packed
    monkeypatch.setattr(
        trainer, "_packed", lambda *args: packed_calls.append(found := packed(*args)) or found
    )
    loss, gradients = loss_and_gradients()
    assert packed_calls and packed_calls[0] is not None
    monkeypatch.setattr(trainer, "_packed", lambda *args: None)
    plain_loss, plain_gradients = loss_and_gradients()
    assert loss == pytest.approx(plain_loss, abs=1e-6)
    assert plain_gradients.norm() > 0
    assert (gradients - plain_gradients).norm() <= 1e-4 * plain_gradients.norm()


@pytest.mark.parametrize(
    ("config", "fits"),
    [
        (LlamaConfig(), True),
        (MistralConfig(sliding_window=None), True),
        (MistralConfig(sliding_window=64), False),
        (Qwen2Config(), True),
        (Gemma3TextConfig(), False),
    ],
)
def test_windows_that_slide_are_not_packed(config, fits):
    assert can_pack(config) is fits


def test_packing_is_left_where_it_saves_little():
    assert pack([[1, 2]], [[3, 4, 5]]) is None
    assert pack([[1, 2], [3, 4]], [[3] * 50, [4] * 50]) is None
    assert pack([[1] * 40] * 4, [[3, 4]] * 4) is not None


def test_a_completion_sees_its_prompt_and_itself():
    packing = pack([[1, 2, 3]] * 3, [[4], [5, 6], [7]])
    assert packing.ids[0].tolist() == [1, 2, 3, 4, 3, 5, 6, 3, 7]
    assert packing.positions[0].tolist() == [0, 1, 2, 3, 2, 3, 4, 2, 3]
    assert packing.labels[0].tolist() == [-100, -100, -100, 4, -100, 5, 6, -100, 7]
    mask = attention_mask(packing.segments, torch.float32, torch.device("cpu"))[0, 0]
    assert [(row == 0).nonzero().flatten().tolist() for row in mask][5:8] == [
        [0, 1, 4, 5],
        [0, 1, 4, 5, 6],
        [0, 1, 7],
    ]


# --- On GPUs ------------------------------------------------------------------------------------


def test_a_process_that_sees_eight_gpus_takes_one(make_trainer, tmp_path, monkeypatch):
    """transformers' own count, made to see eight: TRL refuses to train on more than one."""

    def eight(self):
        self._n_gpu, self.distributed_state = 8, None
        return torch.device("cpu")

    seen = cached_property(eight)
    seen.__set_name__(TrainingArguments, "_setup_devices")
    plain = trainer_settings(RECIPE, 1, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingArguments, "_setup_devices", seen)
        assert TrainingArguments(output_dir=str(tmp_path)).n_gpu == 8
        settings = trainer_settings(RECIPE, 1, tmp_path)
    assert settings.n_gpu == 1 and settings.device == torch.device("cpu")
    assert plain.n_gpu <= 1


def test_the_process_group_outlasts_exports(monkeypatch):
    asked = {}
    monkeypatch.setattr(processes, "PartialState", lambda **settings: asked.update(settings))
    processes.process_state()
    assert asked["timeout"] >= timedelta(hours=1)
    assert trainer_settings(RECIPE, 1, Path("x")).ddp_timeout == asked["timeout"].total_seconds()


def test_the_kl_term_is_the_papers(tmp_path):
    settings = trainer_settings(RECIPE, 1, tmp_path)
    assert settings.use_bias_correction_kl is False and settings.delta is None
    assert settings.weight_decay == 0


# --- Whole runs ---------------------------------------------------------------------------------


def test_every_update_has_whole_groups_and_clipping_is_logged(files, pool, tmp_path):
    recipe = dataclasses.replace(
        RECIPE,
        prompts_per_step=4,
        updates_per_step=2,
        num_generations=8,
        rows_per_pass=8,
        learning_rate=3e-2,
        max_steps=3,
    )
    items = [item("a", "3"), item("b", "+"), item("c", "7"), item("d", "what")]
    seen = []
    trainer = train_noting(made_training(files, pool, tmp_path, recipe, items), seen)
    assert len(seen) == 3 * 4
    assert all(len(set(numbers)) == 1 and len(numbers) == 8 for numbers in seen)
    log = {row["group"]: row for row in trainer.progress.rows}
    clipped = [log[numbers[0]]["clipped_fraction"] for numbers in seen]
    assert all(0 <= value <= 1 for value in clipped) and max(clipped) > 0
    reached = {numbers[0] for numbers in seen}
    assert all(log[n]["clipped_fraction"] is None for n in log if n not in reached)


def train_noting(run, seen):
    """Train, noting the groups of the rows of every pass."""
    original = RecipeTrainer.compute_loss

    def noting(self, model, inputs, *args, **kwargs):
        seen.append(inputs["group"].tolist())
        return original(self, model, inputs, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecipeTrainer, "compute_loss", noting)
        return train_grpo(run)


def test_training_ends_at_the_rollout_budget(files, pool, tmp_path):
    recipe = dataclasses.replace(RECIPE, max_steps=50, rollout_budget=60, max_sampling_rounds=1)
    run = made_training(files, pool, tmp_path, recipe, [item("a", "3")])
    spent = train_grpo(run).progress.rollouts
    assert 60 <= spent < 60 + 2 * RECIPE.num_generations
    # Taken up again it has nothing left to do.
    assert train_grpo(run).progress.rollouts == spent


def test_what_does_not_fit_the_model_is_refused(files, pool, tmp_path):
    recipe = dataclasses.replace(RECIPE, max_completion_length=300)
    with pytest.raises(UsageError, match="exceed the model's context of 256"):
        train_grpo(made_training(files, pool, tmp_path, recipe, [item("a", "3")]))
