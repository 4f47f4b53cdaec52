"""`--executor ray` on a real cluster of two nodes: the same run, and lost workers cost no rollout.

One cluster serves the whole module. Its head node has no room for workers; the two others have room
for one each, and one of them is killed on the way.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from curate.errors import UsageError
from probes import tagging
from probes.machines import ray as ray_machines
from probes.machines import ray_worker
from probes.machines.ray_worker import Worker
from probes.models import load as models
from probes.models.load import describe_machine
from tests.ray_workers import GATE, use_float32
from tests.tag_runs import (
    ROOT,
    additions,
    assert_same_rollouts,
    read_jsonl,
    read_rollouts,
    run_curate,
    small_command,
    tag,
    write_jsonl,
)
from tests.tiny import save_tiny_model

ITEMS = 10
# A file of rollouts holds one item. (That rounds end alike is shown without Ray.)
ONE_ROUND = ("--min-rollouts", 8, "--tau", 0.6, "--gradient-rollouts", 4)
SHARD_TOKENS = {"cpu": 8 * 12}
ROUNDED = {
    "gradients/index.parquet", "gold.parquet", "similarity.parquet", "lift.parquet",
    "teaching.parquet", "tags.parquet",
}  # fmt: skip
MEMORY = 80 * 1024**2
DRIVER = """
import pathlib, sys, time
from tests.ray_workers import use_float32
use_float32()
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="CRITICAL",
         runtime_env={"worker_process_setup_hook": "tests.ray_workers.prepare_worker"})
from curate.cli import main
from probes import tagging
from probes.stages import sample as sampling
tagging._SHARD_TOKENS = %r
real, calls = sampling.write_parquet, 0

def stopping(*arguments):
    global calls
    calls += 1
    if calls == 4:
        pathlib.Path("stopped").touch()
        time.sleep(600)
    return real(*arguments)

sampling.write_parquet = stopping
sys.exit(main(sys.argv[2:]))
"""


class _TwoNodes:
    """A cluster whose workers can be killed."""

    def __init__(self, gate: Path) -> None:
        self.gate = gate
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False
            },
        )  # fmt: skip
        self.nodes = [self.add(), self.add()]

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY)

    def kill_a_worker(self) -> None:
        """Kill a worker with a shard in hand, and its node, so that it finds no place again."""
        deadline = time.monotonic() + 200
        while len(list(self.gate.glob("waiting-*"))) < 2:
            assert time.monotonic() < deadline, "the workers do not come to the gate"
            time.sleep(0.05)
        worker = next(
            actor
            for actor in ray._private.state.actors().values()
            if actor["State"] == "ALIVE" and actor["ActorClassName"] == "Worker"
        )
        os.kill(worker["Pid"], signal.SIGKILL)
        home = worker["Address"]["NodeID"]
        node = next(node for node in self.nodes if node.node_id == home)
        self.cluster.remove_node(node, allow_graceful=False)
        (self.gate / "hold").unlink()


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_TwoNodes]:
    gate = tmp_path_factory.mktemp("gate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(GATE, str(gate))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Idle workers would each import torch, for nobody.
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        # Ray's workers would yield to whatever else this machine does, and be waited for.
        patch.setenv("RAY_worker_niceness", "0")
        # Workers find our packages and the tests where this process does.
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setattr(models, "choose_dtype", models.choose_dtype)
        use_float32()
        found = _TwoNodes(gate)
        ray.init(
            address=found.cluster.address,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            runtime_env={"worker_process_setup_hook": "tests.ray_workers.prepare_worker"},
        )
        yield found
        ray.shutdown()
        found.cluster.shutdown()


@pytest.fixture(scope="module")
def local(two_nodes: _TwoNodes, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dataset and of its run in this process."""
    folder = tmp_path_factory.mktemp("local")
    data = write_jsonl(folder / "sums.jsonl", additions(ITEMS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tagging, "_SHARD_TOKENS", SHARD_TOKENS)
        ran = tag(
            *(data, "--model", tiny_model, *ONE_ROUND),
            *("--run-dir", folder / "run", "--out", folder / "out.jsonl"),
        )
    assert ran.status == 0, ran.stderr
    return folder


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
        for name, value in row.items()
    }


def assert_same(folder: Path, local: Path) -> None:
    """The same files with the same content: nothing tells who drew the rollouts."""
    run, whole = folder / "run", local / "run"
    tables = {str(path.relative_to(whole)) for path in whole.rglob("*.parquet")}
    assert {str(path.relative_to(run)) for path in run.rglob("*.parquet")} == tables
    for name in tables:
        # Gradients and golds may differ in rounding, and what follows from them.
        if "rollouts/" in name:
            assert_same_rollouts(pq.read_table(run / name), pq.read_table(whole / name))
        elif name not in ROUNDED:
            assert pq.read_table(run / name).equals(pq.read_table(whole / name)), name
    golds = pq.read_table(whole / "gold.parquet").to_pylist()
    assert any(gold["gold_probability"] for gold in golds)
    assert pq.read_table(run / "gold.parquet").to_pylist() == [_rounded(gold) for gold in golds]
    drawn = Counter(
        (rollout["item_id"], rollout["sample"]) for rollout in read_rollouts(run).to_pylist()
    )
    assert drawn and set(drawn.values()) == {1}
    for row, expected in zip(
        read_jsonl(folder / "out.jsonl"), read_jsonl(local / "out.jsonl"), strict=True
    ):
        assert row == _rounded(expected)
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("early"))


