"""vLLM itself, on the CPU, with SmolLM2: what it draws, when it refuses, and what a run keeps."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import chisquare

from curate.config import config_from_mapping
from curate.errors import RunError, UsageError
from probes import tagging
from probes.engines import choose as engines
from probes.engines import vllm as vllm_engine
from probes.engines.base import Rollout, SampleRequest, Truncation
from probes.engines.drawing import truncated
from probes.engines.vllm import VllmEngine
from probes.gradients.batch import TokenizedRollout
from probes.models.files import resolve_model
from probes.models.load import Policy, eos_token_ids, load_policy
from probes.rescoring.teacher_forcing import log_probabilities
from tests.killed_runs import is_running, run_until_killed
from tests.tag_runs import ROOT, read_rollouts, run_curate

IM_END, NEWLINE = 2, 198
SAMPLES, MAX_TOKENS, CONTEXT, TEMPERATURE = 120, 12, 128, 0.8
MEMORY = {"kv_cache_memory_bytes": 512 * 1024**2}


@pytest.fixture(scope="module")
def model(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with two end tokens, and sampling defaults that rollouts must not follow."""
    folder = tmp_path_factory.mktemp("model") / "SmolLM2"
    folder.mkdir()
    for file in smollm2_folder.iterdir():
        os.link(file, folder / file.name)
    (folder / "generation_config.json").unlink()
    defaults = {"do_sample": True, "temperature": 0.1, "top_k": 2, "repetition_penalty": 1.5}
    ends = {"eos_token_id": [IM_END, NEWLINE], "bos_token_id": 1, "pad_token_id": IM_END}
    (folder / "generation_config.json").write_text(json.dumps(defaults | ends))
    return folder


@pytest.fixture(scope="module")
def policy(model: Path) -> Policy:
    return load_policy(resolve_model(str(model)), dtype=torch.float32)


def new_engine(model: Path, **options: Any) -> VllmEngine:
    return VllmEngine(
        resolve_model(str(model)),
        # Larger than NumPy's, as that of `curate score` is.
        seed=2**32 + 7,
        temperature=TEMPERATURE,
        max_tokens=MAX_TOKENS,
        options={**MEMORY, "max_model_len": CONTEXT, **options},
        # In bfloat16 logits have steps of an eighth: two engines, two distributions.
        dtype=torch.float32,
    )


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[VllmEngine]:
    engine = new_engine(model)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def prompts(policy: Policy) -> list[list[int]]:
    texts = ["What is 7 * 8?", "Name a colour.", "Add 2 and 3, and say only the sum, please."]
    return [
        policy.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in texts
    ]


@pytest.fixture(scope="module")
def drawn(engine: VllmEngine, prompts: list[list[int]]) -> list[Rollout]:
    return list(engine.sample(_requests(prompts)))


def _requests(prompts: Sequence[list[int]], samples: int = SAMPLES) -> list[SampleRequest]:
    return [
        SampleRequest(f"item {number}", np.array(prompt), 10 * number, samples)
        for number, prompt in enumerate(prompts)
    ]


# --- What is drawn ---------------------------------------------------------------------------


def test_every_sample_asked_for_comes_once(drawn: list[Rollout]) -> None:
    found = {(rollout.item_id, rollout.sample) for rollout in drawn}
    assert len(found) == len(drawn)
    assert found == {
        (f"item {number}", 10 * number + sample) for number in range(3) for sample in range(SAMPLES)
    }


def test_log_probabilities_are_the_models_before_temperature(
    policy: Policy, prompts: list[list[int]], drawn: list[Rollout]
) -> None:
    # 60 in all: to score one takes the model as long as to draw it.
    some = [rollout for rollout in drawn if rollout.sample % 6 == 0]
    kept = [rollout.log_probability for rollout in some]
    scored = log_probabilities(
        policy,
        [
            TokenizedRollout(prompts[int(r.item_id.split()[1])], r.completion_token_ids)
            for r in some
        ],
    )
    assert len(some) == SAMPLES // 2
    np.testing.assert_allclose(np.array(kept, dtype=float), scored, rtol=0, atol=5e-3)
    assert np.ptp(scored) > 5


