"""Sample rollouts with a transformers model: continuous batching over one right-aligned cache.

Every row of the batch ends at the same cache column, so one decoding step serves all of them. A
prompt is run through the model once for all its samples, finished rows leave the batch, and new
prompts join it when room is free. Rows are drawn by inverse transform from the row's own uniform
numbers (`engine.uniform_draws`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from curate.errors import RunError
from probes.engine import Rollout, SampleRequest, uniform_draws
from probes.models import Policy

# Room that the cache grows by, in columns: a copy of the whole cache every 64 steps, not every one.
_GROWTH = 64
# New prompts wait until this share of the rows is free, because joining copies the cache.
_REFILL_SHARE = 0.25
# Tokens of prompts run through the model in one pass.
_PREFILL_TOKENS = 1024


class _SlotLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values in slots, a slot a row, every row ending at the same column.

    `keys`, `values`: (slots, heads, capacity, head_dim). The first `rows` slots are in use, and of
    them the columns from `first` to `end`. Steps write in place; a row that leaves is overwritten
    by the last one, so that the cache as a whole is copied only when it has to grow.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = self.first = self.end = 0

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
            self._reallocate(self.keys.shape[0], self.get_seq_length(), new + _GROWTH)
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

    def join(self, prompts: _SlotLayer, copies: torch.Tensor, slots: int) -> None:
        """Append rows, the i-th a copy of row `copies[i]` of `prompts`."""
        columns = max(self.get_seq_length(), prompts.end)
        if self.rows + len(copies) > self.keys.shape[0] or columns > self.end:
            slots = max(slots, self.rows + len(copies))
            self._reallocate(slots, columns, _GROWTH)
        self.first = self.end - columns
        new = slice(self.rows, self.rows + len(copies))
        for name in ("keys", "values"):
            states = getattr(self, name)
            states[new, :, self.first : self.end - prompts.end] = 0
            states[new, :, self.end - prompts.end : self.end] = getattr(prompts, name)[
                copies, :, : prompts.end
            ]
        self.rows += len(copies)


@dataclass
class _Row:
    """One rollout in the making."""

    request: SampleRequest
    sample: int
    uniform: torch.Tensor
    tokens: list[int] = field(default_factory=list)


class _Batch:
    """The rows that are being decoded, their cache, and how many tokens each has in it."""

    def __init__(self, layers: int, device: torch.device) -> None:
        self.layers = [_SlotLayer() for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))
        self.rows: list[_Row] = []
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)

    @property
    def columns(self) -> int:
        """Columns of the cache in use."""
        return self.layers[0].get_seq_length()

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
        seed, temperature, max_tokens: of the sampling; `temperature` > 0.
        batch_tokens: rows x (prompt + completion) tokens held at once; halved when memory runs out.
        max_rows: the most rows decoded at once.
    """

    name = "transformers"

    def __init__(
        self,
        policy: Policy,
        *,
        seed: int,
        temperature: float,
        max_tokens: int,
        batch_tokens: int | None = None,
        max_rows: int | None = None,
    ) -> None:
        self.policy = policy
        self.seed = seed
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.batch_tokens = batch_tokens or _default_batch_tokens(policy)
        self.max_rows = max_rows or (128 if policy.device.type == "cpu" else 512)

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        """Yield every rollout asked for, in the order in which they finish.

        Raises:
            RunError: one single rollout does not fit into memory.
        """
        # Long prompts first: their rows set the cache's width, which then only shrinks.
        waiting = deque(sorted(requests, key=lambda r: -len(r.prompt_token_ids)))
        batch: _Batch | None = None
        while waiting or batch:
            try:
                with torch.inference_mode():
                    batch = self._refill(batch, waiting)
                    finished = self._step(batch)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                rows = batch.rows if batch else []
                batch = None
                self._back_off(rows, waiting, error)
                continue
            yield from finished
            if not batch.rows:
                batch = None

    def _back_off(self, rows: list[_Row], waiting: deque[SampleRequest], error: Exception) -> None:
        """Put the rows in hand back and halve the budget."""
        for row in rows:
            request = row.request
            waiting.append(SampleRequest(request.item_id, request.prompt_token_ids, row.sample, 1))
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
        active = len(batch.rows) if batch else 0
        free = self.max_rows - active
        if not waiting or (batch and free < self.max_rows * _REFILL_SHARE):
            assert batch is not None
            return batch
        chosen = self._choose(active, batch, waiting)
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

    def _new_batch(self) -> _Batch:
        layers = self.policy.model.config.get_text_config().num_hidden_layers
        return _Batch(layers, self.policy.device)

    def _choose(
        self, active: int, batch: _Batch | None, waiting: deque[SampleRequest]
    ) -> list[SampleRequest]:
        """Take requests while rows and tokens are free; a request may be split."""
        chosen: list[SampleRequest] = []
        width = max((int(length) for length in batch.lengths), default=0) if batch else 0
        prefill = 0
        rows = active
        while waiting:
            request = waiting[0]
            prompt = len(request.prompt_token_ids)
            width = max(width, prompt)
            most = min(self.max_rows, max(1, self.batch_tokens // (width + self.max_tokens)))
            take = min(request.samples, most - rows)
            if take <= 0 or (chosen and prefill + prompt > _PREFILL_TOKENS):
                break
            waiting.popleft()
            ids = request.prompt_token_ids
            chosen.append(SampleRequest(request.item_id, ids, request.first_sample, take))
            if take < request.samples:
                first, left = request.first_sample + take, request.samples - take
                waiting.appendleft(SampleRequest(request.item_id, ids, first, left))
            rows += take
            prefill += prompt
        return chosen

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
        repeats = torch.tensor([request.samples for request in requests], device=device)
        copies = torch.arange(len(requests), device=device).repeat_interleave(repeats)
        for ours, theirs in zip(batch.layers, prefilled.layers, strict=True):
            if not ours.is_initialized:
                ours.lazy_initialization(theirs.keys[:0], theirs.values[:0])
            ours.join(theirs, copies, self.max_rows)
        batch.rows += [
            _Row(request, sample, self._uniform(request.item_id, sample))
            for request in requests
            for sample in range(request.first_sample, request.first_sample + request.samples)
        ]
        batch.lengths = torch.cat([batch.lengths, lengths[copies]])

    def _uniform(self, item_id: str, sample: int) -> torch.Tensor:
        return torch.from_numpy(uniform_draws(self.seed, item_id, sample, self.max_tokens))

    def _step(self, batch: _Batch) -> list[Rollout]:
        """Decode one token in every row and take the finished rows out."""
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
        uniform = torch.stack([row.uniform[len(row.tokens)] for row in batch.rows]).to(device)
        tokens = draw(logits, uniform, self.temperature).tolist()
        batch.lengths += 1
        finished = []
        # From the last row to the first, so that the row that fills a gap has been looked at.
        for index in reversed(range(len(tokens))):
            row, token = batch.rows[index], tokens[index]
            row.tokens.append(token)
            if token in self.policy.eos_token_ids:
                finished.append(_finish(row, "stop"))
            elif len(row.tokens) >= self.max_tokens:
                finished.append(_finish(row, "length"))
            else:
                continue
            batch.leave(index)
        batch.trim()
        return finished


def _finish(row: _Row, reason: str) -> Rollout:
    return Rollout(row.request.item_id, row.sample, row.tokens, reason)


def draw(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> torch.Tensor:
    """Draw one token a row by inverse transform.

    Args:
        logits: (rows, vocabulary), any float type.
        uniform: (rows,) in [0, 1).
        temperature: divides the logits.

    Returns:
        token ids, (rows,) int64.
    """
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).cumsum(dim=-1)
    # Scaling by the last entry keeps rounding from leaving a gap below 1.
    target = uniform[:, None].float() * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return tokens.clamp_max(logits.shape[-1] - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _default_batch_tokens(policy: Policy) -> int:
    """Fit the cache into half of what is free on a GPU; 32,768 tokens on a CPU."""
    if policy.device.type != "cuda":
        return 32 * 1024
    config = policy.model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    per_token *= policy.model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(policy.device)
    # What PyTorch holds of the card and does not use is free to it, after a training step most.
    free += torch.cuda.memory_reserved(policy.device) - torch.cuda.memory_allocated(policy.device)
    return int(max(4096, free // 2 // per_token))
