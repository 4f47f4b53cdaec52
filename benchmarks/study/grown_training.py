"""Compact GRPO, SFT and more pretraining for the policies of grown worlds, seconds a training.

What `recipes.train` does through TRL in minutes: dynamic sampling, groups, advantages, replay and
stream of prompts are its own; the loss is written anew for models of a hundred thousand parameters
whose answers are a few tokens long (`tests/test_grown_training.py` holds it to TRL's on the same
groups). Equal rollouts of a group are computed once and weighed by how often they were drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from recipes.train.groups import Group, ReplayBuffer, advantages, prompts_to_ask, with_replay
from recipes.train.prompts import PromptStream, TrainingItem
from tests.worlds.grown import tokenizer
from tests.worlds.grown_skills import Question

Tokens = tuple[int, ...]

_TOKENIZER = tokenizer()
_ID = _TOKENIZER.get_vocab()
EOS = int(_TOKENIZER.eos_token_id)
_IGNORED = -100
_PARTS = ("prompt", "right")


@dataclass(frozen=True)
class Problem:
    """An item as training sees it: token ids of its prompt, and of its one right completion."""

    prompt: Tokens
    right: Tokens


def problem(question: Question) -> Problem:
    """The problem of a question that is answered directly."""
    prompt, answer = (
        [int(_ID[symbol]) for symbol in text.split()] for text in (question.prompt, question.answer)
    )
    return Problem(tuple(prompt), (*answer, EOS))


@dataclass(frozen=True)
class Grpo:
    """How GRPO trains: the names and defaults are those of recipes.

    Attributes:
        steps: of `prompts` groups that reach the loss, in `updates` updates.
        most_rounds: times `prompts` that a step samples at most.
        oversample, positives, reuse: of replay; `positives` 0: none.
    """

    steps: int
    learning_rate: float
    prompts: int = 32
    group: int = 8
    updates: int = 4
    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    most_rounds: int = 10
    oversample: int = 1
    positives: int = 0
    reuse: int = 2
    max_grad_norm: float = 1.0


@dataclass
class Log:
    """What a training did, by item where arrays: (items,)."""

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
    rollouts: int = 0
    unfilled: int = 0
    """Groups without a signal that filled a batch up."""
    kl: list[float] = field(default_factory=list)
    """Mean estimate of each step's last update."""

    @classmethod
    def of(cls, items: int) -> Log:
        """An empty one."""
        counts = np.zeros((2, items), np.int64)
        sums = np.zeros((4, items))
        return cls(counts[0], counts[1], sums[0], sums[1], sums[2], sums[3])


def as_stream(items: Sequence[int], seed: int) -> PromptStream:
    """The endless shuffled stream of some items, by their number."""
    return PromptStream([TrainingItem(str(n), (), "") for n in items], seed=seed, shuffle=True)


# --- Sampling -----------------------------------------------------------------------------------


Begun = dict[tuple[int, Tokens], int]
"""By prompt and beginning of a completion, how many rollouts have it."""


def sample(
    model: LlamaForCausalLM,
    prompts: Sequence[Tokens],
    rollouts: int,
    most: int,
    generator: torch.Generator,
) -> list[list[Tokens]]:
    """Draw completions at temperature 1, as many of each prompt.

    Args:
        model: the policy.
        prompts: token ids.
        rollouts: of each.
        most: tokens of a completion; one that has not ended by then is cut.
        generator: of the draws.
    """
    begun: Begun = {(n, ()): rollouts for n in range(len(prompts))}
    return draw_on(model, prompts, begun, most, generator)


