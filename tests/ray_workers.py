"""Float32 here and in Ray's workers, so that a rollout does not depend on its batch.

Ray calls `prepare_worker` when a worker process starts.
"""

import os
import time
from pathlib import Path
from typing import Any

import torch

from probes.models import load as models


def use_float32() -> None:
    models.choose_dtype = lambda _: torch.float32


GATE = "CURATE_TEST_GATE"
"""Names a folder, in the environment of the nodes. While `hold` is in it, one shard is told of and
all others wait."""
_MOST_SECONDS = 200


def prepare_worker() -> None:
    """Wait at the gate with what is finished: a worker that is killed there has it in hand."""
    from probes.machines import ray_worker

    use_float32()
    tell = ray_worker.ShardQueue.tell

    def held(self: Any, news: Any) -> None:
        if isinstance(news, ray_worker.Finished):
            _wait(Path(os.environ[GATE]))
        tell(self, news)

    ray_worker.ShardQueue.tell = held  # type: ignore[method-assign]


def _wait(gate: Path) -> None:
    if not (gate / "hold").exists():
        return
    try:
        (gate / "first").touch(exist_ok=False)
    except FileExistsError:
        (gate / f"waiting-{os.getpid()}").touch()
        deadline = time.monotonic() + _MOST_SECONDS
        while (gate / "hold").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
