"""Models that are not attention and linear layers alone: sampled, differentiated, or refused."""

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.utils import parametrize
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from curate.errors import UsageError
from probes.engines.base import SampleRequest, Truncation, uniform_draws
from probes.engines.drawing import draw
from probes.engines.generate import has_plain_attention
from probes.engines.rehearsal import rehearse_gradients, rehearse_sampling
from probes.engines.transformers import TransformersEngine
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.gradients.tap import Adapter
from probes.gradients.targets import Target, coverage, find_targets
from probes.models.files import resolve_model
from probes.models.load import Policy, load_policy, outline_policy
from probes.rescoring.teacher_forcing import log_probabilities
from tests.made.architectures import SETTINGS, save_architecture
from tests.tag_runs import additions, read_rollouts, tag, write_jsonl

BY_GENERATE = {"qwen3_next", "lfm2", "mamba2", "mamba"}
# As one tensor a layer, which we know.
WITH_EXPERTS = ["mixtral", "qwen3_moe", "qwen3_next", "gpt_oss", "deepseek_v3"]
PROMPTS = {"a": [15, 4], "b": [3, 13, 4, 14, 5, 6, 7], "c": [7]}
MOST = 8


@pytest.fixture(scope="module", params=SETTINGS)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = save_architecture(tmp_path_factory.mktemp("models") / request.param, request.param)
    return loaded(folder)


def loaded(folder: Path) -> Policy:
    files = resolve_model(str(folder))
    return load_policy(files, device=torch.device("cpu"), dtype=torch.float32)


def requests(samples: int, first: int = 0) -> list[SampleRequest]:
    return [SampleRequest(item, prompt, first, samples) for item, prompt in PROMPTS.items()]


def engine_of(policy: Policy, **settings: Any) -> TransformersEngine:
    defaults = {"seed": 3, "temperature": 1.0, "max_tokens": MOST}
    return TransformersEngine(policy, **(defaults | settings))


def one_at_a_time(policy: Policy, item: str, sample: int) -> list[int]:
    """The plainest sampler: the whole sequence through the model for every token."""
    ids = list(PROMPTS[item])
    for number in uniform_draws(3, item, sample, MOST):
        with torch.inference_mode():
            logits = policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1]
        ids.append(int(draw(logits, torch.tensor([[number]]), 1.0)))
        if ids[-1] in policy.eos_token_ids:
            break
    return ids[len(PROMPTS[item]) :]


def test_every_kind_is_sampled_as_its_own_distribution_says(policy: Policy) -> None:
    kind = policy.model.config.model_type
    engine = engine_of(policy)
    assert engine.is_plain == (kind not in BY_GENERATE)
    assert ("by" in engine.facts()["options"]) == (kind in BY_GENERATE)
    drawn = list(engine.sample(requests(4)))
    assert Counter(rollout.item_id for rollout in drawn) == dict.fromkeys(PROMPTS, 4)
    for rollout in drawn:
        ids = rollout.completion_token_ids
        assert ids == one_at_a_time(policy, rollout.item_id, rollout.sample)
        assert rollout.finish_reason == ("stop" if ids[-1] == 1 else "length")
    tokenized = [TokenizedRollout(PROMPTS[r.item_id], r.completion_token_ids) for r in drawn]
    kept = np.array([rollout.log_probability for rollout in drawn], dtype=float)
    np.testing.assert_allclose(kept, log_probabilities(policy, tokenized), rtol=0, atol=1e-4)


def test_every_kind_has_gradients_that_no_batch_changes(policy: Policy) -> None:
    drawn = engine_of(policy).sample(requests(3))
    rollouts = [TokenizedRollout(PROMPTS[r.item_id], r.completion_token_ids) for r in drawn]
    adapter = Adapter(rank=4, dim=None)
    found: dict[int, np.ndarray] = {}
    for places, features in GradientProbe(policy, adapter).gradients(rollouts):
        found |= dict(zip(places, features, strict=True))
    alone = GradientProbe(policy, adapter)
    for place, rollout in enumerate(rollouts):
        ((_, features),) = alone.gradients([rollout])
        np.testing.assert_allclose(found[place], features[0], rtol=0, atol=2e-5)
        assert np.abs(features).max() > 1e-3


