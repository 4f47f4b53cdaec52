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
The output head and its loss are needed once for every distinct prefix and next token, and are
computed some of them at a time. Where what a pass keeps would not fit into memory, the blocks are
run a second time instead (`recompute`).

The paper's code renders the prompt a second time for its gradients and differentiates one rollout
a pass; here the token ids are those that were sampled, and passes are batched.
"""

from __future__ import annotations

import gc
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from curate.config import TagConfig
from curate.errors import RunError, UsageError
from probes.gradients.batch import Batch, TokenizedRollout
from probes.gradients.head import OutputHead
from probes.gradients.memory import Limit, tokens_kept_whole, tokens_of_a_batch
from probes.gradients.recompute import recomputed
from probes.gradients.sketch import GradientSums, Sketch
from probes.models.load import Policy, give_back_freed_memory, is_out_of_memory
from probes.models.modules import linear_layers

# Linear layers that are never called: Mamba multiplies by the weight of its time steps itself.
_USED_BY_WEIGHT = ("dt_proj",)
# Of the logits of one chunk of predictions and what becomes of them, 12 bytes a number at most.
_HEAD_BYTES = {"cpu": 2**25, "cuda": 2**30}
# Of one module's gradients before they are projected, all rows of a block together.
_PROJECTED_BYTES = 2**28
# Giving freed memory back costs a few percent of a pass.
_PASSES_TO_TRIM = 8


@dataclass(frozen=True)
class Adapter:
    """What defines the projection of a gradient.

    Attributes:
        rank, alpha: of the LoRA adapter.
        targets: names of the modules it sits on, or `("auto",)` for every linear layer of the
            transformer's blocks; of a model that sees images too, those that read text.
        dim: coordinates after projection; None keeps every coordinate of B.
        seed: of A and of the projection.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("auto",)
    dim: int | None = 4096
    seed: int = 42

    @classmethod
    def from_config(cls, config: TagConfig) -> Adapter:
        """The adapter of a run."""
        return cls(
            rank=config.gradient_rank,
            alpha=config.gradient_alpha,
            targets=config.gradient_targets,
            dim=config.gradient_dim,
        )


def target_modules(model: Any, targets: tuple[str, ...]) -> dict[str, torch.nn.Module]:
    """Find the modules that the adapter sits on, by full name, in the model's order.

    Raises:
        UsageError: a name that no module has (lists those that could be meant).
    """
    candidates = linear_layers(model)
    if targets == ("auto",):
        head = model.get_output_embeddings()
        reading = _reading_text(model)
        # The blocks stand in a list, so a layer inside one has a number in its name.
        inside = {
            name: module
            for name, module in candidates.items()
            if module is not head
            and _is_in_block(name)
            and id(module) in reading
            and name.rpartition(".")[2] not in _USED_BY_WEIGHT
        }
        if not inside:
            raise UsageError(
                "this architecture has no linear layers in numbered blocks; name the modules to "
                f"differentiate with --gradient-targets, out of: {_listed(candidates)}"
            )
        return inside
    leaves = {name.rpartition(".")[2] for name in candidates}
    missing = [name for name in targets if name not in leaves]
    if missing:
        raise UsageError(
            f"--gradient-targets: the model has no module {missing[0]!r}; "
            f"it has: {_listed(candidates)}"
        )
    return {n: m for n, m in candidates.items() if n.rpartition(".")[2] in targets}


@dataclass(frozen=True)
class Coverage:
    """How much of a model's blocks its gradients are of.

    Attributes:
        share: of the numbers in all matrices of the blocks, those in differentiated modules.
        left_out: the other matrices, without the number of their block, the largest first.
    """

    share: float
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(self.left_out[:3]) + (", ..." if len(self.left_out) > 3 else "")
        return (
            f"gradients are of {self.share:.1%} of the weights in the model's blocks: "
            f"{names} have none"
        )


def coverage(model: Any, targets: tuple[str, ...]) -> Coverage:
    """Tell how much of a model is differentiated.

    Experts that are one tensor a layer are no linear layers, nor are convolutions and routers.

    Raises:
        UsageError: what `target_modules` raises.
    """
    within = {id(module.weight) for module in target_modules(model, targets).values()}
    read_text = _reading_text(model)
    reading = {
        id(parameter)
        for module in model.modules()
        if id(module) in read_text
        for parameter in module.parameters(recurse=False)
    }
    total = covered = 0
    left: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or not _is_in_block(name) or id(parameter) not in reading:
            continue
        total += parameter.numel()
        if id(parameter) in within:
            covered += parameter.numel()
        else:
            kind = re.sub(r"^.*?\.\d+\.", "", name)
            left[kind] = left.get(kind, 0) + parameter.numel()
    return Coverage(covered / max(total, 1), tuple(sorted(left, key=lambda kind: -left[kind])))


