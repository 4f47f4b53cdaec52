"""Where the adapter sits: its A, and the projection of what the gradient to its B is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from curate.config import TagConfig
from probes.gradients.batch import Batch
from probes.gradients.sketch import GradientSums, Sketch

if TYPE_CHECKING:
    from probes.gradients.experts import Pairs

# Of one module's gradients before they are projected, all rows of a block together.
_PROJECTED_BYTES = 2**28
# Columns of a product that takes the gradients of several rows to one expert.
_ROWS_COLUMNS = 512


@dataclass(frozen=True)
class Adapter:
    """What defines the projection of a gradient.

    Attributes:
        rank, alpha: of the LoRA adapter.
        targets: names of the modules it sits on, or `("auto",)` for every linear layer, router and
            expert of the transformer's blocks; of a model that sees images too, those that read
            text.
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


def _generator(*key: object) -> np.random.Generator:
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def lora_a(adapter: Adapter, name: str, fan_in: int, experts: int = 0) -> torch.Tensor:
    """A of the module of a name, (rank, fan_in): uniform as in PEFT (Kaiming with a = sqrt 5).

    Where the module has experts, each has its own, (experts, rank, fan_in).
    """
    if experts:
        each = [lora_a(adapter, f"{name}.{expert}", fan_in) for expert in range(experts)]
        return torch.stack(each)
    draws = _generator(adapter.seed, "lora_A", name)
    bound = fan_in**-0.5
    a = draws.uniform(-bound, bound, size=(adapter.rank, fan_in))
    return torch.from_numpy(a.astype(np.float32))


class Tap:
    """One module that the adapter sits on: its A, and its share in the projection."""

    def __init__(self, name: str, adapter: Adapter) -> None:
        self.name = name
        self.adapter = adapter
        self._a: torch.Tensor | None = None
        self._sketch: Sketch | None = None

    @property
    def rank(self) -> int:
        """Of the adapter."""
        return self.adapter.rank

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
        size = delta.shape[2] * down.shape[2]
        # Many short rollouts have many gradients at once.
        rows = self._rows_at_once(size, batch.rows)
        for first in range(0, batch.rows, rows):
            some = slice(first, first + rows)
            gradient = (delta[some].transpose(1, 2) @ down[some]).flatten(1).float()
            self._add(gradient, some, sums)

    def _rows_at_once(self, size: int, rows: int) -> int:
        """Rows whose gradients are made together; all where they are kept anyway."""
        return rows if self.adapter.dim is None else max(1, _PROJECTED_BYTES // (4 * size))

    def _add(self, gradient: torch.Tensor, rows: slice, sums: GradientSums) -> None:
        """Add the gradients of some rows, (rows, size) float32, to the sums."""
        scale = self.adapter.alpha / self.adapter.rank
        if self.adapter.dim is None:
            sums.add_whole(self.name, scale * gradient)
            return
        if self._sketch is None:
            draws = _generator(self.adapter.seed, "sketch", self.name)
            size = gradient.shape[1]
            self._sketch = Sketch(draws, size, self.adapter.dim, scale, gradient.device)
        self._sketch.add(gradient, sums.on(gradient.device)[rows])


class ExpertTap(Tap):
    """A tensor of experts that the adapter sits on, with an A and a B for each of them."""

    def __init__(self, name: str, adapter: Adapter, experts: int) -> None:
        super().__init__(name, adapter)
        self.experts = experts

    def lora_a(self, fan_in: int) -> torch.Tensor:
        """Return A of every expert, (experts, rank, fan_in) float32."""
        return lora_a(self.adapter, self.name, fan_in, self.experts)

    def forward(  # type: ignore[override]
        self, hidden: torch.Tensor, expert: int
    ) -> torch.Tensor:
        """Return A h of an expert's own tokens, (tokens, rank)."""
        if self._a is None:
            self._a = self.lora_a(hidden.shape[-1]).to(hidden)
        return torch.nn.functional.linear(hidden, self._a[expert])

    def backward(  # type: ignore[override]
        self,
        delta_of: Callable[[slice], torch.Tensor],
        down: torch.Tensor,
        pairs: Pairs,
        sums: GradientSums,
    ) -> None:
        """Add dL/dB of every row and expert to the sums.

        Args:
            delta_of: gives dL/do of some pairs, (some, fan_out).
            down: A h of every pair, (pairs, rank).
            pairs: of tokens and experts, sorted.
            sums: take it.
        """
        rows, rank = len(pairs.counts), down.shape[1]
        fan_out = delta_of(slice(0, 0)).shape[1]
        size = self.experts * fan_out * rank
        # One product takes an expert's gradients of several rows, each with columns of its own.
        few = min(self._rows_at_once(size, rows), max(1, _ROWS_COLUMNS // rank))
        together = rows if self.adapter.dim is None else few
        for first in range(0, rows, together):
            last = min(first + together, rows)
            shape = (last - first, self.experts, fan_out, rank)
            gradient = torch.zeros(shape, device=down.device)
            for expert, part in pairs.by_expert(first, last):
                own, row_of = down[part], pairs.rows[part] - first
                columns = own.new_zeros(len(own), last - first, rank)
                columns[torch.arange(len(own), device=own.device), row_of] = own
                of_rows = delta_of(part).T @ columns.flatten(1)
                gradient[:, expert] = of_rows.view(fan_out, last - first, rank).transpose(0, 1)
            self._add(gradient.flatten(1), slice(first, last), sums)
