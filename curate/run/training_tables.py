"""What a training run leaves behind: the tables of its rollouts, outcomes and held-out items."""

from __future__ import annotations

import pyarrow as pa

REWARD_SCHEMA = pa.schema(
    {
        "step": pa.int32(),
        "item_id": pa.string(),
        "rollouts": pa.int32(),
        "mean_reward": pa.float64(),
        "truncated_fraction": pa.float64(),
        "clipped_fraction": pa.float64(),
        "trained": pa.bool_(),
    }
)
"""A row for every group that was generated, in the order of generation.

mean_reward is null where nothing could be judged; truncated_fraction is the share of its rollouts
that were cut at the length limit, clipped_fraction that of its tokens whose probability ratio was
clipped in the loss, null for a group that did not reach it; trained tells that it did, with unequal
rewards.
"""

OUTCOME_SCHEMA = pa.schema(
    {
        "item_id": pa.string(),
        "initial_pass_rate": pa.float64(),
        "initial_rollouts": pa.int64(),
        "initial_correct": pa.int64(),
        "final_pass_rate": pa.float64(),
        "final_rollouts": pa.int64(),
        "final_correct": pa.int64(),
        "positive_in_training": pa.bool_(),
        "ever_positive": pa.bool_(),
        "visits": pa.int32(),
    }
)
"""A row for every item of the run, in its order.

ever_positive: a correct rollout in training or in the probe of the initial policy; visits: groups
generated for it in training.
"""

HELD_OUT_SCHEMA = pa.schema(
    {
        "step": pa.int32(),
        "rollouts": pa.int64(),
        "item_id": pa.string(),
        "total_rollouts": pa.int64(),
        "total_correct_rollouts": pa.int64(),
    }
)
"""A row for every held-out item each time that it was evaluated; rollouts: spent on training."""