class WithLora(torch.nn.Module):
    """A parameter with a LoRA adapter in it, each expert its own."""

    def __init__(self, target: Target, a: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.is_turned = target.experts is not None and target.experts.module.is_transposed
        *experts, fan_out, _ = target.matrix.shape
        self.a, self.scale = a, scale
        self.b = torch.nn.Parameter(torch.zeros(*experts, fan_out, a.shape[-2]))

    def forward(self, matrix: torch.Tensor) -> torch.Tensor:
        step = self.scale * (self.b @ self.a)
        return matrix + (step.transpose(-1, -2) if self.is_turned else step)


@pytest.mark.parametrize("kind", ["falcon", "llama4_text", "mamba2", *WITH_EXPERTS])
def test_the_gradient_is_that_of_autograd(kind: str, tmp_path: Path) -> None:
    """Of every B: an adapter put into the parameters, and the model's own loss differentiated."""
    policy = loaded(save_architecture(tmp_path / kind, kind))
    adapter = Adapter(rank=4, dim=None)
    probe = GradientProbe(policy, adapter)
    rollouts = [TokenizedRollout(PROMPTS[item], [4, 9, 6, 1]) for item in "bcb"]
    found: dict[int, np.ndarray] = {}
    for places, rows in probe.gradients(rollouts):
        found |= dict(zip(places, rows, strict=True))
    adapted = copy.deepcopy(policy.model)
    targets = find_targets(adapted, adapter.targets)
    added = []
    for name, target in targets.items():
        a = probe._taps[name].lora_a(target.matrix.shape[-1])
        added.append(WithLora(target, a, adapter.alpha / adapter.rank))
    for target, lora in zip(targets.values(), added, strict=True):
        parametrize.register_parametrization(target.module, target.parameter, lora)
    for place, rollout in enumerate(rollouts):
        ids = torch.tensor([[*rollout.prompt_token_ids, *rollout.completion_token_ids]])
        logits = adapted(input_ids=ids[:, :-1], use_cache=False).logits[0, -4:]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, -4:])
        expected = torch.autograd.grad(loss, [lora.b for lora in added])
        start = 0
        for name, slope in zip(targets, expected, strict=True):
            ours = found[place][start : start + slope.numel()].reshape(slope.shape)
            np.testing.assert_allclose(ours, slope.numpy(), rtol=1e-3, atol=1e-5, err_msg=name)
            start += slope.numel()
        assert start == len(found[place])


def test_generate_draws_by_number_whatever_is_in_the_batch(tmp_path: Path) -> None:
    policy = loaded(save_architecture(tmp_path / "m", "lfm2"))
    assert not has_plain_attention(policy.model)
    whole = {(r.item_id, r.sample): r for r in engine_of(policy).sample(requests(6))}
    parts = [
        *engine_of(policy, max_rows=1).sample(requests(2)),
        *engine_of(policy, max_rows=3).sample(requests(4, first=2)),
    ]
    assert len(parts) == len(whole)
    for rollout in parts:
        same = whole[rollout.item_id, rollout.sample]
        assert rollout.completion_token_ids == same.completion_token_ids
    # What the generation config says of sampling is left out.
    policy.model.generation_config.repetition_penalty = 5.0
    policy.model.generation_config.min_new_tokens = MOST
    again = {(r.item_id, r.sample): r for r in engine_of(policy).sample(requests(6))}
    assert {key: r.completion_token_ids for key, r in again.items()} == {
        key: r.completion_token_ids for key, r in whole.items()
    }
    assert policy.model.generation_config.repetition_penalty == 5.0
    (greedy,) = {
        tuple(rollout.completion_token_ids)
        for rollout in engine_of(policy, truncation=Truncation(top_k=1)).sample(requests(6)[:1])
    }
    assert len(greedy) <= MOST


