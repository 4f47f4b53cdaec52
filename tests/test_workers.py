"""Workers without Ray: kept over work, replaced when lost, and their engines never without work."""

import copy
import math
import re
import threading
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.config import TagConfig
from curate.errors import RunError, UsageError
from probes.engines.base import RequestStream, Rollout, SampleRequest, rollouts_to_add
from probes.gradients.batch import TokenizedRollout
from probes.machines import ray as ray_machines
from probes.machines import ray_worker
from probes.machines.ray_worker import Worker, WorkerModel
from probes.machines.workers import LostError, Workers
from probes.models.load import Policy, describe_machine
from probes.rescoring.teacher_forcing import log_probabilities
from probes.stages import sample as sampling
from probes.stages.gradients import GradientShard
from probes.stages.sample import SampleShard, draw_here, sample_items, shards

PROMPT = [7, 8, 9]
MODEL = WorkerModel("weights", "float32")


class _Words:
    """A tokenizer whose words are numbers."""

    def decode(self, token_ids: list[int], **options: Any) -> str:
        return " ".join(map(str, token_ids))


class _Engine:
    """Has `at_once` rollouts in hand, and finishes the one that it took last.

    Attributes:
        calls: of `sample`.
        most_items: of which it had rollouts at once, at most.
        gate: is waited for before every rollout.
        seconds: that a rollout takes.
        fails: with which error, if with any.
    """

    name = "few"
    has_own_weights = False

    def __init__(self, at_once: int = 8) -> None:
        self._at_once = at_once
        self.stops_at = math.inf
        self.calls = self.most_items = 0
        self.gate = threading.Event()
        self.gate.set()
        self.seconds = 0.0
        self.fails: Exception | None = None

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        self.calls += 1
        stream = RequestStream(requests)
        waiting: list[tuple[str, int]] = []
        while time.monotonic() < self.stops_at:
            for request in stream.take(rollouts_to_add(len(waiting), self._at_once)):
                first = request.first_sample
                waiting += [(request.item_id, first + n) for n in range(request.samples)]
            if not waiting:
                return
            if self.fails:
                raise self.fails
            self.most_items = max(self.most_items, len({item for item, _ in waiting}))
            self.gate.wait(20)
            time.sleep(self.seconds)
            item_id, sample = waiting.pop()
            yield Rollout(item_id, sample, [int(item_id), sample], "stop")

    def unfinished(self) -> None:
        return None

    def close(self) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "options": {}}


class _Probe:
    dim = 2

    def gradients(self, rollouts: Sequence[TokenizedRollout]) -> Iterator[Any]:
        for place, rollout in enumerate(rollouts):
            yield [place], np.full((1, 2), rollout.tokens)


class _Model:
    """What a worker has loaded."""

    why = "a test"
    files = None

    def __init__(self, engine: _Engine, policy: Policy | None = None) -> None:
        self._engine = engine
        self._policy = policy

    def policy(self) -> Policy | None:
        return self._policy

    def engine(self) -> _Engine:
        return self._engine

    def probe(self, adapter: Any) -> _Probe:
        return _Probe()

    def close(self) -> None:
        self._engine.close()


