"""The words of a tagged dataset: the trainability tags and the columns that `curate tag` adds.

Predicted tags (before RL, from probes) and confirmed tags (after RL, from runs) share these
words and live in two columns; neither ever overwrites the other.
"""

from collections.abc import Sequence
from enum import StrEnum

import pyarrow as pa


class Trainability(StrEnum):
    """What RL with verifiable rewards is expected to do, or did, with an item."""

    EASY = "easy"
    """Pass rate at least τ under the initial policy."""
    LEARNABLE = "learnable"
    """Hard, with positive rollouts, and reaches pass rate τ after GRPO."""
    UNLEARNABLE = "unlearnable"
    """Hard, with positive rollouts, and does not reach pass rate τ after GRPO."""
    NO_POSITIVE = "no_positive"
    """Hard, and never produced a positive rollout."""
    UNDETERMINED = "undetermined"
    """The evidence does not decide between the others."""


REASONING_QUALITY = pa.schema(
    [("reasoning_quality", pa.float64()), ("reasoning_quality_n", pa.int64())]
)
"""Columns that `curate judge` adds: mean score of correct rollouts, and how many were scored."""


def tag_schema(ks: Sequence[int], *, target: bool = False, judged: bool = False) -> pa.Schema:
    """Columns that tagging adds to a dataset, in their order.

    `pass_at_K` for each K of `ks`; similarity to a target where there is one; the quality of
    reasoning where it was judged.

    All are nullable, because rejected rows stay in the dataset with nulls. Raises ValueError for a
    K below 1 or one named twice.
    """
    if any(k < 1 for k in ks):
        raise ValueError(f"pass@k needs k of at least 1, got {list(ks)}")
    if len(set(ks)) != len(ks):
        raise ValueError(f"each k of pass@k can be asked for once, got {list(ks)}")
    return pa.schema(
        [
            ("item_id", pa.string()),
            ("trainability", pa.string()),
            ("p_unlearnable", pa.float64()),
            *((f"forecast_{part}", pa.float64()) for part in ("pass_rate", "low", "high")),
            ("total_rollouts", pa.int64()),
            ("total_correct_rollouts", pa.int64()),
            ("pass_rate", pa.float64()),
            ("pass_rate_low", pa.float64()),
            ("pass_rate_high", pa.float64()),
            *((f"pass_at_{k}", pa.float64()) for k in ks),
            *((f"lift{end}", pa.float64()) for end in ("", "_low", "_high")),
            ("teaching", pa.float64()),
            ("gradient_similarity", pa.float64()),
            ("gradient_similarity_low", pa.float64()),
            ("gradient_similarity_high", pa.float64()),
            ("gradient_reliability", pa.float64()),
            *((f"target_similarity{end}", pa.float64()) for end in ("", "_low", "_high") if target),
            ("tag_reason", pa.string()),
            ("confirmed_trainability", pa.string()),
            *(REASONING_QUALITY if judged else ()),
        ]
    )
