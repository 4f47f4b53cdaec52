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
"""Names a folder, in the environment of the nodes. While `hold` is in it, one shard is drawn and
all others wait."""
_MOST_SECONDS = 300


def prepare_worker() -> None:
    """Draw slowly, and wait at the gate: a worker that is killed there has a shard in hand."""
    from probes.machines import ray_worker

    use_float32()
    draw = ray_worker.draw_shard

    def draw_slowly(*arguments: Any) -> Any:
        time.sleep(0.5)
        _wait(Path(os.environ[GATE]))
        return draw(*arguments)

    ray_worker.draw_shard = draw_slowly


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
