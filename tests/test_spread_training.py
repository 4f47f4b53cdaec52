"""Training a model that is spread over several GPUs, as far as a machine without one can tell."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode

from curate.errors import UsageError
from probes.models import checkpoints, load
from probes.models.files import resolve_model
from probes.models.load import Policy, load_policy, takes_several_gpus
from probes.verifiers.pool import VerifierPool
from recipes.recipe import Recipe
from recipes.train import placement, vllm
from recipes.train.packing import pack, packed_log_probs
from recipes.train.prompts import TrainingItem
from recipes.train.train import Training, initial_policy, trainable_policy
from tests.made.trainer import made_trainer, made_training

RECIPE = Recipe(
    name="test",
    max_steps=1,
    prompts_per_step=2,
    num_generations=32,
    updates_per_step=1,
    learning_rate=1e-2,
    max_completion_length=16,
    max_sampling_rounds=1,
)


def spread(model: Any) -> None:
    """Have a model count as spread over two GPUs, with accelerate's hooks on every module."""
    for module in model.modules():
        hook = AlignDevicesHook(execution_device="cpu", io_same_device=module is model)
        add_hook_to_module(module, hook)
    model.hf_device_map = {"model.embed_tokens": 0, "model.layers": 1, "lm_head": 1}


def _training(model: Path, pool: VerifierPool, folder: Path, recipe: Recipe) -> Training:
    items = [TrainingItem(name, (3 + i, 4, 5), "3") for i, name in enumerate("ab")]
    return made_training(resolve_model(str(model)), pool, folder, recipe, items)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_loss_and_gradients_are_those_of_one_device(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_rank: int
) -> None:
    monkeypatch.setattr(placement, "choose_dtype", lambda _: torch.float32)
    recipe = dataclasses.replace(RECIPE, lora_rank=lora_rank)
    found = []
    with VerifierPool("tests.scripted_reward:reward", workers=1) as pool:
        for is_spread in (False, True):
            run = _training(tiny_model, pool, tmp_path, recipe)
            policy = trainable_policy(run)
            reference = None if lora_rank else initial_policy(run)
            if is_spread:
                for model in (policy.model, *([] if lora_rank else [reference])):
                    spread(model)
            trainer = made_trainer(run, policy, reference)
            assert trainer.is_model_parallel is is_spread
            trainer.model.train()
            trainer.current_gradient_accumulation_steps = 1
            batch = trainer._generate_and_score_completions([])
            assert batch["advantages"].any()
            loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
            slopes = [p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad]
            found.append((batch["completion_ids"], loss.detach(), torch.cat(slopes)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert found[0][2].norm() > 0


def test_what_another_gpu_computed_comes_to_the_tokens() -> None:
    """Devices that torch makes believe: it refuses to compute with what lies on two of them."""
    packing = pack([[1, 2, 3]] * 3, [[4], [5, 6], [7]])
    assert packing is not None
    with FakeTensorMode():

        def forward(labels: torch.Tensor, **_: Any) -> Any:
            values = torch.empty(labels.shape[0], labels.shape[1] - 1, device="cuda:1")
            return SimpleNamespace(log_probs=values, entropy=values)

        mask = torch.ones(3, 2, dtype=torch.long, device="cuda:0")
        log_probs, entropies = packed_log_probs(forward, packing, mask, torch.bfloat16)
        assert entropies is not None
        assert log_probs.device == entropies.device == torch.device("cuda:0")
        assert log_probs.shape == mask.shape


def test_an_adapter_of_a_spread_model_stays_where_its_layers_are(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = resolve_model(str(tiny_model))
    policy = load_policy(files, device=torch.device("cpu"), dtype=torch.float32)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(policy.model, config).save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[3, 4, 5]])

    def loaded(*args: Any, **options: Any) -> Policy:
        found = load_policy(*args, **options)
        spread(found.model)
        # Moved as a whole, a model would end on one GPU.
        monkeypatch.setattr(type(found.model), "to", _refused)
        return found

    monkeypatch.setattr(checkpoints, "load_policy", loaded)
    opened = checkpoints.open_checkpoint(
        str(tmp_path / "adapter"), files, device=torch.device("cpu"), dtype=torch.float32
    )
    monkeypatch.undo()
    own = load_policy(files, device=torch.device("cpu"), dtype=torch.float32).model
    # B is zero.
    torch.testing.assert_close(opened.model(input_ids=ids).logits, own(input_ids=ids).logits)


def _refused(self: Any, *args: Any, **options: Any) -> Any:
    raise AssertionError("moved as a whole")


def test_a_model_is_spread_where_training_it_takes_more_than_a_gpu(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, gpu = resolve_model(str(tiny_model)), torch.device("cuda", 0)
    parameters = load.weight_bytes(files, torch.bfloat16) // 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(placement, "choose_device", lambda: gpu)
    monkeypatch.setattr(placement, "choose_dtype", lambda _: torch.bfloat16)
    for lora_rank, each in ((0, 22), (4, 4)):
        recipe = dataclasses.replace(RECIPE, lora_rank=lora_rank)
        for spare, expected in ((1, False), (-1, True)):
            free = each * parameters + spare
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
            assert placement.is_spread(recipe, files) is expected
    assert not takes_several_gpus(files, torch.device("cpu"), torch.bfloat16)
    # Each of several processes would spread it over the GPUs of the others.
    monkeypatch.setattr(placement, "process_state", lambda: SimpleNamespace(num_processes=2))
    with VerifierPool("tests.scripted_reward:reward", workers=1) as pool:
        run = _training(tiny_model, pool, tmp_path, recipe)
        with pytest.raises(UsageError, match="too large to be trained on one GPU"):
            trainable_policy(run)
        # One process whose GPU is too full is enough.
        monkeypatch.setattr(placement, "is_spread", lambda *_: False)
        placement.refuse_to_spread_in_each_process(recipe, files)
        monkeypatch.setattr(placement, "gathered", lambda own: [own, True])
        with pytest.raises(UsageError, match="each of 2 processes trains it whole"):
            placement.refuse_to_spread_in_each_process(recipe, files)
    # TRL's vLLM lies on the GPU of its process.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "spread over several GPUs" in vllm._obstacle(recipe, files, False)
