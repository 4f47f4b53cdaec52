"""Problems as a grown world's policy reads them, and the completions that it gives.

A policy of a hundred thousand parameters whose answers are a few tokens long: what is equal is run
once, and prompts are read again for every token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import LlamaForCausalLM

from tests.worlds.grown import EOS, IGNORED, Tokens, completion_ids, padded, prompt_ids
from tests.worlds.grown_skills import Question

Begun = dict[tuple[int, Tokens], int]
"""By place of a prompt and beginning of a completion, how many rollouts have it."""


@dataclass(frozen=True)
class Problem:
    """An item as training sees it: token ids of its prompt, and of its one right completion."""

    prompt: Tokens
    right: Tokens


def problem(question: Question) -> Problem:
    """The problem of a question that is answered directly."""
    return Problem(prompt_ids(question), completion_ids(question.answer))


class Sampler(Protocol):
    """What draws completions at temperature 1."""

    def __call__(
        self,
        model: LlamaForCausalLM,
        prompts: Sequence[Tokens],
        rollouts: int,
        most: int,
        generator: torch.Generator,
        right: Sequence[Tokens] | None = None,
    ) -> list[list[Tokens]]:
        """Draw as many completions of each prompt.

        Args:
            model: the policy.
            prompts: token ids.
            rollouts: of each.
            most: tokens of a completion; one that has not ended by then is cut.
            generator: of the draws.
            right: of each prompt; a completion that can no longer become it may be left as it is,
                since its reward is known: most groups have no signal and need no more of it.
        """


def draw_each(
    model: LlamaForCausalLM,
    prompts: Sequence[Tokens],
    rollouts: int,
    most: int,
    generator: torch.Generator,
    right: Sequence[Tokens] | None = None,
) -> list[list[Tokens]]:
    """A `Sampler` that draws every completion by itself, and to its end."""
    rows: list[tuple[int, Tokens]] = [(n, ()) for n in range(len(prompts)) for _ in range(rollouts)]
    for _ in range(most):
        open_ones = [row for row in dict.fromkeys(rows) if row[1][-1:] != (EOS,)]
        if not open_ones:
            break
        place = {row: n for n, row in enumerate(open_ones)}
        chances = _next_logits(model, prompts, open_ones).softmax(dim=1)
        # Those that have ended draw too, so that no rollout's luck hangs on the others' lengths.
        of = torch.tensor([place.get(row, 0) for row in rows])
        drawn = torch.multinomial(chances[of], 1, generator=generator)[:, 0].tolist()
        rows = [
            (n, (*written, token) if (n, written) in place else written)
            for (n, written), token in zip(rows, drawn, strict=True)
        ]
    completions = [written for _, written in rows]
    return [completions[n * rollouts : (n + 1) * rollouts] for n in range(len(prompts))]


def draw_alike(
    model: LlamaForCausalLM,
    prompts: Sequence[Tokens],
    rollouts: int,
    most: int,
    generator: torch.Generator,
    right: Sequence[Tokens] | None = None,
) -> list[list[Tokens]]:
    """A `Sampler` that draws those on together that have begun alike, and as far as is needed."""
    begun: Begun = {(n, ()): rollouts for n in range(len(prompts))}
    return draw_on(model, prompts, begun, most, generator, right)


def draw_on(
    model: LlamaForCausalLM,
    prompts: Sequence[Tokens],
    begun: Begun,
    most: int,
    generator: torch.Generator,
    right: Sequence[Tokens] | None = None,
) -> list[list[Tokens]]:
    """Draw completions on from where they have `begun`, of each prompt; else as `draw_alike`."""
    done: list[list[Tokens]] = [[] for _ in prompts]
    while begun:
        keys = list(begun)
        logits = _next_logits(model, prompts, keys)
        owner = torch.arange(len(keys)).repeat_interleave(torch.tensor([*begun.values()]))
        below = torch.softmax(logits.double(), dim=1).cumsum(dim=1)[owner]
        chance = torch.rand(len(owner), 1, generator=generator, dtype=torch.double) * below[:, -1:]
        drawn = torch.searchsorted(below, chance, right=True).clamp(max=below.shape[1] - 1)
        pairs = zip(owner.tolist(), drawn[:, 0].tolist(), strict=True)
        begun = {}
        for (place, token), count in Counter(pairs).items():
            n, beginning = keys[place]
            completion = (*beginning, token)
            is_wrong = right is not None and completion != right[n][: len(completion)]
            if has_ended(completion, most) or is_wrong:
                done[n] += [completion] * count
            else:
                begun[n, completion] = count
    return done


def has_ended(completion: Sequence[int], most: int) -> bool:
    """Whether nothing is drawn on."""
    return completion[-1] == EOS or len(completion) == most


@torch.no_grad()
def _next_logits(
    model: LlamaForCausalLM, prompts: Sequence[Tokens], begun: Sequence[tuple[int, Tokens]]
) -> torch.Tensor:
    """Logits of what comes next after each beginning, (beginnings, vocabulary)."""
    rows = [(prompts[n], beginning) for n, beginning in begun]
    last = torch.tensor([len(prompt) + len(beginning) - 1 for prompt, beginning in rows])
    hidden = model.model(input_ids=padded(rows)[0], use_cache=False).last_hidden_state
    logits: torch.Tensor = model.lm_head(hidden[torch.arange(len(rows)), last])
    return logits


def log_probabilities(
    model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Of each completion token, 0 elsewhere: (rows, longest − 1), of `padded` rows."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return -torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
    )
