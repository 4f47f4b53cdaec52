"""GRPO of a grown world's policy, by all of its parameters: one loop for every study.

What `recipes.train` does through TRL in minutes: advantages, stream of prompts, and how many are
asked for until a step has its groups with a signal, are its own; the loss is written anew (equation
1 of arXiv 2605.16787: clipped ratios, tokens averaged in a rollout, then rollouts, and a KL term to
the policy before training), and `tests/test_grown_training.py` holds it and its gradient to TRL's
on the same groups. Equal rollouts of a group are computed once and weighed by how often they were
drawn.

What differs between trainings is handed in: the items of each step, what draws rollouts, who hears
of their rewards, and what becomes of a group before it counts (replay). How long to train, and what
to measure on the way, is up to the caller, who asks for one step after another.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from benchmarks.training.rollouts import (
    Begun,
    Problem,
    Sampler,
    draw_alike,
    draw_on,
    has_ended,
    log_probabilities,
)
from recipes.train.groups import Group, advantages, prompts_to_ask
from recipes.train.prompts import PromptStream, TrainingItem
from tests.worlds.grown import IGNORED, Tokens, padded

Draw = Callable[[int, int], Sequence[int]]
"""Of a step, from 1, and a number of groups: their items."""
Hear = Callable[[Sequence[int], NDArray[np.bool_]], object]
"""Told of every round of sampling: its items, and which rollouts were right, (items, G)."""

_ROUND = 4
"""Times the groups of a step that one round of sampling asks for at most."""


@dataclass(frozen=True)
class Grpo:
    """How GRPO trains: the names and defaults are those of recipes.

    Attributes:
        learning_rate, max_grad_norm: of AdamW, constant, without weight decay.
        prompts: groups that reach the loss of a step, in `updates` updates.
        group: rollouts that are drawn of each.
        beta: of the KL term; 0: none.
        epsilon, epsilon_high: limits of the ratio.
        first_round: times `prompts` that a step asks for at most before it knows of any signal.
        most_rounds: times `prompts` that a step samples at most; 1: groups are as they come.
    """

    learning_rate: float
    prompts: int = 32
    group: int = 8
    updates: int = 4
    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    first_round: int = _ROUND
    most_rounds: int = 10
    max_grad_norm: float = 1.0


@dataclass
class Log:
    """What a training has done so far, by item where arrays: (items,)."""

    visits: NDArray[np.int64]
    right: NDArray[np.int64]
    """Correct rollouts that were drawn."""
    tokens: NDArray[np.float64]
    """Tokens that reached the loss, counted in every update."""
    right_tokens: NDArray[np.float64]
    """Those of correct rollouts among them."""
    clipped_above: NDArray[np.float64]
    """Those of correct rollouts whose gradient the upper limit cut off."""
    clipped_below: NDArray[np.float64]
    steps: int = 0
    rollouts: int = 0
    """Drawn, whether trained on or thrown away."""
    groups: int = 0
    signals: int = 0
    """Groups that had a signal."""
    unfilled: int = 0
    """Groups without a signal that filled a batch up."""
    kl: list[float] = field(default_factory=list)
    """Mean estimate of each update."""

    @classmethod
    def of(cls, items: int) -> Log:
        """An empty one."""
        return cls(*np.zeros((2, items), np.int64), *np.zeros((4, items)))


def in_epochs(items: Sequence[int], seed: int, *, shuffle: bool = True) -> Draw:
    """Items in endless epochs, shuffled as in recipes; each draw goes on where the last ended."""
    stream = PromptStream([TrainingItem(str(n), (), "") for n in items], seed=seed, shuffle=shuffle)
    place = itertools.count()
    return lambda step, count: [int(stream[next(place)].item_id) for _ in range(count)]


def grpo(
    model: LlamaForCausalLM,
    problems: Sequence[Problem],
    settings: Grpo,
    seed: int,
    draw: Draw,
    *,
    sample: Sampler = draw_alike,
    hear: Hear | None = None,
    mix: Callable[[Group], Group] = lambda group: group,
) -> Iterator[Log]:
    """Train a policy in place, step by step, for as long as steps are asked for.

    Args:
        model: the policy.
        problems: the items.
        settings: of GRPO.
        seed: of the rollouts.
        draw: the items of the next groups.
        sample: draws their rollouts.
        hear: is told of rewards before the next items are drawn.
        mix: what becomes of a group before it counts.

    Yields:
        after each step what was done until then, the same object every time.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.0)
    reference = copy.deepcopy(model) if settings.beta else None
    log = Log.of(len(problems))
    longest = max(len(each.right) for each in problems)

    def sampled(items: Sequence[int]) -> Iterator[Group]:
        asked = [problems[n] for n in items]
        prompts, answers = [each.prompt for each in asked], [each.right for each in asked]
        drawn = sample(model, prompts, settings.group, longest, generator, answers)
        pairs = zip(drawn, answers, strict=True)
        right = np.array([[each == answer for each in row] for row, answer in pairs])
        if hear is not None:
            hear(items, right)
        np.add.at(log.visits, items, 1)
        np.add.at(log.right, items, right.sum(axis=1))
        log.rollouts += right.size
        for n, prompt, row, rewards in zip(items, prompts, drawn, right.astype(float), strict=True):
            whole = [False] * len(row)
            yield mix(Group(log.groups, str(n), prompt, row, rewards.tolist(), whole))

    while True:
        log.steps += 1
        kept: list[Group] = []
        spare: list[Group] = []
        asked = 0
        while now := _to_ask(settings, log, settings.prompts - len(kept), asked):
            asked += now
            for group in sampled(draw(log.steps, now)):
                log.groups += 1
                log.signals += group.has_signal
                is_kept = group.has_signal and len(kept) < settings.prompts
                (kept if is_kept else spare).append(group)
        filling = [each for each in reversed(spare) if not each.has_signal]
        filling = filling[: settings.prompts - len(kept)]
        log.unfilled += len(filling)
        groups = _finished(model, [*kept, *filling], longest, generator)
        _update(model, groups, settings, optimizer, reference, log)
        yield log


