"""GRPO of a grown world's policy, some thousand rollouts a second on one thread.

The loss is that of the recipes (`loss_type="grpo"`, one update a step, no KL term): within a group
of G rollouts advantages are (r − mean)/(std + 1e-4), tokens are averaged within a rollout, then
rollouts. With one update a step every ratio is 1, so that its gradient is that of

    − 1/(N G) Σ over rollouts of A / |y| · log π(y | x)

over N groups, where rollouts that are alike are computed once (`tests/test_payoff_training.py`
holds it against TRL's). Dynamic sampling, as in `recipes.train.grpo`: groups without a signal are
thrown away and others sampled until N have one; all that was sampled is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, LlamaForCausalLM

from recipes.train.groups import advantages, prompts_to_ask
from tests.worlds.grown import pass_probability, tokenizer
from tests.worlds.grown_skills import Question

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_ROUND = 4
"""Of groups that one round of sampling asks for at most, in those of a step."""


@dataclass(frozen=True)
class Grpo:
    """How a policy is trained.

    Attributes:
        learning_rate, max_grad_norm: of AdamW, constant, without weight decay.
        groups: with a signal, in a step.
        group_size: G.
        most_rounds: times `groups` that a step samples at most.
        dynamic: sample until that many groups have a signal; else they are as they come.
    """

    learning_rate: float
    groups: int = 32
    group_size: int = 8
    most_rounds: int = 10
    max_grad_norm: float = 1.0
    dynamic: bool = True


@dataclass(frozen=True)
class Curve:
    """Held-out pass rates on the way; arrays are (evaluations,), the first before training."""

    rollouts: Integers
    """Sampled so far, whether trained on or thrown away."""
    steps: Integers
    rates: Floats
    with_signal: float
    """Share of all groups."""


class Texts:
    """Questions as token ids, prompts padded on the left and answers on the right."""

    def __init__(self, questions: Sequence[Question]) -> None:
        """Read the questions, whose answers are direct: one completion is right."""
        of = tokenizer()
        self.end, padding = of.eos_token_id, of.pad_token_id
        prompts = [of.convert_tokens_to_ids(question.prompt.split()) for question in questions]
        answers = [
            [*of.convert_tokens_to_ids(question.answer.split()), self.end] for question in questions
        ]
        width = max(map(len, prompts))
        self.prompts = torch.tensor([[padding] * (width - len(ids)) + ids for ids in prompts])
        self.mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
        self.padding, width = padding, max(map(len, answers))
        self.answers = torch.tensor([ids + [padding] * (width - len(ids)) for ids in answers])


def train(
    model: LlamaForCausalLM,
    questions: Sequence[Question],
    draw: Callable[[int], Sequence[int]],
    held_out: Sequence[Question],
    *,
    settings: Grpo,
    budget: int,
    evaluations: int,
    seed: int,
    told: Callable[[Sequence[int], NDArray[np.bool_]], None] | None = None,
) -> Curve:
    """Train a policy in place until so many rollouts were sampled; the step in hand is finished.

    Args:
        model: the policy.
        questions: of the items.
        draw: the items of the next groups, so many of them.
        held_out: questions whose pass rate is read, exactly.
        settings: of the training.
        budget: of rollouts.
        evaluations: how many, evenly over the budget.
        seed: of the rollouts.
        told: hears of every round of sampling: its items, and which rollouts were right, (items,
            G).
    """
    texts = Texts(questions)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=0.0, foreach=True
    )
    spent = steps = groups = signals = 0
    points = [(0, 0, float(pass_probability(model, held_out).mean()))]
    while spent < budget:
        batch: list[tuple[int, torch.Tensor, NDArray[np.bool_]]] = []
        asked = 0
        most = settings.groups * (settings.most_rounds if settings.dynamic else 1)
        while asked < most and len(batch) < settings.groups:
            now = settings.groups
            if asked:
                missing = settings.groups - len(batch)
                now = prompts_to_ask(missing, signals, groups, _ROUND * settings.groups)
            now = min(now, most - asked)
            asked += now
            items = list(draw(now))
            completions = sample(model, texts, items, settings.group_size, generator)
            right = is_right(texts, items, completions, settings.group_size)
            if told is not None:
                told(items, right)
            mixed = right.any(axis=1) & ~right.all(axis=1)
            groups, signals = groups + len(items), signals + int(mixed.sum())
            parts = completions.split(settings.group_size)
            batch += [(items[i], parts[i], right[i]) for i in np.flatnonzero(mixed)]
        spent += asked * settings.group_size
        steps += 1
        # Groups beyond a full batch are thrown away; places that none filled count as zeros.
        batch = batch[: settings.groups]
        if batch:
            loss = policy_loss(model, texts, batch, settings.groups)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
        if spent >= budget or spent * evaluations // budget > points[-1][0] * evaluations // budget:
            points.append((spent, steps, float(pass_probability(model, held_out).mean())))
    rollouts, at, rates = zip(*points, strict=True)
    return Curve(np.array(rollouts), np.array(at), np.array(rates), signals / max(groups, 1))


@torch.no_grad()
def sample(
    model: LlamaForCausalLM,
    texts: Texts,
    items: Sequence[int],
    group_size: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Draw completions at temperature 1, (items × group_size, longest answer), padded at the end.

    One that has not ended by then is wrong and as long as that.
    """
    prompts, mask = _prompts(texts, items)
    cache, logits = _read_prompts(model, prompts, mask)
    cache.batch_repeat_interleave(group_size)
    logits = logits.repeat_interleave(group_size, dim=0)
    mask = mask.repeat_interleave(group_size, dim=0)
    position = mask.sum(dim=1, keepdim=True)
    drawn, has_ended = [], torch.zeros(len(mask), dtype=torch.bool)
    longest = texts.answers.shape[1]
    for place in range(longest):
        tokens = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
        tokens = torch.where(has_ended, texts.padding, tokens)
        drawn.append(tokens)
        has_ended |= tokens == texts.end
        if has_ended.all() or place == longest - 1:
            break
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        logits = model(
            input_ids=tokens[:, None], attention_mask=mask, position_ids=position + place,
            past_key_values=cache, use_cache=True,
        ).logits[:, -1]  # fmt: skip
    found = torch.stack(drawn, dim=1)
    return torch.nn.functional.pad(found, (0, longest - found.shape[1]), value=texts.padding)


