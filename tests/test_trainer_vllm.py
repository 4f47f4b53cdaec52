"""Training rollouts by TRL's vLLM, whose `LLM` a stand-in replaces: `tests.stand_ins`."""

import dataclasses
import os
import random

import pytest
import torch
from trl.generation import vllm_generation

from curate.errors import RunError, UsageError
from probes.models.adapters import adapted_layers
from probes.models.files import resolve_model
from probes.models.load import load_policy
from probes.verifiers.pool import VerifierPool
from recipes.recipe import Recipe
from recipes.train import grpo, placement, vllm
from recipes.train.groups import Group
from recipes.train.prompts import TrainingItem
from recipes.train.train import train_grpo
from recipes.train.vllm import choose_generation, importance_ratios
from tests.made.architectures import save_architecture
from tests.made.trainer import made_trainer, made_training
from tests.stand_ins.colocated_vllm import ColocatedLLM
from tests.tiny import WORDS

RECIPE = Recipe(
    name="test",
    max_steps=2,
    prompts_per_step=2,
    num_generations=16,
    updates_per_step=1,
    learning_rate=1e-2,
    max_completion_length=24,
    max_sampling_rounds=4,
    save_every=1,
    generation="vllm",
    lora_rank=4,
)
ITEMS = [
    TrainingItem("a", tuple(WORDS.index(word) for word in ("what", "is", "3")), "3"),
    TrainingItem("b", tuple(WORDS.index(word) for word in ("=", "?")), "3"),
]


@pytest.fixture(scope="module")
def pool():
    with VerifierPool("tests.scripted_reward:reward", workers=1) as entered:
        yield entered


@pytest.fixture(autouse=True)
def colocated(monkeypatch):
    """The stand-in, on a machine that counts as one where vLLM can draw."""
    monkeypatch.setattr(vllm_generation, "LLM", ColocatedLLM)
    monkeypatch.setattr(vllm, "_obstacle", lambda *_: "")
    # vLLM's own clean-up looks for what it began.
    monkeypatch.setattr("vllm.distributed.cleanup_dist_env_and_memory", lambda: None)
    monkeypatch.setattr(ColocatedLLM, "made", [])


def training(model, pool, folder, items=ITEMS, **changes):
    recipe = dataclasses.replace(RECIPE, **changes)
    return made_training(resolve_model(str(model)), pool, folder, recipe, items)


@pytest.fixture
def make_trainer(tiny_model, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "choose_dtype", lambda _: torch.float32)

    def make(items=ITEMS, **changes):
        return made_trainer(training(tiny_model, pool, tmp_path, items, **changes))

    return make


def batch_of(trainer):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions([])