def _to_ask(settings: Grpo, log: Log, missing: int, asked: int) -> int:
    """How many groups a step samples next, of which some with a signal are `missing`."""
    left = settings.prompts * settings.most_rounds - asked
    if not missing or not log.groups:
        return min(missing, left)
    at_once = settings.prompts * (_ROUND if asked else settings.first_round)
    return min(left, prompts_to_ask(missing, log.signals, log.groups, at_once))


def _finished(
    model: LlamaForCausalLM, groups: Sequence[Group], most: int, generator: torch.Generator
) -> list[Group]:
    """Groups whose completions are drawn to their end; those that are right have ended before."""
    begun: Begun = Counter(
        (n, tuple(each))
        for n, group in enumerate(groups)
        for each in group.completions
        if not has_ended(each, most)
    )
    ended = draw_on(
        model, [tuple(each.prompt_token_ids) for each in groups], begun, most, generator
    )
    finished = []
    for group, late in zip(groups, ended, strict=True):
        pairs = [*zip(group.completions, group.is_correct.tolist(), strict=True)]
        right = [each for each, is_right in pairs if is_right]
        wrong = [each for each, is_right in pairs if not is_right and has_ended(each, most)]
        rewards = [1.0] * len(right) + [0.0] * (len(wrong) + len(late))
        finished.append(replace(group, completions=[*right, *wrong, *late], rewards=rewards))
    return finished


