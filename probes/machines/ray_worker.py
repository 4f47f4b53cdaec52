"""What a Ray worker of `--executor ray` does: it loads an engine or a probe once, then does shards.

A shard comes as one row of Arrow columns and goes back as one, its table or array as bytes. What
goes wrong comes back as a row too, since Ray Data drops a batch whose call raised an error.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.config import TagConfig, config_from_mapping
from curate.errors import CurateError, RunError, UsageError
from probes.engines.base import SampleRequest
from probes.engines.choose import LoadedModel
from probes.gradients.batch import TokenizedRollout
from probes.gradients.tap import Adapter
from probes.models.files import resolve_model
from probes.models.load import describe_machine, load_tokenizer
from probes.stages.gradients import GradientShard, differentiate_shard
from probes.stages.sample import SampleShard, draw_shard

Row = dict[str, Any]
_TOKENS = pa.list_(pa.list_(pa.int32()))
_RESULT = pa.schema(
    [
        ("number", pa.int64()),
        ("data", pa.large_binary()),
        ("rollouts", pa.int64()),
        ("tokens", pa.int64()),
        ("facts", pa.string()),
        ("error", pa.string()),
        ("exit_status", pa.int64()),
    ]
)


def check_model(settings: Mapping[str, Any], model: Mapping[str, str]) -> Row:
    """Load what a worker loads, so that a wrong option or name shows before anything is sampled.

    Returns:
        the fields of `ModelFacts`; or `error` and `exit_status`.
    """
    try:
        config, loaded = _load_model(settings, model)
        return dataclasses.asdict(loaded.check(Adapter.from_config(config)))
    except Exception as error:  # noqa: BLE001
        return _failure(error)


def _load_model(
    settings: Mapping[str, Any], model: Mapping[str, str]
) -> tuple[TagConfig, LoadedModel]:
    """Find the model of a run on this machine, and make sure that it is the run's."""
    config = config_from_mapping(settings, "options")
    files = resolve_model(config.model)
    _check_same(files.weight_hash, model["weight_hash"], f"{config.model} has other weights")
    _check_same(describe_machine()["dtype"], model["dtype"], "another precision is chosen")
    return config, LoadedModel(config, files)


def sample_row(shard: SampleShard) -> pa.Table:
    """A shard to draw, as one row."""
    requests = shard.requests
    return pa.table(
        {
            "number": [shard.number],
            "item_id": [[request.item_id for request in requests]],
            "prompt_token_ids": pa.array([[r.prompt_token_ids for r in requests]], _TOKENS),
            "first_sample": [[request.first_sample for request in requests]],
            "samples": [[request.samples for request in requests]],
        }
    )


def gradient_row(shard: GradientShard) -> pa.Table:
    """A shard to differentiate, as one row."""
    prompts, completions = (
        pa.array([[getattr(rollout, name) for rollout in shard.rollouts]], _TOKENS)
        for name in ("prompt_token_ids", "completion_token_ids")
    )
    return pa.table(
        {
            "number": [shard.number],
            "prompts": prompts,
            "completions": completions,
            "weights": pa.array([list(shard.weights)], pa.list_(pa.int64())),
        }
    )


def rollouts_of(data: bytes) -> pa.Table:
    """The table of rollouts that a worker sent."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def features_of(data: bytes) -> NDArray[np.float32]:
    """The features that a worker sent, (rollouts, dim)."""
    array: NDArray[np.float32] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


class _Worker:
    """A worker with the model of a run.

    Args:
        settings: of the run.
        model: `weight_hash` and `dtype` of its policy.
    """

    def __init__(self, settings: Mapping[str, Any], model: Mapping[str, str]) -> None:
        # An error here would have Ray start the worker again and again: it waits for the first row.
        self._failure: Row | None = None
        try:
            self._load(*_load_model(settings, model))
        except Exception as error:  # noqa: BLE001
            self._failure = _failure(error)

    def _load(self, config: TagConfig, model: LoadedModel) -> None:
        raise NotImplementedError

    def _work(self, row: Row) -> Row:
        raise NotImplementedError

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Do one row."""
        (row,) = batch.to_pylist()
        try:
            result = self._failure or self._work(row)
        except Exception as error:  # noqa: BLE001
            result = _failure(error)
        return pa.Table.from_pylist([result | {"number": row["number"]}], schema=_RESULT)


class Sampler(_Worker):
    """Draws shards with an engine of its own."""

    def _load(self, config: TagConfig, model: LoadedModel) -> None:
        self._engine = model.engine()
        self._facts = json.dumps({**self._engine.facts(), "why": model.why})
        self._tokenizer = load_tokenizer(model.files, trust_remote_code=config.trust_remote_code)

    def _work(self, row: Row) -> Row:
        requests = [
            SampleRequest(*each)
            for each in zip(
                *(row["item_id"], row["prompt_token_ids"], row["first_sample"], row["samples"]),
                strict=True,
            )
        ]
        done = _Count()
        table = draw_shard(requests, self._engine, self._tokenizer, done.add)
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return done.row(sink.getvalue()) | {"facts": self._facts}

    def __del__(self) -> None:
        """Free the GPU before the next worker loads there; Ray calls it as an actor ends."""
        with suppress(Exception):  # What was never loaded has nothing to close.
            self._engine.close()


class Differentiator(_Worker):
    """Differentiates shards with a policy of its own."""

    def _load(self, config: TagConfig, model: LoadedModel) -> None:
        self._probe = model.probe(Adapter.from_config(config))

    def _work(self, row: Row) -> Row:
        rollouts = [
            TokenizedRollout(*each) for each in zip(row["prompts"], row["completions"], strict=True)
        ]
        done = _Count()
        shard = GradientShard(row["number"], rollouts, row["weights"])
        sink = io.BytesIO()
        np.save(sink, differentiate_shard(shard, self._probe, done.add), allow_pickle=False)
        return done.row(sink.getvalue())


class _Count:
    """Counts rollouts and tokens of a shard."""

    def __init__(self) -> None:
        self.rollouts = self.tokens = 0

    def add(self, rollouts: int, tokens: int) -> None:
        self.rollouts += rollouts
        self.tokens += tokens

    def row(self, data: bytes) -> Row:
        return {"data": data, "rollouts": self.rollouts, "tokens": self.tokens}


def _check_same(found: str, wanted: str, what: str) -> None:
    if found != wanted:
        raise UsageError(f"{what} on a worker: {found[:12]}, not {wanted[:12]}")


def _failure(error: Exception) -> Row:
    if isinstance(error, CurateError):
        return {"error": str(error), "exit_status": error.exit_status}
    text = f"a worker failed: {type(error).__name__}: {error}"
    return {"error": text, "exit_status": RunError.exit_status}
