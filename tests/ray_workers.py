"""Float32 here and in Ray's workers, so that a rollout does not depend on its batch.

Ray calls `prepare_worker` when a worker process starts.
"""

import time
from typing import Any

import torch

from probes import models


def use_float32() -> None:
    models.choose_dtype = lambda _: torch.float32


def prepare_worker() -> None:
    """Draw slowly too: a worker that is killed has a shard in hand."""
    from probes import ray_worker

    use_float32()
    draw = ray_worker.draw_shard

    def draw_slowly(*arguments: Any) -> Any:
        time.sleep(0.5)
        return draw(*arguments)

    ray_worker.draw_shard = draw_slowly
