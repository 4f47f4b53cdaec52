"""The sampler in the loop: by itself, in TRL's own loop, and behind verl's own loading code."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import betabinom

import curate
from recipes.sampler.items import ItemSampler, SamplerSettings, chance_of_signal
from tests.tagged_files import tagged_row, write_tagged_file
from tests.tiny import save_tiny_model
from tests.trainer_packages import loaded_by

# --- The sampler -----------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "wrong", "k"), [(0, 0, 8), (3, 29, 8), (0, 32, 4), (16, 16, 2)])
def test_the_chance_of_a_signal_is_that_of_a_beta_binomial(right: int, wrong: int, k: int) -> None:
    expected = 1 - betabinom.pmf([0, k], k, 0.5 + right, 0.5 + wrong).sum()
    found = chance_of_signal(np.array([float(right)]), np.array([float(wrong)]), k)
    assert found[0] == pytest.approx(expected)


def _sampler(correct: Sequence[int | None], **settings: Any) -> ItemSampler:
    return ItemSampler(
        [f"item {n}" for n in range(len(correct))], correct, [64] * len(correct),
        SamplerSettings(**settings),
    )  # fmt: skip


def _tell(sampler: ItemSampler, rows: Sequence[int], share: float, k: int = 8) -> None:
    right = round(share * k)
    sampler.observe(
        [f"item {row}" for row in rows for _ in range(k)],
        [n < right for _ in rows for n in range(k)],
    )


def test_items_with_a_signal_take_turns_and_the_others_are_looked_at_now_and_then() -> None:
    # Ten items with a signal, ten never right and ten always.
    sampler = _sampler([32] * 10 + [0] * 10 + [64] * 10, look_again=0.1)
    seen: list[int] = []
    for _ in range(20):
        rows = sampler.draw(5)
        assert len(set(rows)) == 5
        seen += rows
        for row in rows:
            assert sampler.signal()[row] > 0
        sampler.observe([], [])
    times = Counter(seen)
    assert sum(times[row] for row in range(10, 30)) == 10  # A tenth of a hundred places.
    assert max(times[row] for row in range(10, 30)) == 1  # Those not seen for longest.
    assert {times[row] for row in range(10)} == {9}  # Ninety places, in turns.


def test_more_signal_comes_sooner() -> None:
    first = Counter[bool]()
    for seed in range(200):
        (row,) = _sampler([32] * 5 + [3] * 5, seed=seed).draw(1)
        first[row < 5] += 1
    signal = _sampler([32, 3]).signal()
    assert first[True] / 200 == pytest.approx(signal[0] / signal.sum(), abs=0.1)


def test_what_training_shows_outweighs_the_probe_and_fades() -> None:
    sampler = _sampler([32, 32], half_life=10, trust=8)
    for _ in range(4):
        _tell(sampler, [0], share=1.0)
    assert sampler.signal()[0] < 0.6 < 0.9 < sampler.signal()[1]
    assert sampler.pass_rate()[0] > 0.75
    for _ in range(20):
        _tell(sampler, [0], share=1.0)
    solved = sampler.signal()[0]
    assert solved < 0.2
    assert sampler.draw(1) == [1]
    for _ in range(60):
        sampler.observe([], [])
    # Long ago it was solved: nobody knows whether it still is.
    assert sampler.signal()[0] > 0.45
    assert 1 in sampler.draw(2)


def test_rollouts_that_could_not_be_judged_say_nothing() -> None:
    sampler = _sampler([32, 0])
    before = sampler.signal()[0]
    sampler.observe(["item 0"] * 4, [None] * 4)
    assert sampler.signal()[0] == pytest.approx(before, rel=0.02)
    with pytest.raises(ValueError, match="'item 9' is no item of this sampler"):
        sampler.observe(["item 9"], [True])


def test_counts_of_the_probe_weigh_as_much_as_they_are_trusted() -> None:
    few, many = (
        ItemSampler(["a"], [0], [n], SamplerSettings(trust=16)) for n in (16, 1024)
    )  # fmt: skip
    assert few.signal()[0] == pytest.approx(many.signal()[0])
    unknown = ItemSampler(["a"], [None], [None])
    assert unknown.signal()[0] == pytest.approx(0.607, abs=1e-3)


@given(
    correct=st.lists(st.sampled_from([0, 1, 8, 32, 63, 64]), min_size=1, max_size=12),
    batches=st.lists(st.floats(0, 1), max_size=8),
    cut=st.integers(0, 8),
    seed=st.integers(0, 3),
)
def test_from_its_state_it_goes_on_as_if_nothing_had_happened(
    correct: list[int], batches: list[float], cut: int, seed: int
) -> None:
    size = max(1, len(correct) // 2)

    def go_on(sampler: ItemSampler, shares: list[float]) -> list[list[int]]:
        drawn = []
        for share in shares:
            drawn.append(sampler.draw(size))
            _tell(sampler, drawn[-1], share)
        return drawn

    whole = go_on(_sampler(correct, seed=seed), batches)
    first = _sampler(correct, seed=seed)
    drawn = go_on(first, batches[:cut])
    # Through text, as a checkpoint has it.
    state = json.loads(json.dumps(first.state_dict()))
    second = _sampler(correct, seed=99)
    second.load_state_dict(state)
    assert drawn + go_on(second, batches[cut:]) == whole


def test_a_state_of_other_items_is_refused() -> None:
    with pytest.raises(ValueError, match="of other items"):
        _sampler([1, 2]).load_state_dict(_sampler([1, 2, 3]).state_dict())


def test_what_cannot_be_drawn_from_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 3 needs as many items, and there are 2"):
        _sampler([1, 2]).draw(3)
    with pytest.raises(ValueError, match="no column 'total_correct_rollouts'"):
        ItemSampler.of({"item_id": ["a"]})
    with pytest.raises(ValueError, match="row 2 has no item_id"):
        ItemSampler(["a", ""], [1, 1], [2, 2])
    with pytest.raises(ValueError, match="0 ≤ correct ≤ rollouts"):
        ItemSampler(["a"], [3], [2])
    for wrong in ({"group_size": 1}, {"look_again": 1.0}, {"half_life": 0.0}):
        with pytest.raises(ValueError, match=r"must|needs"):
            SamplerSettings(**wrong)  # type: ignore[arg-type]


def test_rows_of_one_item_are_one() -> None:
    sampler = ItemSampler(["a", "b", "a"], [1, 1, 1], [2, 2, 2])
    assert len(sampler) == 2
    assert sorted(sampler.draw(2)) == [0, 1]


def test_every_process_draws_the_same_and_has_whole_groups() -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    from recipes.sampler.trl import _Draws

    class Trainer:
        """What `_Draws` asks of the trainer."""

        def __init__(self) -> None:
            self.item_sampler = _sampler([32] * 12)
            self.drawn: list[int] = []
            self._is_resumed = False

    shards = []
    for process in range(2):
        draws = _Draws(Trainer(), batch=4, prompts=12, mini_repeat=3, repeat=2)  # type: ignore[arg-type]
        assert len(draws) == 12 * 3 * 2
        # A generation batch is four prompts of three rollouts, half of them on each process.
        batches = BatchSampler(draws, batch_size=6, drop_last=False)
        shards.append(list(BatchSamplerShard(batches, 2, process)))
    for one, two in zip(*shards, strict=True):
        assert Counter(Counter([*one, *two]).values()) == {3: 4}
    assert shards[0][0] == shards[0][1] != shards[0][2]


# --- In TRL ----------------------------------------------------------------------------------

ITEMS = 16
SIGNAL = range(4, 12)
"""Items that were right half of the time; the four before never were, the four after always."""


def _dataset() -> Dataset:
    correct = [0] * 4 + [32] * 8 + [64] * 4
    return Dataset.from_dict(
        {
            "prompt": [f"what is {n} + 1 ?" for n in range(ITEMS)],
            "item_id": [f"item {n}" for n in range(ITEMS)],
            "total_correct_rollouts": correct,
            "total_rollouts": [64] * ITEMS,
        }
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def _train(model: Path, out: Path, seen: list[str], resume: Any = None, **arguments: Any) -> Any:
    """Train for some steps of two prompts; item 5 is always right, the others half of the time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig

    from recipes.sampler.trl import SampledGRPOTrainer

    def reward(completions, item_id, **_):  # type: ignore[no-untyped-def]
        seen.extend(item_id[::4])
        return [1.0 if each == "item 5" else float(n % 2) for n, each in enumerate(item_id)]

    trainer = SampledGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(out), num_generations=4, per_device_train_batch_size=8,
            max_completion_length=2, report_to=[], use_cpu=True, bf16=False, seed=3,
            logging_strategy="no", disable_tqdm=True, **arguments,
        ),
        train_dataset=_dataset(),
        processing_class=AutoTokenizer.from_pretrained(model),
        sampling=SamplerSettings(look_again=0.0),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_trl_trains_on_what_has_a_signal_and_goes_on_from_a_checkpoint(
    model: Path, tmp_path: Path
) -> None:
    seen: list[str] = []
    trainer = _train(model, tmp_path / "out", seen, max_steps=11, save_steps=5)
    # Eleven steps of two prompts: the epoch of eight steps, and three of the next.
    assert len(seen) == 22
    assert {int(each.removeprefix("item ")) for each in seen} == set(SIGNAL)
    assert Counter(seen[:8]) == {f"item {n}": 1 for n in SIGNAL}
    # It knows what the rewards were: a solved item has less of a signal than the others.
    signal = trainer.item_sampler.signal()
    assert signal[5] < signal[[n for n in SIGNAL if n != 5]].min()
    # Cut off within an epoch, and within the next, and resumed in another process as it were.
    for step in (5, 10):
        again: list[str] = []
        checkpoint = tmp_path / "out" / f"checkpoint-{step}"
        _train(model, tmp_path / "more", again, resume=str(checkpoint), max_steps=11, save_steps=5)
        assert again == seen[2 * step :]


