"""Log-probabilities of rollouts are the model's own, whatever the batch."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from curate.errors import RunError
from curate.run.tables import ROLLOUTS, write_parquet
from probes.engines.base import SampleRequest
from probes.engines.transformers import TransformersEngine
from probes.gradients.batch import TokenizedRollout
from probes.models.load import Policy
from probes.rescoring import rescore as rescoring_stage
from probes.rescoring import teacher_forcing as rescoring
from probes.rescoring.rescore import rescore_run
from probes.rescoring.teacher_forcing import log_probabilities
from probes.stages.sample import SampleShard, draw_here
from probes.stages.verify import verify_rollouts
from probes.verifiers.load import Verdict
from probes.verifiers.pool import Pair


def rollouts_of_prompts(seed: int = 0) -> list[TokenizedRollout]:
    """Prompts that start alike, completions that start alike, and some that come again."""
    draws = np.random.default_rng(seed)
    template = draws.integers(3, 18, size=6).tolist()
    rollouts = []
    for length in (0, 3, 3, 11, 20):
        prompt = template + draws.integers(3, 18, size=length).tolist()
        start = draws.integers(3, 18, size=4).tolist()
        for longer in (1, 2, 5, 5, 16):
            completion = start[: longer - 1] + draws.integers(3, 18, size=longer).tolist()
            rollouts.append(TokenizedRollout(prompt, [*completion, 1]))
        rollouts += [TokenizedRollout(prompt, rollouts[-1].completion_token_ids[:4])] * 2
    rollouts.append(TokenizedRollout(template, rollouts[3].completion_token_ids))
    rollouts.append(TokenizedRollout([5], [1]))
    return [rollouts[i] for i in draws.permutation(len(rollouts))]


def by_hand(model: torch.nn.Module, rollout: TokenizedRollout, temperature: float = 1.0) -> float:
    """One rollout alone, all its logits, in float64."""
    prompt, completion = list(rollout.prompt_token_ids), list(rollout.completion_token_ids)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    table = torch.log_softmax(logits.double() / temperature, dim=-1)[len(prompt) - 1 : -1]
    return float(table[torch.arange(len(completion)), torch.tensor(completion)].sum())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("batch_tokens", [1, 90, 400, 100_000, None])
def test_agree_with_one_rollout_at_a_time(
    tiny_policy: Policy, batch_tokens: int | None, temperature: float
) -> None:
    rollouts = rollouts_of_prompts()
    ours = log_probabilities(
        tiny_policy, rollouts, temperature=temperature, batch_tokens=batch_tokens
    )
    theirs = [by_hand(tiny_policy.model, rollout, temperature) for rollout in rollouts]
    assert ours.shape == (len(rollouts),) and ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert ours.max() - ours.min() > 20  # They differ for the comparison to say anything.


def test_order_does_not_matter(tiny_policy: Policy) -> None:
    rollouts = rollouts_of_prompts()
    order = np.random.default_rng(1).permutation(len(rollouts))
    shuffled = log_probabilities(tiny_policy, [rollouts[i] for i in order], batch_tokens=200)
    np.testing.assert_allclose(
        shuffled, log_probabilities(tiny_policy, rollouts)[order], rtol=0, atol=1e-4
    )


def test_probabilities_of_all_completions_sum_to_one(tiny_policy: Policy) -> None:
    vocabulary = tiny_policy.model.config.vocab_size
    pairs = [TokenizedRollout([7, 3], [a, b]) for a in range(vocabulary) for b in range(vocabulary)]
    for temperature in (1.0, 0.7):
        scores = log_probabilities(tiny_policy, pairs, temperature=temperature)
        assert np.exp(scores).sum() == pytest.approx(1, abs=1e-5)


def test_a_model_in_training_is_scored_without_dropout_and_left_in_training(
    tiny_policy: Policy,
) -> None:
    model = copy.deepcopy(tiny_policy.model)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.manual_seed(0)) * 0.1)
    policy = dataclasses.replace(tiny_policy, model=adapted.train())
    rollouts = rollouts_of_prompts()
    ours = log_probabilities(policy, rollouts)
    assert adapted.training
    theirs = [by_hand(adapted.eval(), rollout) for rollout in rollouts]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert np.abs(ours - log_probabilities(tiny_policy, rollouts)).max() > 0.1


def test_learned_positions_and_conv1d(tiny_policy: Policy) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=18, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(20)
    policy = dataclasses.replace(tiny_policy, model=model)
    rollouts = rollouts_of_prompts()
    theirs = [by_hand(model, rollout) for rollout in rollouts]
    np.testing.assert_allclose(log_probabilities(policy, rollouts), theirs, rtol=0, atol=1e-4)


def test_shared_tokens_are_computed_once(tiny_policy: Policy) -> None:
    layer = tiny_policy.model.model.layers[0].mlp.up_proj
    head = tiny_policy.model.get_output_embeddings()
    rows: dict[torch.nn.Module, list[int]] = {layer: [], head: []}

    def counting(module: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        real = module.forward

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            rows[module].append(hidden.shape[-2])
            return real(hidden)

        return forward

    for module in rows:
        vars(module)["forward"] = counting(module)
    try:
        prompt = [4, 5, 6, 7, 8]
        log_probabilities(
            tiny_policy,
            [TokenizedRollout(prompt, [9, 10, 1]), TokenizedRollout(prompt, [9, 11, 12, 1])] * 3,
        )
    finally:
        del vars(layer)["forward"], vars(head)["forward"]
    # The prompt, 9, and then 10 or 11 and 12; the head after the prompt and after each of these.
    assert rows[layer] == [5 + 1 + 1 + 2]
    assert rows[head] == [1 + 1 + 1 + 2]


def test_nothing_is_left_on_the_model(tiny_policy: Policy) -> None:
    before = [dict(vars(module)) for module in tiny_policy.model.modules()]
    log_probabilities(tiny_policy, rollouts_of_prompts())
    assert [dict(vars(module)) for module in tiny_policy.model.modules()] == before
    assert not tiny_policy.model.get_output_embeddings()._forward_pre_hooks


def test_a_model_that_diverged(tiny_policy: Policy) -> None:
    model = copy.deepcopy(tiny_policy.model)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(RunError, match="policy tiny-llama gives no probabilities"):
        log_probabilities(dataclasses.replace(tiny_policy, model=model), rollouts_of_prompts())


def test_out_of_memory_halves_the_batch(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = rollouts_of_prompts()
    expected = log_probabilities(tiny_policy, rollouts)
    real = rescoring._pass
    sizes = []

    def passes_of_three(policy: Policy, batch: list[object], temperature: float) -> np.ndarray:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(policy, batch, temperature)  # type: ignore[arg-type]

    monkeypatch.setattr(rescoring, "_pass", passes_of_three)
    np.testing.assert_allclose(log_probabilities(tiny_policy, rollouts), expected, atol=1e-4)
    assert sizes[0] > 3 >= sizes[-1]

    def never(policy: Policy, batch: list[object], temperature: float) -> np.ndarray:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rescoring, "_pass", never)
    with pytest.raises(RunError, match="one rollout of 2 tokens"):
        log_probabilities(tiny_policy, rollouts)


def test_what_cannot_be_scored(tiny_policy: Policy) -> None:
    with pytest.raises(ValueError, match="rollout 1 has no completion"):
        log_probabilities(tiny_policy, [TokenizedRollout([1], [2]), TokenizedRollout([1], [])])
    with pytest.raises(ValueError, match="rollout 0 has no prompt"):
        log_probabilities(tiny_policy, [TokenizedRollout([], [2])])
    with pytest.raises(ValueError, match="above 0"):
        log_probabilities(tiny_policy, [], temperature=0)
    assert log_probabilities(tiny_policy, []).shape == (0,)


ITEMS = pa.table({"item_id": ["b", "a", "never"], "prompt_token_ids": [[4, 5, 6], [7, 8], [9, 3]]})
ROW_OF = {"b": 0, "a": 1, "never": 2}


def write_shards(run: Path, *shards: list[tuple[str, int, list[int], int | None]]) -> None:
    (run / "rollouts").mkdir(parents=True)
    for number, lines in enumerate(shards):
        columns = [list(column) for column in zip(*lines, strict=True)]
        names = ["item_id", "sample", "completion_token_ids", "reward"]
        types = [pa.string(), pa.int32(), pa.list_(pa.int32()), pa.int8()]
        table = pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)})
        pq.write_table(table, run / f"rollouts/{number:05d}.parquet")


def drawn(run: Path) -> Path:
    write_shards(
        run,
        [
            ("a", 0, [9, 1], 1),
            ("a", 1, [10, 1], 0),
            ("a", 2, [9, 1], 1),
            ("a", 3, [11, 1], 0),
            ("b", 0, [9, 1], None),
            ("b", 1, [12, 4, 1], 1),
        ],
        [
            ("b", 2, [12, 4, 1], 1),
            ("a", 4, [9, 1], 1),
            ("a", 5, [13, 1], 1),
            ("a", 6, [14, 1], 1),
            ("a", 7, [15, 1], 0),
        ],
    )
    return run


def test_a_run_is_scored(tiny_policy: Policy, tmp_path: Path) -> None:
    run = drawn(tmp_path)
    table = rescore_run(run, ITEMS, ROW_OF, tiny_policy, most_correct=4, most_wrong=1)
    lines = table.to_pylist()
    scores = [line.pop("log_probability") for line in lines]
    # The fifth correct rollout of a, its second wrong one and the unjudged one are not taken.
    assert lines == [
        {"item_id": "b", "sample": 1, "reward": 1, "tokens": 3, "weight": 2},
        {"item_id": "a", "sample": 0, "reward": 1, "tokens": 2, "weight": 3},
        {"item_id": "a", "sample": 1, "reward": 0, "tokens": 2, "weight": 1},
        {"item_id": "a", "sample": 5, "reward": 1, "tokens": 2, "weight": 1},
    ]
    expected = [
        by_hand(tiny_policy.model, TokenizedRollout(prompt, completion))
        for prompt, completion in (
            ([4, 5, 6], [12, 4, 1]),
            ([7, 8], [9, 1]),
            ([7, 8], [10, 1]),
            ([7, 8], [13, 1]),
        )
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_kept_scores_are_those_of_a_rescoring(tiny_policy: Policy, tmp_path: Path) -> None:
    engine = TransformersEngine(tiny_policy, seed=1, temperature=0.7, max_tokens=12)
    requests = [
        SampleRequest(row["item_id"], row["prompt_token_ids"], 0, 30) for row in ITEMS.to_pylist()
    ]
    draw = draw_here(engine, tiny_policy.tokenizer)
    ((_, table),) = draw([SampleShard(0, requests)], lambda rollouts, tokens: None)
    assert table.schema == ROLLOUTS.schema
    rewards = pa.array([sample % 3 == 0 for sample in table["sample"].to_pylist()]).cast(pa.int8())
    table = table.set_column(table.column_names.index("reward"), "reward", rewards)
    write_parquet(tmp_path / "rollouts/00000.parquet", table)
    most = {"most_correct": 8, "most_wrong": 16}
    scored = rescore_run(tmp_path, ITEMS, ROW_OF, tiny_policy, **most)
    drawn_at = {
        (row["item_id"], row["sample"]): row["log_probability"] for row in table.to_pylist()
    }
    kept = [drawn_at[row["item_id"], row["sample"]] for row in scored.to_pylist()]
    np.testing.assert_allclose(kept, scored["log_probability"].to_numpy(), atol=1e-4)
    assert sum(scored["weight"].to_pylist()) == 3 * (8 + 16)


class AllRight:
    """Stands in for the pool of a verifier."""

    verifier = "math"

    def __enter__(self) -> "AllRight":
        return self

    def __exit__(self, *_: object) -> None: ...

    def judge(self, pairs: list[Pair], done: Callable[[int], None]) -> list[Verdict]:
        return [Verdict(1, "correct", pair[1]) for pair in pairs]


def test_rollouts_of_an_earlier_version_are_judged(tmp_path: Path) -> None:
    columns = {field.name: pa.nulls(2, field.type) for field in ROLLOUTS.schema}
    del columns["log_probability"]
    columns |= {"item_id": pa.array(["a", "b"]), "finish_reason": pa.array(["stop", "length"])}
    write_parquet(tmp_path / "rollouts/00000.parquet", pa.table(columns))
    golds = pa.chunked_array([["1", "2", "3"]])
    verify_rollouts(tmp_path, AllRight(), golds, ROW_OF)  # type: ignore[arg-type]
    table = pq.read_table(tmp_path / "rollouts/00000.parquet")
    assert table.schema == ROLLOUTS.schema
    assert table["reward"].to_pylist() == [1, 0]
    assert table["log_probability"].null_count == 2


def test_nothing_to_score(tiny_policy: Policy, tmp_path: Path) -> None:
    table = rescore_run(tmp_path, ITEMS, ROW_OF, tiny_policy, most_correct=4, most_wrong=0)
    assert table.num_rows == 0
    assert table.column_names == [
        *("item_id", "sample", "reward", "tokens", "weight", "log_probability")
    ]


def test_a_killed_rescoring_goes_on(
    tiny_policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = drawn(tmp_path / "run")
    folder = tmp_path / "scores"
    real = rescoring_stage.log_probabilities
    asked: list[int] = []

    def dies_at(most: int) -> None:
        def scored(policy: Policy, rollouts: list[TokenizedRollout], **options: object) -> object:
            if len(asked) == most:
                raise KeyboardInterrupt
            asked.append(len(rollouts))
            return real(policy, rollouts, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(rescoring_stage, "log_probabilities", scored)

    def rescored(most_correct: int = 4) -> pa.Table:
        return rescore_run(
            *(run, ITEMS, ROW_OF, tiny_policy),
            most_correct=most_correct,
            most_wrong=1,
            folder=folder,
        )

    dies_at(1)
    with pytest.raises(KeyboardInterrupt):
        rescored()
    assert [file.name for file in folder.iterdir()] == ["shard-00000.parquet"]
    dies_at(99)
    table = rescored()
    # What the first file had is not scored again in the second.
    assert asked == [3, 1]
    assert table == rescore_run(run, ITEMS, ROW_OF, tiny_policy, most_correct=4, most_wrong=1)
    asked.clear()
    assert rescored() == table and asked == []
    # Other rollouts are wanted: the first file is the same, the second is not.
    assert rescored(most_correct=5).num_rows == table.num_rows + 1 and asked == [2]


def test_what_is_left_out_does_not_count_and_nothing_takes_its_place(
    tiny_policy: Policy, tmp_path: Path
) -> None:
    run = drawn(tmp_path)
    table = rescore_run(
        *(run, ITEMS, ROW_OF, tiny_policy),
        most_correct=np.array([1, 4, 4]),
        most_wrong=np.array([0, 1, 1]),
        leave_out={"a": {0, 1}, "never": [0]},
    )
    lines = [(line["item_id"], line["sample"], line["weight"]) for line in table.to_pylist()]
    # Of a, draws 0, 2 and 4 are one completion, which is known by its first.
    assert lines == [("b", 1, 1), ("a", 0, 2), ("a", 5, 1)]