@torch.no_grad()
def draw_on(
    model: LlamaForCausalLM,
    prompts: Sequence[Tokens],
    begun: Begun,
    most: int,
    generator: torch.Generator,
    right: Sequence[Tokens] | None = None,
) -> list[list[Tokens]]:
    """Draw completions on from their beginnings, of each prompt; equal ones are run once.

    Args:
        model, prompts, most, generator: as in `sample`.
        begun: the beginnings.
        right: of each prompt; a completion that can no longer become it is left as it is, since
            its reward is known. Most groups have no signal and need no more of it.
    """
    done: list[list[Tokens]] = [[] for _ in prompts]
    while begun:
        keys = list(begun)
        ids = _padded([prompts[n] + beginning for n, beginning in keys])
        last = torch.tensor([len(prompts[n]) + len(beginning) - 1 for n, beginning in keys])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[torch.arange(len(keys)), last])
        times = torch.tensor([begun[key] for key in keys])
        owner = torch.arange(len(keys)).repeat_interleave(times)
        below = torch.softmax(logits.double(), dim=1).cumsum(dim=1)[owner]
        chance = torch.rand(len(owner), 1, generator=generator, dtype=torch.double) * below[:, -1:]
        drawn = torch.searchsorted(below, chance, right=True).clamp(max=below.shape[1] - 1)
        pairs = zip(owner.tolist(), drawn[:, 0].tolist(), strict=True)
        begun = {}
        for (place, token), count in Counter(pairs).items():
            n, beginning = keys[place]
            completion = (*beginning, token)
            is_over = token == EOS or len(completion) == most
            if is_over or (right and completion != right[n][: len(completion)]):
                done[n] += [completion] * count
            else:
                begun[n, completion] = count
    return done


def _finished(
    model: LlamaForCausalLM, groups: Sequence[Group], most: int, generator: torch.Generator
) -> list[Group]:
    """Groups whose wrong completions are drawn to their end."""
    done: list[list[Tokens]] = [[] for _ in groups]
    begun: Begun = {}
    for n, group in enumerate(groups):
        for completion in map(tuple, group.completions):
            if completion[-1] == EOS or len(completion) == most:
                done[n].append(completion)
            else:
                begun[n, completion] = begun.get((n, completion), 0) + 1
    prompts = [tuple(group.prompt_token_ids) for group in groups]
    ended = draw_on(model, prompts, begun, most, generator)
    finished = []
    for n, group in enumerate(groups):
        # Rewards go with completions: those that were right have ended before.
        right = [tuple(group.completions[place]) for place in np.flatnonzero(group.is_correct)]
        wrong = list((Counter(done[n]) - Counter(right)).elements()) + ended[n]
        rewards = [1.0] * len(right) + [0.0] * len(wrong)
        finished.append(replace(group, completions=[*right, *wrong], rewards=rewards))
    return finished


def _padded(rows: Sequence[Tokens], value: int = 0) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


# --- GRPO ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Distinct rollouts of groups; arrays (rows,), but ids and labels (rows, longest)."""

    ids: torch.Tensor
    labels: torch.Tensor
    """The ids of completions, -100 elsewhere."""
    advantages: torch.Tensor
    times: torch.Tensor
    """How often the rollout is in its group."""
    item: NDArray[np.int64]
    group: torch.Tensor
    """Place of the row's group."""
    old: torch.Tensor | None = None
    """Log-probabilities (rows, longest − 1) when they were drawn; None: those of now."""
    reference: torch.Tensor | None = None

    def take(
        self, rows: torch.Tensor, old: torch.Tensor | None, reference: torch.Tensor | None
    ) -> Batch:
        """Some rows, (rows,) of truth values, with the log-probabilities of all."""
        return Batch(
            self.ids[rows],
            self.labels[rows],
            self.advantages[rows],
            self.times[rows],
            self.item[rows.numpy()],
            self.group[rows],
            None if old is None else old[rows],
            None if reference is None else reference[rows],
        )


