"""The words of a tagged dataset: the trainability tags and the columns that `curate tag` adds.

Predicted tags (before RL, from probes) and confirmed tags (after RL, from runs) share these
words and live in two columns; neither ever overwrites the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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


ANOTHER_ANSWER, SCATTERED, CUT, NO_ANSWER = "another_answer", "scattered", "truncated", "no_answer"
NO_POSITIVE_KINDS = {
    ANOTHER_ANSWER: "consistently another answer than the gold",
    SCATTERED: "scattered wrong answers",
    CUT: "cut at --max-tokens",
    NO_ANSWER: "no answer found",
}
"""What most rollouts of an item did of which none was correct."""

PASS_AT = "pass_at_K"
"""Stands in `COLUMNS` for a column for each K that was asked for."""
TARGET = "target"
JUDGED = "judged"
FORECAST = "forecast"
ANSWERS = "answers"
REWARDS = "rewards"
MIXED = "mixed"


@dataclass(frozen=True)
class Column:
    """A column that tagging adds to a dataset.

    Attributes:
        name: in the file.
        type: of its values; every column is nullable, because rejected rows stay in the dataset.
        meaning: in words, of it and of the columns after it that have none of their own.
        when: `TARGET` for one that is there with a target only, `JUDGED` after `curate judge`,
            `FORECAST` for one that tagged files of earlier versions lack, `ANSWERS` likewise for
            earlier ones yet, `REWARDS` where a user's own function gives the rewards, `MIXED` where
            rows have verifiers of their own.
    """

    name: str
    type: pa.DataType
    meaning: str = ""
    when: str = ""


COLUMNS = (
    Column(
        "item_id",
        pa.string(),
        "hash of prompt and answer: the same item has the same id in every dataset",
    ),
    Column("trainability", pa.string(), "the tag, predicted before RL"),
    Column(
        "p_unlearnable",
        pa.float64(),
        "probability that it stays below τ after RL; for hard items",
    ),
    Column(
        "forecast_pass_rate",
        pa.float64(),
        "the pass rate that RL is expected to lead to, with its 90 % interval",
        when=FORECAST,
    ),
    Column("forecast_low", pa.float64(), when=FORECAST),
    Column("forecast_high", pa.float64(), when=FORECAST),
    Column(
        "total_rollouts",
        pa.int64(),
        "those that could be judged, and the correct ones",
    ),
    Column("total_correct_rollouts", pa.int64()),
    Column("pass_rate", pa.float64(), "under the model that was probed, with its 95 % interval"),
    Column("pass_rate_low", pa.float64()),
    Column("pass_rate_high", pa.float64()),
    Column(PASS_AT, pa.float64(), "unbiased pass@k; null with fewer than k rollouts"),
    Column(
        "reward_mean",
        pa.float64(),
        "mean of the rewards of the rollouts that could be judged, and their standard deviation",
        when=REWARDS,
    ),
    Column("reward_std", pa.float64(), when=REWARDS),
    Column(
        "majority_answer",
        pa.string(),
        "the most frequent answer of its rollouts, and its share of all answers",
        when=ANSWERS,
    ),
    Column("majority_share", pa.float64(), when=ANSWERS),
    Column(
        "suspect_gold",
        pa.bool_(),
        "whether that answer is not the gold and surely more than half of at least 8 answers: the "
        "gold is wrong, or the model errs in always the same way",
        when=ANSWERS,
    ),
    Column(
        "no_positive_kind",
        pa.string(),
        "of items without a correct rollout, what most rollouts did: "
        + ", ".join(f"`{kind}` ({text})" for kind, text in NO_POSITIVE_KINDS.items()),
        when=ANSWERS,
    ),
    Column(
        "lift",
        pa.float64(),
        "how far training moves the log odds of the pass rate, with its 95 % interval; null where "
        "no rollout was correct",
        when=FORECAST,
    ),
    Column("lift_low", pa.float64(), when=FORECAST),
    Column("lift_high", pa.float64(), when=FORECAST),
    Column(
        "teaching",
        pa.float64(),
        "what training on the item does for the log odds of the items that are not solved, or of a "
        "target's where one was named",
        when=FORECAST,
    ),
    Column(
        "gradient_similarity",
        pa.float64(),
        "of the correct rollouts to the nearest easy items, with its 95 % interval; reported, and "
        "not what the tag goes by",
    ),
    Column("gradient_similarity_low", pa.float64()),
    Column("gradient_similarity_high", pa.float64()),
    Column(
        "gradient_reliability",
        pa.float64(),
        "share of the squared mean gradient that is signal and not noise, 0 to 1",
    ),
    Column(
        "target_similarity",
        pa.float64(),
        "of the correct rollouts to the nearest items of the target, with its 95 % interval",
        when=TARGET,
    ),
    Column("target_similarity_low", pa.float64(), when=TARGET),
    Column("target_similarity_high", pa.float64(), when=TARGET),
    Column("verified_by", pa.string(), "the verifier that judged the row's rollouts", when=MIXED),
    Column("tag_reason", pa.string(), "one line that says why"),
    Column(
        "confirmed_trainability",
        pa.string(),
        "what GRPO made of the item; null where that was not looked at",
    ),
    Column(
        "reasoning_quality",
        pa.float64(),
        "mean score, 0 to 5, that a language model gave the reasoning of its correct rollouts, "
        "and how many were scored",
        when=JUDGED,
    ),
    Column("reasoning_quality_n", pa.int64(), when=JUDGED),
)
"""Every column that tagging adds, in their order."""

REASONING_QUALITY = pa.schema([(each.name, each.type) for each in COLUMNS if each.when == JUDGED])
"""Columns that `curate judge` adds."""


def tag_schema(
    ks: Sequence[int],
    *,
    target: bool = False,
    judged: bool = False,
    mixed: bool = False,
    rewards: bool = False,
) -> pa.Schema:
    """The columns of a tagged file, in their order.

    Args:
        ks: `pass_at_K` is there for each K of them.
        target: whether there is a target.
        judged: whether the reasoning was judged.
        mixed: whether rows have verifiers of their own.
        rewards: whether a user's own function gives the rewards.

    Raises:
        ValueError: a K below 1 or one named twice.
    """
    if any(k < 1 for k in ks):
        raise ValueError(f"pass@k needs k of at least 1, got {list(ks)}")
    if len(set(ks)) != len(ks):
        raise ValueError(f"each k of pass@k can be asked for once, got {list(ks)}")
    left_out = {TARGET: not target, JUDGED: not judged, MIXED: not mixed, REWARDS: not rewards}
    fields = []
    for column in COLUMNS:
        names = [f"pass_at_{k}" for k in ks] if column.name == PASS_AT else [column.name]
        if not left_out.get(column.when, False):
            fields += [(name, column.type) for name in names]
    return pa.schema(fields)
