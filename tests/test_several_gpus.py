"""A model whose blocks lie on several devices, as far as a machine without a GPU can tell."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_submodules

from curate.config import TagConfig
from probes.engines.base import SampleRequest
from probes.engines.choose import LoadedModel
from probes.engines.transformers import TransformersEngine
from probes.gradients import lora
from probes.gradients.batch import Batch
from probes.gradients.sketch import GradientSums
from probes.machines.ray import RayExecutor
from probes.models import load
from probes.models.files import resolve_model
from probes.models.load import Policy, load_policy, weight_bytes
from tests.test_gradients import features_of, rollouts_of


@pytest.fixture
def dispatched(tiny_model: Path) -> Iterator[Policy]:
    """A policy with accelerate's hooks on every module, as `device_map` puts them there."""
    policy = load_policy(
        resolve_model(str(tiny_model)), device=torch.device("cpu"), dtype=torch.float32
    )
    for module in policy.model.modules():
        hook = AlignDevicesHook(execution_device="cpu", io_same_device=module is policy.model)
        add_hook_to_module(module, hook)
    yield policy
    remove_hook_from_submodules(policy.model)


@pytest.mark.parametrize("kept_tokens", [1, 10**9])
def test_gradients_are_the_same(tiny_policy: Policy, dispatched: Policy, kept_tokens: int) -> None:
    rollouts = rollouts_of(6)
    probe = lora.GradientProbe(
        dispatched, lora.Adapter(dim=None), batch_tokens=10**6, kept_tokens=kept_tokens
    )
    ((places, features),) = probe.gradients(rollouts)
    expected = features_of(tiny_policy, rollouts)
    np.testing.assert_allclose(features, expected[places], rtol=1e-4, atol=1e-6)
    # The hooks are there as before.
    assert all("forward" in vars(module) for module in dispatched.model.modules())


def test_rollouts_are_the_same(tiny_policy: Policy, dispatched: Policy) -> None:
    requests = [SampleRequest(str(n), [3 + n, 4, 5], 0, 6) for n in range(3)]
    drawn = []
    for policy in (tiny_policy, dispatched):
        engine = TransformersEngine(policy, seed=3, temperature=1.0, max_tokens=8)
        found = engine.sample(requests)
        drawn.append({(r.item_id, r.sample): tuple(r.completion_token_ids) for r in found})
    assert drawn[0] == drawn[1] and len(drawn[0]) == 18


def test_where_the_tokens_are_is_known_on_every_device() -> None:
    batch = Batch(rollouts_of(3), torch.device("cpu"))
    there = batch.places(torch.device("meta"))
    assert all(each.device.type == "meta" for each in there)
    assert [len(each) for each in there] == [len(each) for each in batch.places(batch.ids.device)]
    sums = GradientSums(3, 64)
    sums.on(torch.device("cpu")).add_(1)
    assert sums.features([]).shape == (3, 64) and sums.features([]).sum() == 2 * 3 * 64


def test_a_model_goes_to_one_gpu_where_that_holds_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, gpu = resolve_model(str(tiny_model)), torch.device("cuda", 0)
    size = weight_bytes(files, torch.bfloat16)
    policy = load_policy(files, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert size == sum(each.numel() * 2 for each in policy.model.parameters())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for free, place in ((2 * size, {"": gpu}), (2 * size - 1, "balanced")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10 * size))
        assert load._placement(files, gpu, torch.bfloat16) == place


@pytest.mark.parametrize(
    ("gpus", "options", "said"),
    [
        (1, {}, ""),
        (
            8,
            {},
            "8 GPUs, of which 1 is used; add --executor ray to use the others too\n",
        ),
        (8, {"engine": "vllm", "vllm": {"tensor_parallel_size": 4}}, "of which 4 are used"),
        (8, {"engine": "vllm", "vllm": {"tensor_parallel_size": 8}}, ""),
        (8, {"executor": "ray"}, ""),
    ],
)
def test_gpus_that_are_not_used_are_named(
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gpus: int,
    options: dict[str, object],
    said: str,
) -> None:
    model = LoadedModel(TagConfig().replace(**options), resolve_model(str(tiny_model)))
    model._take_turns = True
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    model._say_idle_gpus()
    err = capsys.readouterr().err
    assert said in err and bool(err) == bool(said)


def test_gpus_that_a_model_is_spread_over_are_used(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = LoadedModel(TagConfig(), resolve_model(str(tiny_model)))
    model._take_turns = True
    places = {"model.layers.0": 0, "model.layers.1": 1, "lm_head": 1}
    model._policy = SimpleNamespace(model=SimpleNamespace(hf_device_map=places))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    model._say_idle_gpus()
    assert not capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    model._say_idle_gpus()
    assert "has 4 GPUs, of which 2 are used" in capsys.readouterr().err


def test_where_ray_is_missing_it_is_said_how_to_get_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = LoadedModel(TagConfig(), resolve_model(str(tiny_model)))
    model._take_turns = True
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model._say_idle_gpus()
    assert capsys.readouterr().err.endswith("others too (pip install 'rl-curate[ray]')\n")


@pytest.mark.parametrize(("ray", "size"), [({}, (8, 1)), ({"gpus_per_gradient_worker": 2}, (4, 2))])
def test_gpus_that_sample_together_differentiate_one_by_one(
    ray: dict[str, float], size: tuple[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = object.__new__(RayExecutor)
    executor._config = TagConfig().replace(ray={"gpus_per_worker": 4, **ray})
    executor._workers, executor._cpus, executor._gpus = 2, 1, 4
    there = {"CPU": 64, "GPU": 8}
    monkeypatch.setattr(executor, "_places", lambda name, each: int(there[name] // each))
    assert executor._gradient_workers() == size
