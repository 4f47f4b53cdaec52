"""The paper's gradient similarity and the lift of every item of a grown world, from gradients.

Gradients are those of all parameters, projected by random signs to 4,096 numbers. A question that
is answered directly has one right completion, so that the gradient of its correct rollouts is known
without sampling; wrong rollouts are sampled, four an item, as `curate tag` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from benchmarks.training.rollouts import Problem, draw_alike
from probes.lift.gradients import LiftInputs, measure_lift
from tests.worlds.grown import Tokens

_DIM, _WRONG, _DRAWN, _JUDGED, _MOST_RIGHT = 4096, 4, 64, 1024, 16

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """Arrays (items,)."""

    similarity: Floats
    """The paper's: mean cosine of the gradient of correct rollouts with those of the easy items."""
    lift: Floats
    """1 is what training does for the items that it trains on, on average."""


def measure(
    model: LlamaForCausalLM,
    problems: Sequence[Problem],
    pass_probability: Floats,
    is_easy: NDArray[np.bool_],
    *,
    group: int,
    seed: int,
) -> Measured:
    """Measure the items under a policy.

    Args:
        model: the policy.
        problems: the items.
        pass_probability: exact, under this policy. Counts are those that 1,024 rollouts would have
            on average, at least one right and one wrong.
        is_easy: the items that similarity is to; an item is not compared with itself.
        group: rollouts of a group of GRPO.
        seed: of the wrong rollouts and of the projection.
    """
    correct = np.clip(np.round(_JUDGED * pass_probability).astype(np.int64), 1, _JUDGED - 1)
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng([seed, 5])
    most = max(len(each.right) for each in problems)
    drawn = draw_alike(model, [each.prompt for each in problems], _DRAWN, most, generator)
    project = _Projection(model, seed)
    features, rows = [], []
    for item, (each, completions) in enumerate(zip(problems, drawn, strict=True)):
        wrong = [completion for completion in completions if completion != each.right]
        chosen = [wrong[n] for n in rng.permutation(len(wrong))[:_WRONG]]
        kept = [(each.right, min(int(correct[item]), _MOST_RIGHT), True)]
        kept += [(one, chosen.count(one), False) for one in dict.fromkeys(chosen)]
        for completion, times, is_right in kept:
            features.append(project.gradient(each.prompt, completion))
            rows.append((item, times, is_right, len(completion)))
    item_of, weights, is_correct, tokens = map(np.array, zip(*rows, strict=True))
    stacked = np.array(features, dtype=np.float32)
    judged = np.full(len(problems), _JUDGED)
    rate = np.minimum(pass_probability, 0.99)
    inputs = LiftInputs(stacked, item_of, weights, is_correct, tokens, judged, correct, rate)
    raw = measure_lift(inputs, pass_probability < 0.1, group_size=group)
    unit = raw.weight @ raw.lift / raw.weight.sum()
    right = stacked[is_correct].astype(np.float64)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    cosines = right @ right.T
    np.fill_diagonal(cosines, 0.0)
    others = is_easy.sum() - is_easy
    return Measured(cosines @ is_easy / np.maximum(others, 1), raw.lift / unit)


class _Projection:
    def __init__(self, model: LlamaForCausalLM, seed: int) -> None:
        self.model = model
        size = sum(weights.numel() for weights in model.parameters())
        generator = torch.Generator().manual_seed(seed)
        self.bucket = torch.randint(_DIM, (size,), generator=generator)
        self.sign = torch.randint(2, (size,), generator=generator) * 2.0 - 1.0

    def gradient(self, prompt: Tokens, completion: Tokens) -> NDArray[np.float32]:
        """Of the mean token loss, projected: (4096,)."""
        self.model.zero_grad(set_to_none=True)
        ids = torch.tensor([[*prompt, *completion]])
        logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
        torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :]).backward()
        whole = torch.cat(
            [
                torch.zeros(weights.numel()) if weights.grad is None else weights.grad.flatten()
                for weights in self.model.parameters()
            ]
        )
        found = torch.zeros(_DIM).index_add_(0, self.bucket, whole * self.sign)
        self.model.zero_grad(set_to_none=True)
        return np.asarray(found.numpy())
