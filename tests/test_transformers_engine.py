"""Rollouts are draws from the policy, one prefill a prompt, the same for the same seed."""

from collections import Counter

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from curate.errors import RunError
from probes.engines.base import Rollout, SampleRequest, Truncation, uniform_draws
from probes.engines.drawing import draw, truncated
from probes.engines.transformers import TransformersEngine
from probes.gradients.batch import TokenizedRollout
from probes.models.load import Policy
from probes.rescoring.teacher_forcing import log_probabilities

PROMPTS = {"a": [15, 4], "b": [3, 13, 4, 14, 5, 6, 7], "c": [7], "d": [8, 9, 10, 11, 12]}


def requests(samples: int) -> list[SampleRequest]:
    return [SampleRequest(item, prompt, 0, samples) for item, prompt in PROMPTS.items()]


def engine_of(policy: Policy, **settings: object) -> TransformersEngine:
    defaults = {"seed": 3, "temperature": 1.0, "max_tokens": 24}
    return TransformersEngine(policy, **(defaults | settings))  # type: ignore[arg-type]


def by_key(rollouts: list[Rollout]) -> dict[tuple[str, int], list[int]]:
    return {(r.item_id, r.sample): r.completion_token_ids for r in rollouts}


def one_at_a_time(policy: Policy, request: SampleRequest, seed: int, most: int) -> list[int]:
    """The plainest sampler: the whole sequence through the model for every token."""
    uniform = uniform_draws(seed, request.item_id, request.first_sample, most)
    ids = list(request.prompt_token_ids)
    for number in uniform:
        with torch.inference_mode():
            logits = policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1]
        token = int(draw(logits, torch.tensor([[number]]), 1.0))
        ids.append(token)
        if token in policy.eos_token_ids:
            break
    return ids[len(request.prompt_token_ids) :]


def test_every_rollout_once_and_ended_properly(tiny_policy: Policy) -> None:
    rollouts = list(engine_of(tiny_policy).sample(requests(20)))
    assert Counter(r.item_id for r in rollouts) == dict.fromkeys(PROMPTS, 20)
    assert len(by_key(rollouts)) == 80
    for rollout in rollouts:
        ids = rollout.completion_token_ids
        assert 1 not in ids[:-1]
        if rollout.finish_reason == "stop":
            assert ids[-1] == 1
        else:
            assert rollout.finish_reason == "length" and len(ids) == 24 and ids[-1] != 1
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}


def test_it_stops_when_told_and_tells_what_was_in_the_making(tiny_policy: Policy) -> None:
    engine = engine_of(tiny_policy)
    drawn = by_key(list(engine.sample(requests(5))))
    assert engine.unfinished() == []
    finished = []
    for rollout in engine.sample(requests(5)):
        finished.append(rollout)
        making = engine.unfinished()
        assert len(finished) + len(making) <= 20 and all(0 < tokens < 24 for tokens in making)
        if len(finished) == 3:
            engine.stops_at = 0.0
    # Those that end in the same step are told yet.
    assert 3 <= len(finished) < 20
    assert len(finished) + len(engine.unfinished()) == 20
    longest = max(len(rollout.completion_token_ids) for rollout in finished)
    assert max(engine.unfinished()) == longest
    engine.stops_at = float("inf")
    assert by_key(list(engine.sample(requests(5)))) == drawn


@pytest.mark.parametrize("max_rows", [1, 3, 7, 64])
def test_continuous_batching_samples_what_plain_sampling_does(
    tiny_policy: Policy, max_rows: int
) -> None:
    found = by_key(list(engine_of(tiny_policy, max_rows=max_rows).sample(requests(6))))
    for item, prompt in PROMPTS.items():
        for sample in range(6):
            request = SampleRequest(item, prompt, sample, 1)
            assert found[item, sample] == one_at_a_time(tiny_policy, request, 3, 24)