def is_right(
    texts: Texts, items: Sequence[int], completions: torch.Tensor, group_size: int
) -> NDArray[np.bool_]:
    """Which completions are their answer, (items, group_size)."""
    answers = texts.answers[torch.tensor(items)].repeat_interleave(group_size, dim=0)
    return (completions == answers).all(dim=1).view(len(items), group_size).numpy()


def policy_loss(
    model: LlamaForCausalLM,
    texts: Texts,
    batch: Sequence[tuple[int, torch.Tensor, NDArray[np.bool_]]],
    groups: int,
) -> torch.Tensor:
    """GRPO's loss, to be differentiated once.

    Args:
        model: the policy that drew the completions.
        texts: of the items.
        batch: of each group its item, completions (G, longest) and which are right, (G,).
        groups: N; those that the batch lacks have no advantages.
    """
    weight: dict[tuple[int, tuple[int, ...]], float] = {}
    for place, (_, completions, right) in enumerate(batch):
        each = advantages(right.astype(float))
        for ids, advantage in zip(completions.tolist(), each, strict=True):
            weight[place, tuple(ids)] = weight.get((place, tuple(ids)), 0.0) + advantage
    of = torch.tensor([place for place, _ in weight])
    ids = torch.tensor([completion for _, completion in weight])
    means, _ = completion_log_probs(model, texts, [item for item, _, _ in batch], of, ids)
    size = batch[0][1].shape[0]
    return -(torch.tensor([*weight.values()], dtype=means.dtype) * means).sum() / (groups * size)


def completion_log_probs(
    model: LlamaForCausalLM,
    texts: Texts,
    items: Sequence[int],
    of: torch.Tensor,
    ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean log-probability of a completion's tokens and their number, both (completions,).

    Args:
        model: the policy.
        texts: of the items.
        items: whose prompts are read once.
        of: (completions,), the place in `items` of each one's item.
        ids: (completions, longest), padded at the end.
    """
    ids = ids[:, : int((ids != texts.padding).sum(dim=1).max())]
    prompts, mask = _prompts(texts, items)
    cache, first = _read_prompts(model, prompts, mask)
    cache.batch_select_indices(of)
    mask = mask[of]
    logits = first[of][:, None]
    if ids.shape[1] > 1:
        written = ids.shape[1] - 1
        position = mask.sum(dim=1, keepdim=True) + torch.arange(written)
        # What stands right of a completion's end is attended to by nothing that counts.
        mask = torch.nn.functional.pad(mask, (0, written), value=1)
        more = model(
            input_ids=ids[:, :-1], attention_mask=mask, position_ids=position,
            past_key_values=cache, use_cache=True,
        ).logits  # fmt: skip
        logits = torch.cat([logits, more], dim=1)
    log_probs = -torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), ids, ignore_index=texts.padding, reduction="none"
    )
    lengths = (ids != texts.padding).sum(dim=1)
    return log_probs.sum(dim=1) / lengths, lengths


def _prompts(texts: Texts, items: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts and their mask, without columns that all leave empty."""
    rows = torch.tensor(items)
    mask = texts.mask[rows]
    start = int(mask.any(dim=0).nonzero()[0])
    return texts.prompts[rows, start:], mask[:, start:]


def _read_prompts(
    model: LlamaForCausalLM, prompts: torch.Tensor, mask: torch.Tensor
) -> tuple[DynamicCache, torch.Tensor]:
    """Keys and values of the prompts, and the logits of what comes first, (prompts, vocabulary)."""
    found = model(
        input_ids=prompts, attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        past_key_values=DynamicCache(config=model.config), use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    return found.past_key_values, found.logits[:, -1]