def test_tokens_are_left_out_as_the_other_engine_leaves_them(
    policy: Policy,
    engine: VllmEngine,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truncation = Truncation(top_p=0.8, top_k=8, min_p=0.02)
    monkeypatch.setattr(engine, "truncation", truncation)
    # First tokens are looked at, whose distributions are known without a completion.
    monkeypatch.setattr(engine, "max_tokens", 1)
    firsts: dict[str, set[int]] = {}
    for rollout in engine.sample(_requests(prompts)):
        firsts.setdefault(rollout.item_id, set()).add(rollout.completion_token_ids[0])
    for number, prompt in enumerate(prompts):
        with torch.inference_mode():
            logits = policy.model(input_ids=torch.tensor([prompt])).logits[:, -1].float()
        left = truncated(logits / TEMPERATURE, truncation)[0]
        allowed = set(torch.isfinite(left).nonzero().flatten().tolist())
        assert firsts[f"item {number}"] <= allowed
        # What is drawn once in twenty comes among 120, but for a chance of a fifth of a percent.
        likely = torch.softmax(left, dim=-1) > 0.05
        assert set(likely.nonzero().flatten().tolist()) <= firsts[f"item {number}"]


def test_a_log_probability_of_something_else_is_left_out(model: Path) -> None:
    # The engine alone, without its weights.
    assert new_engine(model)._is_scoring
    assert not new_engine(model, logprobs_mode="processed_logprobs")._is_scoring


def test_a_completion_ends_with_any_of_the_policys_end_tokens_or_is_cut(
    model: Path, policy: Policy, drawn: list[Rollout]
) -> None:
    ends = {IM_END, NEWLINE}
    assert policy.eos_token_ids == eos_token_ids(model) == ends
    for rollout in drawn:
        *before, last = rollout.completion_token_ids
        assert all(type(token) is int for token in rollout.completion_token_ids)
        assert not ends & set(before)
        assert (rollout.finish_reason == "stop") == (last in ends)
        if rollout.finish_reason != "stop":
            assert rollout.finish_reason == "length"
            assert len(rollout.completion_token_ids) == MAX_TOKENS
    lasts = Counter(r.completion_token_ids[-1] for r in drawn if r.finish_reason == "stop")
    assert set(lasts) == ends and min(lasts.values()) > 3
    assert any(rollout.finish_reason == "length" for rollout in drawn)


def test_first_tokens_follow_the_policys_own_distribution(
    policy: Policy, prompts: list[list[int]], drawn: list[Rollout]
) -> None:
    for number, prompt in enumerate(prompts):
        with torch.inference_mode():
            logits = policy.model(torch.tensor([prompt])).logits[0, -1].double()
        expected = SAMPLES * torch.softmax(logits / TEMPERATURE, dim=-1).numpy()
        firsts = [r.completion_token_ids[0] for r in drawn if r.item_id == f"item {number}"]
        counts = np.bincount(firsts, minlength=len(expected))
        # Rare tokens together make one cell.
        often = expected >= 5
        cells = [np.append(each[often], each[~often].sum()) for each in (counts, expected)]
        assert often.sum() >= 3
        # A wrong temperature or a cut to the two likeliest tokens gives less than 1e-9.
        assert chisquare(*cells).pvalue > 1e-3


def test_random_numbers_come_from_the_seed_and_the_requests_alone(
    engine: VllmEngine, prompts: list[list[int]], drawn: list[Rollout]
) -> None:
    requests = _requests(prompts[:1], 6)
    first = list(engine.sample(requests))
    assert list(engine.sample(requests)) == first
    # As a process does that takes the run up again.
    engine.close()
    assert list(engine.sample(requests)) == first
    later = [SampleRequest("item 0", prompts[0], 6, 6)]
    assert [r.completion_token_ids for r in engine.sample(later)] != [
        r.completion_token_ids for r in first
    ]


def test_requests_are_handed_over_as_there_is_room_and_each_time_from_another_state(
    engine: VllmEngine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engine._loaded(0)
    monkeypatch.setattr(llm.llm_engine.vllm_config.scheduler_config, "max_num_seqs", 4)
    states: list[int] = []

    def noting(function: Any, args: tuple[int]) -> None:
        states.extend(args)
        call(function, args=args)

    call = llm.collective_rpc
    monkeypatch.setattr(llm, "collective_rpc", noting)
    taken: list[int] = []

    def requests(numbers: Iterable[int]) -> Iterator[SampleRequest]:
        for number in numbers:
            taken.append(number)
            yield SampleRequest(f"item {number}", prompts[number % 3], 0, 2)

    rollouts = engine.sample(requests(range(12)))
    next(rollouts)
    # Twice what is decoded at once, and no more than that while it lasts.
    assert 4 <= len(taken) < 12
    found = Counter(rollout.item_id for rollout in rollouts)
    assert len(taken) == 12 and sum(found.values()) == 23
    first, states[:] = list(states), []
    assert len(first) > 2

    # A run that lost items 2 and 3 to a kill draws from other states for all that comes after them.
    list(engine.sample(requests([2, 3, *range(8, 12)])))
    again, states[:] = list(states), []
    list(engine.sample(requests([2, 3, *range(6, 12)])))
    assert len({*first, *again, *states}) == len(first) + len(again) + len(states)


def test_samples_share_the_computation_of_their_prompt(
    engine: VllmEngine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = []

    def watched(request: SampleRequest, output: Any) -> Iterator[Rollout]:
        cached.append(output.num_cached_tokens)
        yield from rollouts(request, output)

    rollouts = vllm_engine._rollouts
    monkeypatch.setattr(vllm_engine, "_rollouts", watched)
    prompt = [NEWLINE + 1 + token for token in range(70)]
    assert len(list(engine.sample([SampleRequest("new", prompt, 0, 4)]))) == 4
    # The last sample's share of 70 tokens, in whole blocks of 32.
    assert cached == [64]


# --- What is refused -------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_and_the_engine_goes_on(
    engine: VllmEngine, prompts: list[list[int]]
) -> None:
    longest = SampleRequest("long", [5] * (CONTEXT - MAX_TOKENS + 1), 0, 1)
    with pytest.raises(RunError, match=r"117 tokens .* 128 tokens .* max_model_len"):
        list(engine.sample([longest]))
    # Whoever stops in the middle leaves no requests behind.
    next(engine.sample(_requests(prompts, 4)))
    assert {r.item_id for r in engine.sample(_requests(prompts[:1], 4))} == {"item 0"}


def test_room_is_made_for_the_prompts_that_come(model: Path, prompts: list[list[int]]) -> None:
    """SmolLM2 takes 8,192 tokens; a longer prompt than those before has vLLM loaded anew."""
    engine = VllmEngine(
        resolve_model(str(model)), seed=7, temperature=TEMPERATURE, max_tokens=8, options=MEMORY
    )
    rooms = []
    for length in (20, 1100):
        request = SampleRequest("any", [NEWLINE + 1 + token for token in range(length)], 0, 1)
        assert len(list(engine.sample([request]))) == 1
        rooms.append(engine._llm.llm_engine.model_config.max_model_len)
    engine.close()
    assert rooms == [1024, 2048]
    assert engine._room(8185) == 8192  # With its completion it is one token too long.


def test_the_memory_of_a_gpu_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = iter([1e9, 2e9, 70e9])
    monkeypatch.setattr(vllm_engine, "_free_memory", lambda: int(next(seen)))
    vllm_engine._wait_for_memory(int(70.5e9))
    assert next(seen, None) is None and not capsys.readouterr().err
    monkeypatch.setattr(vllm_engine, "_free_memory", lambda: int(40e9))
    monkeypatch.setattr(vllm_engine, "_MEMORY_SECONDS", 0.3)
    vllm_engine._wait_for_memory(int(70e9))
    assert "vLLM left 30.0 GB of the GPU's memory taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seq": 8}, "did you mean 'max_num_seqs'"),
        ({"max_num_seqs": "many"}, "max_num_seqs = 'many'"),
        ({"max_model_len": 10**6}, "max_model_len"),
        ({"quantization": "by half"}, "quantization"),
    ],
)
def test_a_wrong_option_is_one_line(model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        new_engine(model, **options)
    assert "\n" not in str(raised.value)


def test_a_model_that_vllm_does_not_know_is_one_line(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Abacus"]}))
    with pytest.raises(UsageError, match="Abacus"):
        new_engine(folder)


def test_too_little_memory_can_be_mended_and_continued(model: Path) -> None:
    engine = new_engine(model, kv_cache_memory_bytes=1024)
    with pytest.raises(RunError, match="kv_cache_memory_bytes"):
        list(engine.sample([SampleRequest("a", [5], 0, 1)]))


@pytest.mark.parametrize("name", ["dtype", "seed", "hf_token", "generation_config"])
def test_what_curate_sets_itself_is_no_option(name: str) -> None:
    with pytest.raises(UsageError, match=rf"\[vllm\] {name}"):
        config_from_mapping({"vllm": {name: "secret"}}, "options")


def test_vllm_that_is_not_there_is_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vllm_engine.sys.modules, "vllm", None)
    with pytest.raises(UsageError, match="rl-curate\\[vllm\\]"):
        new_engine(model)


# --- Which engine ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "installed", "chosen", "why"),
    [
        (True, True, "vllm", "GPU"),
        (True, False, "transformers", "not installed"),
        (False, True, "transformers", "no GPU"),
    ],
)
def test_auto_prefers_vllm_where_it_and_a_gpu_are_there(
    gpu: bool, installed: bool, chosen: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(
        engines.importlib.util, "find_spec", lambda name: object() if installed else None
    )
    name, said = engines.choose_engine(config_from_mapping({}, "options"))
    assert name == chosen and why in said


# --- A run -----------------------------------------------------------------------------------


def test_a_run_is_killed_and_continued(
    smollm2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tagging, "_SHARD_TOKENS", {"cpu": 2 * 8 * 24})
    run = tmp_path / "run"
    settings = tmp_path / "settings.toml"
    settings.write_text((ROOT / "examples" / "arithmetic.toml").read_text() + (
        "\n[vllm]\nkv_cache_memory_bytes = 536870912\nmax_num_seqs = 64\n"
    ))  # fmt: skip
    arguments = (
        *(ROOT / "examples" / "arithmetic.jsonl", "--config", settings, "--model", smollm2_folder),
        *("--engine", "vllm", "--limit", 4, "--min-rollouts", 8, "--max-rollouts", 8),
        *("--max-tokens", 24, "--verifier-workers", 1, "--gradient-dim", 256, "--run-dir", run),
        *("--instruction", "Write the answer as \\boxed{answer}.", "--tau", 0.1),
        *("--verifier", "math", "--out", tmp_path / "tagged.jsonl"),
    )
    # One of two shards is drawn and not written; both are in the making at once.
    started = run_until_killed(tmp_path, ("probes.stages.sample", "write_parquet", 2), *arguments)
    drawn = ["item_id", "sample", "completion_token_ids"]
    (shard,) = (run / "rollouts").rglob("*.parquet")
    kept = pq.read_table(shard, columns=drawn)
    deadline = time.monotonic() + 120
    while any(map(is_running, started)):
        assert time.monotonic() < deadline, "vLLM or a verifier outlived the run"
        time.sleep(0.1)

    # Memory may differ from before; what would change the rollouts may not.
    settings.write_text(settings.read_text().replace("max_num_seqs = 64", "max_num_seqs = 32"))
    done = run_curate("tag", *arguments)
    assert done.status == 0, done.stderr
    assert pq.read_table(run / "rollouts" / shard.name, columns=drawn) == kept
    rollouts = read_rollouts(run)
    assert Counter(Counter(rollouts["item_id"].to_pylist()).values()) == {8: 4}
    ends = rollouts["finish_reason"].to_pylist()
    for ids, reason in zip(rollouts["completion_token_ids"].to_pylist(), ends, strict=True):
        assert (ids[-1] == IM_END) == (reason == "stop")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["engine"] == {
        "name": "vllm",
        "version": "0.31.0",
        "seed": 1,
        "options": manifest["engine"]["options"],
        "token_ids": True,
        "deterministic": False,
        "why": "asked for",
    }
    assert manifest["engine"]["options"]["max_num_seqs"] == 32
    features = np.load(run / "gradients" / "features.npy", allow_pickle=False)
    assert len(features) >= 1 and np.isfinite(features).all()
    assert "engine vllm: asked for" in done.stderr
    assert "Triton" not in done.stderr and "INFO" not in done.stderr

    settings.write_text(settings.read_text() + "quantization = 'fp8'\n")
    refused = run_curate("tag", *arguments)
    assert refused.status == 2 and "quantization" in refused.last_line
