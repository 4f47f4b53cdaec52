"""Per-rollout policy gradients through a LoRA adapter at its initialisation.

For a completion y of prompt x the gradient is that of L = -(1/|y|) sum_t log pi(y_t | x, y_<t) with
respect to a LoRA adapter whose A is random from a fixed seed and whose B is zero (Hu et al. 2021).
At B = 0 the gradient of A vanishes and the adapter leaves the policy unchanged, so no adapter has
to be installed. For a layer with input h_t, output o_t and delta_t = dL/do_t,

    dL/dB = (alpha / rank) * sum_t delta_t (A h_t)^T,

which hooks on the frozen layer give for every rollout of a batch from one backward pass. The
gradients of all layers are then projected to `dim` coordinates by a signed, balanced count sketch
(Charikar et al. 2002; Weinberger et al. 2009): inner products are kept in expectation, with a
standard deviation of about |a||b| / sqrt(dim).

The paper's code renders the prompt a second time for its gradients and differentiates one rollout
a pass; here the token ids are those that were sampled, and passes are batched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from curate.errors import RunError, UsageError
from probes.models import Policy
from probes.transformers_engine import is_out_of_memory

# The module names that hold the query and value projections, by architecture: the first set of
# which the model has every name is taken.
_TARGETS = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("query_key_value",),
    ("qkv_proj",),
    ("c_attn",),
    ("Wqkv",),
)


@dataclass(frozen=True)
class Adapter:
    """What defines the projection of a gradient.

    Attributes:
        rank, alpha: of the LoRA adapter.
        targets: names of the modules it sits on, or `("auto",)` for query and value projections.
        dim: coordinates after projection; None keeps every coordinate of B.
        seed: of A and of the projection.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("auto",)
    dim: int | None = 4096
    seed: int = 42


@dataclass(frozen=True)
class TokenizedRollout:
    """The token ids of one rollout, as they were sampled."""

    prompt_token_ids: Sequence[int]
    completion_token_ids: Sequence[int]

    @property
    def tokens(self) -> int:
        """Length of prompt and completion together."""
        return len(self.prompt_token_ids) + len(self.completion_token_ids)


def target_modules(model: Any, targets: tuple[str, ...]) -> dict[str, torch.nn.Module]:
    """Find the modules that the adapter sits on, by full name, in the model's order.

    Raises:
        UsageError: a name that no module has (lists those that could be meant).
    """
    candidates = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), torch.nn.Parameter)
        and module.weight.ndim == 2
        and not isinstance(module, torch.nn.Embedding)
    }
    leaves = {name.rpartition(".")[2] for name in candidates}
    if targets == ("auto",):
        known = [names for names in _TARGETS if leaves.issuperset(names)]
        if not known:
            raise UsageError(
                "the query and value projections of this architecture are not known; name the "
                f"modules to differentiate with --gradient-targets, out of: {_listed(leaves)}"
            )
        targets = known[0]
    missing = [name for name in targets if name not in leaves]
    if missing:
        raise UsageError(
            f"--gradient-targets: the model has no module {missing[0]!r}; it has: {_listed(leaves)}"
        )
    return {n: m for n, m in candidates.items() if n.rpartition(".")[2] in targets}


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _generator(*key: object) -> np.random.Generator:
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


