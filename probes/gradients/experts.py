"""Gradients of experts that are one tensor a layer: each is a frozen linear layer for some tokens.

An expert sees the tokens that the router sends to it, so that for a pair of a token and one of its
experts e, with input h and output o of one of its two tensors,

    dL/dB_e = (alpha / rank) * sum over pairs of e: dL/do (A_e h)^T,

a rollout's own pairs apart: an adapter of its own for every expert, as PEFT has it
(`target_parameters`). As with linear layers, products are made once for every distinct prefix and
copied, and the backward pass is run for every token.

It stands in for the forward of the experts' module, whatever transformers would run there (`eager`,
`grouped_mm`, `batched_mm`): grouped products give no gradients by rollout, since their backward
pass knows experts and not rows, and the eager loop indexes tensors in a way of each model's own.
What is computed between the two tensors is the model's code. Experts are gone through one by one;
their tokens are counted once a product, for which a GPU is waited for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from curate.errors import RunError
from probes.gradients.batch import Batch
from probes.gradients.sketch import GradientSums
from probes.gradients.tap import ExpertTap
from probes.models.modules import FusedExperts


class Pairs:
    """Pairs of a token and one of its experts, by expert, and the rows of each in order.

    Args:
        index: (tokens, k) the experts of each token; a number beyond the last is none.
        row_of: (tokens,) ascending, the row of the batch that each is of.
        rows, experts: how many there are.

    Attributes:
        order: (pairs,) where each stands, counted through the tokens: token * k + slot.
        tokens: (pairs,) its token.
        rows: (pairs,) its row.
        counts: (rows, experts) pairs of each.
        starts: (rows, experts) where they begin.
    """

    def __init__(self, index: torch.Tensor, row_of: torch.Tensor, rows: int, experts: int) -> None:
        flat = index.flatten().clamp(max=experts)
        by_pair = row_of.repeat_interleave(index.shape[1])
        places = torch.bincount(by_pair * (experts + 1) + flat, minlength=rows * (experts + 1))
        self.counts = places.cpu().view(rows, experts + 1)[:, :experts].numpy()
        ends = self.counts.T.flatten().cumsum().reshape(experts, rows).T
        self.starts = ends - self.counts
        # The rows are in order already.
        self.order = torch.argsort(flat, stable=True)[: int(self.counts.sum())]
        self.tokens = self.order // index.shape[1]
        self.rows = by_pair.index_select(0, self.order)

    def by_expert(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, slice]]:
        """Yield each expert that has some, and where those of some rows stand."""
        sizes = self.counts[first:last].sum(axis=0)
        for expert in sizes.nonzero()[0].tolist():
            start = int(self.starts[first, expert])
            yield expert, slice(start, start + int(sizes[expert]))


class _Frame:
    """What both products of one call have in common."""

    def __init__(
        self, experts: FusedExperts, batch: Batch, sums: GradientSums, index: torch.Tensor
    ) -> None:
        self.experts, self.batch, self.sums = experts, batch, sums
        self.chosen = index.shape[1]
        """k: experts of a token."""
        self.tokens, self.prefixes, self.prefix_of = batch.places(index.device)
        shared = index.index_select(0, self.prefixes).index_select(0, self.prefix_of)
        # A router that we do not know computes every token by itself, and two probabilities that
        # are equal but for rounding may come in either order.
        if not torch.equal(*(each.index_select(0, self.tokens) for each in (index, shared))):
            self.prefixes = self.prefix_of = torch.arange(len(index), device=index.device)

    def distinct(self, index: torch.Tensor) -> Pairs:
        """Pairs of the distinct prefixes, as if they were one row."""
        few = index.index_select(0, self.prefixes)
        return Pairs(few, torch.zeros_like(self.prefixes), 1, self.experts.count)

    def whole(self, index: torch.Tensor) -> Pairs:
        """Pairs of every row's tokens, padding left out; tokens count through `self.tokens`."""
        own = index.index_select(0, self.tokens)
        row_of = self.tokens // self.batch.columns
        return Pairs(own, row_of, self.batch.rows, self.experts.count)

    def spread(self, of_distinct: torch.Tensor) -> torch.Tensor:
        """Copy what was computed for distinct prefixes to all tokens."""
        return of_distinct.index_select(0, self.prefix_of)

    def of_pairs(self, of_distinct: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        """What was computed for pairs of distinct prefixes, for the pairs of `whole`."""
        of_tokens = self.prefix_of.index_select(0, self.tokens).index_select(0, pairs.tokens)
        slots = pairs.order % self.chosen
        return of_distinct.index_select(0, of_tokens * self.chosen + slots)

    def everywhere(self, of_tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What belongs to `self.tokens`, with zeros at padding."""
        shape = (self.batch.ids.numel(), *of_tokens.shape[1:])
        found = torch.zeros(shape, dtype=dtype, device=of_tokens.device)
        return found.index_copy_(0, self.tokens, of_tokens.to(dtype))


class _Up(torch.autograd.Function):
    """Every token's products with the first tensor of its experts, (tokens, k, fan_out)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        anchor: torch.Tensor,
        index: torch.Tensor,
        frame: _Frame,
        tap: ExpertTap | None,
    ) -> torch.Tensor:
        experts, pairs = frame.experts, frame.distinct(index)
        matrix, bias = experts.matrix(experts.up), experts.bias(experts.up)
        few = hidden.index_select(0, frame.prefixes)
        output = hidden.new_zeros(len(few) * frame.chosen, matrix.shape[1])
        down = hidden.new_zeros(len(output), tap.rank if tap else 0)
        for expert, part in pairs.by_expert():
            own = few.index_select(0, pairs.tokens[part])
            product = torch.nn.functional.linear(
                own, matrix[expert], None if bias is None else bias[expert]
            )
            output.index_copy_(0, pairs.order[part], product)
            if tap:
                down.index_copy_(0, pairs.order[part], tap.forward(own, expert))
        ctx.frame, ctx.tap = frame, tap
        # Saved, and not kept, so that recomputed blocks make them again.
        ctx.save_for_backward(index, down)
        return frame.spread(output.view(len(few), frame.chosen, -1))

    @staticmethod
    def backward(ctx: Any, *deltas: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (delta,) = deltas
        frame = ctx.frame
        index, down = ctx.saved_tensors
        pairs, experts = frame.whole(index), frame.experts
        flat = delta.index_select(0, frame.tokens).flatten(0, 1)
        if ctx.tap:
            own = frame.of_pairs(down, pairs)
            ctx.tap.backward(lambda part: flat[pairs.order[part]], own, pairs, frame.sums)
        if not ctx.needs_input_grad[0]:
            return (None,) * 5
        matrix = experts.matrix(experts.up)
        back = torch.zeros(len(frame.tokens), matrix.shape[2], device=delta.device)
        for expert, part in pairs.by_expert():
            product = flat[pairs.order[part]] @ matrix[expert]
            back.index_add_(0, pairs.tokens[part], product.float())
        return frame.everywhere(back, delta.dtype), *(None,) * 4


class _Down(torch.autograd.Function):
    """Every token's sum over its experts of their second product times weight, (tokens, width).

    With u = W^T dL/do the gradient of a weight is u · inner + dL/do · bias, so that products need
    not be kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inner: torch.Tensor,
        weights: torch.Tensor,
        anchor: torch.Tensor,
        index: torch.Tensor,
        frame: _Frame,
        tap: ExpertTap | None,
    ) -> torch.Tensor:
        experts, pairs = frame.experts, frame.distinct(index)
        matrix, bias = experts.matrix(experts.down), experts.bias(experts.down)
        few = inner.index_select(0, frame.prefixes).flatten(0, 1)
        shares = weights.index_select(0, frame.prefixes).flatten()
        total = torch.zeros(len(frame.prefixes), matrix.shape[1], device=inner.device)
        down = inner.new_zeros(len(few), tap.rank if tap else 0)
        for expert, part in pairs.by_expert():
            own = few.index_select(0, pairs.order[part])
            product = torch.nn.functional.linear(
                own, matrix[expert], None if bias is None else bias[expert]
            )
            weighted = product * shares[pairs.order[part], None]
            total.index_add_(0, pairs.tokens[part], weighted.float())
            if tap:
                down.index_copy_(0, pairs.order[part], tap.forward(own, expert))
        ctx.frame, ctx.tap = frame, tap
        ctx.save_for_backward(inner, weights, index, down)
        return frame.spread(total.to(inner.dtype))

    @staticmethod
    def backward(ctx: Any, *deltas: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (delta,) = deltas
        frame = ctx.frame
        inner, weights, index, down = ctx.saved_tensors
        pairs, experts = frame.whole(index), frame.experts
        flat = delta.index_select(0, frame.tokens)
        shares = weights.index_select(0, frame.tokens).flatten()

        def weighted(part: slice) -> torch.Tensor:
            own: torch.Tensor = flat[pairs.tokens[part]]
            share: torch.Tensor = shares[pairs.order[part], None]
            return (own * share).to(own.dtype)

        if ctx.tap:
            ctx.tap.backward(weighted, frame.of_pairs(down, pairs), pairs, frame.sums)
        matrix, bias = experts.matrix(experts.down), experts.bias(experts.down)
        own_inner = inner.index_select(0, frame.tokens).flatten(0, 1)
        back = torch.zeros_like(own_inner)
        slopes = torch.zeros(len(own_inner), device=delta.device)
        for expert, part in pairs.by_expert():
            order, own = pairs.order[part], flat[pairs.tokens[part]]
            product = own @ matrix[expert]
            slope = (product.float() * own_inner[order].float()).sum(-1)
            if bias is not None:
                slope = slope + own.float() @ bias[expert].float()
            slopes.index_copy_(0, order, slope)
            back.index_copy_(0, order, (product * shares[order, None]).to(back.dtype))
        shape = (len(frame.tokens), frame.chosen)
        return (
            frame.everywhere(back.view(*shape, -1), inner.dtype),
            frame.everywhere(slopes.view(shape), weights.dtype),
            *(None,) * 4,
        )


def experts_replacement(
    name: str,
    experts: FusedExperts,
    taps: dict[str, ExpertTap],
    batch: Batch,
    sums: GradientSums,
) -> Callable[..., torch.Tensor]:
    """Give what stands in for the forward of experts during a pass.

    Args:
        name: of the module.
        experts: what it is.
        taps: of its tensors, by full name; one without a tap is only computed.
        batch: of the pass.
        sums: take the gradients.
    """
    up, down = (taps.get(f"{name}.{parameter}") for parameter in experts.matrices)
    signature = inspect.signature(experts.module.forward)
    # Inputs that need no gradient themselves: for the first layer of the adapter.
    anchor = torch.zeros((), requires_grad=True)

    def forward(*arguments: Any, **named: Any) -> torch.Tensor:
        hidden, index, weights = signature.bind(*arguments, **named).args
        if hidden.ndim != 2 or len(hidden) != batch.ids.numel():
            raise RunError(f"{name} does not see every token of a rollout once")
        for tap in (up, down):
            if tap:
                sums.modules.add(tap.name)
        frame = _Frame(experts, batch, sums, index)
        products: torch.Tensor = _Up.apply(  # type: ignore[no-untyped-call]
            hidden, anchor, index, frame, up
        )
        inner = experts.between(products.flatten(0, 1)).view(*index.shape, -1)
        output: torch.Tensor = _Down.apply(  # type: ignore[no-untyped-call]
            inner, weights, anchor, index, frame, down
        )
        return output

    return forward
