"""Rollouts from servers: what is asked of them, what is made of the answer, and whom not to trust.

A stand-in answers like vLLM, or like servers that can do less, with the tiny model's vocabulary.
The real ones are in `test_vllm_servers.py`.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from curate.errors import RunError, UsageError
from probes.engines.base import Rollout, SampleRequest, Truncation
from probes.engines.server import ServerEngine
from probes.models.files import resolve_model
from probes.models.load import PolicyOutline, load_policy, outline_policy
from tests.stand_ins.server import DROPPED, TRUNCATED, StandIn, instead, status
from tests.tag_runs import additions, read_rollouts, tag, write_jsonl
from tests.tiny import WORDS

KEY = "sk-aGoodKeyOfMine"
EOS, DIGIT = WORDS.index("<eos>"), WORDS.index("0")
EXTENDED = ("return_token_ids", "top_k", "min_p", "repetition_penalty", "stop_token_ids")


@pytest.fixture(scope="module")
def outline(tiny_model: Path) -> PolicyOutline:
    return outline_policy(resolve_model(str(tiny_model)))


class Answers:
    """A server of the tiny model that writes digits at random; attributes are what it can do."""

    def __init__(self, outline: PolicyOutline) -> None:
        self.tokenizer = outline.tokenizer
        self.model = "tiny-llama"
        self.has_extensions = self.has_seeds = self.has_token_ids = self.has_tokenize = True
        self.gives_end_token = True
        self.most_samples = 1000
        self.adds_to_prompt = 0
        self.max_model_len = 200
        self.random = random.Random(0)
        self.finish_reason: str | None = None

    def __call__(self, path: str, body: dict[str, Any]) -> object:
        if path == "/v1/models":
            card = {"id": self.model, "owned_by": "vllm", "max_model_len": self.max_model_len}
            return {"data": [{"id": "another"}, card]}
        if path == "/version":
            return {"version": "0.31.0"}
        if path == "/tokenize" and self.has_tokenize:
            return {"tokens": self._encode(body["prompt"])}
        if path == "/v1/completions":
            return self._complete(body)
        return status(404, "not found")

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _complete(self, body: dict[str, Any]) -> object:
        if not self.has_extensions and set(EXTENDED) & set(body):
            return status(400, "unknown parameter")
        if not self.has_seeds and "seed" in body:
            return status(500, "CPU Generator does not use offset")
        prompt = body["prompt"]
        prompt = self._encode(prompt) if isinstance(prompt, str) else prompt
        choices = [self._choice(body) for _ in range(min(body["n"], self.most_samples))]
        for choice in choices:
            if self.has_token_ids and self.has_extensions:
                choice["prompt_token_ids"] = prompt
            else:
                del choice["token_ids"]
        return {
            "choices": choices,
            "usage": {"prompt_tokens": len(prompt) + self.adds_to_prompt, "completion_tokens": 1},
        }

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = [DIGIT + self.random.randrange(10) for _ in range(self.random.randint(1, 6))]
        text = self.tokenizer.decode(ids)
        ids = ids[: body["max_tokens"]]
        reason = "length" if len(ids) == body["max_tokens"] else "stop"
        if reason == "stop" and self.gives_end_token:
            ids.append(EOS)
        return {"text": text, "token_ids": ids, "finish_reason": self.finish_reason or reason}


@contextmanager
def _servers(outline: PolicyOutline, count: int = 1) -> Iterator[list[StandIn]]:
    servers = [StandIn(Answers(outline)) for _ in range(count)]
    for server in servers:
        server.start()
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()


def _engine(
    servers: list[StandIn], model: Path, outline: PolicyOutline, **options: Any
) -> ServerEngine:
    settings: dict[str, Any] = {"seed": 3, "temperature": 0.8, "max_tokens": 5}
    files = resolve_model(str(model))
    return ServerEngine(files, outline, [each.url for each in servers], **settings | options)


PROMPTS = [SampleRequest(f"item {i}", [13, 4, 5 + i], 2 * i, 37) for i in range(4)]


def _drawn(engine: ServerEngine) -> list[Rollout]:
    """Draw the rollouts of `PROMPTS`, each of which must come once."""
    rollouts = list(engine.sample(PROMPTS))
    engine.close()
    counted = Counter((rollout.item_id, rollout.sample) for rollout in rollouts)
    assert counted == {(p.item_id, p.first_sample + i): 1 for p in PROMPTS for i in range(37)}
    for rollout in rollouts:
        ids = rollout.completion_token_ids
        assert (rollout.finish_reason == "stop") == (ids[-1] == EOS), rollout
        assert all(DIGIT <= token < DIGIT + 10 for token in ids[:-1])
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    return rollouts


def test_token_ids_go_out_and_come_back(tiny_model: Path, outline: PolicyOutline) -> None:
    with _servers(outline) as servers:
        engine = _engine(servers, tiny_model, outline)
        before = len(servers[0].posted)
        rollouts = _drawn(engine)
        facts = engine.facts()
        asked = servers[0].posted[before:]
    assert max(len(rollout.completion_token_ids) for rollout in rollouts) == 5
    assert Counter(body["n"] for body in asked) == {16: 8, 5: 4}
    assert {tuple(body["prompt"]) for body in asked} == {tuple(p.prompt_token_ids) for p in PROMPTS}
    # Every request draws its own random numbers, and nothing cuts the distribution.
    assert len({body["seed"] for body in asked}) == len(asked)
    for body in asked:
        assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.8, 1, -1, 0)
        assert (body["max_tokens"], body["repetition_penalty"]) == (5, 1)
        assert (body["stop_token_ids"], body["model"]) == ([EOS], "tiny-llama")
    assert facts["token_ids"] and facts["request_seeds"] and not facts["deterministic"]
    assert facts["servers"] == [servers[0].url]
    assert facts["version"] == {servers[0].url: "vllm 0.31.0"}


def test_truncation_and_every_end_token_go_along(tiny_model: Path, outline: PolicyOutline) -> None:
    truncation = Truncation(top_p=0.9, top_k=20, min_p=0.05)
    ends = replace(outline, eos_token_ids=frozenset({EOS, 2}))
    with _servers(outline) as servers:
        engine = _engine(servers, tiny_model, ends, truncation=truncation)
        _drawn(engine)
        for body in [body for body in servers[0].posted if "temperature" in body]:
            assert (body["top_p"], body["top_k"], body["min_p"]) == (0.9, 20, 0.05)
            assert body["stop_token_ids"] == [EOS, 2]


@pytest.mark.parametrize("truncation", [Truncation(top_k=20), Truncation(min_p=0.1)])
def test_a_server_that_cannot_leave_tokens_out_so_is_refused(
    truncation: Truncation, tiny_model: Path, outline: PolicyOutline
) -> None:
    with _servers(outline) as servers:
        servers[0].answer.has_extensions = False  # type: ignore[attr-defined]
        with pytest.raises(UsageError, match=r"takes no --top-k or --min-p .*unknown parameter"):
            _engine(servers, tiny_model, outline, truncation=truncation)
        # OpenAI's own interface knows the third.
        engine = _engine(servers, tiny_model, outline, truncation=Truncation(top_p=0.5))
        _drawn(engine)
        assert servers[0].posted[-1]["top_p"] == 0.5


def test_faults_cost_no_rollout_and_give_none_twice(
    tiny_model: Path, outline: PolicyOutline
) -> None:
    # Fewer completions than asked for, none, of another prompt, ids that there are not.
    choice = {"finish_reason": "length", "prompt_token_ids": [9], "token_ids": [5]}
    other = {**choice, "prompt_token_ids": None, "token_ids": [len(WORDS)]}
    long = {**other, "token_ids": [5] * 6}
    answers = ([choice], [], [choice] * 16, [other] * 16, [long] * 16, [{}] * 16, [None] * 16, None)
    wrong = [instead(json.dumps({"choices": choices}).encode()) for choices in answers]
    with _servers(outline, 2) as servers:
        engine = _engine(servers, tiny_model, outline)
        assert engine._pool
        engine._pool.first_wait_seconds = 0.01
        for fault in (TRUNCATED, DROPPED, status(500), status(429, Retry_After="0"), *wrong):
            servers[0].faults.append(fault)
            before = sum(len(server.posted) for server in servers)
            assert len({r.sample for r in engine.sample(PROMPTS[:1])}) == 37
            # Three requests, and one of them again.
            assert sum(len(server.posted) for server in servers) == before + 4, fault
        _drawn(engine)


def test_a_server_without_token_ids_gives_text(
    tiny_model: Path, outline: PolicyOutline, capsys: pytest.CaptureFixture[str]
) -> None:
    with _servers(outline) as servers:
        servers[0].answer.has_token_ids = False  # type: ignore[attr-defined]
        engine = _engine(servers, tiny_model, outline, max_tokens=6)
        rollouts = _drawn(engine)
        assert not engine.facts()["token_ids"]
    assert any(len(rollout.completion_token_ids) == 6 for rollout in rollouts)
    assert capsys.readouterr().err.count("text and no token ids") == 1


@pytest.mark.parametrize("lacks", ["has_extensions", "has_seeds", "has_tokenize"])
def test_a_server_that_can_do_less_is_asked_for_less(
    lacks: str, tiny_model: Path, outline: PolicyOutline
) -> None:
    with _servers(outline) as servers:
        setattr(servers[0].answer, lacks, False)
        engine = _engine(servers, tiny_model, outline, max_tokens=6)
        before = len(servers[0].posted)
        _drawn(engine)
        facts, asked = engine.facts(), servers[0].posted[before:]
    assert facts["request_seeds"] == all("seed" in body for body in asked)
    assert facts["request_seeds"] == (lacks != "has_seeds")
    assert facts["whole_distribution"] == all("min_p" in body for body in asked)
    assert facts["whole_distribution"] == (lacks != "has_extensions")


def test_without_seeds_none_is_sent(tiny_model: Path, outline: PolicyOutline) -> None:
    with _servers(outline) as servers:
        engine = _engine(servers, tiny_model, outline, request_seeds=False)
        _drawn(engine)
        assert not engine.facts()["request_seeds"]
        assert not any("seed" in body for body in servers[0].posted)


@pytest.mark.parametrize("seeds", [True, False])
@pytest.mark.parametrize("how", ["crashed", "gone", "after one answer", "unpaid", "wrong"])
def test_where_servers_break_at_seeds_the_error_says_how_to_leave_them_out(
    how: str, seeds: bool, tiny_model: Path, outline: PolicyOutline
) -> None:
    with _servers(outline) as servers:
        engine = _engine(servers, tiny_model, outline, request_seeds=seeds, in_flight=1)
        assert engine._pool
        engine._pool.first_wait_seconds, engine._pool.patience_seconds = 0.01, 0.2
        crash = status(500, "CPU Generator does not use offset")
        if how == "gone":
            servers[0].always = DROPPED
        elif how == "after one answer":
            servers[0].faults.append(crash)
            answer = servers[0].answer

            def once(path: str, body: dict[str, Any]) -> object:
                servers[0].always = status(402, "your account is empty")
                return answer(path, body)

            servers[0].answer = once
        else:
            faults = {"crashed": crash, "unpaid": status(402), "wrong": instead(b"{}")}
            servers[0].always = faults[how]
        with pytest.raises(RunError) as error:
            _drawn(engine)
        engine.close()
    assert ("--request-seeds never" in str(error.value)) == (seeds and how in ("crashed", "gone"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seeds", [True, False])
def test_a_server_that_dies_of_the_first_request_is_told_so_too(
    seeds: bool, tiny_model: Path, outline: PolicyOutline
) -> None:
    with _servers(outline) as servers:
        whole = servers[0].answer

        def dead(path: str, body: dict[str, Any]) -> object:
            return status(500, "dead") if path == "/v1/completions" else whole(path, body)

        servers[0].answer = dead
        with pytest.raises(RunError, match="no server is left") as error:
            _engine(servers, tiny_model, outline, request_seeds=seeds)
    assert ("--request-seeds never" in str(error.value)) == seeds


def test_an_end_token_that_the_server_keeps_to_itself_is_put_back(
    tiny_model: Path, outline: PolicyOutline
) -> None:
    with _servers(outline) as servers:
        servers[0].answer.gives_end_token = False  # type: ignore[attr-defined]
        _drawn(_engine(servers, tiny_model, outline))


def test_a_completion_that_neither_stopped_nor_was_cut_is_not_taken(
    tiny_model: Path, outline: PolicyOutline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _servers(outline) as servers:
        engine = _engine(servers, tiny_model, outline)
        servers[0].answer.finish_reason = "abort"  # type: ignore[attr-defined]
        assert engine._pool
        engine._pool.first_wait_seconds = 0.01
        with pytest.raises(RunError, match="finish_reason 'abort'"):
            list(engine.sample(PROMPTS[:1]))
        engine.close()


# --- Before anything is spent ----------------------------------------------------------------


def _refused(servers: list[StandIn], model: Path, outline: PolicyOutline, **options: Any) -> str:
    """Say why the servers are not used; no more than test requests were sent."""
    with pytest.raises(UsageError) as error:
        _engine(servers, model, outline, **options)
    assert all(body.get("max_tokens", 1) == 1 for server in servers for body in server.posted)
    return str(error.value)


def test_another_model_is_refused(tiny_model: Path, outline: PolicyOutline) -> None:
    with _servers(outline, 2) as servers:
        servers[1].answer.model = "tiny-llama-instruct"  # type: ignore[attr-defined]
        said = _refused(servers, tiny_model, outline)
        assert said.startswith(f"{servers[1].url} serves another, tiny-llama-instruct, and not")
        assert "tiny-llama, which --model names" in said
        said = _refused(servers[:1], tiny_model, outline, served_model="other")
        assert "not other, as --served-model says" in said
        servers[0].answer.model = "hers"  # type: ignore[attr-defined]
        engine = _engine(servers[:1], tiny_model, outline, served_model="hers")
        assert engine.facts()["served_model"] == "hers"
        engine.close()


@pytest.mark.parametrize("name", ["tiny-llama", "/models/Tiny-Llama/", "org/tiny-llama"])
def test_a_model_is_known_by_the_last_part_of_its_name(
    name: str, tiny_model: Path, outline: PolicyOutline
) -> None:
    with _servers(outline) as servers:
        servers[0].answer.model = name  # type: ignore[attr-defined]
        engine = _engine(servers, tiny_model, outline)
        assert engine.facts()["served_model"] == name
        engine.close()


@pytest.mark.parametrize("has_tokenize", [True, False])
def test_another_tokenizer_is_refused(
    has_tokenize: bool, tiny_model: Path, outline: PolicyOutline
) -> None:
    with _servers(outline) as servers:
        answers: Any = servers[0].answer
        answers.has_tokenize = has_tokenize
        answers._encode = lambda text: [5] * len(text)
        said = _refused(servers, tiny_model, outline)
        assert f"{servers[0].url} has another tokenizer than --model tiny-llama" in said


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("most_samples", 1, "--samples-per-request 1"),
        ("adds_to_prompt", 1, "changes the prompt"),
        ("__call__", lambda *_: {"data": 3}, "does not answer as OpenAI's completions interface"),
        ("__call__", lambda *_: status(404), "has no OpenAI interface there"),
        ("__call__", lambda *_: status(403, "who?"), "refuses the API key (HTTP 403: who?)"),
    ],
)
def test_a_server_that_cannot_do_it_is_refused(
    attribute: str, value: Any, message: str, tiny_model: Path, outline: PolicyOutline
) -> None:
    with _servers(outline) as servers:
        if attribute == "__call__":
            servers[0].answer = value
        else:
            setattr(servers[0].answer, attribute, value)
        assert message in _refused(servers, tiny_model, outline)


def test_servers_of_different_kinds_are_not_mixed(tiny_model: Path, outline: PolicyOutline) -> None:
    with _servers(outline, 2) as servers:
        servers[1].answer.has_token_ids = False  # type: ignore[attr-defined]
        assert "the servers differ" in _refused(servers, tiny_model, outline)


def test_what_the_server_has_no_room_for_is_not_sent(
    tiny_model: Path, outline: PolicyOutline
) -> None:
    with _servers(outline) as servers:
        servers[0].answer.max_model_len = 7  # type: ignore[attr-defined]
        engine = _engine(servers, tiny_model, outline)
        with pytest.raises(RunError, match="the 7 tokens that the servers have room for"):
            next(engine.sample(PROMPTS))
        engine.close()
        assert all(body.get("max_tokens", 1) == 1 for body in servers[0].posted)


def test_the_outline_says_what_the_loaded_policy_says(
    tiny_model: Path, outline: PolicyOutline
) -> None:
    files = resolve_model(str(tiny_model))
    policy = load_policy(files, device=torch.device("cpu"), dtype=torch.float32)
    assert outline.eos_token_ids == policy.eos_token_ids == {EOS}
    assert outline.context_length == policy.context_length
    modules = [name for name, _ in outline.model.named_modules()]
    assert modules == [name for name, _ in policy.model.named_modules()]
    assert all(each.device.type == "meta" for each in outline.model.parameters())


# --- On the command line ---------------------------------------------------------------------


def test_a_run_keeps_what_it_needs_to_know_and_not_the_key(
    tiny_model: Path,
    outline: PolicyOutline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the servers failing, the key refused, and said back by one of them."""
    monkeypatch.setenv("MY_KEY", KEY)
    dataset = write_jsonl(tmp_path / "sums.jsonl", additions(6))
    run = tmp_path / "run"
    with _servers(outline, 2) as servers:
        command = (
            *(dataset, "--model", tiny_model, "--run-dir", run, "--out", tmp_path / "out.jsonl"),
            *("--engine", "server", "--base-url", servers[0].url, "--base-url", servers[1].url),
            *("--api-key-env", "MY_KEY", "--samples-per-request", 8),
        )
        said = []
        whole = servers[0].answer
        servers[0].answer = servers[1].answer = lambda *_: status(401, f"not {KEY}")
        refused = tag(*command)
        assert refused.status == 2 and "refuses the API key (HTTP 401: not ***)" in refused.stderr
        servers[0].answer = servers[1].answer = whole
        # Test requests are answered, then all is refused: the run can be taken up again.
        servers[0].always = servers[1].always = None
        servers[0].faults += [status(500, f"not {KEY}")] * 2

        def fail_later(path: str, body: dict[str, Any]) -> object:
            return status(402, f"not {KEY}") if body.get("max_tokens") == 12 else whole(path, body)

        servers[0].answer = servers[1].answer = fail_later
        stopped = tag(*command)
        assert stopped.status == 1, stopped.stderr
        assert "no server is left" in stopped.last_line and "asks for payment" in stopped.last_line
        servers[0].answer = servers[1].answer = whole
        ran = tag(*command)
        assert ran.status == 0, ran.stderr
        said += [refused.stderr, stopped.stderr, ran.stderr, ran.stdout]
        assert servers[0].keys == servers[1].keys == {f"Bearer {KEY}"}
        assert all(server.posted for server in servers)
    drawn = read_rollouts(run)
    assert Counter(zip(drawn["item_id"].to_pylist(), drawn["sample"].to_pylist(), strict=True)) == {
        (item, sample): 1 for item in set(drawn["item_id"].to_pylist()) for sample in range(32)
    }
    assert len(set(drawn["item_id"].to_pylist())) == 6
    engine = json.loads((run / "manifest.json").read_text())["engine"]
    assert engine["name"] == "server" and engine["token_ids"]
    assert "MY_KEY" in (run / "config.toml").read_text()
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes(), file
    assert not any(KEY in text for text in said)


