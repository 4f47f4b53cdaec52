"""Rollouts from two real vLLM servers, one of which is killed while it is at it."""

import json
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from curate.errors import UsageError
from probes.engines.base import SampleRequest
from probes.engines.server import ServerEngine
from probes.models.files import resolve_model
from probes.models.load import outline_policy
from tests.tag_runs import ROOT, read_rollouts, tag
from tests.vllm_servers import MODEL, RealServer

EOS = 2  # SmolLM2's <|im_end|>.
ITEMS, ROLLOUTS, TOKENS = 4, 32, 24


def _engine(model: Path, servers: list[RealServer], served_model: str = "") -> ServerEngine:
    files = resolve_model(str(model))
    return ServerEngine(
        files, outline_policy(files), [server.url for server in servers],
        seed=1, temperature=0.5, max_tokens=TOKENS, served_model=served_model,
        request_seeds=False,
    )  # fmt: skip


def test_a_real_server_takes_and_gives_token_ids(
    vllm_servers: list[RealServer], smollm2_folder: Path
) -> None:
    engine = _engine(smollm2_folder, vllm_servers)
    text = "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    prompt = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    rollouts = list(engine.sample([SampleRequest("sum", prompt, 0, 20)]))
    facts = engine.facts()
    engine.close()
    assert {rollout.sample for rollout in rollouts} == set(range(20))
    for rollout in rollouts:
        ids = rollout.completion_token_ids
        assert (rollout.finish_reason == "stop") == (ids[-1] == EOS)
        assert len(ids) == TOKENS if rollout.finish_reason == "length" else EOS not in ids[:-1]
    texts = {engine.tokenizer.decode(rollout.completion_token_ids) for rollout in rollouts}
    assert len(texts) > 10 and any("5" in text for text in texts)
    # Recognised by the folder that it was started with, whatever name it gave the model.
    assert (facts["served_model"], facts["token_ids"]) == (MODEL, True)
    assert facts["whole_distribution"] and not facts["tokenizer_unchecked"]
    assert all(version.startswith("vllm 0.") for version in facts["version"].values())


def test_a_real_server_of_another_model_is_refused(
    vllm_servers: list[RealServer], tiny_model: Path
) -> None:
    with pytest.raises(UsageError, match=f"serves {MODEL}, and not tiny-llama"):
        _engine(tiny_model, vllm_servers)
    with pytest.raises(UsageError, match="another tokenizer than --model tiny-llama"):
        _engine(tiny_model, vllm_servers, served_model=MODEL)


def test_a_server_killed_midway_costs_no_rollout(
    vllm_servers: list[RealServer], smollm2_folder: Path, tmp_path: Path
) -> None:
    stays, dies = vllm_servers
    is_over = threading.Event()

    def kill_at_work() -> None:
        while not is_over.wait(0.1) and dies.is_alive:
            with suppress(OSError):  # It may be slow to answer.
                # The test requests of the beginning are a token long: this is a rollout.
                if dies.metric("vllm:generation_tokens_total") > before + 100:
                    dies.kill()

    before = dies.metric("vllm:generation_tokens_total")
    killer = threading.Thread(target=kill_at_work)
    killer.start()
    run = tmp_path / "run"
    ran = tag(
        *(ROOT / "examples/arithmetic.jsonl", "--config", ROOT / "examples/arithmetic.toml"),
        *("--model", smollm2_folder, "--run-dir", run, "--out", tmp_path / "out.jsonl"),
        *("--engine", "server", "--base-url", stays.url, "--base-url", dies.url),
        *("--limit", ITEMS, "--min-rollouts", ROLLOUTS, "--max-tokens", TOKENS, "--tau", "0.1"),
        *("--verifier", "math", "--samples-per-request", 8, "--requests-in-flight", 4),
        *("--request-seeds", "never", "--gradient-rollouts", 1, "--instruction", "auto"),
    )
    is_over.set()
    killer.join()
    assert ran.status == 0, ran.stderr
    assert stays.is_alive and not dies.is_alive
    # It had more to do: a request found it dead.
    assert f"server {dies.url} leaves the pool: " in ran.stderr
    rollouts = read_rollouts(run)
    drawn = zip(rollouts["item_id"].to_pylist(), rollouts["sample"].to_pylist(), strict=True)
    item_ids = set(rollouts["item_id"].to_pylist())
    assert len(item_ids) == ITEMS
    assert Counter(drawn) == {(i, s): 1 for i in item_ids for s in range(ROLLOUTS)}
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["engine"]["servers"] == [stays.url, dies.url]
    assert manifest["counts"]["rollouts_drawn"] == ITEMS * ROLLOUTS