def as_batch(groups: Sequence[Group]) -> Batch:
    """The rollouts of some groups; `item_id` is the item's number."""
    rows, labels, values, times, items, places_of = [], [], [], [], [], []
    for number, group in enumerate(groups):
        gained = advantages(group.rewards)
        distinct: dict[Tokens, list[int]] = {}
        for place, completion in enumerate(group.completions):
            distinct.setdefault(tuple(completion), []).append(place)
        prompt = tuple(group.prompt_token_ids)
        for completion, places in distinct.items():
            rows.append(prompt + completion)
            labels.append((_IGNORED,) * len(prompt) + completion)
            values.append(float(gained[places[0]]))
            times.append(float(len(places)))
            items.append(int(group.item_id))
            places_of.append(number)
    return Batch(
        _padded(rows),
        _padded(labels, _IGNORED),
        torch.tensor(values),
        torch.tensor(times),
        np.array(items),
        torch.tensor(places_of),
    )


def log_probabilities(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Of each completion token, 0 elsewhere: (rows, longest − 1)."""
    logits = model(input_ids=batch.ids[:, :-1], use_cache=False).logits
    return -torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), batch.labels[:, 1:], ignore_index=_IGNORED, reduction="none"
    )


def loss_of(
    model: LlamaForCausalLM, batch: Batch, settings: Grpo, log: Log | None = None
) -> torch.Tensor:
    """GRPO's loss (equation 1 of arXiv 2605.16787): tokens averaged in a rollout, then rollouts."""
    now = log_probabilities(model, batch)
    mask = (batch.labels[:, 1:] != _IGNORED).to(now.dtype)
    lengths = mask.sum(dim=1)
    gain = batch.advantages[:, None].to(now.dtype)
    ratio = torch.exp(now - (now.detach() if batch.old is None else batch.old))
    clipped = ratio.clamp(1 - settings.epsilon, 1 + settings.epsilon_high)
    by_token = -torch.minimum(ratio * gain, clipped * gain)
    if batch.reference is not None:
        away = batch.reference - now
        by_token = by_token + settings.beta * (torch.exp(away) - away - 1)
    weight = batch.times / batch.times.sum()
    if log is not None:
        with torch.no_grad():
            above = ((ratio > 1 + settings.epsilon_high) & (gain > 0)) * mask
            below = ((ratio < 1 - settings.epsilon) & (gain < 0)) * mask
            counted = (
                (log.tokens, mask),
                (log.right_tokens, mask * (gain > 0)),
                (log.clipped_above, above),
                (log.clipped_below, below),
            )
            for sums, each in counted:
                np.add.at(sums, batch.item, (each.sum(dim=1) * batch.times).numpy())
            if batch.reference is not None:
                away = batch.reference - now
                by_row = ((torch.exp(away) - away - 1) * mask).sum(dim=1) / lengths
                log.kl.append(float(weight @ by_row))
    return weight.to(now.dtype) @ ((by_token * mask).sum(dim=1) / lengths)


def train_grpo(
    model: LlamaForCausalLM,
    problems: Sequence[Problem],
    settings: Grpo,
    seed: int,
    *,
    stream_of: Callable[[int], PromptStream],
    reference: LlamaForCausalLM | None = None,
    at_step: Callable[[int], None] = lambda step: None,
) -> Log:
    """Train a policy in place.

    Args:
        model: the policy.
        problems: what streams number.
        settings: of GRPO; AdamW at a constant rate without weight decay, as in recipes.
        seed: of the draws.
        stream_of: the stream of each step, from 1; every stream goes on where it stood.
        reference: of the KL term, where `settings.beta` is not 0.
        at_step: called after each step, from 1.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.0)
    buffer = ReplayBuffer(settings.reuse)
    log = Log.of(len(problems))
    longest = max(len(each.right) for each in problems)
    places: dict[int, int] = {}
    sampled, signals, number = 0, 0, 0
    for step in range(1, settings.steps + 1):
        stream = stream_of(step)
        kept: list[Group] = []
        spare: list[Group] = []
        most = settings.prompts * settings.most_rounds
        asked = 0
        while asked < most and len(kept) < settings.prompts:
            now = settings.prompts
            if sampled:
                missing = settings.prompts - len(kept)
                now = prompts_to_ask(missing, signals, sampled, 4 * settings.prompts)
            now = min(now, most - asked)
            first = places.get(id(stream), 0)
            items = [int(stream[first + n].item_id) for n in range(now)]
            places[id(stream)] = first + now
            asked += now
            size = settings.group * settings.oversample
            begun: Begun = {(n, ()): size for n in range(now)}
            prompts, right = ([getattr(problems[n], each) for n in items] for each in _PARTS)
            drawn = draw_on(model, prompts, begun, longest, generator, right)
            for item, completions in zip(items, drawn, strict=True):
                rewards = [float(each == problems[item].right) for each in completions]
                group = Group(
                    number, str(item), problems[item].prompt, completions, rewards, [False] * size
                )
                log.visits[item] += 1
                log.right[item] += int(sum(rewards))
                log.rollouts += size
                if settings.positives:
                    rng = np.random.default_rng([seed, number])
                    group = with_replay(group, settings.positives, settings.group, buffer, rng)
                number += 1
                sampled += 1
                signals += group.has_signal
                is_kept = group.has_signal and len(kept) < settings.prompts
                (kept if is_kept else spare).append(group)
        filling = [each for each in reversed(spare) if not each.has_signal]
        filling = filling[: settings.prompts - len(kept)]
        log.unfilled += len(filling)
        batch = _finished(model, [*kept, *filling], longest, generator)
        _update(model, batch, settings, optimizer, reference, log)
        at_step(step)
    return log


def _update(
    model: LlamaForCausalLM,
    groups: Sequence[Group],
    settings: Grpo,
    optimizer: torch.optim.Optimizer,
    reference: LlamaForCausalLM | None,
    log: Log,
) -> None:
    """The updates of a step."""
    batch = as_batch(groups)
    with torch.no_grad():
        old = log_probabilities(model, batch)
        away = log_probabilities(reference, batch) if reference and settings.beta else None
    each = -(-len(groups) // settings.updates)
    for first in range(0, len(groups), each):
        rows = (batch.group >= first) & (batch.group < first + each)
        part = batch.take(rows, old, away)
        _step(model, loss_of(model, part, settings, log), optimizer, settings.max_grad_norm)


def _step(
    model: LlamaForCausalLM, loss: torch.Tensor, optimizer: torch.optim.Optimizer, norm: float
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
    optimizer.step()


# --- Supervised ---------------------------------------------------------------------------------


def _fit(
    model: LlamaForCausalLM,
    batches: Iterable[Sequence[tuple[Tokens, Tokens]]],
    optimizer: torch.optim.Optimizer,
    rate_of: Callable[[int], float],
) -> None:
    for step, rows in enumerate(batches):
        ids = _padded([prompt + completion for prompt, completion in rows])
        labels = _padded(
            [(_IGNORED,) * len(prompt) + completion for prompt, completion in rows], _IGNORED
        )
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels[:, 1:], ignore_index=_IGNORED
        )
        for group in optimizer.param_groups:
            group["lr"] = rate_of(step)
        _step(model, loss, optimizer, 1.0)


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
    stream = as_stream(range(len(problems)), seed)
    chosen = (
        [problems[int(stream[step * batch + n].item_id)] for n in range(batch)]
        for step in range(steps)
    )
    _fit(
        model,
        ([(each.prompt, each.right) for each in rows] for rows in chosen),
        torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.0),
        lambda step: learning_rate,
    )


def train_more(
    model: LlamaForCausalLM,
    draw: Callable[[], tuple[Tokens, Tokens]],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
) -> None:
    """Pretrain a policy further, in place, on what `draw` gives: a prompt and a completion.

    As in `grow_world`: the rate rises over 20 steps and falls to a tenth.
    """
    _fit(
        model,
        ([draw() for _ in range(batch)] for _ in range(steps)),
        torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.1),
        lambda step: learning_rate * min((step + 1) / 20, 1 - 0.9 * step / steps),
    )
