"""What a Ray worker of `--executor ray` does: it holds a model, draws, differentiates and scores.

The driver sends shards and asks for news in one call, `exchange`, over and over; the engine works
in a thread of its own, so it never waits for the driver while it has rollouts in the making. It
asks for the next shard when it has begun the last rollouts of one. What goes wrong comes back as
news too.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from numpy.typing import NDArray

from curate.config import TagConfig, config_from_mapping
from curate.errors import CurateError, RunError, UsageError
from probes.engines.base import Engine
from probes.engines.choose import LoadedModel, ModelFacts
from probes.gradients.batch import TokenizedRollout
from probes.gradients.tap import Adapter
from probes.models.files import resolve_model
from probes.models.load import describe_machine, load_tokenizer
from probes.rescoring.teacher_forcing import log_probabilities
from probes.stages.gradients import GradientShard, differentiate_shard
from probes.stages.sample import NO_SHARD, SampleShard, draw_here


@dataclass(frozen=True)
class ScoreShard:
    """Rollouts whose log-probabilities are asked for, at a temperature."""

    number: int
    rollouts: Sequence[TokenizedRollout]
    temperature: float


Shard = SampleShard | GradientShard | ScoreShard

# How long `exchange` waits for news.
_NEWS_SECONDS = 1.0
# How long what is in the making may take to stop; then the process is killed.
_STOP_SECONDS = 15.0
# The next shard is asked for when so much of one is left to differentiate.
_LEFT = 0.25


@dataclass(frozen=True)
class WorkerModel:
    """Which policy a worker must have.

    Attributes:
        weight_hash: of its files.
        dtype: precision of its weights.
        longest_prompt: tokens of the longest prompt that comes, where known.
    """

    weight_hash: str
    dtype: str
    longest_prompt: int = 0


@dataclass(frozen=True)
class Finished:
    """News: a shard is done.

    Attributes:
        number: of the shard.
        result: the table of its rollouts, its features, or its log-probabilities.
        rollouts, tokens: done for it.
        facts: what drew it, as JSON; empty where nothing was drawn.
    """

    number: int
    result: pa.Table | NDArray[Any]
    rollouts: int
    tokens: int
    facts: str = ""


@dataclass(frozen=True)
class Failed:
    """News: what went wrong, and the exit status that it asks for."""

    error: str
    exit_status: int

    def as_error(self) -> CurateError:
        """The error to raise."""
        return UsageError(self.error) if self.exit_status == 2 else RunError(self.error)


@dataclass(frozen=True)
class Wants:
    """News: another shard can be begun."""


News = Finished | Failed | Wants


class ShardSource(Protocol):
    """Where a worker gets the shards that it draws."""

    def take(self) -> SampleShard | None:
        """Take the next shard to draw; None where none is there."""
        ...

    def ask(self) -> None:
        """Tell that another shard can be begun."""
        ...


class ShardStream:
    """The shards of one stream of requests, each begun beside the last rollouts of those before.

    Another is asked for when the engine has taken all requests, and less than a shard is not
    finished: so no worker takes what others could begin sooner. The stream ends with the last
    rollout, if no other has come by then.

    Args:
        source: of the shards.
        first: the first one.
    """

    def __init__(self, source: ShardSource, first: SampleShard) -> None:
        self._source = source
        self._first = first
        self._unfinished = 0

    def shards(self) -> Iterator[SampleShard]:
        """Yield the shards, and `NO_SHARD` while the next has not come."""
        shard: SampleShard | None = self._first
        while shard:
            self._unfinished += shard.rollouts
            yield shard
            size, has_asked = shard.rollouts, False
            while (shard := self._source.take()) is None:
                if not has_asked and self._unfinished < size:
                    self._source.ask()
                    has_asked = True
                    continue
                if not self._unfinished:
                    return
                yield NO_SHARD

    def advance(self, rollouts: int, tokens: int) -> None:
        """Count finished rollouts."""
        self._unfinished -= rollouts


class ShardQueue:
    """What the driver sent and the engine's thread has not taken yet, and news for the driver."""

    def __init__(self) -> None:
        self._shards: deque[Shard] = deque()
        self._news: deque[News] = deque()
        self._changed = threading.Condition()
        self._is_served = False
        self._is_stopped = False

    # --- The driver's side -------------------------------------------------------------------

    def add(self, shards: Sequence[Shard]) -> bool:
        """Add shards; tell whether somebody has to begin to serve them."""
        with self._changed:
            if shards and not self._is_served:
                # Asked for when there was none.
                self._news = deque(news for news in self._news if not isinstance(news, Wants))
            self._shards.extend(shards)
            begins = bool(self._shards) and not self._is_served and not self._is_stopped
            self._is_served |= begins
            return begins

    def news(self, seconds: float) -> list[News]:
        """Give the news, or what there is after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._news, seconds)
            found = list(self._news)
            self._news.clear()
            return found

    def stop(self) -> None:
        """Take nothing more."""
        with self._changed:
            self._is_stopped = True
            self._shards.clear()

    # --- The engine's side -------------------------------------------------------------------

    def serve(self) -> Iterator[Shard]:
        """Yield every shard that is added, until none is left."""
        while True:
            with self._changed:
                if not self._shards:
                    self._is_served = False
                    return
                shard = self._shards.popleft()
            yield shard

    def take(self) -> SampleShard | None:
        """Take the next shard, if it is there and to be drawn."""
        with self._changed:
            first = self._shards[0] if self._shards else None
            if not isinstance(first, SampleShard):
                return None
            self._shards.popleft()
            return first

    def ask(self) -> None:
        """Ask for another shard."""
        self.tell(Wants())

    def tell(self, news: News) -> None:
        """Add news."""
        with self._changed:
            self._news.append(news)
            self._changed.notify_all()

    def end_with(self, news: Failed) -> None:
        """Tell what went wrong; nobody serves any more."""
        self.tell(news)
        with self._changed:
            self._is_served = False


class Worker:
    """A worker with the model of a run, which it loads once.

    It is made of the settings alone, so that it starts even where they are wrong: an error here
    would be one of Ray.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._wanted: WorkerModel | None = None
        self._loaded: LoadedModel | None = None
        self._engine: Engine | None = None
        self._tokenizer: Any = None
        self._queue = ShardQueue()
        # One thread loads, works and frees: vLLM binds threads to the one that it is loaded in.
        self._thread = ThreadPoolExecutor(1, "engine")

    def machine(self) -> dict[str, str]:
        """What models run on here: `probes.models.load.describe_machine`."""
        return describe_machine()

    def use(self, model: WorkerModel) -> None:
        """Say which policy there must be."""
        self._wanted = model

    def check(self) -> ModelFacts | Failed:
        """Load what there is to load, so that a wrong option or name shows before any sampling."""
        return self._thread.submit(self._check).result()

    def _check(self) -> ModelFacts | Failed:
        try:
            config, model = self._model()
            return model.check(Adapter.from_config(config))
        except Exception as error:  # noqa: BLE001
            return _failure(error)

    def exchange(self, shards: Sequence[Shard]) -> list[News]:
        """Take shards to do, if any; give the news as soon as there is some, or after a while."""
        if self._queue.add(shards):
            self._thread.submit(self._serve)
        return self._queue.news(_NEWS_SECONDS)

    def close(self) -> None:
        """Stop, and free what is loaded: the next worker may want this GPU."""
        self._queue.stop()
        if self._engine:
            self._engine.stops_at = time.monotonic()
        with suppress(TimeoutError):
            self._thread.submit(self._free).result(_STOP_SECONDS)

    def _free(self) -> None:
        if self._loaded:
            self._loaded.close()

    def _model(self) -> tuple[TagConfig, LoadedModel]:
        """Find the model of the run on this machine, and make sure that it is the run's."""
        config = config_from_mapping(self._settings, "options")
        assert self._wanted is not None
        if self._loaded is None:
            files = resolve_model(config.model)
            wanted = self._wanted
            _check_same(files.weight_hash, wanted.weight_hash, f"{config.model} has other weights")
            _check_same(describe_machine()["dtype"], wanted.dtype, "another precision is chosen")
            self._loaded = LoadedModel(config, files)
        self._loaded.longest_prompt = self._wanted.longest_prompt
        return config, self._loaded

    def _serve(self) -> None:
        try:
            for shard in self._queue.serve():
                if isinstance(shard, SampleShard):
                    self._draw(shard)
                elif isinstance(shard, GradientShard):
                    self._differentiate(shard)
                else:
                    self._score(shard)
        except Exception as error:  # noqa: BLE001
            self._queue.end_with(_failure(error))

    def _draw(self, first: SampleShard) -> None:
        """Draw a shard and those that follow, in one stream."""
        config, model = self._model()
        self._engine = model.engine()
        facts = json.dumps({**self._engine.facts(), "why": model.why})
        if self._tokenizer is None:
            trusts = config.trust_remote_code
            self._tokenizer = load_tokenizer(model.files, trust_remote_code=trusts)
        stream = ShardStream(self._queue, first)
        draw = draw_here(self._engine, self._tokenizer)
        for number, table in draw(stream.shards(), stream.advance):
            tokens = len(table["completion_token_ids"].combine_chunks().values)
            self._queue.tell(Finished(number, table, table.num_rows, tokens, facts))

    def _differentiate(self, shard: GradientShard) -> None:
        config, model = self._model()
        probe = model.probe(Adapter.from_config(config))
        done, wanted = [0, 0], sum(shard.weights)
        has_asked = False

        def advance(rollouts: int, tokens: int) -> None:
            nonlocal has_asked
            done[0] += rollouts
            done[1] += tokens
            if not has_asked and wanted - done[0] <= _LEFT * wanted:
                self._queue.ask()
                has_asked = True

        features = differentiate_shard(shard, probe, advance)
        self._queue.tell(Finished(shard.number, features, done[0], done[1]))
        if not has_asked:  # Nothing of it could be differentiated.
            self._queue.ask()

    def _score(self, shard: ScoreShard) -> None:
        _, model = self._model()
        found = log_probabilities(model.policy(), shard.rollouts, temperature=shard.temperature)
        tokens = sum(rollout.tokens for rollout in shard.rollouts)
        self._queue.tell(Finished(shard.number, found, len(shard.rollouts), tokens))
        self._queue.ask()


def _check_same(found: str, wanted: str, what: str) -> None:
    if found != wanted:
        raise UsageError(f"{what} on a worker: {found[:12]}, not {wanted[:12]}")


def _failure(error: Exception) -> Failed:
    if isinstance(error, CurateError):
        return Failed(str(error), error.exit_status)
    return Failed(f"a worker failed: {type(error).__name__}: {error}", RunError.exit_status)