def command(folder: Path, local: Path, model: Path, workers: int = 2) -> tuple[object, ...]:
    return (
        *(local / "sums.jsonl", "--model", model, *ONE_ROUND),
        *("--run-dir", folder / "run", "--out", folder / "out.jsonl"),
        *("--executor", "ray", "--workers", workers),
    )


def test_a_killed_driver_goes_on_and_a_killed_node_costs_nothing_but_time(
    two_nodes: _TwoNodes,
    local: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = command(tmp_path, local, tiny_model)
    (tmp_path / "driver.py").write_text(DRIVER % (SHARD_TOKENS,))
    driver = subprocess.Popen(
        [
            *(sys.executable, tmp_path / "driver.py", two_nodes.cluster.address),
            *map(str, small_command(*command(tmp_path, local, tiny_model, workers=1))[3:]),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    try:
        while not (tmp_path / "stopped").exists():
            assert driver.poll() is None, driver.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    written = {path: path.read_bytes() for path in (tmp_path / "run/rollouts").rglob("*.parquet")}
    assert len(written) == 3
    samples = {path.name: pq.read_table(path)["completion"] for path in written}

    # The same command, and on its way a node is lost, with what its worker has in hand.
    monkeypatch.setattr(tagging, "_SHARD_TOKENS", SHARD_TOKENS)
    (two_nodes.gate / "hold").touch()
    losing = threading.Thread(target=two_nodes.kill_a_worker, daemon=True)
    losing.start()
    ran = tag(*asked)
    assert ran.status == 0, ran.stderr
    losing.join(60)
    assert not losing.is_alive() and "they are done again" in ran.stderr
    assert_same(tmp_path, local)
    for name, completions in samples.items():
        assert pq.read_table(tmp_path / "run/rollouts" / name)["completion"] == completions
    engine = json.loads((tmp_path / "run/manifest.json").read_text())["engine"]
    assert engine["name"] == "transformers"


def test_checkpoints_are_scored_on_the_workers(
    two_nodes: _TwoNodes, local: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(local / "run", tmp_path / "run")
    asked = ("score", run, "--model", save_tiny_model(tmp_path / "trained", seed=5))
    for name, more in (("here", ()), ("there", ("--executor", "ray", "--workers", 1))):
        ran = run_curate(*asked, "--rollouts", 4, "--name", name, *more)
        assert ran.status == 0, ran.stderr
    here, there = (run / "validation" / name / "1" for name in ("here", "there"))
    assert_same_rollouts(read_rollouts(there), read_rollouts(here))
    assert pq.read_table(there / "outcomes.parquet").equals(
        pq.read_table(here / "outcomes.parquet")
    )


class _Here:
    """A cluster whose workers are objects of this process, which start in no time."""

    def __init__(self, settings: Any, cpus: float) -> None:
        self.settings = settings

    def start(self, gpus: float) -> Worker:
        return Worker(self.settings)

    def call(self, worker: Worker, method: str, *arguments: object) -> Any:
        return getattr(worker, method)(*arguments)

    def result(self, reply: Any) -> Any:
        return reply

    def end(self, workers: Sequence[Worker], others: Sequence[Worker] = ()) -> None:
        for worker in workers:
            worker.close()


def test_what_is_wrong_on_a_worker_is_one_line(
    two_nodes: _TwoNodes,
    local: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_machines, "_RayCluster", _Here)
    asked = command(tmp_path, local, tiny_model)
    ran = tag(*asked, "--gradient-targets", "nothing_like_it")
    assert ran.status == 2 and "the model has no module 'nothing_like_it'" in ran.last_line
    monkeypatch.setattr(ray_worker, "describe_machine", lambda: {"dtype": "bfloat16", "name": "X"})
    monkeypatch.setattr(Worker, "machine", lambda self: describe_machine())
    ran = tag(*asked)
    assert ran.status == 2 and "another precision is chosen on a worker" in ran.last_line


def test_a_cluster_that_is_not_there_or_has_no_room_is_one_line(
    two_nodes: _TwoNodes, local: Path, tiny_model: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("[ray]\ngpus_per_worker = 8\n")
    ran = tag(*command(tmp_path, local, tiny_model), "--workers", 0, "--config", settings)
    assert ran.status == 2 and "no room for a worker of 1 CPUs and 8 GPUs" in ran.last_line
    for text, reason in (
        ("gpu = 1", "[ray] gpu: unknown setting"),
        ('gpus_per_worker = "two"', "must be a number"),
    ):
        settings.write_text(f"[ray]\n{text}\n")
        ran = tag(*command(tmp_path, local, tiny_model), "--config", settings)
        assert ran.status == 2 and reason in ran.last_line
    assert not (tmp_path / "run/rollouts").exists()
    with pytest.raises(UsageError, match="no Ray cluster at"):
        ray_machines._check_reachable("127.0.0.1:9")
