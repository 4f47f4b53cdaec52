"""Teacher-forced log-probabilities of rollouts under a policy.

For a completion y of prompt x, as it was sampled,

    log pi(y | x) = sum_t log softmax(z_t / temperature)[y_t],    z_t the logits after x, y_<t,

with the log-softmax in float32 and the sum in float64. At temperature 1 it is the policy's own
log-probability, which is what ratios of two policies are made of.

What a causal model computes at a token depends on the tokens up to it only. So during a pass the
linear layers are run once for every distinct prefix of the batch, the output head once for every
distinct prefix that a completion goes on from, and a completion that comes again is not run again:
the rollouts of one prompt share it, and the start of their completions where they have one in
common.

Rescoring under two policies, which the ratio of the two is about, is done with this code for both:
in bfloat16 a log-probability is known to some hundredths a token, and the same passes in the same
batches err alike, those of a sampling engine do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from curate.errors import RunError
from probes.gradients.batch import TokenizedRollout
from probes.models.adapters import adapted_layers
from probes.models.load import Policy, is_out_of_memory
from probes.models.modules import linear_layers

# Rows of logits that are brought to float32 at a time.
_LOGIT_ROWS = 1024

_Key = tuple[tuple[int, ...], tuple[int, ...]]


def log_probabilities(
    policy: Policy,
    rollouts: Sequence[TokenizedRollout],
    *,
    temperature: float = 1.0,
    batch_tokens: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Sum the log-probabilities of each rollout's completion tokens, in nats.

    Args:
        policy: the model is used in evaluation mode and left as it was.
        rollouts: prompts and completions, of one token or more each.
        temperature: divides the logits, > 0.
        batch_tokens: padded tokens in one pass, 1,024 on a CPU and 16,384 on a GPU where None;
            halved when memory runs out.
        advance: told how many rollouts a finished pass accounts for.

    Returns:
        shape (rollouts,). Batch, padding and order change it by rounding only.

    Raises:
        ValueError: an empty prompt or completion, or a temperature that is not above 0.
        RunError: one single rollout does not fit into memory; or the model computes NaN.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    places: dict[_Key, list[int]] = {}
    for place, rollout in enumerate(rollouts):
        prompt = tuple(map(int, rollout.prompt_token_ids))
        completion = tuple(map(int, rollout.completion_token_ids))
        if not prompt or not completion:
            raise ValueError(f"rollout {place} has no {'completion' if prompt else 'prompt'} token")
        places.setdefault((prompt, completion), []).append(place)
    # Rollouts of one prompt stand together, because they share its computation.
    waiting = sorted(places, key=lambda key: (len(key[0]), key[0], len(key[1]), key[1]))
    if batch_tokens is None:
        batch_tokens = 16 * 1024 if policy.device.type == "cuda" else 1024
    found = np.zeros(len(rollouts))
    with _evaluating(policy.model), torch.no_grad():
        while waiting:
            batch = _next_batch(waiting, batch_tokens)
            try:
                sums = _pass(policy, batch, temperature)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                widest = max(len(prompt) + len(completion) for prompt, completion in batch)
                if len(batch) == 1:
                    raise RunError(
                        f"out of memory on the log-probability of one rollout of {widest} tokens; "
                        "use a machine with more memory"
                    ) from error
                batch_tokens = widest * len(batch) // 2
                continue
            if np.isnan(sums).any():
                raise RunError(
                    f"policy {policy.files.name} gives no probabilities (NaN): its weights are "
                    "damaged, or its training diverged; use another checkpoint"
                )
            del waiting[: len(batch)]
            for key, value in zip(batch, sums, strict=True):
                found[places[key]] = value
            if advance:
                advance(sum(len(places[key]) for key in batch))
    return found


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Have a model without dropout for a while: one in the middle of its training has some."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def _next_batch(waiting: Sequence[_Key], batch_tokens: int) -> list[_Key]:
    """Take rollouts from the front while the padded batch fits; one at least."""
    count = widest = 0
    for prompt, completion in waiting:
        widest = max(widest, len(prompt) + len(completion))
        if count and widest * (count + 1) > batch_tokens:
            break
        count += 1
    return list(waiting[:count])


class _Batch:
    """Rollouts side by side, a row each, and which of their tokens are the same computation.

    Rows are padded on the right, where a causal model's tokens do not see the padding. A rollout's
    last token is never an input. Positions count through the rows: row * columns + column.

    Attributes:
        ids: (rows, columns) token ids.
        prefixes: (prefixes,) a position for every distinct prefix.
        prefix_of: (rows * columns,) the row of `prefixes` with the same prefix; 0 at padding.
        heads: (heads,) a position for every distinct prefix that a completion goes on from.
        head_of: (completion tokens,) the row of `heads` that predicts each.
        predicted: (completion tokens,) their ids, a row's after the other's.
        starts: (rows,) where in `predicted` each row's begin.
    """

    def __init__(self, rollouts: Sequence[_Key], device: torch.device) -> None:
        self.columns = max(len(prompt) + len(completion) for prompt, completion in rollouts) - 1
        ids = np.zeros((len(rollouts), self.columns), dtype=np.int64)
        prefix_of = np.zeros((len(rollouts), self.columns), dtype=np.int64)
        numbers: dict[tuple[int, int], int] = {}
        positions: list[int] = []
        head_numbers: dict[int, int] = {}
        head_of: list[int] = []
        predicted: list[int] = []
        starts: list[int] = []
        for row, (prompt, completion) in enumerate(rollouts):
            inputs = (*prompt, *completion[:-1])
            prefixes = []
            prefix = -1
            for column, token in enumerate(inputs):
                prefix = numbers.setdefault((prefix, token), len(numbers))
                if prefix == len(positions):
                    positions.append(row * self.columns + column)
                prefixes.append(prefix)
            ids[row, : len(inputs)] = inputs
            prefix_of[row, : len(inputs)] = prefixes
            starts.append(len(predicted))
            predicted += completion
            head_of += [
                head_numbers.setdefault(prefix, len(head_numbers))
                for prefix in prefixes[len(prompt) - 1 :]
            ]

        def move(numbers: Any) -> torch.Tensor:
            return torch.as_tensor(np.asarray(numbers, dtype=np.int64), device=device)

        self.ids = move(ids)
        self.prefixes = move(positions)
        self.prefix_of = move(prefix_of.reshape(-1))
        self.heads = move([positions[prefix] for prefix in head_numbers])
        self.head_of = move(head_of)
        self.predicted = move(predicted)
        self.starts = np.array(starts)


def _pass(policy: Policy, rollouts: Sequence[_Key], temperature: float) -> NDArray[np.float64]:
    """Run the model once: the sum of each row's log-probabilities, (rows,)."""
    batch = _Batch(rollouts, policy.device)

    def keep_heads(module: torch.nn.Module, inputs: tuple[Any, ...]) -> Any:
        return inputs[0].flatten(0, 1).index_select(0, batch.heads)[None], *inputs[1:]

    handle = policy.model.get_output_embeddings().register_forward_pre_hook(keep_heads)
    try:
        with _each_prefix_once(policy.model, batch):
            logits = policy.model(input_ids=batch.ids, use_cache=False).logits[0]
    finally:
        handle.remove()
    normalizers = torch.cat(
        [torch.logsumexp(rows.float() / temperature, dim=-1) for rows in logits.split(_LOGIT_ROWS)]
    )
    drawn = logits[batch.head_of, batch.predicted].float() / temperature
    tokens = (drawn - normalizers[batch.head_of]).cpu().numpy().astype(np.float64)
    sums: NDArray[np.float64] = np.add.reduceat(tokens, batch.starts)
    return sums


@contextmanager
def _each_prefix_once(model: Any, batch: _Batch) -> Iterator[None]:
    """Have the model's linear layers compute a shared prefix once."""
    head = model.get_output_embeddings()
    # With its adapter a layer is one linear map, whose parts lie within it.
    adapted = adapted_layers(model)
    within = tuple(f"{name}." for name in adapted)
    plain = {n: m for n, m in linear_layers(model).items() if not n.startswith(within)}
    layers = [module for module in (adapted | plain).values() if module is not head]
    # Another library may have put a forward of its own on a module.
    own = [vars(module).get("forward") for module in layers]
    try:
        for module in layers:
            vars(module)["forward"] = _once(module.forward, batch)
        yield
    finally:
        for module, forward in zip(layers, own, strict=True):
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward


def _once(own: Callable[[torch.Tensor], torch.Tensor], batch: _Batch) -> Callable[..., Any]:
    def forward(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.numel() != batch.ids.numel() * hidden.shape[-1]:
            return own(hidden)  # A layer that does not see every token, such as an expert.
        distinct = hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.prefixes)
        output = own(distinct).index_select(0, batch.prefix_of)
        return output.view(*hidden.shape[:-1], -1)

    return forward