def test_generate_backs_off_when_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = loaded(save_architecture(tmp_path / "m", "mamba2"))
    real = policy.model.generate
    sizes = []

    def small_batches_only(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(**inputs)

    whole = {(r.item_id, r.sample): r for r in engine_of(policy).sample(requests(5))}
    monkeypatch.setattr(policy.model, "generate", small_batches_only)
    found = {(r.item_id, r.sample): r for r in engine_of(policy).sample(requests(5))}
    assert found.keys() == whole.keys() and max(sizes) == 5
    for key, rollout in found.items():
        assert rollout.completion_token_ids == whole[key].completion_token_ids


def test_what_has_no_gradients_is_told(policy: Policy) -> None:
    kind = policy.model.config.model_type
    found = coverage(policy.model, ("auto",))
    if kind == "llama4_text":  # Its experts have a form of their own; its router is differentiated.
        assert found.share < 0.8 and f"{found.share:.1%} of the weights" in str(found)
        assert set(found.left_out) == {
            "feed_forward.experts.gate_up_proj",
            "feed_forward.experts.down_proj",
        }
    else:
        assert found.share > 0.9 and not any("mlp" in name for name in found.left_out)
    weights = {
        name.removesuffix(".weight"): parameter.numel()
        for name, parameter in policy.model.named_parameters()
        if parameter.ndim > 1
        and (".layers." in name or ".h." in name)
        and not name.endswith("_bias")
    }
    covered = sum(weights[name] for name in find_targets(policy.model, ("auto",)))
    assert found.share == pytest.approx(covered / sum(weights.values()))


@pytest.mark.parametrize("kind", ["qwen3_next", "llama4_text"])
def test_tag_goes_from_end_to_end(kind: str, tmp_path: Path) -> None:
    model = save_architecture(tmp_path / kind, kind)
    dataset = write_jsonl(tmp_path / "a.jsonl", additions(4))
    command = ("--model", model, "--min-rollouts", "16", "--run-dir", tmp_path / "run")
    ran = tag(dataset, *command, "--out", tmp_path / "out.jsonl")
    assert ran.status == 0, ran.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert ("by" in manifest["engine"]["options"]) == (kind in BY_GENERATE)
    assert ("it is sampled by transformers' generate" in ran.stderr) == (kind in BY_GENERATE)
    told = manifest["differentiated"]
    # Experts of Llama 4, convolutions of Qwen3-Next.
    left = {"llama4_text": "experts", "qwen3_next": "conv1d"}[kind]
    assert left in told["without"][0]
    assert (told["share"] > 0.98) == (kind == "qwen3_next")
    assert f"warning: gradients are of {told['share']:.1%} of the weights" in ran.stderr
    assert read_rollouts(tmp_path / "run").num_rows == 64
    assert pq.read_table(tmp_path / "run" / "similarity.parquet").num_rows == 4


def test_a_model_whose_layers_are_all_differentiated_is_no_news(
    tiny_model: Path, tmp_path: Path
) -> None:
    dataset = write_jsonl(tmp_path / "a.jsonl", additions(2))
    run = tmp_path / "run"
    ran = tag(dataset, "--model", tiny_model, "--run-dir", run, "--out", tmp_path / "out.jsonl")
    assert ran.status == 0 and "gradients are of" not in ran.stderr
    assert "differentiated" not in json.loads((run / "manifest.json").read_text())


# --- Refused before sampling -------------------------------------------------------------------


class Experts(torch.nn.Module):
    """Experts as linear layers of their own, each of which sees some of the tokens."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.experts = torch.nn.ModuleList(torch.nn.Linear(hidden, hidden) for _ in range(2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.flatten(0, 1)
        out = torch.zeros_like(flat)
        places = torch.arange(len(flat), device=flat.device)
        for number, expert in enumerate(self.experts):
            of_it = places[number::2]
            out = out.index_add(0, of_it, expert(flat[of_it]))
        return out.view_as(hidden)


def with_expert_lists(policy: Any) -> Any:
    for layer in policy.model.model.layers:
        layer.mlp = Experts(32).to(policy.model.device, policy.model.dtype)
    return policy


def test_what_our_gradients_cannot_reach_is_refused_before_sampling(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_jsonl(tmp_path / "a.jsonl", additions(2))
    monkeypatch.setattr(
        "probes.models.checkpoints.load_policy",
        lambda files, **options: with_expert_lists(load_policy(files, **options)),
    )
    run = tmp_path / "run"
    command = (dataset, "--model", tiny_model, "--run-dir", run, "--out", tmp_path / "o.jsonl")
    ran = tag(*command)
    assert ran.status == 2 and not (run / "rollouts").exists()
    assert "(llama) cannot be differentiated: model.layers.0.mlp.experts.0 does not see" in (
        ran.last_line
    )
    # As it says: others can.
    assert tag(*command, "--gradient-targets", "q_proj", "v_proj").status == 0


def test_without_weights_the_outline_tells(tiny_model: Path, tmp_path: Path) -> None:
    """As with vLLM and servers, whose weights are not here before the gradients."""
    files = resolve_model(str(tiny_model))
    rehearse_gradients(files, outline_policy(files), Adapter())
    with pytest.raises(UsageError, match=r"cannot be differentiated: .* does not see every token"):
        rehearse_gradients(files, with_expert_lists(outline_policy(files)), Adapter())
    for kind in SETTINGS:  # None of these is refused.
        other = resolve_model(str(save_architecture(tmp_path / kind, kind)))
        rehearse_gradients(other, outline_policy(other), Adapter())


def test_a_model_that_fails_while_sampling_is_one_line(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**inputs: Any) -> Any:
        raise AttributeError("'NoneType' object has no attribute 'conv_states'\nmore of it")

    monkeypatch.setattr(tiny_policy.model, "forward", broken)
    with pytest.raises(UsageError) as refused:
        rehearse_sampling(tiny_policy, engine_of(tiny_policy))
    assert "(llama) cannot be sampled by --engine transformers: 'NoneType'" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_that_reads_images_too_is_differentiated_where_it_reads_text(
    tmp_path: Path,
) -> None:
    policy = loaded(save_architecture(tmp_path / "gemma3", "gemma3"))
    modules = find_targets(policy.model, ("auto",))
    assert modules and not any("vision" in name for name in modules)
    rehearse_sampling(policy, engine_of(policy))
    rehearse_gradients(policy.files, policy, Adapter())


def test_a_kind_without_a_language_model_is_one_line(tmp_path: Path) -> None:
    config = CLIPConfig(
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    AutoTokenizer.from_pretrained(save_architecture(tmp_path / "m", "lfm2")).save_pretrained(
        tmp_path / "clip"
    )
    files = resolve_model(str(tmp_path / "clip"))
    for load in (load_policy, outline_policy):
        with pytest.raises(UsageError, match="no causal language model for a CLIPConfig"):
            load(files)
