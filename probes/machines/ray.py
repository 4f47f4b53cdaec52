"""`--executor ray`: sampling and gradients on the workers of a Ray cluster.

Workers are actors, each with an engine: they are kept over the rounds of a run, and no task of
theirs is tried again by Ray itself, so that what a lost one had in hand goes to the others at once.
Who does what stands in `probes.machines.workers`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.errors import RunError, UsageError
from curate.progress import say
from probes.engines.choose import ModelFacts
from probes.gradients.batch import TokenizedRollout
from probes.machines.ray_worker import Failed, ScoreShard, Worker, WorkerModel
from probes.machines.workers import LostError, Workers
from probes.stages.gradients import GradientShard
from probes.stages.sample import Advance, SampleShard

_CONNECT_SECONDS = 10
# How long a worker may take to free what it holds; then it is killed.
_END_SECONDS = 20
# Rollouts that are scored by one worker at least: those of an item share its prompt.
_SCORED_TOGETHER = 64
# Options of an engine that go by the memory that is free.
_BY_MEMORY = ("batch_tokens", "max_rows")


class RayExecutor:
    """Does the shards of a run on a Ray cluster.

    Args:
        config: the settings of the run.

    Raises:
        UsageError: Ray is not installed, the cluster cannot be reached or has no room.
    """

    def __init__(self, config: TagConfig) -> None:
        self._config = config
        self._connected = _connect(config.ray_address)
        self._cpus = config.ray.get("cpus_per_worker", 1)
        self._gpus = config.ray.get("gpus_per_worker", 1 if self._places("GPU", 1) else 0)
        self._workers = config.workers or self._room()
        self._all = Workers(_RayCluster(_settings(config), self._cpus))
        self._model = WorkerModel("", "")

    def release(self) -> None:
        """End the workers; they are started again if there is more to do."""
        self._all.end()

    def close(self) -> None:
        """End the workers and leave the cluster; one that was started here ends."""
        self.release()
        if self._connected:
            import ray

            ray.shutdown()
            self._connected = False

    def _places(self, resource: str, each: float) -> int:
        """How many workers that take so much of a resource find room."""
        import ray

        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return int(resources.get(resource, 0) // each)

    def _room(self) -> int:
        room = self._places("CPU", self._cpus)
        if self._gpus:
            room = min(room, self._places("GPU", self._gpus))
        if not room:
            raise UsageError(
                f"the Ray cluster has no room for a worker of {self._cpus:g} CPUs and "
                f"{self._gpus:g} GPUs: set gpus_per_worker under [ray], or give --workers if it "
                "grows by itself"
            )
        return room

    def machine(self) -> dict[str, str]:
        """Ask a worker what models run on there: `probes.models.load.describe_machine`.

        Raises:
            RunError: no worker could be started, or it lacks our packages.
        """
        found: dict[str, str] = self._all.ask_one(self._gpus, "machine")
        say(
            f"Ray: {self._workers} workers of {self._cpus:g} CPUs and {self._gpus:g} GPUs, on "
            f"{found['name']}"
        )
        return found

    def use_model(self, weight_hash: str, dtype: str) -> None:
        """Say which policy the workers must have, and in which precision."""
        self._use(WorkerModel(weight_hash, dtype))

    def _use(self, model: WorkerModel) -> None:
        self._model = model
        self._all.use_model(model)

    def check_model(self) -> ModelFacts:
        """Load engine and policy on a worker; return what it found.

        Raises:
            UsageError: it cannot be loaded, or an option is wrong.
        """
        found: ModelFacts | Failed = self._all.ask_one(self._gpus, "check")
        if isinstance(found, Failed):
            raise found.as_error()
        return found

    def draw(
        self, record: Callable[[dict[str, Any]], None], longest_prompt: int
    ) -> Callable[[Iterable[SampleShard], Advance], Iterator[tuple[int, pa.Table]]]:
        """Draw shards.

        Args:
            record: is told what draws them.
            longest_prompt: tokens of the longest prompt that will be sampled.
        """

        def draw(shards: Iterable[SampleShard], advance: Advance) -> Iterator[tuple[int, pa.Table]]:
            facts = ""
            self._use(dataclasses.replace(self._model, longest_prompt=longest_prompt))
            for done in self._all.work(self._workers, self._gpus, shards):
                if facts and not _is_same_engine(facts, done.facts):
                    raise RunError(f"the workers use different engines: {facts}, {done.facts}")
                if not facts:
                    facts = done.facts
                    record(json.loads(facts))
                advance(done.rollouts, done.tokens)
                assert isinstance(done.result, pa.Table)
                yield done.number, done.result

        return draw

    def differentiate(
        self, shards: Iterable[GradientShard], advance: Advance
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Differentiate shards."""
        workers, gpus = self._gradient_workers()
        for done in self._all.work(workers, gpus, shards):
            advance(done.rollouts, done.tokens)
            assert isinstance(done.result, np.ndarray)
            yield done.number, done.result

    def score(
        self, rollouts: Sequence[TokenizedRollout], *, temperature: float
    ) -> NDArray[np.float64]:
        """Give the log-probabilities of completions: `probes.stages.gold.Score`."""
        workers, gpus = self._gradient_workers()
        parts = min(workers, -(-len(rollouts) // _SCORED_TOGETHER))
        bounds = np.linspace(0, len(rollouts), parts + 1).astype(int).tolist()
        shards = (
            ScoreShard(number, rollouts[first:end], temperature)
            for number, (first, end) in enumerate(pairwise(bounds))
        )
        found = {done.number: done.result for done in self._all.work(workers, gpus, shards)}
        return np.concatenate([np.zeros(0), *(found[number] for number in range(parts))])

    def _gradient_workers(self) -> tuple[int, float]:
        """How many workers differentiate, and GPUs of each.

        Several GPUs that sample together, by tensor parallelism, differentiate one by one.
        """
        if self._gpus <= 1:
            return self._workers, self._gpus
        gpus = self._config.ray.get("gpus_per_gradient_worker", 1)
        room = min(self._places("CPU", self._cpus), self._places("GPU", gpus))
        return max(self._workers, min(room, int(self._workers * self._gpus // gpus))), gpus


class _RayCluster:
    """Starts workers as actors of Ray: `probes.machines.workers.Cluster`.

    Args:
        settings: of the run.
        cpus: of a worker.
    """

    def __init__(self, settings: Mapping[str, Any], cpus: float) -> None:
        self._settings = settings
        self._cpus = cpus

    def start(self, gpus: float) -> Any:
        """Start a worker of so many GPUs, as soon as there is room."""
        import ray

        # Whatever is lost is started and done again by us, who know what it had in hand.
        actor = ray.remote(max_restarts=0, max_task_retries=0)(Worker)
        return actor.options(num_cpus=self._cpus, num_gpus=gpus).remote(self._settings)

    def call(self, worker: Any, method: str, *arguments: object) -> Hashable:
        """Call a method of a worker."""
        reply: Hashable = getattr(worker, method).remote(*arguments)
        return reply

    def wait(self, replies: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        """Wait for the first of some replies; return those that are there."""
        import ray

        asked: list[Any] = list(replies)
        if not ray.wait(asked, timeout=seconds)[0]:
            return []
        found: list[Hashable] = ray.wait(asked, num_returns=len(asked), timeout=0)[0]
        return found

    def result(self, reply: Hashable) -> Any:
        """Give what a call returned, as soon as it is there.

        Raises:
            LostError: the worker is gone.
            RunError: the method raised an error.
        """
        import ray

        try:
            return ray.get(reply)  # type: ignore[call-overload]
        except ray.exceptions.RayTaskError as error:
            raise RunError(f"a Ray worker failed: {_last_line(error)}") from error
        except ray.exceptions.RayError as error:
            raise LostError(_last_line(error)) from error

    def end(self, workers: Sequence[Any], others: Sequence[Any] = ()) -> None:
        """End workers: some free what they hold first, others have nothing or cannot answer."""
        import ray

        if not ray.is_initialized():
            return
        replies = [worker.close.remote() for worker in workers]
        if replies:
            ray.wait(replies, num_returns=len(replies), timeout=_END_SECONDS)
        for worker in (*workers, *others):
            ray.kill(worker)


def _is_same_engine(first: str, second: str) -> bool:
    """Whether what draws is the same, however much it draws at once."""
    found = [json.loads(first), json.loads(second)]
    for facts in found:
        facts["options"] = {
            name: value for name, value in facts["options"].items() if name not in _BY_MEMORY
        }
    return bool(found[0] == found[1])


def _settings(config: TagConfig) -> dict[str, Any]:
    """The settings as `config_from_mapping` takes them; workers run in another folder."""
    model = Path(config.model).expanduser()
    return dataclasses.asdict(
        config.replace(model=str(model.resolve())) if model.exists() else config
    )


def _connect(address: str) -> bool:
    """Connect to a cluster, or start one here; tell whether there was no connection before."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--executor ray needs Ray: pip install 'rl-curate[ray]' installs it")
    # It would tell its makers of every run.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    is_new = not ray.is_initialized()
    if is_new:
        address = address or os.environ.get("RAY_ADDRESS", "")
        _check_reachable(address)
        is_main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGTERM)
        # Without an address Ray would look for whatever cluster was here last.
        options: dict[str, Any] = {"address": address or "local"}
        if not address:
            options["include_dashboard"] = False
        try:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(f"no Ray cluster at {address or 'this machine'}: {reason}") from error
        finally:
            if is_main:
                signal.signal(signal.SIGTERM, handler)  # Ray's own would hide an interruption.
    return is_new


def _check_reachable(address: str) -> None:
    """Refuse an address at which nobody answers; Ray would try for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return  # "auto", "local"
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"no Ray cluster at {address}: {error}") from error


def _last_line(error: Exception) -> str:
    """One line of an error of Ray: its last one names what was raised on the worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
