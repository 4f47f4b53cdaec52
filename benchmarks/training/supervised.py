"""SFT and more pretraining of a grown world's policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from transformers import LlamaForCausalLM

from benchmarks.training.grpo import in_epochs, take_step
from benchmarks.training.rollouts import Problem
from tests.worlds.grown import Tokens, completion_loss

Row = tuple[Tokens, Tokens]
"""A prompt and a completion."""


def train_sft(
    model: LlamaForCausalLM,
    problems: Sequence[Problem],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Fine-tune a policy in place on the right completion of each problem, in shuffled epochs."""
    draw = in_epochs(range(len(problems)), seed)
    chosen = ([problems[n] for n in draw(step, batch)] for step in range(steps))
    _fit(
        model,
        ([(each.prompt, each.right) for each in rows] for rows in chosen),
        torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.0),
        lambda step: learning_rate,
    )


def train_more(
    model: LlamaForCausalLM,
    draw: Callable[[], Row],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
) -> None:
    """Pretrain a policy further, in place, on what `draw` gives.

    As in `grow_world`, but that the rate rises over 20 steps; it falls to a tenth.
    """
    _fit(
        model,
        ([draw() for _ in range(batch)] for _ in range(steps)),
        torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.1),
        lambda step: learning_rate * min((step + 1) / 20, 1 - 0.9 * step / steps),
    )


def _fit(
    model: LlamaForCausalLM,
    batches: Iterable[Sequence[Row]],
    optimizer: torch.optim.Optimizer,
    rate_of: Callable[[int], float],
) -> None:
    for step, rows in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate_of(step)
        take_step(model, completion_loss(model, rows), optimizer, 1.0)