class _Threads:
    """A cluster whose workers are objects of this process.

    Attributes:
        workers: every one that was started, with its engine, in order.
        ended: those that were ended and could free what they held.
        ends: how many of them each call of `end` had.
        prepare: is told of each engine.
        starts: by the number of a worker that starts late: when it does.
        models: of every worker: the models that it had with the shards that it was given.
        policy: that workers score with, each with a copy.
    """

    def __init__(self) -> None:
        self.workers: list[tuple[Worker, _Engine]] = []
        self.ended: list[Worker] = []
        self.ends: list[int] = []
        self.prepare: Any = lambda number, engine: None
        self.starts: dict[int, threading.Event] = {}
        self.models: list[set[WorkerModel | None]] = []
        self.policy: Policy | None = None
        self._calls: dict[int, ThreadPoolExecutor] = {}
        self._dead: set[int] = set()

    def start(self, gpus: float) -> Worker:
        engine = _Engine()
        number = len(self.workers)
        self.prepare(number, engine)
        worker = Worker({})
        model = _Model(engine, copy.deepcopy(self.policy))
        worker._model = lambda: (TagConfig(), model)  # type: ignore[method-assign,assignment]
        worker._tokenizer = _Words()
        self._calls[id(worker)] = ThreadPoolExecutor(1)
        if number in self.starts:
            self._calls[id(worker)].submit(self.starts[number].wait, 20)
        self.workers.append((worker, engine))
        self.models.append(set())
        return worker

    def call(self, worker: Worker, method: str, *arguments: object) -> Hashable:
        def run() -> Any:
            if id(worker) in self._dead:
                raise LostError("it was killed")
            if method == "exchange" and arguments[0]:
                number = [each for each, _ in self.workers].index(worker)
                self.models[number].add(worker._wanted)
            found = getattr(worker, method)(*arguments)
            if id(worker) in self._dead:
                raise LostError("it was killed")
            return found

        return self._calls[id(worker)].submit(run)

    def wait(self, replies: Sequence[Any], seconds: float) -> Sequence[Any]:
        return list(wait(replies, seconds, "FIRST_COMPLETED").done)

    def result(self, reply: Any) -> Any:
        assert isinstance(reply, Future)
        return reply.result(20)

    def end(self, workers: Sequence[Worker], others: Sequence[Worker] = ()) -> None:
        for worker in workers:
            worker.close()
        self.ended += workers
        self.ends.append(len(workers))
        for worker in (*workers, *others):
            self.kill(worker)

    def kill(self, worker: Worker) -> None:
        self._dead.add(id(worker))
        worker._queue.stop()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_worker, "_NEWS_SECONDS", 0.05)


def _cut(items: int, samples: int, most: int) -> list[SampleShard]:
    requests = [SampleRequest(str(item), PROMPT, 2, samples) for item in range(items)]
    return [SampleShard(*each) for each in enumerate(shards(requests, most))]


def _tables(cut: Iterable[SampleShard]) -> dict[int, pa.Table]:
    return dict(draw_here(_Engine(), _Words())(cut, lambda rollouts, tokens: None))


def _workers(cluster: _Threads) -> Workers:
    found = Workers(cluster)
    found.use_model(MODEL)
    return found


def test_a_worker_draws_shards_in_one_stream_and_none_waits_for_the_driver() -> None:
    cluster, cut = _Threads(), _cut(40, 4, 16)
    cluster.prepare = lambda number, engine: setattr(engine, "seconds", 0.002)
    done = list(_workers(cluster).work(1, 0, cut))
    expected = _tables(cut)
    assert {each.number: each.result for each in done} == expected
    assert {each.rollouts for each in done} == {16}
    assert {each.tokens for each in done} == {32}
    ((_, engine),) = cluster.workers
    # The rollouts of a shard begin beside the last ones of that before.
    assert engine.calls == 1 and engine.most_items > 4


def test_workers_are_kept_over_rounds_and_gradients_and_end_once() -> None:
    cluster = _Threads()
    workers = _workers(cluster)
    cut = _cut(16, 4, 8)
    for _ in range(3):
        assert {each.number for each in workers.work(2, 0, cut)} == set(range(len(cut)))
    rollouts = [TokenizedRollout(PROMPT, [1] * n) for n in range(1, 4)]
    gradients = [GradientShard(n, rollouts, [1, 2, 1]) for n in range(5)]
    found = {each.number: each for each in workers.work(2, 0, gradients)}
    assert sorted(found) == list(range(5))
    assert all(each.result.tolist() == [[4, 4], [5, 5], [6, 6]] for each in found.values())
    assert {(each.rollouts, each.tokens) for each in found.values()} == {(4, 15)}
    assert len(cluster.workers) == 2 and not cluster.ended
    # Turns of one kind and the other, over and over.
    for _ in range(20):
        assert len(list(workers.work(2, 0, cut[:3]))) == 3
        assert len(list(workers.work(2, 0, gradients[:2]))) == 2
    assert len(cluster.workers) == 2 and not cluster.ended
    # Others of another size take their place.
    assert len(list(workers.work(2, 1, gradients))) == 5
    assert len(cluster.ended) == 2 and len(cluster.workers) == 4
    workers.end()
    assert len(cluster.ended) == 4
    workers.end()
    assert len(cluster.ended) == 4