class _Tap:
    """Hooks on one module: takes A h_t on the way forward and dL/dB of every row backward."""

    def __init__(self, name: str, module: torch.nn.Module, adapter: Adapter) -> None:
        self.name = name
        self.adapter = adapter
        self.gradient: torch.Tensor | None = None
        self._a: torch.Tensor | None = None
        self._sketch: _CountSketch | None = None
        self._module = module
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def attach(self) -> None:
        self.gradient = None
        self._handle = self._module.register_forward_hook(self._forward)

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def lora_a(self, fan_in: int) -> torch.Tensor:
        """Return A, (rank, fan_in) float32: uniform as in PEFT (Kaiming with a = sqrt 5)."""
        if self._a is None:
            draws = _generator(self.adapter.seed, "lora_A", self.name)
            bound = fan_in**-0.5
            a = draws.uniform(-bound, bound, size=(self.adapter.rank, fan_in))
            self._a = torch.from_numpy(a.astype(np.float32))
        return self._a

    def _forward(self, module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        hidden = inputs[0].detach()
        self._a = self.lora_a(hidden.shape[-1]).to(hidden.device)
        down = hidden.float() @ self._a.T  # (batch, tokens, rank)
        output.register_hook(lambda delta: self._backward(delta, down))

    def _backward(self, delta: torch.Tensor, down: torch.Tensor) -> None:
        scale = self.adapter.alpha / self.adapter.rank
        # (batch, fan_out, tokens) @ (batch, tokens, rank)
        gradient = scale * (delta.detach().float().transpose(1, 2) @ down)
        flat = gradient.flatten(1)
        if self.adapter.dim is not None:
            if self._sketch is None:
                self._sketch = _CountSketch(
                    self.name, flat.shape[1], self.adapter.dim, self.adapter.seed, flat.device
                )
            flat = self._sketch(flat)
        self.gradient = flat


class _CountSketch:
    """A random signed sum of `size` coordinates into `dim` buckets of nearly equal load."""

    def __init__(self, name: str, size: int, dim: int, seed: int, device: torch.device) -> None:
        draws = _generator(seed, "sketch", name)
        # A permutation gives each bucket the same number of coordinates, and a plain sum over a
        # reshaped tensor is deterministic on a GPU, where a scattered addition is not.
        self.order = torch.from_numpy(draws.permutation(size)).to(device)
        signs = draws.integers(0, 2, size=size).astype(np.float32) * 2 - 1
        self.signs = torch.from_numpy(signs).to(device)
        # Without an offset the leftover coordinates of every module would share the first buckets.
        self.shift = int(draws.integers(0, dim))
        self.dim = dim
        self.padding = -size % dim

    def __call__(self, flat: torch.Tensor) -> torch.Tensor:
        signed = flat[:, self.order] * self.signs
        padded = torch.nn.functional.pad(signed, (0, self.padding))
        buckets = padded.view(len(flat), -1, self.dim).sum(dim=1)
        return buckets.roll(self.shift, dims=1)


class GradientProbe:
    """Gradients of rollouts under a policy, batched.

    Args:
        policy: the loaded policy; its parameters stay frozen.
        adapter: what the gradients are taken with respect to.
        batch_tokens: padded tokens in one pass; halved when memory runs out.
    """

    def __init__(
        self, policy: Policy, adapter: Adapter | None = None, *, batch_tokens: int = 1024
    ) -> None:
        self.policy = policy
        self.adapter = adapter or Adapter()
        self.batch_tokens = batch_tokens
        modules = target_modules(policy.model, self.adapter.targets)
        self._taps = [_Tap(name, module, self.adapter) for name, module in modules.items()]

    @property
    def dim(self) -> int:
        """Length of a feature."""
        if self.adapter.dim is None:
            raise ValueError("an adapter without projection has no fixed dimension")
        return self.adapter.dim

    def gradients(
        self, rollouts: Sequence[TokenizedRollout]
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield gradients batch by batch.

        Yields:
            the positions in `rollouts` of a batch, and their gradients, (batch, dim) float32.

        Raises:
            RunError: one single rollout does not fit into memory.
        """
        waiting = sorted(range(len(rollouts)), key=lambda i: rollouts[i].tokens)
        while waiting:
            batch = self._next_batch(waiting, rollouts)
            try:
                features = self._pass([rollouts[i] for i in batch])
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise RunError(
                        f"out of memory on the gradient of one rollout of "
                        f"{rollouts[batch[0]].tokens} tokens; use a machine with more memory"
                    ) from error
                self.batch_tokens = rollouts[batch[-1]].tokens * len(batch) // 2
                continue
            del waiting[: len(batch)]
            yield batch, features

    def _next_batch(self, waiting: list[int], rollouts: Sequence[TokenizedRollout]) -> list[int]:
        """Take rollouts of like length from the front while the padded batch fits."""
        count = 1
        while count < len(waiting):
            widest = rollouts[waiting[count]].tokens
            if widest * (count + 1) > self.batch_tokens:
                break
            count += 1
        return waiting[:count]

    def _pass(self, rollouts: Sequence[TokenizedRollout]) -> np.ndarray:
        device = self.policy.device
        width = max(rollout.tokens for rollout in rollouts)
        completions = [len(rollout.completion_token_ids) for rollout in rollouts]
        longest = max(completions)
        # Padding stands on the left, so that every completion ends in the last column and logits
        # are needed for the last columns only.
        ids = torch.zeros(len(rollouts), width, dtype=torch.long)
        mask = torch.zeros(len(rollouts), width, dtype=torch.long)
        share = torch.zeros(len(rollouts), longest)
        for row, rollout in enumerate(rollouts):
            tokens = [*rollout.prompt_token_ids, *rollout.completion_token_ids]
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
            share[row, longest - completions[row] :] = 1 / completions[row]
        ids, mask, share = ids.to(device), mask.to(device), share.to(device)
        for tap in self._taps:
            tap.attach()
        try:
            with torch.enable_grad():
                embedded = self.policy.model.get_input_embeddings()(ids).detach().requires_grad_()
                logits = self.policy.model(
                    inputs_embeds=embedded,
                    attention_mask=mask,
                    position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
                    use_cache=False,
                    logits_to_keep=longest + 1,
                ).logits[:, :-1]
                log_probabilities = torch.log_softmax(logits.float(), dim=-1)
                chosen = log_probabilities.gather(-1, ids[:, -longest:, None])[..., 0]
                # Rows do not mix, so the gradient of the sum is each row's own gradient.
                torch.autograd.backward(-(chosen * share).sum())
        finally:
            for tap in self._taps:
                tap.remove()
        parts = [tap.gradient for tap in self._taps if tap.gradient is not None]
        if len(parts) != len(self._taps):
            raise RunError("a module named in --gradient-targets took no part in the forward pass")
        if self.adapter.dim is None:
            return torch.cat(parts, dim=1).cpu().numpy()
        total: torch.Tensor = torch.stack(parts).sum(dim=0)
        return total.cpu().numpy()