def test_a_checkpoint_without_a_sampler_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match=r"has no curate_sampler.json"):
        _train(model, tmp_path, [], resume=str(tmp_path / "checkpoint-3"), max_steps=5)


# --- In verl ---------------------------------------------------------------------------------


def test_verl_draws_what_has_a_signal_by_both_of_its_trainers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    correct = [0] * 4 + [32] * 8 + [64] * 4
    rows = [
        tagged_row(n, "easy", total_correct_rollouts=c, total_rollouts=64, pass_rate=c / 64)
        for n, c in enumerate(correct)
    ]
    write_tagged_file(tmp_path / "t.jsonl", rows)
    for name in ("train", "val"):
        curate.filter("t.jsonl", f"{name}.parquet", format="verl", instruction="")
    model = save_tiny_model(tmp_path / "model")
    ran = loaded_by(
        "verl_sampling.py", "verl", "train.parquet", "val.parquet", model, tmp_path / "cache"
    )
    found: dict[str, Any] = json.loads(ran)
    ids = [row["item_id"] for row in rows]
    # Three epochs of four batches of four rows: only those with a signal, each once in two batches.
    assert len(found["whole"]) == 12
    with_signal = {ids[n] for n in SIGNAL}
    for one, two in zip(found["whole"][:4:2], found["whole"][1:4:2], strict=True):
        assert {*one, *two} == with_signal
    assert {item for batch in found["whole"] for item in batch} <= with_signal
    signal = found["signal"]
    assert signal[4] < min(signal[n] for n in SIGNAL if n != 4)
    assert found["resumed"] == found["whole"][7:]
    # The replay buffer's rewards are the same, and so are the draws.
    assert found["by_buffer"] == found["whole"][:3]
    assert found["told"] == 3
    assert found["plain"] == ids[:3]
    assert "data.dataloader_num_workers must be 0" in found["refused"]
