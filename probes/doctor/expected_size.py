"""What a run will need before it begins: rollouts, disk and memory, from its settings.

    rollouts of an item   min_rollouts where that is max_rollouts too, else 0.3 × max_rollouts, what
                          rounds without a budget came to for the mixtures of the paper's Table 1
                          (26 to 32 %, docs/benchmarks.md); at most the budget's share
    bytes of rollouts     3.2 a token, of which half is text and half token ids, and 10 a rollout:
                          measured on SmolLM2's, compressed
    bytes of gradients    (2 × gradients + 1) × 4 × gradient_dim an item, where gradients are
                          gradient_rollouts + gradient_wrong_rollouts: the features of its
                          rollouts, which stand twice while they are joined, and a mean
    other bytes           500 an item, and 1,000 for its prompt, uncompressed
    memory                1 GB and 3 kB an item, beside the policy: somewhat more than the peaks of
                          `benchmarks/speed/million_items.py`, whose prompts are short

These are upper bounds where completions are as long as `max_tokens` and every item has
`gradient_rollouts` correct rollouts and `gradient_wrong_rollouts` wrong ones; docs/scaling.md works
an example out.
"""

from __future__ import annotations

from dataclasses import dataclass

from curate.config import TagConfig

ROLLOUT_SHARE = 0.3
BYTES_A_TOKEN = 3.2
BYTES_A_ROLLOUT = 10
BYTES_AN_ITEM = 500
PROMPT_BYTES = 1000
"""Of a rendered prompt and its token ids, uncompressed text of some 150 tokens."""
MEMORY_BYTES = 1_000_000_000
"""What a run holds beside its items and its policy."""
MEMORY_BYTES_AN_ITEM = 3000


@dataclass(frozen=True)
class ExpectedSize:
    """What a run is expected to draw, write and hold, at most where nothing else is said."""

    items: int
    rollouts_an_item: float
    """On average."""
    rollout_bytes: int
    gradient_bytes: int
    other_bytes: int
    memory_bytes: int
    """Without the policy."""

    @property
    def rollouts(self) -> int:
        """Of the run."""
        return round(self.items * self.rollouts_an_item)

    @property
    def disk_bytes(self) -> int:
        """Of the run folder at its largest, and the tagged file."""
        return self.rollout_bytes + self.gradient_bytes + self.other_bytes


def expected_rollouts(config: TagConfig, items: int) -> float:
    """Rollouts of an item, on average."""
    rollouts = float(config.min_rollouts)
    if config.max_rollouts > config.min_rollouts:
        rollouts = max(rollouts, ROLLOUT_SHARE * config.max_rollouts)
    if config.rollout_budget:
        rollouts = min(rollouts, config.rollout_budget / items)
    elif config.mean_rollouts:
        rollouts = min(rollouts, max(config.mean_rollouts, config.min_rollouts))
    return rollouts


def expected_size(config: TagConfig, items: int) -> ExpectedSize:
    """What a run of `items` items needs with these settings."""
    rollouts = expected_rollouts(config, items)
    tokens = rollouts * config.max_tokens
    draws = min(config.gradient_rollouts + config.gradient_wrong_rollouts, rollouts)
    return ExpectedSize(
        items=items,
        rollouts_an_item=rollouts,
        rollout_bytes=round(items * (BYTES_A_TOKEN * tokens + BYTES_A_ROLLOUT * rollouts)),
        gradient_bytes=round(items * (2 * draws + 1) * 4 * config.gradient_dim),
        other_bytes=items * (BYTES_AN_ITEM + PROMPT_BYTES),
        memory_bytes=MEMORY_BYTES + items * MEMORY_BYTES_AN_ITEM,
    )
