"""The engine is kept full from one shard to the next, and told early where most is cut."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.speed.full_engine import GOAL, simulate, simulate_workers
from curate.errors import RunError
from curate.progress import Progress
from probes import tagging
from probes.engines.base import RequestStream, Rollout, SampleRequest, rollouts_to_add
from probes.stages.cut import ENOUGH, CutRollouts
from probes.stages.sample import SampleShard, draw_here, sample_items, shards, tokens_left
from tests.tag_runs import additions, tag, write_jsonl

PROMPT = [7, 8, 9]


class _Words:
    """A tokenizer whose words are numbers."""

    def decode(self, token_ids: list[int], **options: Any) -> str:
        return " ".join(map(str, token_ids))


class _FewAtOnce:
    """An engine that has `at_once` rollouts in hand and finishes the last that it took first.

    Attributes:
        most_shards: shards of `items_a_shard` items that it had rollouts of at once, at most.
    """

    name = "few"
    has_own_weights = False
    stops_at = math.inf

    def __init__(self, at_once: int, items_a_shard: int = 1, fails_after: float = math.inf) -> None:
        self._at_once, self._items_a_shard = at_once, items_a_shard
        self._fails_after = fails_after
        self.most_shards = 0

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        stream = RequestStream(requests)
        waiting: list[tuple[str, int]] = []
        finished = 0
        while True:
            for request in stream.take(rollouts_to_add(len(waiting), self._at_once)):
                assert list(request.prompt_token_ids) == PROMPT
                first = request.first_sample
                waiting += [(request.item_id, first + n) for n in range(request.samples)]
            if not waiting:
                return
            in_hand = {int(item_id) // self._items_a_shard for item_id, _ in waiting}
            self.most_shards = max(self.most_shards, len(in_hand))
            if finished == self._fails_after:
                raise RunError("it broke")
            item_id, sample = waiting.pop()
            finished += 1
            yield Rollout(item_id, sample, [int(item_id), sample], "stop")

    def unfinished(self) -> None:
        return None

    def close(self) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        return {"name": self.name}


def _requests(items: int, samples: int) -> list[SampleRequest]:
    return [SampleRequest(str(item), PROMPT, 2, samples) for item in range(items)]


def _draw(engine: _FewAtOnce, requests: list[SampleRequest], most: int) -> dict[int, pa.Table]:
    cut = (SampleShard(*each) for each in enumerate(shards(requests, most)))
    return dict(draw_here(engine, _Words())(cut, lambda rollouts, tokens: None))


def test_the_next_shard_begins_beside_the_last_rollouts_of_one() -> None:
    engine = _FewAtOnce(at_once=8, items_a_shard=4)
    tables = _draw(engine, _requests(40, 4), 16)
    assert sorted(tables) == list(range(10))
    for number, table in tables.items():
        items = [str(4 * number + i) for i in range(4)]
        assert table["item_id"].to_pylist() == [item for item in items for _ in range(4)]
        assert table["sample"].to_pylist() == [2, 3, 4, 5] * 4
        for item, sample, text in zip(
            *(table[name].to_pylist() for name in ("item_id", "sample", "completion")), strict=True
        ):
            assert text == f"{item} {sample}"
    # Of the shard before, and of no more than its room takes.
    assert engine.most_shards == 2


def test_an_item_in_several_shards_has_each_rollout_once() -> None:
    tables = _draw(_FewAtOnce(at_once=50), _requests(2, 25), 10)
    found = [
        (number, *each)
        for number, table in sorted(tables.items())
        for each in zip(table["item_id"].to_pylist(), table["sample"].to_pylist(), strict=True)
    ]
    assert [each[1:] for each in found] == [("01"[i // 25], 2 + i % 25) for i in range(50)]
    # Whole items where they fit: the rest of one does not share a shard with the next.
    assert [table.num_rows for _, table in sorted(tables.items())] == [10, 10, 5, 10, 10, 5]


def test_whole_shards_are_kept_where_the_engine_breaks(tmp_path: Path) -> None:
    items = pa.table({"item_id": [str(i) for i in range(40)], "prompt_token_ids": [PROMPT] * 40})
    none, target = pa.array([0] * 40).to_numpy(), pa.array([4] * 40).to_numpy()
    broken = _FewAtOnce(8, 4, fails_after=100)
    with pytest.raises(RunError, match="it broke"):
        sample_items(tmp_path, items, none, target, draw_here(broken, _Words()), 16)
    files = sorted(tmp_path.rglob("*.parquet"))
    # At most three shards of 16 were begun and not whole.
    assert len(files) >= (100 - 3 * 16) // 16
    assert all(pq.read_metadata(file).num_rows == 16 for file in files)


def test_what_is_in_the_making_counts_for_the_time_left() -> None:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(1 / 100, 120), 128)
    # All run side by side, a token a step, until a quarter has ended.
    step = int(np.sort(lengths)[29])
    done = lengths <= step
    tokens, making = int(lengths[done].sum()), [step] * int((~done).sum())
    left = tokens_left(0, making, int(done.sum()), tokens, 128)
    truth = int((lengths[~done] - step).sum())
    assert left == pytest.approx(truth, rel=0.25)
    # By finished rollouts alone it would be another size.
    assert tokens / done.sum() * (~done).sum() < truth / 3
    assert tokens_left(0, [], 120, 9000, 128) == 0
    # What is not begun is as long as the others were.
    ended = int(lengths.sum()), math.inf
    assert tokens_left(7, [], 120, *ended) == pytest.approx(7 * lengths.mean())


class _TellsWhatIsInTheMaking(_FewAtOnce):
    def unfinished(self) -> list[int]:  # type: ignore[override]
        return [50, 50]


def test_progress_tells_the_tokens_that_are_in_the_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    monkeypatch.setattr(Progress, "advance", lambda self, *_: left.append(self.seconds_left))
    engine = _TellsWhatIsInTheMaking(2)
    items = pa.table({"item_id": ["0", "1"], "prompt_token_ids": [PROMPT] * 2})
    none, target = np.array([0, 0]), np.array([2, 2])
    draw = draw_here(engine, _Words())
    sample_items(tmp_path, items, none, target, draw, 16, engine=engine, max_tokens=60)
    assert len(left) == 4 and all(each is not None for each in left)
    silent = _FewAtOnce(2)
    left.clear()
    draw = draw_here(silent, _Words())
    sample_items(tmp_path / "b", items, none, target, draw, 16, engine=silent)
    assert left == [None] * 4


def test_requests_are_taken_as_there_is_room() -> None:
    taken = []

    def requests() -> Iterator[SampleRequest]:
        for request in _requests(10, 4):
            taken.append(request.item_id)
            yield request

    stream = RequestStream(requests())
    assert not taken
    assert [len(stream.take(n)) for n in (0, 1, 4, 5, 100, 7)] == [0, 1, 1, 2, 6, 0]
    assert len(taken) == 10 and stream.is_over
    # Never short of the room, and not one by one.
    assert [rollouts_to_add(n, 100) for n in (0, 99, 149, 150, 400)] == [200, 101, 51, 0, 0]


def test_a_simulated_gpu_is_as_full_as_without_shards() -> None:
    found = simulate(items=512, mean=1000, max_tokens=8192)
    speed = {name: one.tokens_per_second for name, (_, one) in found.items()}
    assert speed["shards, joined"] >= GOAL * speed["continuous"]
    # The goal can be missed: small shards that are drawn to their ends do.
    assert speed["small shards"] < 0.6 * speed["continuous"]
    assert found["shards, joined"][0] == 8192
    rates = []
    for by_turns in (False, True):
        size, one = simulate_workers(2, 512, 1000, 8192, by_turns=by_turns)
        assert size == 8192 and one.tokens == pytest.approx(found["continuous"][1].tokens, rel=0.02)
        rates.append(one.tokens_per_second / speed["continuous"])
    # Of several workers too: each begins its next shard beside the last rollouts of one.
    assert rates[0] >= GOAL and rates[0] > rates[1] + 0.03


# --- Cut completions --------------------------------------------------------------------------


def _shard(cut: int, of: int) -> pa.Table:
    return pa.table({"finish_reason": ["length"] * cut + ["stop"] * (of - cut)})


def test_too_many_that_are_cut_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    cut = CutRollouts(99, 10_000, stops=False)
    cut.saw(_shard(100, 100))
    assert not capsys.readouterr().err  # Of too few it is not told.
    cut.saw(_shard(100, 200))
    said = capsys.readouterr().err
    assert said.startswith("warning: 67% of the first 300 rollouts were cut at --max-tokens 99")
    cut.saw(_shard(200, 200))
    cut.end()
    assert not capsys.readouterr().err


def test_half_that_are_cut_and_a_whole_run_are_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    CutRollouts(99, 10_000, stops=True).saw(_shard(ENOUGH // 2, ENOUGH))
    # The end of the run tells it.
    CutRollouts(99, ENOUGH, stops=False).saw(_shard(ENOUGH, ENOUGH))
    few = CutRollouts(99, 10_000, stops=False)
    few.saw(_shard(8, 8))
    few.end()
    assert not capsys.readouterr().err
    few = CutRollouts(99, 10_000, stops=True)
    few.saw(_shard(8, 8))
    with pytest.raises(RunError, match="100% of the first 8 rollouts"):
        few.end()


def test_a_run_stops_when_most_is_cut_and_goes_on_without_the_option(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tagging, "_SHARD_TOKENS", {"cpu": 2 * 32})
    dataset = write_jsonl(tmp_path / "sums.jsonl", additions(12))
    run = tmp_path / "run"
    command = (
        *(dataset, "--model", tiny_model, "--run-dir", run, "--out", tmp_path / "out.jsonl"),
        *("--min-rollouts", 32, "--max-rollouts", 32, "--max-tokens", 2),
    )
    stopped = tag(*command, "--stop-when-cut")
    assert stopped.status == 1
    assert (
        "were cut at --max-tokens 2 and count as wrong: --stop-when-cut ends" in stopped.last_line
    )
    assert "more --max-tokens" in stopped.last_line and "continues this one" in stopped.last_line
    kept = {file: file.read_bytes() for file in (run / "rollouts").glob("*.parquet")}
    assert sum(pq.read_metadata(file).num_rows for file in kept) >= ENOUGH
    again = tag(*command, "--stop-when-cut")
    assert (again.status, again.last_line) == (1, stopped.last_line)

    done = tag(*command)
    assert done.status == 0, done.stderr
    assert "would have ended the run here" in done.stderr
    rows = [pq.read_table(file, columns=["item_id"]).num_rows for file in kept]
    assert sum(rows) < 12 * 32
    assert (
        sum(pq.read_metadata(f).num_rows for f in (run / "rollouts").glob("*.parquet")) == 12 * 32
    )