def test_it_stops_with_requests_under_way(outline: PolicyOutline, tiny_model: Path) -> None:
    requests = [SampleRequest(f"item {n}", [13, 4], 0, 4) for n in range(40)]
    with _servers(outline) as servers:
        engine = _engine(servers, tiny_model, outline, samples_per_request=4, in_flight=2)
        assert engine.unfinished() is None
        engine.stops_at = 0.0
        # What one request brought is told yet.
        assert len(list(engine.sample(requests))) == 4
        engine.stops_at = float("inf")
        assert len(list(engine.sample(requests))) == 160
        engine.close()


def test_a_dry_run_asks_the_servers_a_little(
    outline: PolicyOutline, tiny_model: Path, tmp_path: Path
) -> None:
    dataset = write_jsonl(tmp_path / "sums.jsonl", additions(30))
    with _servers(outline) as servers:
        ran = tag(
            *(dataset, "--model", tiny_model, "--run-dir", tmp_path / "run", "--dry-run"),
            *("--engine", "server", "--base-url", servers[0].url, "--json"),
        )
    assert ran.status == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["engine"]["name"] == "server" and servers[0].url in found["engine"]["where"]
    assert found["sample"]["rollouts"] <= 30 * 32 and found["sample"]["differentiated"] > 1
    assert found["estimate"]["rollouts"]["round_one"] == 30 * 32
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "server"], "--engine server needs --base-url"),
        (["--base-url", "http://host"], "--base-url is for --engine server"),
        (["--engine", "server", "--base-url", "http://a:hunter2@host"], "the key in the environ"),
        (
            ["--engine", "server", "--base-url", "http://h", "--api-key-env", "sk-hunter2"],
            "--api-key-env takes the name of an environment variable",
        ),
        (
            ["--engine", "server", "--base-url", "http://h", "--api-key-env", "NO_SUCH_KEY"],
            "the environment variable NO_SUCH_KEY for the API key is not set",
        ),
    ],
)
def test_wrong_options_are_refused_and_secrets_not_repeated(
    arguments: list[str], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    dataset = write_jsonl(tmp_path / "sums.jsonl", additions(2))
    ran = tag(dataset, "--model", tiny_model, "--run-dir", tmp_path / "run", *arguments)
    assert ran.status == 2 and message in ran.last_line
    assert "hunter2" not in ran.stderr
    assert not any(b"hunter2" in file.read_bytes() for file in tmp_path.rglob("*.*"))
