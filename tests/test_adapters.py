"""LoRA adapters on weights in bfloat16: what they have learned is not lost to rounding."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from probes.gradients.batch import TokenizedRollout
from probes.models.adapters import adapted_layers, add_before_rounding, merge, merged_weight
from probes.models.files import resolve_model
from probes.models.load import load_policy
from probes.rescoring.teacher_forcing import log_probabilities
from probes.verifiers.pool import VerifierPool
from recipes.forecast.pilot import _Pilot
from recipes.recipe import Recipe
from recipes.train import placement, train
from recipes.train.prompts import TrainingItem
from recipes.train.train import Training, export_policy, train_grpo
from tests.tiny import WORDS

SMALL: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "vocab_size": 50,
}


def adapted_model(kind: str = "Qwen2", dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model with an adapter whose B is far smaller than a step of its weights."""
    torch.manual_seed(0)
    if kind == "Qwen2":  # Its query, key and value layers have a bias.
        model: Any = Qwen2ForCausalLM(
            Qwen2Config(**SMALL, num_key_value_heads=2, intermediate_size=64)
        )
        torch.nn.init.normal_(model.model.layers[0].self_attn.q_proj.bias)
    else:  # Its layers have transposed weights.
        gpt2: Any = GPT2LMHeadModel
        model = gpt2(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=4))
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model.to(dtype).requires_grad_(False), config)
    for layer in adapted_layers(adapted).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=1e-5)
    return adapted.eval()


def share_kept(moved: torch.Tensor, wanted: torch.Tensor) -> float:
    """The slope of a regression through 0."""
    moved, wanted = moved.double(), wanted.double()
    return ((moved * wanted).sum() / (wanted * wanted).sum()).item()


@pytest.mark.parametrize("kind", ["Qwen2", "GPT2"])
def test_a_small_adapter_arrives_in_a_layers_output(kind: str) -> None:
    adapted = adapted_model(kind)
    layers = adapted_layers(adapted)
    assert len(layers) == (7 if kind == "Qwen2" else 4)
    assert {each.dtype for each in adapted.parameters() if each.requires_grad} == {torch.float32}
    kept: dict[str, list[float]] = {"peft": [], "ours": []}
    inputs = {}
    for name, layer in layers.items():
        width = layer.lora_A["default"].weight.shape[1]
        inputs[name] = torch.randn(2, 1000, width).bfloat16()
    for who in kept:
        for name, layer in layers.items():
            x = inputs[name]
            own = layer.base_layer(x).float()
            added = layer.lora_B["default"](layer.lora_A["default"](x.float())) * 2
            kept[who].append(share_kept(layer(x).float() - own, added))
            assert layer(x).dtype == torch.bfloat16 and layer(x).shape == own.shape
        add_before_rounding(adapted)
    assert np.mean(kept["peft"]) < 0.3  # Else there is nothing to mend.
    assert np.mean(kept["ours"]) == pytest.approx(1, abs=0.15)


def test_a_small_adapter_arrives_beside_a_bias_too() -> None:
    adapted = adapted_model()
    layers = [each for each in adapted_layers(adapted).values() if each.base_layer.bias is not None]
    assert len(layers) == 3  # q, k and v.
    add_before_rounding(adapted)
    kept = []
    for layer in layers:
        torch.nn.init.normal_(layer.base_layer.bias, std=10)
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=3e-3)  # Below its bias's step.
        x = torch.randn(2, 3000, layer.lora_A["default"].weight.shape[1]).bfloat16()
        exact = x.float() @ layer.base_layer.weight.float().T + layer.base_layer.bias.float()
        added = layer.lora_B["default"](layer.lora_A["default"](x.float())) * 2
        kept.append(share_kept(layer(x).float() - exact, added))
    assert kept == pytest.approx([1] * 3, abs=0.1)


def test_gradients_and_what_peft_does_besides_stay() -> None:
    adapted, ids = adapted_model(), torch.tensor([[3, 4, 5, 6]])
    parameters = [each for each in adapted.parameters() if each.requires_grad]

    def gradients() -> torch.Tensor:
        adapted.zero_grad()
        adapted(input_ids=ids).logits.float().square().sum().backward()
        return torch.cat([each.grad.flatten() for each in parameters])

    before = gradients()
    with adapted.disable_adapter():
        own = adapted(input_ids=ids).logits
    add_before_rounding(adapted)
    after = gradients()
    assert torch.nn.functional.cosine_similarity(before, after, dim=0) > 0.999
    with adapted.disable_adapter():
        assert torch.equal(adapted(input_ids=ids).logits, own)
    in_full = adapted_model(dtype=torch.float32)
    add_before_rounding(in_full)
    assert not any("forward" in vars(each) for each in adapted_layers(in_full).values())


