"""Sample rollouts with a transformers model: continuous batching over one right-aligned cache.

Every row of the batch ends at the same cache column, so one decoding step serves all of them. A
row is not a rollout but what rollouts of a prompt have in common: all samples of a prompt begin in
one row, and a row divides where its samples draw different tokens. So nothing is computed twice,
neither prompts nor the beginnings of answers, which the samples of a sure policy share to the end.
Finished rows leave the batch, and new prompts join it when room is free. Tokens are drawn by
inverse transform from each sample's own uniform numbers (`engine.uniform_draws`), so how rows
divide changes no rollout. Models with other layers than attention are sampled by
`probes.engines.generate` instead.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, DynamicLayer

from curate.errors import RunError
from probes.engines.base import (
    WHOLE,
    RequestStream,
    Rollout,
    SampleRequest,
    Truncation,
    uniform_draws,
)
from probes.engines.drawing import draw, log_probabilities_of
from probes.engines.generate import generate_rollouts, has_plain_attention
from probes.models.load import Policy, give_back_freed_memory, is_out_of_memory

# Room that the cache grows by, in columns: a copy of the whole cache every 64 steps, not every one.
_GROWTH = 64
# New prompts wait until this share of the rows is free, because joining copies the cache.
_REFILL_SHARE = 0.25
# How fast the share of rows to samples, which says how many samples to let in, is learned anew.
_SHARE_MEMORY = 0.05
# Requests wait in lots of so many batches, the longest prompts of a lot first.
_LOT = 4
# Tokens of prompts run through the model in one pass: on a CPU so many as keep it busy.
_PREFILL_TOKENS = {"cpu": 256, "cuda": 1024}
# Rows decoded at once. On a CPU their cache soon takes half as much as a small model's weights;
# in float32 a row's is twice as large.
_MOST_ROWS = {"cpu": 64, "cuda": 512}
_MOST_ROWS_OF_FLOAT32 = 48


class _SlotLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values in slots, a slot a row, every row ending at the same column.

    `keys`, `values`: (slots, heads, capacity, head_dim). The first `rows` slots are in use, and of
    them the columns from `first` to `end`. Steps write in place; a row that leaves is overwritten
    by the last one, so that the cache as a whole is copied only when it has to grow.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, growth: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = self.first = self.end = 0
        self.growth = growth
        """Columns that it grows by."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.rows, heads, columns, key_dim = key_states.shape
        self.keys = key_states.new_empty(self.rows, heads, columns, key_dim)
        self.values = value_states.new_empty(self.rows, heads, columns, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[-2]
        if self.end + new > self.keys.shape[-2]:
            # The last rollouts are the longest, and few: they take no empty slots with them.
            slots = min(self.keys.shape[0], 2 * self.rows)
            self._reallocate(slots, self.get_seq_length(), new + self.growth)
        self.keys[: self.rows, :, self.end : self.end + new] = key_states
        self.values[: self.rows, :, self.end : self.end + new] = value_states
        self.end += new
        return (
            self.keys[: self.rows, :, self.first : self.end],
            self.values[: self.rows, :, self.first : self.end],
        )

    def get_seq_length(self) -> int:
        return self.end - self.first

    def _reallocate(self, slots: int, columns: int, room: int) -> None:
        """Move the used part into fresh tensors, where it ends at column `columns`."""
        used = self.get_seq_length()
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(slots, old.shape[1], columns + room, old.shape[3])
            new[: self.rows, :, columns - used : columns] = old[
                : self.rows, :, self.first : self.end
            ]
            setattr(self, name, new)
        self.first, self.end = 0, columns

    def leave(self, row: int) -> None:
        """Take a row out; the last row takes its place."""
        self.rows -= 1
        for states in (self.keys, self.values):
            states[row, :, self.first : self.end] = states[self.rows, :, self.first : self.end]

    def join(self, prompts: _SlotLayer, slots: int) -> None:
        """Append the rows of `prompts`; where it has to grow, there are so many slots then."""
        columns = max(self.get_seq_length(), prompts.end)
        if self.rows + prompts.rows > self.keys.shape[0] or columns > self.end:
            self._reallocate(max(slots, self.rows + prompts.rows), columns, self.growth)
        self.first = self.end - columns
        new = slice(self.rows, self.rows + prompts.rows)
        for name in ("keys", "values"):
            states = getattr(self, name)
            states[new, :, self.first : self.end - prompts.end] = 0
            states[new, :, self.end - prompts.end : self.end] = getattr(prompts, name)[
                :, :, : prompts.end
            ]
        self.rows += prompts.rows

    def divide(self, copies: torch.Tensor, slots: int) -> None:
        """Append rows, the i-th a copy of row `copies[i]`; `slots` as for `join`."""
        rows = self.rows + len(copies)
        if rows > self.keys.shape[0]:
            self._reallocate(max(slots, rows), self.get_seq_length(), self.growth)
        copies = copies.to(self.keys.device)  # Blocks may lie on several GPUs.
        for states in (self.keys, self.values):
            states[self.rows : self.rows + len(copies), :, self.first : self.end] = states[
                copies, :, self.first : self.end
            ]
        self.rows += len(copies)


@dataclass
class _Row:
    """Rollouts of one prompt in the making that have drawn the same tokens so far."""

    request: SampleRequest
    samples: list[int]
    uniform: list[torch.Tensor]
    """Of each sample: (max_tokens,)."""
    tokens: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    """Of the tokens, under the policy at temperature 1."""


class _Batch:
    """The rows that are being decoded, their cache, and how many tokens each has in it."""

    def __init__(self, layers: int, device: torch.device, growth: int) -> None:
        self.layers = [_SlotLayer(growth) for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))
        self.rows: list[_Row] = []
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)

    @property
    def columns(self) -> int:
        """Columns of the cache in use."""
        return self.layers[0].get_seq_length()

    @property
    def samples(self) -> int:
        """Rollouts in the making."""
        return sum(len(row.samples) for row in self.rows)

    def divide(self, rows: list[_Row], copies: list[int], slots: int) -> None:
        """Append rows whose cache is that of the rows at `copies`."""
        places = torch.tensor(copies, device=self.lengths.device)
        self.rows += rows
        self.lengths = torch.cat([self.lengths, self.lengths[places]])
        for layer in self.layers:
            layer.divide(places, slots)

    def leave(self, row: int) -> None:
        """Take a row out; the last row takes its place."""
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last
            self.lengths[row] = self.lengths[-1]
        self.lengths = self.lengths[:-1]
        for layer in self.layers:
            layer.leave(row)

    def trim(self) -> None:
        """Forget the columns that only rows which have left used."""
        if self.rows:
            unused = self.columns - int(self.lengths.max())
            for layer in self.layers:
                layer.first += unused