def test_the_seed_decides(tiny_policy: Policy) -> None:
    first, again, other = (
        by_key(list(engine_of(tiny_policy, seed=seed).sample(requests(8)))) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_prompt_runs_through_the_model_once(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefilled = 0
    real = tiny_policy.model.forward

    def counting(**inputs: torch.Tensor) -> object:
        nonlocal prefilled
        if inputs["input_ids"].shape[1] > 1:
            prefilled += int(inputs["attention_mask"].sum())
        return real(**inputs)

    monkeypatch.setattr(tiny_policy.model, "forward", counting)
    list(engine_of(tiny_policy).sample(requests(16)))
    assert prefilled == sum(len(prompt) - 1 for prompt in PROMPTS.values())


def test_what_samples_have_in_common_runs_through_the_model_once(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = 0
    real = tiny_policy.model.forward

    def counting(**inputs: torch.Tensor) -> object:
        nonlocal decoded
        if inputs["input_ids"].shape[1] == 1:
            decoded += len(inputs["input_ids"])
        return real(**inputs)

    monkeypatch.setattr(tiny_policy.model, "forward", counting)
    engine = engine_of(tiny_policy, temperature=0.02, max_rows=1000)
    rollouts = list(engine.sample(requests(50)))
    beginnings = {
        (r.item_id, *r.completion_token_ids[:length])
        for r in rollouts
        for length in range(len(r.completion_token_ids))
    }
    assert decoded == len(beginnings) < sum(len(r.completion_token_ids) for r in rollouts) / 2


def test_frequencies_are_the_policys_probabilities(tiny_policy: Policy) -> None:
    request = SampleRequest("x", PROMPTS["b"], 0, 4000)
    engine = engine_of(tiny_policy, max_tokens=1, temperature=0.7, max_rows=1000)
    counts = Counter(r.completion_token_ids[0] for r in engine.sample([request]))
    with torch.inference_mode():
        logits = tiny_policy.model(input_ids=torch.tensor([PROMPTS["b"]])).logits[0, -1]
    expected = torch.softmax(logits / 0.7, dim=-1).numpy() * 4000
    observed = np.array([counts[token] for token in range(len(expected))])
    # Chi-square over 18 tokens: 42.3 is passed by chance once in a thousand.
    assert ((observed - expected) ** 2 / expected).sum() < 42.3


def test_draw_covers_the_ends() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 0.0, float("-inf")]]).repeat(3, 1)
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert draw(logits, uniform[:, None], 1.0).tolist() == [[0], [2], [2]]
    assert draw(logits[:1], uniform[None], 1.0).tolist() == [[0, 2, 2]]


# --- Less than the whole distribution --------------------------------------------------------


def left_over(probabilities: list[float], truncation: Truncation) -> list[float]:
    """The distribution that is drawn from."""
    logits = torch.tensor([probabilities], dtype=torch.float64).log().float()
    return torch.softmax(truncated(logits, truncation), dim=-1)[0].tolist()


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [
        (Truncation(top_k=2), [0.0, 0.5 / 0.8, 0.3 / 0.8, 0.0]),
        (Truncation(top_k=9), [0.05, 0.5, 0.3, 0.15]),
        # As few as reach it: 0.5 + 0.3 does, 0.5 does not.
        (Truncation(top_p=0.7), [0.0, 0.5 / 0.8, 0.3 / 0.8, 0.0]),
        (Truncation(top_p=0.4), [0.0, 1.0, 0.0, 0.0]),
        (Truncation(top_p=1e-9), [0.0, 1.0, 0.0, 0.0]),
        (Truncation(min_p=0.29), [0.0, 0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95]),
        (Truncation(min_p=1.0), [0.0, 1.0, 0.0, 0.0]),
        # Of the two that top_k leaves the first has 0.625.
        (Truncation(top_k=2, top_p=0.62), [0.0, 1.0, 0.0, 0.0]),
        (Truncation(top_k=3, top_p=0.62), [0.0, 0.5 / 0.8, 0.3 / 0.8, 0.0]),
    ],
)
def test_truncation_leaves_the_most_probable_tokens(
    truncation: Truncation, expected: list[float]
) -> None:
    assert left_over([0.05, 0.5, 0.3, 0.15], truncation) == pytest.approx(expected, abs=1e-6)