def test_merged_weights_hold_the_adapter_on_average() -> None:
    layers = adapted_layers(adapted_model())
    kept, nearest = [], []
    for layer in layers.values():
        weight, added = layer.base_layer.weight.float(), layer.get_delta_weight("default")
        mean = torch.stack([merged_weight(layer, seed=seed).float() for seed in range(300)]).mean(0)
        kept.append(share_kept(mean - weight, added))
        nearest.append(share_kept((weight + added).bfloat16().float() - weight, added))
        # The two numbers around the exact one, and nothing else.
        assert torch.equal(merged_weight(layer), merged_weight(layer))
        step = torch.maximum(weight.abs(), (weight + added).abs()) * 2**-7
        assert ((merged_weight(layer).float() - weight - added).abs() <= step).all()
    assert np.mean(nearest) < 0.5 and np.mean(kept) == pytest.approx(1, abs=0.1)
    layer = next(iter(layers.values()))
    torch.nn.init.zeros_(layer.lora_B["default"].weight)
    assert torch.equal(merged_weight(layer), layer.base_layer.weight)


def test_in_float32_a_merged_model_computes_what_the_adapted_one_does() -> None:
    ids = torch.tensor([[3, 4, 5, 6]])
    for kind in ("Qwen2", "GPT2"):
        adapted = adapted_model(kind, torch.float32)
        wanted = adapted(input_ids=ids).logits
        merged = merge(adapted)
        assert type(merged).__name__.startswith(kind) and not adapted_layers(merged)
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, rtol=1e-5, atol=1e-6)


def test_rollouts_are_scored_with_an_adapter(tiny_model: Path) -> None:
    policy = load_policy(
        resolve_model(str(tiny_model)), device=torch.device("cpu"), dtype=torch.bfloat16
    )
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(policy.model, config)
    for layer in adapted_layers(adapted).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
    model = adapted.get_base_model()
    add_before_rounding(model)
    rollouts = [TokenizedRollout([3, 4, 5], [6, end]) for end in (7, 8, 7)]
    found = log_probabilities(dataclasses.replace(policy, model=model), rollouts)
    for rollout, score in zip(rollouts, found, strict=True):
        ids = torch.tensor([[*rollout.prompt_token_ids, *rollout.completion_token_ids]])
        logs = model(input_ids=ids).logits[0, 2:4].float().log_softmax(-1)
        wanted = logs.gather(1, ids[0, 3:, None]).sum().item()
        assert score == pytest.approx(wanted, abs=0.05)


def test_a_trained_policy_in_bfloat16_keeps_its_training(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (placement, train):
        monkeypatch.setattr(module, "choose_dtype", lambda _: torch.bfloat16)
    recipe = Recipe(
        name="small-steps",
        max_steps=2,
        prompts_per_step=2,
        num_generations=16,
        updates_per_step=1,
        learning_rate=2e-4,
        lora_rank=4,
        max_completion_length=16,
        max_sampling_rounds=2,
        save_every=2,
    )
    with VerifierPool("tests.scripted_reward:reward", workers=1) as pool:
        training = Training(
            recipe=recipe,
            seed=1,
            files=resolve_model(str(tiny_model)),
            items=[TrainingItem("a", tuple(WORDS.index(w) for w in ("what", "is", "3")), "3")],
            held_out=(),
            max_tokens=16,
            pool=pool,
            folder=tmp_path / "checkpoints",
        )
        trainer = train_grpo(training)
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    layers = adapted_layers(adapted)
    assert {each.dtype for each in adapted.parameters() if each.requires_grad} == {torch.float32}
    # `add_before_rounding` was there while it trained.
    assert all("forward" in vars(layer) for layer in layers.values())
    export_policy(training, training.folder / "checkpoint-2", tmp_path / "policy")
    files = resolve_model(str(tmp_path / "policy"))
    exported = load_policy(files, device=torch.device("cpu"), dtype=torch.bfloat16).model
    modules = dict(exported.named_modules())
    moved, wanted = [], []
    for name, layer in layers.items():
        weight = modules[name.removeprefix("base_model.model.")].weight.float()
        moved.append((weight - layer.base_layer.weight.float()).flatten())
        wanted.append(layer.get_delta_weight("default").flatten())
    assert share_kept(torch.cat(moved), torch.cat(wanted)) == pytest.approx(1, abs=0.3)


def test_a_pilot_of_all_parameters_is_exported_in_float32(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "choose_dtype", lambda _: torch.bfloat16)
    training = Training(
        recipe=Recipe(name="all", lora_rank=0),
        seed=1,
        files=resolve_model(str(tiny_model)),
        items=[],
        held_out=(),
        max_tokens=16,
        pool=None,  # type: ignore[arg-type]
        folder=tmp_path / "checkpoints",
    )
    model = load_policy(training.files, device=torch.device("cpu"), dtype=torch.float32).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-5)  # Less than a step of bfloat16.
    pilot = _Pilot(SimpleNamespace(path=tmp_path), training.recipe, 1, "", False)  # type: ignore[arg-type]
    vars(pilot)["training"] = training
    model.save_pretrained(pilot.folder / "checkpoints" / "checkpoint-4")
    (pilot.folder / "checkpoints" / "checkpoint-4" / "curate.json").write_text("{}")
    pilot.export()
    files = resolve_model(str(pilot.folder / "policy"))
    scored = load_policy(files, device=torch.device("cpu"), dtype=torch.float32).model
    for wanted, found in zip(model.parameters(), scored.parameters(), strict=True):
        assert torch.equal(wanted, found)