def test_no_more_workers_are_started_than_there_are_shards() -> None:
    cluster = _Threads()
    assert len(list(_workers(cluster).work(8, 0, _cut(2, 4, 4)))) == 2
    assert len(cluster.workers) <= 2


@pytest.mark.parametrize("dies_at", [0, 1, 5])
def test_what_a_lost_worker_had_in_hand_is_done_again_with_the_same_result(
    dies_at: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, cut = _Threads(), _cut(40, 4, 8)
    workers = _workers(cluster)
    items = pa.table({"item_id": [str(i) for i in range(40)], "prompt_token_ids": [PROMPT] * 40})
    none, target = np.zeros(40, int), np.full(40, 4)
    counted = [0, 0]

    def draw(some: Iterable[SampleShard], advance: Any) -> Iterator[tuple[int, pa.Table]]:
        for at, done in enumerate(workers.work(2, 0, some)):
            if at == dies_at:
                busy = next(state for state in workers._states if state.shards)
                cluster.kill(busy.worker)
            counted[0] += done.rollouts
            counted[1] += done.tokens
            yield done.number, done.result

    sample_items(tmp_path, items, none, target, draw, 8)
    files = sorted((tmp_path / "rollouts").glob("*.parquet"))
    assert [file.name for file in files] == [f"{n:05d}.parquet" for n in range(len(cut))]
    written = pa.concat_tables([sampling.read_parquet(file) for file in files])
    pairs = list(zip(written["item_id"].to_pylist(), written["sample"].to_pylist(), strict=True))
    assert pairs == [(str(item), sample) for item in range(40) for sample in range(4)]
    assert counted == [160, 320]
    lost = re.search(
        r"a worker was lost, and (\d+) shards? with it: they are done again",
        capsys.readouterr().err,
    )
    # What it had begun, of which less than a shard is missing, and not what was to come.
    assert lost and 1 <= int(lost[1]) <= 8
    assert len(cluster.workers) == 3


def test_workers_that_always_die_end_the_run() -> None:
    cluster = _Threads()
    real = cluster.call

    def dying(worker: Worker, method: str, *arguments: object) -> Hashable:
        if method == "exchange":
            cluster.kill(worker)
        return real(worker, method, *arguments)

    cluster.call = dying  # type: ignore[method-assign]
    with pytest.raises(RunError, match="lost 3 times with nothing done between: it was killed"):
        list(_workers(cluster).work(2, 0, _cut(8, 4, 8)))
    assert len(cluster.workers) <= 7


def test_a_worker_that_fails_as_it_begins_is_replaced_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster, cut = _Threads(), _cut(8, 4, 8)

    def first_fails(number: int, engine: _Engine) -> None:
        engine.fails = RunError("no memory is free") if number == 0 else None

    cluster.prepare = first_fails
    done = list(_workers(cluster).work(1, 0, cut))
    assert {each.number: each.result for each in done} == _tables(cut)
    assert "a worker failed as it began, another takes its place: no memory" in (
        capsys.readouterr().err
    )
    # The first could free what it had loaded before the second loads.
    assert cluster.ended == [cluster.workers[0][0]]


@pytest.mark.parametrize(
    ("error", "started"),
    [(RunError("no memory is free"), 2), (UsageError("no such option"), 1), (KeyError("x"), 2)],
)
def test_what_is_wrong_on_every_worker_is_told(error: Exception, started: int) -> None:
    cluster = _Threads()
    cluster.prepare = lambda number, engine: setattr(engine, "fails", error)
    told = str(error) if not isinstance(error, KeyError) else "a worker failed: KeyError: 'x'"
    with pytest.raises(UsageError if started == 1 else RunError, match=told):
        list(_workers(cluster).work(1, 0, _cut(4, 4, 8)))
    assert len(cluster.workers) == started
    assert len(cluster.ended) == started


def test_work_that_is_broken_off_leaves_no_worker_at_it() -> None:
    cluster = _Threads()
    workers = _workers(cluster)
    running = workers.work(2, 0, _cut(4000, 4, 8))
    while len(workers._states) < 2 or not all(state.shards for state in workers._states):
        next(running)
    running.close()
    assert not workers._states
    # Both stop at the same time, and not one after the other.
    assert cluster.ends == [2]


def _starting_late(number: int) -> tuple[_Threads, Workers]:
    """Two workers, of which one starts when all the work was done by the other."""
    cluster = _Threads()
    cluster.prepare = lambda number, engine: setattr(engine, "seconds", 0.002)
    cluster.starts[number] = threading.Event()
    workers = _workers(cluster)
    assert len(list(workers.work(2, 0, _cut(8, 4, 8)))) == 4
    assert cluster.models[1 - number] == {MODEL} and not cluster.models[number]
    return cluster, workers


@pytest.mark.parametrize("late", [0, 1])
def test_a_worker_that_starts_late_has_the_model_that_is_wanted_then(late: int) -> None:
    cluster, workers = _starting_late(late)
    other = WorkerModel("trained weights", "float32")
    workers.use_model(other)
    cluster.starts[late].set()
    cut = _cut(100, 4, 8)
    assert {done.number for done in workers.work(2, 0, cut)} == set(range(len(cut)))
    assert cluster.models == [{MODEL, other} - ({MODEL} if late == n else set()) for n in (0, 1)]


def test_a_worker_that_starts_late_is_asked_and_then_works() -> None:
    cluster, workers = _starting_late(0)
    cluster.starts[0].set()
    assert workers.ask_one(0, "machine") == describe_machine()
    cut = _cut(100, 4, 8)
    assert {done.number for done in workers.work(2, 0, cut)} == set(range(len(cut)))
    assert cluster.models == [{MODEL}, {MODEL}] and len(cluster.workers) == 2


def test_completions_are_scored_in_parts_and_come_back_in_order(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = np.random.default_rng(0)
    rollouts = [
        TokenizedRollout([4, 5, 6 + n % 3], draws.integers(3, 18, size=1 + n % 5).tolist())
        for n in range(23)
    ]
    cluster = _Threads()
    cluster.policy = tiny_policy
    monkeypatch.setattr(ray_machines, "_connect", lambda address: False)
    monkeypatch.setattr(ray_machines, "_RayCluster", lambda settings, cpus: cluster)
    monkeypatch.setattr(ray_machines.RayExecutor, "_places", lambda self, resource, each: 0)
    monkeypatch.setattr(ray_machines, "_SCORED_TOGETHER", 4)
    executor = ray_machines.RayExecutor(TagConfig(workers=5))
    executor.use_model("weights", "float32")
    found = executor.score(rollouts, temperature=0.7)
    expected = log_probabilities(tiny_policy, rollouts, temperature=0.7)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 1
    assert executor.score([], temperature=0.7).shape == (0,)
    executor.close()
    assert sum(cluster.ends) == len(cluster.workers) >= 1


def test_the_last_shards_go_to_those_who_can_begin_them() -> None:
    cluster, cut = _Threads(), _cut(24, 4, 8)
    slow = threading.Event()

    def prepare(number: int, engine: _Engine) -> None:
        if number == 0:
            engine.gate = slow

    cluster.prepare = prepare
    workers = _workers(cluster)
    numbers = []
    for done in workers.work(2, 0, cut):
        numbers.append(done.number)
        if len(numbers) == len(cut) - 1:
            slow.set()  # The slow one has begun a single shard; the other did the rest.
    assert sorted(numbers) == list(range(len(cut))) and numbers[-1] == 0