class TransformersEngine:
    """Draws rollouts from a `Policy` on this machine.

    Args:
        policy: the loaded policy.
        seed, temperature, truncation, max_tokens: of the sampling; `temperature` > 0.
        batch_tokens: rows x (prompt + completion) tokens held at once; halved when memory runs out.
        max_rows: the most rows decoded at once.
    """

    name = "transformers"
    has_own_weights = False

    def __init__(
        self,
        policy: Policy,
        *,
        seed: int,
        temperature: float,
        max_tokens: int,
        truncation: Truncation = WHOLE,
        batch_tokens: int | None = None,
        max_rows: int | None = None,
    ) -> None:
        self.policy = policy
        self.seed = seed
        self.temperature = temperature
        self.truncation = truncation
        self.max_tokens = max_tokens
        self.batch_tokens = batch_tokens or _default_batch_tokens(policy)
        self.max_rows = max_rows or _default_rows(policy)
        self.is_plain = has_plain_attention(policy.model)
        self.stops_at = math.inf
        self._in_hand: list[_Row] = []
        # Rows a sample, as it was lately: how much the rollouts have in common.
        self._rows_per_sample = 1.0

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        """Yield every rollout asked for, in the order in which they finish.

        Raises:
            RunError: one single rollout does not fit into memory.
        """
        if not self.is_plain:
            yield from self._generate(requests)
            return
        stream, waiting = RequestStream(requests), deque[SampleRequest]()
        batch: _Batch | None = None
        steps = 0
        while time.monotonic() < self.stops_at:
            self._take(stream, waiting)
            if not waiting and not batch:
                break
            try:
                with torch.inference_mode():
                    batch = self._refill(batch, waiting)
                    finished = self._step(batch, waiting)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                rows = batch.rows if batch else []
                batch = None
                self._back_off(rows, waiting, error)
                continue
            self._in_hand = batch.rows
            steps += 1
            if steps % _GROWTH == 0:
                give_back_freed_memory()
            yield from finished
            if not batch.rows:
                batch = None
                give_back_freed_memory()

    def _take(self, stream: RequestStream, waiting: deque[SampleRequest]) -> None:
        """Let more requests wait where those that do no longer fill a batch."""
        if stream.is_over:
            return
        full = math.ceil(self.max_rows / self._rows_per_sample)
        if sum(request.samples for request in waiting) < full:
            # Long prompts first: their rows set the cache's width, which then only shrinks.
            lot = stream.take(_LOT * full)
            waiting.extend(sorted(lot, key=lambda r: -len(r.prompt_token_ids)))

    def _generate(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        return generate_rollouts(
            self.policy,
            requests,
            seed=self.seed,
            temperature=self.temperature,
            truncation=self.truncation,
            max_tokens=self.max_tokens,
            most_rows=self._most_rows,
            is_over=lambda: time.monotonic() >= self.stops_at,
        )

    def unfinished(self) -> list[int] | None:
        """Tokens so far of every rollout in the making; None where `generate` has them."""
        if not self.is_plain:
            return None
        return [len(row.tokens) for row in self._in_hand for _ in row.samples]

    def close(self) -> None:
        """Nothing to free: the weights are the policy's, and the cache ends with each call."""

    def facts(self) -> dict[str, Any]:
        """Say what draws the rollouts, for the manifest."""
        options: dict[str, Any] = {"batch_tokens": self.batch_tokens, "max_rows": self.max_rows}
        if not self.is_plain:
            options["by"] = "generate"
        return {
            "name": self.name,
            "version": transformers.__version__,
            "seed": self.seed,
            "options": options,
            "token_ids": True,
            # On a GPU the batch depends on the memory that is free, and rounding on the batch.
            "deterministic": self.policy.device.type == "cpu",
        }

    def _back_off(self, rows: list[_Row], waiting: deque[SampleRequest], error: Exception) -> None:
        """Put the rows in hand back and halve the budget."""
        for row in rows:
            waiting.extend(_again(row))
        if self.max_rows <= 1:
            raise RunError(
                f"out of memory with a single rollout in the batch ({error}); "
                "lower --max-tokens or use a machine with more memory"
            ) from error
        self.batch_tokens //= 2
        self.max_rows //= 2
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()

    def _refill(self, batch: _Batch | None, waiting: deque[SampleRequest]) -> _Batch:
        taken = self._rows_to_come(batch) if batch else 0
        if not waiting or (batch and self.max_rows - taken < self.max_rows * _REFILL_SHARE):
            assert batch is not None
            return batch
        chosen = self._choose(taken, batch, waiting)
        if not chosen:
            assert batch is not None
            return batch
        batch = batch or self._new_batch()
        try:
            self._prefill(batch, chosen)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError):
            waiting.extendleft(reversed(chosen))
            raise
        return batch

    def _rows_to_come(self, batch: _Batch) -> int:
        """Rows that the samples in hand will need, if they divide as those before them did."""
        return max(len(batch.rows), round(batch.samples * self._rows_per_sample))

    def _new_batch(self) -> _Batch:
        layers = self.policy.model.config.get_text_config().num_hidden_layers
        # No completion needs more columns than it may have tokens.
        return _Batch(layers, self.policy.device, min(_GROWTH, self.max_tokens))

    def _choose(
        self, taken: int, batch: _Batch | None, waiting: deque[SampleRequest]
    ) -> list[SampleRequest]:
        """Take requests while rows, of which `taken` are, and tokens are free; may split one."""
        chosen: list[SampleRequest] = []
        most = _PREFILL_TOKENS[self.policy.device.type]
        width = max((int(length) for length in batch.lengths), default=0) if batch else 0
        prefill = 0
        rows = float(taken)
        while waiting:
            request = waiting[0]
            prompt = len(request.prompt_token_ids)
            width = max(width, prompt)
            free = self._most_rows(width) - rows
            take = min(request.samples, int(free / self._rows_per_sample))
            if free < 1 or take <= 0 or (chosen and prefill + prompt > most):
                break
            waiting.popleft()
            ids = request.prompt_token_ids
            chosen.append(SampleRequest(request.item_id, ids, request.first_sample, take))
            if take < request.samples:
                first, left = request.first_sample + take, request.samples - take
                waiting.appendleft(SampleRequest(request.item_id, ids, first, left))
            rows += max(1.0, take * self._rows_per_sample)
            prefill += prompt
        return chosen

    def _most_rows(self, width: int) -> int:
        """Rows that fit beside each other when the longest has `width` tokens now."""
        return min(self.max_rows, max(1, self.batch_tokens // (width + self.max_tokens)))

    def _most_slots(self, width: int) -> int:
        """Rows that there are at most: a quarter more than are let in.

        How rows divide is only known on average.
        """
        most = self._most_rows(width)
        return most + most // 4

    def _prefill(self, batch: _Batch, requests: list[SampleRequest]) -> None:
        """Run each prompt once, less its last token, and let its samples join the batch."""
        device = self.policy.device
        prompts = [[int(token) for token in request.prompt_token_ids] for request in requests]
        # The last prompt token is the first decoding step's input, so it stays out of the cache.
        # A prompt of one token has an empty cache: one column of padding stands in for it.
        width = max(1, *(len(prompt) - 1 for prompt in prompts))
        lengths = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        padded = [[0] * (width - len(prompt) + 1) + prompt[:-1] for prompt in prompts]
        mask = torch.arange(width, device=device) >= (width - lengths)[:, None]
        prefilled = self._new_batch()
        self.policy.model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(-1) - 1).clamp_min(0),
            past_key_values=prefilled.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        slots = self._most_slots(max([width, *batch.lengths.tolist()]))
        for ours, theirs in zip(batch.layers, prefilled.layers, strict=True):
            if not ours.is_initialized:
                ours.lazy_initialization(theirs.keys[:0], theirs.values[:0])
            ours.join(theirs, slots)
        for request in requests:
            samples = range(request.first_sample, request.first_sample + request.samples)
            uniform = [self._uniform(request.item_id, sample) for sample in samples]
            batch.rows.append(_Row(request, list(samples), uniform))
        batch.lengths = torch.cat([batch.lengths, lengths])

    def _uniform(self, item_id: str, sample: int) -> torch.Tensor:
        return torch.from_numpy(uniform_draws(self.seed, item_id, sample, self.max_tokens))

    def _step(self, batch: _Batch, waiting: deque[SampleRequest]) -> list[Rollout]:
        """Decode one token of every sample, divide the rows, and take the finished ones out."""
        device = self.policy.device
        columns = batch.columns
        last = [(row.tokens or row.request.prompt_token_ids)[-1] for row in batch.rows]
        mask = torch.arange(columns + 1, device=device) >= (columns - batch.lengths)[:, None]
        logits = self.policy.model(
            input_ids=torch.tensor(last, device=device)[:, None],
            attention_mask=mask.long(),
            position_ids=batch.lengths[:, None],
            past_key_values=batch.cache,
            use_cache=True,
        ).logits[:, -1]
        uniform = pad_sequence(
            [torch.stack([u[len(row.tokens)] for u in row.uniform]) for row in batch.rows],
            batch_first=True,
        )
        tokens = draw(logits, uniform.to(device), self.temperature, self.truncation)
        drawn, scores = tokens.tolist(), log_probabilities_of(logits, tokens).tolist()
        batch.lengths += 1
        share = len(batch.rows) / batch.samples
        self._rows_per_sample += _SHARE_MEMORY * (share - self._rows_per_sample)
        finished: list[Rollout] = []
        left: list[int] = []
        parted: list[_Row] = []
        parents: list[int] = []
        for index, row in enumerate(batch.rows):
            branches = self._branches(row, drawn[index], scores[index], finished)
            if not branches:
                left.append(index)
                continue
            row.samples, row.uniform = branches[0].samples, branches[0].uniform
            row.tokens, row.log_probability = branches[0].tokens, branches[0].log_probability
            parted += branches[1:]
            parents += [index] * (len(branches) - 1)
        self._divide(batch, parted, parents, waiting)
        # From the last to the first, so that the row that fills a gap is one that stays.
        for index in reversed(left):
            batch.leave(index)
        batch.trim()
        return finished

    def _branches(
        self, row: _Row, tokens: list[int], scores: list[float], finished: list[Rollout]
    ) -> list[_Row]:
        """What a row becomes, by the token that each of its samples drew; finished ones apart."""
        branches: dict[int, _Row] = {}
        drawn = zip(row.samples, row.uniform, tokens, scores, strict=False)
        for sample, uniform, token, score in drawn:
            total = row.log_probability + score
            is_end = token in self.policy.eos_token_ids
            if is_end or len(row.tokens) + 1 >= self.max_tokens:
                reason = "stop" if is_end else "length"
                ids = [*row.tokens, token]
                finished.append(Rollout(row.request.item_id, sample, ids, reason, total))
                continue
            if token not in branches:
                branches[token] = _Row(row.request, [], [], [*row.tokens, token], total)
            branches[token].samples.append(sample)
            branches[token].uniform.append(uniform)
        return list(branches.values())

    def _divide(
        self,
        batch: _Batch,
        parted: list[_Row],
        parents: list[int],
        waiting: deque[SampleRequest],
    ) -> None:
        """Let rows part while there is room; those that find none begin anew later."""
        slots = self._most_slots(int(batch.lengths.max()))
        room = max(0, slots - len(batch.rows))
        for row in parted[room:]:
            waiting.extendleft(_again(row))
        if parted[:room]:
            batch.divide(parted[:room], parents[:room], slots)


def _again(row: _Row) -> list[SampleRequest]:
    """Ask anew for the samples of a row."""
    request = row.request
    return [
        SampleRequest(request.item_id, request.prompt_token_ids, first, count)
        for first, count in _runs(row.samples)
    ]


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Where successive numbers begin, and how many they are."""
    first = 0
    for place, number in enumerate(numbers):
        if place + 1 == len(numbers) or numbers[place + 1] != number + 1:
            yield numbers[first], place + 1 - first
            first = place + 1


def _default_rows(policy: Policy) -> int:
    if policy.device.type == "cpu" and policy.dtype == torch.float32:
        return _MOST_ROWS_OF_FLOAT32
    return _MOST_ROWS[policy.device.type]


def _default_batch_tokens(policy: Policy) -> int:
    """Fit the cache into half of what is free on a GPU; 32,768 tokens on a CPU."""
    if policy.device.type != "cuda":
        return 32 * 1024
    config = policy.model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0) or 1
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    # State-space models have none, and their states are smaller than keys and values would be.
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    per_token = 2 * config.num_hidden_layers * key_heads * head_dim
    per_token *= policy.model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(policy.device)
    # What PyTorch holds of the card and does not use is free to it, after a training step most.
    free += torch.cuda.memory_reserved(policy.device) - torch.cuda.memory_allocated(policy.device)
    return int(max(4096, free // 2 // per_token))
