"""Per-rollout policy gradients through a LoRA adapter at its initialisation.

For a completion y of prompt x the gradient is that of L = -(1/|y|) sum_t log pi(y_t | x, y_<t) with
respect to a LoRA adapter whose A is random from a fixed seed and whose B is zero (Hu et al. 2021).
At B = 0 the gradient of A vanishes and the adapter leaves the policy unchanged, so no adapter has
to be installed. For a layer with input h_t, output o_t and delta_t = dL/do_t,

    dL/dB = (alpha / rank) * sum_t delta_t (A h_t)^T,

which the frozen layers give for every rollout of a batch from one backward pass. The gradients of
all layers are then projected to `dim` coordinates by a signed, balanced count sketch (Charikar et
al. 2002; Weinberger et al. 2009): inner products are kept in expectation, with a standard deviation
of about |a||b| / sqrt(dim).

What a causal model computes at a token depends on the tokens up to it only. Rollouts of one item
share their prompt, and often the start of the completion, so during a pass the linear layers are
run once for every distinct prefix of the batch and the result is copied to the rollouts that have
it. The backward pass differs from rollout to rollout and is run for every token, without padding.
Experts that are one tensor a layer have an adapter each (`experts`). The output head and its loss
are needed once for every distinct prefix and next token, and are computed some of them at a time.
Where what a pass keeps would not fit into memory, the blocks are run a second time instead
(`recompute`).

The paper's code renders the prompt a second time for its gradients and differentiates one rollout
a pass; here the token ids are those that were sampled, and passes are batched.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from curate.errors import RunError
from probes.gradients.batch import Batch, TokenizedRollout
from probes.gradients.experts import experts_replacement
from probes.gradients.head import OutputHead
from probes.gradients.memory import Limit, adapter_bytes, tokens_kept_whole, tokens_of_a_batch
from probes.gradients.recompute import recomputed
from probes.gradients.sketch import GradientSums
from probes.gradients.tap import Adapter, ExpertTap, Tap
from probes.gradients.targets import find_targets
from probes.models.load import Policy, give_back_freed_memory, is_out_of_memory
from probes.models.modules import FusedExperts, ProductsWith, linear_layers

# Of the logits of one chunk of predictions and what becomes of them, 12 bytes a number at most.
_HEAD_BYTES = {"cpu": 2**25, "cuda": 2**30}
# Giving freed memory back costs a few percent of a pass.
_PASSES_TO_TRIM = 8


class _Linear(torch.autograd.Function):
    """A frozen linear layer, forward for distinct prefixes, backward for every row's tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        anchor: torch.Tensor | None,
        matrix: torch.Tensor,
        bias: torch.Tensor | None,
        batch: Batch,
        tap: Tap | None,
        sums: GradientSums,
    ) -> torch.Tensor:
        ctx.matrix, ctx.batch, ctx.tap, ctx.sums = matrix, batch, tap, sums
        _, prefixes, prefix_of = batch.places(hidden.device)
        distinct = hidden.reshape(-1, hidden.shape[-1]).index_select(0, prefixes)
        ctx.down = tap.forward(distinct) if tap else None
        output = torch.nn.functional.linear(distinct, matrix, bias)
        # No view of another tensor: models such as Falcon add to it in place.
        spread = output.new_empty(*hidden.shape[:-1], output.shape[-1])
        torch.index_select(output, 0, prefix_of, out=spread.flatten(0, -2))
        return spread

    @staticmethod
    def backward(ctx: Any, *deltas: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (delta,) = deltas
        batch = ctx.batch
        flat = delta.reshape(-1, delta.shape[-1])
        if ctx.tap is not None:
            rows = flat.view(batch.rows, batch.columns, -1)
            ctx.tap.backward(rows, ctx.down, batch, ctx.sums)
        if not ctx.needs_input_grad[0]:
            return (None,) * 7
        back = flat.new_zeros(len(flat), ctx.matrix.shape[1])
        tokens, _, _ = batch.places(delta.device)
        back.index_copy_(0, tokens, flat.index_select(0, tokens) @ ctx.matrix)
        return back.view(*delta.shape[:-1], -1), *(None,) * 6


class GradientProbe:
    """Gradients of rollouts under a policy, batched.

    Args:
        policy: the loaded policy; its parameters stay frozen.
        adapter: what the gradients are taken with respect to.
        batch_tokens: padded tokens in one pass of several rollouts, 0 for what suits the machine.
        kept_tokens: padded tokens in one pass above which blocks are recomputed, 0 for what fits.

    Both are lowered where memory runs out, and grow back.
    """

    def __init__(
        self,
        policy: Policy,
        adapter: Adapter | None = None,
        *,
        batch_tokens: int = 0,
        kept_tokens: int = 0,
    ) -> None:
        self.policy = policy
        self.adapter = adapter or Adapter()
        self._passes = 0
        targets = find_targets(policy.model, self.adapter.targets)
        taken = adapter_bytes(targets.values(), self.adapter.rank, policy)
        most = batch_tokens or tokens_of_a_batch(policy, taken)
        self._batch_limit = Limit(most, most)
        most = kept_tokens or tokens_kept_whole(policy, taken)
        self._kept_limit = Limit(most, most)
        self._taps: dict[str, Tap] = {}
        self._experts: dict[str, FusedExperts] = {}
        self._routers: dict[str, torch.nn.Module] = {}
        for name, target in targets.items():
            if target.experts:
                self._taps[name] = ExpertTap(name, self.adapter, target.experts.count)
                self._experts[name.rpartition(".")[0]] = target.experts
                continue
            self._taps[name] = Tap(name, self.adapter)
            if not target.is_product:
                self._routers[name] = target.module
        head = policy.model.get_output_embeddings()
        self._layers = {n: m for n, m in linear_layers(policy.model).items() if m is not head}

    @property
    def dim(self) -> int:
        """Length of a feature."""
        if self.adapter.dim is None:
            raise ValueError("an adapter without projection has no fixed dimension")
        return self.adapter.dim

    @property
    def batch_tokens(self) -> int:
        """Padded tokens in one pass of several rollouts, now."""
        return self._batch_limit.tokens

    def gradients(
        self, rollouts: Sequence[TokenizedRollout]
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield gradients batch by batch.

        A rollout for which memory runs out even alone and with recomputed blocks is left out.

        Yields:
            the positions in `rollouts` of a batch, and their gradients, (batch, dim) float32.
        """
        # Rollouts of one prompt stand together, because they share its computation.
        waiting = sorted(range(len(rollouts)), key=lambda i: _order(rollouts[i]))
        while waiting:
            batch = self._next_batch(waiting, rollouts)
            features = self._pass_if_it_fits([rollouts[i] for i in batch])
            if features is not None:
                del waiting[: len(batch)]
                yield batch, features
                continue
            # What the failed pass held, which its error's traceback kept until here.
            _let_go_of_memory(self.policy.device)
            tokens = len(batch) * max(rollouts[i].tokens for i in batch)
            if len(batch) > 1:
                self._batch_limit.lower(tokens // 2)
            elif tokens <= self._kept_limit.tokens:
                self._kept_limit.lower(tokens - 1)
            else:
                del waiting[:1]
        give_back_freed_memory()

    def _pass_if_it_fits(self, rollouts: list[TokenizedRollout]) -> np.ndarray | None:
        try:
            features = self._pass(rollouts)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        for limit in (self._batch_limit, self._kept_limit):
            limit.went_well()
        self._passes += 1
        if self._passes % _PASSES_TO_TRIM == 0:
            give_back_freed_memory()
        return features

    def rehearse(self, rollouts: Sequence[TokenizedRollout]) -> None:
        """Take gradients of a few rollouts in one pass, and forget them.

        Raises:
            RunError: a module of the adapter takes no part, or does not see every token.
        """
        self._sums([*rollouts])

    def _next_batch(self, waiting: list[int], rollouts: Sequence[TokenizedRollout]) -> list[int]:
        """Take rollouts from the front while the padded batch fits."""
        count, widest = 1, rollouts[waiting[0]].tokens
        while count < len(waiting):
            widest = max(widest, rollouts[waiting[count]].tokens)
            if widest * (count + 1) > self.batch_tokens:
                break
            count += 1
        return waiting[:count]

    def _pass(self, rollouts: Sequence[TokenizedRollout]) -> np.ndarray:
        return self._sums(rollouts).features(self._taps)

    def _sums(self, rollouts: Sequence[TokenizedRollout]) -> GradientSums:
        device = self.policy.device
        batch = Batch(rollouts, device)
        sums = GradientSums(batch.rows, self.adapter.dim)
        fits = batch.rows * batch.columns < self._kept_limit.tokens
        keeping = nullcontext() if fits else recomputed(self.policy.model)
        with torch.enable_grad(), self._layers_replaced(batch, sums), keeping:
            hidden, delta = self._loss(batch)
            idle = [name for name in self._taps if name not in sums.modules]
            if idle:
                named = (
                    "" if self.adapter.targets == ("auto",) else ", named in --gradient-targets,"
                )
                raise RunError(f"{idle[0]}{named} took no part in the forward pass")
            torch.autograd.backward(hidden, delta)
        return sums

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model forward; return the output head's input and the gradient of the loss to it.

        Rows do not mix, so the gradient of the summed loss is each row's own gradient.
        """
        model = self.policy.model
        vocabulary = int(model.config.get_text_config().vocab_size)
        chunk = max(64, _HEAD_BYTES[self.policy.device.type] // (12 * vocabulary))
        with OutputHead(model) as head:
            if not head.is_apart:
                chunk = max(1, len(batch.edges))
            slopes = torch.cat(
                [
                    head.slopes(batch.ids, positions, tokens)
                    for positions, tokens in zip(
                        torch.split(batch.edges, chunk),
                        torch.split(batch.edge_tokens, chunk),
                        strict=True,
                    )
                ]
            )
            hidden = head.hidden
        delta = torch.zeros_like(hidden).flatten(0, 1)
        place = delta.device
        shares = batch.shares[:, None].to(place)
        shared = slopes.to(place).index_select(0, batch.edge_of.to(place)).float() * shares
        delta.index_copy_(0, batch.predictions.to(place), shared.to(delta.dtype))
        return hidden, delta.view_as(hidden)

    @contextmanager
    def _layers_replaced(self, batch: Batch, sums: GradientSums) -> Iterator[None]:
        """Have the model's linear layers compute a shared prefix once and take the gradients."""
        modules = {
            **self._layers,
            **self._routers,
            **{name: experts.module for name, experts in self._experts.items()},
        }
        # Another library may have put a forward of its own on a module.
        own = {name: vars(module).get("forward") for name, module in modules.items()}
        try:
            for name, module in modules.items():
                vars(module)["forward"] = self._replacement(name, module, batch, sums)
            yield
        finally:
            for name, module in modules.items():
                if own[name] is None:
                    vars(module).pop("forward", None)
                else:
                    vars(module)["forward"] = own[name]

    def _replacement(
        self, name: str, module: torch.nn.Module, batch: Batch, sums: GradientSums
    ) -> Callable[..., Any]:
        if name in self._experts:
            taps = {n: tap for n, tap in self._taps.items() if isinstance(tap, ExpertTap)}
            return experts_replacement(name, self._experts[name], taps, batch, sums)
        own = module.forward
        product = self._product(name, batch, sums)
        if name in self._routers:
            weight: Any = module.weight

            def route(*arguments: Any, **named: Any) -> Any:
                with ProductsWith(weight, lambda *inputs: product(*inputs, _plain)):
                    return own(*arguments, **named)

            return route
        matrix: Any = module.weight.T if isinstance(module, Conv1D) else module.weight
        bias: Any = module.bias
        return lambda hidden: product(hidden, matrix, bias, lambda *_: own(hidden))

    def _product(self, name: str, batch: Batch, sums: GradientSums) -> Callable[..., torch.Tensor]:
        """Give what stands in for a module's product with its matrix."""
        tap = self._taps.get(name)
        # An input that needs no gradient itself: for the first layer of the adapter it makes the
        # graph, and nothing is computed below that layer.
        anchor = torch.zeros((), requires_grad=True) if tap else None

        def product(
            hidden: torch.Tensor,
            matrix: torch.Tensor,
            bias: torch.Tensor | None,
            otherwise: Callable[..., torch.Tensor],
        ) -> torch.Tensor:
            if hidden.numel() != batch.ids.numel() * hidden.shape[-1]:
                if tap:
                    raise RunError(f"{name} does not see every token of a rollout once")
                return otherwise(hidden, matrix, bias)
            if tap:
                sums.modules.add(name)
            output: torch.Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
                hidden, anchor, matrix, bias, batch, tap, sums
            )
            return output

        return product


_plain = torch.nn.functional.linear


def _order(rollout: TokenizedRollout) -> tuple[int, list[int], int]:
    prompt = [int(token) for token in rollout.prompt_token_ids]
    return len(prompt), prompt, rollout.tokens


def _let_go_of_memory(device: torch.device) -> None:
    gc.collect()
    give_back_freed_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
