"""What would choose best in a grown world: pass rates and gradients without any sampling error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from transformers import LlamaForCausalLM

from benchmarks.training.rollouts import draw_each, log_probabilities, problem
from probes.lift.gradients import group_coefficients
from recipes.select.choose import Candidates, choose_items
from recipes.select.teaching import Taught
from tests.worlds.grown import Tokens, padded, pass_probability
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
    pupils: Sequence[Sequence[Question] | None],
    size: int,
    group_size: int,
) -> list[list[int]]:
    """The items that `select --by teaching` would choose if it knew all.

    Vectors as in `probes.lift.item_gradients`, of all parameters: w_j and correct gradients exact,
    those of wrong rollouts from many of them.

    Args:
        model: the policy.
        items: to choose from.
        pupils: those that are to be taught, a choice each; None: the items.
        size: how many are chosen.
        group_size: of GRPO.

    Returns:
        of each of `pupils` the items that teach them most.
    """
    problems = [problem(each) for each in items]
    longest = max(len(each.right) for each in problems)
    p = pass_probability(model, items)
    k = np.arange(group_size + 1)
    weight = binom.pmf(k, group_size, p[:, None]) @ group_coefficients(group_size)
    generator = torch.Generator().manual_seed(0)
    steps = []
    for each, known in zip(problems, weight, strict=True):
        (drawn,) = draw_each(model, [each.prompt], _WRONG, longest, generator)
        wrong = Counter(one for one in drawn if one != each.right)
        shares = torch.tensor([1.0, *(-times / wrong.total() for times in wrong.values())])
        sums, lengths = _log_probs(model, each.prompt, [each.right, *wrong])
        steps.append(known * _gradient(model, (shares * sums / lengths).sum()))
    step = np.stack(steps)
    candidates = Candidates(np.zeros(len(items)), np.zeros(len(items)), p, [""] * len(items))

    def choose(taught_ones: Sequence[Question], own: NDArray[np.intp] | None) -> list[int]:
        room = 1 - pass_probability(model, taught_ones)
        slopes = []
        for pupil, left in zip(map(problem, taught_ones), room, strict=True):
            sums, _ = _log_probs(model, pupil.prompt, [pupil.right])
            slopes.append(_gradient(model, sums.sum()) / max(left, 1e-6))
        taught = Taught(step, np.stack(slopes), room, size, own)
        chosen = choose_items(candidates, "teaching", {"": size}, 0.05, taught).chosen
        return [int(item) for item in np.flatnonzero(chosen)]

    return [
        choose(items, np.arange(len(items))) if each is None else choose(each, None)
        for each in pupils
    ]


def _log_probs(
    model: LlamaForCausalLM, prompt: Tokens, completions: Sequence[Tokens]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each completion of a prompt, and its tokens, both (completions,)."""
    ids, labels = padded([(prompt, each) for each in completions])
    lengths = torch.tensor([len(each) for each in completions])
    return log_probabilities(model, ids, labels).sum(dim=1), lengths


def _gradient(model: LlamaForCausalLM, value: torch.Tensor) -> NDArray[np.float32]:
    parts = torch.autograd.grad(value, [*model.parameters()])
    return torch.cat([part.reshape(-1) for part in parts]).numpy()