def test_truncation_agrees_with_transformers_own() -> None:
    """Each of the three by itself; together they are applied in vLLM's order."""
    torch.manual_seed(0)
    logits = torch.randn(50, 40) * 3
    for truncation, warper in (
        (Truncation(top_k=7), TopKLogitsWarper(7)),
        (Truncation(top_p=0.83), TopPLogitsWarper(0.83)),
        (Truncation(min_p=0.07), MinPLogitsWarper(0.07)),
    ):
        expected = warper(torch.zeros(50, 1, dtype=torch.long), logits)
        torch.testing.assert_close(truncated(logits, truncation), expected)


def test_frequencies_are_those_of_what_is_left(tiny_policy: Policy) -> None:
    request = SampleRequest("x", PROMPTS["b"], 0, 4000)
    truncation = Truncation(top_p=0.8, top_k=6, min_p=0.1)
    engine = engine_of(
        tiny_policy, max_tokens=1, temperature=0.7, truncation=truncation, max_rows=1000
    )
    drawn = list(engine.sample([request]))
    counts = Counter(rollout.completion_token_ids[0] for rollout in drawn)
    with torch.inference_mode():
        logits = tiny_policy.model(input_ids=torch.tensor([PROMPTS["b"]])).logits[0, -1].double()
    whole = torch.softmax(logits / 0.7, dim=-1).numpy()
    kept = np.where(whole >= 0.1 * whole.max(), whole, 0)
    kept[np.argsort(-kept)[6:]] = 0
    order = np.argsort(-kept)
    before = np.cumsum(kept[order] / kept.sum()) - kept[order] / kept.sum()
    kept[order[before >= 0.8]] = 0
    expected = kept / kept.sum() * 4000
    assert set(counts) == set(np.flatnonzero(kept)) and 2 <= len(counts) < 8
    observed = np.array([counts[token] for token in np.flatnonzero(kept)])
    # Chi-square of at most 6 degrees: 22.5 is passed by chance once in a thousand.
    assert ((observed - expected[kept > 0]) ** 2 / expected[kept > 0]).sum() < 22.5
    # What is kept of a rollout is the whole policy's own probability.
    scores = torch.log_softmax(logits, dim=-1)
    for rollout in drawn[:20]:
        (token,) = rollout.completion_token_ids
        assert rollout.log_probability == pytest.approx(float(scores[token]), abs=1e-4)


def test_nothing_left_out_changes_nothing(tiny_policy: Policy) -> None:
    whole = by_key(list(engine_of(tiny_policy).sample(requests(5))))
    same = engine_of(tiny_policy, truncation=Truncation(top_p=1.0, top_k=0, min_p=0.0))
    assert by_key(list(same.sample(requests(5)))) == whole
    one = by_key(list(engine_of(tiny_policy, truncation=Truncation(top_k=1)).sample(requests(5))))
    assert len({tuple(ids) for (item, _), ids in one.items() if item == "a"}) == 1


# --- Memory ----------------------------------------------------------------------------------


def test_out_of_memory_backs_off_and_loses_nothing(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tiny_policy.model.forward

    def small_batches_only(**inputs: torch.Tensor) -> object:
        if len(inputs["input_ids"]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(**inputs)

    whole = by_key(list(engine_of(tiny_policy).sample(requests(10))))
    monkeypatch.setattr(tiny_policy.model, "forward", small_batches_only)
    rollouts = list(engine_of(tiny_policy).sample(requests(10)))
    assert len(rollouts) == 40 and by_key(rollouts) == whole


def test_memory_for_not_even_one_rollout_is_a_clear_error(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(**inputs: torch.Tensor) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tiny_policy.model, "forward", never)
    with pytest.raises(RunError, match="single rollout"):
        list(engine_of(tiny_policy).sample(requests(2)))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_at_temperature_one(
    tiny_policy: Policy, temperature: float
) -> None:
    engine = engine_of(tiny_policy, temperature=temperature, max_rows=7)
    rollouts = list(engine.sample(requests(20)))
    kept = [rollout.log_probability for rollout in rollouts]
    scored = log_probabilities(
        tiny_policy,
        [TokenizedRollout(PROMPTS[r.item_id], r.completion_token_ids) for r in rollouts],
    )
    np.testing.assert_allclose(np.array(kept, dtype=float), scored, rtol=0, atol=1e-4)
    assert np.ptp(scored) > 10
