"""What would choose best in a grown world: pass rates and gradients without any sampling error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from transformers import LlamaForCausalLM

from benchmarks.selection.grown_training import Texts, completion_log_probs, sample
from probes.lift.gradients import group_coefficients
from recipes.select.choose import Candidates, choose_items
from recipes.select.teaching import Taught
from tests.worlds.grown import pass_probability
from tests.worlds.grown_skills import Question

Floats = NDArray[np.float64]

_WRONG = 256
"""Rollouts of an item by which the mean gradient of its wrong ones is known."""


def signal_of(p: Floats, group_size: int) -> Floats:
    """Chance that a group has both right and wrong rollouts, of the shape of p."""
    return np.asarray(1 - p**group_size - (1 - p) ** group_size)


def exact_teaching(
    model: LlamaForCausalLM,
    items: Sequence[Question],
    held_out: Sequence[Question],
    size: int,
    group_size: int,
) -> tuple[list[int], list[int]]:
    """The items that `select --by teaching` would choose if it knew all.

    Vectors as in `probes.lift.item_gradients`, of all parameters: w_j and correct gradients exact,
    those of wrong rollouts from many of them.

    Returns:
        the items that teach the held-out ones most, and those that teach the items most.
    """
    texts = Texts(items)
    p = pass_probability(model, items)
    k = np.arange(group_size + 1)
    weight = binom.pmf(k, group_size, p[:, None]) @ group_coefficients(group_size)
    generator = torch.Generator().manual_seed(0)
    steps = []
    for item in range(len(items)):
        drawn, counts = torch.unique(
            sample(model, texts, [item], _WRONG, generator), dim=0, return_counts=True
        )
        wrong = (drawn != texts.answers[item]).any(dim=1)
        ids = torch.cat([texts.answers[item : item + 1], drawn[wrong]])
        shares = torch.cat([torch.ones(1), -counts[wrong] / max(int(counts[wrong].sum()), 1)])
        means, _ = completion_log_probs(model, texts, [item], torch.zeros(len(ids)).long(), ids)
        steps.append(weight[item] * _gradient(model, (shares * means).sum()))
    step = np.stack(steps)
    candidates = Candidates(np.zeros(len(items)), np.zeros(len(items)), p, [""] * len(items))

    def choose(pupils: Sequence[Question], own: NDArray[np.intp] | None) -> list[int]:
        slopes, of_pupils, room = [], Texts(pupils), 1 - pass_probability(model, pupils)
        for place in range(len(pupils)):
            ids = of_pupils.answers[place : place + 1]
            first = torch.zeros(1, dtype=torch.long)
            means, lengths = completion_log_probs(model, of_pupils, [place], first, ids)
            slopes.append(_gradient(model, (means * lengths).sum()) / max(room[place], 1e-6))
        taught = Taught(step, np.stack(slopes), room, size, own)
        chosen = choose_items(candidates, "teaching", {"": size}, 0.05, taught).chosen
        return [int(item) for item in np.flatnonzero(chosen)]

    return choose(held_out, None), choose(items, np.arange(len(items)))


def _gradient(model: LlamaForCausalLM, value: torch.Tensor) -> NDArray[np.float32]:
    parts = torch.autograd.grad(value, [*model.parameters()])
    return torch.cat([part.reshape(-1) for part in parts]).numpy()