@dataclass(frozen=True)
class Batch:
    """Distinct rollouts of groups; arrays (rows,), but ids and labels (rows, longest)."""

    ids: torch.Tensor
    labels: torch.Tensor
    """The ids of completions, -100 elsewhere."""
    advantages: torch.Tensor
    times: torch.Tensor
    """How often the rollout is in its group."""
    item: torch.Tensor
    group: torch.Tensor
    """Place of the row's group."""
    old: torch.Tensor
    """Log-probabilities (rows, longest − 1) under the policy that drew them."""
    reference: torch.Tensor | None
    """Under the policy that the KL term is to; None: no such term."""

    @classmethod
    @torch.no_grad()
    def of(
        cls, groups: Sequence[Group], model: LlamaForCausalLM, reference: LlamaForCausalLM | None
    ) -> Batch:
        """The rollouts of some groups, whose `item_id` is the item's number.

        Args:
            groups: of one policy.
            model: that policy, as it is still.
            reference: of the KL term.
        """
        texts: list[tuple[Tokens, Tokens]] = []
        rows = []
        for number, group in enumerate(groups):
            gained = advantages(group.rewards).tolist()
            completions = [tuple(each) for each in group.completions]
            gains = dict(zip(completions, gained, strict=True))
            for completion, times in Counter(completions).items():
                texts.append((tuple(group.prompt_token_ids), completion))
                rows.append((gains[completion], float(times), int(group.item_id), number))
        ids, labels = padded(texts)
        old = log_probabilities(model, ids, labels)
        away = None if reference is None else log_probabilities(reference, ids, labels)
        gain, count, item, place = (torch.tensor(each) for each in zip(*rows, strict=True))
        return cls(ids, labels, gain, count, item, place, old, away)

    def take(self, rows: torch.Tensor) -> Batch:
        """Some rows, (rows,) of truth values."""
        known = {name: each for name, each in vars(self).items() if each is not None}
        return replace(self, **{name: each[rows] for name, each in known.items()})


def loss_of(model: LlamaForCausalLM, batch: Batch, settings: Grpo, log: Log) -> torch.Tensor:
    """GRPO's loss, to be differentiated once; what it clips, and the KL, are noted in the log."""
    now = log_probabilities(model, batch.ids, batch.labels)
    mask = (batch.labels[:, 1:] != IGNORED).to(now.dtype)
    lengths = mask.sum(dim=1)
    gain = batch.advantages[:, None].to(now.dtype)
    weight = (batch.times / batch.times.sum()).to(now.dtype)
    ratio = torch.exp(now - batch.old)
    clipped = ratio.clamp(1 - settings.epsilon, 1 + settings.epsilon_high)
    by_token = -torch.minimum(ratio * gain, clipped * gain)
    if batch.reference is not None:
        away = batch.reference - now
        kl = torch.exp(away) - away - 1
        by_token = by_token + settings.beta * kl
        log.kl.append(float(weight @ ((kl.detach() * mask).sum(dim=1) / lengths)))
    for sums, counted in (
        (log.tokens, mask),
        (log.right_tokens, mask * (gain > 0)),
        (log.clipped_above, mask * ((ratio > 1 + settings.epsilon_high) & (gain > 0))),
        (log.clipped_below, mask * ((ratio < 1 - settings.epsilon) & (gain < 0))),
    ):
        np.add.at(sums, batch.item.numpy(), (counted.sum(dim=1) * batch.times).numpy())
    return weight @ ((by_token * mask).sum(dim=1) / lengths)


def _update(
    model: LlamaForCausalLM,
    groups: Sequence[Group],
    settings: Grpo,
    optimizer: torch.optim.Optimizer,
    reference: LlamaForCausalLM | None,
    log: Log,
) -> None:
    """The updates of a step."""
    batch = Batch.of(groups, model, reference)
    each = -(-len(groups) // settings.updates)
    for first in range(0, len(groups), each):
        part = batch.take((batch.group >= first) & (batch.group < first + each))
        take_step(model, loss_of(model, part, settings, log), optimizer, settings.max_grad_norm)


def take_step(
    model: LlamaForCausalLM, loss: torch.Tensor, optimizer: torch.optim.Optimizer, norm: float
) -> None:
    """Move a policy down the gradient of a loss, which is cut to a norm."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
    optimizer.step()