def loss_and_gradients(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    parameters = [each for each in trainer.model.parameters() if each.requires_grad]
    return loss.item(), torch.cat([each.grad.flatten() for each in parameters])


def as_without_vllm(trainer, batch):
    """The loss of the same rollouts had transformers drawn them."""
    plain = {k: v for k, v in batch.items() if k not in ("importance_sampling_ratio",)}
    if trainer.recipe.updates_per_step == 1:
        plain.pop("old_per_token_logps")
    trainer.use_vllm = False
    try:
        return loss_and_gradients(trainer, plain)
    finally:
        trainer.use_vllm = True


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_loss_is_that_without_vllm_where_both_compute_the_same(make_trainer, lora_rank):
    trainer = make_trainer(lora_rank=lora_rank, beta=0.0, num_generations=32)
    optimizer = torch.optim.SGD([p for p in trainer.model.parameters() if p.requires_grad], lr=0.2)
    for step in range(2):
        # With the weights of a step before, ratios would be others.
        trainer.state.global_step = step
        batch = batch_of(trainer)
        assert batch["advantages"].any()
        ratios = batch["importance_sampling_ratio"]
        torch.testing.assert_close(ratios, torch.ones_like(ratios), rtol=1e-3, atol=1e-3)
        loss, gradients = loss_and_gradients(trainer, batch)
        plain_loss, plain_gradients = as_without_vllm(trainer, batch)
        assert loss == pytest.approx(plain_loss, abs=1e-4)
        assert plain_gradients.norm() > 1e-3
        assert (gradients - plain_gradients).norm() < 2e-3 * plain_gradients.norm()
        optimizer.step()
    (llm,) = ColocatedLLM.made
    assert llm.loads == 2
    # An adapter was merged into copies.
    model = trainer.accelerator.unwrap_model(trainer.model)
    initial = dict(initial_model(trainer).named_parameters())
    for name, layer in adapted_layers(model).items():
        own = initial[name.removeprefix("base_model.model.") + ".weight"]
        assert torch.equal(layer.base_layer.weight, own)
        assert layer.lora_B["default"].weight.any()


def initial_model(trainer):
    files = trainer.policy.files
    return load_policy(files, device=torch.device("cpu"), dtype=torch.float32).model


def test_what_vllm_computes_differently_is_corrected(make_trainer):
    changes = {"beta": 0.0, "entropy_coefficient": 0.0}
    trainer = make_trainer(vllm_importance_sampling_mode="token_truncate", **changes)
    ColocatedLLM.made[0].shift = -0.5
    batch = batch_of(trainer)
    known = batch["completion_mask"].bool()
    ratios = batch["importance_sampling_ratio"]
    half = torch.full_like(ratios[known], 0.5).exp()
    torch.testing.assert_close(ratios[known], half, rtol=1e-4, atol=1e-4)
    _, gradients = loss_and_gradients(trainer, batch)
    _, plain = as_without_vllm(trainer, batch)
    torch.testing.assert_close(gradients, plain * torch.tensor(0.5).exp(), rtol=1e-3, atol=1e-5)
    log = trainer._metrics["train"]
    assert log["sampling/sampling_logp_difference/mean"] == [pytest.approx(0.5, abs=1e-4)]

    # TRL's default: of whole rollouts, and far ones are left out.
    trainer = make_trainer(**changes)
    ColocatedLLM.made[1].shift = -0.5
    batch = batch_of(trainer)
    lengths = batch["completion_mask"].sum(1)
    is_kept = 0.5 * lengths < torch.tensor(3.0).log()
    assert (batch["importance_sampling_ratio"][:, 0] > 0).tolist() == is_kept.tolist()
    assert 0 < is_kept.sum() < len(is_kept)

    trainer = make_trainer(vllm_importance_sampling_correction=False, **changes)
    assert not {"importance_sampling_ratio", "old_per_token_logps"} & set(batch_of(trainer))


def test_ratios_are_bounded_as_trl_bounds_them():
    trained = torch.tensor([[-1.0, -1.0, -9.0], [-1.0, -3.0, -1.0]])
    drawn = torch.tensor([[-1.0, -3.0, 0.0], [-1.0, float("nan"), -1.1]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    small = torch.tensor(0.1).exp().item()

    def ratios(mode):
        return importance_ratios(trained, drawn, mask, mode=mode, most=3.0).flatten().tolist()

    assert ratios("token_truncate") == pytest.approx([1, 3, 1, 1, 1, small])
    assert ratios("token_mask") == pytest.approx([1, 0, 1, 1, 1, small])
    assert ratios("sequence_truncate") == pytest.approx([3, small])
    assert ratios("sequence_mask") == pytest.approx([0, small])


def test_refills_rewards_and_cut_rollouts_are_as_without_vllm(make_trainer):
    trainer = make_trainer([dataclasses.replace(ITEMS[0], answer="never"), ITEMS[0]])
    batch = batch_of(trainer)
    progress = trainer.progress
    assert progress.rollouts == 16 * progress.groups == 16 * len(progress.rows)
    assert progress.sampling_rounds == len(ColocatedLLM.made[0].asked) > 1
    assert progress.kept + progress.unfilled == 2 and progress.kept > 0
    trained = {row["group"] for row in progress.rows if row["trained"]}
    assert {n for n in batch["group"].tolist() if n in trained} == trained
    log = {row["group"]: row for row in progress.rows}
    eos = WORDS.index("<eos>")
    for number in trained:
        rows = [i for i, each in enumerate(batch["group"].tolist()) if each == number]
        completions = [batch["completion_ids"][i][batch["completion_mask"][i].bool()] for i in rows]
        cut = [ids[-1].item() != eos for ids in completions]
        assert log[number]["truncated_fraction"] == pytest.approx(sum(cut) / len(cut))
        assert all(len(ids) == 24 for ids, is_cut in zip(completions, cut, strict=True) if is_cut)


def test_draws_depend_on_seed_and_prompts_alone_and_leave_training_as_it_was(make_trainer):
    def completions(trainer):
        batch = batch_of(trainer)
        return [batch["completion_ids"].tolist(), batch["completion_mask"].tolist()]

    one, other = make_trainer(), make_trainer()
    torch.manual_seed(5)
    random.seed(5)
    first = completions(one)
    after = torch.rand(1), random.random()
    torch.manual_seed(5)
    random.seed(5)
    assert after == (torch.rand(1), random.random())
    torch.manual_seed(99)
    assert completions(other) == first
    assert completions(other) != first


def test_rollouts_of_the_probe_and_replayed_ones_count_as_drawn_just_now(make_trainer):
    trainer = make_trainer()
    ids, drawn = [[4, 5], [6, 7, 1]], [[-2.0, -2.0], ()]
    group = Group(0, "a", ITEMS[0].prompt_token_ids, ids, [1, 0], [False] * 2, log_probs=drawn)
    trainer.model.train()
    ratios = trainer._to_tensors([group])["importance_sampling_ratio"][:, 0]
    assert ratios[1] == 1 and ratios[0] != 1
    assert trainer._to_tensors([group.take([1])])["importance_sampling_ratio"].item() == 1


def test_ratios_are_logged_of_all_processes_and_one_row_of_numbers_is_sent(
    make_trainer, monkeypatch
):
    trainer = make_trainer(vllm_importance_sampling_mode="token_truncate", beta=0.0)
    sent = []

    def gather(rows):
        sent.append(rows)
        return [*rows, (6.0, 3, 4.0)]  # As if another process had three tokens.

    monkeypatch.setattr(grpo, "gather_object", gather)
    ids, drawn = [[4, 5], [6, 7, 1]], [[-2.0, -2.0], ()]
    group = Group(0, "a", ITEMS[0].prompt_token_ids, ids, [1, 0], [False] * 2, log_probs=drawn)
    trainer.model.train()
    ratios = trainer._to_tensors([group])["importance_sampling_ratio"][0, :2].tolist()
    log = trainer._metrics["train"]
    assert log["sampling/importance_sampling_ratio/mean"] == [pytest.approx((6 + sum(ratios)) / 5)]
    assert log["sampling/importance_sampling_ratio/max"] == [4.0]
    assert [len(rows) for rows in sent] == [1, 1] and sent[0][0][1] == 2
    trainer._to_tensors([group.take([1])])  # Of which vLLM drew nothing.
    assert sent[-1] == [] and log["sampling/sampling_logp_difference/max"][-1] == 4.0


def test_trls_settings_reach_vllm(make_trainer, tiny_model):
    trainer = make_trainer(vllm_gpu_memory_utilization=0.55)
    (llm,) = ColocatedLLM.made
    assert llm.arguments["model"] == str(tiny_model)
    assert llm.arguments["gpu_memory_utilization"] == 0.55
    assert llm.arguments["max_model_len"] == 3 + 24
    assert llm.arguments["logprobs_mode"] == "processed_logprobs"
    batch_of(trainer)
    wanted = llm.asked[0]
    assert (wanted.temperature, wanted.max_tokens, wanted.logprobs) == (1.0, 24, 0)
    assert wanted.stop_token_ids == [1] and wanted.ignore_eos


def test_a_whole_run_evaluates_goes_on_and_shuts_vllm_down(tiny_model, pool, tmp_path):
    before = dict(os.environ)
    run = training(tiny_model, pool, tmp_path, max_steps=2, held_out_rollouts=4)
    held_out = [dataclasses.replace(ITEMS[0], item_id="c")]
    run = dataclasses.replace(run, held_out=held_out)
    trainer = train_grpo(run)
    assert trainer.use_vllm
    assert [row["total_rollouts"] for row in trainer.progress.held_out] == [4, 4]
    # Held-out items are drawn at their own temperature.
    temperatures = {each.temperature for each in ColocatedLLM.made[0].asked}
    assert sorted(temperatures) == pytest.approx([0.7, 1.0])
    assert ColocatedLLM.made[0].is_shut
    assert {name: os.environ.get(name) for name in vllm._LAUNCH} == {
        name: before.get(name) for name in vllm._LAUNCH
    }
    metrics = trainer.progress.metrics
    assert any("sampling/importance_sampling_ratio/mean" in line for line in metrics)


def test_what_vllm_fails_with_is_one_line(make_trainer, monkeypatch):
    trainer = make_trainer()

    def fail(*_, **__):
        raise RuntimeError("EngineCore died\nat length")

    monkeypatch.setattr(ColocatedLLM, "generate", fail)
    with pytest.raises(RunError, match="while drawing training rollouts: EngineCore died"):
        batch_of(trainer)
    monkeypatch.setattr(ColocatedLLM, "__init__", fail)
    with pytest.raises(RunError, match="beside the model that is trained: EngineCore died"):
        make_trainer()


# --- What draws ---------------------------------------------------------------------------------


def test_without_a_gpu_it_is_refused_in_one_line_or_left(tiny_model, monkeypatch):
    monkeypatch.undo()
    files = resolve_model(str(tiny_model))
    with pytest.raises(UsageError, match="without a GPU vLLM packs the weights") as refused:
        choose_generation(RECIPE, files)
    assert "recipe test" in str(refused.value) and "\n" not in str(refused.value)
    for generation in ("auto", "transformers"):
        recipe = dataclasses.replace(RECIPE, generation=generation)
        assert choose_generation(recipe, files) == "transformers"


@pytest.mark.parametrize(
    ("lora_rank", "parameters", "free", "chosen"),
    [
        (32, 7.6e9, 79e9, "vllm"),  # 15 GB as they are, and 24 GB for vLLM.
        (32, 14e9, 79e9, "transformers"),  # vLLM's 24 GB leave no room for keys and values.
        (32, 7.6e9, 38e9, "transformers"),  # Another process has most of the GPU.
        (0, 0.5e9, 79e9, "vllm"),  # 11 GB in training.
        (0, 3e9, 79e9, "transformers"),  # 66 GB in training.
    ],
)
def test_auto_takes_vllm_where_a_gpu_seems_to_hold_both(
    tiny_model, monkeypatch, lora_rank, parameters, free, chosen
):
    monkeypatch.setattr(vllm, "choose_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(vllm, "weight_bytes", lambda *_: int(2 * parameters))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free), int(80e9)))
    recipe = dataclasses.replace(RECIPE, generation="auto", lora_rank=lora_rank)
    assert choose_generation(recipe, resolve_model(str(tiny_model))) == chosen


def test_an_adapter_on_float32_weights_counts_four_bytes_a_parameter(tiny_model, monkeypatch):
    monkeypatch.setattr(vllm, "choose_dtype", lambda _: torch.float32)
    monkeypatch.setattr(vllm, "weight_bytes", lambda *_: int(18e9))
    recipe = dataclasses.replace(RECIPE, generation="auto", lora_rank=32)
    files = resolve_model(str(tiny_model))
    for free, chosen in ((50e9, "vllm"), (45e9, "transformers")):  # 18 GB, and 24 GB for vLLM.
        memory = int(free), int(80e9)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda memory=memory: memory)
        assert choose_generation(recipe, files) == chosen


@pytest.mark.parametrize("kind", ["mixtral", "llama4_text", "gpt_oss"])
def test_rollouts_of_a_mixture_are_drawn_by_transformers(tmp_path, tiny_model, monkeypatch, kind):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(vllm, "_fits", lambda *_: True)
    monkeypatch.setattr(vllm, "is_spread", lambda *_: False)
    auto = dataclasses.replace(RECIPE, generation="auto")
    assert choose_generation(auto, resolve_model(str(tiny_model))) == "vllm"
    files = resolve_model(str(save_architecture(tmp_path / "model", kind)))
    assert choose_generation(auto, files) == "transformers"
    with pytest.raises(UsageError, match="cannot work here: the model is a mixture of experts"):
        choose_generation(RECIPE, files)


def test_processes_that_disagree_draw_alike(tiny_model, monkeypatch):
    files, auto = resolve_model(str(tiny_model)), dataclasses.replace(RECIPE, generation="auto")

    def chosen(own_fits, other, recipe=auto, begun_with=""):
        monkeypatch.setattr(vllm, "_fits", lambda *_: own_fits)
        monkeypatch.setattr(vllm, "gathered", lambda own: [other, own])
        return choose_generation(recipe, files, begun_with=begun_with)

    assert chosen(True, ("", "", True)) == "vllm"
    assert chosen(True, ("", "", False)) == chosen(False, ("", "", True)) == "transformers"
    assert chosen(True, ("", "it has no GPU", False)) == "transformers"
    # The first process says how the training was begun.
    assert chosen(False, ("vllm", "", False)) == "vllm"
    assert chosen(True, ("", "", True), begun_with="transformers") == "vllm"
    with pytest.raises(UsageError, match="cannot work here: it has no GPU"):
        chosen(True, ("", "it has no GPU", False), RECIPE)


def test_a_training_goes_on_with_what_drew_its_rollouts(tiny_model, monkeypatch):
    files, auto = resolve_model(str(tiny_model)), dataclasses.replace(RECIPE, generation="auto")
    for fits in (True, False):
        monkeypatch.setattr(vllm, "_fits", lambda *_, fits=fits: fits)
        for name in ("vllm", "transformers"):
            assert choose_generation(auto, files, begun_with=name) == name
    monkeypatch.setattr(vllm, "_obstacle", lambda *_: "vLLM is not installed")
    with pytest.raises(UsageError, match="so far, and cannot go on here: vLLM is not installed"):
        choose_generation(auto, files, begun_with="vllm")
    assert choose_generation(auto, files, begun_with="transformers") == "transformers"