def _is_in_block(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _reading_text(model: Any) -> set[int]:
    """Ids of the modules that read text: all but what sees or hears, where a model can."""
    config = model.config
    others = any(getattr(config, f"{sense}_config", None) for sense in ("vision", "audio"))
    decoder = model.get_decoder() if others else model
    return {id(module) for module in decoder.modules()}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))


def _generator(*key: object) -> np.random.Generator:
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def lora_a(adapter: Adapter, name: str, fan_in: int) -> torch.Tensor:
    """A of the module of a name, (rank, fan_in): uniform as in PEFT (Kaiming with a = sqrt 5)."""
    draws = _generator(adapter.seed, "lora_A", name)
    bound = fan_in**-0.5
    a = draws.uniform(-bound, bound, size=(adapter.rank, fan_in))
    return torch.from_numpy(a.astype(np.float32))


class _Tap:
    """One module that the adapter sits on: its A, and its share in the projection."""

    def __init__(self, name: str, adapter: Adapter) -> None:
        self.name = name
        self.adapter = adapter
        self._a: torch.Tensor | None = None
        self._sketch: Sketch | None = None

    def lora_a(self, fan_in: int) -> torch.Tensor:
        """Return A, (rank, fan_in) float32."""
        return lora_a(self.adapter, self.name, fan_in)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return A h of every distinct prefix, (prefixes, rank), in the layer's own precision."""
        if self._a is None:
            self._a = self.lora_a(hidden.shape[-1]).to(hidden)
        return torch.nn.functional.linear(hidden, self._a)

    def backward(
        self, delta: torch.Tensor, down: torch.Tensor, batch: Batch, sums: GradientSums
    ) -> None:
        """Add dL/dB of every row to the sums.

        Args:
            delta: dL/do, (rows, columns, fan_out), zero at padding.
            down: what `forward` returned.
        """
        _, _, prefix_of = batch.places(delta.device)
        down = down.index_select(0, prefix_of).view(batch.rows, batch.columns, -1)
        size, scale = delta.shape[2] * down.shape[2], self.adapter.alpha / self.adapter.rank
        if self.adapter.dim is None:
            gradient = (delta.transpose(1, 2) @ down).flatten(1).float()
            sums.add_whole(self.name, scale * gradient)
            return
        if self._sketch is None:
            draws = _generator(self.adapter.seed, "sketch", self.name)
            self._sketch = Sketch(draws, size, self.adapter.dim, scale, delta.device)
        # Many short rollouts have many gradients at once.
        rows = max(1, _PROJECTED_BYTES // (4 * size))
        for first in range(0, batch.rows, rows):
            some = slice(first, first + rows)
            gradient = (delta[some].transpose(1, 2) @ down[some]).flatten(1).float()
            self._sketch.add(gradient, sums.on(delta.device)[some])


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
        tap: _Tap | None,
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
        most = batch_tokens or tokens_of_a_batch(policy)
        self._batch_limit = Limit(most, most)
        most = kept_tokens or tokens_kept_whole(policy)
        self._kept_limit = Limit(most, most)
        self._passes = 0
        modules = target_modules(policy.model, self.adapter.targets)
        self._taps = {name: _Tap(name, self.adapter) for name in modules}
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
        # Another library may have put a forward of its own on a module.
        own = {name: vars(module).get("forward") for name, module in self._layers.items()}
        try:
            for name, module in self._layers.items():
                vars(module)["forward"] = self._replacement(name, module, batch, sums)
            yield
        finally:
            for name, module in self._layers.items():
                if own[name] is None:
                    vars(module).pop("forward", None)
                else:
                    vars(module)["forward"] = own[name]

    def _replacement(
        self, name: str, module: torch.nn.Module, batch: Batch, sums: GradientSums
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        weight: Any = module.weight
        bias: Any = module.bias
        tap = self._taps.get(name)
        matrix = weight.T if isinstance(module, Conv1D) else weight
        # An input that needs no gradient itself: for the first layer of the adapter it makes the
        # graph, and nothing is computed below that layer.
        anchor = torch.zeros((), requires_grad=True) if tap else None
        own: Callable[[torch.Tensor], torch.Tensor] = module.forward

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            if hidden.numel() != batch.ids.numel() * hidden.shape[-1]:
                if tap:
                    raise RunError(f"{name} does not see every token of a rollout once")
                return own(hidden)
            if tap:
                sums.modules.add(name)
            output: torch.Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
                hidden, anchor, matrix, bias, batch, tap, sums
            )
            return output

        return forward


def _order(rollout: TokenizedRollout) -> tuple[int, list[int], int]:
    prompt = [int(token) for token in rollout.prompt_token_ids]
    return len(prompt), prompt, rollout.tokens


def _let_go_of_memory(device: torch.device) -> None:
    gc.collect()
    give_back_freed_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
