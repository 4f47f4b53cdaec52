"""Who draws and differentiates the shards of a run elsewhere, and what is done when one is lost.

Workers are started when there is work for them and kept, with what they have loaded, until they are
ended or the next work asks for others. Each has the shards that it has begun: those of a lost one
go to whoever can begin another first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from curate.errors import RunError
from curate.progress import say
from probes.machines.ray_worker import Failed, Finished, News, Shard, WorkerModel

# Without one finished shard, all workers that are at work may be lost so often.
_FRUITLESS = 3
_WAIT_SECONDS = 1.0


class LostError(Exception):
    """A worker is gone, with all that it had in hand; says why."""


class Cluster(Protocol):
    """What starts workers and calls their methods."""

    def start(self, gpus: float) -> Any:
        """Start a worker of so many GPUs, as soon as there is room."""
        ...

    def call(self, worker: Any, method: str, *arguments: object) -> Hashable:
        """Call a method of a `probes.machines.ray_worker.Worker`; calls of one keep their order."""
        ...

    def wait(self, replies: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        """Wait for the first of some replies; return those that are there."""
        ...

    def result(self, reply: Hashable) -> Any:
        """Give what a call returned, as soon as it is there.

        Raises:
            LostError: the worker is gone.
            RunError: the method raised an error.
        """
        ...

    def end(self, workers: Sequence[Any], others: Sequence[Any] = ()) -> None:
        """End workers: some free what they hold first, others have nothing or cannot answer."""
        ...


@dataclass(eq=False)
class _WorkerState:
    """A worker, and what it is at.

    Attributes:
        reply: of the call that it is at, if any.
        has_answered: it could be started.
        is_ready: it knows which model is wanted.
        wants: it can begin another shard.
        has_finished: a shard of the present work.
        is_second: it replaces one that failed.
        shards: begun and not finished, by number.
    """

    worker: Any
    reply: Hashable | None = None
    has_answered: bool = False
    is_ready: bool = False
    wants: bool = True
    has_finished: bool = False
    is_second: bool = False
    shards: dict[int, Shard] = field(default_factory=dict)


@dataclass
class _Work:
    """Shards to do, of which some were taken ahead or given back."""

    shards: Iterator[Shard]
    ahead: deque[Shard] = field(default_factory=deque)
    lost: float = 0.0
    """How often, since the last finished shard, all that were at work were lost."""

    def has(self, count: int) -> bool:
        """Whether there are so many more shards."""
        while len(self.ahead) < count:
            shard = next(self.shards, None)
            if shard is None:
                return False
            self.ahead.append(shard)
        return True


class Workers:
    """The workers of a run.

    Args:
        cluster: starts them.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._states: list[_WorkerState] = []
        self._gpus = 0.0
        self._model: WorkerModel | None = None

    def use_model(self, model: WorkerModel) -> None:
        """Say which policy the workers must have."""
        if model != self._model:
            self._model = model
            for state in self._states:
                # A call that is still out told of the model before.
                state.is_ready, state.reply = False, None

    def ask_one(self, gpus: float, method: str) -> Any:
        """Call a method of a worker, of one more where the first is lost.

        Raises:
            RunError: both were lost, or it raised an error.
        """
        self._have(gpus)
        for tries_left in (1, 0):
            if not self._states:
                self._states.append(_WorkerState(self._cluster.start(gpus)))
            state = self._states[0]
            try:
                if self._model and not state.is_ready:
                    state.reply = None  # A `use` that is still out: this one stands for it.
                    self._cluster.result(self._cluster.call(state.worker, "use", self._model))
                    state.is_ready = True
                found = self._cluster.result(self._cluster.call(state.worker, method))
                state.has_answered = True
                return found
            except LostError as error:
                self._drop(state)
                if not tries_left:
                    raise RunError(f"a Ray worker could not be started: {error}") from error
        raise AssertionError  # The second try returns or raises.

    def work(self, most: int, gpus: float, shards: Iterable[Shard]) -> Iterator[Finished]:
        """Have shards done; yield each as it is finished.

        Args:
            most: workers.
            gpus: of each.
            shards: taken as workers can begin them.

        Raises:
            UsageError: the model or an option is wrong on a worker.
            RunError: a worker fails twice before its first shard, or later; or the workers die.
        """
        self._have(gpus)
        work = _Work(iter(shards))
        for state in self._states:
            state.wants, state.has_finished, state.is_second = True, False, False
        try:
            while work.has(1) or any(state.shards for state in self._states):
                self._hand_out(work)
                self._start(work, most, gpus)
                at_work = {state.reply: state for state in self._states if state.reply is not None}
                for reply in self._cluster.wait(list(at_work), _WAIT_SECONDS):
                    for news in self._news(at_work[reply], work):
                        state = at_work[reply]
                        if isinstance(news, Failed):
                            self._replace(state, news, work, gpus)
                            break
                        if isinstance(news, Finished):
                            del state.shards[news.number]
                            state.has_finished, work.lost = True, 0.0
                            yield news
                        else:
                            state.wants = True
        finally:
            # Where it was broken off. All at once: each may take long to stop.
            busy = [state for state in self._states if state.shards]
            self._states = [state for state in self._states if not state.shards]
            if busy:
                self._cluster.end([state.worker for state in busy])

    def end(self) -> None:
        """End all workers."""
        states, self._states = self._states, []
        there = [state.worker for state in states if state.has_answered]
        self._cluster.end(there, [state.worker for state in states if not state.has_answered])

    def _have(self, gpus: float) -> None:
        """End workers of another size: they hold what is wanted now."""
        if gpus != self._gpus:
            self.end()
            self._gpus = gpus

    def _hand_out(self, work: _Work) -> None:
        """Give every worker that can begin one a shard, and hear of the others."""
        free = [state for state in self._states if state.is_ready and state.reply is None]
        for state in sorted(free, key=lambda state: len(state.shards)):
            given: list[Shard] = []
            if state.wants and work.has(1):
                given = [work.ahead.popleft()]
                state.shards[given[0].number] = given[0]
                state.wants = False
            if state.shards:
                state.reply = self._cluster.call(state.worker, "exchange", given)

    def _start(self, work: _Work, most: int, gpus: float) -> None:
        """Start workers for shards that none can begin yet."""
        starting = sum(not state.is_ready for state in self._states)
        while len(self._states) < most and work.has(starting + 1):
            self._states.append(_WorkerState(self._cluster.start(gpus)))
            starting += 1
        for state in self._states:
            if not state.is_ready and state.reply is None:
                state.reply = self._cluster.call(state.worker, "use", self._model)

    def _news(self, state: _WorkerState, work: _Work) -> list[News]:
        """What a worker has answered."""
        reply, state.reply = state.reply, None
        assert reply is not None
        try:
            found = self._cluster.result(reply)
        except LostError as error:
            self._lose(state, work, str(error))
            return []
        if not state.is_ready:
            state.is_ready = state.has_answered = True
            return []
        news: list[News] = found
        return news

    def _lose(self, state: _WorkerState, work: _Work, why: str) -> None:
        """Have done again what a lost worker had in hand."""
        at_work = sum(bool(each.shards) or not each.is_ready for each in self._states)
        work.lost += 1 / max(at_work, 1)
        count = len(state.shards)
        self._give_back(state, work)
        self._drop(state)
        if work.lost > _FRUITLESS - 0.01:
            raise RunError(
                f"the workers were lost {_FRUITLESS} times with nothing done between: {why}; see "
                "the logs of Ray"
            )
        if count:
            shards = "1 shard" if count == 1 else f"{count} shards"
            say(f"a worker was lost, and {shards} with it: they are done again")

    def _replace(self, state: _WorkerState, news: Failed, work: _Work, gpus: float) -> None:
        """Give one that failed as it began a second try, such as where memory was not free yet.

        Raises:
            CurateError: it is not for a second try.
        """
        if news.exit_status == 2 or state.has_finished or state.is_second:
            raise news.as_error()
        say(f"a worker failed as it began, another takes its place: {news.error}")
        self._give_back(state, work)
        self._drop(state, kindly=True)
        self._states.append(_WorkerState(self._cluster.start(gpus), is_second=True))

    def _give_back(self, state: _WorkerState, work: _Work) -> None:
        work.ahead.extendleft(state.shards[number] for number in sorted(state.shards, reverse=True))
        state.shards = {}

    def _drop(self, state: _WorkerState, *, kindly: bool = False) -> None:
        self._states.remove(state)
        self._cluster.end([state.worker] if kindly else [], [] if kindly else [state.worker])
