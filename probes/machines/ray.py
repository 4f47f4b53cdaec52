"""`--executor ray`: sampling and gradients on the workers of a Ray cluster.

Shards go out as rows of Ray Data through an actor pool (`map_batches`), a row a shard and an engine
an actor, in waves: so the driver never holds a whole round, and what a lost worker or node had in
hand is in the next wave. Ray Data's own stage for vLLM keeps only the first of n samples
(ray-project/ray#53396), and its pools wait for a lost actor that finds no place any more: here its
task fails, and the other actors go on.
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
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.errors import RunError, UsageError
from curate.progress import say
from probes.engines.choose import ModelFacts
from probes.machines.ray_worker import (
    Differentiator,
    Row,
    Sampler,
    check_model,
    features_of,
    gradient_row,
    rollouts_of,
    sample_row,
)
from probes.models.load import describe_machine
from probes.stages.gradients import GradientShard
from probes.stages.sample import Advance, SampleShard

Shard = TypeVar("Shard", SampleShard, GradientShard)

# Shards of a worker in a wave: enough that loading the model is little beside them.
_SHARDS_AT_ONCE = 16
_CONNECT_SECONDS = 10
# Waves in a row without one finished shard.
_FRUITLESS_WAVES = 3


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
        self._settings = _settings(config)
        self._model: dict[str, str] = {}

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
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
        found: dict[str, str] = self._call(describe_machine)
        say(
            f"Ray: {self._workers} workers of {self._cpus:g} CPUs and {self._gpus:g} GPUs, on "
            f"{found['name']}"
        )
        return found

    def use_model(self, weight_hash: str, dtype: str) -> None:
        """Say which policy the workers must have, and in which precision."""
        self._model = {"weight_hash": weight_hash, "dtype": dtype}

    def check_model(self) -> ModelFacts:
        """Load engine and policy on a worker; return what it found.

        Raises:
            UsageError: it cannot be loaded, or an option is wrong.
        """
        found: Row = self._call(check_model, self._settings, self._model)
        _raise_failure(found)
        return ModelFacts(**found)

    def _call(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Call a function on a worker."""
        import ray

        remote = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus)(function)
        try:
            return ray.get(remote.remote(*arguments))
        except ray.exceptions.RayError as error:
            raise RunError(_start_failed(error)) from error

    def draw(
        self, record: Callable[[dict[str, Any]], None]
    ) -> Callable[[Iterable[SampleShard], Advance], Iterator[tuple[int, pa.Table]]]:
        """Draw shards; `record` is told what draws them."""

        def draw(shards: Iterable[SampleShard], advance: Advance) -> Iterator[tuple[int, pa.Table]]:
            facts = ""
            for number, result in self._work(Sampler, shards, sample_row, advance):
                if facts not in ("", result["facts"]):
                    raise RunError(f"the workers use different engines: {facts}, {result['facts']}")
                if not facts:
                    facts = result["facts"]
                    record(json.loads(facts))
                yield number, rollouts_of(result["data"])

        return draw

    def differentiate(
        self, shards: Iterable[GradientShard], advance: Advance
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Differentiate shards."""
        for number, result in self._work(Differentiator, shards, gradient_row, advance):
            yield number, features_of(result["data"])

    def _work(
        self,
        worker: type,
        shards: Iterable[Shard],
        to_row: Callable[[Shard], pa.Table],
        advance: Advance,
    ) -> Iterator[tuple[int, Row]]:
        """Have the workers do shards, wave by wave; what was lost in one goes into the next."""
        waiting = ((shard.number, to_row(shard)) for shard in shards)
        lost: dict[int, pa.Table] = {}
        fruitless = 0
        workers, _ = self._size(worker)
        while wave := lost | dict(islice(waiting, workers * _SHARDS_AT_ONCE - len(lost))):
            left = dict(wave)
            for result in self._wave(worker, list(wave.values())):
                _raise_failure(result)
                del left[result["number"]]
                advance(result["rollouts"], result["tokens"])
                yield result["number"], result
            lost = left
            fruitless = fruitless + 1 if len(lost) == len(wave) else 0
            if fruitless == _FRUITLESS_WAVES:
                raise RunError(
                    f"{len(lost)} shards were lost {fruitless} times in a row: the workers die; "
                    "see the logs of Ray"
                )
            if lost:
                say(f"workers were lost, and {len(lost)} shards with them: they are done again")

    def _size(self, worker: type) -> tuple[int, float]:
        """How many workers of a kind there are, and GPUs of each.

        Several GPUs that sample together, by tensor parallelism, differentiate one by one.
        """
        if worker is not Differentiator or self._gpus <= 1:
            return self._workers, self._gpus
        gpus = self._config.ray.get("gpus_per_gradient_worker", 1)
        room = min(self._places("CPU", self._cpus), self._places("GPU", gpus))
        return max(self._workers, min(room, int(self._workers * self._gpus // gpus))), gpus

    def _wave(self, worker: type, rows: list[pa.Table]) -> Iterator[Row]:
        """Run rows through a pool of actors; yield what comes back, in the order in which it does.

        A row whose worker died does not come back.
        """
        import ray
        from ray.data import ActorPoolStrategy, from_arrow_refs

        workers, gpus = self._size(worker)
        pool = ActorPoolStrategy(size=min(workers, len(rows)), max_tasks_in_flight_per_actor=1)
        references: list[Any] = [ray.put(row) for row in rows]
        dataset = from_arrow_refs(references).map_batches(
            worker,
            fn_constructor_args=(self._settings, self._model),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=pool,
            num_cpus=self._cpus,
            num_gpus=gpus,
            # An actor is started again where it finds a place; what it had in hand fails at once.
            max_restarts=-1,
            max_task_retries=0,
        )
        try:
            batch: Any
            for batch in dataset.iter_batches(
                batch_size=1, batch_format="pyarrow", prefetch_batches=0
            ):
                yield from batch.to_pylist()
        except (ray.exceptions.ObjectLostError, ray.exceptions.OwnerDiedError):
            return  # Finished, and lost with its node before it was here.
        except ray.exceptions.RayError as error:
            raise RunError(_start_failed(error)) from error


def _settings(config: TagConfig) -> dict[str, Any]:
    """The settings as `config_from_mapping` takes them; workers run in another folder."""
    model = Path(config.model).expanduser()
    return dataclasses.asdict(
        config.replace(model=str(model.resolve())) if model.exists() else config
    )


def _raise_failure(result: Row) -> None:
    """Raise what went wrong on a worker, if something did."""
    if result.get("error") is not None:
        raise (
            UsageError(result["error"]) if result["exit_status"] == 2 else RunError(result["error"])
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
    _quieten()
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


def _quieten() -> None:
    """Keep Ray Data from the terminal: our progress lines say what there is to say."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # A lost shard is not the end.
    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL + 1)


def _start_failed(error: Exception) -> str:
    """One line of an error of Ray: its last one names what was raised on the worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"a Ray worker could not be started: {lines[-1] if lines else type(error).__name__}"
