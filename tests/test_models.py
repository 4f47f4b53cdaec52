"""A model is found by folder, file or Hub id, hashed before it is loaded, and loaded safely."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from curate.errors import UsageError
from probes.engines.base import SampleRequest
from probes.engines.transformers import TransformersEngine
from probes.models.files import resolve_model
from probes.models.load import Policy, choose_dtype, eos_token_ids, load_policy, outline_policy

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESOLVE = """
import json, sys
from curate.errors import UsageError
from probes.models.files import resolve_model
from probes.models.load import load_policy
try:
    files = resolve_model(sys.argv[1])
    policy = load_policy(files)
    print(json.dumps([files.name, files.revision, str(files.folder), policy.context_length]))
except UsageError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def hub_cache(tmp_path: Path, tiny_model: Path) -> Path:
    """A Hub cache as a download leaves it: one commit, named by the branch `main`."""
    repository = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(tiny_model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hub"


def resolved_offline(name: str, cache: Path) -> object:
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["org/tiny", f"org/tiny@{COMMIT}", "org/tiny@main"])
def test_hub_id_with_and_without_revision(hub_cache: Path, name: str) -> None:
    folder = hub_cache / "models--org--tiny" / "snapshots" / COMMIT
    assert resolved_offline(name, hub_cache) == ["tiny", COMMIT, str(folder), 256]


def test_a_hub_id_that_is_nowhere_is_one_line(hub_cache: Path) -> None:
    message = resolved_offline("org/other", hub_cache)
    assert isinstance(message, str)
    assert "org/other" in message and "Hub" in message and "\n" not in message


def test_weights_make_the_hash(tiny_model: Path, tmp_path: Path) -> None:
    same = shutil.copytree(tiny_model, tmp_path / "same")
    assert resolve_model(str(same)).weight_hash == resolve_model(str(tiny_model)).weight_hash
    weights = bytearray((same / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (same / "model.safetensors").write_bytes(weights)
    assert resolve_model(str(same)).weight_hash != resolve_model(str(tiny_model)).weight_hash


def test_pickled_weights_are_not_opened(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="safetensors"):
        resolve_model(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "missing.gguf", "two words", "a/b/c"])
def test_what_cannot_be_a_model(name: str) -> None:
    with pytest.raises(UsageError, match="no such model"):
        resolve_model(name)


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ([4, 5], 1, {1, 4, 5}),
        (2, 1, {1, 2}),
        (None, 1, {1}),
        # What no file names is a default of the architecture: Llama's is 2.
        (2, None, {1, 2}),
        (None, None, {1}),
        ([4], [5, 6], {1, 4, 5, 6}),
    ],
)
def test_every_end_that_the_files_name_ends_a_completion(
    tiny_model: Path, tmp_path: Path, generation: Any, config: Any, ends: set[int]
) -> None:
    """Of generation config, config and tokenizer (1), on every engine alike."""
    folder = shutil.copytree(tiny_model, tmp_path / "ends")
    for name, declared in (("generation_config.json", generation), ("config.json", config)):
        values = json.loads((folder / name).read_text())
        values.pop("eos_token_id")
        if declared is not None:
            values["eos_token_id"] = declared
        (folder / name).write_text(json.dumps(values))
    files = resolve_model(str(folder))
    policy = load_policy(files, device=torch.device("cpu"))
    assert policy.eos_token_ids == ends
    assert outline_policy(files).eos_token_ids == ends  # Servers go by that,
    assert eos_token_ids(folder) == ends  # and vLLM by this.
    engine = TransformersEngine(policy, seed=1, temperature=1.0, max_tokens=20)
    for rollout in engine.sample([SampleRequest("a", [15, 4], 0, 50)]):
        assert not ends & set(rollout.completion_token_ids[:-1])
        stopped = rollout.completion_token_ids[-1] in ends
        assert rollout.finish_reason == ("stop" if stopped else "length")


def test_without_any_name_the_architectures_default_ends(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "ends")
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text())
        for key in ("eos_token_id", "eos_token"):
            values.pop(key, None)
        (folder / name).write_text(json.dumps(values))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    files = resolve_model(str(folder))
    assert load_policy(files, device=torch.device("cpu")).eos_token_ids == {2}
    assert outline_policy(files).eos_token_ids == {2}


def test_the_policy_is_frozen_and_in_the_type_of_the_machine(tiny_model: Path) -> None:
    policy = load_policy(resolve_model(str(tiny_model)), device=torch.device("cpu"))
    assert policy.dtype == policy.model.dtype == choose_dtype(torch.device("cpu"))
    assert not policy.model.training
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())


def test_grouped_attention_is_the_models_own(tiny_policy: Policy) -> None:
    ids = torch.tensor([[0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    model = tiny_policy.model
    assert model.config._attn_implementation == "curate_grouped"
    with torch.inference_mode():
        ours = model(input_ids=ids, attention_mask=mask).logits
        model.set_attn_implementation("eager")
        theirs = model(input_ids=ids, attention_mask=mask).logits
        model.set_attn_implementation("curate_grouped")
    real = mask.bool()
    assert torch.allclose(ours[real], theirs[real], atol=1e-5)
    assert not torch.allclose(ours[real][0], ours[real][1], atol=1e-2)
