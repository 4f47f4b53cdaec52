"""verl's replay buffers that tell the rewards they hand out to the dataset (verl 0.9.1).

The trainer of 0.9 takes its batches from a replay buffer, and a buffer of the user's is what it
offers (`trainer.v1.sampler.custom_sampler`). These are verl's own but for one thing: the rewards of
each training batch go to `recipes.sampler.verl`. verl does not tell such a buffer of
`algorithm.filter_groups`; the sampler skips before rollouts are spent instead.
"""

from __future__ import annotations

from typing import Any

import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from recipes.sampler.verl import CurateDataset


class _Telling:
    """What both have beside verl's."""

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, Any]:
        """A batch, as verl's buffer gives it."""
        batch, metrics = super().sample(global_steps, partition_id, batch_size)  # type: ignore[misc]
        dataset = CurateDataset.training
        if partition_id != "val":
            if dataset is None:
                raise ValueError(
                    "the rewards are told to nobody: data.custom_cls.name must be CurateDataset, "
                    "its path pkg://recipes.sampler.verl"
                )
            found = tq.kv_batch_get(
                keys=batch.keys,
                partition_id=partition_id,
                select_fields=["extra_info", "rm_scores"],
            )
            extra_info = [getattr(each, "data", each) for each in found["extra_info"]]
            dataset.observe(extra_info, [float(each.sum()) for each in found["rm_scores"]])
        return batch, metrics


class CurateReplayBuffer(_Telling, ReplayBuffer):  # type: ignore[misc]
    """For `trainer.v1.trainer_mode=sync`."""


class CurateReplayBufferAsync(_Telling, ReplayBufferAsync):  # type: ignore[misc]
    """For the asynchronous modes."""
